"""Grids of recipes and seeds: resumed, with failed runs kept apart, and compared."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from fit_runs import small_recipe
from shiftnorm.fit import Stopped, TrainRecord, compare_recipes
from shiftnorm.fit.grid_table import compare_rows, to_markdown
from shiftnorm.train_recipe import TrainRecipe

SHORT = ("loop.epochs=1", "loop.ema=0")


def recipes() -> dict[str, TrainRecipe]:
    return {
        "base": small_recipe(*SHORT, "model.placements=[]"),
        "with/cnsn": small_recipe(*SHORT),
        "diverging": small_recipe(*SHORT, "optimizer.learning_rate=1.0e+30"),
    }


def test_a_failed_run_is_recorded_and_stops_nothing_and_the_rest_is_not_made_again(tmp_path: Path) -> None:
    lines: list[str] = []
    grid = compare_recipes(recipes(), [0, 1], out=tmp_path, say=lines.append)
    assert [(record.name, record.seed, record.status) for record in grid.records] == [
        ("base", 0, "complete"),
        ("with/cnsn", 0, "complete"),
        ("diverging", 0, "failed"),
        ("base", 1, "complete"),
        ("with/cnsn", 1, "complete"),
        ("diverging", 1, "failed"),
    ]
    assert "the training loss is nan" in (grid.failed[0].message or "")
    assert TrainRecord.load(tmp_path / "failed" / "diverging-seed0.json").status == "failed"
    base, with_cnsn, diverging = grid.rows
    assert base.over_seeds is None and base.clean is not None and base.clean.count == 2
    assert with_cnsn.over_seeds is not None and with_cnsn.over_seeds.count == 2
    assert with_cnsn.over_images is not None
    difference = with_cnsn.over_seeds.difference
    assert with_cnsn.over_images.difference == pytest.approx(difference)
    assert with_cnsn.over_images.low <= difference <= with_cnsn.over_images.high
    assert diverging.clean is None and sorted(diverging.failures) == [0, 1]
    assert "diverging, seed 0 failed: ArithmeticError: train: the training loss is nan" in grid.table
    assert (tmp_path / "table.md").read_text() == grid.table and grid.report.is_file()
    assert len(json.loads((tmp_path / "grid.json").read_text())["rows"]) == 3

    before = (tmp_path / "base-seed0" / "model.safetensors").stat().st_mtime_ns
    lines.clear()
    again = compare_recipes({"base": recipes()["base"]}, [0, 1], out=tmp_path, say=lines.append)
    assert sum(line.startswith("This run is finished") for line in lines) == 2
    assert (tmp_path / "base-seed0" / "model.safetensors").stat().st_mtime_ns == before
    assert again.rows[0].corrupted == base.corrupted


def test_the_measurement_of_another_recipe_in_the_same_folder_is_not_compared(tmp_path: Path) -> None:
    quiet = {"out": tmp_path, "say": lambda line: None}
    base, okapi = small_recipe(*SHORT, "model.placements=[]"), small_recipe(*SHORT)
    grid = compare_recipes({"base": base, "okapi": okapi}, [0], **quiet)
    assert "okapi" in grid.report.read_text()
    longer = small_recipe("loop.epochs=2", "loop.ema=0")
    grid = compare_recipes({"base": base, "okapi": longer}, [0], **quiet)
    assert [record.status for record in grid.records] == ["complete", "failed"]
    assert "holds the run of another recipe" in (grid.failed[0].message or "")
    assert "base" in grid.report.read_text() and "okapi" not in grid.report.read_text()
    assert not compare_recipes({"okapi": longer}, [0], **quiet).report.exists()


@pytest.mark.parametrize("setting", ["evaluate.severities=[1]", "evaluate.limit=7", "data.name=cifar10"])
def test_recipes_that_are_measured_otherwise_are_not_compared(tmp_path: Path, setting: str) -> None:
    key = setting.partition("=")[0]
    chosen = {"base": small_recipe(*SHORT), "other": small_recipe(*SHORT, setting)}
    with pytest.raises(ValueError, match=rf"other is measured otherwise than base \({key} is .*same \(--set"):
        compare_recipes(chosen, [0], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_recipes_are_compared_on_held_out_images(tmp_path: Path) -> None:
    chosen = {"base": small_recipe(*SHORT, "data.validation=0.5", "evaluate.part=validation")}
    grid = compare_recipes(chosen, [0], out=tmp_path, say=lambda line: None)
    (record,) = grid.records
    assert record.data["test_sha256"] == record.data["validation"]["sha256"]
    assert record.clean_error == record.validation_error
    assert "Measured on images held out of the training images, not on the test images." in grid.table
    assert json.loads((tmp_path / "grid.json").read_text())["held_out"]


def test_a_signal_stops_the_grid_and_the_same_call_goes_on(tmp_path: Path) -> None:
    def ask(line: str) -> None:
        if line.startswith("epoch 1/3"):
            os.kill(os.getpid(), signal.SIGTERM)

    chosen = {"base": small_recipe("model.placements=[]")}
    with pytest.raises(Stopped, match="SIGTERM after step 7"):
        compare_recipes(chosen, [0], out=tmp_path, say=ask)
    lines: list[str] = []
    grid = compare_recipes(chosen, [0], out=tmp_path, say=lines.append)
    assert "Going on after step 7 of 18." in lines and not grid.failed


def test_grids_without_a_run_and_runs_that_share_a_folder_are_refused(tmp_path: Path) -> None:
    one = small_recipe()
    for chosen, seeds in (({}, [0]), ({"a": one}, []), ({"a": one}, [0, 0]), ({"a/b": one, "a-b": one}, [0])):
        with pytest.raises(ValueError, match="expected recipes of different names and different seeds"):
            compare_recipes(chosen, seeds, out=tmp_path)


def test_p_values_are_those_of_all_comparisons_together() -> None:
    errors = {"base": [30.0, 32.0, 31.0], "near": [29.0, 33.0, 31.5], "far": [20.0, 22.5, 20.5]}
    records = [
        TrainRecord("", name, seed, "complete", clean_error=5.0, mean_corruption_error={"value": value})
        for name, values in errors.items()
        for seed, value in enumerate(values)
    ]
    rows = compare_rows([*errors], records, {})
    alone = {row.name: row.over_seeds.p_t for row in rows if row.over_seeds is not None}
    assert alone["far"] is not None and alone["near"] is not None and alone["far"] < 0.01 < alone["near"]
    table = to_markdown(rows)
    assert f"| {2 * alone['far']:.3f} |" in table and f"| {alone['near']:.3f} |" in table
    assert "p-value after Holm's correction for 2 comparisons" in table
    assert "Holm" not in to_markdown(compare_rows(["base", "far"], records, {}))
