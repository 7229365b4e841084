"""Results of robustness evaluations as CSV, for other programs: every cell, and the numbers that sum them up."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from shiftnorm.evaluate.comparison import Comparison, Difference
from shiftnorm.evaluate.metrics import Summary, summarize
from shiftnorm.evaluate.paired import SeedComparison
from shiftnorm.evaluate.paired_results import find_cost
from shiftnorm.evaluate.result import Estimate, Result
from shiftnorm.evaluate.robustness_table import label_results, make_visible
from shiftnorm.evaluate.seed_groups import GroupRow

__all__ = ["SUMMARY_COLUMNS", "render_csv", "render_summary"]

SUMMARY_COLUMNS: Final = (
    *("model", "quantity", "corruption", "against", "value", "std", "low", "high", "level"),
    *("test", "p_value", "over", "count", "note"),
)
# Beginnings that make a spreadsheet take a cell for a formula.
_FORMULA: Final = ("=", "+", "-", "@")
_LEVEL: Final = 0.95


def render_csv(results: Sequence[Result]) -> str:
    """Every cell of every result as one line, for other programs.

    A name that a spreadsheet would take for a formula is given an apostrophe in front.

    Example:
        >>> from shiftnorm.evaluate.result import CellResult
        >>> clean = CellResult("clean", 0, Estimate(5.0, 4.0, 6.0), 0.5, 1.0, 0.125)
        >>> print(render_csv([Result("net", 100, clean, [], None)]))
        model,corruption,severity,images,error,error_low,error_high,top5_error,nll,brier
        net,clean,0,100,5.0,4.0,6.0,0.5,1.0,0.125

    Args:
        results: in the order of the report.

    Returns:
        CSV with a header; errors in percent, nothing where a number is not known.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ("model", "corruption", "severity", "images", "error", "error_low", "error_high", "top5_error", "nll", "brier")
    )
    for label, result in zip(label_results(results), results, strict=True):
        for cell in (result.clean, *result.cells):
            names = [_disarm(text) for text in (label, make_visible(cell.corruption))]
            numbers = (*cell.error, cell.top5_error, cell.nll, cell.brier)
            writer.writerow((*names, cell.severity, result.images, *numbers))
    return stream.getvalue()


