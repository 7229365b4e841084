"""What launches the Triton kernels, on tensors that the backend has let through.

``wrap`` is ``torch.library.wrap_triton`` where a compiler or exporter looks on.
"""

# pyright: reportUnknownMemberType=false
# The arguments of a Triton kernel have no types.

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from shiftnorm.ops import triton_kernels as kernels
from shiftnorm.ops.triton_launch import (
    Launch,
    PixelLaunch,
    SetLaunch,
    View,
    map_launch,
    programs,
    sum_launch,
    view_of,
)

_JOINED = 1024  # most elements of the tile that joins splits

Wrap = Callable[[Any], Any]


def bare(kernel: Any) -> Any:
    """The kernel itself: what ``wrap`` is outside of compilers."""
    return kernel


def moments(x: Tensor, mask: Tensor | None = None, *, wrap: Wrap = bare) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per plane, (N, C) float32 each: one read of x.

    With a mask, (N or 1, 1, *), of the places where it is nonzero; the rest may hold anything, and a plane without any
    gets mean 0 and variance 0.
    """
    places, sharing = _places(mask, x)
    return _sums(x, kernels.moments_tile, (x, places), kernels.join_moments, 4, wrap, sharing)


def apply(
    x: Tensor,
    gain: Tensor,
    center: Tensor,
    mean: Tensor,
    residual: Tensor | None = None,
    activation: str = "none",
    *,
    wrap: Wrap = bare,
) -> Tensor:
    """``activation(gain * (x - center) + mean + residual)``: one read, with a residual two, and one write."""
    y = torch.empty_like(x)
    rows = _coefficients(x, gain, center, mean)
    _map(x, kernels.apply_tile, (x, as_laid_out(residual, x), *rows, y), wrap, ACTIVATION=activation)
    return y


def reduce(
    g: Tensor,
    x: Tensor,
    center: Tensor,
    gain: Tensor | None = None,
    mean: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    *,
    wrap: Wrap = bare,
) -> tuple[Tensor, Tensor]:
    """Sum over each plane of h and of ``h * (x - center)``, (N, C) float32 each: one read of every tensor.

    h is g, or, where :func:`apply` had an activation, the gradient of what it took; gain, mean and residual are for
    this alone.
    """
    if activation == "none":
        gain = mean = residual = None
    tensors = (as_laid_out(g, x), x, as_laid_out(residual, x), *_coefficients(x, center, gain, mean))
    return _sums(x, kernels.reduce_tile, tensors, kernels.join_sums, 2, wrap, ACTIVATION=activation)


def combine(
    g: Tensor | None,
    x: Tensor,
    gain: Tensor | None,
    center: Tensor,
    slope: Tensor | None,
    offset: Tensor | None,
    mean: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    *,
    mask: Tensor | None = None,
    wrap: Wrap = bare,
) -> tuple[Tensor, Tensor | None]:
    """``gain * h + slope * (x - center) + offset`` and, with a residual, h: one read and one write of each.

    h is that of :func:`reduce`. g and gain may be None, or slope and offset; these two act where the mask is nonzero.
    """
    dx = torch.empty_like(x)
    dresidual = None if residual is None else torch.empty_like(x, dtype=residual.dtype)
    if activation == "none":
        mean = residual = None
    places, sharing = _places(mask, x)
    rows = _coefficients(x, center, gain, mean, slope, offset)
    tensors = (as_laid_out(g, x), x, places, as_laid_out(residual, x), *rows, dx, dresidual)
    _map(x, kernels.combine_tile, tensors, wrap, sharing, ACTIVATION=activation)
    return dx, dresidual


def _map(
    x: Tensor, kernel: Any, tensors: tuple[Tensor | None, ...], wrap: Wrap, *numbers: int, **constants: str
) -> None:
    """Launch a kernel that takes x element by element."""
    view = view_of(x)
    launch = map_launch(view)
    grid, sizes, tile = _arguments(view, launch)
    with torch.cuda.device_of(x):
        wrap(kernel)[grid](*tensors, *sizes, launch.splits, *numbers, **tile, **constants)


def _sums(
    x: Tensor,
    kernel: Any,
    tensors: tuple[Tensor | None, ...],
    join: Any,
    left: int,
    wrap: Wrap,
    *numbers: int,
    **constants: str,
) -> tuple[Tensor, Tensor]:
    """Launch a kernel that sums over planes; where these are split, also the one that joins what each split left."""
    view = view_of(x)
    launch = sum_launch(view)
    grid, sizes, tile = _arguments(view, launch)
    rows, splits = view.groups * view.planes, launch.splits
    results = _empty(2, x.shape[:2], x)
    parts = [*results, *[None] * (left - 2)] if splits == 1 else _empty(left, (splits, *x.shape[:2]), x)
    sizes = (*sizes, launch.segment // launch.places, splits, rows)
    with torch.cuda.device_of(x):
        wrap(kernel)[grid](*tensors, *parts, *sizes, *numbers, **tile, ONCE=launch.is_single, **constants)
        if splits > 1:
            grid, tile = _joining(rows, splits)
            wrap(join)[grid](*parts, *results, rows, splits, **tile)
    return results[0], results[1]


def _empty(count: int, shape: tuple[int, ...], x: Tensor) -> list[Tensor]:
    return [torch.empty(shape, dtype=torch.float32, device=x.device) for _ in range(count)]


@lru_cache(maxsize=4096)
def _arguments(view: View, launch: Launch) -> tuple[tuple[int], tuple[int, int], dict[str, Any]]:
    """Grid, sizes in units, and the constants of a tile."""
    return (programs(view, launch),), *tile_of(view, launch)


@lru_cache(maxsize=4096)
def set_arguments(view: View, launch: SetLaunch) -> tuple[tuple[int], tuple[int, int], dict[str, Any]]:
    """The same for a kernel that takes whole sets of planes."""
    sizes, tile = tile_of(view, launch)
    return (launch.programs,), sizes, {"SHARING": launch.sharing, "DEEP": launch.deep, **tile}


def tile_of(view: View, launch: Launch | SetLaunch | PixelLaunch) -> tuple[tuple[int, int], dict[str, Any]]:
    """Sizes in units, and the constants of a tile."""
    unit = (1, view.unit) if view.rows else (view.unit, 1)
    tile = {"UNIT": view.unit, "ROWS": view.rows, "PLANES": launch.planes, "PLACES": launch.places}
    sizes = view.planes // unit[0], view.places // unit[1]
    return sizes, {**tile, "num_warps": launch.warps}


def _joining(rows: int, splits: int) -> tuple[tuple[int], dict[str, Any]]:
    width = 1 << (splits - 1).bit_length()
    planes = min(max(_JOINED // width, 4), 1 << (rows - 1).bit_length(), 32)
    return (-(-rows // planes),), {"PLANES": planes, "SPLITS": width}


def _coefficients(x: Tensor, *coefficients: Tensor | None) -> list[Tensor | None]:
    # The kernels believe what they are told: any other dtype or shape would be read past its end.
    shape = x.shape[:2]
    return [
        row
        if row is None or (row.dtype is torch.float32 and row.shape == shape and row.is_contiguous())
        else row.to(torch.float32).expand(shape).contiguous()
        for row in coefficients
    ]


def as_laid_out(g: Tensor | None, x: Tensor) -> Tensor | None:
    """g laid out as x is: gradients come in any layout."""
    if g is None:
        return None
    if g.shape != x.shape:
        raise ValueError(f"the Triton kernels: expected g of x's shape {tuple(x.shape)}, got {tuple(g.shape)}.")
    g = g.resolve_neg()
    return g.contiguous() if x.is_contiguous() else g.movedim(1, -1).contiguous().movedim(-1, 1)


def _places(mask: Tensor | None, x: Tensor) -> tuple[Tensor | None, int]:
    """The mask as bool (N, S), or (1, S) where all samples share one; and how many planes share a row of it."""
    if mask is None:
        return None, 1
    samples = x.shape[0] if mask.shape[0] > 1 else 1
    places = (mask != 0).expand(samples, 1, *x.shape[2:]).reshape(samples, -1).contiguous()
    return places, int(x.shape[0] * x.shape[1] // samples)
