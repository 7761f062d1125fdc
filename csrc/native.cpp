// The guarded update of running statistics, in one call.
//
//     b  <-  (1 - k) b + k x        x: this batch's mean or unbiased variance
//
// k is the momentum, or 1/t at the t-th update (NaN asks for this: it makes b the plain average of all batches).
// One non-finite moment and nothing moves but the count of skipped batches: a NaN that enters a running buffer
// never leaves it.
//
// Arrays arrive as addresses, not as tensors, so that this file needs no torch, and one build serves every version.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

namespace nb = nanobind;
using Address = std::uintptr_t;

struct Moments {
    const double *mean, *m2; // [groups]
    double count;            // elements behind each mean
    std::int64_t groups;
};

template <typename T> static T *at(Address address, const char *name) {
    if (address == 0) throw std::invalid_argument(std::string(name) + " is a null pointer");
    return reinterpret_cast<T *>(address);
}

// Will every new value be finite in a buffer of T? (A finite double may be an infinite float.)
template <typename T> static bool fits(const Moments &m, double freedom) {
    const double most = double(std::numeric_limits<T>::max());
    for (std::int64_t g = 0; g < m.groups; ++g)
        if (!(std::fabs(m.mean[g]) <= most && std::fabs(m.m2[g] / freedom) <= most)) return false;
    return true;
}

template <typename T> static bool blend(T *mean, T *var, std::int64_t *steps, const Moments &m, double momentum) {
    const double freedom = std::max(m.count - 1.0, 1.0);
    if (!fits<T>(m, freedom)) return false;
    ++*steps;
    const double k = std::isnan(momentum) ? 1.0 / double(*steps) : momentum;
    for (std::int64_t g = 0; g < m.groups; ++g) {
        // In double, rounded once on store: at k = 0.001 the float32 sum loses the step's last bits every batch.
        mean[g] = static_cast<T>((1.0 - k) * double(mean[g]) + k * m.mean[g]);
        var[g] = static_cast<T>((1.0 - k) * double(var[g]) + k * (m.m2[g] / freedom));
    }
    return true;
}

static bool update_running(Address mean, Address var, Address tracked, Address skipped, Address m_mean, Address m_m2,
                           double count, std::int64_t groups, double momentum, bool float64_buffers) {
    if (groups < 0 || !(count >= 0.0))
        throw std::invalid_argument("update_running needs groups >= 0 and count >= 0; got groups=" +
                                    std::to_string(groups) + ", count=" + std::to_string(count));
    // Every address is checked before anything is written: an error leaves all state as it was.
    const Moments m{at<double>(m_mean, "m_mean"), at<double>(m_m2, "m_m2"), count, groups};
    auto *const steps = at<std::int64_t>(tracked, "tracked");
    auto *const skips = at<std::int64_t>(skipped, "skipped");
    void *const mean_buffer = at<void>(mean, "mean");
    void *const var_buffer = at<void>(var, "var");
    const bool moved = float64_buffers ? blend(static_cast<double *>(mean_buffer), static_cast<double *>(var_buffer),
                                               steps, m, momentum)
                                       : blend(static_cast<float *>(mean_buffer), static_cast<float *>(var_buffer),
                                               steps, m, momentum);
    if (!moved) ++*skips;
    return moved;
}

static nb::dict build_info() {
    nb::dict info;
#if defined(__clang__)
    info["compiler"] = "Clang " __clang_version__;
#elif defined(__GNUC__)
    info["compiler"] = "GCC " __VERSION__;
#elif defined(_MSC_VER)
    info["compiler"] = "MSVC " + std::to_string(_MSC_VER);
#else
    info["compiler"] = "unknown";
#endif
    info["version"] = HOMEOSTAT_VERSION;
    return info;
}

NB_MODULE(_native, m) {
    using namespace nb::literals;
    m.def("update_running", &update_running, "mean"_a, "var"_a, "tracked"_a, "skipped"_a, "m_mean"_a, "m_m2"_a,
          "count"_a, "groups"_a, "momentum"_a, "float64_buffers"_a,
          "Move running buffers towards a batch's moments; False, and one more skip, if any moment is not finite.\n\n"
          "Arguments before `count` are addresses. mean, var: float32 (float64 if float64_buffers) [groups];\n"
          "tracked, skipped: int64; m_mean, m_m2: float64 [groups]. momentum=NaN: cumulative average.");
    m.def("build_info", &build_info, "Which compiler built this, and for which version of homeostat.");
}
