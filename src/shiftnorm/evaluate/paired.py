"""Whether two networks differ: paired tests over images and over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shiftnorm.evaluate.bootstrap import Statistic, as_statistic, bootstrap, check_values

__all__ = [
    "ImageComparison",
    "McNemar",
    "SeedComparison",
    "adjust_holm",
    "compare_images",
    "compare_seeds",
    "mcnemar",
]

_ENUMERATED = 16  # seeds up to which every sign pattern is looked at
_CHUNK = 2**23


class McNemar(NamedTuple):
    """Images that only one of two networks gets right, and how likely so uneven a split is by chance.

    Example:
        >>> McNemar(only_first=0, only_second=5, p_value=0.0625).only_second
        5
    """

    only_first: int
    only_second: int
    p_value: float


class ImageComparison(NamedTuple):
    """A statistic of two networks on the same images; the difference is first minus second.

    Example:
        >>> ImageComparison(30.0, 32.0, -2.0, -3.0, -1.0, 0.95, 0.001).difference
        -2.0
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    level: float
    p_value: float


class SeedComparison(NamedTuple):
    """A quantity of two networks trained with the same seeds; the difference is first minus second.

    Interval and p-values are None with a single seed. `p_flip` cannot be below `smallest_p_flip`, whatever the data.

    Example:
        >>> compare_seeds({0: 30.0, 1: 31.0}, {0: 32.0, 1: 34.0}).difference
        -2.5
    """

    difference: float
    low: float | None
    high: float | None
    level: float
    p_t: float | None
    p_flip: float | None
    smallest_p_flip: float | None
    count: int


def mcnemar(first_correct: Tensor, second_correct: Tensor) -> McNemar:
    """Exact McNemar test on the images of one cell.

    If the networks are equally good, each image that only one of them gets right falls to either with probability 1/2.

    Example:
        >>> first = torch.tensor([True, True, True, True, True, False])
        >>> mcnemar(first, torch.tensor([False, False, False, False, False, False]))
        McNemar(only_first=5, only_second=0, p_value=0.0625)

    Args:
        first_correct: (N,) bool, whether the first network is right.
        second_correct: (N,) bool, of the second on the same images.

    Returns:
        Both counts, and the two-sided p-value.

    Raises:
        ValueError: if the two differ in shape, are not bool, or there is no image.
    """
    if (
        first_correct.shape != second_correct.shape
        or first_correct.ndim != 1
        or len(first_correct) == 0
        or {first_correct.dtype, second_correct.dtype} != {torch.bool}
    ):
        raise ValueError(
            "mcnemar: expected two bool tensors (N,) of the same images with N >= 1, got "
            f"{tuple(first_correct.shape)} {first_correct.dtype} and {tuple(second_correct.shape)} "
            f"{second_correct.dtype}."
        )
    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((second_correct & ~first_correct).sum())
    trials = only_first + only_second
    if only_first == only_second:
        return McNemar(only_first, only_second, 1.0)
    # whole numbers: exact, and without overflow for any count
    ways, tail = 1, 1
    for k in range(min(only_first, only_second)):
        ways = ways * (trials - k) // (k + 1)
        tail += ways
    return McNemar(only_first, only_second, min(1.0, tail / 2 ** (trials - 1)))


