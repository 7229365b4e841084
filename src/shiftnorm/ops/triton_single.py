"""Whole norms as one Triton kernel each way, for tiles that fit on chip: x is read once.

A tile holds one or several sets of planes that share their moments: single planes (InstanceNorm), the channels of a
group (GroupNorm), those of a sample (LayerNorm). ``triton_launch.set_launch`` says which fit.
"""

# pyright: basic, reportGeneralTypeIssues=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# Triton compiles these functions and may be missing; to a type checker their values have no types.

from __future__ import annotations

import torch
from torch import Tensor

from shiftnorm.ops.triton_launch import SetLaunch, view_of
from shiftnorm.ops.triton_passes import Wrap, as_laid_out, bare, set_arguments
from shiftnorm.ops.triton_place import in_elements, kept, loaded, tl, triton


@triton.jit
def _sets_of(
    planes,
    length,
    channels,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    SHARING: tl.constexpr,
    DEEP: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Where a program stands: the numbers of its planes and sets, which of both there are, channels, its tile, how far
    apart planes lie, and how many elements a set has.

    A set is SHARING planes and takes DEEP of the tile, the next power of two.
    """
    planes, length, plane_stride, place_stride = in_elements(planes, length, UNIT, ROWS)
    blocks = tl.cdiv(planes, PLANES // DEEP * SHARING)
    first = (tl.program_id(0) % blocks).to(tl.int64) * (PLANES // DEEP * SHARING)
    # Rows are one group; said aloud, Triton knows where vectors start.
    group = 0 if ROWS else (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.arange(0, PLANES)
    one = tl.arange(0, PLANES // DEEP)
    if SHARING == DEEP:
        plane = row
        inside = first + plane < planes
    else:
        plane = row // DEEP * SHARING + row % DEEP
        inside = (row % DEEP < SHARING) & (first + plane < planes)
    there = first + one * SHARING < planes
    origin = group * length * place_stride + first * plane_stride
    place = tl.arange(0, PLACES)
    tile = plane[:, None] * plane_stride + place[None, :] * place_stride
    live = inside[:, None] & (place < length)[None, :]
    first += group * planes
    channel = (first % channels).to(tl.int32) + plane
    if PLANES > DEEP:  # several sets, perhaps of several samples
        channel = channel % channels
    count = (length * SHARING).to(tl.float32)
    return first + plane, first // SHARING + one, inside, there, channel, origin, tile, live, plane_stride, count


@triton.jit
def _over_set(value, DEEP: tl.constexpr):
    """What the planes of each set come to, from what each plane has."""
    if DEEP > 1:
        value = tl.sum(tl.reshape(value, [value.shape[0] // DEEP, DEEP]), 1)
    return value


@triton.jit
def _beside(value, DEEP: tl.constexpr):
    """What each set has, beside its planes in the tile."""
    if DEEP > 1:
        value = tl.reshape(tl.broadcast_to(value[:, None], [value.shape[0], DEEP]), [value.shape[0] * DEEP])
    return value[:, None]


@triton.jit
def _of_channel(row_ptr, channel, inside):
    """What a tensor (C,) has for each plane."""
    return tl.load(row_ptr + channel, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def whole_tile(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    moments_ptr,
    planes,
    length,
    channels,
    sets,
    eps,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    SHARING: tl.constexpr,
    DEEP: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
):
    """``weight * (x - mean) / sqrt(var + eps) + bias``, and of every set the mean, its rounding error and the rest.

    The variance is that of deviations from the mean, which are counted from an element of the set: exact for equal
    values, and nothing cancels.
    """
    _number, own, inside, there, channel, origin, tile, live, plane_stride, count = _sets_of(
        planes, length, channels, UNIT, ROWS, SHARING, DEEP, PLANES, PLACES
    )
    at = origin + tl.arange(0, PLANES // DEEP) * (SHARING * plane_stride)
    anchor = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    x = tl.where(live, loaded(x_ptr, origin, tile, live) - _beside(anchor, DEEP), 0.0)
    mean = _over_set(tl.sum(x, 1), DEEP) / count
    x = tl.where(live, x - _beside(mean, DEEP), 0.0)
    var = _over_set(tl.sum(x * x, 1), DEEP) / count
    scale = 1.0 / tl.math.sqrt_rn(var + eps)
    # The sum and what its rounding drops: a mean in one float32 would cost the backward pass digits of a distant set.
    center = anchor + mean
    part = center - anchor
    tl.store(moments_ptr + own, center, mask=there)
    tl.store(moments_ptr + sets + own, (anchor - (center - part)) + (mean - part), mask=there)
    tl.store(moments_ptr + 2 * sets + own, scale, mask=there)
    gain = _beside(scale, DEEP)
    if weight_ptr is not None:
        gain = gain * _of_channel(weight_ptr, channel, inside)[:, None]
    y = x * gain
    if bias_ptr is not None:
        y += _of_channel(bias_ptr, channel, inside)[:, None]
    kept(y_ptr, y, origin, tile, live)


@triton.jit
def whole_gradient_tile(
    g_ptr,
    x_ptr,
    weight_ptr,
    moments_ptr,
    dx_ptr,
    sums_ptr,
    planes,
    length,
    channels,
    sets,
    rows,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    SHARING: tl.constexpr,
    DEEP: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
):
    """The gradient of x, and over each plane the sums of ``g * (x - mean) / sqrt(var + eps)`` and of g."""
    number, own, inside, there, channel, origin, tile, live, _plane_stride, count = _sets_of(
        planes, length, channels, UNIT, ROWS, SHARING, DEEP, PLANES, PLACES
    )
    center = tl.load(moments_ptr + own, mask=there, other=0.0)
    rest = tl.load(moments_ptr + sets + own, mask=there, other=0.0)
    scale = _beside(tl.load(moments_ptr + 2 * sets + own, mask=there, other=0.0), DEEP)
    g = loaded(g_ptr, origin, tile, live)
    x = (loaded(x_ptr, origin, tile, live) - _beside(center, DEEP)) - _beside(rest, DEEP)
    x = tl.where(live, x * scale, 0.0)
    total = tl.sum(g, 1)
    product = tl.sum(g * x, 1)
    if sums_ptr is not None:
        tl.store(sums_ptr + number, product, mask=inside)
        tl.store(sums_ptr + rows + number, total, mask=inside)
    if dx_ptr is not None:
        if weight_ptr is not None:
            weight = _of_channel(weight_ptr, channel, inside)
            total *= weight
            product *= weight
            g *= weight[:, None]
        slope = _over_set(product, DEEP) / count
        level = _over_set(total, DEEP) / count
        kept(dx_ptr, scale * (g - _beside(level, DEEP) - x * _beside(slope, DEEP)), origin, tile, live)


def forward(
    x: Tensor,
    launch: SetLaunch,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    wrap: Wrap = bare,
) -> tuple[Tensor, Tensor]:
    """The norm of x by the moments of each set of planes, and what the backward pass wants of these.

    The second is (3, sets) float32: means, what their rounding dropped, and 1 / sqrt(var + eps).
    """
    view = view_of(x)
    rows = view.groups * view.planes
    y = torch.empty_like(x)
    sets = rows // launch.sharing
    moments = torch.empty((3, sets), dtype=torch.float32, device=x.device)
    grid, sizes, tile = set_arguments(view, launch)
    with torch.cuda.device_of(x):
        wrap(whole_tile)[grid](x, weight, bias, y, moments, *sizes, x.shape[1], sets, eps, **tile)
    return y, moments


def backward(
    g: Tensor,
    x: Tensor,
    launch: SetLaunch,
    weight: Tensor | None,
    moments: Tensor,
    *,
    of_x: bool = True,
    of_parameters: bool = True,
    wrap: Wrap = bare,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient of x, and (2, C) those of weight and bias; None for what is not asked for."""
    view = view_of(x)
    dx = torch.empty_like(x) if of_x else None
    sums = torch.empty((2, *x.shape[:2]), dtype=torch.float32, device=x.device) if of_parameters else None
    grid, sizes, tile = set_arguments(view, launch)
    rows = view.groups * view.planes
    tensors = as_laid_out(g, x), x, weight, moments, dx, sums
    with torch.cuda.device_of(x):
        wrap(whole_gradient_tile)[grid](*tensors, *sizes, x.shape[1], rows // launch.sharing, rows, **tile)
    return dx, None if sums is None else sums.sum(1)
