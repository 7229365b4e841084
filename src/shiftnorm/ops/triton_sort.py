"""Planes exchanged by rank, in Triton kernels: one sort, one that mixes, one for the gradient.

A sort key is an element's bits, so ordered that they compare as integers, above its place: equal elements keep their
order, as in ``torch.sort(stable=True)``, and NaN comes last.
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
from shiftnorm.ops.triton_single import sets_of


@triton.jit
def sort_tile(
    x_ptr,
    values_ptr,
    order_ptr,
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
    """The elements of each plane in ascending order, and where each of them was."""
    planes, length, plane_stride, place_stride = in_elements(planes, length, UNIT, ROWS)
    _number, _own, _inside, _there, _channel, origin, tile, live = sets_of(
        planes, length, channels, plane_stride, place_stride, ROWS, SHARING, DEEP, PLANES, PLACES
    )
    x = loaded(x_ptr, origin, tile, live) + 0.0  # 0 and -0 are equal
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(x != x, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    key = (bits.to(tl.int64) << 32) | tl.arange(0, PLACES)[None, :]
    key = tl.sort(tl.where(live, key, 0x7FFFFFFFFFFFFFFF))
    bits = (key >> 32).to(tl.int32)
    kept(values_ptr, (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True), origin, tile, live)
    kept(order_ptr, key & 0xFFFFFFFF, origin, tile, live)


@triton.jit
def _bases(sample, channel, channels, length, plane_stride, ROWS: tl.constexpr):
    """Where the planes of some samples and channels begin."""
    if ROWS:
        base = (sample * channels + channel) * plane_stride
    else:
        base = sample * channels * length + channel
    return base[:, None]


@triton.jit
def mix_tile(
    values_ptr,
    order_ptr,
    share_ptr,
    partner_ptr,
    y_ptr,
    planes,
    length,
    channels,
    samples,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    SHARING: tl.constexpr,
    DEEP: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Every element moved by its sample's share towards the one of its rank in the partner's plane."""
    planes, length, plane_stride, place_stride = in_elements(planes, length, UNIT, ROWS)
    number, _own, inside, _there, channel, origin, tile, live = sets_of(
        planes, length, channels, plane_stride, place_stride, ROWS, SHARING, DEEP, PLANES, PLACES
    )
    sample = number // channels
    partner = tl.load(partner_ptr + sample, mask=inside, other=0)
    known = live & ((partner >= 0) & (partner < samples))[:, None]
    along = tl.arange(0, PLACES)[None, :] * place_stride
    base = _bases(partner, channel, channels, length, plane_stride, ROWS)
    theirs = tl.load(values_ptr + base + along, mask=known, other=float("nan")).to(tl.float32)
    own = loaded(values_ptr, origin, tile, live)
    share = tl.load(share_ptr + sample, mask=inside, other=0.0)[:, None]
    order = tl.load(order_ptr + origin + tile, mask=live, other=0).to(tl.int32)
    base = _bases(sample, channel, channels, length, plane_stride, ROWS)
    tl.store(y_ptr + base + order * place_stride, (own + (theirs - own) * share).to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def mix_gradient_tile(
    g_ptr,
    order_ptr,
    share_ptr,
    partner_ptr,
    dx_ptr,
    planes,
    length,
    channels,
    samples,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    SHARING: tl.constexpr,
    DEEP: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    """g, and by rank the share of it of every sample that has this one as its partner."""
    planes, length, plane_stride, place_stride = in_elements(planes, length, UNIT, ROWS)
    number, _own, inside, _there, channel, origin, tile, live = sets_of(
        planes, length, channels, plane_stride, place_stride, ROWS, SHARING, DEEP, PLANES, PLACES
    )
    sample = number // channels
    along = tl.arange(0, PLACES)[None, :] * place_stride
    order = tl.load(order_ptr + origin + tile, mask=live, other=0).to(tl.int32) * place_stride
    own = _bases(sample, channel, channels, length, plane_stride, ROWS)
    dx = tl.load(g_ptr + own + order, mask=live, other=0.0).to(tl.float32)
    every = tl.arange(0, SAMPLES)
    partner = tl.load(partner_ptr + every, mask=every < samples, other=-1)
    lowest = tl.min(tl.where(inside, sample, samples), 0)
    highest = tl.max(tl.where(inside, sample, 0), 0)
    wanted = (partner >= lowest) & (partner <= highest)
    # The samples that look here, one after the other: one in a permutation, any number in another draw.
    other = tl.min(tl.where(wanted, every, SAMPLES), 0)
    while other < SAMPLES:
        looks = live & (tl.load(partner_ptr + other) == sample)[:, None]
        base = _bases(tl.zeros_like(sample) + other, channel, channels, length, plane_stride, ROWS)
        theirs = tl.load(order_ptr + base + along, mask=looks, other=0).to(tl.int32) * place_stride
        dx += tl.load(share_ptr + other) * tl.load(g_ptr + base + theirs, mask=looks, other=0.0).to(tl.float32)
        other = tl.min(tl.where(wanted & (every > other), every, SAMPLES), 0)
    tl.store(dx_ptr + own + order, dx.to(dx_ptr.dtype.element_ty), mask=live)


def mix(x: Tensor, launch: SetLaunch, share: Tensor, partner: Tensor, *, wrap: Wrap = bare) -> tuple[Tensor, Tensor]:
    """x moved by ``share`` towards the partner's values by rank, and the order of every plane in 16-bit integers."""
    y, values, order = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x, dtype=torch.int16)
    grid, sizes, tile = set_arguments(view_of(x), launch)
    given = share.to(torch.float32).contiguous(), partner.contiguous()
    with torch.cuda.device_of(x):
        wrap(sort_tile)[grid](x, values, order, *sizes, x.shape[1], **tile)
        wrap(mix_tile)[grid](values, order, *given, y, *sizes, *x.shape[1::-1], **tile)
    return y, order


def mix_gradient(
    g: Tensor, launch: SetLaunch, order: Tensor, share: Tensor, partner: Tensor, *, wrap: Wrap = bare
) -> Tensor:
    """The gradient of x that EFDMix takes: g whole, and for every partner its share by rank."""
    dx = torch.empty_like(order, dtype=g.dtype)
    grid, sizes, tile = set_arguments(view_of(order), launch)
    given = share.to(torch.float32).contiguous(), partner.contiguous()
    samples = 1 << (int(g.shape[0]) - 1).bit_length()
    with torch.cuda.device_of(order):
        wrap(mix_gradient_tile)[grid](
            as_laid_out(g, order), order, *given, dx, *sizes, *g.shape[1::-1], **tile, SAMPLES=samples
        )
    return dx
