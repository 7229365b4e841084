"""Numbers of norms that were changed after they were made are saved with the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from forged import rewritten
from shiftnorm.surgery import build_model, convert, load, save


def changed() -> nn.Module:
    """Batch norms of torch and norms of ours with other numbers than they are made with."""
    model, _ = convert(build_model("torchvision/resnet18", num_classes=2), "mixstyle")
    convert(model, "crossnorm@residual")
    model.bn1.momentum, model.bn1.eps = 0.01, 1e-3
    model.layer4[1].bn2[0].momentum = None
    model.layer4[0].bn1.momentum = 0  # whole, and yet a momentum
    model.layer2[0].bn2[1].blend = 0.5  # None before
    model.layer1[1].bn2[1].p = 0.25
    return model


def numbers(model: nn.Module) -> dict[str, dict[str, Any]]:
    names = ("eps", "momentum", "p", "alpha", "blend")
    return {
        path: {name: getattr(module, name) for name in names if hasattr(module, name)}
        for path, module in model.named_modules()
    }


def test_they_survive(tmp_path: Path) -> None:
    model = changed()
    again, _ = load(save(model, tmp_path / "a.safetensors"))
    assert numbers(again) == numbers(model)
    assert again.layer4[0].bn1.momentum == 0 and again.layer2[0].bn2[1].blend == 0.5
    assert again.bn1.momentum == 0.01 and again.layer1[1].bn2[1].p == 0.25


def test_a_file_without_them_is_read(tmp_path: Path) -> None:
    path = rewritten(save(changed(), tmp_path / "a.safetensors"), lambda recipe: recipe.pop("settings"))
    assert load(path)[0].bn1.momentum == 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bn9": {"eps": 1e-3}}, "names 'eps' of a norm at 'bn9'"),
        ({"fc": {"eps": 1e-3}}, "names 'eps' of a norm at 'fc'"),
        ({"bn1": {"eps": 1e-3, "forward": 1.0}}, "names 'forward' of a norm at 'bn1'"),
        ({"bn1": {"eps": "1e-3"}}, "not of the form"),
        ({"bn1": {"num_features": 7}}, "not of the form"),
        ({"bn1": {"_buffers": 1.0}}, "not of the form"),
        ({"bn1": 0.5}, "not of the form"),
        ([], "not of the form"),
    ],
)
def test_forged_ones_are_refused_and_change_nothing(tmp_path: Path, settings: Any, message: str) -> None:
    path = save(changed(), tmp_path / "a.safetensors")
    given = build_model("torchvision/resnet18", num_classes=2)
    with pytest.raises(ValueError, match=message):
        load(rewritten(path, lambda recipe: recipe.update(settings=settings)), given)
    assert given.bn1.eps == 1e-5
