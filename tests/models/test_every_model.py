"""What all backbones promise alike: the authors' names, sizes, places, dropout, and that tools can take them."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from networks import FACTS, Scale, authors_facts, by, group_norm, layout, scales, size, small
from shiftnorm import models
from shiftnorm.models import (
    AllConv,
    DenseNet,
    DenseNetCifar,
    ResNeXtCifar,
    WideResNet,
    create_model,
)

Network = type[nn.Module]
EACH = pytest.mark.parametrize("network", FACTS, ids=lambda network: network.__name__)


def authors_name_in_all_conv(name: str) -> str:
    """The name in the authors' one list of layers, with a module in position 1 (after each convolution)."""
    if not name.startswith("stage"):
        return name
    stage, unit, layer, rest = name.split(".")
    unit_number = 3 * (int(stage[5:]) - 1) + int(unit)
    return f"features.{4 * unit_number + 2 * (unit_number // 3) + (0 if layer == 'conv' else 2)}.{rest}"


@pytest.mark.parametrize(
    ("network", "file"),
    [
        (AllConv, "allconv_sn_pos1"),
        (DenseNetCifar, "densenet40_sn_conv1_post"),
        (ResNeXtCifar, "resnext29_sn_post"),
        (WideResNet, "wrn40_2_cn_post_neither"),
    ],
)
def test_names_shapes_and_order_are_the_authors(network: Network, file: str, golden: Path) -> None:
    listing = [(entry["name"], tuple(entry["shape"])) for entry in authors_facts(golden, file)["tensors"]]
    expected = [entry for entry in listing if not re.search(r"\.(selfnorm|cnsn)\.", entry[0])]
    rename = authors_name_in_all_conv if network is AllConv else str
    assert [(rename(name), shape) for name, shape in layout(network())] == expected


@pytest.mark.parametrize(
    ("make", "name", "parameters"),
    [
        (AllConv, "all_conv", 1_409_674),
        (DenseNetCifar, "densenet40_12", 1_059_298),
        (partial(DenseNetCifar, depth=100), "densenet100_12", 7_083_538),
        (partial(DenseNetCifar, depth=100, bottleneck=True, compression=0.5), "densenet_bc100_12", 769_162),
        (partial(ResNeXtCifar, 29, 4, 32), "resnext29_4x32", 6_807_882),
        (partial(ResNeXtCifar, 29, 8, 64), "resnext29_8x64", 34_426_698),
        (partial(WideResNet, 10, 1), None, 77_850),
        (partial(WideResNet, 16, 1), None, 175_066),
        (partial(WideResNet, 40, 2), "wide_resnet40_2", 2_243_546),
        (partial(WideResNet, 28, 10), "wide_resnet28_10", 36_479_194),
        (models.resnext101_32x4d, "resnext101_32x4d", 44_177_704),
        (models.resnext152_32x4d, "resnext152_32x4d", 59_951_400),
        (models.se_resnet18, "se_resnet18", 11_776_552),
        (models.se_resnet34, "se_resnet34", 21_954_856),
        (models.se_resnet50, "se_resnet50", 28_071_976),
    ],
)
def test_parameter_counts(make: Callable[[], nn.Module], name: str | None, parameters: int) -> None:
    with torch.device("meta"):
        assert size(make()) == parameters
        assert name is None or size(create_model(name)) == parameters


