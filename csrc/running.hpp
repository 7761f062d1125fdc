// The guarded update of running statistics:
//
//     b  <-  (1 - k) b + k x        x: this batch's mean or unbiased variance
//
// k is the momentum, or 1/t at the t-th update (NaN asks for this: it makes b the plain average of all batches).
// One non-finite moment and nothing moves but the count of skipped batches: a NaN that enters a running buffer
// never leaves it. A group nobody was measured in keeps what it had.
//
// Groups may come in several rows that count their own updates (domains): a row nobody was measured in counts none.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// 16-bit floats, as they lie in memory.
struct Brain {
    std::uint16_t bits = 0;
    static constexpr double most = 0x1.fep127;

    Brain() = default;
    static Brain rounded(double value) { // and what is no finite number stays so
        Brain b(value);
        if (!(std::fabs(value) <= double(std::numeric_limits<float>::max())))
            b.bits = value != value ? 0x7fc0 : value < 0 ? 0xff80 : 0x7f80;
        return b;
    }
    explicit Brain(double value) {
        const float f = float(value);
        std::uint32_t u = 0;
        std::memcpy(&u, &f, 4);
        bits = std::uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16); // to nearest, ties to even; never NaN here
    }
    explicit operator double() const {
        const std::uint32_t u = std::uint32_t(bits) << 16;
        float f;
        std::memcpy(&f, &u, 4);
        return f;
    }
};
struct Half {
    std::uint16_t bits = 0;
    static constexpr double most = 65504;

    Half() = default;
    static Half rounded(double value) {
        if (std::fabs(value) < 65520) return Half(value);
        Half h;
        h.bits = value != value ? 0x7e00 : value < 0 ? 0xfc00 : 0x7c00;
        return h;
    }
    explicit Half(double value) { // steps of 2^-24 below 2^-14, else 11 significant bits
        const double size = std::fabs(value);
        int e = 0;
        if (std::frexp(size, &e) == 0) e = -24;
        const int step = std::max(e - 11, -24);
        const double whole = std::nearbyint(std::ldexp(size, -step)); // 1024 .. 2048, or fewer where subnormal
        bits = std::uint16_t((std::signbit(value) ? 0x8000 : 0) + ((step + 24) << 10) + int(whole));
    }
    explicit operator double() const {
        const int e = (bits >> 10) & 31, m = bits & 1023;
        const double size = e == 31 ? (m ? NAN : INFINITY) : e ? std::ldexp(1024 + m, e - 25) : std::ldexp(m, -24);
        return bits & 0x8000 ? -size : size;
    }
};

struct Seen {
    const double *mean, *m2; // [groups]
    const double *counts;    // elements behind each mean, or null where it is `count` everywhere
    double count;
    std::int64_t groups, rows;
    double unbiased = 1.0 / std::max(count - 1.0, 1.0);

    template <bool COUNTS> double var(std::int64_t g) const {
        return COUNTS ? m2[g] / std::max(counts[g] - 1.0, 1.0) : m2[g] * unbiased;
    }
};

template <class T> constexpr double most_of() {
    if constexpr (std::numeric_limits<T>::is_specialized)
        return double(std::numeric_limits<T>::max());
    else
        return T::most;
}

// Will every new value be finite in a buffer of T? (A finite double may be an infinite float.)
template <class T, bool COUNTS> bool fits(const Seen &seen) {
    int ok = 1; // no early end: the loop is one of vectors
    for (std::int64_t g = 0; g < seen.groups; ++g)
        ok &= (std::fabs(seen.mean[g]) <= most_of<T>()) & (std::fabs(seen.var<COUNTS>(g)) <= most_of<T>());
    return ok;
}

template <bool COUNTS, class T> bool blend(T *mean, T *var, std::int64_t *steps, const Seen &seen, double momentum) {
    if (!fits<T, COUNTS>(seen)) return false;
    const std::int64_t width = seen.groups / seen.rows;
    for (std::int64_t row = 0, begin = 0, end = width; row < seen.rows; ++row, begin = end, end += width) {
        const auto some = [](double n) { return n > 0; };
        if (COUNTS && seen.rows > 1 && std::none_of(seen.counts + begin, seen.counts + end, some)) continue;
        ++steps[row];
        const double k = std::isnan(momentum) ? 1.0 / double(steps[row]) : momentum;
        // In double, rounded once on store: at k = 0.001 the float32 sum loses the step's last bits every batch.
        for (std::int64_t g = begin; g < end; ++g) {
            if (!COUNTS || seen.counts[g] > 0) mean[g] = static_cast<T>((1.0 - k) * double(mean[g]) + k * seen.mean[g]);
            if (!COUNTS || seen.counts[g] > 1)
                var[g] = static_cast<T>((1.0 - k) * double(var[g]) + k * seen.var<COUNTS>(g));
        }
    }
    return true;
}
template <class T> bool blend(T *mean, T *var, std::int64_t *steps, const Seen &seen, double momentum) {
    return seen.counts ? blend<true>(mean, var, steps, seen, momentum) : blend<false>(mean, var, steps, seen, momentum);
}
