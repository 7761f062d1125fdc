// By columns: kept elements contiguous, pooled ones far apart (batch, group and instance norm of channels_last).
#pragma once

#include "columns.hpp"
#include "share.hpp"

#include <algorithm>

namespace {

// Short or crooked rows are read several at a time, as one row of `times` times the width.
struct Fold {
    i64 times, width, rows;
};
Fold fold(i64 width, i64 rows) {
    i64 times = 1;
    if (width % 16 != 0 && width < 512)
        while (times < 16 && ((times * width) % 16 || times * width < 64)) times *= 2;
    else if (width < 64)
        while (times * width < 64) times *= 2;
    while (times > 1 && (rows % times || rows < 4 * times)) times /= 2;
    return {times, width * times, rows / times};
}

// Per column: the statistics and gain of its group, spread.
struct Columns {
    const Layout &l;
    Fold f;
    i64 width = l.C * l.P * l.S;

    i64 group(i64 a, i64 column) const { return a * l.C + column / (l.P * l.S); }
    i64 gain(i64 a, i64 column) const {
        const i64 inside = column % (l.P * l.S);
        return l.gain(a, column / (l.P * l.S), inside / l.S, inside % l.S);
    }
    void repeat(float *values) const {
        for (i64 k = 1; k < f.times; ++k) std::memcpy(values + k * width, values, std::size_t(width) * sizeof(float));
    }
};

template <bool STREAM, class T>
void columns_forward(const Call &call, const T *x, const float *w, const float *b, T *y, Stat *stats, double *mean,
                     double *m2) {
    const Layout &l = call.at;
    const Columns cols{l, fold(l.C * l.P * l.S, l.B)};
    const i64 width = cols.f.width, rows = cols.f.rows, block = cols.width * l.B, pooled = l.P * l.S;
    // Moments of the columns, [parts][2][width] -> Stats of one a.
    const auto decide = [&](i64 a, const double *found, const double *counts, int parts) {
        for (i64 c = 0; c < l.C && !call.fixed; ++c) {
            Moments m;
            for (int t = 0; t < parts; ++t)
                for (i64 k = 0; k < cols.f.times; ++k)
                    for (i64 j = c * pooled; j < (c + 1) * pooled && counts[t] > 0; ++j) {
                        const double *const of = found + t * 2 * width + k * cols.width + j;
                        if (call.center)
                            m.add(counts[t], of[0], of[width]);
                        else
                            m.n += counts[t], m.m2 += of[width];
                    }
            stats[a * l.C + c] = m.stat(call);
            tell(m, a * l.C + c, mean, m2);
        }
    };
    const auto spread = [&](i64 a, float *hi, float *s, float *t) {
        for (i64 j = 0; j < cols.width; ++j) {
            const Stat q = stats[cols.group(a, j)];
            const i64 k = cols.gain(a, j);
            hi[j] = q.hi, s[j] = (w ? w[k] : 1.f) * q.r, t[j] = (b ? b[k] : 0.f) - q.lo * s[j];
        }
        cols.repeat(hi), cols.repeat(s), cols.repeat(t);
    };
    const int threads = threads_for(call);
    if (!cut(l.A, threads) && l.A >= threads)
        return team(threads, [&](int t, int of) {
            vector<double> found(std::size_t(2 * width));
            vector<float> lines(std::size_t(3 * width));
            float *const hi = lines.data(), *const s = hi + width, *const o = s + width;
            const Part mine = part(l.A, t, of);
            for (i64 a = mine.begin; a < mine.end; ++a) {
                if (!call.fixed) {
                    std::fill(found.begin(), found.end(), 0.0);
                    column_moments(x + a * block, width, 0, rows, 0, call.center, found.data(), found.data() + width);
                    const double n = double(rows);
                    decide(a, found.data(), &n, 1);
                }
                spread(a, hi, s, o);
                column_apply<STREAM>(x + a * block, y + a * block, width, 0, rows, hi, s, o);
            }
            settle();
        });
    vector<double> found(std::size_t(threads * 2 * width)), counts(std::size_t(threads), 0.0);
    vector<float> lines(std::size_t(3 * width));
    float *const hi = lines.data(), *const s = hi + width, *const o = s + width;
    for (i64 a = 0; a < l.A; ++a) {
        if (!call.fixed) {
            std::fill(found.begin(), found.end(), 0.0);
            team(threads, [&](int t, int of) {
                const Part mine = part(rows, t, of);
                double *const my = found.data() + t * 2 * width;
                column_moments(x + a * block, width, mine.begin, mine.end, 0, call.center, my, my + width);
                counts[std::size_t(t)] = double(mine.end - mine.begin);
            });
            decide(a, found.data(), counts.data(), threads);
        }
        spread(a, hi, s, o);
        team(threads, [&](int t, int of) {
            const Part mine = part(rows, t, of);
            column_apply<STREAM>(x + a * block, y + a * block, width, mine.begin, mine.end, hi, s, o);
            settle();
        });
    }
}

template <bool STREAM, class T>
void columns_backward(const Call &call, const T *x, const T *dy, const float *w, const Stat *stats, T *dx, float *dw,
                      float *db) {
    const Layout &l = call.at;
    const Columns cols{l, fold(l.C * l.P * l.S, l.B)};
    const i64 width = cols.f.width, rows = cols.f.rows, block = cols.width * l.B, pooled = l.P * l.S;
    const double inverse = 1.0 / double(l.pool());
    vector<double> pull(std::size_t(l.A * 2 * cols.width)); // [A][sum dy, sum dy xhat][column]
    const auto heads = [&](i64 a, float *hi) {
        for (i64 j = 0; j < cols.width; ++j) hi[j] = stats[cols.group(a, j)].hi;
        cols.repeat(hi);
    };
    // Column sums, [parts][2][width] -> pull of one a, and dx = dy P + (x - hi) Q + R of its columns.
    const auto decide = [&](i64 a, const double *found, int parts, float *p, float *q, float *r) {
        double *const sum = pull.data() + a * 2 * cols.width;
        for (i64 c = 0; c < l.C; ++c) {
            const Stat of = stats[a * l.C + c];
            const double rate = of.r;
            double c1 = 0, c2 = 0;
            for (i64 j = c * pooled; j < (c + 1) * pooled; ++j) {
                double s1 = 0, s2 = 0;
                for (int t = 0; t < parts; ++t)
                    for (i64 k = 0; k < cols.f.times; ++k) {
                        const double *const at = found + t * 2 * width + k * cols.width + j;
                        s1 += at[0], s2 += at[width];
                    }
                sum[j] = s1, sum[cols.width + j] = rate * (s2 - double(of.lo) * s1);
                const double gain = w ? double(w[cols.gain(a, j)]) : 1.0;
                c1 += gain * sum[j], c2 += gain * sum[cols.width + j];
            }
            c1 = call.center && !call.fixed ? c1 * inverse : 0, c2 = call.fixed ? 0 : c2 * inverse;
            for (i64 j = c * pooled; j < (c + 1) * pooled; ++j) {
                p[j] = float((w ? double(w[cols.gain(a, j)]) : 1.0) * rate);
                q[j] = float(-rate * rate * c2), r[j] = float(-rate * c1 + rate * rate * c2 * double(of.lo));
            }
        }
        cols.repeat(p), cols.repeat(q), cols.repeat(r);
    };
    const int threads = threads_for(call);
    if (!cut(l.A, threads) && l.A >= threads) {
        team(threads, [&](int t, int of) {
            vector<double> found(std::size_t(2 * width));
            vector<float> lines(std::size_t(4 * width));
            float *const hi = lines.data(), *const p = hi + width, *const q = p + width, *const r = q + width;
            const Part mine = part(l.A, t, of);
            for (i64 a = mine.begin; a < mine.end; ++a) {
                const i64 o = a * block;
                heads(a, hi);
                std::fill(found.begin(), found.end(), 0.0);
                column_pull(x + o, dy + o, width, 0, rows, hi, found.data(), found.data() + width);
                decide(a, found.data(), 1, p, q, r);
                column_descend<STREAM>(x + o, dy + o, dx + o, width, 0, rows, hi, p, q, r);
            }
            settle();
        });
    } else {
        vector<double> found(std::size_t(threads * 2 * width));
        vector<float> lines(std::size_t(4 * width));
        float *const hi = lines.data(), *const p = hi + width, *const q = p + width, *const r = q + width;
        for (i64 a = 0; a < l.A; ++a) {
            const i64 o = a * block;
            heads(a, hi);
            std::fill(found.begin(), found.end(), 0.0);
            team(threads, [&](int t, int of) {
                const Part mine = part(rows, t, of);
                double *const my = found.data() + t * 2 * width;
                column_pull(x + o, dy + o, width, mine.begin, mine.end, hi, my, my + width);
            });
            decide(a, found.data(), threads, p, q, r);
            team(threads, [&](int t, int of) {
                const Part mine = part(rows, t, of);
                column_descend<STREAM>(x + o, dy + o, dx + o, width, mine.begin, mine.end, hi, p, q, r);
                settle();
            });
        }
    }
    if (!dw && !db) return;
    vector<double> sum_w(std::size_t(l.gains())), sum_b(std::size_t(l.gains()));
    for (i64 a = 0; a < l.A; ++a)
        for (i64 j = 0; j < cols.width; ++j) {
            const auto k = std::size_t(cols.gain(a, j));
            sum_b[k] += pull[std::size_t(a * 2 * cols.width + j)];
            sum_w[k] += pull[std::size_t((a * 2 + 1) * cols.width + j)];
        }
    for (std::size_t k = 0; k < sum_w.size(); ++k) {
        if (dw) dw[k] = float(sum_w[k]);
        if (db) db[k] = float(sum_b[k]);
    }
}

} // namespace
