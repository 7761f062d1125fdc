// The whole act on one layout, forward and backward; compiled once per instruction set (ISA names it).
//
// Three ways through memory, chosen by where the pooled elements lie:
//
//     rows       pooled elements contiguous, gain along them          layer and RMS norm
//     runs       pooled elements in contiguous runs, one gain each    batch, group, instance norm of NCHW
//     columns    kept elements contiguous, pooled ones far apart      the same of channels_last
//
// Each group is measured and applied by one thread while it lies in the cache. Where there are fewer groups than
// threads, pieces of a group are measured by all, merged in a fixed order in double, and applied by all: the result
// does not depend on timing.

#include "by_columns.hpp"
#include "by_rows.hpp"
#include "by_runs.hpp"
#include "norm.hpp"

namespace {

enum class Way { rows, runs, columns };

Way way(const Call &call) {
    const Layout &l = call.at;
    const bool along = call.gain && l.gs == 1;
    if (l.B == 1 && l.P == 1 && (!call.gain || (along && l.ga == 0 && l.gc == 0))) return Way::rows;
    if (along) return Way::columns;
    if (l.B > 1 && l.P * l.S < 64) return Way::columns;
    return Way::runs;
}

// Rows that do not start on a vector's boundary cannot be streamed; a run finds the boundary by itself.
template <class T> bool may_stream(const Call &call, const void *out) {
    const Layout &l = call.at;
    if (!call.stream || reinterpret_cast<std::uintptr_t>(out) % BYTES) return false;
    if (way(call) == Way::columns) return fold(l.C * l.P * l.S, l.B).width * i64(sizeof(T)) % BYTES == 0;
    if (way(call) == Way::rows) return l.S * i64(sizeof(T)) % BYTES == 0;
    return l.S * i64(sizeof(T)) >= 8 * BYTES;
}

template <bool STREAM, class T>
void forward(const Call &call, const T *x, const float *w, const float *b, T *y, Stat *stats, double *mean, double *m2) {
    switch (way(call)) {
    case Way::rows: return rows_forward<STREAM>(call, x, w, b, y, stats, mean, m2);
    case Way::runs: return runs_forward<STREAM>(call, x, w, b, y, stats, mean, m2);
    case Way::columns: return columns_forward<STREAM>(call, x, w, b, y, stats, mean, m2);
    }
}

template <bool STREAM, class T>
void backward(const Call &call, const T *x, const T *dy, const float *w, const Stat *stats, T *dx, float *dw,
              float *db) {
    switch (way(call)) {
    case Way::rows: return rows_backward<STREAM>(call, x, dy, w, stats, dx, dw, db);
    case Way::runs: return runs_backward<STREAM>(call, x, dy, w, stats, dx, dw, db);
    case Way::columns: return columns_backward<STREAM>(call, x, dy, w, stats, dx, dw, db);
    }
}

template <class T>
void forward_any(const Call &call, const void *x, const float *w, const float *b, void *y, Stat *stats, double *mean,
                 double *m2) {
    const auto f = may_stream<T>(call, y) ? &forward<true, T> : &forward<false, T>;
    f(call, static_cast<const T *>(x), w, b, static_cast<T *>(y), stats, mean, m2);
}

template <class T>
void backward_any(const Call &call, const void *x, const void *dy, const float *w, const Stat *stats, void *dx,
                  float *dw, float *db) {
    const auto f = may_stream<T>(call, dx) ? &backward<true, T> : &backward<false, T>;
    f(call, static_cast<const T *>(x), static_cast<const T *>(dy), w, stats, static_cast<T *>(dx), dw, db);
}

} // namespace

#define QUOTE2(a) #a
#define QUOTE(a) QUOTE2(a)
#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
extern const Kernels JOIN(kernels_, ISA);
extern const Kernels JOIN(kernels_, ISA) = {QUOTE(ISA), forward_any<float>, forward_any<bf16>, backward_any<float>,
                                            backward_any<bf16>};
