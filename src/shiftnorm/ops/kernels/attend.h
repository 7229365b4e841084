// AttentiveNorm's affine before its BatchNorm: shares of K pairs from a sample's planes, and the pairs mixed by them.
#pragma once
#include "rows.h"

namespace {

// Laid out as ops/attending.py packs it.
struct Attend {
    int64_t element, threads, samples, channels, pairs;
    double bessel, eps, norm_eps, pace;
    const void *mean, *var, *linear;                        // (N, C) twice, (K, C)
    const void *weight, *bias, *pair_weight, *pair_bias;    // (K) twice, (K, C) twice
    void *running_mean, *running_var;                       // (K), or null
    int64_t* batches;
    void *normed, *scale, *share;  // kept: the shares' BatchNorm before its affine (N, K), 1 / deviation (K); (N, K)
    void *new_weight, *new_bias;   // (N, C); in backward their gradients
    void *d_mean, *d_var, *d_linear, *d_weight, *d_bias, *d_pair_weight, *d_pair_bias;  // in backward
    double* scratch;                                                                    // (blocks, N, K)
};

// Lanes of their own: without them a sum in order is no vector's work.
template <class A> double dot(const A* a, const A* b, int64_t length) {
    constexpr int L = 16;
    A lanes[L] = {};
    int64_t i = 0;
    for (; i + L <= length; i += L)
        for (int lane = 0; lane < L; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
    double sum = 0;
    for (; i < length; ++i) sum += double(a[i] * b[i]);
    for (int lane = 0; lane < L; ++lane) sum += double(lanes[lane]);
    return sum;
}

template <class A> struct Attention {
    const Attend& k;
    int64_t c0, width;

    Attention(const Attend& a, int64_t first) : k(a), c0(first), width(least(kChannels, a.channels - first)) {}
    A* at(const void* rows, int64_t row) const { return rows_of<A>(rows) + row * k.channels + c0; }
    A* of_pairs(const void* rows, int64_t n) const { return rows_of<A>(rows) + n * k.pairs; }
    // What the shares are linear in: means over deviations.
    void inputs(int64_t n, A* z) const {
        const A *const mean = at(k.mean, n), *const var = at(k.var, n);
        for (int64_t c = 0; c < width; ++c) z[c] = mean[c] / std::sqrt(A(k.bessel) * var[c] + A(k.eps));
    }
};

template <class A> void attend_logits(const Attend& k, int64_t c0, double* partial) {
    const Attention<A> block(k, c0);
    A z[kChannels];
    for (int64_t n = 0; n < k.samples; ++n) {
        block.inputs(n, z);
        for (int64_t p = 0; p < k.pairs; ++p) partial[n * k.pairs + p] = dot(z, block.at(k.linear, p), block.width);
    }
}

// The shares' BatchNorm over the samples, and the hard sigmoid.
template <class A> void attend_shares(const Attend& k) {
    const double samples = double(k.samples);
    for (int64_t p = 0; p < k.pairs; ++p) {
        double mean = 0, var = 0;
        for (int64_t n = 0; n < k.samples; ++n) mean += k.scratch[n * k.pairs + p];
        mean /= samples;
        for (int64_t n = 0; n < k.samples; ++n) {
            const double d = k.scratch[n * k.pairs + p] - mean;
            var += d * d;
        }
        const double scale = 1 / std::sqrt(var / samples + k.norm_eps);
        rows_of<A>(k.scale)[p] = A(scale);
        for (int64_t n = 0; n < k.samples; ++n) {
            const A normed = A((k.scratch[n * k.pairs + p] - mean) * scale);
            const A level = rows_of<A>(k.weight)[p] * normed + rows_of<A>(k.bias)[p];
            const A share = A(0.5) + level / A(6);
            rows_of<A>(k.normed)[n * k.pairs + p] = normed;
            rows_of<A>(k.share)[n * k.pairs + p] = share < A(0) ? A(0) : share > A(1) ? A(1) : share;  // NaN stays
        }
        if (!k.running_mean) continue;
        A *const running_mean = rows_of<A>(k.running_mean) + p, *const running_var = rows_of<A>(k.running_var) + p;
        *running_mean += A(k.pace * (mean - double(*running_mean)));
        *running_var += A(k.pace * (var / (samples - 1) - double(*running_var)));
    }
}

template <class A> void attend_mixtures(const Attend& k, int64_t c0) {
    const Attention<A> block(k, c0);
    for (int64_t n = 0; n < k.samples; ++n) {
        const A* const share = block.of_pairs(k.share, n);
        A weight[kChannels] = {}, bias[kChannels] = {};
        for (int64_t p = 0; p < k.pairs; ++p) {
            const A *const pair_weight = block.at(k.pair_weight, p), *const pair_bias = block.at(k.pair_bias, p);
            for (int64_t c = 0; c < block.width; ++c) {
                weight[c] += share[p] * pair_weight[c];
                bias[c] += share[p] * pair_bias[c];
            }
        }
        std::memcpy(block.at(k.new_weight, n), weight, size_t(block.width) * sizeof(A));
        std::memcpy(block.at(k.new_bias, n), bias, size_t(block.width) * sizeof(A));
    }
}

template <class A> void attend_mixtures_backward(const Attend& k, int64_t c0, double* partial) {
    const Attention<A> block(k, c0);
    for (int64_t p = 0; p < k.pairs; ++p) {
        const A *const pair_weight = block.at(k.pair_weight, p), *const pair_bias = block.at(k.pair_bias, p);
        A d_weight[kChannels] = {}, d_bias[kChannels] = {};
        for (int64_t n = 0; n < k.samples; ++n) {
            const A *const g = block.at(k.new_weight, n), *const h = block.at(k.new_bias, n);
            const A share = block.of_pairs(k.share, n)[p];
            for (int64_t c = 0; c < block.width; ++c) d_weight[c] += share * g[c], d_bias[c] += share * h[c];
            partial[n * k.pairs + p] = dot(pair_weight, g, block.width) + dot(pair_bias, h, block.width);
        }
        std::memcpy(block.at(k.d_pair_weight, p), d_weight, size_t(block.width) * sizeof(A));
        std::memcpy(block.at(k.d_pair_bias, p), d_bias, size_t(block.width) * sizeof(A));
    }
}

// From the gradients of the shares, in scratch, to those of the logits, in the place of what was kept of the BatchNorm.
template <class A> void attend_shares_backward(const Attend& k) {
    const double samples = double(k.samples);
    for (int64_t p = 0; p < k.pairs; ++p) {
        const A weight = rows_of<A>(k.weight)[p], bias = rows_of<A>(k.bias)[p];
        double of_weight = 0, of_bias = 0;
        for (int64_t n = 0; n < k.samples; ++n) {
            const double normed = double(rows_of<A>(k.normed)[n * k.pairs + p]);
            const A share = A(0.5) + (weight * A(normed) + bias) / A(6);
            double& d_level = k.scratch[n * k.pairs + p];
            d_level = share > A(0) && share < A(1) ? d_level / 6 : 0;
            of_weight += d_level * normed;
            of_bias += d_level;
        }
        rows_of<A>(k.d_weight)[p] = A(of_weight), rows_of<A>(k.d_bias)[p] = A(of_bias);
        for (int64_t n = 0; n < k.samples; ++n) {
            const double normed = double(rows_of<A>(k.normed)[n * k.pairs + p]);
            double& d_logit = k.scratch[n * k.pairs + p];
            d_logit = double(weight) * double(rows_of<A>(k.scale)[p]) *
                      (d_logit - (of_bias + normed * of_weight) / samples);
        }
    }
}

template <class A> void attend_logits_backward(const Attend& k, int64_t c0) {
    const Attention<A> block(k, c0);
    for (int64_t p = 0; p < k.pairs; ++p) std::memset(block.at(k.d_linear, p), 0, size_t(block.width) * sizeof(A));
    for (int64_t n = 0; n < k.samples; ++n) {
        A z[kChannels], d_z[kChannels] = {};
        block.inputs(n, z);
        for (int64_t p = 0; p < k.pairs; ++p) {
            const A d_logit = A(k.scratch[n * k.pairs + p]);
            const A* const linear = block.at(k.linear, p);
            A* const d_linear = block.at(k.d_linear, p);
            INDEPENDENT
            for (int64_t c = 0; c < block.width; ++c) {
                d_linear[c] += d_logit * z[c];
                d_z[c] += d_logit * linear[c];
            }
        }
        const A *const mean = block.at(k.mean, n), *const var = block.at(k.var, n);
        A *const d_mean = block.at(k.d_mean, n), *const d_var = block.at(k.d_var, n);
        INDEPENDENT
        for (int64_t c = 0; c < block.width; ++c) {
            const A scale = A(1) / std::sqrt(A(k.bessel) * var[c] + A(k.eps));
            d_mean[c] = d_z[c] * scale;
            d_var[c] = A(-0.5 * k.bessel) * d_z[c] * mean[c] * scale * scale * scale;
        }
    }
}

template <class A> void attend_all(const Attend& k) {
    const int64_t blocks = ceil_div(k.channels, kChannels), length = k.samples * k.pairs;
    const int threads = rows_workers(k.samples * k.channels, k.threads);
    const bool backward = k.d_mean != nullptr;
    if (!backward && k.batches) ++*k.batches;
    for_each(blocks, threads, [&](int64_t block) {
        double* const partial = k.scratch + block * length;
        backward ? attend_mixtures_backward<A>(k, block * kChannels, partial)
                 : attend_logits<A>(k, block * kChannels, partial);
    });
    for (int64_t block = 1; block < blocks; ++block)  // in this order on any number of threads
        for (int64_t i = 0; i < length; ++i) k.scratch[i] += k.scratch[block * length + i];
    backward ? attend_shares_backward<A>(k) : attend_shares<A>(k);
    for_each(blocks, threads, [&](int64_t block) {
        backward ? attend_logits_backward<A>(k, block * kChannels) : attend_mixtures<A>(k, block * kChannels);
    });
}

}  // namespace
