"""Making a norm of ours in the place of another module, with everything a user would miss carried over."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from shiftnorm import norms
from shiftnorm.norms import BatchNorm, NormLayer, RunningMoments
from shiftnorm.surgery.kinds import kind_of
from shiftnorm.surgery.norm_act import NormAct
from shiftnorm.surgery.sync import let_groups_be_copied

__all__ = ["NormSpec", "batch_norm_from", "carry_state", "norm_in_place_of"]


class NormSpec(NamedTuple):
    """How to build a norm: a name and keyword arguments, so that it can be written to a file.

    Example:
        >>> NormSpec.of(norms.IBN, {"ratio": 0.25})
        NormSpec(name='IBN', arguments={'ratio': 0.25}, factory=None)
        >>> NormSpec.of("IBN").build(8, {})
        IBN(8, ...)

    Args:
        name: one of ``shiftnorm.norms``, or the qualified name of a user's own.
        arguments: keyword arguments besides the channel count.
        factory: the user's own class or function from a channel count; None for one of ours.
    """

    name: str
    arguments: Mapping[str, Any] = {}
    factory: Callable[..., nn.Module] | None = None

    @staticmethod
    def of(norm: str | Callable[..., nn.Module], arguments: Mapping[str, Any] | None = None) -> NormSpec:
        """The spec of a norm given by name, class, function or ``functools.partial``.

        Example:
            >>> NormSpec.of("selfnorm").name
            'SelfNorm'

        Raises:
            TypeError: if it is neither a name nor callable, or a module instead of what makes one.
            ValueError: for an unknown name, with near matches.
        """
        arguments = dict(arguments or {})
        if isinstance(norm, str):
            return NormSpec(roster_name(norm), arguments)
        if isinstance(norm, nn.Module) or not callable(norm):
            raise TypeError(
                f"surgery: expected a norm's name, its class or a function from a channel count to a new module, got "
                f"{norm!r}. One module cannot stand in several places."
            )
        if isinstance(norm, functools.partial):
            if norm.args:
                raise TypeError(f"surgery: expected keyword arguments only in {norm!r}; the first one is the channels.")
            return NormSpec.of(norm.func, {**norm.keywords, **arguments})
        name = getattr(norm, "__name__", type(norm).__name__)
        if getattr(norms, name, None) is norm:
            return NormSpec(name, arguments)
        return NormSpec(f"{getattr(norm, '__module__', '')}.{getattr(norm, '__qualname__', name)}", arguments, norm)

    @property
    def short(self) -> str:
        """The name without its module.

        Example:
            >>> NormSpec("torch.nn.Identity").short
            'Identity'
        """
        return self.name.rpartition(".")[2]

    @property
    def maker(self) -> Callable[..., nn.Module] | None:
        """The class or function that is called; None for a user's own norm that nobody has passed.

        Example:
            >>> NormSpec("IBN").maker is norms.IBN, NormSpec("os.remove").maker
            (True, None)
        """
        return self.factory or (getattr(norms, self.name) if self.name in _roster() else None)

    def makes(self, module: nn.Module) -> bool:
        """Whether a module is of the class that this makes.

        Example:
            >>> NormSpec("GroupNorm").makes(nn.GroupNorm(1, 3)), NormSpec("GroupNorm").makes(norms.GroupNorm(3, 1))
            (False, True)
        """
        return type(module) is self.maker

    def __deepcopy__(self, memo: Any) -> NormSpec:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # A user's function is often a lambda, and must not keep the model that remembers it from being pickled.
        return NormSpec, (self.name, dict(self.arguments))

    def build(self, channels: int, more: Mapping[str, Any]) -> nn.Module:
        """A new module for a number of channels.

        Example:
            >>> NormSpec("InstanceNorm").build(4, {"affine": True, "momentum": 0.1}).affine is not None
            True

        Args:
            channels: C.
            more: arguments for those of the norm's parameters that exist and ``arguments`` does not give.

        Raises:
            ValueError: if the file's name is a user's own norm that nobody passed.
            TypeError: if the result is no module.
        """
        factory = self.maker
        if factory is None:
            raise ValueError(
                f"surgery: {self.name} is no norm of shiftnorm; pass it where the model is loaded, as "
                f"norms={{{self.name!r}: your_class}}."
            )
        known = inspect.signature(factory).parameters
        extra = {key: value for key, value in more.items() if key in known and key not in self.arguments}
        made = factory(channels, **self.arguments, **extra)
        if not isinstance(made, nn.Module):
            raise TypeError(f"surgery: expected {self.name} to return a module, got {made!r}.")
        return made


def roster_name(name: str) -> str:
    """The exact name of a norm of ours; case, ``_`` and ``-`` do not matter.

    Example:
        >>> roster_name("batch-instance_norm")
        'BatchInstanceNorm'

    Raises:
        ValueError: for an unknown name, with near matches.
    """
    layers = {plain(key): key for key in _roster()}
    if plain(name) in layers:
        return layers[plain(name)]
    near = difflib.get_close_matches(plain(name), layers, n=3, cutoff=0.5)
    hint = (
        f"did you mean {', '.join(layers[key] for key in near)}?" if near else f"known: {', '.join(layers.values())}."
    )
    raise ValueError(f"surgery: unknown norm {name!r}; {hint}")


@functools.cache
def _roster() -> tuple[str, ...]:
    """The norms that are made from a channel count."""

    def is_layer(kind: Any) -> bool:
        return isinstance(kind, type) and issubclass(kind, NormLayer) and not inspect.isabstract(kind)

    return tuple(
        key for key in norms.__all__ if key == "CNSN" or (is_layer(getattr(norms, key)) and key not in _NO_NORMS)
    )


_NO_NORMS = ("NormLayer", "Chain")


def plain(name: str) -> str:
    """A name without case, ``_`` and ``-``, for comparing.

    Example:
        >>> plain("IBN-a") == plain("ibn_a")
        True
    """
    return name.replace("_", "").replace("-", "").casefold()


def norm_in_place_of(old: nn.Module, spec: NormSpec) -> tuple[nn.Module, tuple[str, ...]]:
    """A new norm that takes the place of an old one.

    Example:
        >>> old = nn.BatchNorm2d(4, eps=1e-3)
        >>> new, kept = norm_in_place_of(old, NormSpec("IBN"))
        >>> new.weight is old.weight, new.eps, kept
        (True, 0.001, ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'))

    Args:
        old: a norm whose kind says its channels.
        spec: what to make.

    Returns:
        The norm, and the names of the tensors it shares with the old one.
    """
    kind = kind_of(old)
    if kind is None or kind.channels is None:
        raise ValueError(f"surgery: expected a norm that says its channels, got {type(old).__name__}.")
    own_weight = getattr(old, "weight", None)
    like = {
        "eps": getattr(old, "eps", 1e-5),
        "momentum": getattr(old, "momentum", 0.1),
        "affine": own_weight is not None,
        "track_running_stats": getattr(old, "running_mean", None) is not None,
    }
    if kind.name not in ("batch", "sync batch") and not isinstance(old, RunningMoments):
        del like["momentum"], like["track_running_stats"]
    new = spec.build(kind.channels, like)
    kept = carry_state(old, new)
    if kind.name == "sync batch":
        carry_group(old, new)
    return new, kept


def batch_norm_from(old: nn.Module) -> BatchNorm:
    """Our BatchNorm in the place of torch's, sharing every tensor; ours is returned as it is.

    Example:
        >>> batch_norm_from(nn.BatchNorm2d(4).eval()).training
        False
    """
    if isinstance(old, BatchNorm):
        return old
    new, _ = norm_in_place_of(old, NormSpec("BatchNorm"))
    assert isinstance(new, BatchNorm)
    return new


def carry_group(old: nn.Module, new: nn.Module) -> None:
    """Let a norm pool over the ranks that a SyncBatchNorm pooled over.

    Example:
        >>> new = BatchNorm(3)
        >>> carry_group(nn.SyncBatchNorm(3), new)
        >>> new.process_group is None
        True
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    let_groups_be_copied()
    group = getattr(old, "process_group", None) or torch.distributed.group.WORLD
    for part in new.modules():
        if isinstance(part, RunningMoments):
            part.process_group = group


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def carry_state(old: nn.Module, new: nn.Module) -> tuple[str, ...]:
    """Give a new module what the old one has: tensors of one name and shape, mode, dtype, device, hooks.

    Parameters and buffers are shared, not copied, so that optimizers, ties and ``requires_grad`` stay what they are.
    The dictionaries of hooks are shared too: handles that a user holds still remove their hooks.

    Example:
        >>> old, new = nn.BatchNorm2d(3).double().eval(), norms.RepresentativeBatchNorm(3)
        >>> carry_state(old, new)[:2], new.center_weight.dtype, new.training
        (('weight', 'bias'), torch.float64, False)

    Returns:
        The names of the tensors that are shared.
    """
    like_dtype_and_device(old, new)
    kept: list[str] = []
    parametrized = set(getattr(old, "parametrizations", ())) if parametrize.is_parametrized(old) else set()
    for name, made in list(new.named_parameters(recurse=False)):
        mine = old._parameters.get(name)
        if name in parametrized:
            parametrize.transfer_parametrizations_and_params(old, new, name)
            kept.append(name)
        elif mine is not None and mine.shape == made.shape:
            new._parameters[name] = mine
            kept.append(name)
    for name, made in list(new.named_buffers(recurse=False)):
        mine = old._buffers.get(name)
        if mine is not None and mine.shape == made.shape:
            new._buffers[name] = mine
            kept.append(name)
    new.train(old.training)
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))
    if getattr(old, "_is_full_backward_hook", None) is not None:
        new._is_full_backward_hook = old._is_full_backward_hook
    return tuple(kept)


