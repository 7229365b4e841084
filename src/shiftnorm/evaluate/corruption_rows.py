"""Networks side by side, corruption by corruption: mean errors, and differences to the first network."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from shiftnorm.evaluate.comparison import Comparison
from shiftnorm.evaluate.result import Estimate, Result
from shiftnorm.evaluate.seed_groups import GroupRow

__all__ = ["MeanError", "compare_corruptions"]


class MeanError(NamedTuple):
    """Mean error of a network under one corruption, and its paired difference to the first network's.

    Example:
        >>> MeanError(20.0, True).clear
        False

    Args:
        value: in percent, over severities.
        best: whether no other network's is lower.
        difference: to the first network's, with its interval; None for the first, or where they cannot be compared.
        p_value: of its test, corrected for the number of corruptions.
    """

    value: float
    best: bool
    difference: Estimate | None = None
    p_value: float | None = None

    @property
    def clear(self) -> bool:
        """Whether the test tells the two apart.

        Example:
            >>> MeanError(20.0, True, Estimate(-3.0), 0.01).clear
            True
        """
        return self.p_value is not None and self.p_value < 0.05


def compare_corruptions(
    results: Sequence[Result], comparisons: Mapping[int, Comparison], groups: Sequence[GroupRow] = ()
) -> list[tuple[str, list[MeanError | None]]]:
    """The rows of a table with one column for each network.

    Example:
        >>> from shiftnorm.evaluate.result import CellResult
        >>> def net(name, error):
        ...     fog, clean = (CellResult(kind, 1, Estimate(error), 0.0, 1.0, 0.1) for kind in ("fog", "clean"))
        ...     return Result(name, 100, clean, [fog], Estimate(error))
        >>> compare_corruptions([net("a", 30.0), net("b", 20.0)], {})[0][1][1]
        MeanError(value=20.0, best=True, difference=None, p_value=None)

    Args:
        results: one for each network, with groups the mean of its runs.
        comparisons: by place in `results`, that network compared to the first, image by image; not looked at with
            groups.
        groups: the networks over their training seeds.

    Returns:
        Corruptions with one entry for each network, None where it was not measured; no rows for a single network.
    """
    if len(results) < 2:
        return []
    errors = [result.errors for result in results]
    rows: list[tuple[str, list[MeanError | None]]] = []
    for name in dict.fromkeys(name for result in results for name in result.corruptions):
        means = [statistics.fmean(each[name]) if name in each else None for each in errors]
        least = min(mean for mean in means if mean is not None)
        rows.append(
            (
                name,
                [
                    None
                    if mean is None
                    else MeanError(mean, mean <= least, *_difference(name, place, comparisons, groups))
                    for place, mean in enumerate(means)
                ],
            )
        )
    return rows


def _difference(
    name: str, place: int, comparisons: Mapping[int, Comparison], groups: Sequence[GroupRow]
) -> tuple[Estimate | None, float | None]:
    if groups:
        seeds = groups[place].corruptions.get(name) if place else None
        return (None, None) if seeds is None else (Estimate(seeds.difference, seeds.low, seeds.high), seeds.p_t)
    images = comparisons[place].corruptions.get(name) if place in comparisons else None
    return (None, None) if images is None else (Estimate(images.difference, images.low, images.high), images.p_value)
