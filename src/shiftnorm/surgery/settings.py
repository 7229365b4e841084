"""The numbers of norms that are no tensors, such as eps, momentum and p, as a file of ``save`` keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from shiftnorm.norms import NormLayer
from shiftnorm.surgery.kinds import kind_of

__all__ = ["Settings", "are_settings", "put_settings", "settings_of"]

# Real numbers by these names may be written without a point, and some of them may be None.
_REAL = frozenset({"alpha", "beta", "blend", "eps", "min_area", "momentum", "p"})

Settings = dict[str, dict[str, "float | None"]]


def settings_of(model: nn.Module) -> Settings:
    """The real numbers among the attributes of every norm, ours or not, by its path.

    They may have been changed since the norm was made: ``norm.momentum = 0.01``. Whole numbers, which decide shapes,
    are no settings, unless they stand where a real number is meant: ``norm.momentum = 0``.

    Example:
        >>> settings_of(nn.Sequential(nn.BatchNorm2d(3, momentum=None), nn.ReLU()))
        {'0': {'eps': 1e-05, 'momentum': None}}
    """
    found: Settings = {}
    for path, module in model.named_modules():
        if _is_norm(module):
            own = {name: value for name, value in vars(module).items() if _is_setting(name, value)}
            if own:
                found[path] = own
    return found


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, NormLayer) or kind_of(module) is not None


def _is_setting(name: str, value: object) -> bool:
    if name in _REAL:
        return value is None or type(value) in (float, int)
    return not name.startswith("_") and type(value) is float


def are_settings(value: Any) -> bool:
    """Whether a part of a stranger's file has the form of settings.

    Example:
        >>> are_settings({"bn1": {"eps": 1e-3}}), are_settings({"bn1": {"eps": "1e-3"}})
        (True, False)
    """
    return isinstance(value, dict) and all(
        isinstance(own, dict) and all(_is_setting(name, number) for name, number in own.items())
        for own in value.values()
    )


def put_settings(model: nn.Module, settings: Mapping[str, Mapping[str, float | None]], who: str) -> None:
    """Give the norms of a model the numbers they had; a number no norm has is an error.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm2d(3))
        >>> put_settings(model, {"0": {"momentum": 0.01}}, "load")
        >>> model[0].momentum
        0.01

    Args:
        model: the network.
        settings: as :func:`settings_of` gave them.
        who: what errors begin with.

    Raises:
        ValueError: if the model has no such norm, or the norm no such number.
    """
    norms = {path: module for path, module in model.named_modules() if _is_norm(module)}
    wanted = [(path, name, value) for path, own in settings.items() for name, value in own.items()]
    for path, name, _ in wanted:  # all of them first, so that an error changes nothing
        if path not in norms or not _is_setting(name, vars(norms[path]).get(name, ())):
            raise ValueError(f"{who} names {name!r} of a norm at {path!r}, which the model does not have.")
    for path, name, value in wanted:
        setattr(norms[path], name, value)