def give_back_state(new: nn.Module, old: nn.Module, kept: tuple[str, ...]) -> None:
    """The inverse of :func:`carry_state`: the old module takes the shared tensors as they are now, and the mode.

    Example:
        >>> old, new = nn.BatchNorm2d(3), norms.IBN(3)
        >>> kept = carry_state(old, new)
        >>> give_back_state(new.double().eval(), old, kept)
        >>> old.weight.dtype, old.running_mean.dtype, old.training
        (torch.float64, torch.float64, False)
    """
    like_dtype_and_device(new, old)
    for name in kept:
        for store in ("_parameters", "_buffers"):
            if name in getattr(new, store) and name in getattr(old, store):
                getattr(old, store)[name] = getattr(new, store)[name]
    old.train(new.training)


def like_dtype_and_device(old: nn.Module, new: nn.Module) -> None:
    """Move a module to the device and floating dtype of another one, where that has tensors.

    Example:
        >>> new = nn.BatchNorm2d(3)
        >>> like_dtype_and_device(nn.Linear(2, 2).half(), new)
        >>> new.weight.dtype
        torch.float16
    """
    tensors = [*old.parameters(), *old.buffers()]
    floating = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if floating is None:
        return
    if floating.is_meta:
        new.to_empty(device="meta").to(dtype=floating.dtype)
    else:
        new.to(device=floating.device, dtype=floating.dtype)


def around(norm: nn.Module, old: nn.Module) -> nn.Module:
    """A norm with the drop and activation that ran behind the old one inside the same module, and with its hooks.

    Example:
        >>> around(norms.BatchNorm(3), nn.BatchNorm2d(3))
        BatchNorm(3, ...)
    """
    kind = kind_of(old)
    parts = {name: getattr(old, name) for name in kind.fused} if kind else {}
    if kind is None or all(isinstance(part, nn.Identity) for part in parts.values()):
        return norm
    drop, act = parts.get("drop", nn.Identity()), parts.get("act", nn.Identity())
    whole = NormAct(kind.channels or 0, norm=lambda _: norm, drop_layer=lambda: drop, act_layer=lambda **_: act)
    whole.train(old.training)
    for name in _HOOKS:  # they expect what comes out of the activation
        setattr(norm, name, getattr(whole, name))
        setattr(whole, name, getattr(old, name))
    return whole
