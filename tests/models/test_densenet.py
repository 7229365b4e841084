"""DenseNet: parity with torchvision, the places of IBN-a, slots, sizes and errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shiftnorm import models
from shiftnorm.models import DenseNet, create_model, densenet121
from shiftnorm.norms import IBN

NAMES = ("densenet121", "densenet161", "densenet169", "densenet201")
PARAMETERS = dict(zip(NAMES, (7_978_856, 28_681_000, 14_149_480, 20_013_928), strict=True))


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


def with_moments(model: DenseNet) -> DenseNet:
    """Running moments as after training: with mean 0 and variance 1 it would not matter what stands before a norm."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-1, 1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.2, 0.6)
    return model.eval()


def small(**arguments: object) -> DenseNet:
    torch.manual_seed(1)
    options = {"num_classes": 10} | arguments
    return with_moments(DenseNet(4, (4, 2, 2, 1), 8, 2, **options))


def layout(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(value.shape)) for name, value in model.state_dict().items()]


@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_order_and_counts_are_torchvisions(name: str) -> None:
    theirs = pytest.importorskip("torchvision").models.get_model
    with torch.device("meta"):
        ours, expected = create_model(name), theirs(name)
    assert layout(ours) == layout(expected)
    assert sum(parameter.numel() for parameter in ours.parameters()) == PARAMETERS[name]


