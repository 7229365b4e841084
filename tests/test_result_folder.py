"""No command writes over what another has left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shiftnorm.evaluate.cell_folder import CellFolder
from shiftnorm.fit import compare_recipes
from shiftnorm.fit.run_folder import RunFolder
from shiftnorm.recipe import load_recipe
from shiftnorm.result_folder import COMPARISON, EVALUATION, GRID, TRAINING, check_owner, owner_of
from shiftnorm.run import compare
from shiftnorm.train_recipe import TrainRecipe


def comparison(folder: Path) -> None:
    (folder / "records").mkdir(parents=True)


def evaluation(folder: Path) -> None:
    (folder / "cells").mkdir(parents=True)


def training(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text("")


def grid(folder: Path) -> None:
    training(folder / "a-seed0")
    (folder / "table.md").write_text("")


KINDS: dict[str, Callable[[Path], None]] = {
    COMPARISON: comparison,
    EVALUATION: evaluation,
    GRID: grid,
    TRAINING: training,
}


@pytest.mark.parametrize("kind", KINDS)
def test_folders_are_told_apart(tmp_path: Path, kind: str) -> None:
    assert owner_of(tmp_path) is None and owner_of(tmp_path / "nowhere") is None
    KINDS[kind](tmp_path / "out")
    assert owner_of(tmp_path / "out") == kind
    for own in KINDS:
        if own == kind:
            check_owner(tmp_path / "out", own, "this")
        else:
            with pytest.raises(ValueError, match=f"this: .*out holds {kind}, which would be written over"):
                check_owner(tmp_path / "out", own, "this")


@pytest.mark.parametrize("kind", [EVALUATION, GRID, TRAINING])
def test_compare_refuses(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path)
    (tmp_path / "report.html").write_text("theirs")
    with pytest.raises(ValueError, match=f"compare: .* holds {kind}"):
        compare(load_recipe("compare-digits").changed(limit=2), out_dir=tmp_path, say=lambda line: None)
    assert (tmp_path / "report.html").read_text() == "theirs"


OTHERS: dict[str, Callable[[Path], object]] = {
    TRAINING: lambda folder: RunFolder(folder, {}).check(),
    EVALUATION: lambda folder: CellFolder(folder, {}),
    GRID: lambda folder: compare_recipes({"a": TrainRecipe("a")}, [0], out=folder, say=lambda line: None),
}


@pytest.mark.parametrize("own", OTHERS)
def test_the_others_refuse_a_comparison(tmp_path: Path, own: str) -> None:
    comparison(tmp_path)
    with pytest.raises(ValueError, match=f"holds {COMPARISON}, which would be written over"):
        OTHERS[own](tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["records"]
