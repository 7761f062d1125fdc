// What Python calls: the kernels of this machine's instruction set, and the guarded update of running statistics.
//
// Arrays arrive as addresses, not as tensors, so that this file needs no torch, and one build serves every version.

#include "norm.hpp"
#include "running.hpp"
#include "team.hpp"
#include "way.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

namespace nb = nanobind;
using Address = std::uintptr_t;

template <typename T> static T *at(Address address, const char *name) {
    if (address == 0) throw std::invalid_argument(std::string(name) + " is a null pointer");
    return reinterpret_cast<T *>(address);
}

static bool update_running(Address mean, Address var, Address tracked, Address skipped, Address m_mean, Address m_m2,
                           Address m_count, double count, std::int64_t groups, double momentum, int dtype,
                           std::int64_t rows) {
    if (groups < 0 || rows < 1 || groups % rows || !(count >= 0.0) || dtype < 0 || dtype > 3)
        throw std::invalid_argument("update_running needs groups >= 0 in equal rows, count >= 0 and dtype 0 to 3; got groups=" +
                                    std::to_string(groups) + ", rows=" + std::to_string(rows) + ", count=" + std::to_string(count) +
                                    ", dtype=" + std::to_string(dtype));
    // Every address is checked before anything is written: an error leaves all state as it was.
    const Seen seen{at<const double>(m_mean, "m_mean"), at<const double>(m_m2, "m_m2"),
                    reinterpret_cast<const double *>(m_count), count, groups, rows};
    auto *const steps = at<std::int64_t>(tracked, "tracked");
    auto *const skips = at<std::int64_t>(skipped, "skipped");
    void *const means = at<void>(mean, "mean"), *const vars = at<void>(var, "var");
    const auto go = [&](auto kind) {
        using T = decltype(kind);
        return blend(static_cast<T *>(means), static_cast<T *>(vars), steps, seen, momentum);
    };
    const bool moved = dtype == 0 ? go(float{}) : dtype == 1 ? go(Brain{}) : dtype == 2 ? go(Half{}) : go(double{});
    if (!moved) ++*skips;
    return moved;
}

// ---- the kernels, one set per instruction set, the best this machine has

#if defined(__x86_64__)
extern const Kernels kernels_v2, kernels_v3, kernels_v4, kernels_v4b; // v4b: v4 with bfloat16's own instruction
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
    if (name == "v4" && has_v4()) return kernels_v4;
    if ((name.empty() || name == "v4b") && has_v4() && __builtin_cpu_supports("avx512bf16")) return kernels_v4b;
    if (name.empty()) return has_v4() ? kernels_v4 : has_v3() ? kernels_v3 : kernels_v2;
    throw std::runtime_error("HOMEOSTAT_ISA=" + name + " is not v2, v3, v4 or v4b, or this machine does not have it");
}
#else
extern const Kernels kernels_base;
static const Kernels &choose() { return kernels_base; }
#endif

static const Kernels &kernels() {
    static const Kernels &chosen = choose();
    return chosen;
}

template <class T> static T *maybe(Address address) { return reinterpret_cast<T *>(address); }

// One layout, one kind of element, one way to trust: everything about a call except its arrays.
struct Task {
    Call call;
    int dtype, gain_dtype; // 0 float, 1 bfloat16, 2 float16
};

enum Flags { GAIN = 1, CENTER = 2, STREAM = 4, FIXED = 8, PULLED = 16, WIDE = 32 };

using Ints = std::vector<std::int64_t>;

static Layout layout_of(const Ints &sizes, const Ints &gain, const Ints &where, std::int64_t labels) {
    if (sizes.size() != 6 || gain.size() != 5 || where.size() != 6 || *std::min_element(sizes.begin(), sizes.end()) < 1 ||
        *std::min_element(gain.begin(), gain.end()) < 0 || *std::min_element(where.begin(), where.end()) < 0 ||
        gain[4] > 1 || labels < 0 || (labels > 0 && sizes[0] != 1))
        throw std::invalid_argument("a layout is 6 extents of at least 1 (A = 1 where labelled), 5 gain strides and 6 "
                                    "weight strides of at least 0, that of S at most 1");
    return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], gain[0],  gain[1],  gain[2],
            gain[3],  gain[4],  where[0], where[1], where[2], where[3], where[4], where[5], labels};
}

static std::optional<Task> task(const Ints &sizes, const Ints &gain, const Ints &where, std::int64_t labels, double eps, int dtype,
                 int gain_dtype, int flags, double r_max, double d_max) {
    if (dtype < 0 || dtype > 2 || gain_dtype < 0 || gain_dtype > 2) throw std::invalid_argument("dtype is 0 (float), 1 (bfloat16) or 2 (float16)");
    Call call{};
    call.at = layout_of(sizes, gain, where, labels);
    call.eps = eps;
    call.gain = flags & GAIN, call.center = flags & CENTER, call.stream = flags & STREAM, call.wide = flags & WIDE;
    call.trust = flags & FIXED ? Trust::fixed : flags & PULLED ? Trust::pulled : Trust::through;
    call.r_max = r_max, call.d_max = d_max;
    if (!walkable(call)) return std::nullopt;
    return Task{call, dtype, gain_dtype};
}

