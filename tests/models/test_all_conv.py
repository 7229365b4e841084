"""AllConv: names, slots, the authors' mean, sizes, start and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shiftnorm.models import AllConv, create_model

PLACES = ("conv", "norm", "activation")


class Add(nn.Module):
    """A slot filler that adds: the place it stands in shows in the output."""

    def __init__(self, channels: int, number: float) -> None:
        super().__init__()
        self.channels, self.number = channels, number

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        return x + self.number


def adding(number: float) -> Callable[[int], nn.Module]:
    return lambda channels: Add(channels, number)


def with_moments(model: AllConv) -> AllConv:
    """Running moments as after training: with mean 0 and variance 1 it would not matter what stands before a norm."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-1, 1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.2, 0.6)
    return model.eval()


def small(**arguments: object) -> AllConv:
    torch.manual_seed(1)
    return with_moments(AllConv(width=8, **arguments))


def authors_name(name: str) -> str:
    """The name in the authors' one list of layers, with a module in position 1 (after each convolution)."""
    if not name.startswith("stage"):
        return name
    stage, unit, layer, rest = name.split(".")
    unit_number = 3 * (int(stage[5:]) - 1) + int(unit)
    return f"features.{4 * unit_number + 2 * (unit_number // 3) + (0 if layer == 'conv' else 2)}.{rest}"


def test_shapes_and_order_are_the_authors(golden: Path) -> None:
    file = golden / "models" / "allconv_sn_pos1.json"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    listing = [(entry["name"], tuple(entry["shape"])) for entry in json.loads(file.read_text())["tensors"]]
    expected = [entry for entry in listing if ".selfnorm." not in entry[0]]
    assert [(authors_name(name), tuple(value.shape)) for name, value in AllConv().state_dict().items()] == expected


def test_parameter_counts() -> None:
    with torch.device("meta"):
        counts = [sum(p.numel() for p in model.parameters()) for model in (AllConv(), create_model("all_conv"))]
    assert counts == [1_409_674, 1_409_674]


def test_slots_stand_where_they_say() -> None:
    x = torch.randn(2, 3, 8, 8)

    def unit(**slots: Callable[[int], nn.Module]) -> nn.Module:
        return small(slots=slots).stage1[0]

    plain = unit()

    def activation(value: Tensor) -> Tensor:
        return value / (1 + torch.exp(-1.702 * value))

    same = torch.testing.assert_close
    same(plain(x), activation(plain.norm(plain.conv(x))))
    same(unit(conv=adding(1))(x), activation(plain.norm(plain.conv(x) + 1)))
    same(unit(norm=adding(1))(x), activation(plain.norm(plain.conv(x)) + 1))
    same(unit(activation=adding(1))(x), plain(x) + 1)
    same(unit(**dict.fromkeys(PLACES, adding(0)))(x), plain(x))


def test_names_do_not_depend_on_the_slots() -> None:
    plain = small().state_dict()
    slotted = small(slots={"conv": nn.BatchNorm2d})
    assert {name for name in slotted.state_dict() if "after_conv" not in name} == plain.keys()
    assert sum("after_conv.weight" in name for name in slotted.state_dict()) == 9


def test_the_mean_is_the_authors_on_their_size() -> None:
    model, x = small(), torch.randn(2, 3, 32, 32)
    maps: list[Tensor] = []
    model.stage3.register_forward_hook(lambda _, __, out: maps.append(out))
    logits = model(x)
    assert logits.std() > 0.1
    assert maps[0].shape == (2, 16, 10, 10)
    torch.testing.assert_close(logits, model.classifier(nn.AvgPool2d(8)(maps[0]).flatten(1)))


@pytest.mark.parametrize("size", [(12, 12), (13, 30), (32, 32), (64, 48)], ids=str)
def test_sizes(size: tuple[int, int]) -> None:
    model = small(num_classes=7, in_channels=2)
    assert model(torch.zeros(1, 2, *size)).shape == (1, 7)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((11, 32), "AllConv: images must be at least 12x12 pixels; a map of 2x8 .* next layer needs 3x3"),
        ((32, 3), "map of 16x1 .* needs 2x2"),
        ((1, 1), "map of 1x1"),
    ],
    ids=str,
)
def test_too_small(size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(1, 3, *size))


def test_stage_slots_and_norm() -> None:
    model = small(norm=nn.InstanceNorm2d, stage_slots={1: adding(0), 3: adding(0)})
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert sum(isinstance(module, nn.InstanceNorm2d) for module in model.modules()) == 9
    filled = {name: module.channels for name, module in model.named_modules() if isinstance(module, Add)}
    assert filled == {"after_stage1": 8, "after_stage3": 16}
    shapes: list[torch.Size] = []
    model.after_stage1.register_forward_hook(lambda _, __, out: shapes.append(out.shape))
    model(torch.zeros(1, 3, 16, 16))
    assert shapes == [(1, 8, 16, 16)]


def test_initialisation_is_the_authors() -> None:
    model = AllConv(slots={"norm": lambda channels: nn.Conv2d(channels, channels, 1)})
    for unit, fan_out in ((model.stage2[1], 9 * 192), (model.stage3[2], 192)):
        assert abs(unit.conv.weight.std().item() / np.sqrt(2 / fan_out) - 1) < 0.02
        assert unit.conv.bias.any()
    assert not model.classifier.bias.any()
    # A convolution in a slot keeps its own start, which is bounded by 1/sqrt(fan in).
    assert model.stage2[1].after_norm.weight.abs().max() <= 1 / np.sqrt(192)


def test_dropout_acts_in_training_only() -> None:
    model, x = small(norm=nn.InstanceNorm2d), torch.randn(2, 3, 16, 16)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    kept = small(norm=nn.InstanceNorm2d, dropout=0.0)
    torch.testing.assert_close(kept.train()(x), model.eval()(x))


def test_dropout_follows_both_poolings() -> None:
    model, calls = small(), []
    model.dropout.register_forward_hook(lambda _, inputs, __: calls.append(tuple(inputs[0].shape)))
    model(torch.zeros(1, 3, 16, 16))
    assert calls == [(1, 8, 8, 8), (1, 16, 4, 4)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1"),
        ({"width": 0}, ValueError, "width must be at least 1"),
        ({"in_channels": 0}, ValueError, "in_channels"),
        ({"dropout": 1.0}, ValueError, r"AllConv: dropout must be in \[0, 1\), got 1.0"),
        ({"slots": {"pre": nn.BatchNorm2d}}, ValueError, r"unknown slots \['pre'\]; .* conv, norm, activation"),
        ({"stage_slots": {0: nn.BatchNorm2d}}, ValueError, r"unknown stages \[0\]"),
        ({"norm": nn.BatchNorm2d(16)}, TypeError, "AllConv: norm must be a function"),
        ({"slots": {"norm": lambda channels: None}}, TypeError, r"slots\['norm'\] must return an nn.Module"),
    ],
)
def test_errors(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AllConv(**({"width": 8} | arguments))


def test_wrong_images() -> None:
    with pytest.raises(ValueError, match=r"AllConv: expected images of shape \(N, 3, H, W\), got \(2, 1, 32, 32\)"):
        small()(torch.zeros(2, 1, 32, 32))


def test_compiles_without_a_graph_break_exports_and_traces() -> None:
    model, x = small(slots={"conv": adding(1)}), torch.randn(2, 3, 12, 12)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))
    plain = small()
    torch.testing.assert_close(torch.fx.symbolic_trace(plain)(x), plain(x))
