// What the three ways through memory have in common: statistics from moments, and how the work is divided.
#pragma once

#include "norm.hpp"
#include "runs.hpp"
#include "team.hpp"

#include <type_traits>
#include <vector>

namespace {

using std::vector;

constexpr i64 SERIAL = 16384; // elements below which waking a second thread costs more than it saves

int threads_for(const Call &call) { return call.at.elements() < SERIAL ? 1 : call.threads; }

// Is a group to be cut in pieces, for want of groups?
bool cut(i64 groups, int threads) { return threads > 1 && groups < 2 * threads && groups % threads != 0; }

double given(const Call &call, const void *of, i64 g) {
    return call.wide ? static_cast<const double *>(of)[g] : double(static_cast<const float *>(of)[g]);
}

double within(double least, double x, double most) { return x < least ? least : x > most ? most : x; }

INLINE Stat stat(const Call &call, double mean, double var, double share) {
    const double r = 1.0 / std::sqrt(var + call.eps) + 0.0 * var; // overflow makes NaN, not 0
    const float hi = call.center ? float(mean) : 0.f, lo = call.center ? float(mean - hi) : 0.f;
    return {hi, lo, float(r), lo, float(r), float(share)};
}

// f(is anything weighed), so that loops are compiled for both
template <class F> INLINE void weighing(const Call &call, const F &f) {
    call.where ? f(std::true_type{}) : f(std::false_type{});
}

// Constants that a source remembers.
Stat constant(const Call &call, i64 g) { return stat(call, given(call, call.mean, g), given(call, call.var, g), 0); }

// What was measured, told and made a statistic; of a group nobody was measured in, the identity. share: 1 / m.n
//
// Pulled: z = xhat ratio + off, which brings the batch's statistics to those remembered, as far as the bounds let it.
INLINE Stat settled(const Call &call, const Forward &f, const Moments &m, i64 g, double share) {
    if (f.mean) f.mean[g] = m.mean, f.m2[g] = m.m2;
    if (f.count) f.count[g] = m.n;
    if (!(m.n > 0)) return {0.f, 0.f, 1.f, 0.f, 1.f, 0.f};
    Stat s = stat(call, m.mean, m.m2 * share, share);
    if (call.trust == Trust::pulled) {
        const double own = std::sqrt(m.m2 / m.n + call.eps), sigma = std::sqrt(given(call, call.var, g) + call.eps);
        const double ratio = within(1.0 / call.r_max, own / sigma, call.r_max);
        const double off = within(-call.d_max, (m.mean - given(call, call.mean, g)) / sigma, call.d_max);
        s.rate = float(ratio / own);
        s.shift = call.center ? float((m.mean - double(s.hi)) - off * own / ratio) : 0.f;
    }
    return s;
}
INLINE Stat settled(const Call &call, const Forward &f, const Moments &m, i64 g) {
    return settled(call, f, m, g, 1.0 / m.n);
}

// How far ahead of a group of n is what is fetched while it is written: the next group; or 0, where the processor
// itself reads on. It does along one long run, and no fetch may push that out of the first cache.
template <class T> i64 ahead_of(i64 n, bool one_run) { return one_run && n * i64(sizeof(T)) > 8192 ? 0 : n; }

// May runs of n go PACK at a time?
bool packs(const Call &call, i64 n) { return n <= SHORT && !call.where && call.trust == Trust::through; }

// On the way back too? A processor reads ahead along few runs; x, dy and dx of PACK are too many, unless they are so
// short that it does not come to that, or in the cache.
template <class T> bool packs_back(const Call &call, i64 n) {
    constexpr i64 size = sizeof(T);
    return packs(call, n) && (n * size <= 512 || call.at.elements() * size <= 512 << 10);
}

// Statistics of PACK groups of one run each, from i on; x is the first of n elements of the first.
template <class T> INLINE void settle_pack(const Call &call, const Forward &f, const T *x, i64 n, i64 i) {
    const double share = 1.0 / double(n);
    float about[PACK]{};
    double s1[PACK]{}, s2[PACK];
    for (int k = 0; call.center && k < PACK; ++k) about[k] = guess(x + k * n, n);
    call.center ? pack_spread<true>(x, n, about, s1, s2) : pack_spread<false>(x, n, about, s1, s2);
    Moments m[PACK];
    for (int k = 0; k < PACK; ++k) {
        const double off = call.center ? s1[k] * share : 0;
        m[k] = {double(n), double(about[k]) + off, s2[k] - s1[k] * off};
    }
    for (int k = 0; call.center && k < PACK; ++k) {
        if (!Look::missed(double(n), s1[k], s2[k])) continue;
        Look again;
        run_look(x + k * n, n, true, nullptr, 1.f, again);
        m[k] = again.moments(true);
    }
    for (int k = 0; k < PACK; ++k) f.stats[i + k] = settled(call, f, m[k], i + k, share);
}

// dx = dy (gain rate) + m ((x - hi) q + r), from the group's means of gain dy and gain dy xhat
struct Slope {
    float hi, rate, q, r;
};
Slope slope(const Call &call, const Stat &s, double sum, double sum_xhat) {
    const double c1 = call.center ? sum * s.share : 0, c2 = sum_xhat * s.share;
    const double rate = s.rate, q = -rate * double(s.r) * c2;
    return {s.hi, s.rate, float(q), float(-rate * c1 - q * s.lo)};
}

} // namespace
