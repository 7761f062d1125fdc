// By columns: kept elements contiguous, pooled ones far apart (batch, group and instance norm of channels_last, tables).
#pragma once

#include "sheet.hpp"

#include <algorithm>

namespace {

// What a thread saw of one table, per column: count, mean and squared spread.
template <class T> class ColumnLook {
  public:
    i64 table;
    vector<double> n, mean, m2;

    ColumnLook(const Sheet<T> &of, i64 k) : table(k), sheet(of) {
        for (auto *line : {&n, &mean, &m2}) line->assign(std::size_t(sheet.line), 0.0);
    }
    // Sums about a guess of each column's mean, as in runs.hpp: a second look only where the guess was far off.
    void look(const T *x, Part rows) {
        const i64 line = sheet.line;
        const bool center = sheet.call.center;
        vector<float> lines(std::size_t(4 * line));
        vector<double> sums(std::size_t(3 * line));
        float *const about = lines.data(), *const f0 = about + line, *const f1 = f0 + line, *const f2 = f1 + line;
        double *const s0 = sums.data(), *const s1 = s0 + line, *const s2 = s1 + line;
        bool guessed = !center;
        sheet.tiles(x, rows, false, [&](const Tile<T> &tile, i64) {
            const auto measure = [&](const Tile<T> &of) {
                std::fill(f0, f0 + 3 * line, 0.f);
                tile_spread(of, about, f0, f1, f2);
                if (!of.where) std::fill(f0, f0 + line, float(of.n));
            };
            if (!guessed && !tile.where) {
                const Tile<T> some{tile.rows, nullptr, false, std::min<i64>(ABREAST, tile.n), tile.width};
                measure(some);
                for (i64 j = 0; j < line; ++j) about[j] = f1[j] / float(some.n);
                guessed = true;
            }
            measure(tile);
            if (center && (!guessed || missed(f0, f1, f2))) {
                flush(about, s0, s1, s2);
                for (i64 j = 0; j < line; ++j) about[j] += f0[j] > 0 ? f1[j] / f0[j] : 0.f;
                measure(tile);
                guessed = true; // of weights, by those of the first tile; where they are all 0, a later one misses
            }
            for (i64 j = 0; j < line; ++j) s0[j] += f0[j], s1[j] += f1[j], s2[j] += f2[j];
        });
        flush(about, s0, s1, s2);
    }

  private:
    const Sheet<T> &sheet;

    bool missed(const float *f0, const float *f1, const float *f2) const {
        int far = 0;
        for (i64 j = 0; j < sheet.width; ++j) far |= f1[j] * f1[j] * 5.f > f0[j] * f2[j] * 4.f;
        return far;
    }
    void flush(const float *about, double *s0, double *s1, double *s2) {
        for (i64 j = 0; j < sheet.width; ++j) {
            const auto i = std::size_t(j);
            const double k = s0[j], inverse = k > 0 ? 1.0 / k : 0.0, off = s1[j] * inverse, total = n[i] + k;
            if (!sheet.call.center) {
                n[i] = total, m2[i] += s2[j];
                continue;
            }
            const double d = double(about[j]) + off - mean[i], share = total > 0 ? k / total : 0.0;
            mean[i] += d * share;
            m2[i] += (s2[j] - s1[j] * off) + d * d * n[i] * share;
            n[i] = total;
        }
        std::fill(s0, s0 + 3 * sheet.line, 0.0);
    }
};

// The groups of one table, from what was seen of its columns by one thread or several: [begin, end)
template <class T>
void decide(const Sheet<T> &sheet, const Forward &f, i64 table, const ColumnLook<T> *const *begin,
            const ColumnLook<T> *const *end) {
    const Layout &l = sheet.l;
    const i64 pooled = l.P * l.S;
    for (i64 c = 0; c < l.C; ++c) {
        const auto each = [&](const auto &of) {
            for (auto p = begin; p != end; ++p)
                for (i64 k = 0; k < sheet.times; ++k)
                    for (i64 j = 0; j < pooled; ++j) of(**p, std::size_t(k * sheet.columns + c * pooled + j));
        };
        Moments m;
        double sum = 0;
        each([&](const ColumnLook<T> &s, std::size_t j) { m.n += s.n[j], sum += s.n[j] * s.mean[j], m.m2 += s.m2[j]; });
        m.mean = m.n > 0 ? sum / m.n : 0;
        each([&](const ColumnLook<T> &s, std::size_t j) { m.m2 += s.n[j] * (s.mean[j] - m.mean) * (s.mean[j] - m.mean); });
        const i64 g = table * l.C + c;
        f.stats[g] = settled(sheet.call, f, m, g);
    }
}

template <bool STREAM, class T> void columns_apply(const Sheet<T> &sheet, const Forward &f, Part rows) {
    const T *const x = static_cast<const T *>(f.x);
    T *const y = static_cast<T *>(f.y), *to[Sheet<T>::MOST];
    if (!y) return;
    vector<float> lines(std::size_t(3 * sheet.line));
    float *const hi = lines.data(), *const s = hi + sheet.line, *const t = s + sheet.line;
    sheet.walk(rows, [&](const Unit &unit, Part some) {
        sheet.spread(unit, [&](i64 j, i64 g, i64 k) {
            const Stat &q = f.stats[g];
            hi[j] = q.hi, s[j] = (f.weight ? f.weight[k] : 1.f) * q.rate, t[j] = (f.bias ? f.bias[k] : 0.f) - q.shift * s[j];
        });
        sheet.tiles(x, some, true, [&](const Tile<T> &tile, i64 begin) {
            sheet.point(y, begin, tile.n, to);
            i64 r = 0;
            for (; r + ABREAST <= tile.n; r += ABREAST)
                rows_apply<STREAM, ABREAST>(tile.rows + r, to + r, tile.next(r, ABREAST), tile.width, hi, s, t,
                                            tile.where);
            for (; r < tile.n; ++r) rows_apply<STREAM, 1>(tile.rows + r, to + r, 0, tile.width, hi, s, t, tile.where);
        });
    });
}

// f(table, of, end) for what all threads saw of each table; seen is in the order of tables
template <class S, class F> void by_table(const vector<vector<S>> &seen, i64 tables, int threads, const F &f) {
    vector<const S *> all;
    vector<i64> first(std::size_t(tables + 1));
    for (const auto &of : seen)
        for (const S &s : of) all.push_back(&s), ++first[std::size_t(s.table + 1)];
    for (i64 k = 0; k < tables; ++k) first[std::size_t(k + 1)] += first[std::size_t(k)];
    team(tables >= 2 * threads ? threads : 1, [&](int t, int of) {
        const Part mine = part(tables, t, of);
        for (i64 k = mine.begin; k < mine.end; ++k)
            f(k, all.data() + first[std::size_t(k)], all.data() + first[std::size_t(k + 1)]);
    });
}

template <bool STREAM, class T> void columns_forward(const Call &call, const Forward &f) {
    const Sheet<T> sheet(call);
    const T *const x = static_cast<const T *>(f.x);
    const bool fixed = call.trust == Trust::fixed;
    for (i64 g = 0; fixed && g < call.at.groups(); ++g) f.stats[g] = constant(call, g);
    const int threads = threads_for(call);
    if (sheet.whole(threads))
        return team(threads, [&](int t, int of) {
            const Part mine = part(call.at.A, t, of);
            for (i64 k = mine.begin; k < mine.end; ++k) {
                if (!fixed) {
                    ColumnLook<T> seen(sheet, k);
                    const ColumnLook<T> *const one = &seen;
                    seen.look(x, sheet.table(k));
                    decide(sheet, f, k, &one, &one + 1);
                }
                columns_apply<STREAM>(sheet, f, sheet.table(k));
            }
            settle();
        });
    if (!fixed) {
        vector<vector<ColumnLook<T>>> seen(std::size_t(threads), vector<ColumnLook<T>>{});
        team(threads, [&](int t, int of) {
            auto &mine = seen[std::size_t(t)];
            sheet.walk(part(sheet.rows(), t, of), [&](const Unit &unit, Part some) {
                if (mine.empty() || mine.back().table != unit.table) mine.emplace_back(sheet, unit.table);
                mine.back().look(x, some);
            });
        });
        by_table(seen, call.at.tables(), threads,
                 [&](i64 k, const auto *begin, const auto *end) { decide(sheet, f, k, begin, end); });
    }
    team(threads, [&](int t, int of) {
        columns_apply<STREAM>(sheet, f, part(sheet.rows(), t, of));
        settle();
    });
}

// What the gradient pulls on in the columns of one unit: sum dy and sum dy (x - hi).
template <class T> struct ColumnPull {
    i64 table;
    Unit unit;
    vector<double> s1, s2;

    ColumnPull(const Sheet<T> &sheet, const Backward &f, const Unit &u, Part rows)
        : table(u.table), unit(u), s1(std::size_t(sheet.line)), s2(std::size_t(sheet.line)) {
        const T *const x = static_cast<const T *>(f.x), *const dy = static_cast<const T *>(f.dy), *from[Sheet<T>::MOST];
        vector<float> lines(std::size_t(3 * sheet.line));
        float *const hi = lines.data(), *const f1 = hi + sheet.line, *const f2 = f1 + sheet.line;
        sheet.spread(u, [&](i64 j, i64 g, i64) { hi[j] = f.stats[g].hi; });
        sheet.tiles(x, rows, false, [&](const Tile<T> &tile, i64 begin) {
            sheet.point(dy, begin, tile.n, from);
            std::fill(f1, f1 + 2 * sheet.line, 0.f);
            tile_pull(tile, from, hi, f1, f2);
            for (std::size_t j = 0; j < s1.size(); ++j) s1[j] += f1[j], s2[j] += f2[j];
        });
        for (i64 k = 1; k < sheet.times; ++k) // folded columns are one
            for (i64 j = 0; j < sheet.columns; ++j) {
                s1[std::size_t(j)] += s1[std::size_t(k * sheet.columns + j)];
                s2[std::size_t(j)] += s2[std::size_t(k * sheet.columns + j)];
            }
    }
};

// Slopes of the groups of one table.
template <class T>
void decide(const Sheet<T> &sheet, const Backward &f, i64 table, const ColumnPull<T> *const *begin,
            const ColumnPull<T> *const *end, Slope *slopes) {
    const Layout &l = sheet.l;
    for (i64 c = 0; c < l.C; ++c) {
        const i64 g = table * l.C + c;
        const Stat &q = f.stats[g];
        double sum = 0, sum_xhat = 0;
        for (auto of = begin; of != end; ++of)
            for (i64 p = 0, j = c * l.P * l.S; p < l.P; ++p)
                for (i64 s = 0, k = l.gain((*of)->unit.a, (*of)->unit.b, c, p, 0); s < l.S; ++s, ++j) {
                    const double gain = f.weight ? double(f.weight[k + s * l.gs]) : 1.0;
                    const double s1 = (*of)->s1[std::size_t(j)], s2 = (*of)->s2[std::size_t(j)];
                    sum += gain * s1, sum_xhat += gain * double(q.r) * (s2 - double(q.lo) * s1);
                }
        slopes[g] = slope(sheet.call, q, sum, sum_xhat);
    }
}

template <bool STREAM, class T>
void columns_descend(const Sheet<T> &sheet, const Backward &f, const Slope *slopes, Part rows) {
    const T *const x = static_cast<const T *>(f.x), *const dy = static_cast<const T *>(f.dy), *from[Sheet<T>::MOST];
    T *const dx = static_cast<T *>(f.dx), *to[Sheet<T>::MOST];
    if (!dx) return;
    vector<float> lines(std::size_t(4 * sheet.line));
    float *const hi = lines.data(), *const p = hi + sheet.line, *const q = p + sheet.line, *const r = q + sheet.line;
    sheet.walk(rows, [&](const Unit &unit, Part some) {
        sheet.spread(unit, [&](i64 j, i64 g, i64 k) {
            const Slope &s = slopes[g];
            hi[j] = s.hi, p[j] = (f.weight ? f.weight[k] : 1.f) * s.rate, q[j] = s.q, r[j] = s.r;
        });
        sheet.tiles(x, some, true, [&](const Tile<T> &tile, i64 begin) {
            sheet.point(dy, begin, tile.n, from), sheet.point(dx, begin, tile.n, to);
            i64 i = 0;
            for (; i + 2 <= tile.n; i += 2)
                rows_slope<STREAM, 2>(tile, i, tile.next(i, 2), from + i, to + i, hi, p, q, r);
            for (; i < tile.n; ++i) rows_slope<STREAM, 1>(tile, i, 0, from + i, to + i, hi, p, q, r);
        });
    });
}

template <class T>
void columns_gain(const Sheet<T> &sheet, const Backward &f, const vector<vector<ColumnPull<T>>> &seen) {
    if (!f.dweight && !f.dbias) return;
    const Layout &l = sheet.l;
    vector<double> sum_w(std::size_t(l.gains())), sum_b(std::size_t(l.gains()));
    for (const auto &of : seen)
        for (const ColumnPull<T> &u : of)
            for (i64 c = 0, j = 0; c < l.C; ++c) {
                const Stat &q = f.stats[u.table * l.C + c];
                for (i64 p = 0; p < l.P; ++p)
                    for (i64 s = 0, k = l.gain(u.unit.a, u.unit.b, c, p, 0); s < l.S; ++s, ++j) {
                        const double s1 = u.s1[std::size_t(j)], s2 = u.s2[std::size_t(j)];
                        sum_w[std::size_t(k + s * l.gs)] += double(q.rate) * (s2 - double(q.shift) * s1);
                        sum_b[std::size_t(k + s * l.gs)] += s1;
                    }
            }
    for (std::size_t k = 0; k < sum_w.size(); ++k) {
        if (f.dweight) f.dweight[k] = float(sum_w[k]);
        if (f.dbias) f.dbias[k] = float(sum_b[k]);
    }
}

template <bool STREAM, class T> void columns_backward(const Call &call, const Backward &f) {
    const Sheet<T> sheet(call);
    const int threads = threads_for(call);
    vector<Slope> slopes(std::size_t(call.at.groups()));
    vector<vector<ColumnPull<T>>> seen(std::size_t(threads), vector<ColumnPull<T>>{});
    const auto look = [&](vector<ColumnPull<T>> &mine, Part rows) {
        sheet.walk(rows, [&](const Unit &unit, Part some) { mine.emplace_back(sheet, f, unit, some); });
    };
    if (sheet.whole(threads))
        team(threads, [&](int t, int of) {
            auto &mine = seen[std::size_t(t)];
            const Part tables = part(call.at.A, t, of);
            for (i64 k = tables.begin; k < tables.end; ++k) {
                const std::size_t before = mine.size();
                look(mine, sheet.table(k));
                vector<const ColumnPull<T> *> its;
                for (std::size_t i = before; i < mine.size(); ++i) its.push_back(&mine[i]);
                decide(sheet, f, k, its.data(), its.data() + its.size(), slopes.data());
                columns_descend<STREAM>(sheet, f, slopes.data(), sheet.table(k));
            }
            settle();
        });
    else {
        team(threads, [&](int t, int of) { look(seen[std::size_t(t)], part(sheet.rows(), t, of)); });
        by_table(seen, call.at.tables(), threads,
                 [&](i64 k, const auto *begin, const auto *end) { decide(sheet, f, k, begin, end, slopes.data()); });
        team(threads, [&](int t, int of) {
            columns_descend<STREAM>(sheet, f, slopes.data(), part(sheet.rows(), t, of));
            settle();
        });
    }
    columns_gain(sheet, f, seen);
}

} // namespace
