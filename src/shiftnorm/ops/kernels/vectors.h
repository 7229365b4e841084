// Element types as vectors of 64 bytes, work split over threads, and the shape of what is worked on.
#pragma once
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
constexpr int64_t kBlock = 4096;             // elements of a row added in its own precision, then in double
constexpr int64_t kRows = 128;               // the same for the positions of a channels-last sample
constexpr int64_t kAhead = 2048;             // elements between a prefetch and its use, at least
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

inline float load_one(const float* p) { return *p; }
inline double load_one(const double* p) { return *p; }
template <class T> inline float load_one(const T* p) { return load_some(p, 1)[0]; }

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
void spread(const Lanes<T>& lanes, const typename Wide<T>::A* values, int64_t v0, int64_t v1,
            typename Wide<T>::V* out) {
    for (int64_t v = v0; v < v1; ++v) {
        if (lanes.fold == 1) {
            out[v - v0] = load(values + lanes.offset(v));
            continue;
        }
        for (int lane = 0; lane < lanes.L; ++lane) out[v - v0][lane] = values[(v * lanes.L + lane) % lanes.channels];
    }
}

}  // namespace