def _disarm(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def render_summary(
    results: Sequence[Result], comparisons: Mapping[int, Comparison], groups: Sequence[GroupRow] = ()
) -> str:
    """The numbers that sum results up, one a line: errors, mCE, calibration, and differences with their tests.

    Example:
        >>> from shiftnorm.evaluate.result import CellResult
        >>> clean = CellResult("clean", 0, Estimate(5.0, 4.0, 6.0), 0.5, 1.0, 0.125)
        >>> print(render_summary([Result("net", 100, clean, [], None)], {}))
        model,quantity,corruption,against,value,std,low,high,level,test,p_value,over,count,note
        net,clean_error,,,5.0,,4.0,6.0,0.95,,,images,100,
        net,clean_top5_error,,,0.5,,,,,,,images,100,
        net,clean_nll,,,1.0,,,,,,,images,100,
        net,clean_brier,,,0.125,,,,,,,images,100,

    Args:
        results: in the order of the report.
        comparisons: by place in `results`, that network compared to the first, or with groups each run to the first
            group's of the same seed.
        groups: networks over their training seeds, if there are any.

    Returns:
        CSV with a header; errors in percent, nothing where a number is not known or has no interval.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, SUMMARY_COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    labels = label_results(results)
    for place, (label, result) in enumerate(zip(labels, results, strict=True)):
        found = comparisons.get(place)
        against = labels[0] if found is None or not groups else make_visible(found.second)
        for row in [*_of_result(result), *(() if found is None else _of_comparison(found, against))]:
            writer.writerow({"model": _disarm(label), "over": "images", "count": result.images} | row)
    for row in groups:
        for fields in _of_group(row, groups[0].name):
            writer.writerow({"model": _disarm(make_visible(row.name)), "over": "seeds"} | fields)
    return stream.getvalue()


def _of_result(result: Result) -> Iterator[dict[str, Any]]:
    level = result.settings.get("level", _LEVEL)

    def row(quantity: str, value: Estimate | float | None, **more: Any) -> Iterator[dict[str, Any]]:
        estimate = value if isinstance(value, Estimate) else Estimate(value) if value is not None else None
        if estimate is not None:
            bounds = {} if estimate.low is None else {"low": estimate.low, "high": estimate.high, "level": level}
            yield {"quantity": quantity, "value": estimate.value, **bounds, **more}

    clean, cells = result.clean, result.cells
    yield from row("clean_error", clean.error)
    yield from row("clean_top5_error", clean.top5_error)
    yield from row("clean_nll", clean.nll)
    yield from row("clean_brier", clean.brier)
    if cells:
        yield from row("mean_corruption_error", result.mean_corruption_error)
        yield from row("shift_cost", find_cost(result))
        yield from row("mean_corruption_top5_error", statistics.fmean(cell.top5_error for cell in cells))
        surprises = [cell.nll for cell in cells if cell.nll is not None]
        yield from row("mean_corruption_nll", statistics.fmean(surprises) if len(surprises) == len(cells) else None)
        yield from row("mean_corruption_brier", statistics.fmean(cell.brier for cell in cells))
    baseline = result.baseline or {}
    named = {"against": _disarm(make_visible(baseline.get("name", ""))), "note": baseline.get("called", "")}
    yield from row("mce", result.mce, **named)
    yield from row("relative_mce", result.relative_mce, **named)
    if (worst := result.worst_corruption) is not None:
        yield from row("worst_corruption_error", worst[1], corruption=_disarm(make_visible(worst[0])))
    for kind, found in result.calibration.items():
        yield from row(f"{kind}_ece", found.ece)
        yield from row(f"{kind}_rms_calibration_error", found.rms)
    for quantity in ("parameters", "ms_per_image", "peak_memory_mb"):
        yield from row(quantity, result.cost.get(quantity), over="", count="")


def _of_comparison(comparison: Comparison, first: str) -> Iterator[dict[str, Any]]:
    def row(quantity: str, found: Difference, test: str, **more: Any) -> dict[str, Any]:
        return {
            "quantity": quantity,
            "against": _disarm(first),
            "value": found.difference,
            "low": found.low,
            "high": found.high,
            "level": _LEVEL,
            "test": test,
            "p_value": found.p_value,
            "count": comparison.images,
            **more,
        }

    yield row("clean_error_difference", comparison.clean_error, "permutation")
    if comparison.mean_corruption_error is not None:
        yield row("mean_corruption_error_difference", comparison.mean_corruption_error, "permutation")
    for name, found in comparison.corruptions.items():
        yield row("error_difference", found, "permutation, Holm", corruption=_disarm(make_visible(name)))


def _of_group(row: GroupRow, first: str) -> Iterator[dict[str, Any]]:
    against = _disarm(make_visible(first))
    summaries: Iterable[tuple[str, Summary | None]] = (
        ("clean_error", row.clean),
        ("mean_corruption_error", row.corrupted),
        ("mce", row.mce),
        ("corrupted_ece", row.ece),
    )
    for quantity, summary in summaries:
        if summary is not None:
            spread = {} if summary.std is None else {"std": summary.std}
            yield {"quantity": quantity, "value": summary.mean, "count": summary.count, **spread}
    for name in next(iter(row.runs.values())).corruptions if row.runs else ():
        mean = summarize([statistics.fmean(run.errors[name]) for run in row.runs.values()])
        of = {"quantity": "corruption_error", "corruption": _disarm(make_visible(name))}
        yield {**of, "value": mean.mean, "count": mean.count, **({} if mean.std is None else {"std": mean.std})}
    differences: Iterable[tuple[str, SeedComparison | None]] = (
        ("clean_error_difference", row.clean_difference),
        ("mean_corruption_error_difference", row.difference),
    )
    for quantity, found in differences:
        if found is None:
            continue
        common = {"quantity": quantity, "against": against, "value": found.difference, "count": found.count}
        if found.low is None:
            yield common
            continue
        bounds = {"low": found.low, "high": found.high, "level": found.level}
        yield {**common, **bounds, "test": "paired t", "p_value": found.p_t}
        least = f"cannot be below {found.smallest_p_flip:.2g}"
        yield {**common, "test": "sign flips", "p_value": found.p_flip, "note": least}
    for name, found in row.corruptions.items():
        bounds = {} if found.low is None else {"low": found.low, "high": found.high, "level": found.level}
        tested = {} if found.p_t is None else {"test": "paired t, Holm", "p_value": found.p_t}
        of = {"quantity": "error_difference", "corruption": _disarm(make_visible(name)), "against": against}
        yield {**of, "value": found.difference, "count": found.count, **bounds, **tested}
    if (found := row.over_images) is not None:
        bounds = {
            "low": found.low,
            "high": found.high,
            "level": _LEVEL,
            "test": "permutation",
            "p_value": found.p_value,
        }
        given = {"over": "images", "note": "mean over the seeds, which are taken as given"}
        yield (
            {"quantity": "mean_corruption_error_difference", "against": against, "value": found.difference}
            | bounds
            | given
        )
