"""Let every norm that pools over the batch pool over all ranks of a distributed job, and undo it."""

from __future__ import annotations

import copyreg
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import distributed, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from shiftnorm.norms import DSU, BatchNorm, MixtureNorm, NormLayer, RunningMoments
from shiftnorm.surgery.kinds import kind_of, refuse_model
from shiftnorm.surgery.norm_act import NormAct

__all__ = ["SyncRow", "sync", "unsync"]


class SyncRow(NamedTuple):
    """What became of one norm.

    Example:
        >>> print(SyncRow("bn1", "BatchNorm2d", "BatchNorm", ""))
        bn1: BatchNorm2d -> BatchNorm

    Args:
        path: dotted name of the module; "" is the model itself.
        was: name of its class before.
        now: name of its class after.
        reason: why it was left as it is; empty if it was switched.
    """

    path: str
    was: str
    now: str
    reason: str

    def __str__(self) -> str:
        where = self.path or "the model itself"
        if self.reason:
            return f"{where}: {self.was} left alone, {self.reason}"
        return f"{where}: {self.was}" + ("" if self.was == self.now else f" -> {self.now}")


class _Before(NamedTuple):
    """What a module was before ``sync``: class and group, the attributes it did not have, and those ours would hide."""

    type: type[nn.Module]
    process_group: object | None
    added: tuple[str, ...] = ()
    hidden: Mapping[str, Any] = {}


_MEMORY = "_before_sync"

# Layers of ours that look at several samples and have no way to look at other ranks.
_LOCAL = {
    MixtureNorm: "it fits its mixture to the pixels of this rank's batch",
    DSU: "it draws from the spread within this rank's batch",
}

_WITH_ACTIVATION = {"timm.layers.norm_act.BatchNormAct2d", "timm.layers.norm_act.SyncBatchNormAct"}


def sync(model: nn.Module, process_group: object | None = None) -> tuple[nn.Module, list[SyncRow]]:
    """Make every norm that pools over the batch pool over the ranks of a torch.distributed group, in place.

    Our norms (gates inside SelfNorm and AttentiveNorm included) are told the group. A BatchNorm of torch changes its
    class to our BatchNorm and stays the same object, so its parameters, buffers, mode, hooks, ties and place in the
    model are untouched; the state_dict keeps its keys. SyncBatchNorm becomes ours too, with its own group; unlike it,
    ours runs on CPUs and with any backend. timm's BatchNormAct2d becomes a :class:`NormAct` with its drop and its
    activation. ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` and Lightning's ``sync_batchnorm=True`` leave norms of
    ours as they are, so call this instead of them.

    Call it once per rank, after ``torch.distributed.init_process_group`` and before the model is wrapped. From then on
    a forward pass in training is collective: all ranks have to run it. That holds in evaluation as well for a norm
    without running statistics, and for the sources that look at the batch.

    The whole model still deep-copies and pickles. A copy loaded in a process without the group pools over its own rank.

    Example:
        >>> distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        >>> model, rows = sync(model)
        >>> print(*rows, sep="\\n")
        1: BatchNorm2d -> BatchNorm
        >>> _ = unsync(model)
        >>> type(model[1]).__name__
        'BatchNorm2d'
        >>> distributed.destroy_process_group()

    Args:
        model: any model, also a single norm.
        process_group: the ranks to pool over; None for all of them, except that a norm with a group of its own
            keeps it.

    Returns:
        The model, and a row for every norm that was switched or that cannot be.

    Raises:
        RuntimeError: if torch.distributed has no process group yet.
        ValueError: if this rank is not in the group, or nothing in the model pools over the batch.
        TypeError: if the model is wrapped, compiled, scripted or quantized.
    """
    refuse_model(model)
    if not (distributed.is_available() and distributed.is_initialized()):
        raise RuntimeError(
            "sync: expected a process group, got none. Call torch.distributed.init_process_group first; with a single "
            "process there is nothing to pool over."
        )
    group: Any = process_group
    if group is not None and distributed.get_rank(group) < 0:
        raise ValueError(
            f"sync: expected a group that this rank is in, got one without rank {distributed.get_rank()}. "
            "Give every rank the group it belongs to."
        )
    rows: list[SyncRow] = []
    for path, module in list(model.named_modules()):
        row = _synced(path, module, group)
        if row is not None:
            rows.append(row)
    if all(row.reason for row in rows):
        raise ValueError(f"sync: expected a norm that pools over the batch, found none. {_found(model, rows)}")
    let_groups_be_copied()
    return model, rows


def let_groups_be_copied() -> None:
    """Make process groups copy and pickle by their name; torch's cannot, so that no norm that has one could be copied.

    Example:
        >>> let_groups_be_copied()
    """
    copyreg.pickle(distributed.ProcessGroup, _by_name)


