"""The second pass with what follows it, a residual sum and an activation, as Triton kernels, and its gradients.

The activation's input is computed again in the backward pass: nothing of x's size is kept for it.
"""

# pyright: basic, reportGeneralTypeIssues=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# Triton compiles the kernels and may be missing; to a type checker their values have no types.

from __future__ import annotations

import torch
from torch import Tensor

from shiftnorm.ops.triton_kernels import join_sums
from shiftnorm.ops.triton_launch import view_of
from shiftnorm.ops.triton_passes import (
    Wrap,
    _bare,
    _coefficients,
    _joining,
    _like,
    _map_arguments,
    _rows,
    _sum_arguments,
)
from shiftnorm.ops.triton_place import map_place, sum_place, tl, triton

ACTIVATIONS = ("none", "relu", "silu", "gelu")
"""What the kernels know, by number."""


@triton.jit
def _activated(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == 1:
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == 2:
        z = z * tl.sigmoid(z)
    elif ACTIVATION == 3:
        z = 0.5 * z * (1.0 + tl.math.erf(z * 0.7071067811865476))
    return z


@triton.jit
def _through(g, z, ACTIVATION: tl.constexpr):
    """The gradient in front of the activation, from g behind it."""
    if ACTIVATION == 1:
        g = tl.where(z <= 0, 0.0, g)
    elif ACTIVATION == 2:
        share = tl.sigmoid(z)
        g = g * share * (1.0 + z * (1.0 - share))
    elif ACTIVATION == 3:
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        g = g * (0.5 * (1.0 + tl.math.erf(z * 0.7071067811865476)) + z * density)
    return g


@triton.jit
def apply_activated_tile(
    x_ptr,
    residual_ptr,
    gain_ptr,
    center_ptr,
    mean_ptr,
    y_ptr,
    planes,
    length,
    splits,
    plane_stride,
    place_stride,
    PLANE_UNIT: tl.constexpr,
    PLACE_UNIT: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """``activation(gain * (x - center) + mean + residual)`` on one tile."""
    number, inside, live, _start, origin, tile = map_place(
        planes, length, splits, plane_stride, place_stride, PLANE_UNIT, PLACE_UNIT, PLANES, PLACES
    )
    x = tl.load(x_ptr + origin + tile, mask=live, other=0.0).to(tl.float32)
    gain = tl.load(gain_ptr + number, mask=inside, other=0.0)[:, None]
    center = tl.load(center_ptr + number, mask=inside, other=0.0)[:, None]
    z = gain * (x - center) + tl.load(mean_ptr + number, mask=inside, other=0.0)[:, None]
    if RESIDUAL:
        z += tl.load(residual_ptr + origin + tile, mask=live, other=0.0).to(tl.float32)
    tl.store(y_ptr + origin + tile, _activated(z, ACTIVATION).to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def reduce_activated_tile(
    g_ptr,
    x_ptr,
    residual_ptr,
    gain_ptr,
    center_ptr,
    mean_ptr,
    total_ptr,
    product_ptr,
    planes,
    length,
    segment,
    splits,
    plane_stride,
    place_stride,
    channels,
    PLANE_UNIT: tl.constexpr,
    PLACE_UNIT: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
    ONCE: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Sums of h and of ``h * (x - center)``, h being the gradient in front of the activation."""
    number, at, inside, _start, limit, origin, tile = sum_place(
        planes,
        length,
        segment,
        splits,
        plane_stride,
        place_stride,
        channels,
        PLANE_UNIT,
        PLACE_UNIT,
        PLANES,
        PLACES,
        WHOLE,
    )
    place = tl.arange(0, PLACES)
    walk = PLACES * (place_stride * PLANE_UNIT)
    g_tile = g_ptr + origin + tile
    x_tile = x_ptr + origin + tile
    residual_tile = residual_ptr + origin + tile
    gain = tl.load(gain_ptr + number, mask=inside, other=0.0)[:, None]
    center = tl.load(center_ptr + number, mask=inside, other=0.0)[:, None]
    mean = tl.load(mean_ptr + number, mask=inside, other=0.0)[:, None]
    total = tl.zeros([PLANES, PLACES], tl.float32)
    product = tl.zeros([PLANES, PLACES], tl.float32)
    for step in tl.range(0, 1 if ONCE else tl.cdiv(limit, PLACES), num_stages=STAGES):
        live = inside[:, None] & (place < limit - step * PLACES)[None, :]
        x = tl.load(x_tile, mask=live, other=0.0).to(tl.float32) - center
        z = gain * x + mean
        if RESIDUAL:
            z += tl.load(residual_tile, mask=live, other=0.0).to(tl.float32)
            residual_tile += walk
        h = _through(tl.load(g_tile, mask=live, other=0.0).to(tl.float32), z, ACTIVATION)
        h = tl.where(live, h, 0.0)
        total += h
        product += tl.where(live, h * x, 0.0)
        g_tile += walk
        x_tile += walk
    tl.store(total_ptr + at, tl.sum(total, 1), mask=inside)
    tl.store(product_ptr + at, tl.sum(product, 1), mask=inside)


@triton.jit
def combine_activated_tile(
    g_ptr,
    x_ptr,
    residual_ptr,
    gain_ptr,
    center_ptr,
    mean_ptr,
    slope_ptr,
    offset_ptr,
    dx_ptr,
    dresidual_ptr,
    planes,
    length,
    splits,
    plane_stride,
    place_stride,
    PLANE_UNIT: tl.constexpr,
    PLACE_UNIT: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    MOMENTS: tl.constexpr,
):
    """``gain * h``, with MOMENTS ``+ slope * (x - center) + offset``, and with RESIDUAL h itself."""
    number, inside, live, _start, origin, tile = map_place(
        planes, length, splits, plane_stride, place_stride, PLANE_UNIT, PLACE_UNIT, PLANES, PLACES
    )
    gain = tl.load(gain_ptr + number, mask=inside, other=0.0)[:, None]
    center = tl.load(center_ptr + number, mask=inside, other=0.0)[:, None]
    x = tl.load(x_ptr + origin + tile, mask=live, other=0.0).to(tl.float32) - center
    z = gain * x + tl.load(mean_ptr + number, mask=inside, other=0.0)[:, None]
    if RESIDUAL:
        z += tl.load(residual_ptr + origin + tile, mask=live, other=0.0).to(tl.float32)
    h = _through(tl.load(g_ptr + origin + tile, mask=live, other=0.0).to(tl.float32), z, ACTIVATION)
    dx = gain * h
    if MOMENTS:
        dx += tl.load(slope_ptr + number, mask=inside, other=0.0)[:, None] * x
        dx += tl.load(offset_ptr + number, mask=inside, other=0.0)[:, None]
    tl.store(dx_ptr + origin + tile, dx.to(dx_ptr.dtype.element_ty), mask=live)
    if RESIDUAL:
        tl.store(dresidual_ptr + origin + tile, h.to(dresidual_ptr.dtype.element_ty), mask=live)


def apply(
    x: Tensor,
    gain: Tensor,
    center: Tensor,
    mean: Tensor,
    residual: Tensor | None,
    activation: str,
    *,
    wrap: Wrap = _bare,
) -> Tensor:
    """``activation(gain * (x - center) + mean + residual)``: one read, with a residual two, and one write."""
    y = torch.empty_like(x)
    grid, sizes, constants = _map_arguments(view_of(x))
    rows, extra = _coefficients(x, gain, center, mean), _constants(residual, activation)
    with torch.cuda.device_of(x):
        wrap(apply_activated_tile)[grid](x, _beside(residual, x), *rows, y, *sizes, **constants, **extra)
    return y


def reduce(
    g: Tensor,
    x: Tensor,
    gain: Tensor,
    center: Tensor,
    mean: Tensor,
    residual: Tensor | None,
    activation: str,
    *,
    wrap: Wrap = _bare,
) -> tuple[Tensor, Tensor]:
    """Sum over each plane of h and of ``h * (x - center)``, h being the gradient in front of the activation."""
    grid, sizes, constants, splits = _sum_arguments(view_of(x))
    rows, extra = _coefficients(x, gain, center, mean), _constants(residual, activation)
    total, product = _rows(x, 2, splits)
    with torch.cuda.device_of(x):
        wrap(reduce_activated_tile)[grid](
            *(_like(g, x), x, _beside(residual, x), *rows, total, product, *sizes, x.shape[1]), **constants, **extra
        )
        if splits == 1:
            return total, product
        joined = _rows(x, 2)
        grid, constants = _joining(x, splits)
        wrap(join_sums)[grid](total, product, *joined, x.shape[1], splits, **constants)
    return joined[0], joined[1]


def combine(
    g: Tensor,
    x: Tensor,
    gain: Tensor,
    center: Tensor,
    mean: Tensor,
    residual: Tensor | None,
    activation: str,
    slope: Tensor | None = None,
    offset: Tensor | None = None,
    *,
    wrap: Wrap = _bare,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of x and of the residual; slope and offset are those of the path through the moments, if any."""
    dx = torch.empty_like(x)
    residual_beside = _beside(residual, x)
    dresidual = dx if residual is None else torch.empty_like(residual_beside)
    grid, sizes, constants = _map_arguments(view_of(x))
    rows = _coefficients(x, gain, center, mean, gain if slope is None else slope, gain if offset is None else offset)
    extra = {**_constants(residual, activation), "MOMENTS": slope is not None}
    with torch.cuda.device_of(x):
        wrap(combine_activated_tile)[grid](
            *(_like(g, x), x, residual_beside, *rows, dx, dresidual, *sizes), **constants, **extra
        )
    return dx, None if residual is None else dresidual


def _beside(residual: Tensor | None, x: Tensor) -> Tensor:
    return x if residual is None else _like(residual, x)


def _constants(residual: Tensor | None, activation: str) -> dict[str, int | bool]:
    return {"RESIDUAL": residual is not None, "ACTIVATION": ACTIVATIONS.index(activation)}
