"""ResNeXtCifar: names, shapes, slots, norms per stage, start and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shiftnorm.models import ResNeXtCifar, create_model

PLACES = ("pre", "residual", "identity", "post")


class Scale(nn.Module):
    """A slot filler that multiplies by a parameter: the place it stands in shows in the output and in the gradient."""

    def __init__(self, channels: int, factor: float = 0.0) -> None:
        super().__init__()
        self.channels, self.factor = channels, nn.Parameter(torch.tensor(float(factor)))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        return self.factor * x


def by(factor: float) -> Callable[[int], nn.Module]:
    return lambda channels: Scale(channels, factor)


def with_moments(model: ResNeXtCifar) -> ResNeXtCifar:
    """Running moments as after training: with mean 0 and variance 1 it would not matter what stands before a norm."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-1, 1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.2, 0.6)
    return model.eval()


def small(**arguments: object) -> ResNeXtCifar:
    torch.manual_seed(1)
    return with_moments(ResNeXtCifar(20, 2, 4, **arguments))


def test_names_shapes_and_order_are_the_authors(golden: Path) -> None:
    file = golden / "models" / "resnext29_sn_post.json"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    listing = [(entry["name"], tuple(entry["shape"])) for entry in json.loads(file.read_text())["tensors"]]
    expected = [entry for entry in listing if ".cnsn." not in entry[0]]
    assert [(name, tuple(value.shape)) for name, value in ResNeXtCifar().state_dict().items()] == expected


@pytest.mark.parametrize(
    ("depth", "cardinality", "base_width", "parameters"),
    [(29, 4, 32, 6_807_882), (29, 8, 64, 34_426_698)],
)
def test_parameter_counts(depth: int, cardinality: int, base_width: int, parameters: int) -> None:
    with torch.device("meta"):
        model = ResNeXtCifar(depth, cardinality, base_width)
        named = create_model(f"resnext{depth}_{cardinality}x{base_width}")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert sum(parameter.numel() for parameter in named.parameters()) == parameters


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (32, 32), (64, 48)], ids=str)
def test_any_size(size: tuple[int, int]) -> None:
    assert small(num_classes=7, in_channels=2)(torch.zeros(1, 2, *size)).shape == (1, 7)


@pytest.mark.parametrize("index", [0, 1])
def test_slots_stand_where_they_say(index: int) -> None:
    channels = (256, 512)[index]
    x = torch.randn(2, channels, 8, 8)

    def block(**slots: Callable[[int], nn.Module]) -> nn.Module:
        return small(slots=slots).stage_2[index]

    plain = block()

    def branch(start: Tensor) -> Tensor:
        start = F.relu(plain.bn(plain.conv_conv(F.relu(plain.bn_reduce(plain.conv_reduce(start))))))
        return plain.bn_expand(plain.conv_expand(start))

    shortcut = x if index else plain.downsample[1](plain.downsample[0](x))
    assert isinstance(plain.downsample, nn.Identity) == (index == 1)
    same = torch.testing.assert_close
    same(plain(x), F.relu(shortcut + branch(x)))
    same(block(residual=by(0))(x), F.relu(shortcut))
    same(block(identity=by(0))(x), F.relu(branch(x)))
    # After the last ReLU: a negative factor gives negative values.
    same(block(post=by(-3))(x), -3 * F.relu(shortcut + branch(x)))
    # Where there is a downsample it sees the output of pre; a raw shortcut does not.
    start = 2 * x
    same(block(pre=by(2))(x), F.relu((x if index else plain.downsample[1](plain.downsample[0](start))) + branch(start)))
    same(block(**dict.fromkeys(PLACES, by(1)))(x), plain(x))


