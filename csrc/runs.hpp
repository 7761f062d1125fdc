// Loops along one contiguous run of memory whose elements share a statistic.
#pragma once

#include "norm.hpp"
#include "vectors.hpp"

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

// f(i, vectors, k): the next k elements from i on; two whole vectors, one, and the rest of one
template <class F> INLINE void by_vectors(i64 n, const F &f) {
    i64 i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) f(i, Vectors<2>{}, i64(LANES));
    for (; i + LANES <= n; i += LANES) f(i, Vectors<1>{}, i64(LANES));
    if (i < n) f(i, Vectors<1>{}, n - i);
}

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
                vf u[4];
                loads(x + i, u);
                for (vf &of : u) of -= M;
                a += u[0], b += u[1], c += u[2], d += u[3];
                e += u[0] * u[0], f += u[1] * u[1], g += u[2] * u[2], h += u[3] * u[3];
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
        vf a[2]{}, b[2]{}, c[2]{};
        by_vectors(end - begin, [&](i64 i, auto vectors, i64 lanes) {
            constexpr int N = vectors.count;
            vf W[N], u[N];
            takes(x + begin + i, lanes, u), beside<T>(w + begin + i, lanes, W);
            for (int v = 0; v < N; ++v) {
                const vf d = only(W[v], u[v] - M), wd = W[v] * d;
                a[v] += W[v], b[v] += wd, c[v] += wd * d;
            }
        });
        k += sum(a[0] + a[1]), s1 += sum(b[0] + b[1]), s2 += sum(c[0] + c[1]);
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

// run_spread of PACK rows of n, one after the other; s1 only where they are centred
template <bool CENTER, class T> INLINE void pack_spread(const T *x, i64 n, const float *m, double *s1, double *s2) {
    vf a[PACK]{}, e[PACK]{};
    by_vectors(n, [&](i64 i, auto vectors, i64 k) {
        constexpr int N = vectors.count;
        for (int r = 0; r < PACK; ++r) {
            vf u[N];
            takes(x + r * n + i, k, u);
            for (vf &of : u) of -= all(m[r]), of = k == LANES ? of : keep(of, k), e[r] += of * of;
            for (int v = 0; CENTER && v < N; ++v) a[r] += u[v];
        }
    });
    if (CENTER) sums(a, s1);
    sums(e, s2);
}

// row_apply of PACK rows with one gain, one row after the other
template <bool STREAM, class T>
INLINE void pack_apply(const T *x, T *y, i64 n, const Stat *q, const float *w, const float *b) {
    vf shift[PACK]; // y = ((x - hi) rate + shift) w + b
    for (int r = 0; r < PACK; ++r) shift[r] = all(-q[r].shift * q[r].rate);
    by_vectors(n, [&](i64 i, auto vectors, i64 k) {
        constexpr int N = vectors.count;
        vf g[N], o[N]{};
        for (vf &of : g) of = all(1.f);
        if (w) beside<T>(w + i, k, g);
        if (b) beside<T>(b + i, k, o);
        for (int r = 0; r < PACK; ++r) {
            vf z[N];
            fetch<N * LANES>(x + (r + PACK) * n, i), takes(x + r * n + i, k, z);
            for (int v = 0; v < N; ++v) {
                z[v] = ((z[v] - all(q[r].hi)) * all(q[r].rate) + shift[r]) * g[v];
                if (b) z[v] += o[v];
            }
            gives<STREAM>(y + r * n + i, z, k);
        }
    });
}

// s = x + other, and on from there
template <class T> INLINE void run_add(const T *x, const T *other, T *s, i64 n) {
    i64 i = 0;
    for (; i + LANES <= n; i += LANES) store(s + i, load(x + i) + load(other + i));
    if (i < n) store(s + i, load(x + i, n - i) + load(other + i, n - i), n - i);
}

// y = (x - hi) s + t for a whole run, while `next` is on its way; WEIGHED: what is no number, and so was not measured,
// becomes NaN
template <bool STREAM, bool WEIGHED, class T>
INLINE void run_apply(const T *x, const T *next, T *y, i64 n, float hi, float s, float t) {
    const vf H = all(hi), S = all(s), B = all(t);
    const auto value = [&](vf v) { return WEIGHED ? ((v - H) * S + B) + (v - v) : (v - H) * S + B; };
    i64 i = 0;
    if (STREAM) {
        const i64 first = std::min(until_aligned(y), n);
        for (i64 k; i < first; i += k) {
            k = std::min<i64>(first - i, LANES);
            store(y + i, value(load(x + i, k)), k);
        }
    }
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        if (next != x) fetch<4 * LANES>(next, i);
        vf u[4];
        loads(x + i, u);
        for (vf &of : u) of = value(of);
        puts<STREAM>(y + i, u);
    }
    for (; i + LANES <= n; i += LANES) put<STREAM>(y + i, value(load(x + i)));
    if (i < n) store(y + i, value(load(x + i, n - i)), n - i);
}