@pytest.mark.parametrize("name", [*models.resnets.__all__, *(f"densenet{depth}" for depth in (121, 161, 169, 201))])
def test_constructors_of_published_networks_bear_their_names(name: str) -> None:
    constructor = getattr(models, name)
    assert constructor.__name__ == constructor.__qualname__ == name
    assert pickle.loads(pickle.dumps(constructor)) is constructor
    assert f"for weight in {name}().parameters())" in constructor.__doc__


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        *((AllConv, shape) for shape in ((12, 12), (13, 30), (32, 32), (64, 48))),
        *((DenseNet, shape) for shape in ((29, 29), (30, 61), (224, 32))),
        *((DenseNetCifar, shape) for shape in ((4, 4), (5, 30), (32, 32), (64, 48))),
        *((ResNeXtCifar, shape) for shape in ((1, 1), (7, 9), (32, 32), (64, 48))),
        *((WideResNet, shape) for shape in ((1, 1), (8, 8), (31, 45), (32, 32), (64, 64))),
    ],
)
def test_sizes_also_for_one_image(network: Network, shape: tuple[int, int]) -> None:
    model = small(network, num_classes=7, in_channels=2).double()
    x = torch.randn(3, 2, *shape, dtype=torch.float64)
    assert model(x).shape == (3, 7)
    assert model(x[:1]).shape == (1, 7)
    torch.testing.assert_close(model(x[:1]), model(x)[:1])


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (AllConv, (11, 32), "a map of 2x8 .* next layer needs 3x3"),
        (AllConv, (32, 3), "a map of 16x1 .* needs 2x2"),
        (AllConv, (1, 1), "a map of 1x1"),
        (DenseNet, (28, 64), "a map of .* Enlarge"),
        (DenseNet, (64, 28), "a map of .* Enlarge"),
        (DenseNet, (1, 1), "a map of .* Enlarge"),
        (DenseNetCifar, (3, 32), "a map of"),
        (DenseNetCifar, (32, 2), "a map of"),
    ],
)
def test_too_small(network: Network, shape: tuple[int, int], message: str) -> None:
    side = FACTS[network].smallest
    message = rf"^{network.__name__}: images must be at least {side}x{side} pixels; {message}"
    with pytest.raises(ValueError, match=message):
        small(network)(torch.zeros(1, 3, *shape))


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (AllConv, (2, 1, 32, 32)),
        (DenseNet, (2, 1, 32, 32)),
        (DenseNetCifar, (2, 32, 32, 3)),
        (ResNeXtCifar, (3, 32, 32)),
        (WideResNet, (2, 1, 8, 8)),
    ],
)
def test_wrong_images(network: Network, shape: tuple[int, ...]) -> None:
    message = f"{network.__name__}: expected images of shape (N, 3, H, W), got {shape}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        small(network)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("network", "number", "name"),
    [(network, *stage) for network, facts in FACTS.items() for stage in zip(facts.numbers, facts.stages, strict=True)],
)
def test_a_stage_slot_is_behind_its_stage(network: Network, number: int, name: str) -> None:
    x = torch.randn(2, 3, 40, 40)
    model = small(network, stage_slots={number: Scale})
    assert scales(model) == {name: FACTS[network].stages[name]}
    # Zeros leave nothing of the image.
    logits = model(x)
    torch.testing.assert_close(logits[0], logits[1])
    torch.testing.assert_close(small(network, stage_slots={number: by(1)})(x), small(network)(x))


@EACH
def test_stage_slots_can_be_filled_at_once(network: Network) -> None:
    facts, x = FACTS[network], torch.randn(2, 3, 40, 40)
    model = small(network, norm=group_norm, stage_slots=dict.fromkeys(facts.numbers, by(1)))
    assert scales(model) == facts.stages
    torch.testing.assert_close(model(x), small(network, norm=group_norm)(x))


@EACH
def test_every_norm_comes_from_the_factory(network: Network) -> None:
    def norms(model: nn.Module, kind: type[nn.Module]) -> list[str]:
        return [name for name, module in model.named_modules() if isinstance(module, kind)]

    plain, other = small(network), small(network, norm=group_norm)
    assert norms(other, nn.GroupNorm) == norms(plain, nn.BatchNorm2d) != []
    assert norms(other, nn.BatchNorm2d) == []


@EACH
def test_compiles_without_a_graph_break_exports_traces_copies_and_pickles(network: Network) -> None:
    facts = FACTS[network]
    dropout = {"dropout": 0.1} if facts.dropout else {}
    model = small(network, slots={facts.slots[0]: by(2), facts.slots[1]: by(3)}, **dropout)
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), expected)
    plain = small(network)
    torch.testing.assert_close(torch.fx.symbolic_trace(plain)(x), plain(x))


@pytest.mark.parametrize("network", [AllConv, WideResNet])
def test_dropout_acts_in_training_only(network: Network) -> None:
    # Instance norms do the same in training, so that a difference is dropout's.
    model, x = small(network, norm=nn.InstanceNorm2d, dropout=0.5), torch.randn(4, 3, 16, 16)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    kept = small(network, norm=nn.InstanceNorm2d, dropout=0.0)
    torch.testing.assert_close(kept.train()(x), model.eval()(x))


@pytest.mark.parametrize("network", [DenseNet, DenseNetCifar])
def test_dropout_acts_in_training_on_new_features_only(network: Network) -> None:
    model, x = small(network, dropout=0.5), torch.randn(2, 8, 8, 8)
    layer = model.features.denseblock1[0] if network is DenseNet else model.dense1[0]
    assert torch.equal(layer(x), layer(x))
    first, second = layer.train()(x), layer(x)
    assert torch.equal(first[:, :8], x) and torch.equal(second[:, :8], x)
    assert not torch.equal(first, second)
