// Loops along one contiguous run of memory whose elements share a statistic.
#pragma once

#include "norm.hpp"
#include "simd.hpp"

#include <algorithm>
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
};

constexpr i64 CHUNK = 4096; // elements that surely stay in the first cache between two looks
constexpr i64 BLOCK = 512;  // elements summed in float before the sum goes to double: 4096 cost half the digits

// What is known about a group while its pieces are looked at: sums about a guess of the mean.
//
// One look is enough where the guess is within 2 spreads of a piece's mean: the sums are then 5 times as large as
// about the mean itself, and lose 2 or 3 of float's 24 bits. Else the piece is looked at again, about its own mean.
struct Look {
    Moments before; // pieces seen about other guesses
    double n = 0, s1 = 0, s2 = 0;
    float about = 0;
    bool guessed = false;

    static INLINE bool missed(double n, double s1, double s2) { return s1 * s1 * 5 > n * s2 * 4; }
    void move(double by) {
        flush();
        about = float(double(about) + by);
    }
    void flush() {
        before.add(last());
        n = s1 = s2 = 0;
    }
    INLINE Moments last() const {
        if (!(n > 0)) return {};
        const double off = s1 / n;
        return {n, double(about) + off, s2 - s1 * off};
    }
    INLINE Moments moments(bool center) {
        if (!center) return {n, 0, s2};
        if (before.n == 0) return last();
        flush();
        return before;
    }
};

// s1 = sum (x - m), s2 = sum (x - m)^2 of `count` runs of n, `step` apart
template <class T> INLINE void run_spread(const T *x, i64 n, i64 count, i64 step, float m, double &s1, double &s2) {
    const vf M = all(m);
    vf a{}, b{}, c{}, d{}, e{}, f{}, g{}, h{};
    i64 summed = 0;
    for (i64 r = 0; r < count; ++r, x += step)
        for (i64 begin = 0; begin < n; begin += BLOCK) {
            const i64 end = std::min(begin + BLOCK, n);
            i64 i = begin;
            for (; i + 4 * LANES <= end; i += 4 * LANES) {
                const vf u = load(x + i) - M, v = load(x + i + LANES) - M;
                const vf w = load(x + i + 2 * LANES) - M, z = load(x + i + 3 * LANES) - M;
                a += u, b += v, c += w, d += z;
                e += u * u, f += v * v, g += w * w, h += z * z;
            }
            for (; i + LANES <= end; i += LANES) {
                const vf u = load(x + i) - M;
                a += u, e += u * u;
            }
            if (i < end) {
                const vf u = keep(load(x + i, end - i) - M, end - i);
                b += u, f += u * u;
            }
            if ((summed += end - begin) + std::min(n, BLOCK) <= BLOCK && r + 1 < count) continue;
            s1 += sum((a + b) + (c + d)), s2 += sum((e + f) + (g + h));
            a = b = c = d = e = f = g = h = vf{};
            summed = 0;
        }
}

// The same of what counts: k = sum w, s1 = sum w (x - m), s2 = sum w (x - m)^2
template <class T>
INLINE void run_weighed(const T *x, const float *w, i64 n, float m, double &k, double &s1, double &s2) {
    const vf M = all(m);
    for (i64 begin = 0; begin < n; begin += BLOCK) {
        const i64 end = std::min(begin + BLOCK, n);
        vf a{}, b{}, c{};
        for (i64 i = begin; i < end; i += LANES) {
            const i64 left = std::min<i64>(end - i, LANES);
            const vf W = left == LANES ? load(w + i) : load(w + i, left);
            const vf u = only(W, (left == LANES ? load(x + i) : load(x + i, left)) - M), wu = W * u;
            a += W, b += wu, c += wu * u;
        }
        k += sum(a), s1 += sum(b), s2 += sum(c);
    }
}

// A first guess: the mean of four elements.
template <class T> INLINE float guess(const T *x, i64 n) {
    if (n < 4) return single(x[0]);
    return ((single(x[0]) + single(x[1])) + (single(x[2]) + single(x[3]))) * 0.25f;
}

// Add n elements of weight `each`, or of the weights w; of `count` such runs, `step` apart, if there are no weights.
template <class T>
INLINE void run_look(const T *x, i64 n, bool center, const float *w, float each, Look &look, i64 count = 1,
                     i64 step = 0) {
    if (!w && each == 0.f) return;
    if (center && !look.guessed && !w) {
        look.about = guess(x, n);
        look.guessed = true;
    }
    const i64 some = std::max<i64>(1, CHUNK / n);
    for (i64 r = 0; r < count; r += some)
        for (i64 i = 0; i < n; i += CHUNK) {
            const i64 part = std::min(n - i, CHUNK), runs = std::min(some, count - r);
            for (int again = 0;; ++again) {
                double k = 0, s1 = 0, s2 = 0;
                if (w)
                    run_weighed(x + i, w + i, part, look.about, k, s1, s2);
                else
                    run_spread(x + r * step + i, part, runs, step, look.about, s1, s2), k = double(part * runs);
                if (center && !again && k > 0 && (!look.guessed || Look::missed(k, s1, s2))) {
                    look.move(s1 / k);
                    look.guessed = true;
                    continue;
                }
                if (!w && each != 1.f) k *= each, s1 *= each, s2 *= each;
                look.n += k, look.s1 += s1, look.s2 += s2;
                break;
            }
        }
}

