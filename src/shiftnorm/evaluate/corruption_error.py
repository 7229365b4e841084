"""Corruption errors: by corruption, relative to a named baseline, and as weights of cells."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from shiftnorm.evaluate.baselines import Baseline, find_baseline
from shiftnorm.evaluate.cells import CLEAN, Cells
from shiftnorm.evaluate.classification import per_class_error

__all__ = [
    "ErrorGrid",
    "cell_weights",
    "corruption_errors",
    "error_grid",
    "mce",
    "mean_class_errors",
    "relative_corruption_errors",
    "relative_mce",
    "worst_corruption",
]

_ALL = (1, 2, 3, 4, 5)


class ErrorGrid(NamedTuple):
    """Errors in percent: clean, and per corruption at each severity.

    Example:
        >>> ErrorGrid(5.0, {"fog": [10.0, 20.0]}, (1, 5)).errors["fog"]
        [10.0, 20.0]
    """

    clean_error: float | None
    errors: dict[str, list[float]]
    severities: tuple[int, ...]


def error_grid(cells: Cells, *, top5: bool = False) -> ErrorGrid:
    """The errors of every cell, in the form that the metrics take.

    Example:
        >>> from shiftnorm.evaluate.outcome import CellOutcome
        >>> cell = CellOutcome.from_logits(torch.eye(2), torch.tensor([0, 0]))
        >>> error_grid({CLEAN: cell, ("fog", 1): cell, ("fog", 3): cell})
        ErrorGrid(clean_error=50.0, errors={'fog': [50.0, 50.0]}, severities=(1, 3))

    Args:
        cells: outcomes by (corruption, severity); the clean one may be absent.
        top5: top-5 instead of top-1 errors.

    Returns:
        Clean error, errors by corruption in the order of the mapping, and the severities in rising order.

    Raises:
        ValueError: if the corruptions do not have the same severities.
    """
    names = list(dict.fromkeys(name for name, severity in cells if (name, severity) != CLEAN))
    found = {name: sorted(severity for other, severity in cells if other == name) for name in names}
    if len({tuple(row) for row in found.values()}) > 1:
        raise ValueError(f"error_grid: expected the same severities for each corruption, got {found}.")

    def measure(key: tuple[str, int]) -> float:
        return cells[key].top5_error if top5 else cells[key].error

    severities = tuple(found[names[0]]) if names else ()
    errors = {name: [measure((name, severity)) for severity in severities] for name in names}
    return ErrorGrid(measure(CLEAN) if CLEAN in cells else None, errors, severities)


def corruption_errors(
    errors: Mapping[str, Sequence[float]], baseline: str | Baseline, *, severities: Sequence[int] = _ALL
) -> dict[str, float]:
    """Corruption error CE of each corruption, in percent of the baseline's.

        CE_c = 100 * sum_s E(s, c) / sum_s E_baseline(s, c)

    Example:
        >>> baseline = Baseline("ours", {"fog": (20.0, 60.0)}, severities=(1, 2))
        >>> corruption_errors({"fog": [10.0, 10.0]}, baseline, severities=(1, 2))
        {'fog': 25.0}

    Args:
        errors: per corruption, top-1 errors in percent at the severities.
        baseline: "AlexNet" or another name of `BASELINES`, or a baseline of your own.
        severities: what the errors are of.

    Returns:
        CE by corruption; 100 is as bad as the baseline. It is a ratio of sums, not a mean of ratios.

    Raises:
        KeyError: if the baseline is unknown, or lacks a corruption or severity.
        ValueError: if a row has another length than the severities, or is not in percent.
    """
    reference = find_baseline(baseline)
    _check("corruption_errors", errors, severities)
    return {name: 100.0 * math.fsum(row) / reference.total(name, severities) for name, row in errors.items()}


def mce(
    errors: Mapping[str, Sequence[float]],
    baseline: str | Baseline = "AlexNet",
    *,
    severities: Sequence[int] = _ALL,
    partial: bool = False,
) -> float:
    """Mean corruption error in percent of a baseline's: what ImageNet-C calls mCE.

    Not the plain mean of the errors, which is `mean_corruption_error`.

    Example:
        >>> from shiftnorm.evaluate.baselines import ALEXNET
        >>> mce(ALEXNET.errors)
        100.0

    Args:
        errors: per corruption, top-1 errors in percent at the severities.
        baseline: "AlexNet" for ImageNet-C's 50,000 images, another name of `BASELINES`, or a baseline of your own.
        severities: what the errors are of.
        partial: allow fewer corruptions or severities than the baseline has; the result may then not be called mCE.

    Returns:
        The mean of CE over the corruptions.

    Raises:
        KeyError: if the baseline is unknown, or lacks a corruption or severity.
        ValueError: if corruptions or severities of the baseline are missing and partial is False.
    """
    _check_whole("mce", errors, find_baseline(baseline), severities, partial)
    return statistics.fmean(corruption_errors(errors, baseline, severities=severities).values())


def relative_corruption_errors(
    errors: Mapping[str, Sequence[float]],
    clean_error: float,
    baseline: str | Baseline,
    *,
    severities: Sequence[int] = _ALL,
) -> dict[str, float]:
    """How much each corruption adds to the clean error, in percent of what it adds to the baseline's.

        relative CE_c = 100 * sum_s (E(s, c) - E_clean) / sum_s (E_baseline(s, c) - E_baseline,clean)

    Example:
        >>> baseline = Baseline("ours", {"fog": (20.0, 60.0)}, clean_error=10.0, severities=(1, 2))
        >>> relative_corruption_errors({"fog": [10.0, 20.0]}, 0.0, baseline, severities=(1, 2))
        {'fog': 50.0}

    Args:
        errors: per corruption, top-1 errors in percent at the severities.
        clean_error: top-1 error on clean images, in percent.
        baseline: a name of `BASELINES`, or a baseline of your own with a clean error.
        severities: what the errors are of.

    Returns:
        Relative CE by corruption.

    Raises:
        KeyError: if the baseline is unknown, or lacks a corruption or severity.
        ValueError: if the baseline has no clean error, or a corruption does not hurt it.
    """
    reference = find_baseline(baseline)
    _check("relative_corruption_errors", errors, severities)
    added = {name: _added(reference, name, severities) for name in errors}
    clean = len(severities) * clean_error
    return {name: 100.0 * (math.fsum(row) - clean) / added[name] for name, row in errors.items()}


def relative_mce(
    errors: Mapping[str, Sequence[float]],
    clean_error: float,
    baseline: str | Baseline = "AlexNet",
    *,
    severities: Sequence[int] = _ALL,
    partial: bool = False,
) -> float:
    """Mean over corruptions of what each adds to the clean error, in percent of what it adds to the baseline's.

    Example:
        >>> from shiftnorm.evaluate.baselines import ALEXNET
        >>> round(relative_mce(ALEXNET.errors, ALEXNET.clean_error), 9)
        100.0

    Args:
        errors: per corruption, top-1 errors in percent at the severities.
        clean_error: top-1 error on clean images, in percent.
        baseline: a name of `BASELINES`, or a baseline of your own with a clean error.
        severities: what the errors are of.
        partial: allow fewer corruptions or severities than the baseline has.

    Returns:
        The mean of relative CE over the corruptions.

    Raises:
        KeyError: as `relative_corruption_errors` does.
        ValueError: as `relative_corruption_errors` and `mce` do.
    """
    _check_whole("relative_mce", errors, find_baseline(baseline), severities, partial)
    relative = relative_corruption_errors(errors, clean_error, baseline, severities=severities)
    return statistics.fmean(relative.values())


def worst_corruption(errors: Mapping[str, Sequence[float]]) -> tuple[str, float]:
    """The corruption with the highest mean error over its severities, and that error.

    Example:
        >>> worst_corruption({"fog": [10.0, 30.0], "snow": [20.0, 40.0]})
        ('snow', 30.0)

    Args:
        errors: per corruption, errors in percent at each severity.

    Returns:
        Its name and mean error; the first among equals.

    Raises:
        ValueError: if there is no corruption, or one without severities.
    """
    if not errors or not all(len(row) for row in errors.values()):
        raise ValueError(f"worst_corruption: expected corruptions with errors, got {dict(errors)}.")
    means = {name: statistics.fmean(row) for name, row in errors.items()}
    worst = max(means, key=means.__getitem__)
    return worst, means[worst]


def mean_class_errors(cells: Cells, num_classes: int | None = None) -> Tensor:
    """Error of each class, averaged over every corruption and severity, in percent.

    Example:
        >>> from shiftnorm.evaluate.outcome import CellOutcome
        >>> cell = CellOutcome.from_logits(torch.eye(2), torch.tensor([0, 0]))
        >>> mean_class_errors({("fog", 1): cell}, 2)
        tensor([50., nan], dtype=torch.float64)

    Args:
        cells: outcomes by (corruption, severity); the clean one does not count.
        num_classes: how many classes there are; default: up to the largest label.

    Returns:
        (num_classes,) errors, NaN for a class without images.

    Raises:
        ValueError: if there is no corrupted cell.
    """
    corrupted = [cell for key, cell in cells.items() if key != CLEAN]
    if not corrupted:
        raise ValueError("mean_class_errors: expected at least one corrupted cell, got none.")
    if num_classes is None:
        num_classes = max(int(cell.label.max()) for cell in corrupted) + 1
    return torch.stack([per_class_error(cell.predicted, cell.label, num_classes) for cell in corrupted]).mean(0)


def cell_weights(
    keys: Sequence[tuple[str, int]],
    metric: Literal["clean_error", "mean_corruption_error", "mce", "relative_mce"],
    baseline: str | Baseline = "AlexNet",
    *,
    partial: bool = False,
) -> Tensor:
    """Weights w with which a metric is sum over cells of w times the cell's error.

    These metrics are linear in the errors of the cells, so one weighted sum gives their intervals and paired tests
    over images: pass the weights to `bootstrap` and `compare_images`.

    Example:
        >>> cell_weights([CLEAN, ("fog", 1), ("fog", 2)], "mean_corruption_error")
        tensor([0.0000, 0.5000, 0.5000], dtype=torch.float64)

    Args:
        keys: the cells, as `stack` orders them.
        metric: which metric.
        baseline: of mce and relative_mce.
        partial: as for `mce`.

    Returns:
        (cells,) float64.

    Raises:
        KeyError: if the baseline is unknown, or lacks a corruption or severity.
        ValueError: if the clean cell is needed and missing, corruptions differ in their severities, or the baseline has
            more of them and partial is False.
    """
    if metric not in ("clean_error", "mean_corruption_error", "mce", "relative_mce"):
        raise ValueError(
            f"cell_weights: expected 'clean_error', 'mean_corruption_error', 'mce' or 'relative_mce', got {metric!r}."
        )
    rows: dict[str, list[int]] = {}
    for name, severity in keys:
        if (name, severity) != CLEAN:
            rows.setdefault(name, []).append(severity)
    if metric in ("clean_error", "relative_mce") and CLEAN not in keys:
        raise ValueError(f"cell_weights: {metric} needs the cell {CLEAN}, got {list(keys)}.")
    if metric == "clean_error":
        return torch.tensor([float(key == CLEAN) for key in keys], dtype=torch.float64)
    if not rows or len({tuple(sorted(row)) for row in rows.values()}) != 1:
        raise ValueError(f"cell_weights: expected corruptions with the same severities, got {rows}.")
    if metric == "mean_corruption_error":
        each = {name: 1.0 / len(row) for name, row in rows.items()}
    else:
        reference = find_baseline(baseline)
        _check_whole(metric, rows, reference, next(iter(rows.values())), partial)
        each = {
            name: 100.0 / (reference.total(name, row) if metric == "mce" else _added(reference, name, row))
            for name, row in rows.items()
        }
    clean = -sum(each[name] * len(row) for name, row in rows.items()) if metric == "relative_mce" else 0.0
    return torch.tensor([clean if key == CLEAN else each[key[0]] for key in keys], dtype=torch.float64) / len(rows)


def _added(baseline: Baseline, corruption: str, severities: Sequence[int]) -> float:
    if baseline.clean_error is None:
        raise ValueError(f"baseline {baseline.name!r} has no clean error, so there is no relative mCE to it.")
    added = baseline.total(corruption, severities) - len(severities) * baseline.clean_error
    if added <= 0:
        raise ValueError(
            f"baseline {baseline.name!r}: {corruption!r} does not raise its error above the clean one, "
            f"so nothing can be divided by what it adds ({added:.3g} %)."
        )
    return added


def _check(who: str, errors: Mapping[str, Sequence[float]], severities: Sequence[int]) -> None:
    uneven = {name: len(row) for name, row in errors.items() if len(row) != len(severities)}
    if not errors or uneven:
        raise ValueError(
            f"{who}: expected an error for each of the severities {tuple(severities)}, got "
            f"{uneven or 'no corruption'} instead of {len(severities)}."
        )
    odd = {name: list(row) for name, row in errors.items() if not all(0 <= value <= 100 for value in row)}
    if odd:
        raise ValueError(f"{who}: expected errors in percent, from 0 to 100, got {odd}.")


def _check_whole(
    who: str, errors: Collection[str], baseline: Baseline, severities: Sequence[int], partial: bool
) -> None:
    missing = [name for name in baseline.errors if name not in errors]
    skipped = [severity for severity in baseline.severities if severity not in severities]
    if not partial and (missing or skipped):
        raise ValueError(
            f"{who}: expected every corruption and severity of the baseline {baseline.name!r}; missing "
            f"{missing + skipped}. Pass partial=True for the mean over what there is, and do not call it mCE."
        )
