"""Which blocks a model has, their stages and channels, and which places a block offers."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import nn

from shiftnorm.models import DenseNetCifar, ResNeXtCifar, WideResNet, create_model
from shiftnorm.surgery.blocks import open_block
from shiftnorm.surgery.families import FAMILIES, Place, channels_at, find_blocks, is_empty, place_of, stages
from shiftnorm.surgery.own_blocks import MORE_SLOTS, SLOTS

timm = pytest.importorskip("timm")
tv = pytest.importorskip("torchvision").models


def timm_net(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False, num_classes=3)


COUNTS = {
    "resnet50": (lambda: tv.resnet50(num_classes=2), [3, 4, 6, 3]),
    "wide_resnet50_2": (lambda: tv.wide_resnet50_2(num_classes=2), [3, 4, 6, 3]),
    "densenet121": (lambda: tv.densenet121(num_classes=2), [6, 12, 24, 16]),
    "convnext_tiny": (lambda: tv.convnext_tiny(num_classes=2), [3, 3, 9, 3]),
    "efficientnet_b0": (lambda: tv.efficientnet_b0(num_classes=2), [1, 2, 2, 3, 3, 4, 1]),
    "mobilenet_v2": (lambda: tv.mobilenet_v2(num_classes=2), [1, 2, 3, 7, 4]),
    "timm regnetx_002": (timm_net("regnetx_002"), [1, 1, 4, 7]),
    "timm resnet50": (timm_net("resnet50"), [3, 4, 6, 3]),
    "timm convnext_tiny": (timm_net("convnext_tiny"), [3, 3, 9, 3]),
    "timm dla34": (timm_net("dla34"), [2, 4, 4, 2]),
    "timm cspresnext50": (timm_net("cspresnext50"), [3, 3, 5, 2]),
    "timm hrnet_w18_small": (timm_net("hrnet_w18_small"), [1, 4, 6, 8, 1, 1, 1, 1]),
    "own wrn-16-1": (lambda: WideResNet(16, 1), [2, 2, 2]),
    "own resnext": (lambda: ResNeXtCifar(11, 2, 8), [1, 1, 1]),
    "own densenet121": (lambda: create_model("densenet121"), [6, 12, 24, 16]),
    "vit": (timm_net("test_vit"), []),
    "swin": (lambda: tv.swin_t(num_classes=2), []),
    "googlenet": (lambda: tv.googlenet(init_weights=False, aux_logits=False), []),
}


@pytest.mark.parametrize("name", COUNTS)
def test_stages_of_known_networks(name):
    build, counts = COUNTS[name]
    with torch.device("meta"):
        model = build()
    found = stages(model)
    assert [len(stage) for stage in found] == counts
    assert [len(stage) for stage in stages(nn.Sequential(nn.Identity(), model))] == counts  # wrapped
    flat = [block for stage in found for block in stage]
    assert [block.index for block in flat] == [index for count in counts for index in range(count)]
    assert [block.last for block in flat] == [index == count - 1 for count in counts for index in range(count)]
    assert sorted(block.depth for block in flat) == list(range(sum(counts)))


def test_channels_of_any_child():
    block = find_blocks(tv.resnet50(num_classes=2))[0]
    assert (block.channels_in, block.channels_out) == (64, 256)
    at = {"bn1": 64, "conv3": 256, "relu": None, "downsample": 256}
    for child, channels in at.items():
        assert channels_at(block, Place("after", child)) == channels
    assert channels_at(block, Place("before", "conv3")) == 64
    with pytest.raises(ValueError, match=r"Bottleneck at 'layer1.0' has no 'bn4'; its children: conv1, bn1, conv2"):
        channels_at(block, Place("after", "bn4"))


def test_a_sequential_gives_way_to_its_end():
    expanded, first = find_blocks(tv.mobilenet_v2(num_classes=2))[1::-1]
    assert place_of(expanded, "residual") == Place("after", "conv.3")
    assert place_of(first, "residual") == Place("after", "conv.2")
    assert place_of(expanded, "pre") == Place("before", "conv.0.0")
    assert place_of(find_blocks(tv.resnet18(num_classes=2))[2], "identity") == Place("after", "downsample.1")


def test_a_place_that_was_filled_is_followed():
    model = WideResNet(10, 1)
    block = find_blocks(model)[0]
    block.module.post = nn.InstanceNorm2d(16)
    assert place_of(find_blocks(model)[0], "post") == Place("after", "post")
    assert find_blocks(model)[0].channels_out == 16


def test_an_open_block_offers_its_slots():
    model = tv.resnet18(num_classes=2)
    block = find_blocks(model)[0]
    assert place_of(block, "post") == Place("slot", "post")
    open_block(block.module)
    block = find_blocks(model)[0]
    assert [place_of(block, slot) for slot in ("pre", "identity", "post")] == [
        Place("fill", "pre"),
        Place("fill", "identity"),
        Place("fill", "post"),
    ]
    assert (block.channels_in, block.channels_out, block.family.inner) == (64, 64, ("bn1",))


def test_a_subclass_belongs_only_while_it_keeps_forward():
    class Named(tv.resnet.BasicBlock):
        pass

    class Other(tv.resnet.BasicBlock):
        def forward(self, x):
            return x

    named = find_blocks(Named(4, 4))
    assert [block.path for block in named] == [""]
    assert place_of(named[0], "residual") == Place("after", "bn2")
    assert place_of(named[0], "post") is None  # its class cannot be exchanged
    assert find_blocks(Other(4, 4)) == []


def test_any_block_that_names_its_slots():
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 1)
            self.bn1 = nn.BatchNorm2d(6)
            for slot in ("pre", "residual", "identity", "post"):
                self.add_module(slot, nn.Identity())

    (block,) = find_blocks(nn.Sequential(Mine()))
    assert (block.channels_in, block.channels_out, block.path) == (4, 6, "0")
    assert place_of(block, "identity") == Place("fill", "identity")


def test_a_tied_block_is_found_once():
    block = tv.resnet.BasicBlock(4, 4)
    assert [found.path for found in find_blocks(nn.Sequential(block, nn.ReLU(), block))] == ["0"]


def test_lazy_layers_do_not_tell():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.LazyConv2d(4, 1)
            for slot in ("pre", "residual", "identity", "post"):
                self.add_module(slot, nn.Identity())

    (block,) = find_blocks(Block())
    assert (block.channels_in, block.channels_out) == (None, 4)


def test_unknown_slot():
    with pytest.raises(ValueError, match=r"expected a slot of pre, residual, identity, post, .*got 'end'"):
        place_of(find_blocks(WideResNet(10, 1))[0], "end")


def test_every_name_in_the_tables_exists():
    for family in FAMILIES:
        assert set(family.slots) <= {*SLOTS, *MORE_SLOTS}
        assert "residual" in family.slots or family.types == ("shiftnorm.models.all_conv._Unit",)
        for name in family.types:
            module, _, kind = name.rpartition(".")
            assert issubclass(getattr(importlib.import_module(module), kind), nn.Module), name


def test_empty():
    assert [is_empty(x) for x in (None, nn.Identity(), nn.Sequential(), nn.ModuleList(), nn.ReLU())] == [
        True,
        True,
        True,
        False,
        False,
    ]


class Spy(nn.Module):
    def forward(self, x):
        self.seen = x
        return x


@pytest.mark.parametrize(
    "build",
    [
        lambda: WideResNet(16, 1),
        lambda: ResNeXtCifar(11, 2, 8),
        lambda: DenseNetCifar(10, 4),
        lambda: DenseNetCifar(16, 4, bottleneck=True),
        lambda: create_model("all_conv", width=4),
        lambda: create_model("densenet121"),
        lambda: create_model("se_resnet18"),
    ],
)
def test_slots_of_our_own_backbones(build):
    model = build().eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    for slot in (*SLOTS, *MORE_SLOTS):
        spies = []
        for block in find_blocks(model):
            place = place_of(block, slot)
            if place is not None:
                assert place.how == "fill"
                spy = Spy()
                setattr(block.module, place.child, spy)
                spies.append((block, place, spy))
        assert torch.equal(model(x), expected)
        for block, place, spy in spies:
            assert channels_at(block, place) == spy.seen.shape[1]
            setattr(block.module, place.child, nn.Identity())
        assert spies or not any(slot in block.family.slots for block in find_blocks(model))
    for block in find_blocks(model):
        for name in block.family.inner[:1]:
            assert isinstance(block.module.get_submodule(name), nn.BatchNorm2d)
