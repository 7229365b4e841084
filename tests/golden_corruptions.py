"""Golden corruptions: pixels and statistics of the authors' functions, compared with ours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shiftnorm.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupt
from shiftnorm.data.corruptions.base import truncate
from shiftnorm.data.corruptions.elastic import ElasticDraw
from shiftnorm.data.corruptions.glass import GlassDraw
from shiftnorm.data.corruptions.noise import Impulses, Photons
from shiftnorm.data.corruptions.snow import SnowDraw

VARIANTS = {"cifar": "cifar32", "tiny": "tiny64", "imagenet": "imagenet224", "inception": "inception299"}
FOLDERS = (".", "corruptions")

# Share of the values that may differ from the authors' by more than one level.
BEYOND_A_LEVEL = 0.01
# Of a mean over images, of the difference between two draws: a thousand means are compared. Few images need more, as in
# Student's distribution.
STANDARD_ERRORS = 5.0
FEW_IMAGES = 24.0
# What no number of images would tell from equal: levels, decibels, parts of 1.
RESOLUTION = {"out_mean": 0.02, "out_std": 0.02, "psnr": 0.02, "ssim": 5e-4, "mse": 0.2, "frac_changed": 1e-3}
STATISTICS = tuple(RESOLUTION)
# A sample of the large images will do.
ELEMENTS = 2**21


@dataclass(frozen=True)
class CorruptionCase:
    """One file: a corruption of one variant, at all severities."""

    path: Path
    name: str
    constants: str
    random: bool
    arrays: dict[str, np.ndarray]
    clean: Tensor

    @property
    def corruption(self) -> Corruption:
        assert self.name in CORRUPTIONS, f"{self.path.name}: no corruption {self.name!r}"
        return CORRUPTIONS[self.name]

    def constant(self, severity: int) -> Any:
        return self.corruption.constant(self.constants, severity)

    def ours(self, severity: int, count: int) -> Tensor:
        return corrupt(self.clean[:count], self.name, severity, constants=self.constants, storage="none")

    def drawn(self, severity: int, image: int) -> list[np.ndarray]:
        """The authors' random numbers for one image, in the order of their calls; empty if they are not stored."""
        prefix = f"draw.s{severity}.i{image}."
        return [self.arrays[key] for key in sorted(self.arrays) if key.startswith(prefix)]


def channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).movedim(-1, -3).contiguous()


def golden_file(directory: Path, name: str) -> Path:
    """A file of ``directory`` or of its folder of corruptions; the test is skipped where it is not there."""
    for folder in FOLDERS:
        if (directory / folder / name).is_file():
            return directory / folder / name
    pytest.skip(f"{name} is not in {directory}")


def find_corruption_cases(directory: Path) -> list[Path]:
    """Every npz that says it is a corruption."""

    def is_corruption(path: Path) -> bool:
        with np.load(path) as z:
            return "meta" in z.files and json.loads(str(z["meta"])).get("kind") in ("deterministic", "random")

    return [path for folder in FOLDERS for path in sorted((directory / folder).glob("*.npz")) if is_corruption(path)]


def load_corruption_case(path: Path) -> CorruptionCase:
    with np.load(path) as z:
        arrays = {key: z[key] for key in z.files}
    meta = json.loads(str(arrays.pop("meta")))
    name, _, variant = path.stem.rpartition("_")
    assert variant in VARIANTS, f"{path.name}: expected a name that ends in one of {', '.join(VARIANTS)}"
    named = re.search(r"\S+\.npz", meta["images"])
    assert named, f"{path.name}: expected a file of clean images in its meta, got {meta['images']!r}"
    with np.load(path.parent / named[0]) as z:
        clean = channels_first(z["images"])
    return CorruptionCase(path, name, VARIANTS[variant], meta["kind"] == "random", arrays, clean)


