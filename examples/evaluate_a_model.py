"""Measure what corruptions cost a model, compare it with another one image by image, and write the report.

python examples/evaluate_a_model.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from shiftnorm.data import Dataset
from shiftnorm.evaluate.html_report import write_report
from shiftnorm.evaluate.paired_results import find_comparisons
from shiftnorm.evaluate.robustness import robustness


def make_images(count: int) -> Dataset:
    """Warm and cold pictures stand in for yours; `open_dataset("photos")` reads a folder."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.randint(60, 180, (count, 3, 32, 32), generator=generator)
    for number, label in enumerate(labels.tolist()):
        images[number, 2 * label] += number % 24  # red is warm, blue is cold
    return Dataset.of_images("temperatures", images.to(torch.uint8), labels, ("warm", "cold"))


class ByColour(nn.Module):
    """Compares red with blue: over the whole picture, or in its centre only."""

    def __init__(self, margin: int) -> None:
        super().__init__()
        self.margin = margin
        self.input_normalization = ([0.5] * 3, [0.25] * 3)  # what `normalize="model"` asks for

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centre = x[..., self.margin : x.shape[2] - self.margin, self.margin : x.shape[3] - self.margin]
        return 20 * centre.mean((2, 3))[:, ::2]


def main() -> None:
    images = make_images(100)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        results = [
            robustness(
                ByColour(margin),
                images,
                ["gaussian_noise", "fog", "contrast"],
                severities=[1, 3, 5],
                out=out / name,  # stopped at any moment, the same call goes on from here
                name=name,
                progress=False,
            )
            for name, margin in (("whole picture", 0), ("centre only", 13))
        ]
        print(results[0])
        difference = find_comparisons(results)[1].mean_corruption_error
        print(f"\ncentre only minus whole picture, in points of mean corruption error: {difference}")
        report = write_report(results, out / "report.html")
        print("written:", ", ".join(sorted(file.name for file in out.glob("report.*"))), report.stat().st_size > 50_000)


if __name__ == "__main__":
    main()
