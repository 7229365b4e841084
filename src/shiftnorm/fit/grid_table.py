"""The rows of a grid of recipes and seeds: means, and differences with intervals over seeds and over images."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from shiftnorm.evaluate.cell_folder import read_cells
from shiftnorm.evaluate.cells import CLEAN, Stacked, stack
from shiftnorm.evaluate.metrics import Summary, summarize
from shiftnorm.evaluate.paired import ImageComparison, SeedComparison, adjust_holm, compare_images, compare_seeds
from shiftnorm.evaluate.progress import spell_rate
from shiftnorm.evaluate.result import Result
from shiftnorm.evaluate.robustness_table import find_mismatches
from shiftnorm.evaluate.table import format_signed, format_summary
from shiftnorm.fit.record import TrainRecord

__all__ = ["GridRow", "compare_rows", "to_markdown"]

_RESAMPLES = 1000


@final
@dataclass(frozen=True)
class GridRow:
    """One recipe over its seeds; errors in percent, None where no run was measured.

    Example:
        >>> GridRow("cnsn", None, None, None, None).to_json()["name"]
        'cnsn'

    Args:
        name: of the recipe.
        clean: clean error.
        corrupted: mean corruption error.
        over_seeds: its difference to the first recipe, paired by seed; None for that one itself.
        over_images: the same with an interval that draws seeds and images; None where images cannot be compared.
        images_per_s: of training, the median of the runs.
        failures: seed to message, of the runs that failed.
    """

    name: str
    clean: Summary | None
    corrupted: Summary | None
    over_seeds: SeedComparison | None
    over_images: ImageComparison | None
    images_per_s: float | None = None
    failures: dict[int, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data.

        Example:
            >>> GridRow("cnsn", Summary(5.0, None, 5.0, 5.0, 1), None, None, None).to_json()["clean"]["mean"]
            5.0
        """
        named = {key: getattr(self, key) for key in ("clean", "corrupted", "over_seeds", "over_images")}
        plain = {key: None if value is None else value._asdict() for key, value in named.items()}
        return {**asdict(self), **plain}


def compare_rows(
    names: Sequence[str], records: Sequence[TrainRecord], results: Mapping[str, Mapping[int, Result]]
) -> list[GridRow]:
    """Collect the runs of a grid into one row per recipe; the others are compared with the first.

    Example:
        >>> error = lambda value: {"value": value, "low": None, "high": None}
        >>> make = lambda name, seed, value: TrainRecord("", name, seed, "complete", clean_error=5.0,
        ...                                              mean_corruption_error=error(value))
        >>> records = [make("base", 0, 30.0), make("base", 1, 32.0), make("cn", 0, 27.0), make("cn", 1, 28.0)]
        >>> row = compare_rows(["base", "cn"], records, {})[1]
        >>> row.corrupted.mean, row.over_seeds.difference
        (27.5, -3.5)

    Args:
        names: of the recipes, in order.
        records: of all runs.
        results: by recipe and seed, where cells of images are at hand.

    Returns:
        The rows.
    """
    clean: dict[str, dict[int, float]] = {}
    corrupted: dict[str, dict[int, float]] = {}
    for name in names:
        done = [record for record in records if record.name == name and record.complete]
        clean[name] = {record.seed: record.clean_error for record in done if record.clean_error is not None}
        found = {record.seed: (record.mean_corruption_error or {}).get("value") for record in done}
        corrupted[name] = {seed: value for seed, value in found.items() if value is not None}
    first = names[0]
    rows: list[GridRow] = []
    for name in names:
        speeds = [record.throughput.get("images_per_s") for record in records if record.name == name]
        known = [speed for speed in speeds if speed is not None]
        paired = name != first and corrupted[name].keys() & corrupted[first].keys()
        rows.append(
            GridRow(
                name,
                summarize([*clean[name].values()]) if clean[name] else None,
                summarize([*corrupted[name].values()]) if corrupted[name] else None,
                compare_seeds(corrupted[name], corrupted[first]) if paired else None,
                _over_images(results.get(name, {}), results.get(first, {})) if paired else None,
                statistics.median(known) if known else None,
                {
                    record.seed: record.message or "no message"
                    for record in records
                    if record.name == name and record.status == "failed"
                },
            )
        )
    return rows


