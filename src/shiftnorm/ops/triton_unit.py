"""Pixels as vectors of channels, brought to length 1, as one Triton kernel each way.

A program holds all channels of some pixels of one sample, so that x is read once; the gradient's kernel walks along the
sample with them, for the sums over its planes.
"""

# pyright: basic, reportGeneralTypeIssues=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# Triton compiles these functions and may be missing; to a type checker their values have no types.

from __future__ import annotations

import torch
from torch import Tensor

from shiftnorm.ops.triton_launch import PixelLaunch, pixel_view
from shiftnorm.ops.triton_passes import Wrap, as_laid_out, bare, tile_of
from shiftnorm.ops.triton_place import column, in_elements, kept, loaded, tl, triton


@triton.jit
def _pixels_of(planes, length, splits, steps, plane_stride, place_stride, PLANES: tl.constexpr, PLACES: tl.constexpr):
    """Where a program stands: channels, which of them there are, planes, split, base and offsets of its first tile,
    and how many places it has."""
    split = (tl.program_id(0) % splits).to(tl.int64)
    sample = (tl.program_id(0) // splits).to(tl.int64)
    channel = tl.arange(0, PLANES)
    start = split * steps * PLACES
    limit = tl.minimum(length - start, steps * PLACES).to(tl.int32)
    origin = sample * planes * length + start * place_stride
    tile = channel[:, None] * plane_stride + tl.arange(0, PLACES)[None, :] * place_stride
    return channel, channel < planes, sample * planes + channel, split, origin, tile, limit


@triton.jit
def _centred(x_ptr, center_ptr, center, gain, origin, tile, live):
    z = loaded(x_ptr, origin, tile, live)
    if center_ptr is not None:
        z = tl.where(live, (z - center) * gain, 0.0)
    return z


@triton.jit
def _inverse_length(z, SHORTEST: tl.constexpr):
    """1 over the length of each pixel, 0 for those that have no direction."""
    square = tl.sum(z * z, 0)
    alive = square > SHORTEST * SHORTEST
    return tl.where(alive, 1.0 / tl.math.sqrt_rn(tl.where(alive, square, 1.0)), 0.0)[None, :]


@triton.jit
def unit_tile(
    x_ptr,
    center_ptr,
    gain_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    planes,
    length,
    splits,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
    SHORTEST: tl.constexpr,
):
    """``weight * z / |z| + bias`` with ``z = gain * (x - center)``, the length being that of a pixel's channels."""
    planes, length, plane_stride, place_stride = in_elements(planes, length, UNIT, ROWS)
    channel, inside, number, _split, origin, tile, limit = _pixels_of(
        planes, length, splits, 1, plane_stride, place_stride, PLANES, PLACES
    )
    live = inside[:, None] & (tl.arange(0, PLACES) < limit)[None, :]
    center = column(center_ptr, number, inside)
    gain = column(gain_ptr, number, inside)
    z = _centred(x_ptr, center_ptr, center, gain, origin, tile, live)
    y = z * _inverse_length(z, SHORTEST)
    if weight_ptr is not None:
        y = y * column(weight_ptr, channel, inside) + column(bias_ptr, channel, inside)
    kept(y_ptr, y, origin, tile, live)


@triton.jit
def unit_gradient_tile(
    g_ptr,
    x_ptr,
    center_ptr,
    gain_ptr,
    weight_ptr,
    dx_ptr,
    sums_ptr,
    planes,
    length,
    splits,
    steps,
    rows,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
    SHORTEST: tl.constexpr,
):
    """The gradient of x with center and gain held fixed, and for one split of every plane four sums: the gradients of
    center and gain, and this plane's part in those of weight and bias."""
    planes, length, plane_stride, place_stride = in_elements(planes, length, UNIT, ROWS)
    channel, inside, number, split, origin, tile, limit = _pixels_of(
        planes, length, splits, steps, plane_stride, place_stride, PLANES, PLACES
    )
    center = column(center_ptr, number, inside)
    gain = column(gain_ptr, number, inside)
    weight = column(weight_ptr, channel, inside)
    along_center = tl.zeros([PLANES], tl.float32)
    along_gain = tl.zeros([PLANES], tl.float32)
    along_weight = tl.zeros([PLANES], tl.float32)
    along_bias = tl.zeros([PLANES], tl.float32)
    for step in tl.range(0, tl.cdiv(limit, PLACES), num_stages=1):
        live = inside[:, None] & (tl.arange(0, PLACES) < limit - step * PLACES)[None, :]
        z = _centred(x_ptr, center_ptr, center, gain, origin, tile, live)
        inverse = _inverse_length(z, SHORTEST)
        u = z * inverse
        g = loaded(g_ptr, origin, tile, live)
        if weight_ptr is not None:
            along_weight += tl.sum(g * u, 1)
            along_bias += tl.sum(g, 1)
            g *= weight
        # What changes the length of a pixel's vector has no effect: dz is g without its part along u.
        dz = (g - u * tl.sum(g * u, 0)[None, :]) * inverse
        if center_ptr is not None:
            along_center += tl.sum(dz, 1)
            along_gain += tl.sum(dz * z, 1)
            dz *= gain
        kept(dx_ptr, dz, origin, tile, live)
        origin += PLACES * place_stride
    if sums_ptr is not None:
        at = split * rows + number
        scale = tl.load(gain_ptr + number, mask=inside, other=1.0)
        tl.store(sums_ptr + at, -scale * along_center, mask=inside)
        tl.store(sums_ptr + splits * rows + at, along_gain / scale, mask=inside)
        if weight_ptr is not None:
            tl.store(sums_ptr + 2 * splits * rows + at, along_weight, mask=inside)
            tl.store(sums_ptr + 3 * splits * rows + at, along_bias, mask=inside)


def forward(
    x: Tensor,
    launch: PixelLaunch,
    center: Tensor | None,
    gain: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
    shortest: float,
    *,
    wrap: Wrap = bare,
) -> Tensor:
    """``weight * z / |z| + bias`` with ``z = gain * (x - center)``: one read of x and one write."""
    view = pixel_view(x)
    y = torch.empty_like(x, dtype=dtype)
    rows = _floats(center, gain, weight, bias)
    sizes, tile = tile_of(view, launch)
    tiles = -(-view.places // launch.places)
    with torch.cuda.device_of(x):
        wrap(unit_tile)[(view.groups * tiles,)](x, *rows, y, *sizes, tiles, **tile, SHORTEST=shortest)
    return y


def backward(
    g: Tensor,
    x: Tensor,
    launch: PixelLaunch,
    center: Tensor | None,
    gain: Tensor | None,
    weight: Tensor | None,
    shortest: float,
    *,
    wrap: Wrap = bare,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradient of x with center and gain held fixed, (2, N, C) those of center and gain, (2, C) of weight and bias:
    one read of g and x, one write."""
    view = pixel_view(x)
    dx = torch.empty_like(x)
    count = 0 if center is None else 2 if weight is None else 4
    shape = (count, launch.splits, *x.shape[:2])
    sums = torch.empty(shape, dtype=torch.float32, device=x.device) if count else None
    sizes, tile = tile_of(view, launch)
    tensors = as_laid_out(g, x), x, *_floats(center, gain, weight), dx, sums
    numbers = launch.splits, launch.steps, view.groups * view.planes
    with torch.cuda.device_of(x):
        wrap(unit_gradient_tile)[(view.groups * launch.splits,)](*tensors, *sizes, *numbers, **tile, SHORTEST=shortest)
    if sums is None:
        return dx, None, None
    of_moments = sums[:2].sum(1) if launch.splits > 1 else sums[:2, 0]
    return dx, of_moments, None if weight is None else sums[2:].sum((1, 2))


def _floats(*rows: Tensor | None) -> list[Tensor | None]:
    return [None if row is None else row.to(torch.float32).contiguous() for row in rows]
