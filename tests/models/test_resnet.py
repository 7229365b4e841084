"""ResNet: torchvision's numbers and names, the places for norms, the options, and the errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models._utils import IntermediateLayerGetter

from networks import Factory, Scale, authors_facts, by, layout, scales, shuffled, size
from shiftnorm import models
from shiftnorm.models import BasicBlock, Bottleneck, ResNet, SqueezeExcitation
from shiftnorm.models.residual_blocks import BlockStyle

same = torch.testing.assert_close
EACH_BLOCK = pytest.mark.parametrize("block", [BasicBlock, Bottleneck], ids=["basic", "bottleneck"])
TINY = (1, 1, 1, 1)
SHARED = [
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
]


def affine_instance_norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


def blocks_of(model: ResNet) -> Iterator[tuple[int, BasicBlock | Bottleneck]]:
    for number, stage in enumerate((model.layer1, model.layer2, model.layer3, model.layer4), start=1):
        for block in stage:
            assert isinstance(block, BasicBlock | Bottleneck)
            yield number, block


@pytest.mark.parametrize("name", SHARED)
def test_state_has_torchvisions_names_shapes_and_order(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = getattr(models, name)(), torchvision.models.get_model(name)
    assert layout(ours) == layout(theirs)
    assert [key for key, _ in ours.named_parameters()] == [key for key, _ in theirs.named_parameters()]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {}),
        ("resnet50", {}),
        ("resnext50_32x4d", {}),
        ("resnet50", {"replace_stride_with_dilation": [False, True, True]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)
def test_torchvisions_weights_load_and_compute_the_same(name: str, arguments: dict[str, object]) -> None:
    theirs = shuffled(torchvision.models.get_model(name, num_classes=7, **arguments))
    with torch.device("meta"):
        ours = getattr(models, name)(7, **arguments)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()), strict=True, assign=True)
    x = torch.randn(2, 3, 65, 64)
    for training in (False, True):
        expected, got = theirs.train(training)(x), ours.train(training)(x)
        same(got, expected, rtol=1e-6, atol=1e-6)
    for (key, buffer), (_, other) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        same(buffer, other, rtol=1e-6, atol=1e-6, msg=key)
    got.sum().backward()
    expected.sum().backward()
    same(ours.layer1[0].conv1.weight.grad, theirs.layer1[0].conv1.weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("zero", [False, True])
def test_the_same_seed_starts_torchvisions_network(zero: bool) -> None:
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18(zero_init_residual=zero).state_dict()
    torch.manual_seed(3)
    ours = models.resnet18(zero_init_last=zero).state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert zero == (not ours["layer3.1.bn2.weight"].any())


def test_ibn_nets_have_the_authors_parameter_counts(golden: Path) -> None:
    counts = authors_facts(golden, "ibnnet_parameter_counts")
    checked = 0
    for official, parameters in counts.items():
        name, _, kind = official.rpartition("_ibn_")
        if name.startswith("densenet"):
            continue
        constructor = getattr(models, name if "resnext" not in name else f"{name}_32x4d")
        # A joint IBN has BatchNorm's parameters; of IBN-b only the number of norms differs.
        ends = [affine_instance_norm, affine_instance_norm, None, None]
        arguments = {"stem_norm": affine_instance_norm, "stage_end": ends} if kind == "b" else {}
        with torch.device("meta"):
            assert size(constructor(**arguments)) == parameters, official
        checked += 1
    assert checked == 16


@pytest.mark.parametrize(("channels", "stride"), [(32, 1), (16, 1), (16, 2)], ids=["identity", "width", "stride"])
@EACH_BLOCK
def test_slots_stand_where_they_say(block: type[BasicBlock] | type[Bottleneck], channels: int, stride: int) -> None:
    planes = 32 // block.expansion
    x = torch.randn(2, channels, 8, 8)

    def make(pre_feeds_downsample: bool = False, squeeze: Factory | None = None, **slots: Factory) -> nn.Module:
        torch.manual_seed(1)
        style = BlockStyle(slots=slots, squeeze=squeeze, pre_feeds_downsample=pre_feeds_downsample)
        return shuffled(block(channels, planes, stride, style=style)).eval()

    plain = make()
    shortcut = x if plain.downsample is None else plain.downsample(x)
    assert (plain.downsample is None) == (channels == 32)
    branch, zero = plain.branch(x), torch.zeros_like(x)
    same(plain(x), (shortcut + branch).relu())
    same(make(residual=Scale)(x), shortcut.relu())
    same(make(squeeze=Scale)(x), shortcut.relu())
    same(make(identity=Scale)(x), branch.relu())
    same(make(post=by(-2))(x), (-2 * (shortcut + branch)).relu())
    same(make(pre=Scale)(x), (shortcut + plain.branch(zero)).relu())
    fed = x if plain.downsample is None else plain.downsample(zero)
    same(make(True, pre=Scale)(x), (fed + plain.branch(zero)).relu())
    # The module in `residual` sees what `se` made.
    both = make(squeeze=by(2), residual=lambda c: nn.Hardtanh(-1.0, 1.0))
    same(both(x), (shortcut + (2 * branch).clamp(-1, 1)).relu())


def test_norms_stand_where_they_say() -> None:
    model = ResNet(
        Bottleneck,
        (2, 1, 2, 1),
        norm=lambda channels: nn.GroupNorm(4, channels),
        stem_norm=nn.Identity,
        inner_norm=[nn.InstanceNorm2d, None, nn.InstanceNorm2d, None],
        slots={"post": Scale},
        stage_end=[affine_instance_norm, None, affine_instance_norm, None],
    )
    assert isinstance(model.bn1, nn.Identity)
    for number, block in blocks_of(model):
        assert isinstance(block.bn1, nn.InstanceNorm2d if number in (1, 3) else nn.GroupNorm)
        assert isinstance(block, Bottleneck)
        assert isinstance(block.bn2, nn.GroupNorm)
        assert isinstance(block.bn3, nn.GroupNorm)
        assert block.downsample is None or isinstance(block.downsample[1], nn.GroupNorm)
    for stage in (model.layer1, model.layer3):
        assert isinstance(stage[0].post, Scale)
        assert isinstance(stage[1].post, nn.InstanceNorm2d)
    assert isinstance(model.layer2[0].post, Scale)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert model.layer1[1].post.num_features == 256


@pytest.mark.parametrize(("number", "name"), [(0, "after_stem"), *((n, f"after_layer{n}") for n in (1, 2, 3, 4))])
@EACH_BLOCK
def test_stage_slots(block: type[BasicBlock] | type[Bottleneck], number: int, name: str) -> None:
    model = ResNet(block, TINY, 5, stage_slots={number: Scale}).eval()
    assert list(scales(model)) == [name]
    # Zeros leave nothing of the image; Scale itself checks the number of channels.
    logits = model(torch.randn(2, 3, 32, 32))
    same(logits[0], logits[1])


def test_empty_places_cost_nothing() -> None:
    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    def calls(model: nn.Module) -> int:
        with torch.no_grad(), Count() as count:
            model.eval()(torch.zeros(1, 3, 32, 32))
        return count.calls

    assert calls(models.resnet18()) == calls(torchvision.models.resnet18())


def test_squeeze_excitation_follows_its_formula_and_names() -> None:
    layer, x = SqueezeExcitation(32), torch.randn(2, 32, 3, 5)
    state = layer.state_dict()
    assert layout(layer) == [("fc.0.weight", (2, 32)), ("fc.2.weight", (32, 2))]
    gate = torch.sigmoid((x.mean((2, 3)) @ state["fc.0.weight"].T).relu() @ state["fc.2.weight"].T)
    same(layer(x), x * gate[..., None, None])
    with torch.device("meta"):
        names = [name for name, _ in layout(models.se_resnet50()) if name.startswith("layer1.0.")]
    assert names[-9:-4] == [
        "layer1.0.bn3.num_batches_tracked",
        "layer1.0.se.fc.0.weight",
        "layer1.0.se.fc.2.weight",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.weight",
    ]
    assert isinstance(models.se_resnet18(squeeze=Scale).layer4[1].se, Scale)


@pytest.mark.parametrize("stride_in", ["3x3", "1x1"])
@EACH_BLOCK
def test_dilation_computes_the_strided_network_densely(
    block: type[BasicBlock] | type[Bottleneck], stride_in: str
) -> None:
    torch.manual_seed(1)
    strided = shuffled(ResNet(block, (1, 2, 2, 2), include_top=False, stride_in=stride_in)).double().eval()
    dilated = ResNet(
        block,
        (1, 2, 2, 2),
        include_top=False,
        stride_in=stride_in,
        replace_stride_with_dilation=(True, False, True),
    )
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    dense, sparse = dilated.double().eval()(x), strided(x)
    assert dense.shape[2:] == (12, 8)
    same(dense[:, :, ::4, ::4], sparse)


def test_stride_in() -> None:
    for stride_in, first, second in (("3x3", 1, 2), ("1x1", 2, 1)):
        block = ResNet(Bottleneck, TINY, stride_in=stride_in).layer2[0]
        assert (block.conv1.stride[0], block.conv2.stride[0]) == (first, second)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (32, 32), (45, 31)], ids=str)
def test_any_size(stem: str, shape: tuple[int, int]) -> None:
    model = ResNet(BasicBlock, TINY, 7, in_channels=2, stem=stem).eval()
    assert model(torch.zeros(2, 2, *shape)).shape == (2, 7)
    assert model(torch.zeros(0, 2, *shape)).shape == (0, 7)
    model = ResNet(BasicBlock, TINY, in_channels=2, stem=stem, include_top=False).eval()
    side = 32 if stem == "imagenet" else 8
    assert model(torch.zeros(2, 2, *shape)).shape == (2, 512, -(-shape[0] // side), -(-shape[1] // side))
    assert not any(name.startswith("fc") for name in model.state_dict())


@EACH_BLOCK
def test_zero_init_last_starts_every_branch_at_zero(block: type[BasicBlock] | type[Bottleneck]) -> None:
    model = ResNet(block, (2, 1, 1, 1), zero_init_last=True)
    for _, each in blocks_of(model):
        assert not each.branch(torch.randn(2, each.conv1.in_channels, 4, 4)).any()
    with pytest.raises(ValueError, match=r"zero_init_last needs a last norm with a weight .* got Identity\(\)"):
        ResNet(block, TINY, norm=nn.Identity, zero_init_last=True)


def test_modules_from_factories_keep_their_start() -> None:
    model = ResNet(BasicBlock, TINY, slots={"post": lambda channels: nn.Conv2d(channels, channels, 1)})
    # torch's own start is bounded by 1/sqrt(fan in); a normal one is not.
    assert model.layer4[0].post.weight.abs().max() <= 1 / 512**0.5
    weight = model.layer4[0].conv2.weight
    assert abs(weight.std().item() / (2 / (9 * 512)) ** 0.5 - 1) < 0.01


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((3, 32, 32), r"\(3, 32, 32\); add a batch axis"),
        ((2, 32, 32, 3), r"\(2, 32, 32, 3\); move the channels forward"),
        ((2, 1, 32, 32), r"got \(2, 1, 32, 32\); build the network with in_channels=1"),
        ((2, 3, 0, 32), r"got \(2, 3, 0, 32\)$"),
        ((2, 3), r"expected images of shape \(N, 3, H, W\), got \(2, 3\)$"),
    ],
    ids=str,
)
def test_input_that_does_not_fit(shape: tuple[int, ...], advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        ResNet(BasicBlock, TINY)(torch.zeros(shape))


def test_another_first_convolution_decides_what_it_takes() -> None:
    model = ResNet(BasicBlock, TINY, 5).eval()
    model.conv1 = nn.Conv2d(1, 64, 3)
    assert model(torch.zeros(2, 1, 9, 9)).shape == (2, 5)
    model.conv1 = nn.Sequential(nn.Conv2d(4, 64, 3))
    assert model(torch.zeros(2, 4, 9, 9)).shape == (2, 5)


def test_compiles_exports_traces_copies_and_pickles() -> None:
    model = ResNet(BasicBlock, TINY, 5, slots={"post": affine_instance_norm}, squeeze=SqueezeExcitation).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    same(torch.compile(model, fullgraph=True, backend="eager")(x), expected)
    same(torch.export.export(model, (x,)).module()(x), expected)
    same(torch.fx.symbolic_trace(model)(x), expected)
    same(copy.deepcopy(model)(x), expected)
    same(pickle.loads(pickle.dumps(model))(x), expected)


def test_channels_last_stays() -> None:
    model = ResNet(Bottleneck, TINY, include_top=False).eval().to(memory_format=torch.channels_last)
    out = model(torch.zeros(2, 3, 64, 64).contiguous(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_torchvisions_segmentation_can_take_its_stages() -> None:
    model = ResNet(BasicBlock, TINY).eval()
    features = IntermediateLayerGetter(model, {"layer3": "aux", "layer4": "out"})(torch.zeros(1, 3, 64, 64))
    assert {name: tuple(value.shape) for name, value in features.items()} == {
        "aux": (1, 256, 4, 4),
        "out": (1, 512, 2, 2),
    }
