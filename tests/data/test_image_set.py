"""ImageSet: what it refuses, subsets, stratified splits."""

from __future__ import annotations

import pytest
import torch

from shiftnorm.data import ImageSet


def numbered(labels: list[int], classes: tuple[str, ...] = ("a", "b", "c")) -> ImageSet:
    """Images whose first pixel tells where they were."""
    images = torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels))
    return ImageSet(images, torch.tensor(labels), classes, "numbered")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2).long(), r"\(N, 3, H, W\) uint8, got \(2, 1, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2).long(), "got .* torch.float32"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(3).long(), r"labels must be \(2,\) int64 .* got \(3,\)"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2), "got .* torch.float32"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.tensor([0, 2]), r"labels must be in 0..1 for 2 classes, got 0..2"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.tensor([-1, 0]), r"got -1..0"),
    ],
)
def test_errors(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSet(images, labels, ("a", "b"), "wrong")


def test_split_is_stratified_disjoint_ordered_and_repeatable() -> None:
    whole = numbered([0] * 50 + [1] * 20 + [2] * 3)
    rest, part = whole.split(0.2, seed=1)
    assert part.labels.bincount().tolist() == [10, 4, 1]
    first, second = (set(s.images[:, 0, 0, 0].tolist()) for s in (rest, part))
    assert first.isdisjoint(second) and len(first | second) == 73
    assert rest.images[:, 0, 0, 0].tolist() == sorted(first)
    assert torch.equal(part.images, whole.split(0.2, seed=1)[1].images)
    assert not torch.equal(part.images, whole.split(0.2, seed=2)[1].images)


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_split_leaves_something_on_either_side(fraction: float) -> None:
    for side in numbered([0, 0, 1, 1, 1, 2, 2]).split(fraction):
        assert side.labels.unique().tolist() == [0, 1, 2]


def test_split_of_single_and_missing_classes() -> None:
    rest, part = numbered([0, 1, 1]).split(0.5)
    assert rest.labels.tolist() == [0, 1] and part.labels.tolist() == [1]
    with pytest.raises(ValueError, match=r"in \(0, 1\), got 1"):
        numbered([0]).split(1.0)


def test_subset() -> None:
    part = numbered([0, 1, 2]).subset(torch.tensor([2, 0]), name="two")
    assert (part.labels.tolist(), part.images[:, 0, 0, 0].tolist(), part.name) == ([2, 0], [2, 0], "two")
    assert part.classes == ("a", "b", "c") and len(part) == 2
