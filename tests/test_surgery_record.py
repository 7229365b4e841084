"""A surgery benchmark's record comes back whole from its short file."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import surgery_record
from surgery_check import Outcome


def test_rows_come_back_whole(tmp_path: Path) -> None:
    refused = Outcome("b", "rbn", "refused", skipped=3, reason="no BatchNorm", seconds=0.25)
    rows = [
        refused,
        Outcome("b", "ibn_a", "refused", reason="no BatchNorm"),
        Outcome("a", "rbn", "converted", changed=2, max_delta=0.5, kept=False, saved=True, silent=["revert: gone"]),
        Outcome("a", "se", "converted", max_delta=0.0, kept=True),
    ]
    record = {"format": "x", "rows": [row.to_json() for row in rows]}
    path = tmp_path / "deep" / "record.json"
    surgery_record.write(path, copy.deepcopy(record))
    again = surgery_record.read(path)
    assert again == {"format": "x", "rows": [record["rows"][number] for number in (2, 3, 0, 1)]}
    assert path.read_text().count("no BatchNorm") == 1
    assert len(path.read_text().splitlines()) == len(rows)


def test_what_is_left_out_is_what_an_outcome_starts_with() -> None:
    start = Outcome("a", "rbn", "converted").to_json()
    assert {key: start[key] for key in surgery_record.USUAL} == surgery_record.USUAL
    assert set(start) - set(surgery_record.USUAL) == {"model", "placement", "outcome"}


def test_a_file_of_whole_rows_is_read(tmp_path: Path) -> None:
    row = Outcome("a", "rbn", "refused", reason="because").to_json()
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"rows": [row]}))
    assert surgery_record.read(path)["rows"] == [row]