// y = ((x - hi) rate + t) w + b, with w and b along the run, either null; meanwhile `next` is on its way
template <bool STREAM, bool BIAS, bool WEIGHED, class T>
INLINE void row_apply(const T *x, const T *next, T *y, i64 n, const Stat &q, const float *w, const float *b) {
    const vf H = all(q.hi), R = all(q.rate), L = all(-q.shift * q.rate);
    const auto value = [&](vf v, vf g, vf o) {
        const vf z = ((v - H) * R + L) * g, at = BIAS ? z + o : z;
        return WEIGHED ? at + (v - v) : at;
    };
    const auto some = [&](i64 i, i64 k) {
        store(y + i, value(load(x + i, k), w ? load(w + i, k) : all(1.f), BIAS ? load(b + i, k) : vf{}), k);
    };
    i64 i = 0;
    if (!w) {
        for (; i < n; i += LANES) some(i, std::min<i64>(n - i, LANES));
        return;
    }
    for (; i + 2 * LANES <= n; i += 2 * LANES) { // rows that are streamed begin aligned
        if (next != x) fetch<2 * LANES>(next, i);
        vf v[2], g[2], o[2]{};
        loads(x + i, v), beside<T>(w + i, g);
        if (BIAS) beside<T>(b + i, o);
        for (int k = 0; k < 2; ++k) v[k] = value(v[k], g[k], o[k]);
        puts<STREAM>(y + i, v);
    }
    for (; i + LANES <= n; i += LANES) put<STREAM>(y + i, value(load(x + i), load(w + i), BIAS ? load(b + i) : vf{}));
    if (i < n) some(i, n - i);
}

// s1 += sum dy w, s2 += sum dy w (x - hi), of `count` runs of n, `step` apart; w may be null. WEIGHED: what is no number
// counts as 0. dx is where they will be written through the cache; or x, and then nothing is claimed.
template <bool WEIGHED, class T>
INLINE void run_pull(const T *x, const T *dy, const T *dx, const float *w, i64 n, i64 count, i64 step, float hi,
                     double &s1, double &s2) {
    const vf H = all(hi);
    const auto pair = [](vf &p, vf &v) {
        if (WEIGHED) p = (vf)((vi)p & (vi)((v - v) == 0.f)), v = finite(v);
    };
    vf a{}, b{}, c{}, d{}, e{}, f{}, g{}, h{};
    i64 summed = 0;
    for (i64 r = 0; r < count; ++r, x += step, dy += step, dx += step)
        for (i64 begin = 0; begin < n; begin += BLOCK) {
            const i64 end = std::min(begin + BLOCK, n);
            i64 i = begin;
            for (; i + 4 * LANES <= end; i += 4 * LANES) {
                if (dx != x) claim<4 * LANES>(dx, i);
                vf p[4], u[4];
                loads(dy + i, p), loads(x + i, u);
                if (w) {
                    vf by[4];
                    beside<T>(w + i, by);
                    for (int k = 0; k < 4; ++k) p[k] *= by[k];
                }
                for (int k = 0; k < 4; ++k) pair(p[k], u[k]);
                a += p[0], b += p[1], c += p[2], d += p[3];
                e += p[0] * (u[0] - H), f += p[1] * (u[1] - H), g += p[2] * (u[2] - H), h += p[3] * (u[3] - H);
            }
            const auto one = [&](vf p, vf v) {
                pair(p, v);
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
INLINE void pack_pull(const T *x, const T *dy, const T *dx, const float *w, i64 n, i64 step, const float *hi,
                      double *s1, double *s2) {
    vf a[PACK]{}, e[PACK]{};
    by_vectors(n, [&](i64 i, auto vectors, i64 k) {
        constexpr int N = vectors.count;
        vf g[N];
        for (vf &of : g) of = all(1.f);
        if (w) beside<T>(w + i, k, g);
        for (int r = 0; r < PACK; ++r) {
            vf p[N], u[N];
            if (dx != x) claim<N * LANES>(dx + r * step, i);
            takes(dy + r * step + i, k, p), takes(x + r * step + i, k, u);
            for (int v = 0; v < N; ++v) p[v] *= g[v], a[r] += p[v], e[r] += p[v] * (u[v] - all(hi[r]));
        }
    });
    for (int r = 0; r < PACK; ++r) s1[r] = sum(a[r]), s2[r] = sum(e[r]);
}

// dx = dy P + m ((x - hi) Q + R) for a whole run, while those that lie `next` ahead are on their way; m: where WEIGHED
// the weights, or null and all of them `each`; else 1
template <bool STREAM, bool WEIGHED, class T>
INLINE void run_descend(const T *x, const T *dy, T *dx, i64 next, i64 n, float hi, float p, float q, float r,
                        const float *m, float each) {
    const vf H = all(hi), P = all(p), Q = all(q), R = all(r);
    const auto value = [&](vf d, vf u, vf M) {
        if (!WEIGHED) return d * P + ((u - H) * Q + R);
        const vf down = d * P + M * (only(M, u - H) * Q + R);
        return (vf)((vi)down & (vi)((u - u) == 0.f));
    };
    const auto some = [&](i64 i, i64 k) {
        store(dx + i, value(load(dy + i, k), load(x + i, k), WEIGHED && m ? load(m + i, k) : all(each)), k);
    };
    i64 i = 0;
    if (STREAM) {
        const i64 first = std::min(until_aligned(dx), n);
        for (i64 k; i < first; i += k) {
            k = std::min<i64>(first - i, LANES);
            some(i, k);
        }
    }
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        if (next) fetch<2 * LANES>(x + next, i), fetch<2 * LANES>(dy + next, i);
        vf d[2], u[2], M[2]{all(each), all(each)};
        loads(dy + i, d), loads(x + i, u);
        if (WEIGHED && m) beside<T>(m + i, M);
        for (int k = 0; k < 2; ++k) d[k] = value(d[k], u[k], M[k]);
        puts<STREAM>(dx + i, d);
    }
    for (; i < n; i += LANES) {
        const i64 k = std::min<i64>(n - i, LANES);
        if (k == LANES)
            put<STREAM>(dx + i, value(load(dy + i), load(x + i), WEIGHED && m ? load(m + i) : all(each)));
        else
            some(i, k);
    }
}

} // namespace
