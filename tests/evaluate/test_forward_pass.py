"""Images of a size that a network does not take, and networks that only guess."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shiftnorm.data import open_sequences
from shiftnorm.evaluate.result import Result
from shiftnorm.evaluate.robustness import robustness
from shiftnorm.evaluate.sequence_stability import measure_stability
from shiftnorm.models import AllConv
from shiftnorm.norms import BatchNorm


def measure(model: nn.Module, side: int, count: int = 12, **options: Any) -> Result:
    images = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    options = {"normalize": "half", "constants": "cifar32", "progress": False, "bootstrap": 20, **options}
    return robustness(model, (images, torch.arange(count) % 3), ["contrast"], [5], **options)


class OfOneSize(nn.Module):
    """Refuses others as timm's transformers do, before its norm, and fails in a way of its own if it is broken."""

    def __init__(self, side: int, broken: bool = False) -> None:
        super().__init__()
        self.norm, self.side, self.broken = BatchNorm(3), side, broken
        self.norm.running_mean += 1

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == self.side, f"Input height ({x.shape[-1]}) doesn't match model ({self.side})."
        if self.broken:
            raise RuntimeError("the weights are on another planet")
        return self.norm(x).mean((2, 3))


@pytest.mark.parametrize(
    ("make", "side", "message"),
    [
        (
            lambda: AllConv(num_classes=3, width=4),
            8,
            r"such as 16x16, got 8x8 \(AllConv: images must be at least 12x12",
        ),
        (lambda: OfOneSize(32), 8, r"such as 32x32, got 8x8 \(Input height \(8\) doesn't match model \(32"),
        (lambda: OfOneSize(224), 300, r"such as 224x224, got 300x300 \(Input height"),
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 40), nn.Flatten()), 32, r"such as 64x64, got 32x32 \(Calculated padded"),
    ],
)
def test_a_size_that_is_not_taken_is_named_with_one_that_is(make: Any, side: int, message: str) -> None:
    advice = r".*\)\. Resize them, with preprocess='resize\d+x\d+'\."
    with pytest.raises(
        ValueError, match=f"^robustness: expected images of a size that the network takes, {message}{advice}"
    ):
        measure(make(), side)


def test_other_faults_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^the weights are on another planet$"):
        measure(OfOneSize(32, broken=True), 32)
    with pytest.raises(AssertionError, match=r"match model .77"):  # no usual size either
        measure(OfOneSize(77), 32)


def test_frames_of_a_size_that_is_not_taken(tmp_path: Path) -> None:
    np.save(tmp_path / "tilt.npy", np.zeros((2, 3, 8, 8, 3), np.uint8))
    message = r"measure_stability: expected images of a size .* such as 32x32, got 8x8"
    with pytest.raises(ValueError, match=message):
        measure_stability(OfOneSize(32), open_sequences(tmp_path), ["tilt"], normalize="half", progress=False)


class Always(nn.Module):
    """Right for the first ``right`` of 300 images whose labels are 0, 1, 2, 0, ...; else it says 0."""

    def __init__(self, right: int) -> None:
        super().__init__()
        self.right, self.seen = right, 0

    def forward(self, x: Tensor) -> Tensor:
        places = (torch.arange(len(x)) + self.seen) % 300
        self.seen += len(x)
        return nn.functional.one_hot(torch.where(places < self.right, places % 3, 0), 3).float()


@pytest.mark.parametrize(("right", "guessed"), [(0, True), (270, False)])
def test_a_result_that_guessing_gives_too_says_so(right: int, guessed: bool) -> None:
    result = measure(Always(right), 8, count=300)
    said = [note for note in result.notes if "guessing" in note]
    error = f"The clean error, {result.clean.error} %, cannot be told from that of guessing among 3 classes, 66.7 %."
    assert said == ([error] if guessed else [])
    assert not [note for note in measure(Always(right), 8, count=300, bootstrap=0).notes if "guessing" in note]
