"""The images of a run: parts that share nothing, digests, refusals; and metrics that were cut off."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from fit_runs import make_pictures
from shiftnorm.fit.data import FitData, load_fit_data
from shiftnorm.fit.metrics import MetricFiles, read_metrics
from shiftnorm.train_recipe import DataRecipe


def rows_of(data: FitData, part: str) -> set[bytes]:
    images = getattr(data, part).images()
    return {bytes(image.flatten().tolist()) for image in images}


def test_held_out_images_are_never_trained_on_and_always_the_same() -> None:
    recipe = DataRecipe(limit=30, validation=0.2)
    first, second = load_fit_data(recipe), load_fit_data(recipe)
    assert first.validation is not None and second.validation is not None
    assert first.validation.labels.bincount().tolist() == [6] * 10
    assert torch.equal(first.validation.images(), second.validation.images())
    train, held, test = (rows_of(first, part) for part in ("train", "validation", "test"))
    assert not train & held and not train & test and not held & test
    assert train | held == rows_of(load_fit_data(DataRecipe(limit=30)), "train")
    described = first.describe()
    assert described["validation"]["images"] == 60 and described["sha256"] == second.sha256
    assert first.sha256 != load_fit_data(DataRecipe(limit=30, validation=0.3)).sha256


def test_mean_and_std_are_of_the_training_images_unless_given() -> None:
    found = load_fit_data(DataRecipe(limit=30))
    scaled = found.train.images().double() / 255
    assert found.mean == pytest.approx(scaled.mean((0, 2, 3)).tolist())
    assert found.std == pytest.approx(scaled.std((0, 2, 3)).tolist())
    given = load_fit_data(DataRecipe(limit=30, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
    assert given.mean == (0.5, 0.5, 0.5) and given.std == (0.25, 0.25, 0.25)


def test_files_are_known_by_what_they_are_not_by_where_they_lie(tmp_path: Path) -> None:
    recipe = DataRecipe(name="folder", crop="resized", size=32)
    place = make_pictures(tmp_path / "pictures")
    first = load_fit_data(recipe, place)
    assert not first.in_memory and len(first.train) == 24
    shutil.copytree(place, tmp_path / "copies" / "pictures")
    assert load_fit_data(recipe, tmp_path / "copies" / "pictures").sha256 == first.sha256
    (tmp_path / "copies" / "pictures" / "train" / "cat" / "0.png").unlink()
    assert load_fit_data(recipe, tmp_path / "copies" / "pictures").sha256 != first.sha256


def test_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    place = make_pictures(tmp_path / "pictures")
    (place / "test" / "dog").rename(place / "test" / "fox")
    with pytest.raises(ValueError, match=r"have the classes cat, dog, its test images cat, fox|dog.*fox"):
        load_fit_data(DataRecipe(name="folder"), place)
    with pytest.raises(ValueError, match="come with scikit-learn and are in no folder"):
        load_fit_data(DataRecipe(), place)


def test_a_line_that_was_cut_off_is_dropped_when_the_run_goes_on(tmp_path: Path) -> None:
    files = MetricFiles(tmp_path)
    for step in (1, 2, 3):
        files.log_metrics({"loss": 1.0 / step, "epoch": 0, "part": float("nan")}, step)
    whole = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(whole[:-9])
    files.go_on_from(3)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert read_metrics(tmp_path)[0]["part"] is None
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == ["1,0,1.0,,,,,", "2,0,0.5,,,,,"]
