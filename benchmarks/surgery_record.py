"""The file of a surgery benchmark: thousands of rows that mostly say the same, and so are written short."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

# A row leaves out what has this value.
USUAL: dict[str, Any] = {
    "changed": 0, "skipped": 0, "reason": "", "max_delta": None, "kept": None, "saved": False, "seconds": 0.0,
    "silent": [],
}  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """The record with whole rows."""
    record = json.loads(path.read_text())
    reasons = record.pop("reasons", [])
    for number, row in enumerate(record["rows"]):
        whole = {**USUAL, **row}
        if isinstance(whole["reason"], int):
            whole["reason"] = reasons[whole["reason"]]
        record["rows"][number] = whole
    return record


def write(path: Path, record: dict[str, Any]) -> None:
    """Write the record, a row to a line; every reason stands in the file once."""
    reasons: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    for row in sorted(record["rows"], key=lambda row: row["model"]):
        short = {key: value for key, value in row.items() if key not in USUAL or value != USUAL[key]}
        if "reason" in short:
            short["reason"] = reasons.setdefault(short["reason"], len(reasons))
        if "seconds" in short:
            short["seconds"] = round(short["seconds"], 4)
        rows.append(short)
    text = json.dumps({**record, "reasons": list(reasons), "rows": rows}, separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text.replace('},{"model"', '},\n{"model"') + "\n")
    os.replace(temporary, path)
