"""From the outcomes of cells to the numbers of a result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from shiftnorm.evaluate.baselines import Baseline, find_baseline
from shiftnorm.evaluate.bootstrap import bootstrap, wilson_interval
from shiftnorm.evaluate.calibration import expected_calibration_error, reliability, rms_calibration_error
from shiftnorm.evaluate.cells import CLEAN, Cells, stack
from shiftnorm.evaluate.classification import per_class_error
from shiftnorm.evaluate.corruption_error import cell_weights, mean_class_errors
from shiftnorm.evaluate.fingerprint import other_contents
from shiftnorm.evaluate.outcome import CellOutcome
from shiftnorm.evaluate.progress import plural
from shiftnorm.evaluate.result import Calibration, CellResult, Estimate, Result

__all__ = ["baseline_of", "measure_baseline", "remark_on_chance", "summarize_cells"]

LEVEL: Final = 0.95


def summarize_cells(
    cells: Cells, classes: int, *, resamples: int = 1000, baseline: Baseline | None = None
) -> dict[str, Any]:
    """The fields of a `Result` that follow from the cells alone.

    Example:
        >>> cell = CellOutcome.from_logits(torch.eye(2), torch.tensor([0, 0]))
        >>> found = summarize_cells({CLEAN: cell, ("fog", 1): cell}, 2, resamples=0)
        >>> found["clean"].error.value, found["mean_corruption_error"].value, found["class_errors"]["clean"]
        (50.0, 50.0, [50.0, None])

    Args:
        cells: the clean cell and any corrupted ones, on the same images.
        classes: how many there are.
        resamples: of the bootstrap; 0 for no intervals.
        baseline: covers the cells, if given.

    Returns:
        Values by the names of the fields.
    """
    corrupted = {key: cell for key, cell in cells.items() if key != CLEAN}
    clean = cells[CLEAN]
    found: dict[str, Any] = {
        "images": len(clean),
        "clean": _cell_result(CLEAN, clean, resamples),
        "cells": [_cell_result(key, cell, resamples) for key, cell in corrupted.items()],
        "mean_corruption_error": None,
        "class_errors": {"clean": _plain(per_class_error(clean.predicted, clean.label, classes))},
        "calibration": {"clean": _calibration([clean])},
    }
    if corrupted:
        found["mean_corruption_error"] = _weighted(corrupted, "mean_corruption_error", resamples)
        found["class_errors"]["corrupted"] = _plain(mean_class_errors(corrupted, classes))
        found["calibration"]["corrupted"] = _calibration(list(corrupted.values()))
        if baseline is not None:
            found["mce"] = _weighted(corrupted, "mce", resamples, baseline)
            if baseline.clean_error is not None:
                found["relative_mce"] = _weighted(cells, "relative_mce", resamples, baseline)
    return found


def remark_on_chance(error: Estimate, classes: int) -> list[str]:
    """A sentence on a clean error that guessing would give as well; none where its interval tells it from guessing.

    Example:
        >>> print(remark_on_chance(Estimate(89.2, 87.0, 91.1), 10)[0])
        The clean error, 89.20 [87.00, 91.10] %, cannot be told from that of guessing among 10 classes, 90.0 %.
        >>> remark_on_chance(Estimate(5.0, 4.5, 5.5), 10)
        []
    """
    chance = 100 * (1 - 1 / classes)
    if classes < 2 or error.low is None or error.high is None or not error.low <= chance <= error.high:
        return []
    return [
        f"The clean error, {error} %, cannot be told from that of guessing among {classes} classes, {chance:.1f} %."
    ]


def baseline_of(baseline: str | Baseline | Result | None) -> Baseline | None:
    """The baseline that a name or another network's result stands for.

    Example:
        >>> baseline_of("AlexNet").clean_error
        43.478

    Args:
        baseline: a name from `BASELINES`, a `Baseline`, a `Result`, or None.

    Raises:
        KeyError: for an unknown name.
        ValueError: for a result with an error of 0.
    """
    if isinstance(baseline, Result):
        counted = f"{baseline.images} {plural('image', baseline.images)}"
        return Baseline(
            baseline.name,
            baseline.errors,
            baseline.clean.error.value,
            tuple(baseline.severities),
            source=f"robustness of {baseline.name}, {counted} of {baseline.data.get('name')}",
        )
    return None if baseline is None else find_baseline(baseline)


def measure_baseline(
    given: str | Baseline | Result | None,
    names: list[str],
    severities: list[int],
    *,
    classes: int,
    settings: Mapping[str, Any],
    images: int | None = None,
    fingerprint: Mapping[str, Any] | None = None,
) -> tuple[Baseline | None, dict[str, str] | None, list[str]]:
    """Whether a baseline covers the cells, and what its number may be called.

    Example:
        >>> imagenet = {"constants": "imagenet224", "storage": "jpeg85"}
        >>> _, _, notes = measure_baseline("AlexNet", ["fog"], [1], classes=1000, settings=imagenet)
        >>> print(notes[0])
        No mCE: the baseline 'AlexNet' also has gaussian_noise, ...

    Args:
        given: as for `robustness`.
        names: of the corruptions that are measured.
        severities: that are measured.
        classes: of the data.
        settings: of the result.
        images: how many are measured, where that is known.
        fingerprint: of the result, where that is known; a `Result` as the baseline must be of the same images.

    Returns:
        The baseline, or None where no mCE may be computed; its entry in the result; and remarks.
    """
    baseline = baseline_of(given)
    if baseline is None:
        return None, None, []
    published = not isinstance(given, Result | Baseline)
    stand_in = "frost" in baseline.errors and "frost" not in names and "frost_procedural" in names
    asked = ["frost" if stand_in and name == "frost_procedural" else name for name in names]
    reasons: list[str] = []
    missing = [name for name in baseline.errors if name not in asked]
    unknown = [name for name in asked if name not in baseline.errors]
    if missing:
        reasons.append(f"the baseline {baseline.name!r} also has {', '.join(missing)}")
    if unknown:
        reasons.append(f"the baseline {baseline.name!r} lacks {', '.join(unknown)}")
    if sorted(severities) != sorted(baseline.severities):
        reasons.append(f"it has the severities {list(baseline.severities)}, measured were {severities}")
    if published and (settings["constants"], settings["storage"]) != ("imagenet224", "jpeg85"):
        reasons.append("it was measured with the strengths imagenet224 and storage jpeg85")
    if published and classes != 1000:
        reasons.append(f"it was measured on ImageNet's 1000 classes, the data have {classes}")
    if isinstance(given, Result):
        differing = [
            key
            for key in ("source", "seed", "constants", "storage", "frost")
            if given.settings.get(key) != settings.get(key)
        ]
        reasons += [f"it was measured with another {', '.join(differing)}"] if differing else []
        reasons += _other_images(given, images, fingerprint)
    if reasons:
        return None, None, [f"No mCE: {'; '.join(reasons)}."]
    notes: list[str] = []
    called = "mCE"
    if stand_in:
        called = "mCE with procedural frost"
        notes.append("The baseline's frost was made with the authors' photographs, the frost here procedurally.")
        renamed = {"frost_procedural" if name == "frost" else name: row for name, row in baseline.errors.items()}
        baseline = replace(baseline, errors=renamed)
    if baseline.clean_error is not None:
        total = len(severities) * baseline.clean_error
        easy = [name for name in names if baseline.total(name, severities) <= total]
        if easy:
            notes.append(f"No relative mCE: {', '.join(easy)} does not raise the baseline's error above its clean one.")
            baseline = replace(baseline, clean_error=None)
    if published and settings.get("source") != "files":
        notes.append("The baseline's errors are of the published files; the images here were corrupted anew.")
    elif published and settings.get("published") is None:
        notes.append("The baseline's errors are of the published files; these files were made otherwise.")
    elif published and baseline.images is not None and images is not None and images != baseline.images:
        called = f"{called} of a part"
        notes.append(f"The baseline's errors are of {baseline.images:,} images, these of {images:,}: not comparable.")
    if baseline.part and not called.endswith("of a part"):
        called = f"{called} of unchecked images"
        notes.append(
            f"The baseline's errors are of {baseline.part}; whether these are the same images is not known, and only "
            "then are the numbers comparable."
        )
    return baseline, {"name": baseline.name, "source": baseline.source, "called": called}, notes


def _other_images(given: Result, images: int | None, fingerprint: Mapping[str, Any] | None) -> list[str]:
    """Why a network was not measured on the images that are measured now; nothing where it was."""
    told = {
        "data": f"it was measured on other images or classes ({given.data.get('name')})",
        "frost photographs": "its frost is of other photographs",
        "corrupted files": "it was measured on other files of corrupted images",
    }
    reasons = [
        text
        for key, text in told.items()
        if fingerprint is not None and given.fingerprint.get(key) != fingerprint.get(key)
    ]
    if fingerprint is not None and not reasons and other_contents(given.fingerprint, fingerprint):
        reasons.append("it was measured on files of the same names with other contents")
    if images is not None and given.images != images and not reasons:
        reasons.append(f"it was measured on {given.images:,} of the images, these are {images:,}")
    return reasons


def _cell_result(key: tuple[str, int], cell: CellOutcome, resamples: int) -> CellResult:
    wrong = len(cell) - int(cell.correct.sum())
    interval = wilson_interval(wrong, len(cell), LEVEL)
    error = Estimate(interval.estimate, *(interval[1:3] if resamples else (None, None)))
    nll = cell.nll.double().mean().item()
    brier = cell.brier.double().mean().item()
    return CellResult(*key, error, cell.top5_error, nll if math.isfinite(nll) else None, brier)


def _weighted(cells: Cells, metric: Any, resamples: int, baseline: Baseline | None = None) -> Estimate:
    stacked = stack(cells)
    weights = cell_weights(stacked.keys, metric, *(() if baseline is None else (baseline,)))
    if not resamples or len(stacked.index) < 2:
        return Estimate((weights @ stacked.values.double().mean(1)).item())
    return Estimate(*bootstrap(stacked.values, weights, resamples=resamples, level=LEVEL)[:3])


def _calibration(cells: list[CellOutcome]) -> Calibration:
    confidence = torch.cat([cell.confidence for cell in cells])
    correct = torch.cat([cell.correct for cell in cells])
    diagram = reliability(confidence, correct)
    columns = (diagram.lower, diagram.upper, diagram.count, diagram.confidence, diagram.accuracy)
    bins: list[dict[str, Any]] = [
        dict(zip(("lower", "upper", "count", "confidence", "accuracy"), row, strict=True))
        for row in zip(*(_plain(column) for column in columns), strict=True)
    ]
    return Calibration(
        expected_calibration_error(confidence, correct), rms_calibration_error(confidence, correct), bins
    )


def _plain(values: Tensor) -> list[Any]:
    return [None if isinstance(value, float) and math.isnan(value) else value for value in values.tolist()]
