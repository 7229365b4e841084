// The four passes over x, for contiguous planes (N * C rows of S elements) and for channels-last samples (N, S, C).
//
// Sums run in vectors of 64 bytes, are added up in double after at most kBlock elements, and are split into pieces
// that depend on the shape only: the same input gives the same bits on any number of threads.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

namespace {

using std::int64_t;
using std::size_t;

typedef float F32 __attribute__((vector_size(64)));
typedef double F64 __attribute__((vector_size(64)));
typedef std::int32_t I32 __attribute__((vector_size(64)));
typedef std::int64_t I64 __attribute__((vector_size(64)));
typedef std::uint32_t U32 __attribute__((vector_size(64)));
typedef std::uint16_t U16 __attribute__((vector_size(32)));

struct BFloat16 { std::uint16_t bits; };
struct Float16 { std::uint16_t bits; };

// What x is computed in: coefficients are of this type.
template <class T> struct Wide { using A = float; using V = F32; using I = I32; using E = std::int32_t; };
template <> struct Wide<double> { using A = double; using V = F64; using I = I64; using E = std::int64_t; };

template <class T> constexpr int kLanes = sizeof(typename Wide<T>::V) / sizeof(typename Wide<T>::A);

constexpr int kTile = 32;                    // vectors of channels whose sums stay in the first-level cache
constexpr int kUnroll = 4;                   // independent accumulators, or rows per visit of an accumulator
constexpr int64_t kBlock = 4096;             // elements added in single precision before the double takes over
constexpr int64_t kPiece = int64_t{1} << 15; // elements worth a task of their own
constexpr int64_t kTasks = 64;               // tasks wanted before planes are no longer split
constexpr double kFar = 64;                  // a shift this many variances off (squared) costs digits: once more

inline F32 load(const float* p) { F32 v; std::memcpy(&v, p, sizeof v); return v; }
inline F64 load(const double* p) { F64 v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, F32 v) { std::memcpy(p, &v, sizeof v); }
inline void store(double* p, F64 v) { std::memcpy(p, &v, sizeof v); }

template <class T> inline U32 load_bits(const T* p) {
    U16 narrow;
    std::memcpy(&narrow, p, sizeof narrow);
    return __builtin_convertvector(narrow, U32);
}

template <class T> inline void store_bits(T* p, U32 bits) {
    const U16 narrow = __builtin_convertvector(bits, U16);
    std::memcpy(p, &narrow, sizeof narrow);
}

inline F32 load(const BFloat16* p) { return (F32)(load_bits(p) << 16); }

inline void store(BFloat16* p, F32 v) {
    const U32 bits = (U32)v;
    const U32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
    store_bits(p, (v == v ? rounded : bits | 0x400000u) >> 16);
}

inline F32 load(const Float16* p) {
    const U32 half = load_bits(p);
    const F32 magnitude = (F32)((half & 0x7fffu) << 13) * 0x1p112f;  // moves the exponent's bias, subnormals included
    const U32 special = (U32)(magnitude >= 65536.0f) & 0x7f800000u;  // infinities and NaN keep their exponent
    return (F32)((U32)magnitude | special | ((half & 0x8000u) << 16));
}

inline void store(Float16* p, F32 v) {
    const U32 sign = (U32)v & 0x80000000u;
    const U32 bits = (U32)v ^ sign;
    const U32 normal = (bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;  // to nearest, ties to even
    const U32 subnormal = (U32)((F32)bits + 0.5f) - 0x3f000000u;  // the addition rounds at the last subnormal place
    const U32 special = (v == v) ? U32{} + 0x7c00u : U32{} + 0x7e00u;
    const I32 signed_bits = (I32)bits;
    const U32 half = signed_bits >= 0x47800000 ? special : (signed_bits < 0x38800000 ? subnormal : normal);
    store_bits(p, half | (sign >> 16));
}

template <class T> inline auto load_some(const T* p, int64_t count) {
    T buffer[kLanes<T>] = {};
    std::memcpy(buffer, p, size_t(count) * sizeof(T));
    return load(buffer);
}

template <class T, class V> inline void store_some(T* p, V v, int64_t count) {
    T buffer[kLanes<T>];
    store(buffer, v);
    std::memcpy(p, buffer, size_t(count) * sizeof(T));
}

template <class T> inline typename Wide<T>::I lane_numbers() {
    typename Wide<T>::I lanes{};
    for (int i = 0; i < kLanes<T>; ++i) lanes[i] = i;
    return lanes;
}

inline float sum_lanes(F32 v) {
    typedef float H __attribute__((vector_size(32)));
    typedef float Q __attribute__((vector_size(16)));
    H h[2];
    std::memcpy(h, &v, sizeof v);
    h[0] += h[1];
    Q q[2];
    std::memcpy(q, h, sizeof q);
    q[0] += q[1];
    return (q[0][0] + q[0][2]) + (q[0][1] + q[0][3]);
}

inline double sum_lanes(F64 v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

template <class Body> void for_each(int64_t count, int threads, const Body& body) {
#ifdef _OPENMP
    if (threads > 1 && count > 1) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < count; ++i) body(i);
        return;
    }
#endif
    (void)threads;
    for (int64_t i = 0; i < count; ++i) body(i);
}

struct Shape {
    int64_t samples, channels, length;
    int threads;

