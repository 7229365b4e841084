"""The images of a run: parts that share nothing, digests, refusals; and metrics that were cut off."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

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


def test_held_out_images_are_measured_on_in_place_of_the_test_images() -> None:
    recipe = DataRecipe(limit=30, validation=0.2)
    usual, chosen = load_fit_data(recipe), load_fit_data(recipe, part="validation")
    assert rows_of(chosen, "test") == rows_of(usual, "validation") and not rows_of(chosen, "test") & rows_of(
        usual, "test"
    )
    assert chosen.sha256 == usual.sha256 and chosen.test_sha256 != usual.test_sha256
    assert len(load_fit_data(recipe, part="validation", test_limit=10).test) == 10


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


def flat_folder(folder: Path) -> Path:
    """Class folders without train and test parts."""
    pictures = make_pictures(folder / "parts")
    shutil.move(pictures / "train", folder / "flat")
    return folder / "flat"


def test_a_folder_without_parts_is_split_the_same_way_for_both_crops(tmp_path: Path) -> None:
    place = flat_folder(tmp_path)
    cut = load_fit_data(DataRecipe(name="folder", crop="resized", size=32), place)
    train, test = (set(part.files() or ()) for part in (cut.train, cut.test))
    assert (len(train), len(test)) == (20, 4) and not train & test
    assert cut.test.labels.bincount().tolist() == [2, 2]
    held = load_fit_data(DataRecipe(name="folder", size=32), place)
    assert held.test.labels.tolist() == cut.test.labels.tolist()
    assert rows_of(cut, "test") == rows_of(held, "test") and not rows_of(cut, "test") & rows_of(cut, "train")
    again = load_fit_data(DataRecipe(name="folder", crop="resized", size=32), place)
    assert (again.sha256, again.test_sha256) == (cut.sha256, cut.test_sha256)


def test_folders_that_cannot_be_kept_apart_are_refused(tmp_path: Path) -> None:
    recipe = DataRecipe(name="folder", crop="resized", size=32)
    place = flat_folder(tmp_path / "single")
    for file in sorted((place / "cat").iterdir())[1:]:
        file.unlink()
    with pytest.raises(ValueError, match=r"its classes cat have fewer than two images.*make folders train and test"):
        load_fit_data(recipe, place)
    linked = make_pictures(tmp_path / "linked")
    (linked / "test" / "cat" / "again.png").symlink_to(linked / "train" / "cat" / "3.png")
    with pytest.raises(ValueError, match=r"1 file of linked is in its training and in its test part.*cat/3\.png"):
        load_fit_data(recipe, linked)


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_files_that_are_no_images_are_refused_or_left_out(tmp_path: Path, crop: Literal["pad", "resized"]) -> None:
    recipe = DataRecipe(name="folder", crop=crop, size=32)
    place = flat_folder(tmp_path)
    whole = load_fit_data(recipe, place)
    (place / "cat" / "broken.png").write_bytes(b"\x89PNG not really")
    with pytest.raises(ValueError, match=r"broken\.png.*leave such files out with --set data\.on_error=skip"):
        load_fit_data(recipe, place)
    rest = load_fit_data(replace(recipe, on_error="skip"), place)
    assert (len(rest.train), len(rest.test)) == (len(whole.train), len(whole.test))
    assert rest.describe()["left_out"] == [str(Path("cat", "broken.png"))] and "left_out" not in whole.describe()


@pytest.mark.parametrize(
    ("drop_last", "world", "sizes"),
    [(False, 1, [16, 16, 8]), (True, 1, [16, 16]), (False, 2, [16, 4]), (True, 2, [16])],
)
def test_the_last_batch_of_an_epoch_is_smaller_unless_left_out(drop_last: bool, world: int, sizes: list[int]) -> None:
    recipe = DataRecipe(limit=4)
    batches = load_fit_data(recipe).batches(
        recipe, batch_size=16, seed=0, device=torch.device("cpu"), world=world, drop_last=drop_last
    )
    assert len(batches) == len(sizes) and [len(batch[0]) for batch in batches] == sizes


def test_a_last_batch_of_one_image_is_refused() -> None:
    recipe = DataRecipe(limit=4)
    data, cpu = load_fit_data(recipe), torch.device("cpu")
    with pytest.raises(ValueError, match=r"40 .* in batches of 13 leave a single image .*loop\.drop_last=true"):
        data.batches(recipe, batch_size=13, seed=0, device=cpu)
    with pytest.raises(ValueError, match="in batches of 38 leave a single image for the last batch of each process"):
        data.batches(recipe, batch_size=19, seed=0, device=cpu, world=2)
    assert len(data.batches(recipe, batch_size=13, seed=0, device=cpu, drop_last=True)) == 3
    assert len(data.batches(recipe, batch_size=1, seed=0, device=cpu)) == 40


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
