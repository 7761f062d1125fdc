// What a normalization is, once axes have become extents: the contract between the binding and the kernels.
//
//     memory order      A kept | B, T pooled | C kept | P, S pooled           any extent may be 1
//     group of (a, b, t, c, p, s)     a C + c, or label[b] C + c where B is labelled (then A = 1)
//     gain of it        a ga + b gb + c gc + p gp + s gs                      gs is 0 or 1
//     weight of it      a wa + b wb + t wt + c wc + p wp + s ws               how much it counts in its statistic
//
//     layer norm        A = rows, S = width, gs = 1
//     batch norm        NCHW: B = N, C, S = HW, gc = 1        channels_last: B = NHW, C, gc = 1
//     conditional       the same with gb = C (channels_last: B = N, T = HW)
//     by domain         the same with a label for each b
//     group norm        NCHW: A = N, C = groups, P = width, S = HW, gc = width, gp = 1
//                       channels_last: A = N, B = HW, C = groups, S = width, gc = width, gs = 1
//     instance norm     NCHW: A = N, C, S = HW, gc = 1        channels_last: A = N, B = HW, C, gc = 1
#pragma once

#include <cstdint>

struct Layout {
    std::int64_t A, B, T, C, P, S;
    std::int64_t ga, gb, gc, gp, gs;
    std::int64_t wa, wb, wt, wc, wp, ws;
    std::int64_t labels; // how many values a label takes, or 0

    std::int64_t tables() const { return labels ? labels : A; } // groups come in tables of C
    std::int64_t groups() const { return tables() * C; }
    std::int64_t elements() const { return A * B * T * C * P * S; }
    std::int64_t gain(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t p, std::int64_t s) const {
        return a * ga + b * gb + c * gc + p * gp + s * gs;
    }
    std::int64_t gains() const { return 1 + gain(A - 1, B - 1, C - 1, P - 1, S - 1); } // one past the largest
};

// Of one group. As measured: xhat = ((x - hi) - lo) r; the mean is hi + lo because one float is not enough.
// As applied: y = ((x - hi) - shift) rate; the same, unless a source pulls it elsewhere.
struct Stat {
    float hi, lo, r, shift, rate;
    float share; // 1 / how much was measured; 0 where nothing was, and then no gradient flows through hi, lo and r
};

enum class Trust { through, fixed, pulled };

struct Call {
    Layout at;
    double eps;
    bool gain;   // is there a weight or a bias
    bool center; // measure about the mean, or about 0
    bool stream; // write past the cache
    Trust trust;
    double r_max, d_max; // how far `pulled` lets the batch's scale and mean leave those that are given
    int threads;
    const float *where;        // weights, or null
    const std::int64_t *label; // of each b, or null
    const void *mean, *var;    // what a source remembers, of each group: constants (fixed), or a reference (pulled)
    bool wide;                 // are those double
};

// x [+ other -> sum] -> y and, for each group, its Stat and moments; whatever is null is left out.
struct Forward {
    const void *x, *other;
    const float *weight, *bias;
    void *sum, *y;
    Stat *stats;
    double *mean, *m2, *count;
};

// dy -> dx [+ dsum]; without dx only the gain's gradient
struct Backward {
    const void *x, *dy, *dsum;
    const float *weight;
    const Stat *stats;
    void *dx;
    float *dweight, *dbias;
};

// One per instruction set, for float, bfloat16 and float16 elements.
struct Kernels {
    const char *name;
    void (*forward[3])(const Call &, const Forward &);
    void (*backward[3])(const Call &, const Backward &);
};
