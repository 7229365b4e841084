// What norms of style make of the planes' moments, forward and backward: CrossNorm's exchange, then SelfNorm's gate,
// with the BatchNorm in front of them, which may also stand alone. Channels are independent.
#pragma once
#include <initializer_list>
#include "rows.h"

namespace {

// Laid out as ops/retargeting.py packs it. Rows are (N, C), or (C) with a step of 0 between samples.
struct Retarget {
    int64_t element, threads, samples, channels;
    double bessel;  // makes a variance the unbiased one
    const void *mean, *var, *gain;  // the planes' moments, and the gain in front if there is one
    int64_t mean_step, gain_step;
    const void *front_weight, *front_bias, *front_share;  // a BatchNorm in front, which then makes the gain and the mean
    int64_t front_weight_step, front_bias_step;
    void *front_mean, *front_var;
    int64_t* front_batches;
    void *front, *front_gain, *front_rows;  // kept: 1 / deviation (C), and gains and means behind it; or null
    double front_eps, front_pace, count;    // elements of a plane
    const int64_t* partner;  // the exchange, if there is one
    double exchange_eps;
    const void *linear, *weight, *bias;  // the gate, if there is one: (C, 2), (C), (C)
    void *running_mean, *running_var;
    int64_t* batches;
    double gate_eps, norm_eps, pace, height;
    void *std, *gate_std, *gate, *batch;  // kept for backward: (N, C) three times, and (2, C)
    void *new_gain, *new_mean;  // in backward their gradients
    void *d_mean, *d_var, *d_gain, *d_linear, *d_weight, *d_bias, *d_front_weight, *d_front_bias;
    void *d_front_share, *scratch;  // in backward
};

// exp to an ulp or two, in operations that a compiler turns into vectors.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;  // NaN stays
    const float k = __builtin_floorf(x * 1.44269504f + 0.5f);
    const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const std::uint32_t bits = std::uint32_t(std::int32_t(k == k ? k : 0.0f) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return (p * r * r + r + 1.0f) * power;
}
inline double exponential(double x) { return std::exp(x); }

template <class A> struct Rows {
    const Retarget& k;
    int64_t c0, width;

    template <class P> A* at(P* rows, int64_t n) const { return row(rows, n * k.channels); }
    template <class P> A* row(P* rows, int64_t offset) const {
        return static_cast<A*>(const_cast<void*>(static_cast<const void*>(rows))) + offset + c0;
    }
    // What the exchange and the gate see: with a BatchNorm in front its results.
    const A* mean(int64_t n) const { return k.front ? at(k.front_rows, n) : row(k.mean, n * k.mean_step); }
    A gain(int64_t n, int64_t c) const {
        if (k.front) return at(k.front_gain, n)[c];
        return k.gain ? row(k.gain, n * k.gain_step)[c] : A(1);
    }
    int64_t partner(int64_t n) const { return k.partner ? k.partner[n] : n; }
};

// What the BatchNorm in front is made of, of one sample: `level` times the distance from the batch's mean, and of a
// channel whose share is below 1 `rest` times the deviation from the plane's own. A share of 0 does not see the batch,
// nor one of 1 the plane: what is not finite there would come through a product with 0.
template <class A> struct Front {
    const Rows<A>& rows;
    const A* scale;
    A share[kChannels], level[kChannels], rest[kChannels], ones[kChannels], zeros[kChannels];
    bool shared;

    explicit Front(const Rows<A>& r) : rows(r), shared(r.k.front_share) {
        scale = rows.row(rows.k.front, 0);
        for (int64_t c = 0; c < kChannels; ++c) ones[c] = 1, zeros[c] = 0;
        for (int64_t c = 0; c < rows.width; ++c) {
            share[c] = shared ? rows.row(rows.k.front_share, 0)[c] : A(1);
            level[c] = share[c] == 0 ? A(0) : scale[c] * share[c];
            rest[c] = A(1) - share[c];
        }
    }
    const A* weight(int64_t n) const {
        return rows.k.front_weight ? rows.row(rows.k.front_weight, n * rows.k.front_weight_step) : ones;
    }
    const A* bias(int64_t n) const {
        return rows.k.front_bias ? rows.row(rows.k.front_bias, n * rows.k.front_bias_step) : zeros;
    }
    A own(A var, int64_t c) const {
        return rest[c] == 0 ? A(0) : A(1) / std::sqrt(var + A(rows.k.front_eps));
    }
    // From the batch's mean. In double: the gradient relies on distances whose sum is 0, and means may lie far from 0.
    double distance(A mean, double center, int64_t c) const {
        return share[c] == 0 ? 0 : double(mean) - center;
    }
};

template <class A> void front_center(const Rows<A>& rows, double* center) {
    for (int64_t c = 0; c < rows.width; ++c) center[c] = 0;
    for (int64_t n = 0; n < rows.k.samples; ++n)
        for (int64_t c = 0; c < rows.width; ++c) center[c] += double(rows.at(rows.k.mean, n)[c]);
    for (int64_t c = 0; c < rows.width; ++c) center[c] /= double(rows.k.samples);
}

// The BatchNorm in front: moments pooled over the samples, gains, and the planes' means behind it.
template <class A> void front(const Rows<A>& rows) {
    const Retarget& k = rows.k;
    const int64_t samples = k.samples, width = rows.width;
    const double all = k.count * double(samples);
    double mean[kChannels], var[kChannels] = {};
    front_center(rows, mean);
    for (int64_t n = 0; n < samples; ++n) {
        const A *const own = rows.at(k.mean, n), *const spread = rows.at(k.var, n);
        for (int64_t c = 0; c < width; ++c) {
            const double d = double(own[c]) - mean[c];
            var[c] += double(spread[c]) + d * d;
        }
    }
    A* const scale = rows.row(k.front, 0);
    for (int64_t c = 0; c < width; ++c) {
        var[c] /= double(samples);
        scale[c] = A(1 / std::sqrt(var[c] + k.front_eps));
    }
    const Front<A> parts(rows);
    for (int64_t n = 0; n < samples; ++n) {
        const A *const own = rows.at(k.mean, n), *const weight = parts.weight(n), *const bias = parts.bias(n);
        A *const gain = rows.at(k.front_gain, n), *const behind = rows.at(k.front_rows, n);
        for (int64_t c = 0; c < width; ++c) {
            gain[c] = weight[c] * parts.level[c];
            behind[c] = gain[c] * A(parts.distance(own[c], mean[c], c)) + bias[c];
        }
        const A* const spread = rows.at(k.var, n);
        for (int64_t c = 0; parts.shared && c < width; ++c)
            gain[c] += weight[c] * parts.rest[c] * parts.own(spread[c], c);
    }
    if (!k.front_mean) return;
    A *const running_mean = rows.row(k.front_mean, 0), *const running_var = rows.row(k.front_var, 0);
    INDEPENDENT
    for (int64_t c = 0; c < width; ++c) {
        running_mean[c] += A(k.front_pace * (mean[c] - double(running_mean[c])));
        running_var[c] += A(k.front_pace * (var[c] * (all / (all - 1)) - double(running_var[c])));
    }
}

// From the gradients of the gains and of the means behind it, (N, C), to those of the moments and the parameters. The
// means' may lie where those of the moments go.
template <class A> void front_backward(const Rows<A>& rows, const void* of_gains, const void* of_means) {
    const Retarget& k = rows.k;
    const int64_t samples = k.samples, width = rows.width;
    const Front<A> parts(rows);
    double scales[kChannels] = {}, centers[kChannels] = {}, weights[kChannels] = {}, biases[kChannels] = {};
    double shares[kChannels] = {}, center[kChannels];
    front_center(rows, center);
    for (int64_t n = 0; n < samples; ++n) {
        const A *const d_gain = rows.at(of_gains, n), *const g = rows.at(of_means, n), *const mean = rows.at(k.mean, n);
        const A *const weight = parts.weight(n), *const spread = rows.at(k.var, n);
        A* const d_var = rows.at(k.d_var, n);
        A d_weight[kChannels];
        for (int64_t c = 0; c < width; ++c) {
            const A d_level = d_gain[c] + g[c] * A(parts.distance(mean[c], center[c], c));
            d_weight[c] = d_level * parts.level[c];
            scales[c] += double(d_level * weight[c] * parts.share[c]);
            centers[c] += double(g[c] * weight[c] * parts.level[c]);
        }
        INDEPENDENT
        for (int64_t c = 0; parts.shared && c < width; ++c) {
            const A own = parts.own(spread[c], c), d_own = d_gain[c] * weight[c] * parts.rest[c];
            d_weight[c] += d_gain[c] * parts.rest[c] * own;
            d_var[c] -= A(0.5) * d_own * own * own * own;
        }
        INDEPENDENT
        for (int64_t c = 0; k.d_front_share && c < width; ++c) {
            const A own = A(1) / std::sqrt(spread[c] + A(k.front_eps));
            const A by_batch = d_gain[c] + g[c] * A(double(mean[c]) - center[c]);
            shares[c] += double(weight[c] * (by_batch * parts.scale[c] - d_gain[c] * own));
        }
        A *const of_weight = rows.row(k.d_front_weight, n * k.front_weight_step);
        A *const of_bias = rows.row(k.d_front_bias, n * k.front_bias_step);
        INDEPENDENT
        for (int64_t c = 0; k.front_weight && c < width; ++c) of_weight[c] = A(weights[c] += double(d_weight[c]));
        INDEPENDENT
        for (int64_t c = 0; k.front_bias && c < width; ++c) of_bias[c] = A(biases[c] += double(g[c]));
        if (k.front_weight_step) std::memset(weights, 0, sizeof weights);
        if (k.front_bias_step) std::memset(biases, 0, sizeof biases);
    }
    // In double: rounded, these would shift all samples alike, and behind another norm of the batch only that is left.
    double slope[kChannels], shift[kChannels];
    for (int64_t c = 0; c < width; ++c) {
        const double one = double(parts.scale[c]);
        slope[c] = parts.share[c] == 0 ? 0 : -scales[c] * one * one * one / double(samples);  // of the variance, twice
        shift[c] = -centers[c] / double(samples);
        if (k.d_front_share) rows.row(k.d_front_share, 0)[c] = A(shares[c]);
    }
    for (int64_t n = 0; n < samples; ++n) {
        A *const d_mean = rows.at(k.d_mean, n), *const d_var = rows.at(k.d_var, n);
        const A *const mean = rows.at(k.mean, n), *const g = rows.at(of_means, n), *const weight = parts.weight(n);
        INDEPENDENT
        for (int64_t c = 0; c < width; ++c) {
            const double distance = parts.distance(mean[c], center[c], c);
            d_mean[c] = A(double(g[c] * weight[c] * parts.level[c]) + shift[c] + slope[c] * distance);
            d_var[c] += A(0.5 * slope[c]);
        }
    }
}

template <class A> void retarget_block(const Retarget& k, int64_t c0) {
    const Rows<A> rows{k, c0, least(kChannels, k.channels - c0)};
    const int64_t samples = k.samples, width = rows.width;
    if (k.front) front(rows);
    if (k.front && !k.partner && !k.weight) return;  // its gains and means are the results
    const A bessel = A(k.bessel), exchange_eps = A(k.exchange_eps), gate_eps = A(k.gate_eps);
    const A* const linear = k.weight ? rows.row(k.linear, c0) : nullptr;
    A gains[kChannels];
    double sum[kChannels] = {}, squares[kChannels] = {};
    for (int64_t n = 0; k.partner && n < samples; ++n) {
        const A* const var = rows.at(k.var, n);
        A* const std = rows.at(k.std, n);
        INDEPENDENT
        for (int64_t c = 0; c < width; ++c) {
            const A gain = rows.gain(n, c);
            std[c] = std::sqrt(bessel * (gain * gain * var[c]) + exchange_eps);
        }
    }
    for (int64_t n = 0; n < samples; ++n) {
        const A *const var = rows.at(k.var, n), *const mean = rows.mean(rows.partner(n));
        A *const new_gain = rows.at(k.new_gain, n), *const new_mean = rows.at(k.new_mean, n);
        for (int64_t c = 0; c < width; ++c) gains[c] = rows.gain(n, c);
        if (k.partner) {
            const A *const own = rows.at(k.std, n), *const other = rows.at(k.std, k.partner[n]);
            for (int64_t c = 0; c < width; ++c) gains[c] *= other[c] / own[c];
        }
        for (int64_t c = 0; c < width; ++c) new_gain[c] = gains[c];
        for (int64_t c = 0; c < width; ++c) new_mean[c] = mean[c];
        if (!linear) continue;
        A *const std = rows.at(k.gate_std, n), *const z = rows.at(k.gate, n);
        INDEPENDENT
        for (int64_t c = 0; c < width; ++c) {
            std[c] = std::sqrt(bessel * (gains[c] * gains[c] * var[c]) + gate_eps);
            z[c] = linear[2 * c] * mean[c] + linear[2 * c + 1] * std[c];
            sum[c] += double(z[c]);
        }
    }
    if (!linear) return;
    A *const center = rows.row(k.batch, 0), *const scale = rows.row(k.batch, k.channels);
    for (int64_t c = 0; c < width; ++c) sum[c] /= double(samples), center[c] = A(sum[c]);
    for (int64_t n = 0; n < samples; ++n) {
        const A* const z = rows.at(k.gate, n);
        for (int64_t c = 0; c < width; ++c) {
            const double d = double(z[c]) - sum[c];
            squares[c] += d * d;
        }
    }
    for (int64_t c = 0; c < width; ++c) scale[c] = A(1 / std::sqrt(squares[c] / double(samples) + k.norm_eps));
    if (k.running_mean) {
        A *const mean = rows.row(k.running_mean, 0), *const var = rows.row(k.running_var, 0);
        INDEPENDENT
        for (int64_t c = 0; c < width; ++c) {
            mean[c] += A(k.pace) * (center[c] - mean[c]);
            var[c] += A(k.pace) * (A(squares[c] / double(samples - 1)) - var[c]);
        }
    }
    const A *const weight = rows.row(k.weight, 0), *const bias = rows.row(k.bias, 0);
    const A height = A(k.height);
    for (int64_t n = 0; n < samples; ++n) {
        A *const gate = rows.at(k.gate, n), *const new_gain = rows.at(k.new_gain, n);
        A* const new_mean = rows.at(k.new_mean, n);
        INDEPENDENT
        for (int64_t c = 0; c < width; ++c) {
            const A level = weight[c] * ((gate[c] - center[c]) * scale[c]) + bias[c];
            gate[c] = A(1) / (A(1) + exponential(-level));
            new_gain[c] *= height * gate[c];
            new_mean[c] *= height * gate[c];
        }
    }
}

template <class A> void retarget_block_backward(const Retarget& k, int64_t c0) {
    const Rows<A> rows{k, c0, least(kChannels, k.channels - c0)};
    const int64_t samples = k.samples, width = rows.width;
    const A bessel = A(k.bessel), height = A(k.height);
    if (k.front && !k.partner && !k.weight) {
        for (int64_t n = 0; n < samples; ++n) std::memset(rows.at(k.d_var, n), 0, size_t(width) * sizeof(A));
        return front_backward(rows, k.new_gain, k.new_mean);
    }
    const bool has_gain = k.gain || k.front;
    const int64_t gain_step = k.front ? k.channels : k.gain_step;
    A before[kChannels], ratio[kChannels], d_gain[kChannels], d_level[kChannels];
    double weights[kChannels] = {}, biases[kChannels] = {}, of_mean[kChannels] = {}, of_std[kChannels] = {};
    const A *const linear = k.weight ? rows.row(k.linear, c0) : nullptr, *const weight = rows.row(k.weight, 0);
    const A *const center = rows.row(k.batch, 0), *const scale = rows.row(k.batch, k.channels);
    for (int64_t n = 0; n < samples; ++n) {
        A *const d_mean = rows.row(k.d_mean, n * k.mean_step), *const d_std = rows.at(k.scratch, n);
        for (int64_t c = 0; c < width; ++c) d_mean[c] = d_std[c] = 0;
        if (has_gain) std::memset(rows.row(k.d_gain, n * gain_step), 0, size_t(width) * sizeof(A));
    }
    const auto gains = [&](int64_t n) {  // the gain in front, and by how much the exchange changes it
        for (int64_t c = 0; c < width; ++c) before[c] = rows.gain(n, c), ratio[c] = A(1);
        if (!k.partner) return;
        const A *const own = rows.at(k.std, n), *const other = rows.at(k.std, k.partner[n]);
        for (int64_t c = 0; c < width; ++c) ratio[c] = other[c] / own[c];
    };
    // Twice over the gate's inputs: its BatchNorm needs the sums before the parts.
    const auto levels = [&](int64_t n) {
        const A *const mean = rows.mean(rows.partner(n)), *const gate = rows.at(k.gate, n);
        const A *const g_gain = rows.at(k.new_gain, n), *const g_mean = rows.at(k.new_mean, n);
        INDEPENDENT
        for (int64_t c = 0; c < width; ++c) {
            const A d_gate = height * (g_gain[c] * before[c] * ratio[c] + g_mean[c] * mean[c]);
            d_level[c] = d_gate * gate[c] * (A(1) - gate[c]);
        }
    };
    const auto normed = [&](int64_t n, int64_t c) {
        const A z = linear[2 * c] * rows.mean(rows.partner(n))[c] + linear[2 * c + 1] * rows.at(k.gate_std, n)[c];
        return (z - center[c]) * scale[c];
    };
    for (int64_t n = 0; linear && n < samples; ++n) {
        gains(n);
        levels(n);
        INDEPENDENT
        for (int64_t c = 0; c < width; ++c) {
            weights[c] += double(d_level[c] * normed(n, c));
            biases[c] += double(d_level[c]);
        }
    }
    for (int64_t n = 0; n < samples; ++n) {
        const int64_t other = rows.partner(n);
        const A *const var = rows.at(k.var, n), *const mean = rows.mean(other);
        const A *const g_gain = rows.at(k.new_gain, n), *const g_mean = rows.at(k.new_mean, n);
        A *const d_mean = rows.row(k.d_mean, other * k.mean_step), *const d_var = rows.at(k.d_var, n);
        gains(n);
        if (linear) {
            const A *const gate = rows.at(k.gate, n), *const std = rows.at(k.gate_std, n);
            levels(n);
            INDEPENDENT
            for (int64_t c = 0; c < width; ++c) {
                const A spread = (A(biases[c]) + normed(n, c) * A(weights[c])) / A(samples);
                const A d_z = weight[c] * scale[c] * (d_level[c] - spread);
                of_mean[c] += double(d_z * mean[c]);
                of_std[c] += double(d_z * std[c]);
                d_mean[c] += g_mean[c] * height * gate[c] + d_z * linear[2 * c];
                // through the gate's deviation, sqrt(bessel * (before * ratio)^2 * var + eps)
                const A slope = d_z * linear[2 * c + 1] * bessel / (A(2) * std[c]), whole = before[c] * ratio[c];
                d_var[c] = slope * whole * whole;
                d_gain[c] = g_gain[c] * height * gate[c] + A(2) * slope * whole * var[c];
            }
        } else {
            INDEPENDENT
            for (int64_t c = 0; c < width; ++c) d_mean[c] += g_mean[c], d_gain[c] = g_gain[c], d_var[c] = 0;
        }
        if (k.partner) {  // ratio = std of the other / own std
            const A* const own = rows.at(k.std, n);
            A *const d_own = rows.at(k.scratch, n), *const d_other = rows.at(k.scratch, other);
            INDEPENDENT
            for (int64_t c = 0; c < width; ++c) {
                const A part = d_gain[c] * before[c] / own[c];
                d_own[c] -= part * ratio[c];
                d_other[c] += part;
            }
        }
        if (!has_gain) continue;
        A* const d_before = rows.row(k.d_gain, n * gain_step);
        for (int64_t c = 0; c < width; ++c) d_before[c] += d_gain[c] * ratio[c];
    }
    for (int64_t n = 0; k.partner && n < samples; ++n) {
        const A *const var = rows.at(k.var, n), *const std = rows.at(k.std, n), *const d_std = rows.at(k.scratch, n);
        A *const d_var = rows.at(k.d_var, n), *const d_before = rows.row(k.d_gain, n * gain_step);
        INDEPENDENT
        for (int64_t c = 0; c < width; ++c) {
            const A slope = d_std[c] * bessel / (A(2) * std[c]), gain = rows.gain(n, c);
            d_var[c] += slope * gain * gain;
            if (has_gain) d_before[c] += A(2) * slope * gain * var[c];
        }
    }
    if (k.front) front_backward(rows, k.d_gain, k.d_mean);
    if (!linear) return;
    A *const d_linear = rows.row(k.d_linear, c0), *const d_weight = rows.row(k.d_weight, 0);
    A* const d_bias = rows.row(k.d_bias, 0);
    for (int64_t c = 0; c < width; ++c) {
        d_linear[2 * c] = A(of_mean[c]), d_linear[2 * c + 1] = A(of_std[c]);
        d_weight[c] = A(weights[c]), d_bias[c] = A(biases[c]);
    }
}

// Whether all partners are samples; nothing is written where one is not.
inline bool retarget(const Retarget& k) {
    const bool backward = k.d_var != nullptr;
    for (int64_t n = 0; k.partner && n < k.samples; ++n)
        if (k.partner[n] < 0 || k.partner[n] >= k.samples) return false;
    const auto run = k.element ? (backward ? retarget_block_backward<double> : retarget_block<double>)
                               : (backward ? retarget_block_backward<float> : retarget_block<float>);
    const int threads = rows_workers(k.samples * k.channels, k.threads);
    for (int64_t* const batches : {k.front_batches, k.batches})
        if (batches && !backward) ++*batches;
    for_each(ceil_div(k.channels, kChannels), threads, [&](int64_t block) { run(k, block * kChannels); });
    return true;
}

}  // namespace
