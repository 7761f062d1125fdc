// Loops over rows whose columns are kept: one lane per column, so that nothing is summed across lanes.
//
// Memory is read as it lies, a few rows abreast; the lines of sums and coefficients stay in the first cache.
#pragma once

#include "norm.hpp"
#include "simd.hpp"

#include <algorithm>

namespace {

INLINE void more(float *p, vf f) { store(p, load(p) + f); }

constexpr int ABREAST = 4, LOOKED = 8; // rows at once: the lines of sums are loaded and stored once for all of them
constexpr i64 PANEL = 1024; // columns whose lines fit the first cache
constexpr int WIDE = LANES == 16 ? 4 : 2; // vectors of a row at once: memory is read as it lies, and registers suffice

template <int N> struct Vectors {
    static constexpr int count = N;
};

// Rows, wherever they lie, and how much each counts: all 1 (no weights), one number, or one per column.
template <class T> struct Tile {
    const T *const *rows;
    const float *const *where; // of each row, or null
    bool along;                // do weights differ along a row
    i64 n, width;

    // f(column, vectors, lanes of each) over the columns [begin, end)
    template <class F> static INLINE void across(i64 begin, i64 end, const F &f) {
        i64 c = begin;
        for (; c + WIDE * LANES <= end; c += WIDE * LANES) f(c, Vectors<WIDE>{}, i64(LANES));
        for (; c + LANES <= end; c += LANES) f(c, Vectors<1>{}, i64(LANES));
        if (c < end) f(c, Vectors<1>{}, end - c);
    }
};

// s1 = sum (x - about), s2 = sum (x - about)^2 of each column in float: few rows. Lines are whole vectors long.
template <int ROWS, class T>
INLINE void rows_spread(const T *const *rows, i64 begin, i64 end, const float *about, float *s1, float *s2) {
    Tile<T>::across(begin, end, [&](i64 c, auto vectors, i64 k) {
        constexpr int N = vectors.count;
        vf K[N], a[N]{}, b[N]{};
        for (int v = 0; v < N; ++v) K[v] = load(about + c + v * LANES);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < N; ++v) {
                const vf d = take(rows[r] + c + v * LANES, k) - K[v];
                a[v] += d, b[v] += d * d;
            }
        for (int v = 0; v < N; ++v) more(s1 + c + v * LANES, a[v]), more(s2 + c + v * LANES, b[v]);
    });
}
template <class T>
INLINE void row_weighed(const T *x, const float *w, bool along, i64 begin, i64 end, const float *about, float *s0,
                        float *s1, float *s2) {
    Tile<T>::across(begin, end, [&](i64 from, auto vectors, i64 k) {
        for (i64 c = from; c < from + vectors.count * LANES; c += LANES) {
            const vf W = along ? take(w + c, k) : all(*w), d = only(W, take(x + c, k) - load(about + c)), wd = W * d;
            more(s0 + c, W), more(s1 + c, wd), more(s2 + c, wd * d);
        }
    });
}
template <class T>
INLINE void tile_spread(const Tile<T> &tile, const float *about, float *s0, float *s1, float *s2) {
    for (i64 begin = 0; begin < tile.width; begin += PANEL) {
        const i64 end = std::min(begin + PANEL, tile.width);
        i64 r = 0;
        for (; tile.where && r < tile.n; ++r)
            row_weighed(tile.rows[r], tile.where[r], tile.along, begin, end, about, s0, s1, s2);
        for (; r + LOOKED <= tile.n; r += LOOKED) rows_spread<LOOKED>(tile.rows + r, begin, end, about, s1, s2);
        for (; r < tile.n; ++r) rows_spread<1>(tile.rows + r, begin, end, about, s1, s2);
    }
}

