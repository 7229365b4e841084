"""What a module is: which normalization, over what, and whether another norm may take its place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from shiftnorm.norms import BatchNorm, Chain, NormLayer

__all__ = ["NormKind", "kind_of", "refuse_model"]


class NormKind(NamedTuple):
    """What kind of norm a module is.

    Example:
        >>> kind_of(nn.BatchNorm2d(8)).name
        'batch'

    Args:
        name: "batch", "sync batch", "frozen batch", "instance", "group", "layer over channels" (one norm per position),
            "layer over the last axis", "rms ..." of both, "ours", or "other".
        channels: C; None where the module does not say.
        fused: names of children that run behind the norm inside the same module, such as ``("drop", "act")``.
        refusal: why no other norm may take its place; None if one may.
    """

    name: str
    channels: int | None
    fused: tuple[str, ...] = ()
    refusal: str | None = None


_LAST_AXIS = "it normalizes the last axis of (N, *, C), and the norms here take channels on axis 1"
_OWN_ACTIVATION = "its formula contains an activation that would be lost"

# By name, first match along the class's ancestors: neither torchvision nor timm is imported for it.
_KINDS: dict[str, tuple[str, str | None]] = {
    "timm.layers.split_batchnorm.SplitBatchNorm2d": ("batch", "it keeps several sets of running moments"),
    "timm.layers.inplace_abn.InplaceAbn": ("other", _OWN_ACTIVATION),
    "timm.layers.filter_response_norm.FilterResponseNormAct2d": ("other", _OWN_ACTIVATION),
    "timm.layers.filter_response_norm.FilterResponseNormTlu2d": ("other", _OWN_ACTIVATION),
    "timm.layers.norm.LayerNorm2d": ("layer over channels", None),
    "timm.layers.norm.LayerNorm2dFp32": ("layer over channels", None),
    "timm.layers.norm_act.LayerNormAct2d": ("layer over channels", None),
    "timm.layers.norm_act.LayerNormAct2dFp32": ("layer over channels", None),
    "timm.layers.norm.RmsNorm2d": ("rms over channels", None),
    "timm.layers.norm.RmsNorm2dFp32": ("rms over channels", None),
    "timm.layers.norm.SimpleNorm2d": ("rms over channels", None),
    "timm.layers.norm.SimpleNorm2dFp32": ("rms over channels", None),
    "timm.layers.norm.RmsNorm": ("rms over the last axis", _LAST_AXIS),
    "timm.layers.norm.RmsNormFp32": ("rms over the last axis", _LAST_AXIS),
    "timm.layers.norm.SimpleNorm": ("rms over the last axis", _LAST_AXIS),
    "timm.layers.norm.SimpleNormFp32": ("rms over the last axis", _LAST_AXIS),
    "torchvision.models.convnext.LayerNorm2d": ("layer over channels", None),
    "torch.nn.modules.batchnorm._LazyNormBase": ("batch", "it is lazy and has no shape yet; run the model once first"),
    "torch.nn.modules.batchnorm.SyncBatchNorm": ("sync batch", None),
    "torch.nn.modules.batchnorm._BatchNorm": ("batch", None),
    "torch.nn.modules.instancenorm._InstanceNorm": ("instance", None),
    "torch.nn.modules.normalization.GroupNorm": ("group", None),
    "torch.nn.modules.normalization.LayerNorm": ("layer over the last axis", _LAST_AXIS),
    "torch.nn.modules.normalization.RMSNorm": ("rms over the last axis", _LAST_AXIS),
}
_FROZEN = (
    "it is frozen: its moments and parameters are constants. Norms can be inserted behind it; to replace it, "
    "build the model with a BatchNorm that trains"
)


def kind_of(module: nn.Module) -> NormKind | None:
    """What kind of norm a module is, or None if it is none.

    Example:
        >>> kind_of(nn.LayerNorm(8)).refusal
        'it normalizes the last axis of (N, *, C), and the norms here take channels on axis 1'
        >>> kind_of(nn.ReLU()) is None
        True
    """
    if isinstance(module, NormLayer):
        return NormKind("ours", module.num_features)
    fused = tuple(name for name in ("drop", "act") if isinstance(getattr(module, name, None), nn.Module))
    for ancestor in type(module).__mro__:
        found = _KINDS.get(f"{ancestor.__module__}.{ancestor.__qualname__}")
        if found is not None:
            return NormKind(found[0], _channels(module), fused, found[1])
    name = _class_name(module)
    if name.startswith("FrozenBatchNorm"):
        return NormKind("frozen batch", _channels(module), fused, _FROZEN)
    if name.startswith("EvoNorm"):
        return NormKind("other", _channels(module), fused, _OWN_ACTIVATION)
    return None


def is_batch(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm, torch's or ours, that another norm may replace.

    Example:
        >>> is_batch(nn.BatchNorm1d(3)), is_batch(nn.GroupNorm(1, 3))
        (True, False)
    """
    kind = kind_of(module)
    if kind is None or kind.refusal is not None:
        return False
    return kind.name in ("batch", "sync batch") or isinstance(module, BatchNorm)


