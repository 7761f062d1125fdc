// By rows: pooled elements contiguous, with a gain along them or none (layer and RMS norm).
#pragma once

#include "runs.hpp"
#include "share.hpp"

namespace {

template <bool STREAM, class T>
void rows_forward(const Call &call, const T *x, const float *w, const float *b, T *y, Stat *stats, double *mean,
                  double *m2) {
    const i64 n = call.at.S;
    team(threads_for(call), [&](int t, int threads) {
        const Part mine = part(call.at.groups(), t, threads);
        for (i64 i = mine.begin; i < mine.end; ++i) {
            if (!call.fixed) {
                Moments m;
                run_moments(x + i * n, n, call.center, m);
                stats[i] = m.stat(call);
                tell(m, i, mean, m2);
            }
            if (w)
                row_apply<STREAM>(x + i * n, y + i * n, n, stats[i], w, b);
            else
                run_apply<STREAM>(x + i * n, y + i * n, n, stats[i].hi, stats[i].r, -stats[i].lo * stats[i].r);
        }
        settle();
    });
}

struct Slope { // of one row: dx = dy w P + (x - hi) Q + R
    float hi, p, q, r, rate, shift;
};

// The gain's gradient runs down the rows while dx is written: a few rows at a time, so that its sums stay in registers.
template <bool STREAM, int ROWS, class T>
INLINE void rows_descend(const T *x, const T *dy, T *dx, i64 n, const float *w, const Slope *s, float *dw, float *db) {
    const auto step = [&](i64 i, i64 k, bool whole) {
        const vf one = all(1.f);
        const vf g = !w ? one : whole ? load(w + i) : load(w + i, k);
        vf a = !dw ? vf{} : whole ? load(dw + i) : load(dw + i, k), b = !db ? vf{} : whole ? load(db + i) : load(db + i, k);
        for (int row = 0; row < ROWS; ++row) {
            const i64 at = row * n + i;
            const vf d = whole ? load(dy + at) : load(dy + at, k);
            const vf u = (whole ? load(x + at) : load(x + at, k)) - all(s[row].hi);
            a += d * (u * all(s[row].rate) + all(s[row].shift));
            b += d;
            const vf down = (d * g) * all(s[row].p) + (u * all(s[row].q) + all(s[row].r));
            if (whole)
                put<STREAM>(dx + at, down);
            else
                store(dx + at, down, k);
        }
        if (dw) whole ? store(dw + i, a) : store(dw + i, a, k);
        if (db) whole ? store(db + i, b) : store(db + i, b, k);
    };
    i64 i = 0;
    for (; i + LANES <= n; i += LANES) step(i, LANES, true);
    if (i < n) step(i, n - i, false);
}

template <bool STREAM, class T>
void rows_backward(const Call &call, const T *x, const T *dy, const float *w, const Stat *stats, T *dx, float *dw,
                   float *db) {
    constexpr int TOGETHER = 4;   // rows whose gain gradient is summed in registers
    constexpr i64 FLUSH = 256;    // rows whose gain gradient is summed in float before it goes to double
    const i64 n = call.at.S, rows = call.at.groups();
    const int threads = threads_for(call);
    vector<double> total(std::size_t((dw || db) ? threads * 2 * n : 0));
    team(threads, [&](int t, int of) {
        const Part mine = part(rows, t, of);
        vector<float> part_w(std::size_t(dw ? n : 0)), part_b(std::size_t(db ? n : 0));
        double *const sum_w = total.data() + 2 * n * t, *const sum_b = sum_w + n;
        i64 since = 0;
        const auto flush = [&] {
            for (i64 j = 0; dw && j < n; ++j) sum_w[j] += part_w[std::size_t(j)], part_w[std::size_t(j)] = 0;
            for (i64 j = 0; db && j < n; ++j) sum_b[j] += part_b[std::size_t(j)], part_b[std::size_t(j)] = 0;
            since = 0;
        };
        const auto slope = [&](i64 i) {
            const Stat q = stats[i];
            const double r = q.r;
            double c1 = 0, c2 = 0;
            if (!call.fixed) {
                double s1 = 0, s2 = 0;
                run_pull(x + i * n, dy + i * n, w, n, q.hi, s1, s2);
                c1 = call.center ? s1 / double(n) : 0;
                c2 = r * (s2 - double(q.lo) * s1) / double(n);
            }
            return Slope{q.hi, q.r, float(-r * r * c2), float(-r * c1 + r * r * c2 * q.lo), q.r, -q.lo * q.r};
        };
        float *const pw = dw ? part_w.data() : nullptr, *const pb = db ? part_b.data() : nullptr;
        i64 i = mine.begin;
        for (; i + TOGETHER <= mine.end; i += TOGETHER) {
            Slope s[TOGETHER];
            for (int k = 0; k < TOGETHER; ++k) s[k] = slope(i + k);
            rows_descend<STREAM, TOGETHER>(x + i * n, dy + i * n, dx + i * n, n, w, s, pw, pb);
            if ((since += TOGETHER) >= FLUSH) flush();
        }
        for (; i < mine.end; ++i) {
            const Slope s = slope(i);
            rows_descend<STREAM, 1>(x + i * n, dy + i * n, dx + i * n, n, w, &s, pw, pb);
        }
        flush();
        settle();
    });
    for (i64 j = 0; j < n && (dw || db); ++j) {
        double a = 0, b = 0;
        for (int t = 0; t < threads; ++t) a += total[std::size_t(2 * n * t + j)], b += total[std::size_t(2 * n * t + n + j)];
        if (dw) dw[j] = float(a);
        if (db) db[j] = float(b);
    }
}

} // namespace
