// Loops over rows whose columns are kept: one lane per column, so that nothing is summed across lanes.
//
// Memory is read as it lies, a few rows abreast; the lines of sums and coefficients stay in the first cache.
#pragma once

#include "norm.hpp"
#include "simd.hpp"

#include <algorithm>

namespace {

constexpr int ABREAST = 4, LOOKED = 8; // rows at once: the lines of sums are loaded and stored once for all of them
constexpr i64 PANEL = 1024; // columns whose lines fit the first cache

// Rows, wherever they lie, and how much each counts: all 1 (no weights), one number, or one per column.
template <class T> struct Tile {
    const T *const *rows;
    const float *const *where; // of each row, or null
    bool along;                // do weights differ along a row
    i64 n, width;

    // f(column, lanes, whole) over the columns [begin, end)
    template <class F> static INLINE void across(i64 begin, i64 end, const F &f) {
        i64 c = begin;
        for (; c + LANES <= end; c += LANES) f(c, i64(LANES), true);
        if (c < end) f(c, end - c, false);
    }
};
template <class P> INLINE vf get(const P *p, i64 k, bool whole) { return whole ? load(p) : load(p, k); }

// s1 = sum (x - about), s2 = sum (x - about)^2 of each column in float: few rows. Lines are whole vectors long.
template <int ROWS, class T>
INLINE void rows_spread(const T *const *rows, i64 begin, i64 end, const float *about, float *s1, float *s2) {
    Tile<T>::across(begin, end, [&](i64 c, i64 k, bool whole) {
        const vf K = load(about + c);
        vf a{}, b{};
        for (int r = 0; r < ROWS; ++r) {
            const vf d = get(rows[r] + c, k, whole) - K;
            a += d, b += d * d;
        }
        store(s1 + c, load(s1 + c) + a), store(s2 + c, load(s2 + c) + b);
    });
}
template <class T>
INLINE void row_weighed(const T *x, const float *w, bool along, i64 begin, i64 end, const float *about, float *s0,
                        float *s1, float *s2) {
    Tile<T>::across(begin, end, [&](i64 c, i64 k, bool whole) {
        const vf W = along ? get(w + c, k, whole) : all(*w), d = only(W, get(x + c, k, whole) - load(about + c));
        const vf wd = W * d;
        store(s0 + c, load(s0 + c) + W), store(s1 + c, load(s1 + c) + wd), store(s2 + c, load(s2 + c) + wd * d);
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
    Tile<T>::across(0, width, [&](i64 c, i64 k, bool whole) {
        const vf H = load(hi + c), S = load(s + c), O = load(t + c);
        for (int r = 0; r < ROWS; ++r) {
            const vf v = get(x[r] + c, k, whole);
            vf z = (v - H) * S + O;
            if (weighed) z += v - v; // what is no number becomes NaN
            if (whole)
                put<STREAM>(y[r] + c, z);
            else
                store(y[r] + c, z, k);
        }
    });
}

// s1 += sum dy, s2 += sum dy (x - hi), per column in float
template <int ROWS, class T>
INLINE void rows_pull(const T *const *x, const T *const *dy, i64 begin, i64 end, const float *hi, bool weighed,
                      float *s1, float *s2) {
    Tile<T>::across(begin, end, [&](i64 c, i64 k, bool whole) {
        const vf H = load(hi + c);
        vf a{}, b{};
        for (int r = 0; r < ROWS; ++r) {
            vf v = get(x[r] + c, k, whole), d = get(dy[r] + c, k, whole);
            if (weighed) d = (vf)((vi)d & (vi)((v - v) == 0.f)), v = finite(v);
            a += d, b += d * (v - H);
        }
        store(s1 + c, load(s1 + c) + a), store(s2 + c, load(s2 + c) + b);
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
    Tile<T>::across(0, tile.width, [&](i64 c, i64 k, bool whole) {
        const vf H = load(hi + c), P = load(p + c), Q = load(q + c), R = load(r + c);
        for (int i = 0; i < ROWS; ++i) {
            const vf v = get(tile.rows[row + i] + c, k, whole), d = get(dy[i] + c, k, whole);
            vf down = (v - H) * Q + R;
            if (tile.where) {
                const float *const w = tile.where[row + i];
                const vf M = tile.along ? get(w + c, k, whole) : all(*w);
                down = d * P + M * (only(M, v - H) * Q + R);
                down = (vf)((vi)down & (vi)((v - v) == 0.f));
            } else
                down = d * P + down;
            if (whole)
                put<STREAM>(dx[i] + c, down);
            else
                store(dx[i] + c, down, k);
        }
    });
}

} // namespace
