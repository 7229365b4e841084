"""The residual blocks of a model, their stages, and where their slots are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeGuard, cast

from torch import nn

from shiftnorm.surgery.block_family import BlockFamily, Place
from shiftnorm.surgery.kinds import kind_of
from shiftnorm.surgery.own_blocks import BY_SLOTS, MORE_SLOTS, OWN_BLOCKS, SLOTS
from shiftnorm.surgery.timm_blocks import TIMM_BLOCKS
from shiftnorm.surgery.torchvision_blocks import TORCHVISION_BLOCKS

__all__ = [
    "FAMILIES",
    "Block",
    "BlockFamily",
    "Place",
    "channels_at",
    "find_blocks",
    "is_empty",
    "place_of",
    "stage_containers",
    "stages",
]

FAMILIES: tuple[BlockFamily, ...] = (*OWN_BLOCKS, *TORCHVISION_BLOCKS, *TIMM_BLOCKS)

_BY_TYPE: dict[str, list[BlockFamily]] = {}
for _family in FAMILIES:
    for _type in _family.types:
        _BY_TYPE.setdefault(_type, []).append(_family)

# Everything in one of these is one stage, which ends with its output.
_STAGE_TYPES = (
    "timm.models.dla.DlaTree",
    "timm.models.cspnet.CrossStage",
    "timm.models.cspnet.CrossStage3",
    "timm.models.cspnet.DarkStage",
    "timm.models.hrnet.HighResolutionModule",
)


class Block(NamedTuple):
    """A residual block of a model, and where it stands.

    Example:
        >>> from shiftnorm.models import WideResNet
        >>> block = find_blocks(WideResNet(16, 1))[1]
        >>> block.path, block.stage, block.index, block.last, block.depth, block.channels_in, block.channels_out
        ('block1.layer.1', 1, 1, True, 1, 16, 16)

    Args:
        path: dotted name in the model; "" is the model itself.
        module: the block.
        family: how it is built.
        stage: number of its stage, from 1.
        index: number in its stage, from 0.
        last: whether it is the last of its stage.
        depth: number among all blocks, from 0.
        channels_in: channels that its residual branch gets, where its layers tell.
        channels_out: channels that its branch and its shortcut add up in (of a dense layer: that it adds to the input),
            where its layers tell.
    """

    path: str
    module: nn.Module
    family: BlockFamily
    stage: int
    index: int
    last: bool
    depth: int
    channels_in: int | None
    channels_out: int | None


def is_empty(module: object) -> bool:
    """Whether something put in a module's place takes nothing away: None, an Identity, a Sequential without members.

    Example:
        >>> is_empty(None), is_empty(nn.Identity()), is_empty(nn.Sequential()), is_empty(nn.ReLU())
        (True, True, True, False)
    """
    return module is None or isinstance(module, nn.Identity) or (_is_sequence(module) and len(module) == 0)


def _is_sequence(module: object) -> TypeGuard[nn.Sequential]:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def find_blocks(model: nn.Module) -> list[Block]:
    """The residual blocks of a model, in order of registration, a tied one once.

    Blocks are known by their class (torchvision, timm, shiftnorm) or by having modules named ``pre``, ``residual``,
    ``identity`` and ``post``. Blocks within the same container are a stage. If there is only one container for all, a
    stage begins with each block that has a stride.

    Example:
        >>> from shiftnorm.models import WideResNet
        >>> [block.path for block in find_blocks(WideResNet(10, 1))]
        ['block1.layer.0', 'block2.layer.0', 'block3.layer.0']

    Args:
        model: any model; one without known blocks has none.

    Returns:
        The blocks. A block inside another one is not listed.
    """
    modules = dict(model.named_modules())
    found: list[tuple[str, nn.Module, BlockFamily]] = []
    for path, module in modules.items():
        if found and (found[-1][0] == "" or path.startswith(f"{found[-1][0]}.")):
            continue
        family = _family_of(module)
        if family is not None:
            found.append((path, module, family))
    containers = [_container(path, modules) for path, _, _ in found]
    flat = len(set(containers)) == 1
    numbers: list[int] = []
    seen: dict[str, int] = {}
    for (_, module, _), container in zip(found, containers, strict=True):
        if flat:
            numbers.append(numbers[-1] + _has_stride(module) if numbers else 1)
        else:
            numbers.append(seen.setdefault(container, len(seen) + 1))
    return [
        Block(
            path,
            module,
            family,
            number,
            numbers[:depth].count(number),
            number not in numbers[depth + 1 :],
            depth,
            *_channels(module, family),
        )
        for depth, ((path, module, family), number) in enumerate(zip(found, numbers, strict=True))
    ]


def stages(model: nn.Module) -> list[list[Block]]:
    """The blocks of a model by stage.

    Example:
        >>> from shiftnorm.models import WideResNet
        >>> [len(stage) for stage in stages(WideResNet(22, 1))]
        [3, 3, 3]

    Args:
        model: any model; one without known blocks has no stages.
    """
    blocks = find_blocks(model)
    return [[block for block in blocks if block.stage == stage] for stage in sorted({block.stage for block in blocks})]


def stage_containers(model: nn.Module) -> list[str | None]:
    """The dotted name of the module that each stage fills, or None where the stages share one module.

    Example:
        >>> from shiftnorm.models import WideResNet
        >>> stage_containers(WideResNet(10, 1))
        ['block1.layer', 'block2.layer', 'block3.layer']

    Args:
        model: any model; one without known blocks has no stages.
    """
    modules = dict(model.named_modules())
    containers = [_container(stage[0].path, modules) for stage in stages(model)]
    return [container if containers.count(container) == 1 else None for container in containers]


def place_of(block: Block, slot: str) -> Place | None:
    """Where a slot of a block is, or None if the block has no such place.

    A plain Sequential gives way to its first member ("before") or its last one ("after").

    Example:
        >>> from shiftnorm.models import WideResNet
        >>> place_of(find_blocks(WideResNet(10, 1))[0], "residual")
        Place(how='fill', child='residual')

    Args:
        block: one of ``find_blocks``.
        slot: "pre", the start of the residual branch; "residual", its end; "identity", the shortcut behind its
            projection; "post", after the addition and before an activation that follows; or a slot that blocks of this
            kind alone have, such as "conv1_pre".

    Returns:
        The place, with the child's name relative to the block.

    Raises:
        ValueError: an unknown slot.
    """
    if slot not in (*SLOTS, *MORE_SLOTS):
        raise ValueError(f"place_of: expected a slot of {', '.join((*SLOTS, *MORE_SLOTS))}, got {slot!r}.")
    second: Place | None = None
    for place in block.family.slots.get(slot, ()):
        there, child = _child(block.module, place.child)
        if place.how == "slot":
            # The class is exchanged, so that a subclass would lose what it adds.
            if _name(type(block.module)) in block.family.types:
                return place
        elif place.how == "fill":
            if there and is_empty(child):
                return place
        elif isinstance(child, nn.Module):
            if not is_empty(child):
                return Place(place.how, _inmost(child, place))
            second = second or place
    return second


def channels_at(block: Block, place: Place) -> int | None:
    """How many channels the tensor at a place of a block has.

    Example:
        >>> from shiftnorm.models import WideResNet
        >>> block = find_blocks(WideResNet(10, 1))[1]
        >>> channels_at(block, Place("fill", "pre")), channels_at(block, Place("after", "conv1"))
        (16, 32)

    Args:
        block: one of ``find_blocks``.
        place: one of ``place_of``, or a place at any child.

    Returns:
        The count, or None where the layers around do not tell.

    Raises:
        ValueError: the block has no such child.
    """
    for slot, child in block.family.widths.items():
        if place in block.family.slots[slot]:
            return width_out(block.module.get_submodule(child))
    for slot in (*SLOTS, *MORE_SLOTS):
        if place != place_of(block, slot) and place not in block.family.slots.get(slot, ()):
            continue
        if slot == "pre":
            return block.channels_in
        if slot == "post" or len(block.family.out) < 2:
            return block.channels_out
        # The ends of a joined output: the whole child tells more than its last member does.
        whole = next(end.child for end in block.family.slots[slot] if f"{place.child}.".startswith(f"{end.child}."))
        return width_out(block.module.get_submodule(whole))
    there, child = _child(block.module, place.child)
    if not there:
        raise ValueError(
            f"channels_at: {type(block.module).__name__} at {block.path!r} has no {place.child!r}; "
            f"its children: {', '.join(name for name, _ in block.module.named_children())}."
        )
    if not isinstance(child, nn.Module):
        return None
    return width_in(child) if place.how == "before" else width_out(child)


def width_in(module: nn.Module) -> int | None:
    """Channels of the first layer in a module that tells what it gets.

    Example:
        >>> width_in(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 8, 1)))
        3
    """
    return next(_widths(module.modules(), "in"), None)


def width_out(module: nn.Module) -> int | None:
    """Channels of the last layer in a module that tells what it returns.

    Example:
        >>> width_out(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()))
        8
    """
    whole = next(_widths([module], "out"), None)
    return next(_widths(reversed(list(module.modules())), "out"), None) if whole is None else whole


def _widths(modules: Iterable[nn.Module], side: str) -> Iterator[int]:
    for module in modules:
        kind = kind_of(module)
        if kind is not None:
            width = kind.channels
        else:
            named = [getattr(module, f"{side}_{what}", None) for what in ("channels", "features", "chs")]
            width = next((width for width in named if isinstance(width, int)), None)
        if width:  # a lazy layer has 0 until it has run
            yield width


def _channels(module: nn.Module, family: BlockFamily) -> tuple[int | None, int | None]:
    filled = {place.child for places in family.slots.values() for place in places if place.how == "fill"}
    own = [child for name, child in module.named_children() if name not in filled]

    def children(names: Iterable[str]) -> list[nn.Module]:
        return [child for name in names if isinstance(child := _child(module, name)[1], nn.Module)]

    begins = [place.child for place in family.slots.get("pre", ()) if place.how == "before"]
    begins = [*family.into] or begins
    channels_in = next((width for width in map(width_in, [*children(begins), *own]) if width), None)
    ends = [
        place.child for place in family.slots.get("residual", ()) if place.how != "fill" and place.child not in filled
    ]
    if family.out:
        widths = [width_out(child) for child in children(family.out)]
        return channels_in, sum(width for width in widths if width) if None not in widths else None
    outs = [*children(ends)[:1], *([] if ends else reversed(own))]
    return channels_in, next((width for width in map(width_out, outs) if width), None)


def _family_of(module: nn.Module) -> BlockFamily | None:
    kind = type(module)
    for ancestor in kind.__mro__:
        for family in _BY_TYPE.get(_name(ancestor), ()):
            fits = all(not _lacks(module, name) for name in family.has) and all(
                _lacks(module, name) for name in family.lacks
            )
            # A subclass that computes something else may do without the children that the table names.
            if fits and getattr(ancestor, "forward", None) is kind.forward:
                return family
    children = dict(module.named_children())
    return BY_SLOTS if all(slot in children for slot in SLOTS) else None


def _lacks(module: nn.Module, name: str) -> bool:
    value = getattr(module, name, None)
    return value is False or is_empty(value)


def _child(module: nn.Module, name: str) -> tuple[bool, object]:
    """Whether a dotted name is there, and what it names."""
    value: object = module
    for part in name.split(".") if name else ():
        if not hasattr(value, part):
            return False, None
        value = getattr(value, part)
    return True, value


def _inmost(child: nn.Module, place: Place) -> str:
    names = [place.child] if place.child else []
    while place.child and _is_sequence(child) and len(child._modules):
        name = list(child._modules)[-1 if place.how == "after" else 0]
        inner = child._modules[name]
        if not isinstance(inner, nn.Module):
            break
        names.append(name)
        child = inner
    return ".".join(names)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _container(path: str, modules: dict[str, nn.Module]) -> str:
    parts = path.split(".")
    for end in range(len(parts)):
        outer = ".".join(parts[:end])
        if any(_name(kind) in _STAGE_TYPES for kind in type(modules[outer]).__mro__):
            return outer
    return path.rpartition(".")[0]


def _has_stride(block: nn.Module) -> bool:
    pooling = nn.modules.pooling
    strided = (nn.modules.conv._ConvNd, pooling._MaxPoolNd, pooling._AvgPoolNd)
    for module in block.modules():
        if isinstance(module, strided):
            stride = cast("int | tuple[int, ...]", module.stride)
            if any(step > 1 for step in (stride if isinstance(stride, tuple) else (stride,))):
                return True
    return False