def compare_images(
    first: Tensor,
    second: Tensor,
    statistic: Statistic | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> ImageComparison:
    """Compare two networks on the same images, over all cells at once.

    The interval of the difference is a BCa bootstrap that draws images with all their cells for both networks. The
    p-value is a permutation test's: if the networks do not differ, exchanging their results on any image changes
    nothing, so the difference is compared to those after exchanging each image with probability 1/2.

    Example:
        >>> first = 100.0 * (torch.arange(200) % 4 == 0).float()
        >>> second = 100.0 * (torch.arange(200) % 2 == 0).float()
        >>> result = compare_images(first, second)
        >>> result.difference, result.high < 0, result.p_value < 0.001
        (-25.0, True, True)

    Args:
        first: (N,), (cells, N) or (seeds, cells, N), as for `bootstrap`.
        second: the same of the other network.
        statistic: weights of the cells, or a function of means (..., cells); default: the mean over the cells.
        resamples: of the bootstrap and of the permutation test.
        level: of the interval.
        seed: of the draws.

    Returns:
        Both statistics, their difference with its interval, and the two-sided p-value, never below
        1 / (resamples + 1). With several seeds the interval draws seeds too; the p-value takes these seeds as given.

    Raises:
        ValueError: as `bootstrap` does, or if the two differ in shape.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"compare_images: expected values of the same cells and images, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )
    first, second = (check_values("compare_images", each, resamples) for each in (first, second))
    cells, measure = first.shape[1], as_statistic(statistic)

    def differ(means: Tensor) -> Tensor:
        return measure(means[..., :cells]) - measure(means[..., cells:])

    joint = torch.cat([first.double(), second.double()], 1)
    interval = bootstrap(joint, differ, resamples=resamples, level=level, seed=seed)
    means = joint.mean((0, 2))[None]
    p_value = _permuted(joint.mean(0), differ, interval.estimate, resamples, seed)
    ours, theirs = measure(means[..., :cells]).item(), measure(means[..., cells:]).item()
    return ImageComparison(ours, theirs, interval.estimate, interval.low, interval.high, level, p_value)


def compare_seeds(
    first: Mapping[int, float], second: Mapping[int, float], *, level: float = 0.95, seed: int = 0
) -> SeedComparison:
    """Compare two networks over training seeds that both have.

    `p_t` is the paired t-test's, which takes the differences as normal. `p_flip` needs no such assumption: it is the
    share of sign patterns of the differences with a mean at least as far from 0, over all patterns up to 16 seeds and
    over 100,000 drawn ones from there on.

    Example:
        >>> result = compare_seeds({0: 30.0, 1: 31.0, 2: 29.0}, {0: 33.0, 1: 33.0, 2: 33.0})
        >>> result.difference, round(result.p_t, 4), result.p_flip
        (-3.0, 0.0351, 0.25)

    Args:
        first: per seed, a quantity such as the mean corruption error.
        second: the same of the other network.
        level: of the interval, which is Student's t.
        seed: of the drawn sign patterns.

    Returns:
        The mean difference with its interval and p-values.

    Raises:
        ValueError: if no seed is common.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        raise ValueError(
            f"compare_seeds: expected common seeds, got {sorted(first)} and {sorted(second)}. Train both with the same."
        )
    differences = [first[key] - second[key] for key in common]
    mean, n = statistics.fmean(differences), len(common)
    if n == 1:
        return SeedComparison(mean, None, None, level, None, None, None, 1)
    error = statistics.stdev(differences) / math.sqrt(n)
    half = _student_quantile(level, n - 1) * error
    p_t = 1 - _student_within(abs(mean) / error, n - 1) if error > 0 else float(mean == 0)
    exact = n <= _ENUMERATED
    if exact:
        signs = 1.0 - 2.0 * (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).double()
    else:
        generator = torch.Generator().manual_seed(seed)
        signs = 1.0 - 2.0 * torch.randint(2, (100_000, n), generator=generator).double()
    flipped = (signs @ torch.tensor(differences, dtype=torch.float64) / n).abs()
    as_far = int((flipped >= abs(mean) * (1 - 1e-9)).sum())
    p_flip = as_far / len(signs) if exact else (as_far + 1) / (len(signs) + 1)
    smallest = 2 / len(signs) if exact else 1 / (len(signs) + 1)
    return SeedComparison(mean, mean - half, mean + half, level, p_t, p_flip, smallest, n)


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """P-values after Holm's correction for testing several cells at once.

    Example:
        >>> adjust_holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Args:
        p_values: one per test.

    Returns:
        Adjusted p-values in the same order: the chance of any false finding among those below α is at most α.

    Raises:
        ValueError: if a value is no probability.
    """
    if any(not 0 <= value <= 1 for value in p_values):
        raise ValueError(f"adjust_holm: expected probabilities, got {list(p_values)}.")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def _permuted(joint: Tensor, differ: Callable[[Tensor], Tensor], observed: float, resamples: int, seed: int) -> float:
    """Share of exchanges with a difference at least as large; `joint` is (2 * cells, N), first network first."""
    cells, images = joint.shape[0] // 2, joint.shape[1]
    sums = joint.sum(1)
    gap = (joint[:cells] - joint[cells:]).T.contiguous()
    # a stream of its own: the intervals' draws should not decide the exchanges
    generator = torch.Generator().manual_seed(seed + 2**32)
    rows, as_far = max(_CHUNK // images, 1), 0
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        exchanged = torch.randint(2, (size, images), generator=generator, dtype=torch.uint8).double()
        moved = exchanged @ gap
        means = torch.cat([sums[:cells] - moved, sums[cells:] + moved], 1) / images
        tolerance = 1e-9 * max(abs(observed), means.abs().max().item())
        as_far += int((differ(means).abs() >= abs(observed) - tolerance).sum())
    return (as_far + 1) / (resamples + 1)


def _student_within(t: float, freedom: int) -> float:
    """Probability that |T| < t for Student's T; for whole degrees of freedom it is a finite sum."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    inside = math.sin(angle) * total
    return min(1.0, 2 / math.pi * (angle + inside) if odd else inside)


def _student_quantile(level: float, freedom: int) -> float:
    if not 0 < level < 1:
        raise ValueError(f"compare_seeds: expected a level between 0 and 1, got {level}.")
    low, high = 0.0, 1.0
    while _student_within(high, freedom) < level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, freedom) < level else (low, middle)
    return (low + high) / 2
