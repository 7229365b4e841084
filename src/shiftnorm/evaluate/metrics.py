"""Pure metrics: errors under corruption, their spread over seeds, and paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from shiftnorm.evaluate.paired import compare_seeds


class Summary(NamedTuple):
    """A quantity measured once per seed.

    Example:
        >>> Summary(mean=10.0, std=1.0, low=9.0, high=11.0, count=3).range
        2.0
    """

    mean: float
    std: float | None
    low: float
    high: float
    count: int

    @property
    def range(self) -> float:
        """Highest minus lowest value.

        Example:
            >>> summarize([3.0, 5.0]).range
            2.0
        """
        return self.high - self.low


VERDICTS = ("better", "worse", "tentative", "within spread", "spread unknown")


class PairedDifference(NamedTuple):
    """A quantity minus its reference, seed by seed.

    `exceeds_spread` is None with a single common seed: its spread is then unknown.

    Example:
        >>> PairedDifference(mean=-5.0, interval=(-8.0, -2.0), exceeds_spread=True, count=3).mean
        -5.0
    """

    mean: float
    interval: tuple[float, float] | None
    exceeds_spread: bool | None
    count: int

    @property
    def verdict(self) -> str:
        """What the seeds allow to say of an error, one of `VERDICTS`.

        "better" or "worse" where the difference is larger than the spread and its interval keeps off zero,
        "tentative" where it is larger but the interval holds zero, "within spread" where it is not larger,
        "spread unknown" for a single seed.

        Example:
            >>> PairedDifference(-9.5, (-16.0, -3.0), True, 3).verdict
            'better'
            >>> PairedDifference(-5.0, (-14.0, 4.0), True, 3).verdict
            'tentative'
            >>> PairedDifference(-0.5, None, None, 1).verdict
            'spread unknown'
        """
        if self.interval is None or self.exceeds_spread is None:
            return "spread unknown"
        if not self.exceeds_spread:
            return "within spread"
        low, high = self.interval
        if low <= 0 <= high:
            return "tentative"
        return "better" if self.mean < 0 else "worse"


def error(logits: Tensor, labels: Tensor) -> float:
    """Top-1 error in percent.

    Example:
        >>> import torch
        >>> error(torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0], [1.0, 0.0]]), torch.tensor([0, 1, 1, 0]))
        25.0

    Args:
        logits: (N, classes) scores.
        labels: (N,) class indices.

    Returns:
        100 · (number of rows whose largest score is not at the label) / N.

    Raises:
        ValueError: if the two do not have the same, positive number of rows, or a score is not a number.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"error: expected logits (N, classes) and labels (N,) with N >= 1, "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    if bool(logits.isnan().any()):
        raise ValueError("error: the scores contain NaN; the network has diverged, so it has no error to report.")
    return 100.0 * (logits.argmax(1) != labels).double().mean().item()


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> float:
    """Mean error over every corruption and severity, not normalised by a reference network.

    Example:
        >>> mean_corruption_error({"noise": [10.0, 30.0], "blur": [20.0, 40.0]})
        25.0

    Args:
        errors: per corruption, the error in percent at each severity.

    Returns:
        The mean over corruptions of the mean over severities, in percent.

    Raises:
        ValueError: if there is no corruption, or they do not have the same number of severities.
    """
    counts = {len(values) for values in errors.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            "mean_corruption_error: expected at least one corruption and the same severities for each, "
            f"got { ({name: len(values) for name, values in errors.items()}) }."
        )
    return statistics.fmean(statistics.fmean(values) for values in errors.values())


def summarize(values: Sequence[float]) -> Summary:
    """Mean, sample standard deviation and range over seeds.

    Example:
        >>> summarize([9.0, 10.0, 11.0])
        Summary(mean=10.0, std=1.0, low=9.0, high=11.0, count=3)
        >>> summarize([9.0]).std is None
        True

    Args:
        values: one value per seed.

    Returns:
        The summary; its std divides by n - 1 and is None for one value.

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("summarize: expected at least one value, got none.")
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), std, min(values), max(values), len(values))


def compare_paired(values: Mapping[int, float], reference: Mapping[int, float]) -> PairedDifference | None:
    """Difference to a reference over the seeds both have, and whether it is larger than the seeds' spread.

    With d the differences of n common seeds:

        interval       = mean(d) ± t(0.975, n - 1) · std(d) / √n
        exceeds_spread = |mean(d)| > max(range(values), range(reference))

    Example:
        >>> compare_paired({0: 30.0, 1: 32.0}, {0: 40.0, 1: 41.0}).mean
        -9.5
        >>> compare_paired({0: 39.0, 1: 42.0}, {0: 40.0, 1: 41.0}).exceeds_spread
        False

    Args:
        values: per seed, the quantity.
        reference: per seed, the same quantity of the reference.

    Returns:
        The paired difference, or None where no seed is common. With one common seed there is neither an interval nor
        a verdict.
    """
    seeds = sorted(values.keys() & reference.keys())
    if not seeds:
        return None
    found = compare_seeds(values, reference)
    if found.low is None or found.high is None:
        return PairedDifference(found.difference, None, None, 1)
    spread = max(summarize([side[seed] for seed in seeds]).range for side in (values, reference))
    return PairedDifference(found.difference, (found.low, found.high), abs(found.difference) > spread, found.count)
