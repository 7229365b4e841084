"""The tables of a comparison of recipes, from what ``compare-recipes`` wrote; `generate.py` fills pages with them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from shiftnorm.evaluate.metrics import Summary
from shiftnorm.evaluate.paired import ImageComparison, SeedComparison
from shiftnorm.fit.grid_table import GridRow, compare_rows, to_markdown
from shiftnorm.fit.record import TrainRecord

_PARTS = {"clean": Summary, "corrupted": Summary, "over_seeds": SeedComparison, "over_images": ImageComparison}


def make_table(directory: Path) -> str:
    """What every recipe gave, the differences to the first, and the error under each corruption.

    Args:
        directory: with ``grid.json`` as the comparison wrote it, and the ``record.json`` of each run in ``records``.

    Returns:
        Two tables as Markdown.

    Raises:
        FileNotFoundError: without records.
        ValueError: if the records are not those that the rows were made of.
    """
    grid = json.loads((directory / "grid.json").read_text(encoding="utf-8"))
    records = [TrainRecord.load(path) for path in sorted((directory / "records").glob("*.json"))]
    if not records:
        raise FileNotFoundError(f"{directory} holds no records")
    rows = [_read_row(row) for row in grid["rows"]]
    # What only the cells of images can tell, which are too large to keep, is taken from the rows.
    again = compare_rows(grid["recipes"], records, {})
    for row, made in zip(rows, again, strict=True):
        for part in ("clean", "corrupted", "over_seeds"):
            if _rounded(getattr(row, part)) != _rounded(getattr(made, part)):
                raise ValueError(f"{directory}: {row.name}: {part} of grid.json is not what its records give.")
    table = to_markdown(rows, held_out=grid.get("held_out", False)).rstrip()
    return f"{table}\n\n{_by_corruption(grid['recipes'], records)}"


def _read_row(row: dict[str, Any]) -> GridRow:
    read = {key: None if row[key] is None else kind(**row[key]) for key, kind in _PARTS.items()}
    return GridRow(row["name"], **read, images_per_s=row["images_per_s"], failures=row["failures"])


def _rounded(numbers: tuple[Any, ...] | None) -> list[Any] | None:
    # A sum in another order may differ in its last digits.
    return numbers and [round(value, 9) if isinstance(value, float) else value for value in numbers]


def _by_corruption(names: list[str], records: list[TrainRecord]) -> str:
    short = [name.rpartition("/")[2] for name in names]
    lines = [f"| Corruption | {' | '.join(short)} |", "|---|" + "---:|" * len(names)]
    done = {name: [record for record in records if record.name == name and record.complete] for name in names}
    corruptions = [*next(record for each in done.values() for record in each).corruption_errors]
    for corruption in corruptions:
        means = [
            statistics.fmean(statistics.fmean(record.corruption_errors[corruption]) for record in done[name])
            if done[name]
            else None
            for name in names
        ]
        least = min(mean for mean in means if mean is not None)
        cells = ["–" if mean is None else f"**{mean:.1f}**" if mean == least else f"{mean:.1f}" for mean in means]
        lines.append(f"| {corruption.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Error in percent, mean over severities and seeds; the lowest of a row in bold."])
