// Loops over rows whose columns are kept: one lane per column, so that nothing is summed across lanes.
//
// Memory is read as it lies, a few rows abreast; the lines of sums and coefficients stay in the first cache.
#pragma once

#include "norm.hpp"
#include "vectors.hpp"

#include <algorithm>

namespace {

constexpr int ABREAST = 4, LOOKED = 8; // rows at once: the lines of sums are loaded and stored once for all of them
constexpr i64 PANEL = 1024; // columns whose lines fit the first cache
constexpr int WIDE = LANES == 16 ? 4 : 2; // vectors of a row at once: memory is read as it lies, and registers suffice

// Rows, wherever they lie, and how much each counts: all 1 (no weights), one number, or one per column.
template <class T> struct Tile {
    const T *const *rows;
    const float *const *where; // of each row, or null
    bool along;                // do weights differ along a row
    i64 n, width;

    // How far from row i, of so many at once, are those that come after; or 0
    INLINE i64 next(i64 i, i64 many) const { return i + 2 * many <= n ? many : 0; }
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
INLINE void rows_spread(const T *const *rows, i64 next, i64 begin, i64 end, const float *about, float *s1, float *s2) {
    Tile<T>::across(begin, end, [&](i64 c, auto vectors, i64 k) {
        constexpr int N = vectors.count;
        vf K[N], a[N]{}, b[N]{}, u[N];
        beside<T>(about + c, K);
        for (int r = 0; r < ROWS; ++r) {
            fetch<N * LANES>(rows[r + next], c), takes(rows[r] + c, k, u);
            for (int v = 0; v < N; ++v) {
                const vf d = u[v] - K[v];
                a[v] += d, b[v] += d * d;
            }
        }
        more<T>(s1 + c, a), more<T>(s2 + c, b);
    });
}
// The same of what counts: s0 = sum w, s1 = sum w (x - about), s2 = sum w (x - about)^2
template <int ROWS, class T>
INLINE void rows_weighed(const T *const *rows, const float *const *where, bool along, i64 begin, i64 end,
                         const float *about, float *s0, float *s1, float *s2) {
    Tile<T>::across(begin, end, [&](i64 c, auto vectors, i64 k) {
        constexpr int N = vectors.count;
        vf K[N], W[N], n[N]{}, a[N]{}, b[N]{}, u[N];
        beside<T>(about + c, K);
        for (int r = 0; r < ROWS; ++r) {
            takes(rows[r] + c, k, u);
            if (along) beside<T>(where[r] + c, k, W);
            for (int v = 0; v < N; ++v) {
                if (!along) W[v] = all(*where[r]);
                const vf d = only(W[v], u[v] - K[v]), wd = W[v] * d;
                n[v] += W[v], a[v] += wd, b[v] += wd * d;
            }
        }
        more<T>(s0 + c, n), more<T>(s1 + c, a), more<T>(s2 + c, b);
    });
}
template <class T>
INLINE void tile_spread(const Tile<T> &tile, const float *about, float *s0, float *s1, float *s2) {
    for (i64 begin = 0; begin < tile.width; begin += PANEL) {
        const i64 end = std::min(begin + PANEL, tile.width);
        i64 r = 0;
        for (; tile.where && r + ABREAST <= tile.n; r += ABREAST)
            rows_weighed<ABREAST>(tile.rows + r, tile.where + r, tile.along, begin, end, about, s0, s1, s2);
        for (; tile.where && r < tile.n; ++r)
            rows_weighed<1>(tile.rows + r, tile.where + r, tile.along, begin, end, about, s0, s1, s2);
        for (; r + LOOKED <= tile.n; r += LOOKED)
            rows_spread<LOOKED>(tile.rows + r, tile.next(r, LOOKED), begin, end, about, s1, s2);
        for (; r < tile.n; ++r) rows_spread<1>(tile.rows + r, 0, begin, end, about, s1, s2);
    }
}

// y = (x - hi) s + t, or ((x - hi) r + l) s + t: lines of one value per column
template <bool STREAM, int ROWS, class T>
INLINE void rows_apply(const T *const *x, T *const *y, i64 next, i64 width, const float *hi, const float *s,
                       const float *t, bool weighed) {
    Tile<T>::across(0, width, [&](i64 c, auto vectors, i64 k) {
        constexpr int N = vectors.count;
        vf H[N], S[N], O[N], u[N];
        beside<T>(hi + c, H), beside<T>(s + c, S), beside<T>(t + c, O);
        for (int r = 0; r < ROWS; ++r) {
            takes(x[r] + c, k, u);
            if (!STREAM) claim<N * LANES>(y[r + next], c);
            for (int v = 0; v < N; ++v) {
                const vf z = (u[v] - H[v]) * S[v] + O[v];
                u[v] = weighed ? z + (u[v] - u[v]) : z; // what is no number becomes NaN
            }
            gives<STREAM>(y[r] + c, u, k);
        }
    });
}

// s1 += sum dy, s2 += sum dy (x - hi), per column in float
template <int ROWS, class T>
INLINE void rows_pull(const T *const *x, const T *const *dy, i64 next, i64 begin, i64 end, const float *hi,
                      bool weighed, float *s1, float *s2) {
    Tile<T>::across(begin, end, [&](i64 c, auto vectors, i64 k) {
        constexpr int N = vectors.count;
        vf H[N], a[N]{}, b[N]{}, u[N], d[N];
        beside<T>(hi + c, H);
        for (int r = 0; r < ROWS; ++r) {
            fetch<N * LANES>(x[r + next], c), fetch<N * LANES>(dy[r + next], c);
            takes(x[r] + c, k, u), takes(dy[r] + c, k, d);
            for (int v = 0; v < N; ++v) {
                if (weighed) d[v] = (vf)((vi)d[v] & (vi)((u[v] - u[v]) == 0.f)), u[v] = finite(u[v]);
                a[v] += d[v], b[v] += d[v] * (u[v] - H[v]);
            }
        }
        more<T>(s1 + c, a), more<T>(s2 + c, b);
    });
}
template <class T>
INLINE void tile_pull(const Tile<T> &tile, const T *const *dy, const float *hi, float *s1, float *s2) {
    const bool weighed = tile.where;
    for (i64 begin = 0; begin < tile.width; begin += PANEL) {
        const i64 end = std::min(begin + PANEL, tile.width);
        i64 r = 0;
        for (; r + ABREAST <= tile.n; r += ABREAST)
            rows_pull<ABREAST>(tile.rows + r, dy + r, tile.next(r, ABREAST), begin, end, hi, weighed, s1, s2);
        for (; r < tile.n; ++r) rows_pull<1>(tile.rows + r, dy + r, 0, begin, end, hi, weighed, s1, s2);
    }
}

// dx = dy p + m ((x - hi) q + r): lines of one value per column
template <bool STREAM, int ROWS, class T>
INLINE void rows_slope(const Tile<T> &tile, i64 row, i64 next, const T *const *dy, T *const *dx, const float *hi,
                       const float *p, const float *q, const float *r) {
    Tile<T>::across(0, tile.width, [&](i64 c, auto vectors, i64 k) {
        constexpr int N = vectors.count;
        vf H[N], P[N], Q[N], R[N], M[N], u[N], d[N];
        beside<T>(hi + c, H), beside<T>(p + c, P), beside<T>(q + c, Q), beside<T>(r + c, R);
        for (int i = 0; i < ROWS; ++i) {
            if (!STREAM) claim<N * LANES>(dx[i + next], c);
            takes(tile.rows[row + i] + c, k, u), takes(dy[i] + c, k, d);
            if (tile.where && tile.along) beside<T>(tile.where[row + i] + c, k, M);
            for (int v = 0; v < N; ++v) {
                if (!tile.where)
                    d[v] = d[v] * P[v] + ((u[v] - H[v]) * Q[v] + R[v]);
                else {
                    if (!tile.along) M[v] = all(*tile.where[row + i]);
                    const vf down = d[v] * P[v] + M[v] * (only(M[v], u[v] - H[v]) * Q[v] + R[v]);
                    d[v] = (vf)((vi)down & (vi)((u[v] - u[v]) == 0.f));
                }
            }
            gives<STREAM>(dx[i] + c, d, k);
        }
    });
}

} // namespace
