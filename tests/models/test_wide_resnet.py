"""WideResNet: shapes, names, slots and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shiftnorm.models import WideResNet


class Scale(nn.Module):
    """A slot filler that multiplies: the place it stands in shows in the output."""

    def __init__(self, channels: int, factor: float = 0.0) -> None:
        super().__init__()
        self.channels, self.factor = channels, factor

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        return self.factor * x


def test_names_shapes_and_order_are_the_authors(golden: Path) -> None:
    file = golden / "models" / "wrn40_2_cn_post_neither.json"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    expected = [(entry["name"], tuple(entry["shape"])) for entry in json.loads(file.read_text())["tensors"]]
    assert [(name, tuple(value.shape)) for name, value in WideResNet().state_dict().items()] == expected


@pytest.mark.parametrize(
    ("depth", "widen", "parameters"), [(10, 1, 77_850), (16, 1, 175_066), (40, 2, 2_243_546), (28, 10, 36_479_194)]
)
def test_parameter_counts(depth: int, widen: int, parameters: int) -> None:
    with torch.device("meta"):
        model = WideResNet(depth, widen)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (31, 45), (32, 32), (64, 64)], ids=str)
def test_any_size(size: tuple[int, int]) -> None:
    model = WideResNet(10, 1, 7, in_channels=2).eval()
    assert model(torch.zeros(2, 2, *size)).shape == (2, 7)


@pytest.mark.parametrize("width", [1, 2])
def test_slots_stand_where_they_say(width: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, 8, 8)

    def block(**slots: Callable[[int], nn.Module]) -> nn.Module:
        torch.manual_seed(1)
        return WideResNet(10, width, slots=slots).block1.layer[0].eval()

    plain = block()
    activated = F.relu(plain.bn1(x))
    shortcut = x if width == 1 else plain.conv_shortcut(activated)
    branch = plain.conv2(F.relu(plain.bn2(plain.conv1(activated))))
    assert isinstance(plain.conv_shortcut, nn.Identity) == (width == 1)
    same = torch.testing.assert_close
    same(plain(x), shortcut + branch)
    same(block(residual=Scale)(x), shortcut)
    same(block(identity=Scale)(x), branch)
    same(block(post=lambda channels: Scale(channels, 3.0))(x), 3 * (shortcut + branch))
    # A branch that starts from zeros: before bn1 where the width stays, after bn1 and ReLU where it changes.
    zero = torch.zeros_like(x)
    start = F.relu(plain.bn1(zero)) if width == 1 else zero
    same(block(pre=Scale)(x), shortcut + plain.conv2(F.relu(plain.bn2(plain.conv1(start)))))
    everywhere = block(**dict.fromkeys(("pre", "residual", "identity", "post"), lambda c: Scale(c, 1.0)))
    same(everywhere(x), plain(x))


def test_norms_per_stage_and_stage_slots() -> None:
    def group(channels: int) -> nn.Module:
        return nn.GroupNorm(4, channels)

    model = WideResNet(
        16, 1, norm=group, inner_norm=[nn.InstanceNorm2d, nn.InstanceNorm2d, None], stage_slots={2: Scale}
    )
    for number, inner in ((1, nn.InstanceNorm2d), (2, nn.InstanceNorm2d), (3, nn.GroupNorm)):
        for block in getattr(model, f"block{number}").layer:
            assert isinstance(block.bn1, nn.GroupNorm)
            assert type(block.bn2) is inner
    assert isinstance(model.bn1, nn.GroupNorm)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    # Zeros after stage 2 leave nothing of the image.
    logits = model.eval()(torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(logits[0], logits[1])
    assert [name for name, module in model.named_modules() if isinstance(module, Scale)] == ["after_block2"]


def test_initialisation_is_the_authors() -> None:
    torch.manual_seed(0)
    model = WideResNet(16, 4, slots={"post": lambda channels: nn.Conv2d(channels, channels, 1)})
    weight = model.block3.layer[1].conv1.weight
    assert abs(weight.std().item() / np.sqrt(2 / (9 * 256)) - 1) < 0.01
    assert not model.fc.bias.any()
    # A convolution in a slot keeps its own start, which is bounded by 1/sqrt(fan in); a normal one is not.
    assert model.block3.layer[0].post.weight.abs().max() <= 1 / np.sqrt(256)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model, x = WideResNet(10, 1, dropout=0.5), torch.randn(4, 3, 8, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depth": 18}, ValueError, r"6n \+ 4 .* got 18; the nearest are 16 and 22"),
        ({"depth": 4}, ValueError, "nearest are 10 and 16"),
        ({"widen_factor": 0}, ValueError, "widen_factor must be at least 1"),
        ({"num_classes": 0}, ValueError, "num_classes"),
        ({"in_channels": 0}, ValueError, "in_channels"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        (
            {"slots": {"after": Scale}},
            ValueError,
            r"unknown slots \['after'\]; a block has pre, residual, identity, post",
        ),
        ({"stage_slots": {4: Scale}}, ValueError, r"unknown stages \[4\]"),
        ({"inner_norm": [None, None]}, ValueError, "one entry for each of the 3 stages .* got 2"),
        ({"norm": nn.BatchNorm2d(16)}, TypeError, r"norm must be a function .* got BatchNorm2d\(16"),
        ({"slots": {"post": nn.Identity()}}, TypeError, r"slots\['post'\] must be a function"),
        ({"norm": lambda channels: None}, TypeError, "norm must return an nn.Module, returned None for 16 channels"),
    ],
)
def test_errors(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        WideResNet(**({"depth": 10, "widen_factor": 1} | arguments))


def test_input_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"WideResNet: expected images of shape \(N, 3, H, W\), got \(2, 1, 8, 8\)"):
        WideResNet(10, 1)(torch.zeros(2, 1, 8, 8))


def test_compiles_without_a_graph_break_and_exports() -> None:
    model, x = WideResNet(10, 1, slots={"post": Scale}, dropout=0.1).eval(), torch.randn(2, 3, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))
