"""The passes over x as Triton kernels; nothing imports this module before a tensor asks for them.

Every kernel sees x as (group, plane, place), see ``triton_launch``: one text serves both memory formats. A tensor that
is not given is None, and what would be done with it is not compiled. Sums run in float32 in a fixed order, without
atomics.
"""

# pyright: basic, reportGeneralTypeIssues=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# Triton compiles these functions and may be missing; to a type checker their values have no types.

from __future__ import annotations

from shiftnorm.ops.triton_place import column, in_elements, kept, loaded, mask_of, place_of, split_of, tl, triton

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
    steps,
    splits,
    rows,
    sharing,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
    ONCE: tl.constexpr,
):
    """Mean and variance of PLANES planes, or with ``anchor_ptr`` of one split of each.

    A split leaves an element, the mean counted from it, the squared deviations and the count.
    """
    planes, length, plane_stride, place_stride = in_elements(planes, length, UNIT, ROWS)
    number, inside, split, start, limit, origin, tile = place_of(
        tl.program_id(0), planes, length, steps, splits, plane_stride, place_stride, PLANES, PLACES
    )
    place = tl.arange(0, PLACES)
    # Every lane of the tile keeps a mean of its own (Welford), counted from an element of the plane: differences of
    # neighbours are exact. No element is further from the mean than sqrt(S) standard deviations, so any one will do.
    mean = tl.zeros([PLANES, PLACES], tl.float32)
    spread = tl.zeros([PLANES, PLACES], tl.float32)
    if mask_ptr is not None:
        seen = tl.zeros([PLANES, PLACES], tl.float32)
        anchor = tl.zeros([PLANES, PLACES], tl.float32)
    else:
        seen = 0.0
        anchor = column(x_ptr + origin, tl.arange(0, PLANES) * plane_stride, inside).to(tl.float32)
    live = inside[:, None] & (place < limit)[None, :]
    # Beside a mask, tiles that load ahead would spill.
    for step in tl.range(0, 1 if ONCE else tl.cdiv(limit, PLACES), num_stages=1 if ONCE or mask_ptr is not None else 3):
        live = inside[:, None] & (place < limit - step * PLACES)[None, :]
        value = loaded(x_ptr, origin, tile, live)
        if mask_ptr is not None:  # reads all the same: loads that skip single elements are loads of single elements
            live = live & mask_of(mask_ptr, number, length, start, sharing, live, PLACES)
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
        origin += PLACES * place_stride
        start += PLACES
    if mask_ptr is not None:
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
    at = split * rows + number
    if anchor_ptr is None:
        tl.store(mean_ptr + at, shift + mean, mask=inside)
        tl.store(spread_ptr + at, tl.math.div_rn(spread, divisor), mask=inside)
    else:
        tl.store(anchor_ptr + at, shift, mask=inside)
        tl.store(mean_ptr + at, mean, mask=inside)
        tl.store(spread_ptr + at, spread, mask=inside)
        tl.store(count_ptr + at, total, mask=inside)


