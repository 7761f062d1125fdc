// What Python calls: the kernels of this machine's instruction set, and the guarded update of running statistics.
//
// The update:
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

#include "norm.hpp"

#include <cstdlib>

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

// ---- the kernels, one set per instruction set, the best this machine has

#if defined(__x86_64__)
extern const Kernels kernels_v2, kernels_v3, kernels_v4;
static bool has_v4() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512cd");
}
static bool has_v3() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
static const Kernels &choose() {
    const char *asked = std::getenv("HOMEOSTAT_ISA");
    const std::string name = asked ? asked : "";
    if (name == "v2") return kernels_v2;
    if (name == "v3" && has_v3()) return kernels_v3;
    if (name.empty() || name == "v4") {
        if (has_v4()) return kernels_v4;
        if (name.empty()) return has_v3() ? kernels_v3 : kernels_v2;
    }
    throw std::runtime_error("HOMEOSTAT_ISA=" + name + " is not v2, v3 or v4, or this machine does not have it");
}
#else
extern const Kernels kernels_base;
static const Kernels &choose() { return kernels_base; }
#endif

static const Kernels &kernels() {
    static const Kernels &chosen = choose();
    return chosen;
}

enum Flags { HALF = 1, GAIN = 2, CENTER = 4, FIXED = 8, STREAM = 16 };

static Call call_of(const Layout &at, double eps, int flags, int threads) {
    return {at, eps, (flags & GAIN) != 0, (flags & CENTER) != 0, (flags & FIXED) != 0, (flags & STREAM) != 0, threads};
}

template <class T> static T *maybe(Address address) { return reinterpret_cast<T *>(address); }

static void forward(const Layout &at, Address x, Address weight, Address bias, Address y, Address stats, Address mean,
                    Address m2, double eps, int flags, int threads) {
    const auto f = flags & HALF ? kernels().forward16 : kernels().forward32;
    f(call_of(at, eps, flags, threads), maybe<const void>(x), maybe<const float>(weight), maybe<const float>(bias),
      maybe<void>(y), maybe<Stat>(stats), maybe<double>(mean), maybe<double>(m2));
}

static void backward(const Layout &at, Address x, Address dy, Address weight, Address stats, Address dx,
                     Address dweight, Address dbias, int flags, int threads) {
    const auto f = flags & HALF ? kernels().backward16 : kernels().backward32;
    f(call_of(at, 0.0, flags, threads), maybe<const void>(x), maybe<const void>(dy), maybe<const float>(weight),
      maybe<const Stat>(stats), maybe<void>(dx), maybe<float>(dweight), maybe<float>(dbias));
}

static Layout layout(std::int64_t A, std::int64_t B, std::int64_t C, std::int64_t P, std::int64_t S, std::int64_t ga,
                     std::int64_t gc, std::int64_t gp, std::int64_t gs) {
    if (std::min({A, B, C, P, S}) < 1 || std::min({ga, gc, gp, gs}) < 0 || gs > 1)
        throw std::invalid_argument("extents are at least 1, gain strides at least 0, and that of S at most 1");
    return {A, B, C, P, S, ga, gc, gp, gs};
}

static nb::dict build_info() {
    nb::dict info;
    info["instructions"] = kernels().name;
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
    nb::set_leak_warnings(false); // layouts live in caches to the end of the process
    using Free = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<Layout>(m, "Layout", "Extents in memory order, and the strides of the gain; see norm.hpp.")
        .def_ro("A", &Layout::A)
        .def_ro("B", &Layout::B)
        .def_ro("C", &Layout::C)
        .def_ro("P", &Layout::P)
        .def_ro("S", &Layout::S)
        .def_prop_ro("groups", &Layout::groups)
        .def_prop_ro("gains", &Layout::gains);
    m.def("layout", &layout);
    m.def("forward", &forward, Free(), "y and the statistics of x; arguments are addresses, 0 for what is absent.");
    m.def("backward", &backward, Free(), "dx and the gradient of the gain.");
    m.def("update_running", &update_running, "mean"_a, "var"_a, "tracked"_a, "skipped"_a, "m_mean"_a, "m_m2"_a,
          "count"_a, "groups"_a, "momentum"_a, "float64_buffers"_a,
          "Move running buffers towards a batch's moments; False, and one more skip, if any moment is not finite.\n\n"
          "Arguments before `count` are addresses. mean, var: float32 (float64 if float64_buffers) [groups];\n"
          "tracked, skipped: int64; m_mean, m_m2: float64 [groups]. momentum=NaN: cumulative average.");
    m.def("build_info", &build_info, "Which compiler built this, and for which version of homeostat.");
}
