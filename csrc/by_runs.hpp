// By runs: pooled elements in contiguous runs of one gain each (batch, group and instance norm of NCHW).
#pragma once

#include "runs.hpp"
#include "share.hpp"

#include <algorithm>

namespace {

// The runs of a layout: group g = (a, c) has B segments, each of P runs of S.
struct Runs {
    const Layout &l;
    i64 length() const { return l.P * l.S; }
    i64 segment(i64 g, i64 b) const { return (((g / l.C) * l.B + b) * l.C + g % l.C) * length(); }
    i64 gain(i64 g, i64 p) const { return l.gain(g / l.C, g % l.C, p, 0); }
};

// Pieces of a segment, so that even one huge run keeps every thread busy.
i64 pieces_of(i64 length, i64 segments, int threads) {
    const i64 wanted = segments >= 4 * threads ? 1 : 4 * threads;
    return std::min(wanted, std::max<i64>(1, length / CHUNK));
}

template <bool STREAM, class T>
void runs_forward(const Call &call, const T *x, const float *w, const float *b, T *y, Stat *stats, double *mean,
                  double *m2) {
    const Runs runs{call.at};
    const Layout &l = call.at;
    const i64 groups = l.groups(), length = runs.length();
    const auto apply = [&](i64 g, i64 segment, i64 begin, i64 end) {
        const Stat q = stats[g];
        const i64 at = runs.segment(g, segment);
        for (i64 p = begin / l.S; p * l.S < end; ++p) {
            const i64 from = std::max(begin, p * l.S), to = std::min(end, (p + 1) * l.S), k = runs.gain(g, p);
            const float s = (w ? w[k] : 1.f) * q.r;
            run_apply<STREAM>(x + at + from, y + at + from, to - from, q.hi, s, (b ? b[k] : 0.f) - q.lo * s);
        }
    };
    const int threads = threads_for(call);
    if (!cut(groups, threads))
        return team(threads, [&](int t, int of) {
            const Part mine = part(groups, t, of);
            for (i64 g = mine.begin; g < mine.end; ++g) {
                if (!call.fixed) {
                    Moments m;
                    for (i64 s = 0; s < l.B; ++s) run_moments(x + runs.segment(g, s), length, call.center, m);
                    stats[g] = m.stat(call);
                    tell(m, g, mean, m2);
                }
                for (i64 s = l.B; s-- > 0;) apply(g, s, 0, length); // backwards: the last was seen last
            }
            settle();
        });
    const i64 pieces = pieces_of(length, groups * l.B, threads), items = groups * l.B * pieces;
    if (!call.fixed) {
        vector<Moments> found(std::size_t(items), Moments{});
        team(threads, [&](int t, int of) {
            const Part mine = part(items, t, of);
            for (i64 i = mine.begin; i < mine.end; ++i) {
                const i64 s = i / pieces;
                const Part piece = part(length, int(i % pieces), int(pieces));
                run_moments(x + runs.segment(s / l.B, s % l.B) + piece.begin, piece.end - piece.begin, call.center,
                            found[std::size_t(i)]);
            }
        });
        for (i64 g = 0; g < groups; ++g) {
            Moments m;
            for (i64 i = g * l.B * pieces; i < (g + 1) * l.B * pieces; ++i) {
                const Moments &f = found[std::size_t(i)];
                if (f.n > 0) m.add(f);
            }
            stats[g] = m.stat(call);
            tell(m, g, mean, m2);
        }
    }
    team(threads, [&](int t, int of) {
        const Part mine = part(items, t, of);
        for (i64 i = mine.end; i-- > mine.begin;) {
            const i64 s = i / pieces;
            const Part piece = part(length, int(i % pieces), int(pieces));
            apply(s / l.B, s % l.B, piece.begin, piece.end);
        }
        settle();
    });
}

template <bool STREAM, class T>
void runs_backward(const Call &call, const T *x, const T *dy, const float *w, const Stat *stats, T *dx, float *dw,
                   float *db) {
    const Runs runs{call.at};
    const Layout &l = call.at;
    const i64 groups = l.groups();
    // Of every run: sum dy and sum dy xhat. They make both the group's pull and the gain's gradient.
    vector<double> pull(std::size_t(groups * l.B * l.P * 2));
    const auto look = [&](i64 g, i64 segment) {
        const Stat q = stats[g];
        double *const out = pull.data() + (g * l.B + segment) * l.P * 2;
        for (i64 p = 0; p < l.P; ++p) {
            const i64 at = runs.segment(g, segment) + p * l.S;
            double s1 = 0, s2 = 0;
            run_pull(x + at, dy + at, nullptr, l.S, q.hi, s1, s2);
            out[2 * p] = s1, out[2 * p + 1] = double(q.r) * (s2 - double(q.lo) * s1);
        }
    };
    const double inverse = 1.0 / double(l.pool());
    const auto means = [&](i64 g, double &c1, double &c2) {
        c1 = c2 = 0;
        if (call.fixed) return;
        for (i64 i = 0; i < l.B * l.P; ++i) {
            const double *const of = pull.data() + (g * l.B * l.P + i) * 2;
            const double gain = w ? double(w[runs.gain(g, i % l.P)]) : 1.0;
            c1 += gain * of[0], c2 += gain * of[1];
        }
        c1 = call.center ? c1 * inverse : 0, c2 *= inverse;
    };
    const auto descend = [&](i64 g, i64 segment, double c1, double c2) {
        const Stat q = stats[g];
        const double r = q.r;
        for (i64 p = 0; p < l.P; ++p) {
            const i64 at = runs.segment(g, segment) + p * l.S;
            const float gain = w ? w[runs.gain(g, p)] : 1.f;
            run_descend<STREAM>(x + at, dy + at, dx + at, l.S, q.hi, float(double(gain) * r), float(-r * r * c2),
                                float(-r * c1 + r * r * c2 * double(q.lo)));
        }
    };
    const int threads = threads_for(call);
    if (!cut(groups, threads)) {
        team(threads, [&](int t, int of) {
            const Part mine = part(groups, t, of);
            for (i64 g = mine.begin; g < mine.end; ++g) {
                double c1, c2;
                for (i64 s = 0; s < l.B; ++s) look(g, s);
                means(g, c1, c2);
                for (i64 s = l.B; s-- > 0;) descend(g, s, c1, c2);
            }
            settle();
        });
    } else {
        const i64 items = groups * l.B;
        team(threads, [&](int t, int of) {
            const Part mine = part(items, t, of);
            for (i64 i = mine.begin; i < mine.end; ++i) look(i / l.B, i % l.B);
        });
        team(threads, [&](int t, int of) {
            const Part mine = part(items, t, of);
            for (i64 i = mine.end; i-- > mine.begin;) {
                double c1, c2;
                means(i / l.B, c1, c2);
                descend(i / l.B, i % l.B, c1, c2);
            }
            settle();
        });
    }
    if (!dw && !db) return;
    vector<double> sum_w(std::size_t(l.gains())), sum_b(std::size_t(l.gains()));
    for (i64 g = 0; g < groups; ++g)
        for (i64 i = 0; i < l.B * l.P; ++i) {
            const double *const of = pull.data() + (g * l.B * l.P + i) * 2;
            const auto k = std::size_t(runs.gain(g, i % l.P));
            sum_w[k] += of[1], sum_b[k] += of[0];
        }
    for (std::size_t k = 0; k < sum_w.size(); ++k) {
        if (dw) dw[k] = float(sum_w[k]);
        if (db) db[k] = float(sum_b[k]);
    }
}

} // namespace
