// What a normalization is, once axes have become extents: the contract between the binding and the kernels.
//
//     memory order      A kept | B pooled | C kept | P, S pooled              any extent may be 1
//     group of (a, b, c, p, s)     a C + c
//     gain of it                   a ga + c gc + p gp + s gs                  gs is 0 or 1
//
//     layer norm        A = rows, S = width, gs = 1
//     batch norm        NCHW: B = N, C, S = HW, gc = 1        channels_last: B = NHW, C, gc = 1
//     group norm        NCHW: A = N, C = groups, P = width, S = HW, gc = width, gp = 1
//                       channels_last: A = N, B = HW, C = groups, S = width, gc = width, gs = 1
//     instance norm     NCHW: A = N, C, S = HW, gc = 1        channels_last: A = N, B = HW, C, gc = 1
#pragma once

#include <cstdint>

struct Layout {
    std::int64_t A, B, C, P, S;
    std::int64_t ga, gc, gp, gs;

    std::int64_t groups() const { return A * C; }
    std::int64_t pool() const { return B * P * S; }
    std::int64_t gain(std::int64_t a, std::int64_t c, std::int64_t p, std::int64_t s) const {
        return a * ga + c * gc + p * gp + s * gs;
    }
    std::int64_t gains() const { // one past the largest
        return 1 + (A - 1) * ga + (C - 1) * gc + (P - 1) * gp + (S - 1) * gs;
    }
};

// Of one group, as applied: y = ((x - hi) - lo) r. The mean is hi + lo, both float, because one float is not enough.
struct Stat {
    float hi, lo, r;
};

struct Call {
    Layout at;
    double eps;
    bool gain;   // is there a weight or a bias
    bool center; // measure about the mean, or about 0
    bool fixed;  // the Stats are given and constant: nothing is measured, no gradient flows through them
    bool stream; // write past the cache
    int threads;
};

// One per instruction set. x, dy, y and dx are float in ..32 and bfloat16 in ..16; mean and m2 (for sources that
// remember), weight, bias, dweight and dbias may be null.
struct Kernels {
    const char *name;
    using Forward = void(const Call &, const void *x, const float *weight, const float *bias, void *y, Stat *stats,
                         double *mean, double *m2);
    using Backward = void(const Call &, const void *x, const void *dy, const float *weight, const Stat *stats, void *dx,
                          float *dweight, float *dbias);
    Forward *forward32, *forward16;
    Backward *backward32, *backward16;
};
