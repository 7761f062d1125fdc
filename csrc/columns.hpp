// Loops over rows [rows, width] whose columns are kept: one lane per column, so that nothing is summed across lanes.
#pragma once

#include "norm.hpp"
#include "simd.hpp"

#include <algorithm>

namespace {

constexpr int ABREAST = BYTES == 64 ? 4 : 2; // vectors of columns at once: as many as the registers hold
constexpr i64 TILE = 64;                     // rows that stay in the first cache between two looks

// Call f(column, how many vectors, lanes of the last) over a row of `width` columns.
template <class F> INLINE void across(i64 width, const F &f) {
    i64 c = 0;
    for (; c + ABREAST * LANES <= width; c += ABREAST * LANES) f.template block<ABREAST>(c);
    for (; c + LANES <= width; c += LANES) f.template block<1>(c);
    if (c < width) f.tail(c, width - c);
}

inline i64 tile_rows(i64 width) { return width <= 512 ? TILE : TILE / 4; }

// Two looks at one tile: about its own rounded mean per column, and what that mean missed.
template <class T> struct ColumnLook {
    const T *x;
    i64 width, rows;
    double n;
    bool center;
    double *mean, *m2;

    INLINE void merge(i64 c, int lanes, const float *about, const float *s1, const float *s2) const {
        const double k = double(rows), inverse = 1.0 / k, share = k / (n + k), cross = n * k / (n + k);
        for (int j = 0; j < lanes; ++j) {
            const double missed = double(s1[j]) * inverse, d = double(about[j]) + missed - mean[c + j];
            mean[c + j] += d * share;
            m2[c + j] += (double(s2[j]) - double(s1[j]) * missed) + d * d * cross;
        }
    }
    template <int V> INLINE void block(i64 c) const {
        vf K[V]{}, a[V]{}, b[V]{};
        const T *p = x + c;
        if (center) {
            for (i64 r = 0; r < rows; ++r, p += width)
                for (int v = 0; v < V; ++v) K[v] += load(p + v * LANES);
            for (int v = 0; v < V; ++v) K[v] *= all(1.f / float(rows));
            p = x + c;
        }
        for (i64 r = 0; r < rows; ++r, p += width)
            for (int v = 0; v < V; ++v) {
                const vf d = load(p + v * LANES) - K[v];
                a[v] += d, b[v] += d * d;
            }
        finish(c, V * LANES, (const float *)K, (const float *)a, (const float *)b);
    }
    INLINE void tail(i64 c, i64 lanes) const {
        vf K{}, a{}, b{};
        const T *p = x + c;
        if (center) {
            for (i64 r = 0; r < rows; ++r, p += width) K += load(p, lanes);
            K *= all(1.f / float(rows));
            p = x + c;
        }
        for (i64 r = 0; r < rows; ++r, p += width) {
            const vf d = load(p, lanes) - K;
            a += d, b += d * d;
        }
        finish(c, int(lanes), (const float *)&K, (const float *)&a, (const float *)&b);
    }
    INLINE void finish(i64 c, int lanes, const float *about, const float *s1, const float *s2) const {
        if (center) return merge(c, lanes, about, s1, s2);
        for (int j = 0; j < lanes; ++j) m2[c + j] += s2[j];
    }
};

// Add the moments of rows [begin, end) to those of `n` rows seen before.
template <class T>
void column_moments(const T *x, i64 width, i64 begin, i64 end, double n, bool center, double *mean, double *m2) {
    const i64 tile = tile_rows(width);
    for (i64 r = begin; r < end; r += tile) {
        const i64 rows = std::min(tile, end - r);
        across(width, ColumnLook<T>{x + r * width, width, rows, n, center, mean, m2});
        n += double(rows);
    }
}

// y = (x - hi) s + t, a value of each per column, row by row as memory lies: the coefficients stay in the first cache.
// The last tile first, for it may still be in a cache.
template <bool STREAM, class T>
void column_apply(const T *x, T *y, i64 width, i64 begin, i64 end, const float *hi, const float *s, const float *t) {
    const i64 tile = tile_rows(width);
    for (i64 last = end; last > begin; last -= std::min(tile, last - begin))
        for (i64 r = std::max(begin, last - tile); r < last; ++r) {
            const T *const p = x + r * width;
            T *const q = y + r * width;
            i64 c = 0;
            for (; c + LANES <= width; c += LANES)
                put<STREAM>(q + c, (load(p + c) - load(hi + c)) * load(s + c) + load(t + c));
            if (const i64 k = width - c)
                store(q + c, (load(p + c, k) - load(hi + c, k)) * load(s + c, k) + load(t + c, k), k);
        }
}

// Of one tile, what the gradient pulls on: float sums of few rows, then double.
template <class T> struct ColumnPull {
    const T *x, *dy;
    i64 width, rows;
    const float *hi;
    double *s1, *s2;

    INLINE void finish(i64 c, int lanes, const float *a, const float *b) const {
        for (int j = 0; j < lanes; ++j) s1[c + j] += a[j], s2[c + j] += b[j];
    }
    template <int V> INLINE void block(i64 c) const {
        vf H[V], a[V]{}, b[V]{};
        for (int v = 0; v < V; ++v) H[v] = load(hi + c + v * LANES);
        const T *p = x + c, *q = dy + c;
        for (i64 r = 0; r < rows; ++r, p += width, q += width)
            for (int v = 0; v < V; ++v) {
                const vf d = load(q + v * LANES);
                a[v] += d, b[v] += d * (load(p + v * LANES) - H[v]);
            }
        finish(c, V * LANES, (const float *)a, (const float *)b);
    }
    INLINE void tail(i64 c, i64 k) const {
        const vf H = load(hi + c, k);
        vf a{}, b{};
        for (i64 r = 0; r < rows; ++r) {
            const vf d = load(dy + c + r * width, k);
            a += d, b += d * (load(x + c + r * width, k) - H);
        }
        finish(c, int(k), (const float *)&a, (const float *)&b);
    }
};

// s1 += sum dy, s2 += sum dy (x - hi), per column
template <class T>
void column_pull(const T *x, const T *dy, i64 width, i64 begin, i64 end, const float *hi, double *s1, double *s2) {
    const i64 tile = tile_rows(width);
    for (i64 r = begin; r < end; r += tile)
        across(width, ColumnPull<T>{x + r * width, dy + r * width, width, std::min(tile, end - r), hi, s1, s2});
}

// dx = dy P + (x - hi) Q + R, a value of each per column, as column_apply goes
template <bool STREAM, class T>
void column_descend(const T *x, const T *dy, T *dx, i64 width, i64 begin, i64 end, const float *hi, const float *p,
                    const float *q, const float *r) {
    const i64 tile = tile_rows(width);
    for (i64 last = end; last > begin; last -= std::min(tile, last - begin))
        for (i64 row = std::max(begin, last - tile); row < last; ++row) {
            const i64 o = row * width;
            i64 c = 0;
            for (; c + LANES <= width; c += LANES) {
                const vf u = load(x + o + c) - load(hi + c);
                put<STREAM>(dx + o + c, load(dy + o + c) * load(p + c) + (u * load(q + c) + load(r + c)));
            }
            if (const i64 k = width - c) {
                const vf u = load(x + o + c, k) - load(hi + c, k);
                store(dx + o + c, load(dy + o + c, k) * load(p + c, k) + (u * load(q + c, k) + load(r + c, k)), k);
            }
        }
}

} // namespace