// Short rows go PACK at a time: while one waits for its sums, square root and quotient, the others fill the time.
constexpr int PACK = 4;
constexpr i64 SHORT = 32 * LANES; // elements of the longest: as many per lane as a longer run's sums take in

// f(i, k): the next k elements from i on, whole vectors first
template <class F> INLINE void by_vectors(i64 n, const F &f) {
    i64 i = 0;
    for (; i + LANES <= n; i += LANES) f(i, i64(LANES));
    if (i < n) f(i, n - i);
}

// run_spread of PACK rows of n, one after the other
template <class T> INLINE void pack_spread(const T *x, i64 n, const float *m, double *s1, double *s2) {
    vf a[PACK]{}, e[PACK]{};
    by_vectors(n, [&](i64 i, i64 k) {
        for (int r = 0; r < PACK; ++r) {
            const vf v = take(x + r * n + i, k) - all(m[r]), u = k == LANES ? v : keep(v, k);
            a[r] += u, e[r] += u * u;
        }
    });
    for (int r = 0; r < PACK; ++r) s1[r] = sum(a[r]), s2[r] = sum(e[r]);
}

// row_apply of PACK rows with one gain, one row after the other
template <bool STREAM, class T>
INLINE void pack_apply(const T *x, T *y, i64 n, const Stat *q, const float *w, const float *b) {
    vf shift[PACK]; // y = ((x - hi) rate + shift) w + b
    for (int r = 0; r < PACK; ++r) shift[r] = all(-q[r].shift * q[r].rate);
    by_vectors(n, [&](i64 i, i64 k) {
        const vf g = w ? take(w + i, k) : all(1.f), o = b ? take(b + i, k) : vf{};
        for (int r = 0; r < PACK; ++r) {
            const i64 at = r * n + i;
            const vf z = ((take(x + at, k) - all(q[r].hi)) * all(q[r].rate) + shift[r]) * g;
            give<STREAM>(y + at, b ? z + o : z, k);
        }
    });
}

// s = x + other, and on from there
template <class T> INLINE void run_add(const T *x, const T *other, T *s, i64 n) {
    i64 i = 0;
    for (; i + LANES <= n; i += LANES) store(s + i, load(x + i) + load(other + i));
    if (i < n) store(s + i, load(x + i, n - i) + load(other + i, n - i), n - i);
}

// y = (x - hi) s + t for a whole run; what is no number and was not measured becomes NaN
template <bool STREAM, class T>
INLINE void run_apply(const T *x, T *y, i64 n, float hi, float s, float t, bool weighed) {
    const vf H = all(hi), S = all(s), B = all(t);
    i64 i = 0;
    if (weighed) {
        for (; i < n; i += LANES) {
            const i64 k = std::min<i64>(n - i, LANES);
            const vf v = load(x + i, k);
            store(y + i, ((v - H) * S + B) + (v - v), k);
        }
        return;
    }
    if (STREAM) {
        i = std::min(until_aligned(y), n);
        if (i) store(y, (load(x, i) - H) * S + B, i);
    }
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int v = 0; v < 4; ++v) put<STREAM>(y + i + v * LANES, (load(x + i + v * LANES) - H) * S + B);
    for (; i + LANES <= n; i += LANES) put<STREAM>(y + i, (load(x + i) - H) * S + B);
    if (i < n) store(y + i, (load(x + i, n - i) - H) * S + B, n - i);
}

// y = ((x - hi) rate + t) w + b, with w and b along the run; either may be null
template <bool STREAM, bool BIAS, class T>
INLINE void row_apply(const T *x, T *y, i64 n, const Stat &q, const float *w, const float *b, bool weighed) {
    const vf H = all(q.hi), R = all(q.rate), L = all(-q.shift * q.rate);
    const auto value = [&](vf v, vf g, vf o) {
        const vf z = ((v - H) * R + L) * g;
        return BIAS ? z + o : z;
    };
    const auto some = [&](i64 i, i64 k) {
        const vf v = load(x + i, k), z = value(v, w ? load(w + i, k) : all(1.f), BIAS ? load(b + i, k) : vf{});
        store(y + i, weighed ? z + (v - v) : z, k);
    };
    i64 i = 0;
    if (weighed || !w) {
        for (; i < n; i += LANES) some(i, std::min<i64>(n - i, LANES));
        return;
    }
    const auto whole = [&](i64 at) { put<STREAM>(y + at, value(load(x + at), load(w + at), BIAS ? load(b + at) : vf{})); };
    if (STREAM) {
        i = std::min(until_aligned(y), n);
        if (i) some(0, i);
    }
    for (; i + 2 * LANES <= n; i += 2 * LANES) whole(i), whole(i + LANES);
    for (; i + LANES <= n; i += LANES) whole(i);
    if (i < n) some(i, n - i);
}

