// Loops along one contiguous run of memory whose elements share a statistic.
#pragma once

#include "norm.hpp"
#include "simd.hpp"

#include <cmath>

namespace {

// Count, mean and squared spread; two of them add.
struct Moments {
    double n = 0, mean = 0, m2 = 0;

    INLINE void add(double k, double other_mean, double other_m2) {
        const double all = n + k, d = other_mean - mean;
        mean += d * k / all;
        m2 += other_m2 + d * d * n * k / all;
        n = all;
    }
    INLINE void add(const Moments &m) {
        if (m.n > 0) add(m.n, m.mean, m.m2);
    }
    INLINE Stat stat(const Call &call) const {
        const double var = m2 / n, r = 1.0 / std::sqrt(var + call.eps) + 0.0 * var; // overflow makes NaN, not 0
        const float hi = call.center ? float(mean) : 0.f;
        return {hi, call.center ? float(mean - hi) : 0.f, float(r)};
    }
};

constexpr i64 CHUNK = 4096; // elements that surely stay in the first cache between two looks
constexpr i64 BLOCK = 512;  // elements summed in float before the sum goes to double: 4096 cost half the digits

template <class T> INLINE float run_sum(const T *x, i64 n) {
    vf a{}, b{}, c{}, d{};
    i64 i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        a += load(x + i);
        b += load(x + i + LANES);
        c += load(x + i + 2 * LANES);
        d += load(x + i + 3 * LANES);
    }
    for (; i + LANES <= n; i += LANES) a += load(x + i);
    if (i < n) b += load(x + i, n - i);
    return sum((a + b) + (c + d));
}

// s1 = sum (x - m), s2 = sum (x - m)^2
template <class T> INLINE void run_spread(const T *x, i64 n, float m, float &s1, float &s2) {
    const vf M = all(m);
    vf a{}, b{}, c{}, d{}, e{}, f{}, g{}, h{};
    i64 i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        const vf u = load(x + i) - M, v = load(x + i + LANES) - M;
        const vf w = load(x + i + 2 * LANES) - M, z = load(x + i + 3 * LANES) - M;
        a += u, b += v, c += w, d += z;
        e += u * u, f += v * v, g += w * w, h += z * z;
    }
    for (; i + LANES <= n; i += LANES) {
        const vf u = load(x + i) - M;
        a += u, e += u * u;
    }
    if (i < n) {
        const vf u = keep(load(x + i, n - i) - M, n - i);
        b += u, f += u * u;
    }
    s1 = sum((a + b) + (c + d));
    s2 = sum((e + f) + (g + h));
}

// Two looks at each chunk while it is in the first cache: about its own rounded mean, and what that mean missed.
template <class T> INLINE void run_moments(const T *x, i64 n, bool center, Moments &m) {
    for (i64 i = 0; i < n; i += CHUNK) {
        const i64 k = n - i < CHUNK ? n - i : CHUNK;
        const float about = center ? run_sum(x + i, k) / float(k) : 0.f;
        double s1 = 0, s2 = 0;
        for (i64 j = 0; j < k; j += BLOCK) {
            float a, b;
            run_spread(x + i + j, k - j < BLOCK ? k - j : BLOCK, about, a, b);
            s1 += a, s2 += b;
        }
        const double missed = s1 / double(k);
        if (center)
            m.add(double(k), double(about) + missed, s2 - s1 * missed);
        else
            m.n += double(k), m.m2 += s2;
    }
}

// y = ((x - hi) s + t) for a whole run
template <bool STREAM, class T> INLINE void run_apply(const T *x, T *y, i64 n, float hi, float s, float t) {
    const vf H = all(hi), S = all(s), B = all(t);
    i64 i = 0;
    if (STREAM) {
        i = until_aligned(y);
        if (i > n) i = n;
        if (i) store(y, (load(x, i) - H) * S + B, i);
    }
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int v = 0; v < 4; ++v) put<STREAM>(y + i + v * LANES, (load(x + i + v * LANES) - H) * S + B);
    for (; i + LANES <= n; i += LANES) put<STREAM>(y + i, (load(x + i) - H) * S + B);
    if (i < n) store(y + i, (load(x + i, n - i) - H) * S + B, n - i);
}

