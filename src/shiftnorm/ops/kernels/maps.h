// The passes that write: slope * (x - center) + offset, plus gain * g where there is a g.
#pragma once
#include "vectors.h"

namespace {

template <class A> struct Coefficients { const A *gain, *center, *slope, *offset; };

// slope * (x - center) + offset, plus gain * g where there is a g.
template <class T, bool kWithG> struct Formula {
    using V = typename Wide<T>::V;
    const T* g;
    const T* x;
    T* y;

    static V value(V g, V x, V gain, V center, V slope, V offset) {
        const V line = slope * (x - center) + offset;
        return kWithG ? gain * g + line : line;
    }
    void at(int64_t i, V gain, V center, V slope, V offset) const {
        const V wide = load(x + i);
        store(y + i, value(kWithG ? load(g + i) : wide, wide, gain, center, slope, offset));
    }
    void some(int64_t i, int64_t count, V gain, V center, V slope, V offset) const {
        const V wide = load_some(x + i, count);
        const V other = kWithG ? load_some(g + i, count) : wide;
        store_some(y + i, value(other, wide, gain, center, slope, offset), count);
    }
};

template <class T, bool kWithG>
void map_rows(const Formula<T, kWithG>& formula, const Coefficients<typename Wide<T>::A>& k, const Shape& shape) {
    using V = typename Wide<T>::V;
    constexpr int L = kLanes<T>;
    const int64_t rows = shape.samples * shape.channels, length = shape.length, pieces = ceil_div(length, kPiece);
    for_each(rows * pieces, shape.workers(), [&](int64_t task) {
        const int64_t r = task / pieces, piece = task % pieces;
        const int64_t begin = r * length + length * piece / pieces, end = r * length + length * (piece + 1) / pieces;
        const V gain = V{} + (kWithG ? k.gain[r] : 0), center = V{} + k.center[r];
        const V slope = V{} + k.slope[r], offset = V{} + k.offset[r];
        if (end - begin < L) return formula.some(begin, end - begin, gain, center, slope, offset);
        int64_t i = begin;
        for (; i + L <= end; i += L) formula.at(i, gain, center, slope, offset);
        if (i < end) formula.at(end - L, gain, center, slope, offset);
    });
}

template <class T, bool kWithG>
void map_samples(const Formula<T, kWithG>& formula, const Coefficients<typename Wide<T>::A>& k, const Shape& shape) {
    using V = typename Wide<T>::V;
    constexpr int L = kLanes<T>;
    const Lanes<T> lanes(shape.channels);
    const int64_t channels = shape.channels, length = shape.length;
    const int64_t pieces = least(length, ceil_div(length * channels, kPiece));
    for_each(shape.samples * pieces, shape.workers(), [&](int64_t task) {
        const int64_t n = task / pieces, piece = task % pieces, at = n * channels;
        int64_t i = (n * length + length * piece / pieces) * channels;
        const int64_t end = (n * length + length * (piece + 1) / pieces) * channels;
        if (lanes.fold == 1) {
            for (; i < end; i += channels)
                for (int64_t v = 0; v < lanes.vectors; ++v) {
                    const int64_t c = lanes.offset(v);
                    formula.at(i + c, kWithG ? load(k.gain + at + c) : V{}, load(k.center + at + c),
                               load(k.slope + at + c), load(k.offset + at + c));
                }
            return;
        }
        V gain[L] = {}, center[L], slope[L], offset[L];
        if (kWithG) spread(lanes, k.gain + at, 0, lanes.vectors, gain);
        spread(lanes, k.center + at, 0, lanes.vectors, center);
        spread(lanes, k.slope + at, 0, lanes.vectors, slope);
        spread(lanes, k.offset + at, 0, lanes.vectors, offset);
        for (int64_t v = 0; i < end; i += L, v = v + 1 < lanes.vectors ? v + 1 : 0) {
            if (i + L <= end)
                formula.at(i, gain[v], center[v], slope[v], offset[v]);
            else
                formula.some(i, end - i, gain[v], center[v], slope[v], offset[v]);
        }
    });
}

}  // namespace
