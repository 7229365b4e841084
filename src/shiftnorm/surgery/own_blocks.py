"""Where the slots are in the blocks of shiftnorm's own backbones, and of any block that names its slots."""

from __future__ import annotations

from shiftnorm.surgery.block_family import BlockFamily, Place

__all__ = ["BY_SLOTS", "MORE_SLOTS", "OWN_BLOCKS", "SLOTS"]

SLOTS = ("pre", "residual", "identity", "post")
# Positions that only one of our backbones has, by the names its constructor gives them.
MORE_SLOTS = ("conv1_pre", "conv1_post", "conv2_post", "conv", "norm", "activation")


def _named(slot: str, *names: str) -> tuple[Place, ...]:
    places: list[Place] = []
    for name in names or (slot,):
        places += [Place("fill", name), Place("after", name)]
    return tuple(places)


_NAMED = {slot: _named(slot) for slot in SLOTS}
_NEW_MAPS = {slot: _named(slot, "conv2_post", "conv1_post") for slot in ("residual", "post")}

OWN_BLOCKS: tuple[BlockFamily, ...] = (
    BlockFamily(
        ("shiftnorm.models.residual_blocks.BasicBlock", "shiftnorm.surgery.blocks._OpenBasicBlock"),
        _NAMED,
        inner=("bn1",),
        out=("bn2",),
    ),
    BlockFamily(
        ("shiftnorm.models.residual_blocks.Bottleneck", "shiftnorm.surgery.blocks._OpenBottleneck"),
        _NAMED,
        inner=("bn1",),
        out=("bn3",),
    ),
    # Where the width changes, the shortcut reads bn1.
    BlockFamily(("shiftnorm.models.wide_resnet._Block",), _NAMED, inner=("bn2",), out=("conv2",)),
    BlockFamily(("shiftnorm.models.resnext_cifar._Bottleneck",), _NAMED, inner=("bn_reduce",), out=("bn_expand",)),
    BlockFamily(
        ("shiftnorm.models.densenet._Layer",),
        {"pre": _named("pre"), "residual": _named("post"), "post": _named("post")},
        inner=("norm1",),
        out=("conv2",),
        dense=True,
    ),
    # As in its authors' network the first slot changes what is passed on, too.
    BlockFamily(
        ("shiftnorm.models.densenet_cifar._Layer",),
        {"pre": _named("conv1_pre"), **_NEW_MAPS, **{slot: _named(slot) for slot in MORE_SLOTS[:3]}},
        inner=("bn1",),
        out=("conv2",),
        dense=True,
        has=("conv2",),
        widths={"conv1_post": "conv1"},
    ),
    BlockFamily(
        ("shiftnorm.models.densenet_cifar._Layer",),
        {"pre": _named("conv1_pre"), **_NEW_MAPS, **{slot: _named(slot) for slot in MORE_SLOTS[:2]}},
        inner=("bn1",),
        out=("conv1",),
        dense=True,
        lacks=("conv2",),
    ),
    # No shortcut, so that nothing is the end of a branch; its authors number the three positions 1, 2 and 3.
    BlockFamily(
        ("shiftnorm.models.all_conv._Unit",),
        {slot: _named(f"after_{slot}") for slot in MORE_SLOTS[3:]} | {"post": _named("after_activation")},
        out=("conv",),
    ),
)
# Any block with four modules of these names is built like ours.
BY_SLOTS = BlockFamily((), _NAMED, inner=("bn1", "norm1"))
