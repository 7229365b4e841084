"""The benchmark of the corruptions measures all of them, and its table says what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import corruptions as benchmark
from record import rounded
from shiftnorm.data.corruptions import CORRUPTIONS, choose_corruptions

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def record() -> dict:
    """As it comes back from disk, with an interpreter that lacks the peer."""
    return json.loads(json.dumps(rounded(benchmark.measured({32: 2}, rounds=1, peer=sys.executable))))


def test_every_corruption_is_measured(record: dict) -> None:
    rows = record["sizes"]["32"]["rows"]
    assert set(rows) == set(CORRUPTIONS) - {"frost"}
    for row in rows.values():
        assert len(row["severities_ms"]) == 5 and row["ms"] > 0
        assert row["images_per_second"] == pytest.approx(1e3 / row["ms"], rel=1e-2)
    common = sum(rows[name]["ms"] for name in choose_corruptions("common"))
    assert record["sizes"]["32"]["common_ms"] == pytest.approx(common, rel=1e-2)


def test_table(record: dict) -> None:
    lines = benchmark.table(record).splitlines()
    assert lines[0].startswith("| Corruption | 32 px: ms |")
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert any("imagecorruptions did not run: ModuleNotFoundError" in line for line in lines)
    slow = json.loads(json.dumps(record))
    slow["sizes"]["32"]["common_ms"] = 7.2
    text = benchmark.table(slow)
    assert "At 32 px the 15 take 7.2 ms per image; target 3.6: missed." in text
    assert "takes 6 minutes of one core" in text


def test_a_peer_that_runs_and_one_corruption_that_fails(record: dict) -> None:
    found = {name: {"ms": [2.0, 4.0]} for name in choose_corruptions("all")} | {"fog": {"error": "broken"}}
    with_peer = record | {"peer": {"name": "imagecorruptions", "sizes": {"32": found}}}
    text = benchmark.table(with_peer)
    assert "| contrast | " in text and text.count(" | 3 |") == 17 and "| fails |" in text


def test_only_own_records_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match=r"expected a record of format shiftnorm\.bench\.corruptions/1, got 'other'"):
        benchmark.load(tmp_path / "other.json")


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results" / "corruptions").glob("*.json")), ids=lambda p: p.stem)
def test_stored_records_still_make_tables(path: Path) -> None:
    assert "sum of the 15" in benchmark.table(benchmark.load(path))
