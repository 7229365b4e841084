"""Norms handed to the constructors of other libraries, as ``norm_layer``, ``norm_op`` or a dotted path."""

from __future__ import annotations

import copy
import inspect
import pickle
import pydoc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import roster
from shiftnorm import norms
from shiftnorm.norms import NormLayer

# Everything of the roster that is built from a channel count, with what it needs besides.
FACTORIES: dict[str, Callable[[int], nn.Module]] = {
    **{name: thing for name, thing in roster().items() if name != "Chain"},
    "InstanceNorm": partial(norms.InstanceNorm, affine=True),
    "GroupNorm": partial(norms.GroupNorm, num_groups=4),
    "AttentiveNorm": partial(norms.AttentiveNorm, num_pairs=3),
    "IBN": partial(norms.IBN, ratio=0.25),
}


def trained(model: nn.Module, x: Tensor) -> Tensor:
    """The outputs of a training step, with every parameter's gradient checked."""
    y = model.train()(x)
    y.square().mean().backward()
    assert torch.isfinite(y).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    return y


def ours_in(model: nn.Module) -> list[NormLayer]:
    return [module for module in model.modules() if isinstance(module, NormLayer)]


def torchs_in(model: nn.Module) -> list[nn.Module]:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    return [module for module in model.modules() if isinstance(module, kinds)]


def small_resnet(**options: Any) -> nn.Module:
    resnet = pytest.importorskip("torchvision.models.resnet")
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=5, **options)


@pytest.mark.parametrize("name", FACTORIES)
def test_every_norm_is_a_norm_layer_of_torchvisions_resnet(name: str) -> None:
    model = small_resnet(norm_layer=FACTORIES[name])
    assert not torchs_in(model)
    assert len(ours_in(model)) >= 12
    x = torch.randn(4, 3, 64, 64)
    trained(model, x)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    y = model.eval()(x)
    for other in copies:
        assert torch.equal(other.eval()(x), y)


def test_batch_norm_in_torchvisions_resnet_is_torchs() -> None:
    ours, theirs = small_resnet(norm_layer=norms.BatchNorm).double(), small_resnet().double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(trained(ours, x), trained(theirs, x))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def mobilenet_v2(norm: Any) -> nn.Module:
    return pytest.importorskip("torchvision.models").mobilenet_v2(width_mult=0.1, num_classes=5, norm_layer=norm)


def mobilenet_v3(norm: Any) -> nn.Module:
    module = pytest.importorskip("torchvision.models.mobilenetv3")
    config = partial(module.InvertedResidualConfig, width_mult=1.0)
    settings = [config(8, 3, 16, 8, True, "RE", 2, 1), config(8, 3, 16, 8, False, "HS", 1, 1)]
    return module.MobileNetV3(settings, 16, num_classes=5, norm_layer=norm)


def efficientnet(norm: Any) -> nn.Module:
    module = pytest.importorskip("torchvision.models.efficientnet")
    settings = [module.MBConvConfig(2, 3, 2, 8, 8, 2), module.FusedMBConvConfig(2, 3, 2, 8, 16, 1)]
    return module.EfficientNet(settings, dropout=0.1, num_classes=5, norm_layer=norm)


def regnet(norm: Any) -> nn.Module:
    module = pytest.importorskip("torchvision.models.regnet")
    settings = module.BlockParams.from_init_params(depth=3, w_0=16, w_a=8.0, w_m=2.0, group_width=8, se_ratio=0.25)
    return module.RegNet(settings, num_classes=5, norm_layer=norm)


def convnext(norm: Any) -> nn.Module:
    module = pytest.importorskip("torchvision.models.convnext")
    settings = [module.CNBlockConfig(8, 16, 1), module.CNBlockConfig(16, None, 1)]
    return module.ConvNeXt(settings, num_classes=5, norm_layer=norm)


def timms_resnet(norm: Any) -> nn.Module:
    module = pytest.importorskip("timm.models.resnet")
    return module.ResNet(module.BasicBlock, (1, 1, 1, 1), num_classes=5, norm_layer=norm)


def timms_convnext(norm: Any) -> nn.Module:
    module = pytest.importorskip("timm.models.convnext")
    return module.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=5, norm_layer=norm, conv_mlp=True)


NETWORKS = [mobilenet_v2, mobilenet_v3, efficientnet, regnet, convnext, timms_resnet, timms_convnext]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["BatchNorm", "IBN", "CNSN", "RepresentativeBatchNorm", "SwitchNorm"])
def test_other_constructors_take_them_too(network: Callable[[Any], nn.Module], name: str) -> None:
    model = network(partial(FACTORIES[name], eps=1e-4))
    # CNSN's eps is its SelfNorm's.
    layers = [layer for layer in ours_in(model) if hasattr(layer, "eps") and not isinstance(layer, norms.CrossNorm)]
    assert len(layers) >= 3
    assert {layer.eps for layer in layers} == {1e-4}
    assert not [module for module in torchs_in(model) if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    trained(model, torch.randn(4, 3, 64, 64))


TAKES_AFFINE = [
    "BatchInstanceNorm",
    "BatchNorm",
    "DomainNorm",
    "IBN",
    "InstanceNorm",
    "LayerNorm",
    "MixtureNorm",
    "RepresentativeBatchNorm",
    "SwitchNorm",
]


@pytest.mark.parametrize("name", TAKES_AFFINE)
@pytest.mark.parametrize("shape", [(3, 8, 6, 6), (3, 8, 4, 4, 4)], ids=["2d", "3d"])
def test_by_dotted_path_with_keyword_arguments(name: str, shape: tuple[int, ...]) -> None:
    norm_op: Any = pydoc.locate(f"shiftnorm.{name}")
    assert norm_op is getattr(norms, name)
    arguments = {"eps": 1e-5, "affine": True}
    convolution = nn.Conv3d if len(shape) == 5 else nn.Conv2d
    model = nn.Sequential(convolution(8, 8, 3), norm_op(8, **arguments), nn.LeakyReLU(inplace=True))
    assert model[1].weight.shape == (8,)
    trained(model, torch.randn(shape))


def test_the_list_of_norms_with_an_affine_is_complete() -> None:
    takes = [name for name, thing in roster().items() if "affine" in inspect.signature(thing).parameters]
    assert sorted([*TAKES_AFFINE, "GroupNorm"]) == sorted(takes)


@pytest.mark.parametrize("name", FACTORIES)
def test_positional_arguments_stand_in_torchs_order(name: str) -> None:
    torchs = list(inspect.signature(nn.BatchNorm2d).parameters)
    parameters = inspect.signature(roster()[name]).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if name == "GroupNorm":
        positional.remove("num_groups")
    assert positional[0] == "num_features"
    order = ["num_features", "eps", "momentum", "affine", "track_running_stats", "device", "dtype"]
    assert [name for name in torchs if name in order] == order
    assert positional == [name for name in order if name in positional]


WITH_TENSORS = [name for name in FACTORIES if "device" in inspect.signature(roster()[name]).parameters]


@pytest.mark.parametrize("name", WITH_TENSORS)
def test_built_on_a_device_in_a_dtype(name: str) -> None:
    norm = FACTORIES[name](8, device="meta", dtype=torch.float64)
    tensors = [*norm.parameters(), *norm.buffers()]
    assert tensors
    # CrossNorm's switch, a single bool, is no argument's affair.
    assert all(tensor.device.type == "meta" for tensor in tensors if tensor.dtype != torch.bool)
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float64}