// A gain, or its gradient, of any of the three types, as the floats the kernels know.
class Gain {
  public:
    Gain(const Task &task, Address at, bool read) : address(at), dtype(task.gain_dtype), floats(maybe<float>(at)) {
        if (!at || !dtype) return;
        own.resize(std::size_t(task.call.at.gains()));
        floats = own.data();
        for (std::size_t i = 0; read && i < own.size(); ++i)
            own[i] = float(dtype == 1 ? double(maybe<const Brain>(at)[i]) : double(maybe<const Half>(at)[i]));
    }
    float *get() const { return floats; }
    void write() const {
        for (std::size_t i = 0; i < own.size(); ++i)
            if (dtype == 1)
                maybe<Brain>(address)[i] = Brain::rounded(own[i]);
            else
                maybe<Half>(address)[i] = Half::rounded(own[i]);
    }

  private:
    Address address;
    int dtype;
    float *floats;
    std::vector<float> own;
};

static Call with(const Task &task, Address where, Address label, Address mean, Address var, int threads) {
    Call call = task.call;
    call.where = maybe<const float>(where), call.label = maybe<const std::int64_t>(label);
    call.mean = maybe<const void>(mean), call.var = maybe<const void>(var);
    call.threads = threads > 0 ? threads : usual_threads();
    const Layout &l = call.at;
    if ((l.labels > 0) != (label != 0)) throw std::invalid_argument("labels are given exactly where the layout has them");
    for (std::int64_t b = 0; call.label && b < l.B; ++b)
        if (call.label[b] < 0 || call.label[b] >= l.labels) // before anything is written
            throw std::out_of_range("label " + std::to_string(call.label[b]) + " is not one of 0 to " +
                                    std::to_string(l.labels - 1));
    return call;
}

static void forward(const Task &task, Address x, Address weight, Address bias, Address y, Address stats, Address sums,
                    Address mean, Address var, int threads, Address where, Address label, Address other, Address sum) {
    const Call call = with(task, where, label, mean, var, threads);
    const std::int64_t groups = call.at.groups();
    std::vector<Stat> own(stats ? 0 : std::size_t(groups), Stat{});
    double *const told = maybe<double>(sums);
    const Gain w(task, weight, true), b(task, bias, true);
    kernels().forward[task.dtype](
        call, {maybe<const void>(x), maybe<const void>(other), w.get(), b.get(),
               maybe<void>(sum), maybe<void>(y), stats ? maybe<Stat>(stats) : own.data(), told,
               told ? told + groups : nullptr, told ? told + 2 * groups : nullptr});
}

static void backward(const Task &task, Address x, Address dy, Address weight, Address stats, Address dx,
                     Address dweight, Address dbias, int threads, Address where, Address label, Address dsum) {
    if (!dx && way(task.call) == Way::rows) throw std::invalid_argument("rows need a dx");
    const Gain w(task, weight, true), dw(task, dweight, false), db(task, dbias, false);
    kernels().backward[task.dtype](with(task, where, label, 0, 0, threads),
                                   {maybe<const void>(x), maybe<const void>(dy), maybe<const void>(dsum), w.get(),
                                    maybe<const Stat>(stats), maybe<void>(dx), dw.get(), db.get()});
    dw.write(), db.write();
}

// The fastest copy this machine makes: what a kernel that reads once and writes once can at best reach.
static void copy_limit(Address to, Address from, std::int64_t bytes, int threads) {
    team(std::max(threads, 1), [&](int t, int of) {
        const Part mine = part(bytes / 64, t, of);
        char *const out = maybe<char>(to) + mine.begin * 64;
        const char *const in = maybe<const char>(from) + mine.begin * 64;
#if defined(__x86_64__)
        for (std::int64_t i = 0; i < (mine.end - mine.begin) * 64; i += 16)
            _mm_stream_si128((__m128i *)(out + i), _mm_loadu_si128((const __m128i *)(in + i)));
        _mm_sfence();
#else
        std::copy(in, in + (mine.end - mine.begin) * 64, out);
#endif
    });
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
    nb::set_leak_warnings(false); // tasks live in caches to the end of the process
    using Free = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<Task>(m, "Task", "Everything about a call except its arrays, which are addresses; 0 for what is absent.")
        .def_prop_ro("adds", [](const Task &t) { return way(t.call) == Way::rows; }, "May `other` be added on the way?")
        .def_prop_ro("groups", [](const Task &t) { return t.call.at.groups(); })
        .def("forward", &forward, Free(),
             "y and the statistics of x: (x, weight, bias, y, stats, sums, mean, var, threads, where, label, other, sum)")
        .def("backward", &backward, Free(),
             "dx and the gradient of the gain: (x, dy, weight, stats, dx, dweight, dbias, threads, where, label, dsum)");
    m.def("task", &task, "sizes"_a, "gain"_a, "where"_a, "labels"_a, "eps"_a, "dtype"_a, "gain_dtype"_a, "flags"_a, "r_max"_a, "d_max"_a);
    m.def("update_running", &update_running, "mean"_a, "var"_a, "tracked"_a, "skipped"_a, "m_mean"_a, "m_m2"_a,
          "m_count"_a, "count"_a, "groups"_a, "momentum"_a, "dtype"_a, "rows"_a = 1,
          "Move running buffers towards a batch's moments; False, and one more skip, if any moment is not finite.\n\n"
          "Arguments before `count` are addresses. mean, var [groups], dtype 0 float, 1 bfloat16, 2 float16, 3 double;\n"
          "tracked [rows], skipped: int64; m_mean, m_m2: float64 [groups]. momentum=NaN: cumulative average.");
    m.def("copy_limit", &copy_limit, Free(), "Copy `bytes` from one address to another, both multiples of 64, past the cache.");
    m.def("build_info", &build_info, "Which compiler built this, and for which version of homeostat.");
}
