"""Two processes that measure corrupted images from files: the numbers of one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ranks import on_ranks
from shiftnorm.data import Dataset, open_corrupted
from shiftnorm.data.materialise import corrupt_cifar
from shiftnorm.evaluate.robustness import robustness

SIZE = 23  # not a multiple of ranks times batch size


def clean_images() -> Dataset:
    images = torch.randint(0, 256, (SIZE, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Dataset.of_images("toy", images, torch.arange(SIZE) % 3, ("a", "b", "c"))


def measure(_: int, shard: Tensor) -> dict[str, Any]:
    folder = Path(bytes(shard.tolist()).decode())
    torch.manual_seed(1)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
    files = open_corrupted(folder, clean=clean_images())
    result = robustness(
        model, files, ["fog", "contrast"], [1, 5], normalize="half", batch_size=4, bootstrap=20, progress=False,
        out=folder.parent / f"out{torch.distributed.is_initialized()}",
    )  # fmt: skip
    found = result.to_json()
    return {key: found[key] for key in ("clean", "cells", "images", "calibration", "data", "notes")}


def test_two_ranks_are_as_one(tmp_path: Path) -> None:
    made = corrupt_cifar(clean_images(), tmp_path / "toy-c", corruptions=["fog", "contrast"]).folder
    place = torch.tensor(list(str(made).encode()))
    first, second = on_ranks(measure, [place, place])
    assert first == second == measure(0, place)
    assert len(list((tmp_path / "outTrue" / "cells").iterdir())) == 5


def refusal(_: int, shard: Tensor) -> str:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        measure(_, shard)
    return str(caught.value)


def test_ranks_with_other_copies_are_refused(tmp_path: Path) -> None:
    one, other = (tmp_path / name / "toy-c" for name in ("first", "second"))
    for seed, folder in enumerate((one, other)):
        corrupt_cifar(clean_images(), folder, corruptions=["fog", "contrast"], seed=seed)
    shutil.copy(one / "contrast.npy", other / "contrast.npy")
    first, second = on_ranks(refusal, [torch.tensor(list(str(folder).encode())) for folder in (one, other)])
    assert second == "robustness: rank 1 and rank 0 have another checksum of fog."
    assert "failed on rank 1: ValueError: " in first and "checksum of fog" in first
    assert not (tmp_path / "first" / "outTrue" / "cells").exists()
