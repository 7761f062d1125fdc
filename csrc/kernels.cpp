// The whole act on one layout, forward and backward; compiled once per instruction set (ISA names it).
//
// Three ways through memory, chosen by where the pooled elements lie:
//
//     rows       pooled elements contiguous, gain along them          layer and RMS norm
//     runs       pooled elements in contiguous runs, one gain each    batch, group, instance norm of NCHW
//     columns    kept elements contiguous, pooled ones far apart      the same of channels_last
//
// Each group is measured and applied by one thread while it lies in the cache. Where there are fewer groups than
// threads, pieces of a group are measured by all, merged in a fixed order in double, and applied by all: the result
// does not depend on timing.

#include "columns.hpp"
#include "norm.hpp"
#include "runs.hpp"
#include "team.hpp"

#include <vector>

namespace {

using std::vector;

constexpr i64 SERIAL = 16384; // elements below which waking a second thread costs more than it saves

enum class Way { rows, runs, columns };

Way way(const Call &call) {
    const Layout &l = call.at;
    const bool along = call.gain && l.gs == 1;
    if (l.B == 1 && l.P == 1 && (!call.gain || (along && l.ga == 0 && l.gc == 0))) return Way::rows;
    if (along) return Way::columns;
    if (l.B > 1 && l.P * l.S < 64) return Way::columns;
    return Way::runs;
}

int threads_for(const Call &call) {
    const Layout &l = call.at;
    return l.groups() * l.pool() < SERIAL ? 1 : call.threads;
}

void tell(const Moments &m, i64 g, double *mean, double *m2) {
    if (mean) mean[g] = m.mean, m2[g] = m.m2;
}

// ---------------------------------------------------------------- rows

template <bool STREAM, class T>
void rows_forward(const Call &call, const T *x, const float *w, const float *b, T *y, Stat *stats, double *mean,
                  double *m2) {
    const i64 n = call.at.S;
    team(threads_for(call), [&](int t, int threads) {
        const Part mine = part(call.at.groups(), t, threads);
        for (i64 i = mine.begin; i < mine.end; ++i) {
            if (!call.fixed) {
                Moments m;
                run_moments(x + i * n, n, call.center, m);
                stats[i] = m.stat(call);
                tell(m, i, mean, m2);
            }
            if (w)
                row_apply<STREAM>(x + i * n, y + i * n, n, stats[i], w, b);
            else
                run_apply<STREAM>(x + i * n, y + i * n, n, stats[i].hi, stats[i].r, -stats[i].lo * stats[i].r);
        }
        settle();
    });
}

struct Slope { // of one row: dx = dy w P + (x - hi) Q + R
    float hi, p, q, r, rate, shift;
};

// The gain's gradient runs down the rows while dx is written: a few rows at a time, so that its sums stay in registers.
template <bool STREAM, int ROWS, class T>
INLINE void rows_descend(const T *x, const T *dy, T *dx, i64 n, const float *w, const Slope *s, float *dw, float *db) {
    const auto step = [&](i64 i, i64 k, bool whole) {
        const vf one = all(1.f);
        const vf g = !w ? one : whole ? load(w + i) : load(w + i, k);
        vf a = !dw ? vf{} : whole ? load(dw + i) : load(dw + i, k), b = !db ? vf{} : whole ? load(db + i) : load(db + i, k);
        for (int row = 0; row < ROWS; ++row) {
            const i64 at = row * n + i;
            const vf d = whole ? load(dy + at) : load(dy + at, k);
            const vf u = (whole ? load(x + at) : load(x + at, k)) - all(s[row].hi);
            a += d * (u * all(s[row].rate) + all(s[row].shift));
            b += d;
            const vf down = (d * g) * all(s[row].p) + (u * all(s[row].q) + all(s[row].r));
            if (whole)
                put<STREAM>(dx + at, down);
            else
                store(dx + at, down, k);
        }
        if (dw) whole ? store(dw + i, a) : store(dw + i, a, k);
        if (db) whole ? store(db + i, b) : store(db + i, b, k);
    };
    i64 i = 0;
    for (; i + LANES <= n; i += LANES) step(i, LANES, true);
    if (i < n) step(i, n - i, false);
}

template <bool STREAM, class T>
void rows_backward(const Call &call, const T *x, const T *dy, const float *w, const Stat *stats, T *dx, float *dw,
                   float *db) {
    constexpr int TOGETHER = 4;   // rows whose gain gradient is summed in registers
    constexpr i64 FLUSH = 256;    // rows whose gain gradient is summed in float before it goes to double
    const i64 n = call.at.S, rows = call.at.groups();
    const int threads = threads_for(call);
    vector<double> total(std::size_t((dw || db) ? threads * 2 * n : 0));
    team(threads, [&](int t, int of) {
        const Part mine = part(rows, t, of);
        vector<float> part_w(std::size_t(dw ? n : 0)), part_b(std::size_t(db ? n : 0));
        double *const sum_w = total.data() + 2 * n * t, *const sum_b = sum_w + n;
        i64 since = 0;
        const auto flush = [&] {
            for (i64 j = 0; dw && j < n; ++j) sum_w[j] += part_w[std::size_t(j)], part_w[std::size_t(j)] = 0;
            for (i64 j = 0; db && j < n; ++j) sum_b[j] += part_b[std::size_t(j)], part_b[std::size_t(j)] = 0;
            since = 0;
        };
        const auto slope = [&](i64 i) {
            const Stat q = stats[i];
            const double r = q.r;
            double c1 = 0, c2 = 0;
            if (!call.fixed) {
                double s1 = 0, s2 = 0;
                run_pull(x + i * n, dy + i * n, w, n, q.hi, s1, s2);
                c1 = call.center ? s1 / double(n) : 0;
                c2 = r * (s2 - double(q.lo) * s1) / double(n);
            }
            return Slope{q.hi, q.r, float(-r * r * c2), float(-r * c1 + r * r * c2 * q.lo), q.r, -q.lo * q.r};
        };
        float *const pw = dw ? part_w.data() : nullptr, *const pb = db ? part_b.data() : nullptr;
        i64 i = mine.begin;
        for (; i + TOGETHER <= mine.end; i += TOGETHER) {
            Slope s[TOGETHER];
            for (int k = 0; k < TOGETHER; ++k) s[k] = slope(i + k);
            rows_descend<STREAM, TOGETHER>(x + i * n, dy + i * n, dx + i * n, n, w, s, pw, pb);
            if ((since += TOGETHER) >= FLUSH) flush();
        }
        for (; i < mine.end; ++i) {
            const Slope s = slope(i);
            rows_descend<STREAM, 1>(x + i * n, dy + i * n, dx + i * n, n, w, &s, pw, pb);
        }
        flush();
        settle();
    });
    for (i64 j = 0; j < n && (dw || db); ++j) {
        double a = 0, b = 0;
        for (int t = 0; t < threads; ++t) a += total[std::size_t(2 * n * t + j)], b += total[std::size_t(2 * n * t + n + j)];
        if (dw) dw[j] = float(a);
        if (db) db[j] = float(b);
    }
}

// ---------------------------------------------------------------- runs

// The runs of a layout: group g = (a, c) has B segments, each of P runs of S.
struct Runs {
    const Layout &l;
    i64 length() const { return l.P * l.S; }
    i64 segment(i64 g, i64 b) const { return (((g / l.C) * l.B + b) * l.C + g % l.C) * length(); }
    i64 gain(i64 g, i64 p) const { return l.gain(g / l.C, g % l.C, p, 0); }
};

// Is a group to be cut in pieces, for want of groups?
bool cut(i64 groups, int threads) { return threads > 1 && groups < 2 * threads && groups % threads != 0; }

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

// ---------------------------------------------------------------- columns

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

// ---------------------------------------------------------------- the way, and whether to stream

// Rows that do not start on a vector's boundary cannot be streamed; a run finds the boundary by itself.
template <class T> bool may_stream(const Call &call, const void *out) {
    const Layout &l = call.at;
    if (!call.stream || reinterpret_cast<std::uintptr_t>(out) % BYTES) return false;
    if (way(call) == Way::columns) return fold(l.C * l.P * l.S, l.B).width * i64(sizeof(T)) % BYTES == 0;
    if (way(call) == Way::rows) return l.S * i64(sizeof(T)) % BYTES == 0;
    return l.S * i64(sizeof(T)) >= 8 * BYTES;
}

template <bool STREAM, class T>
void forward(const Call &call, const T *x, const float *w, const float *b, T *y, Stat *stats, double *mean, double *m2) {
    switch (way(call)) {
    case Way::rows: return rows_forward<STREAM>(call, x, w, b, y, stats, mean, m2);
    case Way::runs: return runs_forward<STREAM>(call, x, w, b, y, stats, mean, m2);
    case Way::columns: return columns_forward<STREAM>(call, x, w, b, y, stats, mean, m2);
    }
}

template <bool STREAM, class T>
void backward(const Call &call, const T *x, const T *dy, const float *w, const Stat *stats, T *dx, float *dw,
              float *db) {
    switch (way(call)) {
    case Way::rows: return rows_backward<STREAM>(call, x, dy, w, stats, dx, dw, db);
    case Way::runs: return runs_backward<STREAM>(call, x, dy, w, stats, dx, dw, db);
    case Way::columns: return columns_backward<STREAM>(call, x, dy, w, stats, dx, dw, db);
    }
}

template <class T>
void forward_any(const Call &call, const void *x, const float *w, const float *b, void *y, Stat *stats, double *mean,
                 double *m2) {
    const auto f = may_stream<T>(call, y) ? &forward<true, T> : &forward<false, T>;
    f(call, static_cast<const T *>(x), w, b, static_cast<T *>(y), stats, mean, m2);
}

template <class T>
void backward_any(const Call &call, const void *x, const void *dy, const float *w, const Stat *stats, void *dx,
                  float *dw, float *db) {
    const auto f = may_stream<T>(call, dx) ? &backward<true, T> : &backward<false, T>;
    f(call, static_cast<const T *>(x), static_cast<const T *>(dy), w, stats, static_cast<T *>(dx), dw, db);
}

} // namespace

#define QUOTE2(a) #a
#define QUOTE(a) QUOTE2(a)
#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
extern const Kernels JOIN(kernels_, ISA);
extern const Kernels JOIN(kernels_, ISA) = {QUOTE(ISA), forward_any<float>, forward_any<bf16>, backward_any<float>,
                                            backward_any<bf16>};