def assert_same_pixels(ours: Tensor, expected: Tensor, what: str) -> None:
    difference = (ours.int() - expected.int()).abs()
    beyond = (difference > 1).double().mean()
    assert beyond <= BEYOND_A_LEVEL, f"{what}: {beyond:.2%} of the values differ by more than one level"


def check_pixels(case: CorruptionCase) -> None:
    """A deterministic corruption."""
    assert not case.corruption.random, f"{case.name} draws random numbers; the authors' does not"
    expected = channels_first(case.arrays["out"])
    for severity in SEVERITIES:
        ours = case.ours(severity, expected.shape[1])
        assert_same_pixels(ours, expected[severity - 1], f"{case.path.stem} severity {severity}")


Draws = list[np.ndarray]


def _single(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array, dtype=np.float64))[None]


def _noise(case: CorruptionCase, severity: int, draws: Draws) -> Tensor:
    return channels_first(draws[0])[None] / case.constant(severity)


def _photons(case: CorruptionCase, severity: int, draws: Draws) -> Photons:
    return Photons(channels_first(draws[0])[None])


def _impulses(case: CorruptionCase, severity: int, draws: Draws) -> Impulses:
    replaced, white = (channels_first(draw)[None] for draw in draws)
    return Impulses(replaced <= case.constant(severity), white <= 0.5)


def _glass(case: CorruptionCase, severity: int, draws: Draws) -> GlassDraw:
    _, shift, passes = case.constant(severity)
    height, width = (size - 2 * shift for size in case.clean.shape[-2:])
    offsets = torch.from_numpy(np.concatenate(draws).astype(np.int64)).view(1, passes, height, width, 2)
    return GlassDraw(offsets[..., 0], offsets[..., 1])


