"""DenseNetCifar: names, slots, bottleneck, compression, sizes, start and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shiftnorm.models import DenseNetCifar, create_model


class Scale(nn.Module):
    """A slot filler that multiplies: the place it stands in shows in the output."""

    def __init__(self, channels: int, factor: float = 0.0) -> None:
        super().__init__()
        self.channels, self.factor = channels, factor

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        return self.factor * x


def by(factor: float) -> Callable[[int], nn.Module]:
    return lambda channels: Scale(channels, factor)


def with_moments(model: DenseNetCifar) -> DenseNetCifar:
    """Running moments as after training: with mean 0 and variance 1 it would not matter what stands before a norm."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-1, 1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.2, 0.6)
    return model.eval()


def small(**arguments: object) -> DenseNetCifar:
    torch.manual_seed(1)
    return with_moments(DenseNetCifar(16, 4, **arguments))


def test_names_shapes_and_order_are_the_authors(golden: Path) -> None:
    file = golden / "models" / "densenet40_sn_conv1_post.json"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    listing = [(entry["name"], tuple(entry["shape"])) for entry in json.loads(file.read_text())["tensors"]]
    expected = [entry for entry in listing if ".cnsn." not in entry[0]]
    assert [(name, tuple(value.shape)) for name, value in DenseNetCifar().state_dict().items()] == expected


@pytest.mark.parametrize(
    ("name", "arguments", "parameters"),
    [
        ("densenet40_12", {}, 1_059_298),
        ("densenet100_12", {"depth": 100}, 7_083_538),
        ("densenet_bc100_12", {"depth": 100, "bottleneck": True, "compression": 0.5}, 769_162),
    ],
)
def test_parameter_counts(name: str, arguments: dict[str, object], parameters: int) -> None:
    with torch.device("meta"):
        models = DenseNetCifar(**arguments), create_model(name)
    assert [sum(parameter.numel() for parameter in model.parameters()) for model in models] == [parameters] * 2


@pytest.mark.parametrize("size", [(4, 4), (5, 30), (32, 32), (64, 48)], ids=str)
def test_any_size_also_for_one_image(size: tuple[int, int]) -> None:
    model = small(num_classes=7, in_channels=2)
    x = torch.randn(3, 2, *size)
    assert model(x).shape == (3, 7)
    assert model(x[:1]).shape == (1, 7)
    torch.testing.assert_close(model(x[:1]), model(x)[:1])


@pytest.mark.parametrize("size", [(3, 32), (32, 2)], ids=str)
def test_too_small(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="DenseNetCifar: images must be at least 4x4 pixels; a map of"):
        small()(torch.zeros(1, 3, *size))


def test_slots_stand_where_they_say() -> None:
    x = torch.randn(2, 8, 8, 8)

    def layer(**slots: Callable[[int], nn.Module]) -> nn.Module:
        return small(slots=slots).dense1[0]

    plain = layer()

    def new(start: Tensor) -> Tensor:
        return plain.conv1(F.relu(plain.bn1(start)))

    same = torch.testing.assert_close
    same(plain(x), torch.cat([x, new(x)], 1))
    # What is concatenated has passed through conv1_pre; conv1_post sees the new features only.
    same(layer(conv1_pre=by(2))(x), torch.cat([2 * x, new(2 * x)], 1))
    same(layer(conv1_post=by(3))(x), torch.cat([x, 3 * new(x)], 1))
    same(layer(conv1_pre=by(1), conv1_post=by(1))(x), plain(x))
    assert [block.conv1_pre.channels for block in small(slots={"conv1_pre": by(1)}).dense2] == [24, 28, 32, 36]


def test_slots_stand_where_they_say_with_a_bottleneck() -> None:
    x = torch.randn(2, 8, 8, 8)

    def layer(**slots: Callable[[int], nn.Module]) -> nn.Module:
        return small(bottleneck=True, slots=slots).dense1[0]

    plain = layer()

    def new(start: Tensor, factor: float = 1.0) -> Tensor:
        return plain.conv2(F.relu(plain.bn2(factor * plain.conv1(F.relu(plain.bn1(start))))))

    same = torch.testing.assert_close
    assert plain.conv1.weight.shape == (16, 8, 1, 1) and plain.conv2.weight.shape == (4, 16, 3, 3)
    same(plain(x), torch.cat([x, new(x)], 1))
    same(layer(conv1_pre=by(2))(x), torch.cat([2 * x, new(2 * x)], 1))
    same(layer(conv1_post=by(3))(x), torch.cat([x, new(x, 3.0)], 1))
    same(layer(conv2_post=by(3))(x), torch.cat([x, 3 * new(x)], 1))
    assert layer(conv1_post=by(1)).conv1_post.channels == 16
    assert layer(conv2_post=by(1)).conv2_post.channels == 4