    int workers() const { return samples * channels * length < kPiece ? 1 : threads; }
};

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

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
        const auto at = [&](int64_t i) { return load_some(row + i, 1); };
        return double(mean_of_four(at(0), at(length / 4), at(length / 2), at(length - 1 - length / 4))[0]);
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
    double* const sums = pieces > 1 ? static_cast<double*>(std::malloc(size_t(rows * pieces) * 2 * sizeof(double))) : nullptr;
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

// How channels lie in vectors. Fewer channels than lanes: `fold` spatial positions are read as one wider position.
// Otherwise the last vector may overlap the one before it, so that nothing is read behind the channels.
template <class T> struct Lanes {
    static constexpr int L = kLanes<T>;
    int64_t channels, fold, width, vectors;

    explicit Lanes(int64_t c) : channels(c), fold(c < L ? L : 1), width(c * fold), vectors(ceil_div(width, L)) {}
    int64_t offset(int64_t vector) const { return least(vector * L, width - L); }
};

template <class T> struct Tile {
    using A = typename Wide<T>::A;
    using V = typename Wide<T>::V;
    V shift[kTile];
    double first[kTile * kLanes<T>], second[kTile * kLanes<T>];
};

// The coefficients of a sample, (C), in the order of a tile's vectors.
template <class T>
void spread(const Lanes<T>& lanes, const typename Wide<T>::A* values, int64_t v0, int64_t v1, typename Wide<T>::V* out) {
    for (int64_t v = v0; v < v1; ++v) {
        if (lanes.fold == 1) {
            out[v - v0] = load(values + lanes.offset(v));
            continue;
        }
        for (int lane = 0; lane < lanes.L; ++lane) out[v - v0][lane] = values[(v * lanes.L + lane) % lanes.channels];
    }
}

// Both sums over positions [begin, end) of one channels-last sample, for the vectors [v0, v1) of its channels.
template <class T, bool kMoments>
void sum_tile(const Terms<T, kMoments>& sample, const Lanes<T>& lanes, int64_t v0, int64_t v1, int64_t begin, int64_t end,
              Tile<T>& tile) {
    using V = typename Wide<T>::V;
    constexpr int L = kLanes<T>;
    const int64_t count = v1 - v0, width = lanes.width;
    std::memset(tile.first, 0, sizeof(double) * size_t(count * L));
    std::memset(tile.second, 0, sizeof(double) * size_t(count * L));
    int64_t wide = begin * lanes.channels;  // the first element of the next, possibly folded, position
    int64_t left = (end - begin) / lanes.fold;
    const int64_t stop = end * lanes.channels;
    for (bool last = false; !last;) {
        V p[kTile] = {}, q[kTile] = {}, a[kUnroll], b[kUnroll];
        const int64_t here = least(left, kBlock / kUnroll);
        int64_t i = 0;
        for (; i + kUnroll <= here; i += kUnroll, wide += kUnroll * width)
            for (int64_t v = 0; v < count; ++v) {
                const int64_t at = wide + lanes.offset(v0 + v);
                for (int j = 0; j < kUnroll; ++j) sample.at(at + j * width, tile.shift[v], a[j], b[j]);
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

enum Element { kFloat32, kFloat64, kBFloat16, kFloat16 };

template <class Pass> void with_element(int element, const Pass& pass) {
    switch (element) {
        case kFloat32: return pass(static_cast<float*>(nullptr));
        case kFloat64: return pass(static_cast<double*>(nullptr));
        case kBFloat16: return pass(static_cast<BFloat16*>(nullptr));
        case kFloat16: return pass(static_cast<Float16*>(nullptr));
    }
}

template <bool kMoments>
void sums(int element, bool channels_last, const void* g, const void* x, const void* center, void* out0, void* out1,
          const Shape& shape) {
    with_element(element, [&](auto* tag) {
        using T = std::remove_pointer_t<decltype(tag)>;
        using A = typename Wide<T>::A;
        const auto run = channels_last ? sum_samples<T, kMoments> : sum_rows<T, kMoments>;
        run(static_cast<const T*>(g), static_cast<const T*>(x), static_cast<const A*>(center), static_cast<A*>(out0),
            static_cast<A*>(out1), shape);
    });
}

template <bool kWithG>
void map(int element, bool channels_last, const void* g, const void* x, const void* gain, const void* center,
         const void* slope, const void* offset, void* y, const Shape& shape) {
    with_element(element, [&](auto* tag) {
        using T = std::remove_pointer_t<decltype(tag)>;
        using A = typename Wide<T>::A;
        const auto run = channels_last ? map_samples<T, kWithG> : map_rows<T, kWithG>;
        run({static_cast<const T*>(g), static_cast<const T*>(x), static_cast<T*>(y)},
            {static_cast<const A*>(gain), static_cast<const A*>(center), static_cast<const A*>(slope),
             static_cast<const A*>(offset)},
            shape);
    });
}

}  // namespace

#define SHIFTNORM_API extern "C" __attribute__((visibility("default")))

SHIFTNORM_API int shiftnorm_is_parallel() {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

SHIFTNORM_API void shiftnorm_moments(int element, int channels_last, int threads, int64_t n, int64_t c, int64_t s,
                                     const void* x, void* mean, void* var) {
    sums<true>(element, channels_last, nullptr, x, nullptr, mean, var, {n, c, s, threads});
}

SHIFTNORM_API void shiftnorm_reduce(int element, int channels_last, int threads, int64_t n, int64_t c, int64_t s,
                                    const void* g, const void* x, const void* center, void* total, void* product) {
    sums<false>(element, channels_last, g, x, center, total, product, {n, c, s, threads});
}

SHIFTNORM_API void shiftnorm_apply(int element, int channels_last, int threads, int64_t n, int64_t c, int64_t s,
                                   const void* x, const void* gain, const void* center, const void* mean, void* y) {
    map<false>(element, channels_last, nullptr, x, nullptr, center, gain, mean, y, {n, c, s, threads});
}

SHIFTNORM_API void shiftnorm_combine(int element, int channels_last, int threads, int64_t n, int64_t c, int64_t s,
                                     const void* g, const void* x, const void* gain, const void* center,
                                     const void* slope, const void* offset, void* dx) {
    map<true>(element, channels_last, g, x, gain, center, slope, offset, dx, {n, c, s, threads});
}
