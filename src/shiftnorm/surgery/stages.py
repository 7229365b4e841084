"""Where a network's stem and its stages end."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import nn

from shiftnorm.surgery.families import Block, find_blocks, is_empty, stage_containers, stages, width_out
from shiftnorm.surgery.kinds import kind_of

__all__ = ["StageOutput", "stage_outputs", "stem_norm"]

# Its output is a list of maps of different resolution.
_SEVERAL_MAPS = "timm.models.hrnet.HighResolutionModule"


class StageOutput(NamedTuple):
    """The place where a stage's output passes.

    Example:
        >>> from shiftnorm.models import WideResNet
        >>> stage_outputs(WideResNet(10, 1))[0]
        StageOutput(path='after_block1', how='fill', channels=16, stage=1)

    Args:
        path: dotted name of a module of the model.
        how: "after" that module, "before" it, or "fill": in its place, which is empty.
        channels: of the output; None where the layers around do not tell.
        stage: number of the stage, from 1.
    """

    path: str
    how: Literal["before", "after", "fill"]
    channels: int | None
    stage: int


def stem_norm(model: nn.Module) -> str | None:
    """The dotted name of the first norm behind the first convolution, if it stands before the first block.

    Example:
        >>> stem_norm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
        '1'
        >>> from shiftnorm.models import WideResNet
        >>> stem_norm(WideResNet(10, 1)) is None
        True

    Args:
        model: any model.

    Returns:
        The name, or None if there is no such norm; in a pre-activation network there is none.
    """
    blocks = find_blocks(model)
    first = blocks[0].path if blocks else None
    behind = False
    for path, module in model.named_modules():
        if first is not None and (path == first or first == ""):
            return None
        if behind and kind_of(module) is not None:
            return path
        behind = behind or isinstance(module, nn.modules.conv._ConvNd)
    return None


def stage_outputs(model: nn.Module) -> list[StageOutput]:
    """Where the output of each stage passes: where MixStyle and DSU go.

    Behind the last block of the stage; in a backbone of shiftnorm in its slot for that; in a DenseNet before what
    follows, because no module of the dense block sees the joined maps; where a module wraps the stage's blocks
    and does more (DLA, CSPNet), behind that module.

    Example:
        >>> from shiftnorm.models import WideResNet
        >>> [output.channels for output in stage_outputs(WideResNet(10, 2))]
        [32, 64, 128]

    Args:
        model: any model; one without known blocks has no stages.

    Returns:
        The places in order. A stage whose output is not one tensor (HRNet), or that nothing follows, is left out.
    """
    outputs: list[StageOutput] = []
    for blocks, container in zip(stages(model), stage_containers(model), strict=True):
        output = _output(model, blocks, container)
        if output is not None:
            outputs.append(output)
    return outputs


def _output(model: nn.Module, blocks: list[Block], container: str | None) -> StageOutput | None:
    last, stage = blocks[-1], blocks[0].stage
    channels = last.channels_out
    if last.family.dense:
        parts = (last.channels_in, last.channels_out)
        channels = None if parts[0] is None or parts[1] is None else parts[0] + parts[1]
    if container is None:
        return StageOutput(last.path, "after", channels, stage)
    slot = _slot_after(model, container)
    if slot is not None:
        how = "fill" if is_empty(model.get_submodule(slot)) else "after"
        return StageOutput(slot, how, channels, stage)
    module = model.get_submodule(container)
    if f"{type(module).__module__}.{type(module).__qualname__}" == _SEVERAL_MAPS:
        return None
    if last.family.dense and type(module).forward is not nn.Sequential.forward:
        following = _following(model, container)
        return None if following is None else StageOutput(following, "before", channels, stage)
    # A stage of other modules than its blocks' parent ends with its own output, not with the last block's.
    if container not in ("", last.path.rpartition(".")[0]) or _wraps(module):
        return StageOutput(container, "after", width_out(module), stage)
    return StageOutput(last.path, "after", channels, stage)


def _wraps(module: nn.Module) -> bool:
    return f"{type(module).__module__}.{type(module).__qualname__}" == "timm.models.dla.DlaTree"


def _slot_after(model: nn.Module, container: str) -> str | None:
    """The module called after_NAME beside the container or beside one that holds it."""
    names = container.split(".")
    for end in range(len(names), 0, -1):
        path = ".".join([*names[: end - 1], f"after_{names[end - 1]}"])
        if _module(model, path) is not None:
            return path
    return None


def _following(model: nn.Module, container: str) -> str | None:
    """The first layer of the module that stands behind a container in the same Sequential."""
    parent, _, name = container.rpartition(".")
    whole = model.get_submodule(parent)
    if type(whole).forward is not nn.Sequential.forward:
        return None
    names = list(whole._modules)
    rest = names[names.index(name) + 1 :]
    if not rest:
        return None
    path = f"{parent}.{rest[0]}" if parent else rest[0]
    module = whole._modules[rest[0]]
    while isinstance(module, nn.Sequential) and len(module):
        inner = next(iter(module._modules))
        path, module = f"{path}.{inner}", module._modules[inner]
    return path


def _module(model: nn.Module, path: str) -> nn.Module | None:
    value: object = model
    for part in path.split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, nn.Module) else None