// s1 += sum dy w, s2 += sum dy w (x - hi), of `count` runs of n, `step` apart; w may be null. Where `weighed`, what is
// no number counts as 0.
template <class T>
INLINE void run_pull(const T *x, const T *dy, const float *w, i64 n, i64 count, i64 step, float hi, bool weighed,
                     double &s1, double &s2) {
    const vf H = all(hi);
    vf a{}, b{}, c{}, d{}, e{}, f{}, g{}, h{};
    i64 summed = 0;
    for (i64 r = 0; r < count; ++r, x += step, dy += step)
        for (i64 begin = 0; begin < n; begin += BLOCK) {
            const i64 end = std::min(begin + BLOCK, n);
            i64 i = begin;
            for (; !weighed && i + 4 * LANES <= end; i += 4 * LANES) {
                vf p = load(dy + i), q = load(dy + i + LANES), r = load(dy + i + 2 * LANES), s = load(dy + i + 3 * LANES);
                if (w) {
                    p *= load(w + i), q *= load(w + i + LANES);
                    r *= load(w + i + 2 * LANES), s *= load(w + i + 3 * LANES);
                }
                a += p, b += q, c += r, d += s;
                e += p * (load(x + i) - H), f += q * (load(x + i + LANES) - H);
                g += r * (load(x + i + 2 * LANES) - H), h += s * (load(x + i + 3 * LANES) - H);
            }
            const auto one = [&](vf p, vf v) {
                if (weighed) p = (vf)((vi)p & (vi)((v - v) == 0.f)), v = finite(v);
                a += p, e += p * (v - H);
            };
            for (; i + LANES <= end; i += LANES) one(w ? load(dy + i) * load(w + i) : load(dy + i), load(x + i));
            if (const i64 k = end - i; k > 0)
                one(w ? load(dy + i, k) * load(w + i, k) : load(dy + i, k), load(x + i, k));
            if ((summed += end - begin) + std::min(n, BLOCK) <= BLOCK && r + 1 < count) continue;
            s1 += sum((a + b) + (c + d)), s2 += sum((e + f) + (g + h));
            a = b = c = d = e = f = g = h = vf{};
            summed = 0;
        }
}

// run_pull of PACK rows, `step` apart
template <class T>
INLINE void pack_pull(const T *x, const T *dy, const float *w, i64 n, i64 step, const float *hi, double *s1, double *s2) {
    vf a[PACK]{}, e[PACK]{};
    by_vectors(n, [&](i64 i, i64 k) {
        const vf g = w ? take(w + i, k) : all(1.f);
        for (int r = 0; r < PACK; ++r) {
            const vf p = take(dy + r * step + i, k) * g;
            a[r] += p, e[r] += p * (take(x + r * step + i, k) - all(hi[r]));
        }
    });
    for (int r = 0; r < PACK; ++r) s1[r] = sum(a[r]), s2[r] = sum(e[r]);
}

// dx = dy P + m ((x - hi) Q + R) for a whole run, m the weights or 1
template <bool STREAM, class T>
INLINE void run_descend(const T *x, const T *dy, T *dx, i64 n, float hi, float p, float q, float r, bool weighed,
                        const float *m, float each) {
    const vf H = all(hi), P = all(p), Q = all(q), R = all(r);
    i64 i = 0;
    if (weighed) {
        for (; i < n; i += LANES) {
            const i64 k = std::min<i64>(n - i, LANES);
            const vf v = load(x + i, k), M = m ? load(m + i, k) : all(each);
            const vf down = load(dy + i, k) * P + M * (only(M, v - H) * Q + R);
            store(dx + i, (vf)((vi)down & (vi)((v - v) == 0.f)), k);
        }
        return;
    }
    if (STREAM) {
        i = std::min(until_aligned(dx), n);
        if (i) store(dx, load(dy, i) * P + ((load(x, i) - H) * Q + R), i);
    }
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        for (int v = 0; v < 2; ++v)
            put<STREAM>(dx + i + v * LANES, load(dy + i + v * LANES) * P + ((load(x + i + v * LANES) - H) * Q + R));
    for (; i + LANES <= n; i += LANES) put<STREAM>(dx + i, load(dy + i) * P + ((load(x + i) - H) * Q + R));
    if (i < n) store(dx + i, load(dy + i, n - i) * P + ((load(x + i, n - i) - H) * Q + R), n - i);
}

} // namespace
