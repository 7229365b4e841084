"""How corrupted files are preprocessed decides the pixels, so it decides what goes on and what is compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from shiftnorm.data import Dataset, open_corrupted
from shiftnorm.data.materialise import corrupt_folder
from shiftnorm.evaluate.comparison import compare
from shiftnorm.evaluate.result import Result
from shiftnorm.evaluate.robustness import robustness
from shiftnorm.evaluate.robustness_table import find_mismatches


def toy(side: int) -> Dataset:
    images = torch.randint(0, 256, (20, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Dataset.of_images("toy", images, torch.arange(20) % 2, ("cat", "dog"))


def measured(made: Path, preprocess: str, out: Path) -> Result:
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    files = open_corrupted(made, clean=toy(32), preprocess=preprocess)
    return robustness(model, files, ["fog"], [1], out=out, normalize="half", progress=False, bootstrap=20)


def test_files_that_are_preprocessed_otherwise_are_other_images(tmp_path: Path) -> None:
    made = corrupt_folder(toy(48), tmp_path / "toy-c", corruptions=["fog"], severities=[1]).folder
    first = measured(made, "crop32", tmp_path / "a")
    assert first.settings["preprocess"] == "crop32"
    assert measured(made, "crop32", tmp_path / "a").cells == first.cells
    with pytest.raises(ValueError, match=r"holds another evaluation; .*preprocess was 'crop32'"):
        measured(made, "resize32x32", tmp_path / "a")
    second = measured(made, "resize32x32", tmp_path / "b")
    with pytest.raises(ValueError, match="measured with another preprocess, so they saw other images"):
        compare(first, second)
    assert "preprocess crop32 and resize32x32" in find_mismatches(first, second)