@triton.jit
def join_moments(
    split_mean_ptr,
    split_spread_ptr,
    split_anchor_ptr,
    split_count_ptr,
    mean_ptr,
    var_ptr,
    rows,
    splits,
    PLANES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Mean and variance of PLANES planes from what their splits left."""
    number, inside, at, live = split_of(rows, splits, PLANES, SPLITS)
    mean = tl.load(split_mean_ptr + at, mask=live, other=0.0)
    spread = tl.load(split_spread_ptr + at, mask=live, other=0.0)
    anchor = tl.load(split_anchor_ptr + at, mask=live, other=0.0)
    count = tl.load(split_count_ptr + at, mask=live, other=0.0)
    total = tl.sum(count, 1)
    shift = _common(count, anchor, total)
    divisor = tl.maximum(total, 1.0)
    mean, spread = _joined(count, mean + (anchor - shift[:, None]), spread, divisor)
    tl.store(mean_ptr + number, shift + mean, mask=inside)
    tl.store(var_ptr + number, tl.math.div_rn(spread, divisor), mask=inside)


@triton.jit
def _activated(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "silu":
        z = z * tl.sigmoid(z)
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1.0 + tl.math.erf(z * 0.7071067811865476))
    return z


@triton.jit
def _through(g, z, ACTIVATION: tl.constexpr):
    """The gradient of the activation's input z, from g, that of its output."""
    if ACTIVATION == "relu":
        g = tl.where(z <= 0, 0.0, g)
    elif ACTIVATION == "silu":
        share = tl.sigmoid(z)
        g = g * share * (1.0 + z * (1.0 - share))
    elif ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        g = g * (0.5 * (1.0 + tl.math.erf(z * 0.7071067811865476)) + z * density)
    return g


@triton.jit
def _input(x, gain, mean, residual_ptr, origin, tile, live):
    """The activation's input; x is counted from its center."""
    z = gain * x + mean
    if residual_ptr is not None:
        z += loaded(residual_ptr, origin, tile, live)
    return z


@triton.jit
def _gradient(g_ptr, x, gain, mean, residual_ptr, origin, tile, live, ACTIVATION: tl.constexpr):
    """The gradient of the activation's input, which is computed again: nothing of x's size is kept for it."""
    g = loaded(g_ptr, origin, tile, live)
    if ACTIVATION != "none":
        z = _input(x, gain, mean, residual_ptr, origin, tile, live)
        g = tl.where(live, _through(g, z, ACTIVATION), 0.0)
    return g


@triton.jit
def reduce_tile(
    g_ptr,
    x_ptr,
    residual_ptr,
    center_ptr,
    gain_ptr,
    mean_ptr,
    total_ptr,
    product_ptr,
    planes,
    length,
    steps,
    splits,
    rows,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
    ONCE: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Sums of h and of ``h * (x - center)`` over PLANES planes or one split of each.

    h is g, or in front of an activation the gradient of ``gain * (x - center) + mean + residual``.
    """
    planes, length, plane_stride, place_stride = in_elements(planes, length, UNIT, ROWS)
    number, inside, split, _start, limit, origin, tile = place_of(
        tl.program_id(0), planes, length, steps, splits, plane_stride, place_stride, PLANES, PLACES
    )
    center = column(center_ptr, number, inside)
    gain = column(gain_ptr, number, inside)
    mean = column(mean_ptr, number, inside)
    total = tl.zeros([PLANES, PLACES], tl.float32)
    product = tl.zeros([PLANES, PLACES], tl.float32)
    for step in tl.range(0, 1 if ONCE else tl.cdiv(limit, PLACES), num_stages=1 if ONCE else 3):
        live = inside[:, None] & (tl.arange(0, PLACES) < limit - step * PLACES)[None, :]
        x = loaded(x_ptr, origin, tile, live) - center
        h = _gradient(g_ptr, x, gain, mean, residual_ptr, origin, tile, live, ACTIVATION)
        total += h
        product += tl.where(live, h * x, 0.0)
        origin += PLACES * place_stride
    at = split * rows + number
    tl.store(total_ptr + at, tl.sum(total, 1), mask=inside)
    tl.store(product_ptr + at, tl.sum(product, 1), mask=inside)


@triton.jit
def join_sums(
    split_total_ptr,
    split_product_ptr,
    total_ptr,
    product_ptr,
    rows,
    splits,
    PLANES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """The two sums of PLANES planes from those of their splits."""
    number, inside, at, live = split_of(rows, splits, PLANES, SPLITS)
    total = tl.sum(tl.load(split_total_ptr + at, mask=live, other=0.0), 1)
    product = tl.sum(tl.load(split_product_ptr + at, mask=live, other=0.0), 1)
    tl.store(total_ptr + number, total, mask=inside)
    tl.store(product_ptr + number, product, mask=inside)


@triton.jit
def _last_first():
    """Programs of a map take the last tiles first, which the pass before has left in the cache."""
    return tl.num_programs(0) - 1 - tl.program_id(0)


@triton.jit
def apply_tile(
    x_ptr,
    residual_ptr,
    gain_ptr,
    center_ptr,
    mean_ptr,
    y_ptr,
    planes,
    length,
    splits,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """``activation(gain * (x - center) + mean + residual)`` on one tile."""
    planes, length, plane_stride, place_stride = in_elements(planes, length, UNIT, ROWS)
    number, inside, _split, _start, limit, origin, tile = place_of(
        _last_first(), planes, length, 1, splits, plane_stride, place_stride, PLANES, PLACES
    )
    live = inside[:, None] & (tl.arange(0, PLACES) < limit)[None, :]
    x = loaded(x_ptr, origin, tile, live) - column(center_ptr, number, inside)
    gain = column(gain_ptr, number, inside)
    mean = column(mean_ptr, number, inside)
    z = _input(x, gain, mean, residual_ptr, origin, tile, live)
    kept(y_ptr, _activated(z, ACTIVATION), origin, tile, live)


@triton.jit
def combine_tile(
    g_ptr,
    x_ptr,
    mask_ptr,
    residual_ptr,
    center_ptr,
    gain_ptr,
    mean_ptr,
    slope_ptr,
    offset_ptr,
    dx_ptr,
    dresidual_ptr,
    planes,
    length,
    splits,
    sharing,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    PLANES: tl.constexpr,
    PLACES: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """``gain * h + slope * (x - center) + offset`` on one tile, h being that of ``reduce_tile``; and h itself.

    Without g, or without slope and offset, it is the rest alone; these two keep to where the mask is set.
    """
    planes, length, plane_stride, place_stride = in_elements(planes, length, UNIT, ROWS)
    number, inside, _split, start, limit, origin, tile = place_of(
        _last_first(), planes, length, 1, splits, plane_stride, place_stride, PLANES, PLACES
    )
    live = inside[:, None] & (tl.arange(0, PLACES) < limit)[None, :]
    x = loaded(x_ptr, origin, tile, live) - column(center_ptr, number, inside)
    dx = column(slope_ptr, number, inside) * x + column(offset_ptr, number, inside)
    if mask_ptr is not None:
        dx = tl.where(mask_of(mask_ptr, number, length, start, sharing, live, PLACES), dx, 0.0)
    if g_ptr is not None:
        gain = column(gain_ptr, number, inside)
        mean = column(mean_ptr, number, inside)
        h = _gradient(g_ptr, x, gain, mean, residual_ptr, origin, tile, live, ACTIVATION)
        dx = gain * h if slope_ptr is None else dx + gain * h
        if dresidual_ptr is not None:
            kept(dresidual_ptr, h, origin, tile, live)
    kept(dx_ptr, dx, origin, tile, live)
