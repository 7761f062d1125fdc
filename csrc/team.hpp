// The same body on several threads. OpenMP's pool, because it is torch's: one pool, never two fighting for the cores.
#pragma once

#include <cstdint>
#if defined(_OPENMP)
#include <omp.h>
#elif defined(HOMEOSTAT_STD_THREADS) // for the thread sanitizer, which does not see into OpenMP's runtime
#include <thread>
#include <vector>
#endif

namespace {

struct Part {
    std::int64_t begin, end;
};
inline Part part(std::int64_t n, int thread, int threads) {
    return {n * thread / threads, n * (thread + 1) / threads};
}

// As many as the runtime would take by itself.
inline int usual_threads() {
#if defined(_OPENMP)
    return omp_get_max_threads();
#else
    return 1;
#endif
}

// body(thread, threads)
template <class F> void team(int threads, const F &body) {
    if (threads <= 1) return body(0, 1);
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
    body(omp_get_thread_num(), omp_get_num_threads());
#elif defined(HOMEOSTAT_STD_THREADS)
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(body, t, threads);
    body(0, threads);
    for (auto &other : others) other.join();
#else
    body(0, 1);
#endif
}

} // namespace