def has_own_forward(module: nn.Module) -> bool:
    """Whether a BatchNorm computes something else than its class says, so that another one would not do in its place.

    Example:
        >>> class Halved(nn.BatchNorm2d):
        ...     def forward(self, x):
        ...         return super().forward(x) / 2
        >>> has_own_forward(Halved(3)), has_own_forward(nn.BatchNorm2d(3))
        (True, False)
    """
    if isinstance(module, NormLayer):
        return False
    owner = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    return "forward" in vars(module) or f"{owner.__module__}.{owner.__qualname__}" not in _KNOWN_FORWARDS


_KNOWN_FORWARDS = (
    "torch.nn.modules.batchnorm._BatchNorm",
    "torch.nn.modules.batchnorm.SyncBatchNorm",
    "timm.layers.norm_act.BatchNormAct2d",
    "timm.layers.norm_act.SyncBatchNormAct",
)


def fuses(module: nn.Module) -> bool:
    """Whether a norm put beside this module becomes one with it: a plain BatchNorm, or a Chain.

    Example:
        >>> fuses(nn.BatchNorm2d(3)), fuses(nn.Conv2d(3, 3, 1))
        (True, False)
    """
    return type(module) is Chain or (is_batch(module) and not has_own_forward(module))


def _channels(module: nn.Module) -> int | None:
    for name in ("num_features", "num_channels"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, (tuple, list)) and len(shape) == 1:
        return int(shape[0])
    weight = getattr(module, "weight", None)
    return weight.numel() if isinstance(weight, torch.Tensor) and weight.dim() == 1 else None


def _class_name(module: nn.Module) -> str:
    # A parametrized module's class is made at run time and called Parametrized...
    return type(module).__name__.removeprefix("Parametrized")


_WRAPPERS = {
    "DataParallel": "unwrap it (model.module), convert, wrap again",
    "DistributedDataParallel": "convert before wrapping: it has registered the parameters already",
    "FullyShardedDataParallel": "convert before wrapping: it has sharded the parameters already",
    "OptimizedModule": "convert first, then torch.compile",
}


# They stand in a model that can be quantized, and compute in floating point until it is.
_STILL_FLOAT = ("FloatFunctional", "FXFloatFunctional")


def refuse_model(model: nn.Module) -> None:
    """Refuse, by name, a model whose modules cannot be exchanged.

    Example:
        >>> refuse_model(nn.DataParallel(nn.ReLU()))
        Traceback (most recent call last):
        ...
        TypeError: surgery: expected the model itself, got it wrapped in DataParallel; unwrap it ...

    Raises:
        TypeError: if the model is no module, scripted, compiled, wrapped for several devices, or quantized.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"surgery: expected a torch.nn.Module, got {type(model).__name__}.")
    name = type(model).__name__
    if name in _WRAPPERS:
        raise TypeError(f"surgery: expected the model itself, got it wrapped in {name}; {_WRAPPERS[name]}.")
    for path, module in model.named_modules():
        at = f"{path or 'the root'} is {type(module).__name__}"
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"surgery: expected a model of Python modules, got a scripted one ({at}). "
                "Convert before torch.jit.script or trace."
            )
        if type(module).__name__ in _STILL_FLOAT:
            continue
        home = type(module).__module__
        if "quantized" in home.split(".") or ".intrinsic" in home or home.startswith("torch.ao.nn"):
            raise TypeError(
                f"surgery: expected a model in floating point, got a quantized one ({at}). Convert before quantizing."
            )
