"""What a model says of its inputs is saved with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from forged import rewritten
from shiftnorm.surgery import build_model, convert, load, read_recipe, save

PAIR = ((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


def saved(tmp_path: Path, normalization: object) -> Path:
    model = build_model("shiftnorm/wide_resnet16_4", num_classes=2)
    if normalization is not None:
        model.input_normalization = normalization
    return save(model, tmp_path / "a.safetensors")


def test_it_survives_saving_and_conversion(tmp_path: Path) -> None:
    model, _ = load(saved(tmp_path, PAIR))
    assert model.input_normalization == PAIR
    model, _ = convert(model, "ibn_a")
    again, _ = load(save(model, tmp_path / "b.safetensors"))
    assert again.input_normalization == PAIR


@pytest.mark.parametrize("pair", [(torch.tensor(PAIR[0]), torch.tensor(PAIR[1])), [list(part) for part in PAIR]])
def test_any_numbers_will_do(tmp_path: Path, pair: object) -> None:
    path = saved(tmp_path, pair)
    torch.testing.assert_close(load(path)[0].input_normalization, PAIR)
    json.dumps(read_recipe(path))


def test_without_it_nothing_is_set(tmp_path: Path) -> None:
    assert not hasattr(load(saved(tmp_path, None))[0], "input_normalization")
    # A part of the network that happens to have the name is no such pair.
    assert read_recipe(saved(tmp_path, nn.Identity()))["input_normalization"] is None


@pytest.mark.parametrize("pair", ["half", 3, ([0.5], [0.0]), ([0.5, 0.5], [1.0]), ([float("nan")], [1.0]), ([], [])])
def test_what_is_no_normalization_is_refused(tmp_path: Path, pair: object) -> None:
    with pytest.raises(ValueError, match=r"save: expected input_normalization to be \(mean, std\).*Correct or delete"):
        saved(tmp_path, pair)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pair", ["half", [[0.5]], [[0.5], ["x"]], [[0.5], [-1]], {"mean": 1}, [[10**400], [1]]])
def test_a_forged_one_is_refused(tmp_path: Path, pair: object) -> None:
    path = rewritten(saved(tmp_path, PAIR), lambda recipe: recipe.update(input_normalization=pair))
    with pytest.raises(ValueError, match="not of the form that save writes"):
        load(path)


def test_a_file_from_before_is_read(tmp_path: Path) -> None:
    path = rewritten(saved(tmp_path, PAIR), lambda recipe: recipe.pop("input_normalization"))
    assert not hasattr(load(path)[0], "input_normalization")
