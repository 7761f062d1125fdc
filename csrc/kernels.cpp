// The whole act on one layout, forward and backward; compiled once per instruction set (ISA names it).
//
// Three ways lead through memory (way.hpp).
//
// Each group is measured and applied by one thread while it lies in the cache. Where there are fewer groups than
// threads, or labels scatter them, pieces are measured by all, merged in a fixed order in double, and applied by all:
// the result does not depend on timing.

#include "by_columns.hpp"
#include "by_rows.hpp"
#include "by_runs.hpp"
#include "norm.hpp"
#include "way.hpp"

namespace {

// Rows that do not start on a vector's boundary cannot be streamed; a run finds the boundary by itself.
template <class T> bool may_stream(const Call &call, const void *out) {
    const Layout &l = call.at;
    if (!call.stream || reinterpret_cast<std::uintptr_t>(out) % BYTES) return false;
    if (way(call) == Way::columns) return fold(call) * l.C * l.P * l.S * i64(sizeof(T)) % BYTES == 0;
    if (way(call) == Way::rows) return l.S * i64(sizeof(T)) % BYTES == 0;
    return l.S * i64(sizeof(T)) >= 8 * BYTES;
}

template <bool STREAM, class T> void forward(const Call &call, const Forward &f) {
    switch (way(call)) {
    case Way::rows: return rows_forward<STREAM, T>(call, f);
    case Way::runs: return runs_forward<STREAM, T>(call, f);
    case Way::columns: return columns_forward<STREAM, T>(call, f);
    }
}

template <bool STREAM, class T> void backward(const Call &call, const Backward &f) {
    switch (way(call)) {
    case Way::rows: return rows_backward<STREAM, T>(call, f);
    case Way::runs: return runs_backward<STREAM, T>(call, f);
    case Way::columns: return columns_backward<STREAM, T>(call, f);
    }
}

template <class T> void forward_any(const Call &call, const Forward &f) {
    may_stream<T>(call, f.y) ? forward<true, T>(call, f) : forward<false, T>(call, f);
}
template <class T> void backward_any(const Call &call, const Backward &f) {
    may_stream<T>(call, f.dx) ? backward<true, T>(call, f) : backward<false, T>(call, f);
}

} // namespace

#define QUOTE2(a) #a
#define QUOTE(a) QUOTE2(a)
#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
extern const Kernels JOIN(kernels_, ISA);
extern const Kernels JOIN(kernels_, ISA) = {QUOTE(ISA),
                                            {forward_any<float>, forward_any<bf16>, forward_any<f16>},
                                            {backward_any<float>, backward_any<bf16>, backward_any<f16>}};
