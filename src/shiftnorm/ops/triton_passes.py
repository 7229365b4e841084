"""What launches the Triton kernels: the four passes and the masked ones, on tensors that the backend has let through.

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
from shiftnorm.ops.triton_launch import Launch, View, map_launch, programs, sum_launch, view_of

_JOINED = 1024  # most elements of the tile that joins splits

Wrap = Callable[[Any], Any]


def _bare(kernel: Any) -> Any:
    return kernel


def moments(x: Tensor, *, wrap: Wrap = _bare) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per plane, (N, C) float32 each: one read of x."""
    return _moments(x, None, wrap)


def masked_moments(x: Tensor, mask: Tensor, *, wrap: Wrap = _bare) -> tuple[Tensor, Tensor]:
    """As :func:`moments`, of the places where mask, (N or 1, 1, *), is nonzero; the rest may hold anything.

    A plane without any gets mean 0 and variance 0.
    """
    return _moments(x, _places(mask, x), wrap)


def apply(x: Tensor, gain: Tensor, center: Tensor, mean: Tensor, *, wrap: Wrap = _bare) -> Tensor:
    """``gain * (x - center) + mean``: one read and one write."""
    y = torch.empty_like(x)
    grid, sizes, constants = _map_arguments(view_of(x))
    with torch.cuda.device_of(x):
        wrap(kernels.apply_tile)[grid](x, *_coefficients(x, gain, center, mean), y, *sizes, **constants)
    return y


def reduce(g: Tensor, x: Tensor, center: Tensor, *, wrap: Wrap = _bare) -> tuple[Tensor, Tensor]:
    """Sum over each plane of g and of ``g * (x - center)``, (N, C) float32 each: one read of each."""
    g, (center,) = _like(g, x), _coefficients(x, center)
    grid, sizes, constants, splits = _sum_arguments(view_of(x))
    channels = x.shape[1]
    total, product = _rows(x, 2, splits)
    with torch.cuda.device_of(x):
        wrap(kernels.reduce_tile)[grid](g, x, center, total, product, *sizes, channels, **constants)
        if splits == 1:
            return total, product
        joined = _rows(x, 2)
        grid, constants = _joining(x, splits)
        wrap(kernels.join_sums)[grid](total, product, *joined, channels, splits, **constants)
    return joined[0], joined[1]


def combine(
    g: Tensor, x: Tensor, gain: Tensor, center: Tensor, slope: Tensor, offset: Tensor, *, wrap: Wrap = _bare
) -> Tensor:
    """``gain * g + slope * (x - center) + offset``: two reads and one write."""
    return _combine(g, x, None, gain, center, slope, offset, wrap)


def masked_combine(
    g: Tensor | None,
    x: Tensor,
    mask: Tensor,
    gain: Tensor | None,
    center: Tensor,
    slope: Tensor,
    offset: Tensor,
    *,
    wrap: Wrap = _bare,
) -> Tensor:
    """As :func:`combine` with slope and offset acting where mask is nonzero; g None is zero."""
    return _combine(g, x, _places(mask, x), gain, center, slope, offset, wrap)


def _moments(x: Tensor, mask: Tensor | None, wrap: Wrap) -> tuple[Tensor, Tensor]:
    grid, sizes, constants, splits = _sum_arguments(view_of(x))
    if mask is not None:
        constants = {**constants, "STAGES": 1}  # loading ahead would spill
    channels = x.shape[1]
    mean, spread = _rows(x, 2, splits)
    anchor, count = (mean, mean) if splits == 1 else _rows(x, 2, splits)
    with torch.cuda.device_of(x):
        wrap(kernels.moments_tile)[grid](
            *(x, x if mask is None else mask, mean, spread, anchor, count),
            *sizes,
            *(channels, _mask_stride(mask)),
            **constants,
            MASKED=mask is not None,
        )
        if splits == 1:
            return mean, spread
        joined = _rows(x, 2)
        grid, constants = _joining(x, splits)
        wrap(kernels.join_moments)[grid](anchor, mean, spread, count, *joined, channels, splits, **constants)
    return joined[0], joined[1]


