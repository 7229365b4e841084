"""``shiftnorm evaluate`` on the folder that a run of a recipe leaves."""

from __future__ import annotations

import json

import pytest

from command_line import one_clear_line
from pictures import tree
from shiftnorm.evaluate.result import Result
from shiftnorm.recipe_tree import override, to_yaml
from shiftnorm.surgery import build_model, save
from shiftnorm.train_recipe import TrainRecipe

QUICK = ["--corruptions", "contrast", "--severities", "5", "--bootstrap", "20"]


@pytest.fixture
def pets(tmp_path):
    return tree(tmp_path / "pets", [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(4)], size=(32, 32))


def test_a_run_on_other_images(run, pets, tmp_path):
    model = build_model("shiftnorm/wide_resnet16_4", num_classes=2)
    model.input_normalization = ((0.5,) * 3, (0.25,) * 3)
    save(model, tmp_path / "train-small-seed0" / "model.safetensors")
    assert run("evaluate", "train-small-seed0", "--data", pets, *QUICK, "--out", "r")[0] == 0
    result = Result.load("r")
    assert result.name == "train-small-seed0" and result.settings["normalize"] == "the model's input_normalization"
    one_clear_line(run("evaluate", "train-small-seed0", "--data", pets, "--pretrained"), "is of a run of a recipe")
    record = tmp_path / "train-small-seed0" / "record.json"
    record.write_text(json.dumps({"data": {"classes": ["dog", "cat"]}}))  # the network's order, not the folder's
    assert run("evaluate", "train-small-seed0", "--data", pets, *QUICK, "--out", "s")[0] == 0
    errors = [Result.load(out).clean.error.value for out in ("r", "s")]
    assert sum(errors) == pytest.approx(100)
    record.write_text(json.dumps({"data": {"classes": ["0", "1"]}}))
    refused = run("evaluate", "train-small-seed0", "--data", pets, *QUICK, "--out", "t")
    one_clear_line(refused, "not trained on, such as 'cat'")


def test_images_of_another_size_than_in_training_are_told(run, pets, tmp_path):
    folder = tmp_path / "train-small-seed0"
    save(build_model("shiftnorm/wide_resnet10_1", num_classes=2), folder / "model.safetensors")
    words = ["evaluate", folder, "--data", pets, *QUICK, "--normalize", "half"]
    for size, told in ((16, True), (32, False)):
        (folder / "record.json").write_text(json.dumps({"recipe": {"data": {"size": size}}, "data": {}}))
        status, out, _ = run(*words, "--out", f"r{size}")
        assert status == 0 and ("trained on images of 16x16, these are 32x32; --preprocess resize16x16" in out) is told


def test_a_run_on_the_images_it_was_measured_on(run, tmp_path):
    folder = tmp_path / "train-small-seed0"
    save(build_model("shiftnorm/wide_resnet10_1", num_classes=10), folder / "model.safetensors")
    recipe = override(TrainRecipe("digits"), ["data.validation=0.1", "evaluate.limit=100"])
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    status, out, _ = run("evaluate", folder, *QUICK, "--limit", 2, "--out", "r")
    assert status == 0 and "20 images of digits" in out and "that the run was measured on." in out
    one_clear_line(
        run("evaluate", folder, *QUICK, "--split", "train"), "--split has no meaning for the images of a run"
    )
    (folder / "recipe.yaml").write_text(to_yaml(override(recipe, ["data.name=cifar10"])))
    one_clear_line(run("evaluate", folder, *QUICK), "evaluate: expected --data, a folder of images")
