"""The page's tables of a comparison of recipes are those of its records."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shiftnorm.fit.grid_table import compare_rows
from shiftnorm.fit.record import TrainRecord

ROOT = Path(__file__).parent.parent
ERRORS = {"base": ([20.0, 40.0], [22.0, 44.0]), "small/cn": ([19.0, 33.0], [20.0, 36.0])}


def record(name: str, seed: int, errors: list[float]) -> TrainRecord:
    mean: dict[str, float | None] = {"value": sum(errors) / 2, "low": None, "high": None}
    of_each = {"fog": [errors[0]], "jpeg_compression": [errors[1]]}
    return TrainRecord(
        "", name, seed, "complete", clean_error=10.0 + seed, mean_corruption_error=mean, corruption_errors=of_each
    )


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    records = [record(name, seed, errors) for name, each in ERRORS.items() for seed, errors in enumerate(each)]
    (tmp_path / "records").mkdir()
    for number, each in enumerate(records):
        each.save(tmp_path / "records" / f"{number}.json")
    rows = compare_rows([*ERRORS], records, {})
    grid = {"recipes": [*ERRORS], "seeds": [0, 1], "held_out": False, "rows": [row.to_json() for row in rows]}
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    return tmp_path


def make_table(directory: Path) -> str:
    from recipe_grid_table import make_table

    return make_table(directory)


def test_means_differences_and_corruptions_are_shown(directory: Path) -> None:
    table = make_table(directory)
    assert re.search(r"^\| base \| 2 \| 10\.5 ± 0\.7 \| 31\.5 ± 2\.1 \| – \|", table, re.MULTILINE)
    # 26 and 28 against 30 and 33: -4 and -5, whose standard error is 0.5 and Student's quantile 12.706.
    assert "| small/cn | 2 | 10.5 ± 0.7 | 27.0 ± 1.4 | −4.5 [−10.9, +1.9] |" in table
    assert "with its p-value, and" in table
    assert "| Corruption | base | cn |" in table and "held out" not in table
    assert "| fog | 21.0 | **19.5** |" in table
    assert "| jpeg compression | 42.0 | **34.5** |" in table


def test_rows_of_other_records_are_refused(directory: Path) -> None:
    record("small/cn", 1, [20.0, 38.0]).save(directory / "records" / "3.json")
    with pytest.raises(ValueError, match=r"small/cn: corrupted of grid.json is not what its records give"):
        make_table(directory)


def test_a_recipe_without_finished_runs_has_no_errors(directory: Path) -> None:
    records = [
        record("base", 0, [20.0, 40.0]),
        TrainRecord("", "small/cn", 0, "failed", "the loss is nan"),
    ]
    for path in (directory / "records").iterdir():
        path.unlink()
    for number, each in enumerate(records):
        each.save(directory / "records" / f"{number}.json")
    rows = [row.to_json() for row in compare_rows([*ERRORS], records, {})]
    grid = {"recipes": [*ERRORS], "seeds": [0], "held_out": True, "rows": rows}
    (directory / "grid.json").write_text(json.dumps(grid))
    table = make_table(directory)
    assert "Measured on images held out of the training images" in table
    assert "| fog | **20.0** | – |" in table
    assert "small/cn, seed 0 failed: the loss is nan" in table


def test_without_records_there_is_no_table(directory: Path) -> None:
    for path in (directory / "records").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="holds no records"):
        make_table(directory)
