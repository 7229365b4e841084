"""What the Triton kernels between the passes share: tiles of (N, C) numbers, and what stands in front of a gate."""

# pyright: basic, reportGeneralTypeIssues=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# Triton compiles these functions and may be missing; to a type checker their values have no types.

from __future__ import annotations

from shiftnorm.ops.triton_place import tl, triton

__all__ = [
    "center_of",
    "count",
    "distance",
    "exchanged",
    "follow",
    "in_front",
    "of_channel",
    "over_samples",
    "own_scale",
    "parameter",
    "tile_at",
]


@triton.jit
def tile_at(start, samples, channel, inside, channels, ROWS: tl.constexpr):
    """Samples of a tile, beside it; which of its numbers there are; their places in (N, C)."""
    row = (start + tl.arange(0, ROWS))[:, None]
    return row, (row < samples) & inside[None, :], row.to(tl.int64) * channels + channel[None, :]


@triton.jit
def of_channel(ptr, channel, inside, otherwise):
    """What a tensor (C,) has for each channel, above the tile."""
    value = tl.full(channel.shape, otherwise, tl.float32)
    if ptr is not None:
        value = tl.load(ptr + channel, mask=inside, other=0.0)
    return value[None, :]


@triton.jit
def parameter(ptr, at, channel, live, otherwise, SAMPLEWISE: tl.constexpr):
    """What a tensor (N, C) or (C,) has for each number of a tile."""
    value = tl.full(at.shape, otherwise, tl.float32)
    if ptr is not None:
        value = tl.load(ptr + (at if SAMPLEWISE else channel[None, :] + at * 0), mask=live, other=0.0)
    return value


@triton.jit
def over_samples(value, live):
    """The sum of each column of a tile, in float64."""
    return tl.sum(tl.where(live, value, 0.0).to(tl.float64), 0)


@triton.jit
def center_of(mean_ptr, samples, channel, inside, channels, ROWS: tl.constexpr):
    """The mean of the planes' means."""
    total = tl.zeros(channel.shape, tl.float64)
    for start in tl.range(0, samples, ROWS, num_stages=1):
        _row, live, at = tile_at(start, samples, channel, inside, channels, ROWS)
        total += over_samples(tl.load(mean_ptr + at, mask=live, other=0.0), live)
    return total / samples


@triton.jit
def own_scale(var, rest, eps):
    """1 / deviation of planes that keep a share of themselves; 0 of others, whose deviation may not be finite."""
    return tl.where(rest == 0, 0.0, 1.0 / tl.math.sqrt_rn(var + eps))


@triton.jit
def distance(mean, center, share):
    """From the batch's mean, in float64; 0 for channels that do not see the batch."""
    return tl.where(share == 0, 0.0, mean.to(tl.float64) - center[None, :])


@triton.jit
def in_front(
    at,
    live,
    channel,
    mean_ptr,
    var_ptr,
    gain_ptr,
    weight_ptr,
    bias_ptr,
    share,
    center,
    scale,
    eps,
    POOLED: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BIASES: tl.constexpr,
):
    """Gain and mean behind the BatchNorm, or whatever is in front, and the plane's own variance."""
    mean = tl.load(mean_ptr + at, mask=live, other=0.0)
    var = tl.load(var_ptr + at, mask=live, other=0.0)
    gain = tl.full(at.shape, 1.0, tl.float32)
    if POOLED:
        weight = parameter(weight_ptr, at, channel, live, 1.0, WEIGHTS)
        gain = weight * tl.where(share == 0, 0.0, scale * share)
        mean = gain * distance(mean, center, share).to(tl.float32)
        mean += parameter(bias_ptr, at, channel, live, 0.0, BIASES)
        gain += weight * (1 - share) * own_scale(var, 1 - share, eps)
    elif gain_ptr is not None:
        gain = tl.load(gain_ptr + at, mask=live, other=0.0)
    return gain, mean, var


@triton.jit
def partners(partner_ptr, acts_ptr, row, samples, channels, channel, live):
    """Whom each sample looks at, itself if nobody acts; where its numbers lie; whether there is such a sample."""
    partner = tl.load(partner_ptr + row, mask=row < samples, other=0)
    if acts_ptr is not None:
        partner = tl.where(tl.load(acts_ptr) != 0, partner, row)
    known = live & (partner >= 0) & (partner < samples)
    return partner, partner.to(tl.int64) * channels + channel[None, :], known


@triton.jit
def exchanged(
    row,
    at,
    live,
    channel,
    samples,
    channels,
    mean_ptr,
    var_ptr,
    gain_ptr,
    weight_ptr,
    bias_ptr,
    share,
    center,
    scale,
    eps,
    partner_ptr,
    acts_ptr,
    exchange_eps,
    bessel,
    POOLED: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BIASES: tl.constexpr,
):
    """The gain in front, by how much the exchange changes it, the mean behind both, variance and own deviation.

    A partner that is no sample gives NaN: nothing outside is read, and nobody takes it for a result.
    """
    gain, mean, var = in_front(
        at, live, channel, mean_ptr, var_ptr, gain_ptr, weight_ptr, bias_ptr, share, center, scale, eps,
        POOLED, WEIGHTS, BIASES,
    )  # fmt: skip
    ratio = tl.full(at.shape, 1.0, tl.float32)
    std = ratio
    if partner_ptr is not None:
        _partner, there, known = partners(partner_ptr, acts_ptr, row, samples, channels, channel, live)
        gain_there, mean, var_there = in_front(
            there, known, channel, mean_ptr, var_ptr, gain_ptr, weight_ptr, bias_ptr, share, center, scale, eps,
            POOLED, WEIGHTS, BIASES,
        )  # fmt: skip
        std = tl.math.sqrt_rn(bessel * (gain * gain * var) + exchange_eps)
        ratio = tl.math.sqrt_rn(bessel * (gain_there * gain_there * var_there) + exchange_eps) / std
        ratio = tl.where(known, ratio, float("nan"))
        mean = tl.where(known, mean, float("nan"))
    return gain, ratio, mean, var, std


@triton.jit
def follow(running_mean_ptr, running_var_ptr, channel, inside, mean, var, pace):
    """Running moments moved towards those of a batch."""
    if running_mean_ptr is not None:
        old = tl.load(running_mean_ptr + channel, mask=inside, other=0.0)
        tl.store(running_mean_ptr + channel, (old + pace * (mean - old)).to(tl.float32), mask=inside)
        old = tl.load(running_var_ptr + channel, mask=inside, other=0.0)
        tl.store(running_var_ptr + channel, (old + pace * (var - old)).to(tl.float32), mask=inside)


@triton.jit
def count(batches_ptr):
    """One batch more, by one program."""
    if batches_ptr is not None:
        if tl.program_id(0) == 0:
            tl.store(batches_ptr, tl.load(batches_ptr) + 1)
