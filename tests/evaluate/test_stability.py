from __future__ import annotations

import pytest
import torch

from shiftnorm.evaluate.stability import (
    CIFAR10_P,
    IMAGENET_P,
    flip_probability,
    mean_flip_probability,
    mean_flip_rate,
    mean_top5_distance,
    top5_distance,
)


def flips_of(sequences, noise: bool, stride: int) -> float:
    """The definition, frame by frame: sub-sequences of every offset, averaged within and then over sequences."""
    total = 0.0
    for frames in sequences.tolist():
        flips = []
        for offset in range(stride):
            previous = frames[offset]
            for frame in frames[offset::stride][1:]:
                flips.append(frame != previous)
                previous = previous if noise else frame
        total += sum(flips) / len(flips)
    return 100 * total / len(sequences)


def distances_of(ranks, noise: bool, stride: int) -> float:
    """The paper's double sum, from the ranks (sequences, frames, classes) of all classes, counted from 1."""
    total = 0.0
    for frames in ranks.tolist():
        distances = []
        for offset in range(stride):
            previous = frames[offset]
            for frame in frames[offset::stride][1:]:
                distance = 0
                for i in range(1, 6):
                    sigma = frame[previous.index(i)]
                    distance += sum(1 <= j - 1 <= 5 for j in range(min(i, sigma) + 1, max(i, sigma) + 1))
                distances.append(distance)
                previous = previous if noise else frame
        total += sum(distances) / len(distances)
    return total / len(ranks)


@pytest.mark.parametrize(("noise", "stride"), [(False, 1), (False, 2), (False, 3), (True, 1)])
def test_flips_and_distances_by_definition(noise, stride):
    scores = torch.randn(4, 1, 9) + 0.4 * torch.randn(4, 31, 9)
    order = scores.argsort(-1, descending=True)
    found = flip_probability(order[..., 0], noise=noise, stride=stride)
    assert found == pytest.approx(flips_of(order[..., 0], noise, stride))
    assert 5 < found < 95
    distance = top5_distance(order[..., :5], noise=noise, stride=stride)
    assert distance == pytest.approx(distances_of(order.argsort(-1) + 1, noise, stride))


def test_noise_is_compared_to_the_first_frame():
    predicted = torch.tensor([[1, 2, 2, 2, 2], [3, 3, 3, 3, 3]])
    assert flip_probability(predicted, noise=True) == 50.0
    assert flip_probability(predicted, noise=False) == 12.5


def test_top5_distance_by_hand():
    still = [0, 1, 2, 3, 4]
    # 4 leaves rank 5 for below (|5 - 6| = 1); the newcomer is not counted
    assert top5_distance(torch.tensor([[still, [0, 1, 2, 3, 9]]]), noise=False) == 1.0
    # 0 falls from rank 1 to below (5), the other four rise by one (4)
    assert top5_distance(torch.tensor([[still, [1, 2, 3, 4, 9]]]), noise=False) == 9.0


def test_means_by_hand():
    flips, baseline = {"tilt": 1.0, "scale": 9.0}, {"scale": 10.0, "tilt": 10.0}
    assert mean_flip_probability(flips) == 5.0
    assert mean_flip_rate(flips, baseline) == 50.0  # (10 % + 90 %) / 2
    assert mean_top5_distance(flips, baseline) == 50.0


def test_perturbations_of_the_benchmarks():
    assert len(IMAGENET_P) == len(CIFAR10_P) == 10
    assert set(IMAGENET_P) ^ set(CIFAR10_P) == {"snow", "spatter"}


def test_means_refuse():
    with pytest.raises(ValueError, match=r"only the network has \['tilt'\], only the baseline \['scale'\]"):
        mean_flip_rate({"tilt": 1.0}, {"scale": 1.0})
    with pytest.raises(ValueError, match=r"above 0 for each perturbation, it is not for \['tilt'\]"):
        mean_top5_distance({"tilt": 1.0}, {"tilt": 0.0})
    with pytest.raises(ValueError, match="at least one perturbation"):
        mean_flip_probability({})


@pytest.mark.parametrize(
    ("shape", "noise", "stride", "message"),
    [
        ((4,), False, 1, "expected \\(sequences, frames\\)"),
        ((0, 5), False, 1, "at least one sequence"),
        ((2, 3), False, 3, "stride from 1 to 2, got 3"),
        ((2, 3), False, 0, "stride from 1 to 2, got 0"),
        ((2, 1), False, 1, "stride"),
        ((2, 9), True, 2, "noise is compared to the first frame"),
    ],
)
def test_flip_probability_refuses(shape, noise, stride, message):
    with pytest.raises(ValueError, match=message):
        flip_probability(torch.zeros(shape, dtype=torch.int64), noise=noise, stride=stride)


def test_top5_distance_refuses_other_lists():
    with pytest.raises(ValueError, match="repeated classes"):
        top5_distance(torch.zeros(1, 3, 5, dtype=torch.int64), noise=False)
    with pytest.raises(ValueError, match="five different classes"):
        top5_distance(torch.arange(4).expand(1, 3, 4), noise=False)
