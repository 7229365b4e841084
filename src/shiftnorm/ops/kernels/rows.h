// What the kernels between the passes share: they work on (N, C) numbers, threads taking blocks of channels.
//
// It is little work, but as dozens of ATen operations each of them finds a cache that the pass before has filled with x,
// and takes longer to start than to run.
#pragma once
#include <cmath>
#include "vectors.h"

// Rows that a loop writes and reads are others, or the same place of the same row; a compiler cannot know.
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace {

constexpr int64_t kChannels = 64;  // of a block: rows of them stay in the first-level cache
constexpr int64_t kShared = 4096;  // numbers worth several threads: each takes some forty operations

inline int rows_workers(int64_t numbers, int64_t threads) { return numbers < kShared ? 1 : int(threads); }

// The sum of term(0), ..., in lanes of their own: in order it is no vector's work.
template <class Term> double total(int64_t length, const Term& term) {
    constexpr int L = 8;
    double lanes[L] = {}, sum = 0;
    int64_t i = 0;
    for (; i + L <= length; i += L)
        for (int lane = 0; lane < L; ++lane) lanes[lane] += term(i + lane);
    for (; i < length; ++i) sum += term(i);
    for (int lane = 0; lane < L; ++lane) sum += lanes[lane];
    return sum;
}

template <class A> A* rows_of(const void* rows) { return static_cast<A*>(const_cast<void*>(rows)); }

}  // namespace
