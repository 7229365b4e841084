"""The table of published numbers: every row has its recipe, and only runs of that recipe fill it."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from shiftnorm.fit import TrainRecord
from shiftnorm.recipe_files import list_recipes
from shiftnorm.recipe_tree import override, to_mapping
from shiftnorm.train_recipe import TrainRecipe, load_train_recipe

DOCS = Path(__file__).parent.parent / "docs"
NAME = "cifar10/wrn40_2/cnsn"


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, with records of its own."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # the script adds to it
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "published.json").write_text((DOCS / "published.json").read_text())
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def record(seed: int, error: float, recipe: TrainRecipe) -> TrainRecord:
    mapping = to_mapping(replace(recipe, loop=replace(recipe.loop, seed=seed)))
    found: dict[str, float | None] = {"value": error, "low": None, "high": None}
    return TrainRecord("", NAME, seed, "complete", recipe=mapping, clean_error=4.0, mean_corruption_error=found)


def test_every_row_has_a_recipe_and_a_source() -> None:
    published = json.loads((DOCS / "published.json").read_text())
    assert {row["recipe"] for row in published["rows"]} <= list_recipes().keys()
    assert {row["source"] for row in published["rows"]} <= published["sources"].keys()
    assert all(0 < row["paper"] < 100 for row in published["rows"] if row["paper"] is not None)


def test_runs_fill_their_row(generate: ModuleType, tmp_path: Path) -> None:
    row = "| CIFAR-10-C | WRN-40-2 | CNSN | mean corruption error | 16.9 | 17.7 | {} | `cifar10/wrn40_2/cnsn` |"
    assert row.format("not run yet") in generate.make_published_table()
    recipe = load_train_recipe(NAME)
    for seed, error in ((0, 17.0), (1, 18.0)):
        record(seed, error, recipe).save(tmp_path / "results" / "train" / f"{seed}.json")
    assert row.format("17.5 ± 0.7 (2 seeds)") in generate.make_published_table()


def test_a_run_with_other_settings_is_refused(generate: ModuleType, tmp_path: Path) -> None:
    recipe = load_train_recipe(NAME)
    shorter = replace(recipe, loop=replace(recipe.loop, epochs=2))
    record(0, 17.0, shorter).save(tmp_path / "results" / "train" / "short.json")
    with pytest.raises(ValueError, match=r"short\.json was not made by .*/cnsn as it is: loop\.epochs differ"):
        generate.make_published_table()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"limit": 500}, "evaluate.limit"),
        ({"severities": (5,)}, "evaluate.severities"),
        ({"corruptions": ("contrast", "fog"), "seed": 1}, "evaluate.corruptions, evaluate.seed"),
    ],
)
def test_a_run_that_was_measured_otherwise_is_refused(
    generate: ModuleType, tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    recipe = load_train_recipe(NAME)
    other = override(recipe, [f"evaluate.{key}={json.dumps(value)}" for key, value in changes.items()])
    record(0, 17.0, other).save(tmp_path / "results" / "train" / "part.json")
    with pytest.raises(ValueError, match=rf"part\.json was not made by .*/cnsn as it is: {named} differ\."):
        generate.make_published_table()


def test_two_records_of_one_seed_are_refused(generate: ModuleType, tmp_path: Path) -> None:
    for name, error in (("a", 17.0), ("b", 18.0)):
        record(3, error, load_train_recipe(NAME)).save(tmp_path / "results" / "train" / name / "3.json")
    with pytest.raises(ValueError, match=r"a/3\.json and .*b/3\.json are both of .*/cnsn with seed 3, .*count twice"):
        generate.make_published_table()