def _over_images(ours: Mapping[int, Result], theirs: Mapping[int, Result]) -> ImageComparison | None:
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds or any(find_mismatches(theirs[seeds[0]], each[seed]) for each in (ours, theirs) for seed in seeds):
        return None
    base = _values(theirs[seeds[0]], None)
    if base is None:
        return None
    pairs = [[_values(each[seed], base) for seed in seeds] for each in (ours, theirs)]
    first, second = (torch.stack([part.values for part in each if part is not None]) for each in pairs)
    if len(first) < len(seeds) or len(second) < len(seeds):
        return None
    values: list[Tensor] = [each[0] if len(seeds) == 1 else each for each in (first, second)]
    return compare_images(values[0], values[1], resamples=_RESAMPLES)


def _values(result: Result, like: Stacked | None) -> Stacked | None:
    """Errors of every corrupted cell and image."""
    if result.folder is None:
        return None
    keys = [(cell.corruption, cell.severity) for cell in result.cells]
    held = read_cells(result.folder, keys)
    return stack({key: held[key] for key in keys if key != CLEAN}, like=like)


def to_markdown(rows: Sequence[GridRow], *, held_out: bool = False) -> str:
    """The rows as a Markdown table, with what it must say below.

    Example:
        >>> row = GridRow("base", Summary(5.0, 0.5, 4.5, 5.5, 3), Summary(21.0, 1.0, 20.0, 22.0, 3), None, None, 812.0)
        >>> print(to_markdown([row]))
        | Recipe | Seeds | Clean error % | Mean corruption error % | ... | Images/s |
        |---|---:|---:|---:|---:|---:|---:|---:|
        | base | 3 | 5.0 ± 0.5 | 21.0 ± 1.0 | – | – | – | 812 |
        <BLANKLINE>
        Errors in percent, lower is better; mean ± standard deviation over seeds.

    Args:
        rows: from `compare_rows`.
        held_out: whether they were measured on images held out of the training images.

    Returns:
        Markdown.
    """
    lines = [
        "| Recipe | Seeds | Clean error % | Mean corruption error % | Difference over seeds | p "
        "| Over seeds and images | Images/s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    tested = [(row.name, row.over_seeds.p_t) for row in rows if row.over_seeds is not None]
    known = {name: p_value for name, p_value in tested if p_value is not None}
    adjusted = dict(zip(known, adjust_holm([*known.values()]), strict=True))
    for row in rows:
        seeds, images = row.over_seeds, row.over_images
        cells = [
            row.name,
            str(row.corrupted.count if row.corrupted else 0),
            format_summary(row.clean),
            format_summary(row.corrupted),
            "–" if seeds is None else _between(seeds.difference, seeds.low, seeds.high),
            f"{adjusted[row.name]:.3f}" if row.name in adjusted else "–",
            "–" if images is None else _between(images.difference, images.low, images.high),
            "–" if row.images_per_s is None else spell_rate(row.images_per_s),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    notes = ["Errors in percent, lower is better; mean ± standard deviation over seeds."]
    if held_out:
        notes.append("Measured on images held out of the training images, not on the test images.")
    if any(row.over_seeds is not None for row in rows):
        notes.append(
            f"Differences are of the mean corruption error to {rows[0].name}, paired by seed, with intervals of 95 %: "
            f"Student's t over seeds, with its p-value{_holm(len(adjusted))}, and a bootstrap that draws seeds and "
            "images, which is too narrow for few seeds."
        )
    notes += [f"{row.name}, seed {seed} failed: {message}" for row in rows for seed, message in row.failures.items()]
    return "\n".join([*lines, "", *notes]) + "\n"


def _holm(count: int) -> str:
    return f" after Holm's correction for {count} comparisons" if count > 1 else ""


def _between(value: float, low: float | None, high: float | None) -> str:
    return format_signed(value) + (
        "" if low is None or high is None else f" [{format_signed(low)}, {format_signed(high)}]"
    )