def unsync(model: nn.Module) -> tuple[nn.Module, list[SyncRow]]:
    """Undo :func:`sync`: every norm is of the class it was, with the state it has now, and pools over what it pooled.

    Example:
        >>> unsync(nn.BatchNorm2d(3))
        Traceback (most recent call last):
        ...
        ValueError: unsync: expected a model that sync has changed, found no norm it has switched.

    Args:
        model: what :func:`sync` returned, or a copy of it; no process group is needed.

    Returns:
        The model, and a row for every norm that was switched back.

    Raises:
        ValueError: if sync has switched nothing in the model.
    """
    rows: list[SyncRow] = []
    for path, module in list(model.named_modules()):
        before: _Before | None = vars(module).get(_MEMORY)
        if before is None:
            continue
        now = type(module).__name__
        if isinstance(module, NormAct):
            norm = module._modules.pop("norm")
            assert isinstance(norm, BatchNorm)
            _move_tensors(norm, module)
            vars(module).update(eps=norm.eps, momentum=norm.momentum)
            vars(norm).pop(_MEMORY, None)  # from a second sync
        elif isinstance(module, RunningMoments):
            module.process_group = before.process_group
        for name in (*before.added, _MEMORY):
            delattr(module, name)
        vars(module).update(before.hidden)
        _set_class(module, before.type)
        rows.append(SyncRow(path, now, type(module).__name__, ""))
    if not rows:
        raise ValueError("unsync: expected a model that sync has changed, found no norm it has switched.")
    return model, rows


def _synced(path: str, module: nn.Module, group: Any) -> SyncRow | None:
    was = type(module).__name__.lstrip("_")  # gates have private classes
    if isinstance(module, NormLayer | RunningMoments):
        if type(module) in _LOCAL:
            return SyncRow(path, was, was, _LOCAL[type(module)])
        if not isinstance(module, RunningMoments) or not module.pools_batch:
            return None
        _remember(module, _Before(type(module), module.process_group))
        module.process_group = group or module.process_group or distributed.group.WORLD
        return SyncRow(path, was, was, "")
    reason = _refusal(module)
    if reason is not None:
        return SyncRow(path, was, was, reason)
    if not isinstance(module, _BatchNorm):
        return None
    group = group or getattr(module, "process_group", None) or distributed.group.WORLD
    if _qualified(module) in _WITH_ACTIVATION:
        _become_norm_act(module, group)
    else:
        _become_batch_norm(module, group)
    return SyncRow(path, was, type(module).__name__, "")


def _refusal(module: nn.Module) -> str | None:
    """Why a foreign norm that pools over the batch cannot be switched; None if it can, or is none."""
    kind = kind_of(module)
    if kind is None or kind.name not in ("batch", "sync batch", "other"):
        return None
    if kind.refusal is not None:
        return kind.refusal if getattr(module, "running_var", None) is not None else None
    if isinstance(module, LazyModuleMixin):
        return "it is lazy and has no shape yet; run the model once first"
    if parametrize.is_parametrized(module):
        return "its tensors are parametrized; remove the parametrization first"
    known = _qualified(module) in _WITH_ACTIVATION or type(module).forward in _TORCHS_OWN
    if not known or "forward" in vars(module):
        return f"{type(module).__qualname__} has a forward of its own that would be lost"
    if not module.track_running_stats and module.running_mean is not None:
        return "track_running_stats is off while it keeps running statistics, which ours would go on updating"
    return None


_TORCHS_OWN = (_BatchNorm.forward, SyncBatchNorm.forward)


def _qualified(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _remember(module: nn.Module, before: _Before) -> None:
    # Where sync is called twice, the first one knows what to go back to.
    vars(module).setdefault(_MEMORY, before)


def _become_batch_norm(module: _BatchNorm, group: object) -> None:
    own = vars(module)
    blank = vars(BatchNorm(1, affine=False, track_running_stats=False))
    added = tuple(name for name in blank if name not in own)
    # torch keeps its argument ``affine`` under the name of a method of ours.
    hidden = {name: own.pop(name) for name in list(own) if hasattr(BatchNorm, name) and not hasattr(nn.Module, name)}
    before = _Before(type(module), own.get("process_group"), added, hidden)
    own.update({name: blank[name] for name in added})
    _set_class(module, BatchNorm)
    own["process_group"] = group
    _remember(module, before)


def _become_norm_act(module: _BatchNorm, group: object) -> None:
    kind = type(module)
    norm = BatchNorm(module.num_features, module.eps, module.momentum, affine=False, track_running_stats=False)
    norm.track_running_stats = module.track_running_stats
    norm.training = module.training
    norm.process_group = group
    _move_tensors(module, norm)
    children = dict(module._modules)
    module._modules.clear()
    module._modules.update({"norm": norm, **children})
    _set_class(module, NormAct)
    _remember(module, _Before(kind, None))


def _set_class(module: nn.Module, kind: type[nn.Module]) -> None:
    # The object stays, so whoever holds it (parents, ties, hooks, lists of the user's) holds the switched norm.
    object.__setattr__(module, "__class__", kind)


def _move_tensors(source: nn.Module, target: nn.Module) -> None:
    for store in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
        getattr(target, store).clear()
        getattr(target, store).update(getattr(source, store))
        getattr(source, store).clear()


def _found(model: nn.Module, rows: list[SyncRow]) -> str:
    if rows:
        return " ".join(f"{row}." for row in rows)
    names = sorted({type(module).__name__ for module in model.modules() if kind_of(module) is not None})
    return f"Its norms are {', '.join(names)}." if names else "It has no norms."


def _by_name(group: Any) -> tuple[Any, tuple[str]]:
    return _group_named, (group.group_name,)


def _group_named(name: str) -> object | None:
    # torch can neither copy nor pickle a group, and a model in training is copied for averages and checkpoints.
    names = distributed.distributed_c10d._world.pg_names
    return next((group for group, known in names.items() if known == name), None)