def test_identity_can_be_left_out_of_the_downsample_blocks() -> None:
    whole, without = (small(slots={"identity": by(0.5)}, identity_in_downsample=flag) for flag in (True, False))
    places = {name.removesuffix(".factor") for name in without.state_dict() if name.endswith("factor")}
    assert places == {f"stage_{stage}.1.identity" for stage in (1, 2, 3)}
    assert [whole.stage_2[0].identity.channels, whole.stage_2[1].identity.channels] == [512, 512]
    # The same network otherwise, and no module whose output nobody reads.
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for stage in (whole.stage_1, whole.stage_2, whole.stage_3):
            stage[0].identity.factor.fill_(1.0)
    torch.testing.assert_close(whole(x), without(x))
    for model in (whole, without):
        model(x).square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_norms_per_stage_and_stage_slots() -> None:
    def group(channels: int) -> nn.Module:
        return nn.GroupNorm(4, channels)

    model = small(norm=group, inner_norm=[nn.InstanceNorm2d, None, nn.InstanceNorm2d], stage_slots={2: by(0)})
    for number, inner in ((1, nn.InstanceNorm2d), (2, nn.GroupNorm), (3, nn.InstanceNorm2d)):
        for block in getattr(model, f"stage_{number}"):
            assert type(block.bn_reduce) is inner
            assert isinstance(block.bn, nn.GroupNorm) and isinstance(block.bn_expand, nn.GroupNorm)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert [name for name, module in model.named_modules() if isinstance(module, Scale)] == ["after_stage_2"]
    # Zeros after stage 2 leave nothing of the image.
    logits = model(torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(logits[0], logits[1])


def test_initialisation_is_the_authors() -> None:
    model = ResNeXtCifar(slots={"post": lambda channels: nn.Conv2d(channels, channels, 1, groups=channels)})
    block = model.stage_3[1]
    for conv, fan_out in ((block.conv_conv, 9 * 512), (block.conv_expand, 1024)):
        assert abs(conv.weight.std().item() / np.sqrt(2 / fan_out) - 1) < 0.01
    assert abs(model.classifier.weight.std().item() / np.sqrt(2 / 1024) - 1) < 0.05
    assert not model.classifier.bias.any()
    # A convolution in a slot keeps its own start, which is bounded by 1/sqrt(fan in).
    assert block.post.weight.abs().max() <= 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depth": 30}, ValueError, r"9n \+ 2 .* got 30; the nearest are 29 and 38"),
        ({"depth": 2}, ValueError, "nearest are 11 and 20"),
        ({"cardinality": 0}, ValueError, "cardinality must be at least 1, got 0"),
        ({"base_width": 0}, ValueError, "base_width"),
        ({"num_classes": 0}, ValueError, "num_classes"),
        ({"in_channels": 0}, ValueError, "in_channels"),
        ({"slots": {"after": Scale}}, ValueError, r"ResNeXtCifar: unknown slots \['after'\]"),
        ({"stage_slots": {4: Scale}}, ValueError, r"unknown stages \[4\]"),
        ({"inner_norm": [None]}, ValueError, "one entry for each of the 3 stages .* got 1"),
        ({"norm": nn.BatchNorm2d(16)}, TypeError, r"ResNeXtCifar: norm must be a function .* got BatchNorm2d\(16"),
        ({"inner_norm": [lambda channels: 3, None, None]}, TypeError, "inner_norm must return an nn.Module"),
        ({"slots": {"post": nn.Identity()}}, TypeError, r"slots\['post'\] must be a function"),
        ({"stage_slots": {1: nn.Identity()}}, TypeError, r"stage_slots\[1\] must be a function"),
    ],
)
def test_errors(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ResNeXtCifar(**({"depth": 11, "cardinality": 2, "base_width": 4} | arguments))


def test_a_narrow_group_has_at_least_one_channel() -> None:
    assert ResNeXtCifar(11, 2, 1).stage_1[0].conv_conv.weight.shape == (2, 1, 3, 3)


def test_wrong_images() -> None:
    with pytest.raises(ValueError, match=r"ResNeXtCifar: expected images of shape \(N, 3, H, W\), got \(3, 32, 32\)"):
        small()(torch.zeros(3, 32, 32))


def test_compiles_without_a_graph_break_exports_and_traces() -> None:
    model, x = small(slots={"post": by(2)}), torch.randn(2, 3, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))
    plain = small()
    torch.testing.assert_close(torch.fx.symbolic_trace(plain)(x), plain(x))