// y = (x - hi) s + t, or ((x - hi) r + l) s + t: lines of one value per column
template <bool STREAM, int ROWS, class T>
INLINE void rows_apply(const T *const *x, T *const *y, i64 width, const float *hi, const float *s, const float *t,
                       bool weighed) {
    Tile<T>::across(0, width, [&](i64 c, auto vectors, i64 k) {
        constexpr int N = vectors.count;
        vf H[N], S[N], O[N];
        for (int v = 0; v < N; ++v) {
            const i64 at = c + v * LANES;
            H[v] = load(hi + at), S[v] = load(s + at), O[v] = load(t + at);
        }
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < N; ++v) {
                const i64 at = c + v * LANES;
                const vf u = take(x[r] + at, k);
                vf z = (u - H[v]) * S[v] + O[v];
                if (weighed) z += u - u; // what is no number becomes NaN
                give<STREAM>(y[r] + at, z, k);
            }
    });
}

// s1 += sum dy, s2 += sum dy (x - hi), per column in float
template <int ROWS, class T>
INLINE void rows_pull(const T *const *x, const T *const *dy, i64 begin, i64 end, const float *hi, bool weighed,
                      float *s1, float *s2) {
    Tile<T>::across(begin, end, [&](i64 c, auto vectors, i64 k) {
        constexpr int N = vectors.count;
        vf H[N], a[N]{}, b[N]{};
        for (int v = 0; v < N; ++v) H[v] = load(hi + c + v * LANES);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < N; ++v) {
                const i64 at = c + v * LANES;
                vf u = take(x[r] + at, k), d = take(dy[r] + at, k);
                if (weighed) d = (vf)((vi)d & (vi)((u - u) == 0.f)), u = finite(u);
                a[v] += d, b[v] += d * (u - H[v]);
            }
        for (int v = 0; v < N; ++v) more(s1 + c + v * LANES, a[v]), more(s2 + c + v * LANES, b[v]);
    });
}
template <class T>
INLINE void tile_pull(const Tile<T> &tile, const T *const *dy, const float *hi, float *s1, float *s2) {
    const bool weighed = tile.where;
    for (i64 begin = 0; begin < tile.width; begin += PANEL) {
        const i64 end = std::min(begin + PANEL, tile.width);
        i64 r = 0;
        for (; r + ABREAST <= tile.n; r += ABREAST)
            rows_pull<ABREAST>(tile.rows + r, dy + r, begin, end, hi, weighed, s1, s2);
        for (; r < tile.n; ++r) rows_pull<1>(tile.rows + r, dy + r, begin, end, hi, weighed, s1, s2);
    }
}

// dx = dy p + m ((x - hi) q + r): lines of one value per column
template <bool STREAM, int ROWS, class T>
INLINE void rows_slope(const Tile<T> &tile, i64 row, const T *const *dy, T *const *dx, const float *hi, const float *p,
                       const float *q, const float *r) {
    Tile<T>::across(0, tile.width, [&](i64 c, auto vectors, i64 k) {
        constexpr int N = vectors.count;
        vf H[N], P[N], Q[N], R[N];
        for (int v = 0; v < N; ++v) {
            const i64 at = c + v * LANES;
            H[v] = load(hi + at), P[v] = load(p + at), Q[v] = load(q + at), R[v] = load(r + at);
        }
        for (int i = 0; i < ROWS; ++i)
            for (int v = 0; v < N; ++v) {
                const i64 at = c + v * LANES;
                const vf u = take(tile.rows[row + i] + at, k), d = take(dy[i] + at, k);
                vf down = d * P[v] + ((u - H[v]) * Q[v] + R[v]);
                if (tile.where) {
                    const float *const w = tile.where[row + i];
                    const vf M = tile.along ? take(w + at, k) : all(*w);
                    down = d * P[v] + M * (only(M, u - H[v]) * Q[v] + R[v]);
                    down = (vf)((vi)down & (vi)((u - u) == 0.f));
                }
                give<STREAM>(dx[i] + at, down, k);
            }
    });
}

} // namespace
