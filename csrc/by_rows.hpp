// By rows: pooled elements contiguous, with a gain along them or none (layer and RMS norm, adaptive, per head).
#pragma once

#include "runs.hpp"
#include "share.hpp"

namespace {

// Row i = (a, c) of a layout: its weights, its gain. Few long rows are cut in as many columns of pieces as threads.
struct Rows {
    const Call &call;
    const Layout &l = call.at;
    i64 n = l.S;

    i64 gain(i64 i) const { return l.C == 1 ? i * l.ga : (i / l.C) * l.ga + (i % l.C) * l.gc; }
    i64 weight(i64 i) const { return l.C == 1 ? i * l.wa : (i / l.C) * l.wa + (i % l.C) * l.wc; }
    const float *weights(i64 i, i64 at) const { return call.where && l.ws ? call.where + weight(i) + at : nullptr; }
    float each(i64 i) const { return call.where && !l.ws ? call.where[weight(i)] : 1.f; }
    bool pack(const Forward &f) const { return packs(call, n) && !f.other; }
    bool few(int threads) const { return l.groups() < threads && n >= 2 * CHUNK; }
    Part piece(int t, int threads) const {
        const Part blocks = part((n + LANES - 1) / LANES, t, threads); // whole vectors
        return {std::min(n, blocks.begin * LANES), std::min(n, blocks.end * LANES)};
    }
};

template <bool STREAM, class T> void rows_forward(const Call &call, const Forward &f) {
    const Rows rows{call};
    const i64 n = rows.n, groups = call.at.groups();
    const T *const x = static_cast<const T *>(f.other ? f.sum : f.x);
    T *const y = static_cast<T *>(f.y);
    const int threads = threads_for(call);
    // Short rows are read PACK at a time, and memory answers later than one row is written.
    const i64 next = STREAM && rows.pack(f) ? n * std::max<i64>(PACK, 8192 / (n * i64(sizeof(T)))) : ahead_of<T>(n, true);
    const bool one_gain = !call.at.ga && !call.at.gc; // of all rows
    const auto look = [&](i64 i, Part p, Look &seen) {
        const i64 at = i * n + p.begin;
        if (f.other)
            run_add(static_cast<const T *>(f.x) + at, static_cast<const T *>(f.other) + at,
                    static_cast<T *>(f.sum) + at, p.end - p.begin);
        if (call.trust == Trust::fixed) return;
        run_look(x + at, p.end - p.begin, call.center, rows.weights(i, p.begin), rows.each(i), seen);
    };
    const auto settle_row = [&](i64 i, const Moments &m) {
        f.stats[i] = call.trust == Trust::fixed ? constant(call, i) : settled(call, f, m, i);
    };
    const auto apply = [&](i64 i, Part p) {
        if (!y) return;
        const i64 at = i * n + p.begin, k = rows.gain(i) + p.begin;
        const Stat &q = f.stats[i];
        weighing(call, [&](auto is) {
            constexpr bool W = is.value;
            const float *const w = f.weight ? f.weight + k : nullptr, *const b = f.bias ? f.bias + k : nullptr;
            if (b)
                row_apply<STREAM, true, W>(x + at, x + at + next, y + at, p.end - p.begin, q, w, b);
            else if (w)
                row_apply<STREAM, false, W>(x + at, x + at + next, y + at, p.end - p.begin, q, w, b);
            else
                run_apply<STREAM, W>(x + at, x + at + next, y + at, p.end - p.begin, q.hi, q.rate, -q.shift * q.rate);
        });
    };
    if (!rows.few(threads))
        return team(threads, [&](int t, int of) {
            const Part mine = part(groups, t, of);
            i64 i = mine.begin;
            for (; rows.pack(f) && i + PACK <= mine.end; i += PACK) {
                settle_pack(call, f, x + i * n, n, i);
                if (y && one_gain && !STREAM) // past the cache, one row after the other is quicker
                    pack_apply<STREAM>(x + i * n, y + i * n, n, f.stats + i, f.weight, f.bias);
                else
                    for (int k = 0; k < PACK; ++k) apply(i + k, {0, n});
            }
            for (; i < mine.end; ++i) {
                Look seen;
                look(i, {0, n}, seen);
                settle_row(i, seen.moments(call.center));
                apply(i, {0, n});
            }
            settle();
        });
    vector<Look> seen(std::size_t(groups * threads));
    team(threads, [&](int t, int of) {
        for (i64 i = 0; i < groups; ++i) look(i, rows.piece(t, of), seen[std::size_t(i * threads + t)]);
    });
    for (i64 i = 0; i < groups; ++i) {
        Moments m;
        for (int t = 0; t < threads; ++t) m.add(seen[std::size_t(i * threads + t)].moments(call.center));
        settle_row(i, m);
    }
    team(threads, [&](int t, int of) {
        for (i64 i = 0; i < groups; ++i) apply(i, rows.piece(t, of));
        settle();
    });
}

// The gain's gradient runs down the rows while dx is written: a few rows at a time, so that its sums stay in registers.
template <bool STREAM, int ROWS, class T> struct Descent {
    const T *x, *dy, *also; // also: what comes to dx from elsewhere, or null
    T *dx;
    i64 step, next; // from one of these rows to the next; to those that come after
    const float *w;
    const Slope *s;
    const float *off; // of each row: xhat = u rate + off
    float *dw, *db; // in the order of T's vectors
    const float *m[ROWS]; // weights, or null
    float each[ROWS];
    bool weighed;

    template <int N> INLINE void at(i64 i, i64 k) const {
        vf g[N], a[N]{}, b[N]{}, d[N], here[N], M[N], more[N];
        for (vf &of : g) of = all(1.f);
        if (w) beside<T>(w + i, k, g);
        if (dw) takes(dw + i, k, a);
        if (db) takes(db + i, k, b);
        for (int row = 0; row < ROWS; ++row) {
            const i64 o = row * step + i;
            fetch<N * LANES>(x + o - i + next, i), fetch<N * LANES>(dy + o - i + next, i);
            takes(dy + o, k, d), takes(x + o, k, here);
            if (weighed && m[row]) beside<T>(m[row] + i, k, M);
            if (also) takes(also + o, k, more);
            for (int j = 0; j < N; ++j) {
                vf u = here[j] - all(s[row].hi), pull;
                const vi number = (vi)((here[j] - here[j]) == 0.f);
                if (weighed) {
                    if (!m[row]) M[j] = all(each[row]);
                    d[j] = (vf)((vi)d[j] & number), u = finite(here[j]) - all(s[row].hi);
                    pull = M[j] * (only(M[j], u) * all(s[row].q) + all(s[row].r));
                } else
                    pull = u * all(s[row].q) + all(s[row].r);
                a[j] += d[j] * (u * all(s[row].rate) + all(off[row]));
                b[j] += d[j];
                d[j] = (d[j] * g[j]) * all(s[row].rate) + pull;
                if (weighed) d[j] = (vf)((vi)d[j] & number);
                if (also) d[j] += more[j];
            }
            gives<STREAM>(dx + o, d, k);
        }
        if (dw) gives<false>(dw + i, a, k);
        if (db) gives<false>(db + i, b, k);
    }
    INLINE void go(i64 n) const {
        i64 i = 0;
        for (; sizeof(T) < 4 && i + 2 * LANES <= n; i += 2 * LANES) at<2>(i, LANES); // two floats want too many registers
        for (; i + LANES <= n; i += LANES) at<1>(i, LANES);
        if (i < n) at<1>(i, n - i);
    }
};

template <bool STREAM, class T> struct RowsBackward {
    const Call &call;
    const Backward &f;
    const Rows rows{call};
    const Layout &l = call.at;
    i64 n = rows.n;
    const T *x = static_cast<const T *>(f.x), *dy = static_cast<const T *>(f.dy),
            *also = static_cast<const T *>(f.dsum);
    T *dx = static_cast<T *>(f.dx);
    const T *to = STREAM ? x : dx; // what will be written through the cache

    void pull(i64 i, Part p, double &s1, double &s2) const {
        if (f.stats[i].share == 0.f) return;
        const i64 at = i * n + p.begin;
        const float *const w = f.weight ? f.weight + rows.gain(i) + p.begin : nullptr;
        weighing(call, [&](auto is) {
            run_pull<is.value>(x + at, dy + at, to + at, w, p.end - p.begin, 1, 0, f.stats[i].hi, s1, s2);
        });
    }
    Slope slope_of(i64 i, double s1, double s2) const {
        const Stat &q = f.stats[i];
        return slope(call, q, s1, double(q.r) * (s2 - double(q.lo) * s1));
    }
    // ROWS rows from i on, `apart` rows from one to the next; pw and pb take the gain's gradient
    template <int ROWS> void descend(i64 i, i64 apart, Part p, const Slope *s, float *pw, float *pb) const {
        const i64 at = i * n + p.begin;
        float off[ROWS];
        for (int k = 0; k < ROWS; ++k) off[k] = -f.stats[i + k * apart].shift * f.stats[i + k * apart].rate;
        const i64 next = apart > 1 && l.C > 1 ? n : ROWS * n;
        Descent<STREAM, ROWS, T> d{x + at, dy + at, also ? also + at : nullptr, dx + at, apart * n, next,
                                   f.weight ? f.weight + rows.gain(i) + p.begin : nullptr, s, off, pw, pb, {}, {},
                                   call.where != nullptr};
        for (int k = 0; k < ROWS; ++k) {
            d.m[k] = rows.weights(i + k * apart, p.begin);
            d.each[k] = rows.each(i + k * apart);
        }
        d.go(p.end - p.begin);
    }
    template <int ROWS> void both(i64 i, i64 apart, float *pw, float *pb) const {
        Slope s[ROWS];
        double s1[ROWS]{}, s2[ROWS]{};
        if (ROWS == PACK) {
            float hi[ROWS];
            for (int k = 0; k < ROWS; ++k) hi[k] = f.stats[i + k * apart].hi;
            const float *const w = f.weight ? f.weight + rows.gain(i) : nullptr;
            pack_pull(x + i * n, dy + i * n, to + i * n, w, n, apart * n, hi, s1, s2);
        } else
            for (int k = 0; k < ROWS; ++k) pull(i + k * apart, {0, n}, s1[k], s2[k]);
        for (int k = 0; k < ROWS; ++k) s[k] = slope_of(i + k * apart, s1[k], s2[k]);
        descend<ROWS>(i, apart, {0, n}, s, pw, pb);
    }

    // Rows that share a gain go PACK at a time, long ones two: more would push each other out of the first cache. Those
    // of neighbouring a where all a share it, else those of one a.
    void all_rows(int threads) const {
        constexpr i64 FLUSH = 256; // rows summed in float before the sum goes to double
        const bool packed = packs_back<T>(call, n);
        const i64 together = packed ? PACK : 2;
        const i64 lines = l.gc ? l.C : 1, width = lines * n; // of the gain, for one a
        const bool learns = f.dweight || f.dbias, own = l.ga != 0;
        vector<double> total(std::size_t(learns ? 2 * width * (own ? l.A : threads) : 0));
        team(threads, [&](int t, int of) {
            const Part mine = part(l.A, t, of);
            vector<float> part_w(std::size_t(f.dweight ? width : 0)), part_b(std::size_t(f.dbias ? width : 0));
            float *const pw = f.dweight ? part_w.data() : nullptr, *const pb = f.dbias ? part_b.data() : nullptr;
            const auto line = [&](float *p, i64 c) { return p && l.gc ? p + c * n : p; };
            const auto flush = [&](i64 table) {
                double *const sum = total.data() + 2 * width * table;
                for (i64 j = 0; pw && j < width; j += n) as_memory<T>(pw + j, n);
                for (i64 j = 0; pb && j < width; j += n) as_memory<T>(pb + j, n);
                for (i64 j = 0; pw && j < width; ++j) sum[j] += pw[j], pw[j] = 0;
                for (i64 j = 0; pb && j < width; ++j) sum[width + j] += pb[j], pb[j] = 0;
            };
            const i64 over_a = own ? 1 : together, over_c = own && !l.gc ? together : 1;
            i64 since = 0;
            for (i64 a = mine.begin; a < mine.end;) {
                const i64 many = a + over_a <= mine.end ? over_a : 1;
                for (i64 c = 0; c < l.C;) {
                    const i64 abreast = c + over_c <= l.C ? over_c : 1, i = a * l.C + c;
                    if (many == 1 && abreast == 1)
                        both<1>(i, 1, line(pw, c), line(pb, c));
                    else if (packed)
                        both<PACK>(i, many > 1 ? l.C : 1, line(pw, c), line(pb, c));
                    else
                        both<2>(i, many > 1 ? l.C : 1, line(pw, c), line(pb, c));
                    c += abreast;
                    if (over_c > 1 && (since += abreast) >= FLUSH) flush(a), since = 0;
                }
                if (own || (since += many) >= FLUSH) flush(own ? a : t), since = 0;
                a += many;
            }
            if (!own) flush(t);
            settle();
        });
        for (i64 a = 0; learns && a < (own ? l.A : 1); ++a)
            for (i64 j = 0; j < width; ++j) {
                double w = 0, b = 0;
                for (i64 t = own ? a : 0; t < (own ? a + 1 : threads); ++t)
                    w += total[std::size_t(2 * width * t + j)], b += total[std::size_t(2 * width * t + width + j)];
                if (f.dweight) f.dweight[a * l.ga + j] = float(w);
                if (f.dbias) f.dbias[a * l.ga + j] = float(b);
            }
    }

    void few_rows(int threads) const {
        const i64 groups = l.groups();
        vector<double> found(std::size_t(2 * groups * threads));
        team(threads, [&](int t, int of) {
            for (i64 i = 0; i < groups; ++i) {
                double *const my = found.data() + 2 * (i * threads + t);
                pull(i, rows.piece(t, of), my[0], my[1]);
            }
        });
        if (f.dweight) std::fill(f.dweight, f.dweight + l.gains(), 0.f);
        if (f.dbias) std::fill(f.dbias, f.dbias + l.gains(), 0.f);
        team(threads, [&](int t, int of) {
            const Part p = rows.piece(t, of);
            for (i64 i = 0; i < groups; ++i) {
                double s1 = 0, s2 = 0;
                for (int k = 0; k < threads; ++k)
                    s1 += found[std::size_t(2 * (i * threads + k))], s2 += found[std::size_t(2 * (i * threads + k) + 1)];
                const Slope s = slope_of(i, s1, s2);
                const i64 k = rows.gain(i) + p.begin;
                descend<1>(i, 1, p, &s, f.dweight ? f.dweight + k : nullptr, f.dbias ? f.dbias + k : nullptr);
            }
            for (i64 a = 0; a < (l.ga ? l.A : 1); ++a)
                for (i64 c = 0; c < (l.gc ? l.C : 1); ++c)
                    for (float *of_gain : {f.dweight, f.dbias})
                        if (of_gain) as_memory<T>(of_gain + a * l.ga + c * l.gc + p.begin, p.end - p.begin);
            settle();
        });
    }
};

template <bool STREAM, class T> void rows_backward(const Call &call, const Backward &f) {
    const RowsBackward<STREAM, T> go{call, f};
    const int threads = threads_for(call);
    go.rows.few(threads) ? go.few_rows(threads) : go.all_rows(threads);
}

} // namespace
