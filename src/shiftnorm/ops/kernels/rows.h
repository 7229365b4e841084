// What the kernels between the passes share: they work on (N, C) numbers, threads taking blocks of channels.
//
// It is little work, but as dozens of ATen operations each of them finds a cache that the pass before has filled with x,
// and takes longer to start than to run.
#pragma once
#include <cmath>
#include "vectors.h"

namespace {

constexpr int64_t kChannels = 64;  // of a block: rows of them stay in the first-level cache
constexpr int64_t kShared = 4096;  // numbers worth several threads: each takes some forty operations

inline int rows_workers(int64_t numbers, int64_t threads) { return numbers < kShared ? 1 : int(threads); }

template <class A> A* rows_of(const void* rows) { return static_cast<A*>(const_cast<void*>(rows)); }

}  // namespace
