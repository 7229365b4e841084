"""How a family of residual blocks is described: where each slot is, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

__all__ = ["DOWNSAMPLE", "END", "BlockFamily", "Place", "after", "before", "family", "shortcut"]


class Place(NamedTuple):
    """A place beside a child module, where a module can be put.

    Example:
        >>> Place("after", "bn3")
        Place(how='after', child='bn3')

    Args:
        how: "before": runs on what the child gets; "after": runs on what the child returns; "fill": is the child, which
            is empty now (None, an Identity or a Sequential without members); "slot": the block has no module there,
            and ``open_block`` gives it one.
        child: dotted name relative to the block; "" is the block itself. For "slot" it is the slot.
    """

    how: Literal["before", "after", "fill", "slot"]
    child: str


class BlockFamily(NamedTuple):
    """Block classes that are built alike, and where their slots are.

    Example:
        >>> BlockFamily(("my.Block",), {"residual": (Place("after", "bn2"),)}, inner=("bn1",)).slots["residual"][0]
        Place(how='after', child='bn2')

    Args:
        types: qualified names of classes. A subclass belongs too while it keeps ``forward``.
        slots: places for "pre", "residual", "identity" and "post", and for slots that only these blocks have. Of
            several the first applies whose child is there (for "fill": is empty); an Identity is passed over where
            another one applies. A slot that is missing has no module to hang on.
        inner: names for the first norm that only the residual branch sees, where IBN-a stands; the first that is there.
            Empty where that norm is none over channels on axis 1.
        out: children whose channels add up to the block's output; empty: the child of the place "residual".
        dense: whether the output is joined to the input, not added.
        has: attributes that must be there and filled.
        lacks: attributes that must be absent or empty.
        into: children of which the first that is there gets as many channels as the branch; empty: the child of the
            place "pre".
        widths: for slots in the middle of the branch, the child in front, which tells their channels.
    """

    types: tuple[str, ...]
    slots: Mapping[str, tuple[Place, ...]]
    inner: tuple[str, ...] = ()
    out: tuple[str, ...] = ()
    dense: bool = False
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    into: tuple[str, ...] = ()
    widths: Mapping[str, str] = {}


def before(*children: str) -> tuple[Place, ...]:
    """Places before children, as alternatives.

    Example:
        >>> before("conv1")
        (Place(how='before', child='conv1'),)
    """
    return tuple(Place("before", child) for child in children)


def after(*children: str) -> tuple[Place, ...]:
    """Places after children, as alternatives.

    Example:
        >>> after("se", "bn3")
        (Place(how='after', child='se'), Place(how='after', child='bn3'))
    """
    return tuple(Place("after", child) for child in children)


def shortcut(child: str) -> tuple[Place, ...]:
    """The place of an empty child, or after it: for blocks that ask whether it is there, or that always call it.

    Example:
        >>> shortcut("downsample")
        (Place(how='fill', child='downsample'), Place(how='after', child='downsample'))
    """
    return (Place("fill", child), Place("after", child))


END = after("")
DOWNSAMPLE = shortcut("downsample")


def family(
    *types: str,
    pre: tuple[Place, ...] = (),
    residual: tuple[Place, ...],
    identity: tuple[Place, ...] = (),
    post: tuple[Place, ...] = (),
    inner: tuple[str, ...] = (),
    out: tuple[str, ...] = (),
    dense: bool = False,
    has: tuple[str, ...] = (),
    lacks: tuple[str, ...] = (),
    into: tuple[str, ...] = (),
) -> BlockFamily:
    """A BlockFamily from its slots by name; one without places is left out.

    Example:
        >>> sorted(family("my.Block", residual=after("bn2"), post=END).slots)
        ['post', 'residual']
    """
    places = {"pre": pre, "residual": residual, "identity": identity, "post": post}
    slots = {slot: found for slot, found in places.items() if found}
    return BlockFamily(types, slots, inner, out, dense, has, lacks, into)
