"""Backbones by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shiftnorm.models import ResNet, WideResNet, create_model, list_models


@pytest.mark.parametrize("name", list_models())
def test_every_name_builds_and_passes_arguments_on(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=7)
        assert model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_wide_resnets_have_the_depth_and_width_of_their_names() -> None:
    for name, blocks, width in (("16_4", 2, 256), ("28_2", 4, 128), ("28_10", 4, 640), ("40_2", 6, 128)):
        with torch.device("meta"):
            model = create_model(f"wide_resnet{name}", slots={"post": nn.InstanceNorm2d})
        assert isinstance(model, WideResNet)
        assert len(model.block3.layer) == blocks
        assert model.block3.layer[0].post.num_features == width


def test_patterns() -> None:
    assert list_models("wide_resnet?0_2") == ["wide_resnet40_2", "wide_resnet50_2"]
    assert list_models("nothing*") == []
    assert list_models() == sorted(set(list_models()))


def test_arguments_reach_the_constructor() -> None:
    model = create_model("resnet18", in_channels=1, stem="cifar", include_top=False)
    assert isinstance(model, ResNet)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 512, 1, 1)
    with pytest.raises(TypeError, match="widen"):
        create_model("resnet18", widen=2)


@pytest.mark.parametrize(
    ("name", "advice"),
    [("resnet5", "did you mean resnet.*resnet50"), ("wide_resnet_40_2", "wide_resnet40_2"), ("vit", "list_models")],
)
def test_unknown_name(name: str, advice: str) -> None:
    with pytest.raises(ValueError, match=f"unknown model '{name}'; .*{advice}"):
        create_model(name)