def _combine(
    g: Tensor | None,
    x: Tensor,
    mask: Tensor | None,
    gain: Tensor | None,
    center: Tensor,
    slope: Tensor,
    offset: Tensor,
    wrap: Wrap,
) -> Tensor:
    dx = torch.empty_like(x)
    has_g = g is not None
    g = x if g is None else _like(g, x)
    gain, center, slope, offset = _coefficients(x, center if gain is None else gain, center, slope, offset)
    grid, sizes, constants = _map_arguments(view_of(x))
    with torch.cuda.device_of(x):
        wrap(kernels.combine_tile)[grid](
            *(g, x, x if mask is None else mask),
            *(gain, center, slope, offset, dx),
            *sizes,
            *(x.shape[1], _mask_stride(mask)),
            **constants,
            HAS_G=has_g,
            MASKED=mask is not None,
        )
    return dx


def _rows(x: Tensor, count: int, splits: int = 1) -> list[Tensor]:
    n, c = x.shape[:2]
    shape = (n, c) if splits == 1 else (n, splits, c)
    return [torch.empty(shape, dtype=torch.float32, device=x.device) for _ in range(count)]


@lru_cache(maxsize=4096)
def _sum_arguments(view: View) -> tuple[tuple[int], tuple[int, ...], dict[str, Any], int]:
    """Grid, sizes, constants and splits."""
    launch = sum_launch(view)
    planes, places, *strides = _in_units(view)
    constants = {"ONCE": launch.is_single, "STAGES": launch.stages, "WHOLE": launch.splits == 1}
    sizes = (planes, places, launch.segment, launch.splits, *strides)
    return (programs(view, launch),), sizes, _tile(view, launch) | constants, launch.splits


@lru_cache(maxsize=4096)
def _map_arguments(view: View) -> tuple[tuple[int], tuple[int, ...], dict[str, Any]]:
    """Grid, sizes and constants."""
    launch = map_launch(view)
    planes, places, *strides = _in_units(view)
    return (programs(view, launch),), (planes, places, launch.splits, *strides), _tile(view, launch)


def _in_units(view: View) -> tuple[int, int, int, int]:
    plane_unit, place_unit = view.plane_unit, view.place_unit
    return (
        *(view.planes // plane_unit, view.places // place_unit),
        *(view.plane_stride // place_unit, view.place_stride // plane_unit),
    )


def _tile(view: View, launch: Launch) -> dict[str, Any]:
    return {
        "PLANE_UNIT": view.plane_unit,
        "PLACE_UNIT": view.place_unit,
        "PLANES": launch.planes,
        "PLACES": launch.places,
        "num_warps": launch.warps,
    }


def _joining(x: Tensor, splits: int) -> tuple[tuple[int], dict[str, Any]]:
    width = 1 << (splits - 1).bit_length()
    planes = min(max(_JOINED // width, 4), 1 << (int(x.shape[1]) - 1).bit_length(), 32)
    return (int(x.shape[0]) * -(-int(x.shape[1]) // planes),), {"PLANES": planes, "SPLITS": width}


def _mask_stride(mask: Tensor | None) -> int:
    return 0 if mask is None or mask.shape[0] == 1 else mask.shape[1]


def _coefficients(x: Tensor, *coefficients: Tensor) -> list[Tensor]:
    # The kernels believe what they are told: any other dtype or shape would be read past its end.
    shape = x.shape[:2]
    return [
        row
        if row.dtype is torch.float32 and row.shape == shape and row.is_contiguous()
        else row.to(torch.float32).expand(shape).contiguous()
        for row in coefficients
    ]


def _like(g: Tensor, x: Tensor) -> Tensor:
    """g laid out as x is: gradients come in any layout."""
    if g.shape != x.shape:
        raise ValueError(f"the Triton kernels: expected g of x's shape {tuple(x.shape)}, got {tuple(g.shape)}.")
    g = g.resolve_neg()
    return g.contiguous() if x.is_contiguous() else g.movedim(1, -1).contiguous().movedim(-1, 1)


def _places(mask: Tensor, x: Tensor) -> Tensor:
    """The mask as bool (N, S), or (1, S) where all samples share one."""
    samples = x.shape[0] if mask.shape[0] > 1 else 1
    return (mask != 0).expand(samples, 1, *x.shape[2:]).reshape(samples, -1).contiguous()