def test_compression_keeps_a_share_of_the_channels() -> None:
    model = small(compression=0.5)
    assert [model.trans1.conv1.out_channels, model.trans2.conv1.out_channels, model.fc.in_features] == [12, 14, 30]
    x = torch.randn(1, 24, 6, 6)
    expected = F.avg_pool2d(model.trans1.conv1(F.relu(model.trans1.bn1(x))), 2)
    torch.testing.assert_close(model.trans1(x), expected)


def test_norms_per_block_and_stage_slots() -> None:
    def group(channels: int) -> nn.Module:
        return nn.GroupNorm(2, channels)

    model = small(norm=group, inner_norm=[nn.InstanceNorm2d, None, nn.InstanceNorm2d], stage_slots={2: by(0)})
    kinds = [[type(layer.bn1) for layer in block] for block in (model.dense1, model.dense2, model.dense3)]
    every_third = [nn.InstanceNorm2d, nn.GroupNorm, nn.GroupNorm, nn.InstanceNorm2d]
    assert kinds == [every_third, [nn.GroupNorm] * 4, every_third]
    assert [type(layer.bn1) for layer in small(inner_norm=[group] * 3, inner_every=1).dense1] == [nn.GroupNorm] * 4
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert [name for name, module in model.named_modules() if isinstance(module, Scale)] == ["after_dense2"]
    # Zeros after block 2 leave nothing of the image.
    logits = model(torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(logits[0], logits[1])


def test_initialisation_is_the_authors() -> None:
    model = DenseNetCifar(slots={"conv1_post": lambda channels: nn.Conv2d(channels, channels, 1)})
    for conv, fan_out in ((model.dense3[11].conv1, 9 * 12), (model.trans2.conv1, 312)):
        assert abs(conv.weight.std().item() / np.sqrt(2 / fan_out) - 1) < 0.02
    assert not model.fc.bias.any()
    # A convolution in a slot keeps its own start, which is bounded by 1/sqrt(fan in).
    assert model.dense1[0].conv1_post.weight.abs().max() <= 1 / np.sqrt(12)


def test_dropout_acts_in_training_on_new_features_only() -> None:
    layer = small(dropout=0.5).dense1[0]
    x = torch.randn(2, 8, 8, 8)
    assert torch.equal(layer(x), layer(x))
    first, second = layer.train()(x), layer(x)
    assert torch.equal(first[:, :8], x) and torch.equal(second[:, :8], x)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"depth": 41}, ValueError, r"3n \+ 4 with n ≥ 1 for bottleneck=False, got 41; the nearest are 40 and 43"),
        ({"depth": 43, "bottleneck": True}, ValueError, r"6n \+ 4 .* got 43; the nearest are 40 and 46"),
        ({"depth": 4}, ValueError, "nearest are 7 and 10"),
        ({"growth_rate": 0}, ValueError, "growth_rate must be at least 1"),
        ({"num_classes": 0}, ValueError, "num_classes"),
        ({"in_channels": 0}, ValueError, "in_channels"),
        ({"inner_every": 0}, ValueError, "inner_every must be at least 1"),
        ({"compression": 0.0}, ValueError, r"compression must be in \(0, 1\], got 0.0"),
        ({"compression": 1.5}, ValueError, r"compression must be in \(0, 1\], got 1.5"),
        ({"dropout": -0.1}, ValueError, r"dropout must be in \[0, 1\), got -0.1"),
        ({"slots": {"pre": Scale}}, ValueError, r"unknown slots \['pre'\]; a block has conv1_pre, conv1_post"),
        ({"slots": {"conv2_post": Scale}}, ValueError, "'conv2_post' needs bottleneck=True"),
        ({"stage_slots": {4: Scale}}, ValueError, r"unknown stages \[4\]"),
        ({"inner_norm": [None] * 4}, ValueError, "one entry for each of the 3 stages .* got 4"),
        ({"norm": nn.BatchNorm2d(16)}, TypeError, r"DenseNetCifar: norm must be a function .* got BatchNorm2d\(16"),
        ({"inner_norm": [nn.Identity(), None, None]}, TypeError, "DenseNetCifar: inner_norm must be a function"),
        ({"slots": {"conv1_pre": lambda channels: 0}}, TypeError, r"slots\['conv1_pre'\] must return an nn.Module"),
    ],
)
def test_errors(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DenseNetCifar(**({"depth": 10, "growth_rate": 4} | arguments))


def test_wrong_images() -> None:
    with pytest.raises(
        ValueError, match=r"DenseNetCifar: expected images of shape \(N, 3, H, W\), got \(2, 32, 32, 3\)"
    ):
        small()(torch.zeros(2, 32, 32, 3))


def test_compiles_without_a_graph_break_exports_and_traces() -> None:
    model, x = small(slots={"conv1_post": by(2)}, dropout=0.1), torch.randn(2, 3, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))
    plain = small()
    torch.testing.assert_close(torch.fx.symbolic_trace(plain)(x), plain(x))