def _fog(case: CorruptionCase, severity: int, draws: Draws) -> Tensor:
    # The authors draw from (-w, w), three calls per level, and w falls from level to level.
    decay = case.constant(severity)[1]
    return _single(np.concatenate([draw.ravel() * decay ** (i // 3) / 100 for i, draw in enumerate(draws)]))


def _spatter(case: CorruptionCase, severity: int, draws: Draws) -> Tensor:
    mean, deviation = case.constant(severity)[:2]
    return (_single(draws[0]) - mean) / deviation


TO_PARAMS: Mapping[str, Callable[[CorruptionCase, int, Draws], Any]] = {
    "gaussian_noise": _noise,
    "speckle_noise": _noise,
    "shot_noise": _photons,
    "impulse_noise": _impulses,
    "glass_blur": _glass,
    "motion_blur": lambda case, severity, draws: _single(draws[0]),
    "snow": lambda case, severity, draws: SnowDraw(*map(_single, draws)),
    "fog": _fog,
    "elastic_transform": lambda case, severity, draws: ElasticDraw(*map(_single, draws)),
    "spatter": _spatter,
}


def drawn_again(case: CorruptionCase, severity: int, image: int) -> Draws:
    """The draws of a fog whose file has only the outputs, from the seed that its meta names."""
    place = 8  # of fog in the authors' order of the random corruptions
    generator = np.random.RandomState(100000 * (place + 1) + 1000 * severity + image)
    levels = (max(case.clean.shape[-2:]) - 1).bit_length()
    width = [100 / case.constant(severity)[1] ** level for level in range(levels)]
    return [generator.uniform(-w, w, (2**level, 2**level)) for level, w in enumerate(width) for _ in range(3)]


def check_replayed(case: CorruptionCase) -> None:
    """A random corruption with the authors' own draws, where they are stored with the outputs."""
    if "exact_out" not in case.arrays:
        return
    expected = channels_first(case.arrays["exact_out"])
    for severity in SEVERITIES:
        for image in range(expected.shape[1]):
            draws = case.drawn(severity, image)
            if not draws:
                assert case.name == "fog", f"{case.path.name}: outputs without draws"
                draws = drawn_again(case, severity, image)
            x = case.clean[image : image + 1].float() / 255
            params = TO_PARAMS[case.name](case, severity, draws)
            ours = truncate(case.corruption.apply(x, case.constant(severity), params).float())[0]
            assert_same_pixels(ours, expected[severity - 1, image], f"{case.path.stem} severity {severity}")


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity per image, as scikit-image has it: windows of 7x7, sample covariance."""
    a, b = a.double(), b.double()
    mean_a, mean_b = F.avg_pool2d(a, 7, 1), F.avg_pool2d(b, 7, 1)
    sample = 49 / 48
    var_a = sample * (F.avg_pool2d(a * a, 7, 1) - mean_a**2)
    var_b = sample * (F.avg_pool2d(b * b, 7, 1) - mean_b**2)
    both = sample * (F.avg_pool2d(a * b, 7, 1) - mean_a * mean_b)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similar = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return similar.mean((1, 2, 3))


def spectrum(residual: Tensor) -> Tensor:
    """(N, H/2 + 1) power of residuals (in levels) by distance from frequency 0, in whole steps, mean over channels."""
    size = residual.shape[-1]
    power = torch.fft.fft2(residual.double() / 255).abs().square().mean(1) / size**2
    frequency = torch.fft.fftfreq(size, 1 / size)
    radius = (frequency[:, None].square() + frequency.square()).sqrt().add(0.5).floor().long()
    inside = radius <= size // 2
    sums = torch.zeros(len(power), size // 2 + 1, dtype=power.dtype)
    sums.index_add_(1, radius[inside], power[:, inside])
    return sums / torch.bincount(radius[inside])


def statistics(ours: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Per image, the numbers that are stored."""
    residual = ours.double() - clean.double()
    mse = residual.square().mean((1, 2, 3))
    return {
        "out_mean": ours.double().mean((1, 2, 3)),
        "out_std": ours.double().flatten(1).std(1, correction=0),
        "mse": mse,
        "psnr": 10 * torch.log10(255**2 / mse),
        "ssim": ssim(ours, clean),
        "frac_changed": (residual != 0).double().mean((1, 2, 3)),
        "power": spectrum(residual),
        "res_mean": residual.mean((2, 3)),
    }


def standard_errors(images: int) -> float:
    return STANDARD_ERRORS + FEW_IMAGES / images


def check_statistics(case: CorruptionCase) -> None:
    """A random corruption with our draws: image by image, the stored numbers but for the luck of the draw."""
    count = min(case.arrays["mse"].shape[1], ELEMENTS // case.clean[0].numel())
    for severity in SEVERITIES:
        ours = statistics(case.ours(severity, count), case.clean[:count])
        for key in STATISTICS:
            theirs = torch.from_numpy(case.arrays[key][severity - 1])[:count]
            difference = ours[key] - theirs
            band = standard_errors(count) * difference.std() / count**0.5 + RESOLUTION[key]
            assert difference.mean().abs() <= band, (
                f"{case.path.stem} severity {severity}: mean {key} is {ours[key].mean():.5g}, "
                f"the authors' {theirs.mean():.5g}, and they may differ by {band:.3g}"
            )
        check_spectrum(case, severity, ours["power"])


def check_spectrum(case: CorruptionCase, severity: int, power: Tensor) -> None:
    theirs, spread = (torch.from_numpy(case.arrays[key][severity - 1]) for key in ("power_mean", "power_sd"))
    stored = case.arrays["mse"].shape[1]
    error = (power.std(0).square() / len(power) + spread.square() / stored).sqrt()
    difference = (power.mean(0) - theirs).abs()
    wrong = difference > standard_errors(len(power)) * error + 0.01 * theirs
    assert not wrong.any(), (
        f"{case.path.stem} severity {severity}: power at frequency {int(wrong.nonzero()[0])} is "
        f"{power.mean(0)[wrong][0]:.4g}, the authors' {theirs[wrong][0]:.4g}"
    )
