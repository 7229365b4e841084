"""The record of a benchmark run, on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FORMAT = "shiftnorm.bench/1"
RESULTS = Path(__file__).resolve().parent / "results"


def save(record: dict[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounded(record), indent=1) + "\n")
    return path


def load(path: Path, *, wanted: str = FORMAT, maker: str = "run.py") -> dict[str, Any]:
    """A record from its file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such record. `python benchmarks/{maker}` makes one.")
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected a JSON record, got {error}.") from error
    got = record.get("format") if isinstance(record, dict) else None
    if got != wanted:
        raise ValueError(f"{path}: expected a record of format {wanted}, got {got!r}. Run the benchmark again.")
    return record


def rounded(value: Any) -> Any:
    """Four significant digits: more is noise, and a diff of two records is easier to read."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
