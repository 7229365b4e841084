"""Results of robustness evaluations made of drawn numbers, and small networks that give some, for tests of reports."""

from __future__ import annotations

import torch
from torch import nn

from shiftnorm.data.corruptions import COMMON, SEVERITIES
from shiftnorm.evaluate.comparison import Comparison, Difference
from shiftnorm.evaluate.result import Calibration, CellResult, Estimate, Example, Result

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "<script>alert(1)</script>"]


def make_bins(offset: float) -> list[dict]:
    """A reliability diagram of a network that is surer by `offset` than it is right."""
    bins: list[dict] = []
    for number in range(15):
        lower, upper = number / 15, (number + 1) / 15
        count = 0 if number < 3 else 20 + number**3
        middle = (lower + upper) / 2
        known = {"confidence": middle, "accuracy": max(0.0, middle - offset * middle)} if count else {}
        bins.append({"lower": lower, "upper": upper, "count": count, "confidence": None, "accuracy": None} | known)
    return bins


def make_result(
    name: str = "net", *, base: float = 8.0, step: float = 7.0, seed: int = 0, corruptions=COMMON, side: int = 32, **kw
) -> Result:
    """A result whose errors rise with severity."""
    draw = torch.Generator().manual_seed(seed)
    cells: list[CellResult] = []
    for corruption in corruptions:
        slope = step * (0.2 + 1.6 * torch.rand((), generator=draw).item())
        for severity in SEVERITIES:
            error = min(base + slope * severity**1.2, 99.0)
            half = 196 * (error * (100 - error) / 1e4 / 10_000) ** 0.5
            cells.append(
                CellResult(corruption, severity, Estimate(error, error - half, error + half), error / 5, 1.0, 0.3)
            )
    mean = sum(cell.error.value for cell in cells) / max(len(cells), 1)
    ramp = torch.linspace(0, 255, side).expand(3, side, side).clone()
    ramp[1] = ramp[1].T.clone()
    noise = torch.randn(3, side, side, generator=draw)
    examples = [Example("clean", 0, 4, ramp.to(torch.uint8))]
    for corruption in corruptions:
        for severity in (1, 3, 5):
            image = (ramp + 18 * severity * noise).clamp(0, 255).to(torch.uint8)
            examples.append(Example(corruption, severity, 4, image))
    fields = {
        "classes": CLASSES,
        "class_errors": {
            "clean": [base + place for place in range(9)] + [None],
            "corrupted": [mean - 9 + 4 * place for place in range(9)] + [None],
        },
        "calibration": {
            "clean": Calibration(2.1, 2.9, make_bins(0.05)),
            "corrupted": Calibration(14.2, 16.0, make_bins(0.4)),
        },
        "data": {"name": "cifar10 test", "sha256": "0123456789abcdef", "notes": "<i>none</i>"},
        "settings": {"seed": 0, "constants": "cifar32", "storage": "none", "frost": "procedural", "normalize": "model",
                     "mean": [0.4914, 0.4822, 0.4465], "amp": None, "batch_size": 256, "device": "cpu", "level": 0.95},
        "cost": {"parameters": 11_173_962, "ms_per_image": 1.934, "peak_memory_mb": 812.0, "seconds": 1834.2},
        "notes": ["Frost was made procedurally, so this is no published CIFAR-10-C number."],
        "versions": {"python": "3.11", "torch": "2.14.1"},
        "machine": {"processor": "x86_64", "cpu_count": 2},
        "command": "shiftnorm evaluate net.safetensors --data cifar10",
        "finished": "2026-11-21T12:00:00+00:00",
        "fingerprint": {"model": name.ljust(16, "0"), "data": "d" * 16},
        "examples": examples,
    }  # fmt: skip
    overall = Estimate(mean, mean - 0.6, mean + 0.6) if cells else None
    clean = CellResult("clean", 0, Estimate(base, base - 0.5, base + 0.6), base / 8, 0.3, 0.1)
    return Result(name, 10_000, clean, cells, overall, **(fields | kw))


def make_trio() -> list[Result]:
    """Three networks, one with a name that wants to be markup and one with a very long one."""
    return [
        make_result("BatchNorm", base=8.0, step=7.4),
        make_result("IBN <b>a</b> & co", base=8.4, step=5.5, cost={"parameters": 11_200_000, "ms_per_image": 2.2}),
        make_result("timm/convnextv2_nano.fcmae_ft_in22k_in1k_384_without_a_break", base=7.0, step=8.5, seed=1),
    ]


def make_comparison(difference: float, half: float) -> Comparison:
    """The second network of a pair minus the first."""
    found = Difference(30.0 + difference, 30.0, difference, difference - half, difference + half, 0.5)
    fog = found._replace(p_value=0.001)
    return Comparison("b", "a", 10_000, found, found, {"fog": fog, "snow": found})


COMPARISONS = {1: make_comparison(-6.1, 0.8), 2: make_comparison(0.3, 0.7)}


class Reds(nn.Module):
    """Tells which channel is brightest, less well the more the first pixel counts."""

    def __init__(self, mixed: float) -> None:
        super().__init__()
        self.mixed = nn.Parameter(torch.tensor(mixed))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean((2, 3))
        return 8 * (means + self.mixed * x[:, :, 0, 0])


def make_reds(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and the channel that is brightest in each as its label, for networks such as `Reds`."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    images = 200 * torch.rand(count, 3, 16, 16, generator=draw).repeat_interleave(2, 2).repeat_interleave(2, 3)
    images[torch.arange(count), labels] += 20
    return images.clamp(0, 255).to(torch.uint8), labels
