// SwitchNorm between its passes: moments mixed of a plane's own, its sample's and its channel's, forward and backward.
#pragma once
#include "rows.h"

namespace {

// Laid out as ops/switching.py packs it.
struct Switch {
    int64_t element, threads, samples, channels;
    double bessel, eps, pace;
    const void *mean, *var, *mean_shares, *var_shares;  // (N, C) twice, then three shares each: plane, sample, channel
    const void *weight, *bias;                          // (C), or null
    void *running_mean, *running_var;                   // (C), or null
    int64_t* batches;
    double *of_samples, *of_channels;  // kept: mean and variance, (2, N) and (2, C)
    void* scale;                       // kept: 1 / deviation, (N, C)
    void *gain, *new_mean;                   // in backward their gradients
    void *d_mean, *d_var, *d_mean_shares, *d_var_shares, *d_weight, *d_bias;  // in backward
    double* scratch;                                                          // (blocks, 2 N + 6)
};

template <class A> struct Mixed {
    const Switch& k;
    const A *of_mean, *of_var;

    explicit Mixed(const Switch& s) : k(s), of_mean(rows_of<A>(s.mean_shares)), of_var(rows_of<A>(s.var_shares)) {}
    // In double: the gradient relies on distances whose sum is 0, and means may lie far from 0.
    double* sample_mean() const { return k.of_samples; }
    double* sample_var() const { return k.of_samples + k.samples; }
    double* channel_mean() const { return k.of_channels; }
    double* channel_var() const { return k.of_channels + k.channels; }
    // Of a plane's mean from the mixture, whose shares have the sum 1: means far from 0 would cancel.
    A distance(A own, double of_sample, double of_channel) const {
        return of_mean[1] * A(double(own) - of_sample) + of_mean[2] * A(double(own) - of_channel);
    }
    A* at(const void* rows, int64_t n, int64_t c) const { return rows_of<A>(rows) + n * k.channels + c; }
    // Parameters of a block, or what stands for those that are not given.
    void fill(A* block, const void* parameters, A otherwise, int64_t c0) const {
        for (int64_t c = 0; c < least(kChannels, k.channels - c0); ++c)
            block[c] = parameters ? rows_of<A>(parameters)[c0 + c] : otherwise;
    }
};

template <class A> void switch_samples(const Switch& k) {
    const Mixed<A> mixed(k);
    for_each(k.samples, rows_workers(k.samples * k.channels, k.threads), [&](int64_t n) {
        const A *const mean = mixed.at(k.mean, n, 0), *const var = mixed.at(k.var, n, 0);
        const double center = total(k.channels, [&](int64_t c) { return double(mean[c]); }) / double(k.channels);
        const double squares = total(k.channels, [&](int64_t c) {
            const double d = double(mean[c]) - center;
            return k.bessel * double(var[c]) + d * d;
        });
        mixed.sample_mean()[n] = center;
        mixed.sample_var()[n] = squares / double(k.channels);
    });
}

template <class A> void switch_block(const Switch& k, int64_t c0) {
    const Mixed<A> mixed(k);
    const int64_t width = least(kChannels, k.channels - c0);
    double *const mean = mixed.channel_mean() + c0, *const var = mixed.channel_var() + c0;
    for (int64_t c = 0; c < width; ++c) mean[c] = var[c] = 0;
    for (int64_t n = 0; n < k.samples; ++n)
        for (int64_t c = 0; c < width; ++c) mean[c] += double(mixed.at(k.mean, n, c0)[c]);
    for (int64_t c = 0; c < width; ++c) mean[c] /= double(k.samples);
    for (int64_t n = 0; n < k.samples; ++n)
        for (int64_t c = 0; c < width; ++c) {
            const double d = double(mixed.at(k.mean, n, c0)[c]) - mean[c];
            var[c] += k.bessel * double(mixed.at(k.var, n, c0)[c]) + d * d;
        }
    for (int64_t c = 0; c < width; ++c) var[c] /= double(k.samples);
    A weight[kChannels], bias[kChannels];
    mixed.fill(weight, k.weight, A(1), c0);
    mixed.fill(bias, k.bias, A(0), c0);
    for (int64_t n = 0; n < k.samples; ++n) {
        const A *const own = mixed.at(k.mean, n, c0), *const own_var = mixed.at(k.var, n, c0);
        A *const gain = mixed.at(k.gain, n, c0), *const behind = mixed.at(k.new_mean, n, c0);
        A* const scale = mixed.at(k.scale, n, c0);
        const double of_sample = mixed.sample_mean()[n];
        const A var_of_sample = A(mixed.sample_var()[n]);
        INDEPENDENT
        for (int64_t c = 0; c < width; ++c) {
            const A distance = mixed.distance(own[c], of_sample, mean[c]);
            const A whole = mixed.of_var[0] * A(k.bessel) * own_var[c] + mixed.of_var[1] * var_of_sample +
                            mixed.of_var[2] * A(var[c]);
            scale[c] = A(1) / std::sqrt(whole + A(k.eps));
            gain[c] = scale[c] * weight[c];
            behind[c] = gain[c] * distance + bias[c];
        }
    }
    if (!k.running_mean) return;
    A *const running_mean = rows_of<A>(k.running_mean) + c0, *const running_var = rows_of<A>(k.running_var) + c0;
    for (int64_t c = 0; c < width; ++c) {
        running_mean[c] += A(k.pace * (mean[c] - double(running_mean[c])));
        running_var[c] += A(k.pace * (var[c] - double(running_var[c])));
    }
}

// First walk: the gradients of the mixtures, left in d_mean and d_var, and their sums.
template <class A> void switch_gradients(const Switch& k, int64_t c0, double* sums) {
    const Mixed<A> mixed(k);
    const int64_t width = least(kChannels, k.channels - c0);
    double *const of_samples = sums, *const shares = sums + 2 * k.samples;
    const double *const channel_mean = mixed.channel_mean() + c0, *const channel_var = mixed.channel_var() + c0;
    double weights[kChannels] = {}, biases[kChannels] = {}, parts[4][kChannels] = {};
    A weight[kChannels];
    mixed.fill(weight, k.weight, A(1), c0);
    for (int i = 0; i < 6; ++i) shares[i] = 0;
    for (int64_t n = 0; n < k.samples; ++n) {
        const A *const own = mixed.at(k.mean, n, c0), *const own_var = mixed.at(k.var, n, c0);
        const A *const d_gain = mixed.at(k.gain, n, c0), *const g = mixed.at(k.new_mean, n, c0);
        const A* const scale = mixed.at(k.scale, n, c0);
        A *const of_mean = mixed.at(k.d_mean, n, c0), *const of_var = mixed.at(k.d_var, n, c0);
        const double of_sample = mixed.sample_mean()[n];
        INDEPENDENT
        for (int64_t c = 0; c < width; ++c) {
            const A whole = d_gain[c] + g[c] * mixed.distance(own[c], of_sample, channel_mean[c]);
            of_mean[c] = -g[c] * weight[c] * scale[c];
            of_var[c] = A(-0.5) * whole * weight[c] * scale[c] * scale[c] * scale[c];
            weights[c] += double(whole * scale[c]);
            biases[c] += double(g[c]);
            parts[0][c] += double(of_mean[c]) * double(own[c]);
            parts[1][c] += double(of_mean[c]) * channel_mean[c];
            parts[2][c] += double(of_var[c]) * double(own_var[c]);
            parts[3][c] += double(of_var[c]) * channel_var[c];
        }
        of_samples[n] = total(width, [&](int64_t c) { return double(of_mean[c]); });
        of_samples[k.samples + n] = total(width, [&](int64_t c) { return double(of_var[c]); });
        shares[1] += of_samples[n] * of_sample, shares[4] += of_samples[k.samples + n] * mixed.sample_var()[n];
    }
    const auto sum = [&](int part) { return total(width, [&](int64_t c) { return parts[part][c]; }); };
    shares[0] = sum(0), shares[2] = sum(1), shares[3] = k.bessel * sum(2), shares[5] = sum(3);
    for (int64_t c = 0; c < width; ++c) {
        if (k.weight) rows_of<A>(k.d_weight)[c0 + c] = A(weights[c]);
        if (k.bias) rows_of<A>(k.d_bias)[c0 + c] = A(biases[c]);
    }
}

// Second walk: from the mixtures to the moments of the planes; `sums` are those of all blocks.
template <class A> void switch_moments(const Switch& k, int64_t c0, const double* sums) {
    const Mixed<A> mixed(k);
    const int64_t width = least(kChannels, k.channels - c0);
    double means[kChannels] = {}, vars[kChannels] = {};
    for (int64_t n = 0; n < k.samples; ++n)
        for (int64_t c = 0; c < width; ++c) {
            means[c] += double(mixed.at(k.d_mean, n, c0)[c]);
            vars[c] += double(mixed.at(k.d_var, n, c0)[c]);
        }
    const A bessel = A(k.bessel);
    for (int64_t n = 0; n < k.samples; ++n) {
        A *const d_mean = mixed.at(k.d_mean, n, c0), *const d_var = mixed.at(k.d_var, n, c0);
        const A* const own = mixed.at(k.mean, n, c0);
        const double of_sample = mixed.sample_mean()[n];
        const double by_sample = double(mixed.of_mean[1]) * sums[n] / double(k.channels);
        const double var_by_sample = double(mixed.of_var[1]) * sums[k.samples + n] / double(k.channels);
        INDEPENDENT
        for (int64_t c = 0; c < width; ++c) {
            const double by_channel = double(mixed.of_mean[2]) * means[c] / double(k.samples);
            const double var_by_channel = double(mixed.of_var[2]) * vars[c] / double(k.samples);
            const double from_sample = double(own[c]) - of_sample;
            const double from_channel = double(own[c]) - mixed.channel_mean()[c0 + c];
            d_mean[c] = A(double((mixed.of_mean[0] - A(1)) * d_mean[c]) + by_sample + by_channel +
                          2 * (var_by_sample * from_sample + var_by_channel * from_channel));
            d_var[c] = bessel * (mixed.of_var[0] * d_var[c] + A(var_by_sample + var_by_channel));
        }
    }
}

template <class A> void switch_all(const Switch& k) {
    const int threads = rows_workers(k.samples * k.channels, k.threads);
    const int64_t blocks = ceil_div(k.channels, kChannels), length = 2 * k.samples + 6;
    if (!k.d_mean) {
        if (k.batches) ++*k.batches;
        switch_samples<A>(k);
        return for_each(blocks, threads, [&](int64_t block) { switch_block<A>(k, block * kChannels); });
    }
    for_each(blocks, threads,
             [&](int64_t block) { switch_gradients<A>(k, block * kChannels, k.scratch + block * length); });
    for (int64_t block = 1; block < blocks; ++block)  // in this order on any number of threads
        for (int64_t i = 0; i < length; ++i) k.scratch[i] += k.scratch[block * length + i];
    for (int i = 0; i < 3; ++i) {
        rows_of<A>(k.d_mean_shares)[i] = A(k.scratch[2 * k.samples + i]);
        rows_of<A>(k.d_var_shares)[i] = A(k.scratch[2 * k.samples + 3 + i]);
    }
    for_each(blocks, threads, [&](int64_t block) { switch_moments<A>(k, block * kChannels, k.scratch); });
}

}  // namespace
