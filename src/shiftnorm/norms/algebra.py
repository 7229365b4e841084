"""What norms that run as one compute between their two passes: on (N, C) tensors, as it stands or compiled."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch

from shiftnorm.ops import Affine, Exchange, Gate, Moments, Pool, retarget

if TYPE_CHECKING:
    from shiftnorm.norms.base import MomentNorm

    Live = Sequence[tuple[MomentNorm, Any]]

__all__ = ["algebra_by_kernel", "algebra_of", "compiled_algebra"]

Algebra = Callable[..., Affine]


def algebra_of(live: Live, regions: Sequence[Moments], m: Moments) -> Affine:
    """What norms that run as one make of the moments of x; a single one is also given those of its regions.

    Example:
        >>> from shiftnorm.norms import BatchNorm, SelfNorm
        >>> m = Moments(torch.zeros(2, 3), torch.ones(2, 3), 36)
        >>> algebra_of([(BatchNorm(3), None), (SelfNorm(3), None)], [], m).gain.shape
        torch.Size([2, 3])

    Args:
        live: the norms and their draws, in order.
        regions: what a single regional norm asked for.
        m: moments of x.

    Returns:
        Gain and new mean, broadcastable to (N, C).
    """
    first, *rest = live
    if not rest:
        norm, draw = first
        return _affine_of(norm, m, draw, *regions)
    total = affine = _affine_around(m, *first)
    for norm, draw in rest:
        m = m.through(affine)
        affine = _affine_around(m, norm, draw)
        total = total.then(affine)
    return total


def algebra_by_kernel(live: Live, m: Moments) -> Affine:
    """The same for norms without regions, with a C++ kernel in the place of the formulas that ``ops.retarget`` knows.

    Example:
        >>> from shiftnorm.norms import BatchNorm, SelfNorm
        >>> m = Moments(torch.zeros(2, 3), torch.ones(2, 3), 36)
        >>> algebra_by_kernel([(BatchNorm(3), None), (BatchNorm(3), None)], m).mean.shape
        torch.Size([2, 3])

    Args:
        live: as in :func:`algebra_of`.
        m: as in :func:`algebra_of`, of an x for which ``has_retargeting`` is true.

    Returns:
        Gain and new mean, broadcastable to (N, C).
    """
    total: Affine | None = None
    left = list(live)
    while left:
        taken = _by_kernel(left, m, total)
        if taken is not None:
            count, total = taken
            left = left[count:]
        elif len(live) == 1:
            return algebra_of(live, (), m)
        else:
            affine = _affine_around(m if total is None else m.through(total), *left.pop(0))
            total = affine if total is None else total.then(affine)
    return cast("Affine", total)


def _by_kernel(left: Live, m: Moments, before: Affine | None) -> tuple[int, Affine] | None:
    """How many of the norms one kernel takes, and what it makes of them: BatchNorm if first, an exchange, a gate."""
    pool: Pool | None = None
    exchange: Exchange | None = None
    gate: Gate | None = None
    taken = 0
    for norm, draw in left[:3]:
        step = norm.step(m, draw)
        if isinstance(step, Pool) and before is None and taken == 0:
            pool = step
        elif isinstance(step, Exchange) and exchange is None and gate is None:
            exchange = step
        elif isinstance(step, Gate) and gate is None:
            gate = step
        else:
            break
        taken += 1
    if taken == 0:
        return None
    affine = retarget(m, pool or before, exchange, gate)
    return None if affine is None else (taken, affine)


def _affine_around(m: Moments, norm: MomentNorm, draw: Any) -> Affine:
    if not norm.constant_moments:
        return _affine_of(norm, m, draw)
    # y = gain * (x - constant) + mean, written around the mean that does carry a gradient
    affine = _affine_of(norm, m.detach(), draw)
    return Affine(affine.gain, affine.mean + affine.gain * (m.mean - m.mean.detach()))


def _affine_of(norm: MomentNorm, m: Moments, draw: Any, *regions: Moments) -> Affine:
    return norm.affine(m, *(() if draw is None else (draw,)), *regions)


def compiled_algebra(live: Live, channels: int) -> Algebra | None:
    """``algebra_of`` compiled for norms that run as one; None if that is not wanted or not possible.

    Example:
        >>> from shiftnorm.norms import SelfNorm
        >>> compiled_algebra([(SelfNorm(3), None)], 3) is None
        True

    Args:
        live: the norms and their draws, in order.
        channels: C.
    """
    backend = live[0][0].algebra_backend
    if backend is None or any(norm.algebra_backend != backend or _pools_ranks(norm) for norm, _ in live):
        return None
    return _compiled(tuple((type(norm), norm.training) for norm, _ in live), channels, backend)


def _pools_ranks(norm: MomentNorm) -> bool:
    return getattr(norm, "process_group", None) is not None


@cache
def _compiled(kinds: tuple[tuple[type, bool], ...], channels: int, backend: str | Callable[..., Any]) -> Algebra:
    # Dynamo keeps its graphs by code object and gives up after a few: each kind of norm gets a code object of its own.
    # So do channels: constants make faster kernels than symbols, and a network has few different numbers of them.
    name = "_".join([*(kind.__name__ for kind, _ in kinds), str(channels), "algebra"])
    plain = cast("types.FunctionType", algebra_of)
    own = types.FunctionType(plain.__code__.replace(co_name=name), plain.__globals__, name)
    return cast("Algebra", torch.compile(own, backend=backend))
