"""Norms that run as one: their moments pass, what they make of the moments, and the pass that applies it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shiftnorm.norms.algebra import algebra_by_kernel, algebra_of, compiled_algebra
from shiftnorm.ops import Affine, Moments, has_retargeting, is_traced, moments
from shiftnorm.ops.epilogue import ACTIVATIONS, apply_activated, normalize_activated

if TYPE_CHECKING:
    from shiftnorm.norms.base import MomentNorm

__all__ = ["run_fused"]


def run_fused(
    norms: Sequence[MomentNorm],
    x: Tensor,
    draws: Sequence[Any],
    mask: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """Run several norms in one moments pass and one apply pass; norms that are the identity now take no part.

    An activation that follows them, by its name in ``ops.epilogue``, is part of the second pass where it can be.

    Example:
        >>> from shiftnorm.norms import BatchNorm, SelfNorm
        >>> norms, x = [BatchNorm(3), SelfNorm(3)], torch.randn(2, 3, 4, 4)
        >>> run_fused(norms, x, [None, None]).shape
        torch.Size([2, 3, 4, 4])
    """
    pairs = zip(norms, draws, strict=True)
    live = [(norm, draw) for norm, draw in pairs if not (norm.is_identity or _rests(norm, draw))]
    if not live:
        return ACTIVATIONS[activation](x)
    region: Tensor | None = None
    regions: list[Moments] = []
    constant = False
    if len(live) == 1:
        norm, draw = live[0]
        constant = norm.constant_moments
        if mask is not None and norm.is_regional:
            raise ValueError(f"{type(norm).__name__}: its own region and a mask cannot be combined; drop one of them.")
        region = norm.acting_region(x, draw)
        regions = [moments(x, part) for part in norm.regions(x, draw)]

    algebra = None if is_traced(x) else compiled_algebra(live, x.shape[1])
    by_kernel = algebra is None and not regions and has_retargeting(x)

    def to_affine(m: Moments) -> Affine:
        return algebra_by_kernel(live, m) if by_kernel else (algebra or algebra_of)(live, regions, m)

    after = activation if region is None else "none"  # what acts in a region only comes before what acts everywhere
    if any(norm.needs_moments for norm, _ in live):
        y = normalize_activated(x, to_affine, activation=after, mask=mask, constant=constant)
    else:
        origin = _origin(x)
        y = apply_activated(x, origin, to_affine(origin), activation=after)
    return y if region is None else ACTIVATIONS[activation](torch.where(region, y, x))


def _rests(norm: MomentNorm, draw: Any) -> bool:
    # Compiled, a norm that rests is part of the same graph; without it there would be one more to compile.
    return norm.algebra_backend is None and norm.rests(draw)


def _origin(x: Tensor) -> Moments:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = (1, x.shape[1])
    return Moments(x.new_zeros(shape, dtype=wide), x.new_ones(shape, dtype=wide), math.prod(x.shape[2:]))
