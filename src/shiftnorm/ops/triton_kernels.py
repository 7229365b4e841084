"""The passes over x as Triton kernels; nothing imports this module before a tensor asks for them.

Every kernel sees x as (group, plane, place), see ``triton_launch``: one text serves both memory formats. Sums run in
float32 in a fixed order, without atomics. Base addresses are 64-bit, offsets inside a tile are 32-bit.

Sizes and strides come divided by a unit that is known when the kernel is compiled: Triton takes a number for a multiple
of 16 or of nothing, and would load 14 x 14 planes, or 24 channels-last ones, one element at a time.
"""

# pyright: basic, reportGeneralTypeIssues=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# Triton compiles these functions and may be missing; to a type checker their values have no types.

from __future__ import annotations

from shiftnorm.ops.triton_place import map_place, sum_place, tl, triton

__all__ = ["apply_tile", "combine_tile", "join_moments", "join_sums", "moments_tile", "reduce_tile"]


@triton.jit
def _joined(count, mean, spread, total):
    """Chan's rule over axis 1 in two steps, all around a rough mean: exact for equal values, and nothing cancels."""
    rough = tl.math.div_rn(tl.sum(count * mean, 1), total)
    rest = tl.where(count > 0, mean - rough[:, None], 0.0)
    drift = tl.math.div_rn(tl.sum(count * rest, 1), total)
    spread = tl.sum(spread + count * rest * rest, 1) - total * drift * drift
    return rough + drift, tl.where(spread < 0, 0.0, spread)  # a maximum could swallow NaN


@triton.jit
def _common(count, anchor, total):
    """One of the values that elements were counted from, for all of axis 1."""
    return tl.where(total > 0, tl.max(tl.where(count > 0, anchor, float("-inf")), 1), 0.0)