def randomised(model: nn.Module) -> nn.Module:
    """Weights and running moments as a trained network has them: none at its start."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.6, 1.4)
                module.bias.uniform_(-0.2, 0.2)
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("name", ["densenet121", "densenet161"])
def test_torchvisions_weights_give_the_same_logits(name: str) -> None:
    theirs = randomised(pytest.importorskip("torchvision").models.get_model(name, num_classes=12))
    with torch.device("meta"):
        ours = create_model(name, num_classes=12)
    ours.load_state_dict({key: value.clone() for key, value in theirs.state_dict().items()}, strict=True, assign=True)
    x = torch.randn(4, 3, 48, 64)
    with torch.no_grad():
        for mode in (False, True):
            expected = theirs.train(mode)(x)
            torch.testing.assert_close(
                ours.train(mode)(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
            )
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_the_start_is_torchvisions() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(3)
    theirs = torchvision.models.densenet121(num_classes=10)
    torch.manual_seed(3)
    ours = densenet121(num_classes=10)
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize(("name", "count"), list(zip(NAMES, (14, 18, 17, 22), strict=True)))
def test_places_of_ibn_a(name: str, count: int) -> None:
    ibn = partial(IBN, ratio=0.4, order="batch_first")
    with torch.device("meta"):
        model = getattr(models, name)(inner_norm=[ibn, ibn, ibn, None])
    places = [path.split(".")[1:] for path, module in model.named_modules() if isinstance(module, IBN)]
    assert len(places) == count
    assert {norm for *_, norm in places} == {"norm1"}
    assert {int(layer.removeprefix("denselayer")) % 3 for _, layer, _ in places} == {1}
    assert {block for block, *_ in places} == {"denseblock1", "denseblock2", "denseblock3"}
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    first = model.features.denseblock1.denselayer1.norm1
    assert first.num_features - first.num_instance == int(first.num_features * 0.6)


def test_inner_norm_can_stand_in_every_layer() -> None:
    model = small(inner_norm=[None, nn.InstanceNorm2d, None, None], inner_every=1)
    kinds = [[type(layer.norm1) for layer in getattr(model.features, f"denseblock{number}")] for number in (1, 2)]
    assert kinds == [[nn.BatchNorm2d] * 4, [nn.InstanceNorm2d] * 2]


def test_slots_stand_where_they_say() -> None:
    x = torch.randn(2, 8, 8, 8)

    def layer(**slots: Callable[[int], nn.Module]) -> nn.Module:
        return small(slots=slots).features.denseblock1[0]

    plain = layer()

    def new(start: Tensor) -> Tensor:
        return plain.conv2(F.relu(plain.norm2(plain.conv1(F.relu(plain.norm1(start))))))

    same = torch.testing.assert_close
    same(plain(x), torch.cat([x, new(x)], 1))
    # What is concatenated stays raw.
    same(layer(pre=by(2))(x), torch.cat([x, new(2 * x)], 1))
    same(layer(post=by(3))(x), torch.cat([x, 3 * new(x)], 1))
    same(layer(pre=by(1), post=by(1))(x), plain(x))
    blocks = small(slots={"pre": by(1), "post": by(1)}).features.denseblock2
    assert [(block.pre.channels, block.post.channels) for block in blocks] == [(12, 4), (16, 4)]


def test_stage_slots_and_norm() -> None:
    def group(channels: int) -> nn.Module:
        return nn.GroupNorm(1, channels)

    model = small(norm=group, stage_slots=dict.fromkeys((0, 2, 4), by(1)))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    filled = {name: module.channels for name, module in model.named_modules() if isinstance(module, Scale)}
    assert filled == {"features.after_stem": 8, "features.after_denseblock2": 20, "features.after_denseblock4": 13}
    x = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(model(x), small(norm=group)(x))
    # Zeros after the second block leave nothing of the image.
    logits = small(norm=group, stage_slots={2: by(0)})(x)
    torch.testing.assert_close(logits[0], logits[1])


def test_without_the_top() -> None:
    whole, headless = small(), small(include_top=False)
    headless.load_state_dict(
        {name: value for name, value in whole.state_dict().items() if not name.startswith("classifier")}
    )
    x = torch.randn(2, 3, 64, 96)
    feature = headless(x)
    assert feature.shape == (2, 13, 2, 3) and feature.min() >= 0
    torch.testing.assert_close(whole.classifier(feature.mean((2, 3))), whole(x))


@pytest.mark.parametrize("size", [(29, 29), (30, 61), (224, 32)], ids=str)
def test_sizes(size: tuple[int, int]) -> None:
    assert small(in_channels=2)(torch.zeros(1, 2, *size)).shape == (1, 10)


@pytest.mark.parametrize("size", [(28, 64), (64, 28), (1, 1)], ids=str)
def test_too_small(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"DenseNet: images must be at least 29x29 pixels; a map of .* Enlarge"):
        small()(torch.zeros(1, 3, *size))


def test_a_stem_without_stride_takes_smaller_images() -> None:
    model = small()
    model.features.conv0, model.features.pool0 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.Identity()
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_dropout_acts_in_training_on_new_features_only() -> None:
    layer = small(dropout=0.5).features.denseblock1[0]
    x = torch.randn(2, 8, 8, 8)
    assert torch.equal(layer(x), layer(x))
    first, second = layer.train()(x), layer(x)
    assert torch.equal(first[:, :8], x) and torch.equal(second[:, :8], x)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"growth_rate": 0}, ValueError, "growth_rate must be at least 1"),
        ({"num_init_features": 0}, ValueError, "num_init_features"),
        ({"bn_size": 0}, ValueError, "bn_size"),
        ({"num_classes": 0}, ValueError, "num_classes"),
        ({"in_channels": 0}, ValueError, "in_channels"),
        ({"inner_every": 0}, ValueError, "inner_every"),
        ({"block_config": (1, 1, 1)}, ValueError, r"four layer counts from 1, .* got \(1, 1, 1\)"),
        ({"block_config": (1, 0, 1, 1)}, ValueError, "four layer counts from 1"),
        ({"dropout": 1}, ValueError, r"DenseNet: dropout must be in \[0, 1\), got 1"),
        ({"slots": {"identity": Scale}}, ValueError, r"unknown slots \['identity'\]; a block has pre, post"),
        ({"stage_slots": {5: Scale}}, ValueError, r"unknown stages \[5\]"),
        ({"inner_norm": [None] * 3}, ValueError, "one entry for each of the 4 stages .* got 3"),
        ({"norm": nn.BatchNorm2d(16)}, TypeError, r"DenseNet: norm must be a function .* got BatchNorm2d\(16"),
        ({"inner_norm": [Scale(8), None, None, None]}, TypeError, "DenseNet: inner_norm must be a function"),
        ({"slots": {"post": lambda channels: 0}}, TypeError, r"slots\['post'\] must return an nn.Module"),
        ({"stage_slots": {0: nn.Identity()}}, TypeError, r"stage_slots\[0\] must be a function"),
    ],
)
def test_errors(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    defaults = {"growth_rate": 4, "block_config": (1, 1, 1, 1), "num_init_features": 8}
    with pytest.raises(error, match=message):
        DenseNet(**(defaults | arguments))


def test_wrong_images() -> None:
    with pytest.raises(ValueError, match=r"DenseNet: expected images of shape \(N, 3, H, W\), got \(2, 1, 32, 32\)"):
        small()(torch.zeros(2, 1, 32, 32))


def test_compiles_without_a_graph_break_exports_and_traces() -> None:
    model, x = small(slots={"post": by(2)}, dropout=0.1), torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))
    plain = small()
    torch.testing.assert_close(torch.fx.symbolic_trace(plain)(x), plain(x))
