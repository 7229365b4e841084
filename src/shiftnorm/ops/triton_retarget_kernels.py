"""What BatchNorm, CrossNorm and SelfNorm make of moments, in this order, as one Triton kernel each way.

The formulas are those of ``retargeting``: a program takes a block of channels, walks over the samples as often as sums
over them are wanted, and computes again what a walk before it knew instead of keeping it. Sums over samples and
distances from their means are in float64: a mean may lie far from 0, and there are few numbers.
"""

# pyright: basic, reportGeneralTypeIssues=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportInvalidTypeForm=false
# Triton compiles these functions and may be missing; to a type checker their values have no types.

from __future__ import annotations

from shiftnorm.ops.triton_place import tl, triton
from shiftnorm.ops.triton_rows import (
    center_of,
    count,
    distance,
    exchanged,
    follow,
    in_front,
    of_channel,
    over_samples,
    own_scale,
    parameter,
    tile_at,
)

__all__ = ["retarget_block", "retarget_gradient_block"]


@triton.jit
def retarget_block(
    mean_ptr,
    var_ptr,
    gain_ptr,
    weight_ptr,
    bias_ptr,
    share_ptr,
    running_mean_ptr,
    running_var_ptr,
    batches_ptr,
    partner_ptr,
    acts_ptr,
    linear_ptr,
    gate_weight_ptr,
    gate_bias_ptr,
    gate_mean_ptr,
    gate_var_ptr,
    gate_batches_ptr,
    new_gain_ptr,
    new_mean_ptr,
    kept_ptr,
    samples,
    channels,
    unbiased,
    bessel,
    eps,
    pace,
    exchange_eps,
    gate_eps,
    norm_eps,
    gate_pace,
    height,
    POOLED: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BIASES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Forward, for a block of channels. Keeps 1 / deviation of the batch, and mean and 1 / deviation of the gate's."""
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = channel < channels
    share = of_channel(share_ptr, channel, inside, 1.0)
    center = tl.zeros(channel.shape, tl.float64)
    scale = tl.full(channel.shape, 1.0, tl.float32)
    if POOLED:
        center = center_of(mean_ptr, samples, channel, inside, channels, ROWS)
        total = tl.zeros(channel.shape, tl.float64)
        for start in tl.range(0, samples, ROWS, num_stages=1):
            _row, live, at = tile_at(start, samples, channel, inside, channels, ROWS)
            away = tl.load(mean_ptr + at, mask=live, other=0.0).to(tl.float64) - center[None, :]
            total += over_samples(tl.load(var_ptr + at, mask=live, other=0.0) + away * away, live)
        pooled = total / samples
        scale = (1.0 / tl.sqrt(pooled + eps)).to(tl.float32)
        tl.store(kept_ptr + channel, scale, mask=inside)
        follow(running_mean_ptr, running_var_ptr, channel, inside, center, pooled * unbiased, pace)
        count(batches_ptr)
    scale = scale[None, :]
    gate_center = tl.zeros(channel.shape, tl.float64)
    gate_scale = tl.full(channel.shape, 1.0, tl.float32)
    of_mean = of_channel(linear_ptr, 2 * channel, inside, 0.0)
    of_std = of_channel(linear_ptr, 2 * channel + 1, inside, 0.0)
    if linear_ptr is not None:
        for walk in tl.static_range(2):  # the mean, then the deviations from it
            total = tl.zeros(channel.shape, tl.float64)
            for start in tl.range(0, samples, ROWS, num_stages=1):
                row, live, at = tile_at(start, samples, channel, inside, channels, ROWS)
                gain, ratio, mean, var, _std = exchanged(
                    row, at, live, channel, samples, channels, mean_ptr, var_ptr, gain_ptr, weight_ptr, bias_ptr, share,
                    center, scale, eps, partner_ptr, acts_ptr, exchange_eps, bessel, POOLED, WEIGHTS, BIASES,
                )  # fmt: skip
                gain *= ratio
                z = of_mean * mean + of_std * tl.math.sqrt_rn(bessel * (gain * gain * var) + gate_eps)
                if walk == 0:
                    total += over_samples(z, live)
                else:
                    away = z.to(tl.float64) - gate_center[None, :]
                    total += over_samples(away * away, live)
            if walk == 0:
                gate_center = total / samples
            else:
                gate_scale = (1.0 / tl.sqrt(total / samples + norm_eps)).to(tl.float32)
                tl.store(kept_ptr + channels + channel, gate_center.to(tl.float32), mask=inside)
                tl.store(kept_ptr + 2 * channels + channel, gate_scale, mask=inside)
                follow(gate_mean_ptr, gate_var_ptr, channel, inside, gate_center, total / (samples - 1), gate_pace)
        count(gate_batches_ptr)
    gate_weight = of_channel(gate_weight_ptr, channel, inside, 1.0)
    gate_bias = of_channel(gate_bias_ptr, channel, inside, 0.0)
    for start in tl.range(0, samples, ROWS, num_stages=1):
        row, live, at = tile_at(start, samples, channel, inside, channels, ROWS)
        gain, ratio, mean, var, _std = exchanged(
            row, at, live, channel, samples, channels, mean_ptr, var_ptr, gain_ptr, weight_ptr, bias_ptr, share,
            center, scale, eps, partner_ptr, acts_ptr, exchange_eps, bessel, POOLED, WEIGHTS, BIASES,
        )  # fmt: skip
        gain *= ratio
        if linear_ptr is not None:
            z = of_mean * mean + of_std * tl.math.sqrt_rn(bessel * (gain * gain * var) + gate_eps)
            level = gate_weight * ((z - gate_center.to(tl.float32)[None, :]) * gate_scale[None, :]) + gate_bias
            gate = height / (1 + tl.exp(-level))
            gain *= gate
            mean *= gate
        tl.store(new_gain_ptr + at, gain, mask=live)
        tl.store(new_mean_ptr + at, mean, mask=live)


@triton.jit
def retarget_gradient_block(
    mean_ptr,
    var_ptr,
    gain_ptr,
    weight_ptr,
    bias_ptr,
    share_ptr,
    partner_ptr,
    acts_ptr,
    linear_ptr,
    gate_weight_ptr,
    gate_bias_ptr,
    kept_ptr,
    g_gain_ptr,
    g_mean_ptr,
    d_mean_ptr,
    d_var_ptr,
    d_gain_ptr,
    d_weight_ptr,
    d_bias_ptr,
    d_share_ptr,
    d_linear_ptr,
    d_gate_weight_ptr,
    d_gate_bias_ptr,
    scratch_ptr,
    samples,
    channels,
    rows,
    bessel,
    eps,
    exchange_eps,
    gate_eps,
    height,
    POOLED: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BIASES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    """Backward, for a block of channels: gate, exchange and what is in front, each in walks of its own.

    d_gain takes the gradient of the gain in front, an input or not. Scratch, with an exchange, holds the gradients of
    the partner's mean and deviation and of the own deviation, (3, N, C), until the samples they belong to are found.
    """
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = channel < channels
    share = of_channel(share_ptr, channel, inside, 1.0)
    center = tl.zeros(channel.shape, tl.float64)
    scale = tl.full([1, COLUMNS], 1.0, tl.float32)
    if POOLED:
        center = center_of(mean_ptr, samples, channel, inside, channels, ROWS)
        scale = of_channel(kept_ptr, channel, inside, 1.0)
    gate_center = of_channel(kept_ptr, channels + channel, inside, 0.0)
    gate_scale = of_channel(kept_ptr, 2 * channels + channel, inside, 1.0)
    of_mean = of_channel(linear_ptr, 2 * channel, inside, 0.0)
    of_std = of_channel(linear_ptr, 2 * channel + 1, inside, 0.0)
    gate_weight = of_channel(gate_weight_ptr, channel, inside, 1.0)
    gate_bias = of_channel(gate_bias_ptr, channel, inside, 0.0)
    products = tl.zeros(channel.shape, tl.float64)
    levels = tl.zeros(channel.shape, tl.float64)
    means = tl.zeros(channel.shape, tl.float64)
    stds = tl.zeros(channel.shape, tl.float64)
    for walk in tl.static_range(0 if linear_ptr is not None else 1, 2):  # sums over the samples, then what needs them
        for start in tl.range(0, samples, ROWS, num_stages=1):
            row, live, at = tile_at(start, samples, channel, inside, channels, ROWS)
            before, ratio, mean, var, std = exchanged(
                row, at, live, channel, samples, channels, mean_ptr, var_ptr, gain_ptr, weight_ptr, bias_ptr, share,
                center, scale, eps, partner_ptr, acts_ptr, exchange_eps, bessel, POOLED, WEIGHTS, BIASES,
            )  # fmt: skip
            g_gain = tl.load(g_gain_ptr + at, mask=live, other=0.0)
            g_mean = tl.load(g_mean_ptr + at, mask=live, other=0.0)
            gain = before * ratio
            d_var = tl.zeros(at.shape, tl.float32)
            d_gain = g_gain
            d_mean = g_mean
            if linear_ptr is not None:
                gate_std = tl.math.sqrt_rn(bessel * (gain * gain * var) + gate_eps)
                normed = (of_mean * mean + of_std * gate_std - gate_center) * gate_scale
                gate = 1 / (1 + tl.exp(-(gate_weight * normed + gate_bias)))
                d_level = height * (g_gain * gain + g_mean * mean) * gate * (1 - gate)
                if walk == 0:
                    products += over_samples(d_level * normed, live)
                    levels += over_samples(d_level, live)
                else:
                    spread = (levels.to(tl.float32)[None, :] + normed * products.to(tl.float32)[None, :]) / samples
                    d_z = gate_weight * gate_scale * (d_level - spread)
                    means += over_samples(d_z * mean, live)
                    stds += over_samples(d_z * gate_std, live)
                    slope = d_z * of_std * bessel / (2 * gate_std)
                    d_mean = g_mean * height * gate + d_z * of_mean
                    d_var = slope * gain * gain
                    d_gain = g_gain * height * gate + 2 * slope * gain * var
            if walk == 1:
                tl.store(d_var_ptr + at, d_var, mask=live)
                if d_gain_ptr is not None:
                    tl.store(d_gain_ptr + at, d_gain * ratio, mask=live)
                if partner_ptr is None:
                    tl.store(d_mean_ptr + at, d_mean, mask=live)
                else:  # ratio = the other's deviation / the own one
                    part = d_gain * before / std
                    tl.store(scratch_ptr + at, d_mean, mask=live)
                    tl.store(scratch_ptr + rows + at, part, mask=live)
                    tl.store(scratch_ptr + 2 * rows + at, -part * ratio, mask=live)
    if linear_ptr is not None:
        tl.store(d_linear_ptr + 2 * channel, means.to(tl.float32), mask=inside)
        tl.store(d_linear_ptr + 2 * channel + 1, stds.to(tl.float32), mask=inside)
        tl.store(d_gate_weight_ptr + channel, products.to(tl.float32), mask=inside)
        tl.store(d_gate_bias_ptr + channel, levels.to(tl.float32), mask=inside)
    if partner_ptr is not None:
        tl.debug_barrier()  # other threads wrote what is read now
        every = tl.arange(0, SAMPLES)
        looked_at = tl.load(partner_ptr + every, mask=every < samples, other=-1)
        if acts_ptr is not None:
            looked_at = tl.where((tl.load(acts_ptr) != 0) | (every >= samples), looked_at, every)
        for start in tl.range(0, samples, ROWS, num_stages=1):
            row, live, at = tile_at(start, samples, channel, inside, channels, ROWS)
            gain, _mean, var = in_front(
                at, live, channel, mean_ptr, var_ptr, gain_ptr, weight_ptr, bias_ptr, share, center, scale, eps,
                POOLED, WEIGHTS, BIASES,
            )  # fmt: skip
            d_mean = tl.zeros(at.shape, tl.float32)
            d_std = tl.load(scratch_ptr + 2 * rows + at, mask=live, other=0.0)
            # Who looks at each sample, one after the other: one in a permutation, any number in another draw.
            looks = (looked_at[None, :] == row) & (row < samples)
            who = tl.min(tl.where(looks, every[None, :], SAMPLES), 1)
            while tl.min(who, 0) < SAMPLES:
                found = live & (who < SAMPLES)[:, None]
                there = tl.expand_dims(who.to(tl.int64), 1) * channels + channel[None, :]
                d_mean += tl.load(scratch_ptr + there, mask=found, other=0.0)
                d_std += tl.load(scratch_ptr + rows + there, mask=found, other=0.0)
                who = tl.min(tl.where(looks & (every[None, :] > tl.expand_dims(who, 1)), every[None, :], SAMPLES), 1)
            std = tl.math.sqrt_rn(bessel * (gain * gain * var) + exchange_eps)
            slope = d_std * bessel / (2 * std)
            tl.store(d_mean_ptr + at, d_mean, mask=live)
            d_var = tl.load(d_var_ptr + at, mask=live, other=0.0)
            tl.store(d_var_ptr + at, d_var + slope * gain * gain, mask=live)
            if d_gain_ptr is not None:
                d_gain = tl.load(d_gain_ptr + at, mask=live, other=0.0)
                tl.store(d_gain_ptr + at, d_gain + 2 * slope * gain * var, mask=live)
    if POOLED:
        tl.debug_barrier()
        level = tl.where(share == 0, 0.0, scale * share)
        scales = tl.zeros(channel.shape, tl.float64)
        centers = tl.zeros(channel.shape, tl.float64)
        weights = tl.zeros(channel.shape, tl.float64)
        biases = tl.zeros(channel.shape, tl.float64)
        shares = tl.zeros(channel.shape, tl.float64)
        for start in tl.range(0, samples, ROWS, num_stages=1):
            _row, live, at = tile_at(start, samples, channel, inside, channels, ROWS)
            d_gain = tl.load(d_gain_ptr + at, mask=live, other=0.0)
            g = tl.load(d_mean_ptr + at, mask=live, other=0.0)
            mean = tl.load(mean_ptr + at, mask=live, other=0.0)
            var = tl.load(var_ptr + at, mask=live, other=0.0)
            weight = parameter(weight_ptr, at, channel, live, 1.0, WEIGHTS)
            d_level = d_gain + g * distance(mean, center, share).to(tl.float32)
            own = own_scale(var, 1 - share, eps)
            d_weight = d_level * level + d_gain * (1 - share) * own
            scales += over_samples(d_level * weight * share, live)
            centers += over_samples(g * weight * level, live)
            if share_ptr is not None:
                d_own = d_gain * weight * (1 - share)
                d_var = tl.load(d_var_ptr + at, mask=live, other=0.0)
                tl.store(d_var_ptr + at, d_var - 0.5 * d_own * own * own * own, mask=live)
                by_batch = d_gain + g * (mean.to(tl.float64) - center[None, :]).to(tl.float32)
                alone = 1.0 / tl.math.sqrt_rn(var + eps)
                shares += over_samples(weight * (by_batch * scale - d_gain * alone), live)
            if weight_ptr is not None:
                if WEIGHTS:
                    tl.store(d_weight_ptr + at, d_weight, mask=live)
                else:
                    weights += over_samples(d_weight, live)
            if bias_ptr is not None:
                if BIASES:
                    tl.store(d_bias_ptr + at, g, mask=live)
                else:
                    biases += over_samples(g, live)
        if weight_ptr is not None and not WEIGHTS:
            tl.store(d_weight_ptr + channel, weights.to(tl.float32), mask=inside)
        if bias_ptr is not None and not BIASES:
            tl.store(d_bias_ptr + channel, biases.to(tl.float32), mask=inside)
        if share_ptr is not None:
            tl.store(d_share_ptr + channel, shares.to(tl.float32), mask=inside)
        tl.debug_barrier()
        # In float64: rounded, these would shift all samples alike, and behind another BatchNorm only that is left.
        one = scale.to(tl.float64)
        tilt = tl.where(share == 0, 0.0, -scales[None, :] * one * one * one / samples)
        shift = -centers[None, :] / samples
        for start in tl.range(0, samples, ROWS, num_stages=1):
            _row, live, at = tile_at(start, samples, channel, inside, channels, ROWS)
            g = tl.load(d_mean_ptr + at, mask=live, other=0.0)
            mean = tl.load(mean_ptr + at, mask=live, other=0.0)
            weight = parameter(weight_ptr, at, channel, live, 1.0, WEIGHTS)
            whole = (g * weight * level).to(tl.float64) + shift + tilt * distance(mean, center, share)
            tl.store(d_mean_ptr + at, whole.to(tl.float32), mask=live)
            d_var = tl.load(d_var_ptr + at, mask=live, other=0.0)
            tl.store(d_var_ptr + at, (d_var.to(tl.float64) + 0.5 * tilt).to(tl.float32), mask=live)