@triton.jit
def moments_tile(
    x_ptr,
    mask_ptr,
    mean_ptr,
    spread_ptr,
    anchor_ptr,
    count_ptr,
    planes,
    length,
    segment,
    splits,
    plane_stride,
    place_stride,
    channels,
    mask_stride,
    PLANE_UNIT: tl.constexpr,
    PLACE_UNIT: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
    ONCE: tl.constexpr,
    STAGES: tl.constexpr,
    MASKED: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Mean and variance of PLANES planes, or with WHOLE false of one segment of each.

    A segment leaves an element, the mean counted from it, the squared deviations and the count.
    """
    number, at, inside, start, limit, origin, tile = sum_place(
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
    place_stride = place_stride * PLANE_UNIT
    x_tile = x_ptr + origin + tile
    # Every lane of the tile keeps a mean of its own (Welford), counted from an element of the plane: differences of
    # neighbours are exact. No element is further from the mean than sqrt(S) standard deviations, so any one will do.
    mean = tl.zeros([PLANES, PLACES], tl.float32)
    spread = tl.zeros([PLANES, PLACES], tl.float32)
    if MASKED:
        seen = tl.zeros([PLANES, PLACES], tl.float32)
        anchor = tl.zeros([PLANES, PLACES], tl.float32)
        keep = mask_ptr + (number // channels * mask_stride)[:, None] + start + place[None, :]
    else:
        seen = 0.0
        first = x_ptr + origin + tl.arange(0, PLANES) * (plane_stride * PLACE_UNIT)
        anchor = tl.load(first, mask=inside, other=0.0).to(tl.float32)[:, None]
    live = inside[:, None] & (place < limit)[None, :]
    for step in tl.range(0, 1 if ONCE else tl.cdiv(limit, PLACES), num_stages=STAGES):
        live = inside[:, None] & (place < limit - step * PLACES)[None, :]
        value = tl.load(x_tile, mask=live, other=0.0).to(tl.float32)
        x_tile += PLACES * place_stride
        if MASKED:  # reads all the same: loads that skip single elements are loads of single elements
            live = live & (tl.load(keep, mask=live, other=0) != 0)
            keep += PLACES
            value = tl.where(live, value, 0.0)
            anchor = tl.where(live & (seen == 0), value, anchor)
            seen += live.to(tl.float32)
            share = 1.0 / tl.maximum(seen, 1.0)
        else:
            seen += 1.0
            share = 1.0 / seen
        value -= anchor
        delta = tl.where(live, value - mean, 0.0)
        if ONCE:
            mean = delta
        else:
            mean += delta * share
            spread += delta * (value - mean)
    if MASKED:
        count = seen
        total = tl.sum(count, 1)
        shift = _common(count, anchor, total)
        mean += anchor - shift[:, None]
    else:
        count = ((limit - place + PLACES - 1) // PLACES).to(tl.float32)[None, :] + tl.zeros([PLANES, 1], tl.float32)
        if ONCE:
            count = live.to(tl.float32)
        total = tl.zeros([PLANES], tl.float32) + limit
        shift = tl.sum(anchor, 1)
    divisor = tl.maximum(total, 1.0)
    mean, spread = _joined(count, mean, spread, divisor)
    if WHOLE:
        tl.store(mean_ptr + at, shift + mean, mask=inside)
        tl.store(spread_ptr + at, tl.math.div_rn(spread, divisor), mask=inside)
    else:
        tl.store(anchor_ptr + at, shift, mask=inside)
        tl.store(mean_ptr + at, mean, mask=inside)
        tl.store(spread_ptr + at, spread, mask=inside)
        tl.store(count_ptr + at, total, mask=inside)


@triton.jit
def join_moments(
    partial_anchor_ptr,
    partial_mean_ptr,
    partial_spread_ptr,
    partial_count_ptr,
    mean_ptr,
    var_ptr,
    channels,
    splits,
    PLANES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Mean and variance of PLANES planes of a sample from what their splits left, (N, splits, C)."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(channels, PLANES)
    sample = (pid // blocks).to(tl.int64)
    plane = (pid % blocks) * PLANES + tl.arange(0, PLANES)
    split = tl.arange(0, SPLITS)
    inside = plane < channels
    live = inside[:, None] & (split < splits)[None, :]
    at = sample * splits * channels + split[None, :].to(tl.int64) * channels + plane[:, None]
    anchor = tl.load(partial_anchor_ptr + at, mask=live, other=0.0)
    mean = tl.load(partial_mean_ptr + at, mask=live, other=0.0)
    spread = tl.load(partial_spread_ptr + at, mask=live, other=0.0)
    count = tl.load(partial_count_ptr + at, mask=live, other=0.0)
    total = tl.sum(count, 1)
    shift = _common(count, anchor, total)
    divisor = tl.maximum(total, 1.0)
    mean, spread = _joined(count, mean + (anchor - shift[:, None]), spread, divisor)
    tl.store(mean_ptr + sample * channels + plane, shift + mean, mask=inside)
    tl.store(var_ptr + sample * channels + plane, tl.math.div_rn(spread, divisor), mask=inside)


@triton.jit
def reduce_tile(
    g_ptr,
    x_ptr,
    center_ptr,
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
):
    """Sums of g and of ``g * (x - center)`` over PLANES planes, or over one segment of each."""
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
    place_stride = place_stride * PLANE_UNIT
    g_tile = g_ptr + origin + tile
    x_tile = x_ptr + origin + tile
    center = tl.load(center_ptr + number, mask=inside, other=0.0)[:, None]
    total = tl.zeros([PLANES, PLACES], tl.float32)
    product = tl.zeros([PLANES, PLACES], tl.float32)
    for step in tl.range(0, 1 if ONCE else tl.cdiv(limit, PLACES), num_stages=STAGES):
        live = inside[:, None] & (place < limit - step * PLACES)[None, :]
        g = tl.load(g_tile, mask=live, other=0.0).to(tl.float32)
        x = tl.load(x_tile, mask=live, other=0.0).to(tl.float32)
        total += g
        product += tl.where(live, g * (x - center), 0.0)
        g_tile += PLACES * place_stride
        x_tile += PLACES * place_stride
    tl.store(total_ptr + at, tl.sum(total, 1), mask=inside)
    tl.store(product_ptr + at, tl.sum(product, 1), mask=inside)


@triton.jit
def join_sums(
    partial_total_ptr,
    partial_product_ptr,
    total_ptr,
    product_ptr,
    channels,
    splits,
    PLANES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """The two sums of PLANES planes of a sample from those of their splits, (N, splits, C)."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(channels, PLANES)
    sample = (pid // blocks).to(tl.int64)
    plane = (pid % blocks) * PLANES + tl.arange(0, PLANES)
    split = tl.arange(0, SPLITS)
    inside = plane < channels
    live = inside[:, None] & (split < splits)[None, :]
    at = sample * splits * channels + split[None, :].to(tl.int64) * channels + plane[:, None]
    total = tl.sum(tl.load(partial_total_ptr + at, mask=live, other=0.0), 1)
    product = tl.sum(tl.load(partial_product_ptr + at, mask=live, other=0.0), 1)
    tl.store(total_ptr + sample * channels + plane, total, mask=inside)
    tl.store(product_ptr + sample * channels + plane, product, mask=inside)


@triton.jit
def apply_tile(
    x_ptr,
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
):
    """``gain * (x - center) + mean`` on one tile."""
    number, inside, live, _start, origin, tile = map_place(
        planes, length, splits, plane_stride, place_stride, PLANE_UNIT, PLACE_UNIT, PLANES, PLACES
    )
    x = tl.load(x_ptr + origin + tile, mask=live, other=0.0).to(tl.float32)
    gain = tl.load(gain_ptr + number, mask=inside, other=0.0)[:, None]
    center = tl.load(center_ptr + number, mask=inside, other=0.0)[:, None]
    mean = tl.load(mean_ptr + number, mask=inside, other=0.0)[:, None]
    y = gain * (x - center) + mean
    tl.store(y_ptr + origin + tile, y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def combine_tile(
    g_ptr,
    x_ptr,
    mask_ptr,
    gain_ptr,
    center_ptr,
    slope_ptr,
    offset_ptr,
    dx_ptr,
    planes,
    length,
    splits,
    plane_stride,
    place_stride,
    channels,
    mask_stride,
    PLANE_UNIT: tl.constexpr,
    PLACE_UNIT: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
    HAS_G: tl.constexpr,
    MASKED: tl.constexpr,
):
    """``gain * g + slope * (x - center) + offset`` on one tile; MASKED keeps the last two to where the mask is set."""
    number, inside, live, start, origin, tile = map_place(
        planes, length, splits, plane_stride, place_stride, PLANE_UNIT, PLACE_UNIT, PLANES, PLACES
    )
    center = tl.load(center_ptr + number, mask=inside, other=0.0)[:, None]
    slope = tl.load(slope_ptr + number, mask=inside, other=0.0)[:, None]
    offset = tl.load(offset_ptr + number, mask=inside, other=0.0)[:, None]
    x = tl.load(x_ptr + origin + tile, mask=live, other=0.0).to(tl.float32)
    dx = slope * (x - center) + offset
    if MASKED:
        keep = mask_ptr + (number // channels * mask_stride)[:, None] + start + tl.arange(0, PLACES)[None, :]
        dx = tl.where(tl.load(keep, mask=live, other=0) != 0, dx, 0.0)
    if HAS_G:
        g = tl.load(g_ptr + origin + tile, mask=live, other=0.0).to(tl.float32)
        gain = tl.load(gain_ptr + number, mask=inside, other=0.0)[:, None]
        dx += gain * g
    tl.store(dx_ptr + origin + tile, dx.to(dx_ptr.dtype.element_ty), mask=live)
