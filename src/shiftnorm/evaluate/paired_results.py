"""What only the images' own outcomes tell: differences between networks, and what shift costs one, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from shiftnorm.evaluate.bootstrap import bootstrap
from shiftnorm.evaluate.cell_folder import read_cells
from shiftnorm.evaluate.cells import CLEAN, stack
from shiftnorm.evaluate.comparison import Comparison, compare
from shiftnorm.evaluate.outcome import read_metadata
from shiftnorm.evaluate.result import Estimate, Result
from shiftnorm.evaluate.robustness_table import find_mismatches

__all__ = ["find_comparisons", "find_cost"]


def find_comparisons(results: Sequence[Result], *, resamples: int = 1000) -> dict[int, Comparison]:
    """Each network compared to the first, image by image, where that can be done.

    Example:
        >>> from shiftnorm.evaluate.result import CellResult
        >>> clean = CellResult("clean", 0, Estimate(5.0, 4.0, 6.0), 0.5, 1.0, 0.1)
        >>> find_comparisons([Result("a", 100, clean, [], None), Result("b", 100, clean, [], None)])
        {}

    Args:
        results: the first is what the others are compared to.
        resamples: of the intervals and tests.

    Returns:
        By place in `results`, differences of that network minus the first; without those that were measured otherwise
        than the first, or whose cells are not in their folder any more.

    Raises:
        ValueError: if a file of a cell is damaged.
    """
    first = results[0]
    return {
        place: compare(result, first, resamples=resamples)
        for place, result in enumerate(results)
        if place and not find_mismatches(first, result) and has_cells(first) and has_cells(result)
    }


def find_cost(result: Result, *, resamples: int = 1000) -> Estimate | None:
    """What shift costs a network: its mean corruption error minus its clean error, in points.

    The interval is a bootstrap's that draws images with all their cells: an image that is hard when clean tends to be
    hard when corrupted, so it is narrower than the two errors' own intervals suggest.

    Example:
        >>> from shiftnorm.evaluate.result import CellResult
        >>> clean = CellResult("clean", 0, Estimate(5.0, 4.0, 6.0), 0.5, 1.0, 0.1)
        >>> fog = CellResult("fog", 1, Estimate(20.0), 0.0, 1.0, 0.1)
        >>> find_cost(Result("net", 100, clean, [fog], Estimate(20.0, 15.0, 26.0)))
        Estimate(value=15.0, low=None, high=None)

    Args:
        result: of one network.
        resamples: of the bootstrap.

    Returns:
        The estimate, without an interval if the cells are not in the result's folder; None if nothing was corrupted.

    Raises:
        ValueError: if a file of a cell is damaged.
    """
    if result.mean_corruption_error is None:
        return None
    cost = result.mean_corruption_error.value - result.clean.error.value
    if result.folder is None or not has_cells(result):
        return Estimate(cost)
    keys = [CLEAN, *((cell.corruption, cell.severity) for cell in result.cells)]
    cells = read_cells(result.folder, keys)

    def added(means: Tensor) -> Tensor:
        return means[..., 1:].mean(-1) - means[..., 0]

    values = stack({key: cells[key] for key in keys}).values
    interval = bootstrap(values, added, resamples=resamples, level=result.settings.get("level", 0.95))
    return Estimate(cost, interval.low, interval.high)


def has_cells(result: Result) -> bool:
    """Whether every cell that the result is of is still in its folder."""
    if result.folder is None:
        return False
    known: set[tuple[str, int]] = set()
    for file in (result.folder / "cells").glob("*.safetensors"):
        name, severity = read_metadata(file).get("cell", (None, None))
        known.add((name, severity))
    return known >= {CLEAN, *((cell.corruption, cell.severity) for cell in result.cells)}
