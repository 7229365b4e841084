"""The runs of one network as one result: means over its training seeds, for the tables and charts of a page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from shiftnorm.evaluate.result import Calibration, CellResult, Estimate, Result
from shiftnorm.evaluate.seed_groups import GroupRow

__all__ = ["average_runs"]


def average_runs(row: GroupRow) -> Result:
    """The means of a group's runs as a result of its own, under the group's name.

    What an estimate has in place of an interval is the lowest and the highest run. The bins of a reliability diagram
    hold the images of all runs; calibration errors are means of the runs' errors, as those of the bins would be lower.

    Example:
        >>> from shiftnorm.evaluate.metrics import summarize
        >>> def net(error):
        ...     return Result("net", 100, CellResult("clean", 0, Estimate(error), 0.0, 1.0, 0.1), [], None)
        >>> runs = {0: net(5.0), 1: net(7.0)}
        >>> row = GroupRow("CNSN", [0, 1], True, summarize([5.0, 7.0]), *(None,) * 6, runs=runs)
        >>> average_runs(row).name, average_runs(row).clean.error
        ('CNSN', Estimate(value=6.0, low=5.0, high=7.0))

    Args:
        row: of `compare_groups`, so that its runs have the same cells.

    Returns:
        The means, with the images, settings and pictures of the first run.
    """
    runs = list(row.runs.values())
    first = runs[0]
    overall = [run.mean_corruption_error for run in runs]
    return replace(
        first,
        name=row.name,
        clean=_mean_cell([run.clean for run in runs]),
        cells=[_mean_cell(cells) for cells in zip(*(run.cells for run in runs), strict=True)],
        mean_corruption_error=_mean([each.value for each in overall if each is not None]),
        class_errors={
            kind: [_mean_known(errors) for errors in zip(*(run.class_errors[kind] for run in runs), strict=True)]
            for kind in first.class_errors
            if all(kind in run.class_errors for run in runs)
        },
        calibration={
            kind: _pool([run.calibration[kind] for run in runs])
            for kind in first.calibration
            if all(kind in run.calibration for run in runs)
        },
        folder=None,
    )


def _mean(values: Sequence[float]) -> Estimate | None:
    return Estimate(statistics.fmean(values), min(values), max(values)) if values else None


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _mean_cell(cells: Sequence[CellResult]) -> CellResult:
    errors = [cell.error.value for cell in cells]
    return cells[0]._replace(
        error=Estimate(statistics.fmean(errors), min(errors), max(errors)),
        top5_error=statistics.fmean(cell.top5_error for cell in cells),
        nll=_mean_known([cell.nll for cell in cells]),
        brier=statistics.fmean(cell.brier for cell in cells),
    )


def _pool(runs: Sequence[Calibration]) -> Calibration:
    bins: list[dict[str, Any]] = []
    for same in zip(*(run.bins for run in runs), strict=True):
        filled = [each for each in same if each["count"]]
        count = sum(each["count"] for each in filled)
        means = {
            key: sum(each["count"] * each[key] for each in filled) / count if count else None
            for key in ("confidence", "accuracy")
        }
        bins.append({**same[0], "count": count, **means})
    return Calibration(statistics.fmean(run.ece for run in runs), statistics.fmean(run.rms for run in runs), bins)
