"""Stems and stage outputs, checked by what passes there in a forward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shiftnorm.models import ResNeXtCifar, WideResNet, create_model
from shiftnorm.surgery.stages import stage_outputs, stem_norm

timm = pytest.importorskip("timm")
tv = pytest.importorskip("torchvision").models


def passing(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What passes at each stage output of the model."""
    seen: list[Tensor] = []
    for output in stage_outputs(model):
        module = model.get_submodule(output.path)
        if output.how == "before":
            module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        else:
            module.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        model.eval()(x)
    return seen


def _timm(name: str, **kwargs) -> nn.Module:
    return timm.create_model(name, pretrained=False, num_classes=2, **kwargs)


NETS = {
    "resnet18": (lambda: tv.resnet18(num_classes=2), ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
    "wide_resnet": (lambda: WideResNet(10, 1), ["after_block1", "after_block2", "after_block3"]),
    "own resnet18": (lambda: create_model("resnet18"), [f"after_layer{stage}" for stage in (1, 2, 3, 4)]),
    "own resnext": (lambda: ResNeXtCifar(11, 2, 8), [f"after_stage_{stage}" for stage in (1, 2, 3)]),
    "own densenet": (
        lambda: create_model("densenet121"),
        [f"features.after_denseblock{stage}" for stage in (1, 2, 3, 4)],
    ),
    "densenet": (
        lambda: tv.DenseNet(8, (2, 2, 2), 16),
        ["features.transition1.norm", "features.transition2.norm", "features.norm5"],
    ),
    "mobilenet_v2": (
        lambda: tv.mobilenet_v2(num_classes=2),
        ["features.1", "features.3", "features.6", "features.13", "features.17"],
    ),
    "convnext": (
        lambda: tv.convnext_tiny(num_classes=2),
        ["features.1.2", "features.3.2", "features.5.8", "features.7.2"],
    ),
    "timm convnext": (
        lambda: _timm("test_convnext"),
        ["stages.0.blocks.0", "stages.1.blocks.1", "stages.2.blocks.3", "stages.3.blocks.1"],
    ),
    "timm regnet": (lambda: _timm("regnetx_002"), ["s1.b1", "s2.b1", "s3.b4", "s4.b7"]),
    "timm dla": (lambda: _timm("dla46_c"), ["level2", "level3", "level4", "level5"]),
    "timm cspnet": (
        lambda: _timm("cspresnet50"),
        ["stages.0", "stages.1", "stages.2", "stages.3"],
    ),
    # Stages 2 to 4 return maps of several resolutions.
    "timm hrnet": (
        lambda: _timm("hrnet_w18_small"),
        ["layer1.0", *(f"incre_modules.{scale}.0" for scale in range(4))],
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_stage_outputs(name):
    build, paths = NETS[name]
    model = build()
    outputs = stage_outputs(model)
    assert [output.path for output in outputs] == paths
    seen = passing(model, torch.randn(1, 3, 64, 64))
    assert [output.channels for output in outputs] == [tensor.shape[1] for tensor in seen]
    assert all(tensor.dim() == 4 for tensor in seen)
    if name != "timm hrnet":
        assert [output.stage for output in outputs] == list(range(1, len(paths) + 1))
        sizes = [tensor.shape[-1] for tensor in seen]
        assert sizes == sorted(sizes, reverse=True)


def test_how_a_stage_output_is_reached():
    assert {output.how for output in stage_outputs(WideResNet(10, 1))} == {"fill"}
    assert {output.how for output in stage_outputs(tv.resnet18(num_classes=2))} == {"after"}
    assert {output.how for output in stage_outputs(tv.DenseNet(8, (2, 2), 16))} == {"before"}
    model = WideResNet(10, 1, stage_slots={1: nn.BatchNorm2d})
    assert [output.how for output in stage_outputs(model)] == ["after", "fill", "fill"]


def test_the_output_of_a_dense_stage_is_all_its_maps():
    model = tv.DenseNet(8, (2, 2), 16).eval()
    whole: list[Tensor] = []
    model.features.denseblock1.register_forward_hook(lambda _, __, out: whole.append(out))
    seen = passing(model, torch.randn(1, 3, 64, 64))
    assert torch.equal(seen[0], whole[0])


def test_a_dense_stage_that_nothing_follows_has_no_place():
    assert stage_outputs(tv.DenseNet(8, (2, 2), 16).features[:5]) == []


def test_a_wrapped_model():
    paths = [output.path for output in stage_outputs(nn.Sequential(nn.Identity(), WideResNet(10, 1)))]
    assert paths == ["1.after_block1", "1.after_block2", "1.after_block3"]


def test_no_blocks_no_stages():
    assert stage_outputs(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))) == []


@pytest.mark.parametrize(
    ("build", "path"),
    [
        (lambda: tv.resnet18(num_classes=2), "bn1"),
        (lambda: tv.DenseNet(8, (2, 2), 16), "features.norm0"),
        (lambda: tv.mobilenet_v2(num_classes=2), "features.0.1"),
        (lambda: tv.convnext_tiny(num_classes=2), "features.0.1"),
        (lambda: _timm("resnet26d"), "conv1.1"),
        (lambda: _timm("test_efficientnet"), "bn1"),
        (lambda: create_model("resnet18"), "bn1"),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "2"),
        (lambda: WideResNet(10, 1), None),
        (lambda: _timm("resnetv2_18"), None),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), None),
        (lambda: tv.resnet.BasicBlock(4, 4), None),
    ],
)
def test_stem_norm(build, path):
    assert stem_norm(build()) == path
