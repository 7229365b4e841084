"""Norm and activation in one layer, in networks of timm that want it."""

from __future__ import annotations

import copy
import pickle
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from shiftnorm import norms
from shiftnorm.surgery.norm_act import NormAct, norm_act


def small_efficientnet(norm: Any = None) -> nn.Module:
    builder = pytest.importorskip("timm.models._efficientnet_builder")
    efficientnet = pytest.importorskip("timm.models.efficientnet")
    blocks = builder.decode_arch_def([["ds_r1_k3_s1_e1_c8"], ["ir_r2_k3_s2_e2_c8_se0.25_nre"], ["er_r1_k3_s2_e2_c16"]])
    return efficientnet.EfficientNet(blocks, num_classes=5, stem_size=8, act_layer=nn.SiLU, norm_layer=norm)


def fused_in(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(getattr(module, "act", None), nn.Module)]


def activations(model: nn.Module) -> list[type]:
    return [type(module.act) for module in fused_in(model) if hasattr(module, "drop")]


def test_timm_exchanges_or_refuses_a_bare_class() -> None:
    from timm.layers import BatchNormAct2d

    model = small_efficientnet(norms.BatchNorm)
    assert any(isinstance(module, BatchNormAct2d) for module in model.modules())
    assert not any(isinstance(module, norms.BatchNorm) for module in model.modules())
    with pytest.raises(AssertionError, match="No equivalent norm_act layer for ibn"):
        small_efficientnet(norms.IBN)


def test_batch_norm_is_timms_own() -> None:
    theirs, ours = small_efficientnet().double(), small_efficientnet(norm_act(norms.BatchNorm)).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) * 0.1)
        assert name
    ours.load_state_dict(theirs.state_dict())
    assert activations(ours) == activations(theirs)
    assert nn.ReLU in activations(ours)
    assert nn.SiLU in activations(ours)
    assert nn.Identity in activations(ours)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    outputs = [model.train()(x) for model in (ours, theirs)]
    torch.testing.assert_close(*outputs)
    gradients = [
        torch.autograd.grad(y.square().sum(), list(model.parameters()))
        for y, model in zip(outputs, (ours, theirs), strict=True)
    ]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


CHAIN = partial(norms.CNSN, p=0.5)


@pytest.mark.parametrize(
    "norm",
    [norms.IBN, norms.RepresentativeBatchNorm, norms.CNSN, CHAIN, partial(norms.InstanceNorm, affine=True)],
)
def test_any_norm_trains_copies_and_keeps_its_activation(norm: Any) -> None:
    model = small_efficientnet(norm_act(norm))
    assert activations(model) == activations(small_efficientnet())
    x = torch.randn(4, 3, 32, 32)
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    y = model.eval()(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), y)
    fresh = small_efficientnet(norm_act(norm)).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), y)


def test_weights_of_timms_norm_load_into_ibn() -> None:
    theirs, ours = small_efficientnet(), small_efficientnet(norm_act(norms.IBN, ratio=0.5))
    theirs(torch.randn(4, 3, 32, 32))
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.bn1.norm.running_mean, theirs.bn1.running_mean)
    assert isinstance(ours.bn1.norm, norms.IBN)
    state = theirs.state_dict()
    state["bn1.nonsense"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="nonsense"):
        ours.load_state_dict(state)


def test_networks_that_activate_themselves_get_no_second_activation() -> None:
    resnet = pytest.importorskip("timm.models.resnet")
    model = resnet.ResNet(resnet.BasicBlock, (1, 1, 1, 1), num_classes=5, norm_layer=norm_act(norms.IBN))
    assert {type(module.act) for module in model.modules() if isinstance(module, NormAct)} == {nn.Identity}


def test_the_layer_alone() -> None:
    layer = NormAct(4, norm=norms.BatchNorm, act_layer=nn.LeakyReLU, act_kwargs={"negative_slope": 0.5}, eps=1e-3)
    assert (layer.act.negative_slope, layer.act.inplace, layer.norm.eps, layer.num_features) == (0.5, True, 1e-3, 4)
    x = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(layer(x), nn.functional.leaky_relu(norms.BatchNorm(4, 1e-3)(x), 0.5))
    assert layer.weight is layer.norm.weight
    assert layer.bias is layer.norm.bias
    assert NormAct(4, norm=norms.CrossNorm).weight is None
    assert not NormAct(4, norm=norms.BatchNorm, act_layer=nn.ReLU, inplace=False).act.inplace
    assert isinstance(NormAct(4, norm=norms.BatchNorm, act_layer=nn.ReLU, apply_act=False).act, nn.Identity)
    assert isinstance(NormAct(4, norm=norms.BatchNorm, drop_layer=nn.Dropout).drop, nn.Dropout)
    assert NormAct(4, norm=norms.BatchNorm, dtype=torch.float64).weight.dtype == torch.float64
    assert list(NormAct(4, norm=norms.InstanceNorm, affine=True, act_layer=nn.PReLU).state_dict()) == [
        "act.weight",
        "weight",
        "bias",
    ]
    pytest.importorskip("timm")
    assert type(NormAct(4, norm=norms.BatchNorm, act_layer="relu").act) is nn.ReLU


def test_it_compiles_and_exports() -> None:
    torch._dynamo.reset()
    layer, x = NormAct(4, norm=norms.IBN, act_layer=nn.ReLU).eval(), torch.randn(3, 4, 5, 5)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    program = torch.export.export(layer, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_wrong_arguments_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match=r"expected a norm's class or a function .* got BatchNorm\(3"):
        norm_act(norms.BatchNorm(3))
    with pytest.raises(TypeError, match="expected norm to make a module, got 3"):
        NormAct(3, norm=lambda channels: channels)
    create = pytest.importorskip("timm.layers.create_norm_act")
    with monkeypatch.context() as without:
        without.delattr(create, "_NORM_ACT_TYPES")
        with pytest.raises(RuntimeError, match=r"shiftnorm\.surgery\.convert"):
            norm_act(norms.IBN)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ModuleNotFoundError, match=r'norm_act needs timm; install it with pip install "shiftnorm\[timm\]"'
    ):
        norm_act(norms.IBN)
