"""All backbones by name."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from shiftnorm.models import resnets
from shiftnorm.models.all_conv import AllConv
from shiftnorm.models.densenet import densenet121, densenet161, densenet169, densenet201
from shiftnorm.models.densenet_cifar import DenseNetCifar
from shiftnorm.models.resnext_cifar import ResNeXtCifar
from shiftnorm.models.wide_resnet import WideResNet

__all__ = ["create_model", "list_models"]

CONSTRUCTORS: dict[str, Callable[..., nn.Module]] = {
    **{name: getattr(resnets, name) for name in resnets.__all__},
    "all_conv": AllConv,
    "densenet121": densenet121,
    "densenet161": densenet161,
    "densenet169": densenet169,
    "densenet201": densenet201,
    "densenet40_12": partial(DenseNetCifar, 40, 12),
    "densenet100_12": partial(DenseNetCifar, 100, 12),
    "densenet_bc100_12": partial(DenseNetCifar, 100, 12, bottleneck=True, compression=0.5),
    "resnext29_4x32": partial(ResNeXtCifar, 29, 4, 32),
    "resnext29_8x64": partial(ResNeXtCifar, 29, 8, 64),
    "wide_resnet10_1": partial(WideResNet, 10, 1),
    "wide_resnet16_4": partial(WideResNet, 16, 4),
    "wide_resnet28_2": partial(WideResNet, 28, 2),
    "wide_resnet28_10": partial(WideResNet, 28, 10),
    "wide_resnet40_2": partial(WideResNet, 40, 2),
}


def list_models(pattern: str = "*") -> list[str]:
    """List the names that ``create_model`` knows.

    Example:
        >>> list_models("se_resnet*")
        ['se_resnet101', 'se_resnet152', 'se_resnet18', 'se_resnet34', 'se_resnet50']

    Args:
        pattern: a shell pattern that the names must match.

    Returns:
        The names, sorted; none if none matches.
    """
    return sorted(fnmatch.filter(CONSTRUCTORS, pattern))


def create_model(name: str, **arguments: Any) -> nn.Module:
    """Build a backbone, with random weights, from its name.

    Example:
        >>> create_model("resnet18", num_classes=10, stem="cifar").fc
        Linear(in_features=512, out_features=10, bias=True)

    Args:
        name: one of ``list_models()``.
        arguments: passed to the constructor, such as ``num_classes``, ``in_channels``, ``norm`` and ``slots``.

    Returns:
        The new network, in training mode.

    Raises:
        ValueError: an unknown name, or what the constructor says of its arguments.
        TypeError: an argument the constructor does not have.
    """
    if name not in CONSTRUCTORS:
        near = difflib.get_close_matches(str(name), CONSTRUCTORS, n=5)
        advice = f"did you mean {', '.join(near)}?" if near else "list_models() has all names"
        raise ValueError(f"create_model: unknown model {name!r}; {advice}")
    return CONSTRUCTORS[name](**arguments)