// y = ((x - hi) r + l) w + b, with w and b along the run
template <bool STREAM, class T>
INLINE void row_apply(const T *x, T *y, i64 n, const Stat &q, const float *w, const float *b) {
    const vf H = all(q.hi), R = all(q.r), L = all(-q.lo * q.r);
    const auto value = [&](i64 i) {
        vf z = ((load(x + i) - H) * R + L) * load(w + i);
        return b ? z + load(b + i) : z;
    };
    const auto some = [&](i64 i, i64 k) {
        vf z = ((load(x + i, k) - H) * R + L) * load(w + i, k);
        store(y + i, b ? z + load(b + i, k) : z, k);
    };
    i64 i = 0;
    if (STREAM) {
        i = until_aligned(y);
        if (i > n) i = n;
        if (i) some(0, i);
    }
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        put<STREAM>(y + i, value(i));
        put<STREAM>(y + i + LANES, value(i + LANES));
    }
    for (; i + LANES <= n; i += LANES) put<STREAM>(y + i, value(i));
    if (i < n) some(i, n - i);
}

// s1 = sum dy w, s2 = sum dy w (x - hi); w may be null
template <class T>
INLINE void run_pull(const T *x, const T *dy, const float *w, i64 n, float hi, double &s1, double &s2) {
    const vf H = all(hi);
    for (i64 begin = 0; begin < n; begin += BLOCK) {
        const i64 end = begin + BLOCK < n ? begin + BLOCK : n;
        vf a{}, b{}, c{}, d{}, e{}, f{}, g{}, h{};
        i64 i = begin;
        for (; i + 4 * LANES <= end; i += 4 * LANES) {
            vf p = load(dy + i), q = load(dy + i + LANES), r = load(dy + i + 2 * LANES), s = load(dy + i + 3 * LANES);
            if (w) {
                p *= load(w + i), q *= load(w + i + LANES);
                r *= load(w + i + 2 * LANES), s *= load(w + i + 3 * LANES);
            }
            a += p, b += q, c += r, d += s;
            e += p * (load(x + i) - H), f += q * (load(x + i + LANES) - H);
            g += r * (load(x + i + 2 * LANES) - H), h += s * (load(x + i + 3 * LANES) - H);
        }
        for (; i < end; i += LANES) {
            const i64 k = end - i < LANES ? end - i : LANES;
            vf p = load(dy + i, k);
            if (w) p *= load(w + i, k);
            a += p, e += p * (load(x + i, k) - H);
        }
        s1 += sum((a + b) + (c + d));
        s2 += sum((e + f) + (g + h));
    }
}

// dx = dy P + (x - hi) Q + R for a whole run
template <bool STREAM, class T>
INLINE void run_descend(const T *x, const T *dy, T *dx, i64 n, float hi, float p, float q, float r) {
    const vf H = all(hi), P = all(p), Q = all(q), R = all(r);
    i64 i = 0;
    if (STREAM) {
        i = until_aligned(dx);
        if (i > n) i = n;
        if (i) store(dx, load(dy, i) * P + ((load(x, i) - H) * Q + R), i);
    }
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        for (int v = 0; v < 2; ++v)
            put<STREAM>(dx + i + v * LANES, load(dy + i + v * LANES) * P + ((load(x + i + v * LANES) - H) * Q + R));
    for (; i + LANES <= n; i += LANES) put<STREAM>(dx + i, load(dy + i) * P + ((load(x + i) - H) * Q + R));
    if (i < n) store(dx + i, load(dy + i, n - i) * P + ((load(x + i, n - i) - H) * Q + R), n - i);
}

} // namespace
