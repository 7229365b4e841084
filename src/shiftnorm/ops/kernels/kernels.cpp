// The four passes over x, for contiguous planes (N * C rows of S elements) and for channels-last samples (N, S, C),
// and what some norms compute between them; behind a plain C interface.
#include "attend.h"
#include "maps.h"
#include "retarget.h"
#include "sums.h"
#include "switch.h"

namespace {

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

SHIFTNORM_API int shiftnorm_retarget(const void* arguments) {
    return retarget(*static_cast<const Retarget*>(arguments));
}

SHIFTNORM_API int shiftnorm_attend(const void* arguments) {
    const Attend& k = *static_cast<const Attend*>(arguments);
    k.element ? attend_all<double>(k) : attend_all<float>(k);
    return 1;
}

SHIFTNORM_API int shiftnorm_switch(const void* arguments) {
    const Switch& k = *static_cast<const Switch*>(arguments);
    k.element ? switch_all<double>(k) : switch_all<float>(k);
    return 1;
}
