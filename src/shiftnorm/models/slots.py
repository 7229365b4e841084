"""Places in a backbone that its user fills: factories of modules, and the errors for wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, TypeAlias, TypeVar, cast, get_args

import torch.fx
from torch import Tensor, nn

NormFactory: TypeAlias = Callable[[int], nn.Module]
SlotName: TypeAlias = Literal["pre", "residual", "identity", "post"]
Place = TypeVar("Place", str, int)

SLOTS: tuple[str, ...] = get_args(SlotName)

__all__ = [
    "SLOTS",
    "NormFactory",
    "SlotName",
    "build",
    "build_norm",
    "build_slot",
    "build_slots",
    "check_images",
    "check_positive",
    "known_slots",
    "known_stages",
    "one_per_stage",
]


def build(factory: NormFactory, channels: int, *, owner: str, argument: str) -> nn.Module:
    """Make a module from a factory and a channel count.

    Example:
        >>> build(nn.BatchNorm2d, 4, owner="ResNet", argument="norm")
        BatchNorm2d(4, ...)

    Args:
        factory: a function from a channel count to a new module, for example a class.
        channels: how many channels the module gets.
        owner: the network, for the error.
        argument: the network's argument the factory came by, for the error.

    Returns:
        The new module.

    Raises:
        TypeError: the factory is a module or cannot be called, or what it returns is no module.
    """
    # A module is callable too: without this check an instance would be run on the channel count.
    if isinstance(factory, nn.Module) or not callable(factory):
        raise TypeError(
            f"{owner}: {argument} must be a function from a channel count to a new module "
            f"(a class such as nn.BatchNorm2d will do), got {factory!r}"
        )
    module = cast(object, factory(channels))
    if not isinstance(module, nn.Module):
        raise TypeError(f"{owner}: {argument} must return an nn.Module, returned {module!r} for {channels} channels")
    return module


def build_norm(
    norm: NormFactory, instead: NormFactory | None, channels: int, *, owner: str, argument: str = "inner_norm"
) -> nn.Module:
    """Make a norm of a network, or what a more special argument asks for in its place.

    Example:
        >>> build_norm(nn.BatchNorm2d, None, 4, owner="ResNet")
        BatchNorm2d(4, ...)
        >>> build_norm(nn.BatchNorm2d, nn.InstanceNorm2d, 4, owner="ResNet")
        InstanceNorm2d(4, ...)

    Args:
        norm: what builds the network's norms, its argument ``norm``.
        instead: what builds this norm, or None to use ``norm``.
        channels: how many channels the module gets.
        owner: the network, for the error.
        argument: the argument that ``instead`` came by, for the error.

    Returns:
        The new module.

    Raises:
        TypeError: as ``build``.
    """
    if instead is None:
        return build(norm, channels, owner=owner, argument="norm")
    return build(instead, channels, owner=owner, argument=argument)


def build_slot(
    slots: Mapping[Place, NormFactory], name: Place, channels: int, *, owner: str, argument: str = "slots"
) -> nn.Module:
    """Make the module of one slot; an empty slot gets an Identity, which leaves no trace in the state.

    Example:
        >>> build_slot({"post": nn.InstanceNorm2d}, "post", 4, owner="ResNet")
        InstanceNorm2d(4, ...)
        >>> build_slot({1: nn.InstanceNorm2d}, 2, 4, owner="ResNet", argument="stage_slots")
        Identity()

    Args:
        slots: factories by the slot's name, or by the number of a stage.
        name: the slot to make.
        channels: how many channels the module gets.
        owner: the network, for the error.
        argument: the network's argument that ``slots`` came by, for the error.

    Returns:
        The new module.

    Raises:
        TypeError: as ``build``.
    """
    if name not in slots:
        return nn.Identity()
    return build(slots[name], channels, owner=owner, argument=f"{argument}[{name!r}]")


def build_slots(
    slots: Mapping[str, NormFactory], in_channels: int, out_channels: int, *, owner: str
) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """Make the modules of the four slots of a residual block.

    Example:
        >>> build_slots({"post": nn.InstanceNorm2d}, 4, 8, owner="ResNet")
        (Identity(), Identity(), Identity(), InstanceNorm2d(8, ...))

    Args:
        slots: factories by slot name.
        in_channels: channels of the block's input, which ``"pre"`` gets.
        out_channels: channels of its output, which the other three get.
        owner: the network, for the error.

    Returns:
        The modules of ``"pre"``, ``"residual"``, ``"identity"`` and ``"post"``.
    """
    return (
        build_slot(slots, "pre", in_channels, owner=owner),
        build_slot(slots, "residual", out_channels, owner=owner),
        build_slot(slots, "identity", out_channels, owner=owner),
        build_slot(slots, "post", out_channels, owner=owner),
    )


def known_slots(
    slots: Mapping[str, NormFactory] | None, names: Collection[str] = SLOTS, *, owner: str
) -> dict[str, NormFactory]:
    """Copy a mapping of slots after checking its names.

    Example:
        >>> known_slots({"after": nn.BatchNorm2d}, owner="ResNet")
        Traceback (most recent call last):
        ValueError: ResNet: unknown slots ['after']; a block has pre, residual, identity, post

    Args:
        slots: factories by slot name, or None for none.
        names: the slots there are.
        owner: the network, for the error.

    Returns:
        A new dictionary with the same entries.

    Raises:
        ValueError: a name is not among ``names``.
    """
    if unknown := [name for name in slots or {} if name not in names]:
        raise ValueError(f"{owner}: unknown slots {unknown}; a block has {', '.join(names)}")
    return dict(slots or {})


def known_stages(
    stage_slots: Mapping[int, NormFactory] | None, stages: Collection[int], *, owner: str
) -> dict[int, NormFactory]:
    """Copy a mapping from stages to factories after checking its keys.

    Example:
        >>> known_stages({4: nn.BatchNorm2d}, (1, 2, 3), owner="WideResNet")
        Traceback (most recent call last):
        ValueError: WideResNet: unknown stages [4] in stage_slots; the stages are 1, 2 and 3

    Args:
        stage_slots: factories by stage number, or None for none.
        stages: the numbers there are.
        owner: the network, for the error.

    Returns:
        A new dictionary with the same entries.

    Raises:
        ValueError: a number is not among ``stages``.
    """
    if unknown := [stage for stage in stage_slots or {} if stage not in stages]:
        *first, last = map(str, stages)
        raise ValueError(
            f"{owner}: unknown stages {unknown} in stage_slots; the stages are {', '.join(first)} and {last}"
        )
    return dict(stage_slots or {})


def one_per_stage(
    entries: Sequence[NormFactory | None] | None, stages: int, *, owner: str, argument: str, otherwise: str
) -> tuple[NormFactory | None, ...]:
    """Spell out an argument that has one factory, or None, for each stage.

    Example:
        >>> one_per_stage(None, 3, owner="WideResNet", argument="inner_norm", otherwise="use norm")
        (None, None, None)

    Args:
        entries: one entry per stage, or None for none at all.
        stages: how many stages there are.
        owner: the network, for the error.
        argument: the name of the argument, for the error.
        otherwise: what an entry None means, for the error.

    Returns:
        As many entries as stages.

    Raises:
        ValueError: another number of entries.
    """
    entries = (None,) * stages if entries is None else tuple(entries)
    if len(entries) != stages:
        raise ValueError(
            f"{owner}: {argument} needs one entry for each of the {stages} stages (None: {otherwise}), "
            f"got {len(entries)}"
        )
    return entries


def check_positive(owner: str, **values: int) -> None:
    """Refuse a count below 1.

    Example:
        >>> check_positive("ResNet", num_classes=0)
        Traceback (most recent call last):
        ValueError: ResNet: num_classes must be at least 1, got 0

    Args:
        owner: the network, for the error.
        values: arguments of the network by name.

    Raises:
        ValueError: a value is below 1.
    """
    for argument, value in values.items():
        if value < 1:
            raise ValueError(f"{owner}: {argument} must be at least 1, got {value}")


def check_images(x: Tensor, first: object, *, owner: str) -> None:
    """Refuse an input that is no batch of images with the channels that the first layer takes.

    Example:
        >>> import torch
        >>> check_images(torch.zeros(3, 32, 32), nn.Conv2d(3, 64, 7), owner="ResNet")
        Traceback (most recent call last):
        ValueError: ResNet: expected images of shape (N, 3, H, W), got (3, 32, 32); add a batch axis with x[None]

    Args:
        x: the input.
        first: the network's first layer; where it has no ``in_channels``, images with any channels pass.
        owner: the network, for the error.

    Raises:
        ValueError: not four axes, another number of channels, or no pixel.
    """
    # torch.fx runs the network on stand-ins that have no shape.
    if isinstance(x, torch.fx.Proxy):
        return
    # Whoever replaced the first convolution decides what it takes.
    channels = getattr(first, "in_channels", None)
    shape = tuple(x.shape)
    if len(shape) == 4 and channels in (None, shape[1]) and shape[2] > 0 and shape[3] > 0:
        return
    advice = ""
    if len(shape) == 3 and channels in (None, shape[0]):
        advice = "; add a batch axis with x[None]"
    elif len(shape) == 4 and shape[3] == channels:
        advice = "; move the channels forward with x.permute(0, 3, 1, 2)"
    elif len(shape) == 4 and channels not in (None, shape[1]):
        advice = f"; build the network with in_channels={shape[1]} or change the images"
    raise ValueError(f"{owner}: expected images of shape (N, {channels or 'C'}, H, W), got {shape}{advice}")
