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
from shiftnorm.ops.triton_passes import Wrap, as_laid_out, bare, tile_of
from shiftnorm.ops.triton_place import in_elements, kept, loaded, place_of, tl, triton


@triton.jit
def _planes_of(
    planes, length, channels, UNIT: tl.constexpr, ROWS: tl.constexpr, PLANES: tl.constexpr, PLACES: tl.constexpr
):
    """Where a program stands: the samples of its planes, which of them there are, its tile as a base and offsets, where
    each plane begins, and how far apart samples of a channel and places lie."""
    planes, length, plane_stride, place_stride = in_elements(planes, length, UNIT, ROWS)
    number, inside, _split, _start, limit, origin, tile = place_of(
        tl.program_id(0), planes, length, 1, 1, plane_stride, place_stride, PLANES, PLACES
    )
    live = inside[:, None] & (tl.arange(0, PLACES) < limit)[None, :]
    begin = origin + tl.arange(0, PLANES)[:, None] * plane_stride
    apart = tl.zeros([1], tl.int64) + channels
    return number // channels, inside, origin, tile, live, begin, apart * length, place_stride


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
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
):
    """The elements of each plane in ascending order, and where each of them was."""
    _sample, _inside, origin, tile, live, _begin, _apart, _stride = _planes_of(
        planes, length, channels, UNIT, ROWS, PLANES, PLACES
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
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Every element moved by its sample's share towards the one of its rank in the partner's plane."""
    sample, inside, origin, tile, live, begin, apart, stride = _planes_of(
        planes, length, channels, UNIT, ROWS, PLANES, PLACES
    )
    partner = tl.load(partner_ptr + sample, mask=inside, other=0)
    known = live & ((partner >= 0) & (partner < samples))[:, None]
    base = origin + ((partner - sample) * apart)[:, None]
    theirs = tl.load(values_ptr + base + tile, mask=known, other=float("nan")).to(tl.float32)
    own = loaded(values_ptr, origin, tile, live)
    share = tl.load(share_ptr + sample, mask=inside, other=0.0)[:, None]
    order = tl.load(order_ptr + origin + tile, mask=live, other=0).to(tl.int32)
    tl.store(y_ptr + begin + order * stride, (own + (theirs - own) * share).to(y_ptr.dtype.element_ty), mask=live)


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
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    """g, and by rank the share of it of every sample that has this one as its partner."""
    sample, inside, origin, tile, live, begin, apart, stride = _planes_of(
        planes, length, channels, UNIT, ROWS, PLANES, PLACES
    )
    order = tl.load(order_ptr + origin + tile, mask=live, other=0).to(tl.int32) * stride
    dx = tl.load(g_ptr + begin + order, mask=live, other=0.0).to(tl.float32)
    every = tl.arange(0, SAMPLES)
    partner = tl.load(partner_ptr + every, mask=every < samples, other=-1)
    lowest = tl.min(tl.where(inside, sample, samples), 0)
    highest = tl.max(tl.where(inside, sample, 0), 0)
    wanted = (partner >= lowest) & (partner <= highest)
    # The samples that look here, one after the other: one in a permutation, any number in another draw.
    other = tl.min(tl.where(wanted, every, SAMPLES), 0)
    while other < SAMPLES:
        looks = live & (tl.load(partner_ptr + other) == sample)[:, None]
        away = ((other - sample) * apart)[:, None]
        theirs = tl.load(order_ptr + origin + away + tile, mask=looks, other=0).to(tl.int32) * stride
        dx += tl.load(share_ptr + other) * tl.load(g_ptr + begin + away + theirs, mask=looks, other=0.0).to(tl.float32)
        other = tl.min(tl.where(wanted & (every > other), every, SAMPLES), 0)
    tl.store(dx_ptr + begin + order, dx.to(dx_ptr.dtype.element_ty), mask=live)


def mix(x: Tensor, launch: SetLaunch, share: Tensor, partner: Tensor, *, wrap: Wrap = bare) -> tuple[Tensor, Tensor]:
    """x moved by ``share`` towards the partner's values by rank, and the order of every plane in 16-bit integers."""
    y, values, order = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x, dtype=torch.int16)
    sizes, tile = tile_of(view_of(x), launch)
    given = share.to(torch.float32).contiguous(), partner.contiguous()
    with torch.cuda.device_of(x):
        wrap(sort_tile)[(launch.programs,)](x, values, order, *sizes, x.shape[1], **tile)
        wrap(mix_tile)[(launch.programs,)](values, order, *given, y, *sizes, *x.shape[1::-1], **tile)
    return y, order


def mix_gradient(
    g: Tensor, launch: SetLaunch, order: Tensor, share: Tensor, partner: Tensor, *, wrap: Wrap = bare
) -> Tensor:
    """The gradient of x that EFDMix takes: g whole, and for every partner its share by rank."""
    dx = torch.empty_like(order, dtype=g.dtype)
    sizes, tile = tile_of(view_of(order), launch)
    given = share.to(torch.float32).contiguous(), partner.contiguous()
    samples = 1 << (int(g.shape[0]) - 1).bit_length()
    with torch.cuda.device_of(order):
        wrap(mix_gradient_tile)[(launch.programs,)](
            as_laid_out(g, order), order, *given, dx, *sizes, *g.shape[1::-1], **tile, SAMPLES=samples
        )
    return dx
