// The passes that read: mean and variance, or the sums of g and g * (x - center).
//
// Sums run in vectors of 64 bytes, go over to double every few elements per lane, and are split into pieces that
// depend on the shape only: the same input gives the same bits on any number of threads.
#pragma once
#include "vectors.h"

namespace {

// The two terms of a sum: (d, d^2) with d = x - shift, or (g, g * (x - shift)).
template <class T, bool kMoments> struct Terms {
    using V = typename Wide<T>::V;
    const T* g;
    const T* x;

    static void make(V g, V x, V shift, V& first, V& second) {
        const V d = x - shift;
        first = kMoments ? d : g;
        second = kMoments ? d * d : g * d;
    }
    void at(int64_t i, V shift, V& first, V& second) const {
        const V wide = load(x + i);
        make(kMoments ? wide : load(g + i), wide, shift, first, second);
    }
    // Hardware loses the stream when several positions are read at once. An address behind x is harmless.
    void prefetch(int64_t i) const {
        __builtin_prefetch(x + i);
        if (!kMoments) __builtin_prefetch(g + i);
    }
    // The elements of [end - count, end), zero in the other lanes; start is the first element that may be read.
    void tail(int64_t start, int64_t end, int64_t count, V shift, V& first, V& second) const {
        const int64_t missing = kLanes<T> - count;
        if (end - start >= kLanes<T>) {
            at(end - kLanes<T>, shift, first, second);
            const auto ours = lane_numbers<T>() >= typename Wide<T>::E(missing);
            first = ours ? first : V{};
            second = ours ? second : V{};
            return;
        }
        some(end - count, count, shift, first, second);
    }
    void some(int64_t i, int64_t count, V shift, V& first, V& second) const {
        const V wide = load_some(x + i, count);
        make(kMoments ? wide : load_some(g + i, count), wide, shift, first, second);
        for (int lane = int(count); lane < kLanes<T>; ++lane) first[lane] = second[lane] = 0;
    }
};

// Both sums over elements [begin, end) of one row.
template <class T, bool kMoments>
void sum_row(const Terms<T, kMoments>& row, int64_t begin, int64_t end, double shift, double* first, double* second) {
    using V = typename Wide<T>::V;
    constexpr int L = kLanes<T>;
    const V k = V{} + typename Wide<T>::A(shift);
    const int64_t start = begin;
    *first = *second = 0;
    while (begin < end) {
        const int64_t stop = least(begin + kBlock, end);
        V p[kUnroll] = {}, q[kUnroll] = {}, a, b;
        int64_t i = begin;
        for (; i + kUnroll * L <= stop; i += kUnroll * L)
            for (int j = 0; j < kUnroll; ++j) {
                row.at(i + j * L, k, a, b);
                p[j] += a;
                q[j] += b;
            }
        for (; i + L <= stop; i += L) {
            row.at(i, k, a, b);
            p[0] += a;
            q[0] += b;
        }
        if (i < stop) {
            row.tail(start, stop, stop - i, k, a, b);
            p[1] += a;
            q[1] += b;
        }
        *first += double(sum_lanes((p[0] + p[1]) + (p[2] + p[3])));
        *second += double(sum_lanes((q[0] + q[1]) + (q[2] + q[3])));
        begin = stop;
    }
}

// Mean and variance from sums of (x - shift) and its square; whether the shift was too far off to trust them.
template <class A> inline bool finish(double shift, double sum, double square, double length, A* mean, A* var) {
    const double rest = sum / length, spread = square / length - rest * rest;
    *mean = A(shift + rest);
    *var = A(spread < 0 ? 0 : spread);
    return rest * rest > kFar * spread;
}

// Four elements far apart: their mean is a good shift, and exact where the plane is constant.
template <class V> inline V mean_of_four(V a, V b, V c, V d) {
    const V k = ((a + b) + (c + d)) * 0.25f;
    return (k - k == V{}) ? k : V{};
}

inline int64_t pieces_of(int64_t groups, int64_t elements) {
    const int64_t wanted = ceil_div(kTasks, groups), worth = elements / kPiece;
    return worth < wanted ? (worth < 1 ? 1 : worth) : wanted;
}

// Sums of contiguous rows: out holds mean and variance, or the sum and the product sum.
template <class T, bool kMoments>
void sum_rows(const T* g, const T* x, const typename Wide<T>::A* center, typename Wide<T>::A* out0,
              typename Wide<T>::A* out1, const Shape& shape) {
    using A = typename Wide<T>::A;
    const int64_t rows = shape.samples * shape.channels, length = shape.length;
    const auto shift_of = [&](int64_t r) -> double {
        if (!kMoments) return double(center[r]);
        const T* row = x + r * length;
        const auto at = [&](int64_t i) {
            __builtin_prefetch(row + length + i);  // the next row will ask for it out of order
            return load_one(row + i);
        };
        const A k = ((at(0) + at(length / 4)) + (at(length / 2) + at(length - 1 - length / 4))) / 4;
        return k - k == 0 ? double(k) : 0;
    };
    const auto close = [&](int64_t r, double shift, double first, double second) {
        if (!kMoments) {
            out0[r] = A(first);
            out1[r] = A(second);
        } else if (finish(shift, first, second, double(length), out0 + r, out1 + r)) {
            const Terms<T, kMoments> row{nullptr, x + r * length};
            const double again = double(out0[r]);
            sum_row(row, 0, length, again, &first, &second);
            finish(again, first, second, double(length), out0 + r, out1 + r);
        }
    };
    const auto sum_piece = [&](int64_t r, int64_t begin, int64_t end, double shift, double* sums) {
        const Terms<T, kMoments> row{kMoments ? nullptr : g + r * length, x + r * length};
        sum_row(row, begin, end, shift, sums, sums + 1);
    };
    const int64_t pieces = pieces_of(rows, length);
    double* const sums =
        pieces > 1 ? static_cast<double*>(std::malloc(size_t(rows * pieces) * 2 * sizeof(double))) : nullptr;
    if (!sums) {
        for_each(rows, shape.workers(), [&](int64_t r) {
            double both[2];
            const double shift = shift_of(r);
            sum_piece(r, 0, length, shift, both);
            close(r, shift, both[0], both[1]);
        });
        return;
    }
    for_each(rows * pieces, shape.workers(), [&](int64_t i) {
        const int64_t r = i / pieces, piece = i % pieces;
        sum_piece(r, length * piece / pieces, length * (piece + 1) / pieces, shift_of(r), sums + 2 * i);
    });
    for (int64_t r = 0; r < rows; ++r) {
        double first = 0, second = 0;
        for (int64_t i = r * pieces; i < (r + 1) * pieces; ++i) {
            first += sums[2 * i];
            second += sums[2 * i + 1];
        }
        close(r, shift_of(r), first, second);
    }
    std::free(sums);
}

// Both sums over positions [begin, end) of one channels-last sample, for the vectors [v0, v1) of its channels.
template <class T, bool kMoments>
void sum_tile(const Terms<T, kMoments>& sample, const Lanes<T>& lanes, int64_t v0, int64_t v1, int64_t begin,
              int64_t end, Tile<T>& tile) {
    using V = typename Wide<T>::V;
    constexpr int L = kLanes<T>;
    const int64_t count = v1 - v0, width = lanes.width;
    std::memset(tile.first, 0, sizeof(double) * size_t(count * L));
    std::memset(tile.second, 0, sizeof(double) * size_t(count * L));
    int64_t wide = begin * lanes.channels;  // the first element of the next, possibly folded, position
    int64_t left = (end - begin) / lanes.fold;
    const int64_t stop = end * lanes.channels;
    const int64_t ahead = ceil_div(kAhead, kUnroll * width) * kUnroll * width;  // whole visits
    for (bool last = false; !last;) {
        V p[kTile] = {}, q[kTile] = {}, a[kUnroll], b[kUnroll];
        const int64_t here = least(left, kRows);
        int64_t i = 0;
        for (; i + kUnroll <= here; i += kUnroll, wide += kUnroll * width)
            for (int64_t v = 0; v < count; ++v) {
                const int64_t at = wide + lanes.offset(v0 + v);
                for (int j = 0; j < kUnroll; ++j) {
                    sample.prefetch(at + j * width + ahead);
                    sample.at(at + j * width, tile.shift[v], a[j], b[j]);
                }
                p[v] += (a[0] + a[1]) + (a[2] + a[3]);
                q[v] += (b[0] + b[1]) + (b[2] + b[3]);
            }
        for (; i < here; ++i, wide += width)
            for (int64_t v = 0; v < count; ++v) {
                sample.at(wide + lanes.offset(v0 + v), tile.shift[v], a[0], b[0]);
                p[v] += a[0];
                q[v] += b[0];
            }
        left -= here;
        last = left == 0;
        if (last && lanes.fold > 1)  // positions that do not fill a wider one
            for (int64_t v = 0; wide < stop; ++v, wide += L) {
                sample.some(wide, least(L, stop - wide), tile.shift[v], a[0], b[0]);
                p[v] += a[0];
                q[v] += b[0];
            }
        for (int64_t v = 0; v < count; ++v)
            for (int lane = 0; lane < L; ++lane) {
                tile.first[v * L + lane] += double(p[v][lane]);
                tile.second[v * L + lane] += double(q[v][lane]);
            }
    }
}

// Sums of channels-last samples: a group is one sample and one tile of its channels.
template <class T, bool kMoments>
void sum_samples(const T* g, const T* x, const typename Wide<T>::A* center, typename Wide<T>::A* out0,
                 typename Wide<T>::A* out1, const Shape& shape) {
    using A = typename Wide<T>::A;
    constexpr int L = kLanes<T>;
    const Lanes<T> lanes(shape.channels);
    const int64_t channels = shape.channels, length = shape.length, size = channels * length;
    // Tiles of equal size: an overlapping last vector then shares channels with its own tile only.
    const int64_t tiles = ceil_div(lanes.vectors, kTile), groups = shape.samples * tiles;
    const auto first_vector = [&](int64_t tile) { return lanes.vectors * tile / tiles; };

    const auto prepare = [&](int64_t n, int64_t v0, int64_t v1, Tile<T>& tile) {
        if (!kMoments) return spread(lanes, center + n * channels, v0, v1, tile.shift);
        const int64_t positions[4] = {0, length / 4, length / 2, length - 1 - length / 4};
        if (lanes.fold > 1) {
            const auto at = [&](int j) { return load_some(x + n * size + positions[j] * channels, channels); };
            const auto k = mean_of_four(at(0), at(1), at(2), at(3));
            A values[L];
            store(values, k);
            return spread(lanes, values, v0, v1, tile.shift);
        }
        for (int64_t v = v0; v < v1; ++v) {
            const auto at = [&](int j) { return load(x + n * size + positions[j] * channels + lanes.offset(v)); };
            tile.shift[v - v0] = mean_of_four(at(0), at(1), at(2), at(3));
        }
    };
    const auto sum_piece = [&](int64_t n, int64_t v0, int64_t v1, int64_t begin, int64_t end, Tile<T>& tile) {
        const Terms<T, kMoments> sample{kMoments ? nullptr : g + n * size, x + n * size};
        sum_tile(sample, lanes, v0, v1, begin, end, tile);
        for (int64_t j = channels; lanes.fold > 1 && j < lanes.width; ++j) {
            tile.first[j % channels] += tile.first[j];
            tile.second[j % channels] += tile.second[j];
        }
    };
    const auto close = [&](int64_t n, int64_t v0, int64_t v1, Tile<T>& tile, bool check) {
        bool far = false;
        for (int64_t v = v0; v < v1; ++v)
            for (int64_t c = v * L; c < least((v + 1) * L, channels); ++c) {
                const int64_t lane = c - lanes.offset(v), at = (v - v0) * L + lane;
                A *const o0 = out0 + n * channels + c, *const o1 = out1 + n * channels + c;
                if (kMoments) {
                    const double shift = double(tile.shift[v - v0][lane]);
                    far |= finish(shift, tile.first[at], tile.second[at], double(length), o0, o1) && check;
                } else {
                    *o0 = A(tile.first[at]);
                    *o1 = A(tile.second[at]);
                }
            }
        return far;
    };
    const auto close_or_repeat = [&](int64_t n, int64_t v0, int64_t v1, Tile<T>& tile) {
        if (!close(n, v0, v1, tile, true)) return;
        spread(lanes, out0 + n * channels, v0, v1, tile.shift);
        sum_piece(n, v0, v1, 0, length, tile);
        close(n, v0, v1, tile, false);
    };

    const int64_t pieces = pieces_of(groups, size / tiles);
    void* const memory = pieces > 1 ? std::aligned_alloc(64, size_t(groups * pieces) * sizeof(Tile<T>)) : nullptr;
    if (!memory) {
        for_each(groups, shape.workers(), [&](int64_t i) {
            const int64_t n = i / tiles, v0 = first_vector(i % tiles), v1 = first_vector(i % tiles + 1);
            Tile<T> tile;
            prepare(n, v0, v1, tile);
            sum_piece(n, v0, v1, 0, length, tile);
            close_or_repeat(n, v0, v1, tile);
        });
        return;
    }
    Tile<T>* const parts = static_cast<Tile<T>*>(memory);
    for_each(groups * pieces, shape.workers(), [&](int64_t i) {
        const int64_t group = i / pieces, piece = i % pieces, n = group / tiles;
        const int64_t v0 = first_vector(group % tiles), v1 = first_vector(group % tiles + 1);
        prepare(n, v0, v1, parts[i]);
        sum_piece(n, v0, v1, length * piece / pieces, length * (piece + 1) / pieces, parts[i]);
    });
    for_each(groups, shape.workers(), [&](int64_t group) {
        const int64_t v0 = first_vector(group % tiles), v1 = first_vector(group % tiles + 1);
        Tile<T>* const tile = parts + group * pieces;
        for (int64_t piece = 1; piece < pieces; ++piece)
            for (int64_t j = 0; j < (v1 - v0) * L; ++j) {
                tile->first[j] += tile[piece].first[j];
                tile->second[j] += tile[piece].second[j];
            }
        close_or_repeat(group / tiles, v0, v1, *tile);
    });
    std::free(memory);
}

}  // namespace
