"""Conversions of networks that people use: torchvision's and timm's."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shiftnorm.norms import BatchNorm, Chain
from shiftnorm.surgery import NormAct, convert, edits_of, find_norms, insert, revert
from shiftnorm.surgery.kinds import is_batch

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
NETWORKS = [
    "torchvision/resnet18",
    "torchvision/resnet50",
    "torchvision/densenet121",
    "torchvision/mobilenet_v2",
    "torchvision/regnet_y_400mf",
    "torchvision/efficientnet_b0",
    "torchvision/convnext_tiny",
    "timm/resnet18d",
    "timm/efficientnet_b0",
    "timm/convnext_atto",
    "timm/resnetv2_50d_evos",
    "timm/densenet121",
    "timm/regnety_002",
]
WITHOUT_BATCH_NORM = ("torchvision/convnext_tiny", "timm/convnext_atto", "timm/resnetv2_50d_evos")


@functools.cache
def _built(name: str) -> nn.Module:
    from shiftnorm.surgery import build_model

    pytest.importorskip(name.partition("/")[0])
    torch.manual_seed(0)
    model = build_model(name, num_classes=3)
    with torch.no_grad():
        for key, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and tensor.dim() < 2 and "running" not in key:
                tensor.add_(0.1 * torch.randn_like(tensor))
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = 1.0
        model.train()(torch.randn(8, 3, 64, 64))  # moments of real activations: the output depends on the input
        for norm in norms:
            norm.momentum = 0.1
    return model.eval()


def network(name: str) -> nn.Module:
    return copy.deepcopy(_built(name))


@functools.cache
def output(name: str) -> Tensor:
    with torch.no_grad():
        return _built(name)(X)


def close(got: Tensor, expected: Tensor) -> bool:
    return bool((got - expected).abs().max() < 1e-2 * (expected[0] - expected[1]).abs().max())


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_what_keeps_the_function_and_back(name: str) -> None:
    model, expected = network(name), output(name)
    types, keys = [type(module) for module in model.modules()], list(model.state_dict())
    grads = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    reports = []
    wanted = ["selfnorm@residual", "cnsn@post", "mixstyle"]
    if name not in WITHOUT_BATCH_NORM:
        wanted = ["batch", "selfnorm@residual", "rbn", "mixstyle"]
    for placement in wanted:
        model, report = convert(model, placement)
        reports.append(report)
        assert len(report) > 1, placement
    assert close(model(X), expected)
    before, state = model(X), model.state_dict()
    other, _ = convert(network(name), wanted[0])
    for placement in wanted[1:]:
        convert(other, placement)
    other.load_state_dict(state)
    assert torch.equal(other(X), before)
    clone = pickle.loads(pickle.dumps(model))
    assert torch.equal(clone(X), before) and len(edits_of(clone)) == sum(map(len, reports))
    assert {key: p.requires_grad for key, p in model.named_parameters() if key in grads}.items() <= grads.items()
    for report in reversed(reports):
        model = revert(model, report)
    assert [type(module) for module in model.modules()] == types and list(model.state_dict()) == keys
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in WITHOUT_BATCH_NORM])
@torch.no_grad()
def test_ibn_a(name: str) -> None:
    model, report = convert(network(name), "ibn_a")
    assert len(report) and all(change.norm.__class__.__name__ == "IBN" for change in report.changes)
    assert list(model.state_dict()) == list(network(name).state_dict())  # BatchNorm's keys
    assert model(X).isfinite().all() and not close(model(X), output(name))
    assert report.parameters[0] == report.parameters[1]


@torch.no_grad()
def test_activations_inside_norms_are_kept() -> None:
    model, report = convert(network("timm/efficientnet_b0"), "batch")
    first = model.bn1
    assert isinstance(first, NormAct) and isinstance(first.act, nn.SiLU) and type(first.norm) is BatchNorm
    assert "NormAct(BatchNorm)" in str(report)
    assert close(model(X), output("timm/efficientnet_b0"))
    model, _ = insert(network("timm/efficientnet_b0"), "SelfNorm", after="bn1", start="identity")
    assert isinstance(model.bn1, Chain) and isinstance(model.bn1[0], NormAct)  # behind the activation
    assert close(model(X), output("timm/efficientnet_b0"))


@torch.no_grad()
def test_frozen_batch_norms_of_timm() -> None:
    timm = pytest.importorskip("timm")
    for name, kind in (("timm/resnet18d", "FrozenBatchNorm2d"), ("timm/efficientnet_b0", "FrozenBatchNormAct2d")):
        model = timm.layers.freeze_batch_norm_2d(network(name))
        with pytest.raises(ValueError, match=rf"nothing would change.*{kind}.*frozen"):
            convert(model, "rbn")
        model, report = convert(model, "selfnorm@residual")
        assert len(report) > 1 and close(model(X), output(name))


def test_hooks_of_the_old_norms_still_fire_and_see_the_same() -> None:
    seen: dict[str, list[Tensor]] = {"plain": [], "converted": []}
    handles: list[Any] = []

    def record(which: str) -> Callable[..., None]:
        return lambda module, args, out: seen[which].append(out.detach().clone())  # the ReLU writes into it

    for which in seen:
        model = network("torchvision/resnet18")
        handles += [m.register_forward_hook(record(which)) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        if which == "converted":
            model, _ = convert(model, "rbn", where="stages:1-2")
            convert(model, "selfnorm@residual")
        model(X)
    assert len(seen["plain"]) == len(seen["converted"]) == 20
    for mine, theirs in zip(seen["converted"], seen["plain"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    for handle in handles:
        handle.remove()
    model(X)
    assert len(seen["converted"]) == 20


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_dtypes(dtype: torch.dtype) -> None:
    model = network("torchvision/resnet18").to(dtype)
    x = X.to(dtype)
    model, report = convert(model, "rbn", example_input=x)
    assert report.movement is not None and report.movement.kept, report.movement
    model, report = convert(model, "cnsn@post", example_input=x)
    assert report.movement is not None and report.movement.kept, report.movement
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype, torch.int64}
    assert model(x).dtype == dtype


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/efficientnet_b0", "torchvision/densenet121"])
def test_channels_last_stays(name: str) -> None:
    model, _ = convert(network(name), "cnsn@residual")
    convert(model, "rbn")
    model = model.to(memory_format=torch.channels_last)
    formats: list[bool] = []
    for site in find_norms(model):
        site.module.register_forward_hook(
            lambda module, args, out: formats.append(out.is_contiguous(memory_format=torch.channels_last))
        )
    with torch.no_grad():
        out = model(X.contiguous(memory_format=torch.channels_last))
    assert len(formats) > 20 and all(formats)
    assert close(out, output(name))


def test_a_frozen_norm_in_a_training_model_and_frozen_parameters() -> None:
    model = network("torchvision/resnet18").train()
    model.layer1.eval()
    for parameter in model.layer1.parameters():
        parameter.requires_grad_(False)
    moments = model.layer1[0].bn1.running_mean.clone()
    model, first = convert(model, "ibn_a")
    model, second = convert(model, "selfnorm@residual")
    assert model.training and not any(part.training for part in model.layer1.modules()) and model.layer2[0].bn2.training
    assert not model.layer1[0].bn1.weight.requires_grad and model.layer2[0].bn1.weight.requires_grad
    assert model.layer1[0].bn2[1].gate.weight.requires_grad  # what is new learns
    model(X).sum().backward()
    assert torch.equal(model.layer1[0].bn1.running_mean, moments) and model.layer1[0].bn1.weight.grad is None
    assert model.layer2[0].bn1.weight.grad is not None
    model = revert(revert(model, second), first)
    assert not model.layer1[0].bn1.training and not model.layer1[0].bn1.weight.requires_grad


def test_copies_and_moving_averages() -> None:
    model, _ = convert(network("torchvision/resnet18"), "selfnorm@residual")
    insert(model, lambda channels: nn.InstanceNorm2d(channels, affine=True), after="layer1.0.conv1")
    convert(model, "selfnorm@post")
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    clone = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    average.update_parameters(model)
    average.update_parameters(model)
    assert set(clone.state_dict()) == set(model.state_dict()) == set(average.module.state_dict())
    with torch.no_grad():
        assert torch.equal(clone(X), clone(X)) and not torch.equal(clone(X), model(X))
        torch.testing.assert_close(average.eval()(X), model.eval()(X), rtol=1e-3, atol=1e-3)
        again = pickle.loads(pickle.dumps(model))  # though it was given a lambda
    assert torch.equal(again(X), model(X)) and len(edits_of(again)) == len(edits_of(model))


@pytest.mark.parametrize("training", [True, False])
def test_compiled_in_one_graph(training: bool) -> None:
    torch.compiler.reset()
    model, _ = convert(network("torchvision/resnet18"), "selfnorm@residual", where="stages:1")  # a Chain
    insert(model, "SelfNorm", after="layer2.0.conv1", start="identity")  # a hook
    convert(model, "selfnorm@post", where="stages:3")  # an exchanged class
    model.train(training)
    copied = copy.deepcopy(model)
    expected = model(X)
    compiled = torch.compile(copied, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), expected, rtol=1e-4, atol=1e-4)


def test_exported() -> None:
    model, _ = convert(network("torchvision/resnet18"), "selfnorm@residual", where="stages:1")
    insert(model, "SelfNorm", after="layer2.0.conv1", start="identity")
    convert(model, "ibn_a", where="stages:2-3")
    model.eval()
    with torch.no_grad():
        exported = torch.export.export(model, (X,)).module()
        torch.testing.assert_close(exported(X), model(X), rtol=1e-4, atol=1e-4)


def test_every_batch_norm_is_met() -> None:
    for name in NETWORKS:
        if name in WITHOUT_BATCH_NORM:
            continue
        model = network(name)
        count = sum(is_batch(site.module) for site in find_norms(model))
        model, report = convert(model, "rbn")
        assert len(report) == count > 10 and not report.skipped
        assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


@torch.no_grad()
def test_tied_norms_and_a_block_used_twice() -> None:
    model = network("torchvision/resnet18")
    model.layer1[1] = model.layer1[0]
    model.layer3[1].bn2 = model.layer3[1].bn1
    expected = model(X)
    model, first = convert(model, "rbn")
    model, second = convert(model, "selfnorm@residual")
    assert model.layer1[1] is model.layer1[0] and model.layer3[1].bn2 is model.layer3[1].bn1
    assert close(model(X), expected)
    model = revert(revert(model, second), first)
    assert torch.equal(model(X), expected) and model.layer3[1].bn2 is model.layer3[1].bn1
