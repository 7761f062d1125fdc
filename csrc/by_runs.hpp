// By runs: pooled elements in contiguous runs of one gain each (batch, group and instance norm of NCHW).
#pragma once

#include "runs.hpp"
#include "share.hpp"

namespace {

// Segment (a, b, c) is P runs of S, contiguous. Group g has `many()` of them: B, or those its label names.
struct Runs {
    const Call &call;
    const Layout &l = call.at;
    i64 length = l.P * l.S, segments = l.A * l.B * l.C;

    struct Place {
        i64 a, b, c;
    };
    Place place(i64 segment) const { return {segment / (l.B * l.C), segment / l.C % l.B, segment % l.C}; }
    Place place(i64 unit, i64 b) const { return call.label ? Place{0, b, unit} : Place{unit / l.C, b, unit % l.C}; }
    i64 segment(i64 a, i64 b, i64 c) const { return (a * l.B + b) * l.C + c; }
    i64 segment(Place s) const { return segment(s.a, s.b, s.c); }
    i64 group(Place s) const { return (call.label ? call.label[s.b] : s.a) * l.C + s.c; }
    i64 gain(Place s, i64 p) const { return l.gain(s.a, s.b, s.c, p, 0); }
    const float *weights(Place s, i64 p) const {
        return call.where ? call.where + s.a * l.wa + s.b * l.wb + s.c * l.wc + p * l.wp : nullptr;
    }

    // f(p, from, to) for the runs, or parts of runs, of [begin, end)
    template <class F> void each_run(i64 begin, i64 end, const F &f) const {
        for (i64 p = begin / l.S; p * l.S < end; ++p) f(p, std::max(begin, p * l.S), std::min(end, (p + 1) * l.S));
    }
    template <class T> void look(const T *x, i64 segment, i64 begin, i64 end, Look &seen) const {
        const T *const at = x + segment * length;
        if (!call.where) return run_look(at + begin, end - begin, call.center, nullptr, 1.f, seen);
        each_run(begin, end, [&](i64 p, i64 from, i64 to) {
            const float *const w = weights(place(segment), p);
            run_look(at + from, to - from, call.center, l.ws ? w + (from - p * l.S) : nullptr, l.ws ? 1.f : *w, seen);
        });
    }
    template <class T> Look look(const T *x, i64 g) const { // at a whole group
        Look seen;
        const i64 first = segment(g / l.C, 0, g % l.C);
        if (!call.where) run_look(x + first * length, length, call.center, nullptr, 1.f, seen, l.B, l.C * length);
        for (i64 b = 0; b < l.B && call.where; ++b) look(x, first + b * l.C, 0, length, seen);
        return seen;
    }

    // Units share no group: a group, or where b is labelled all the groups of one c.
    i64 kinds() const { return call.label ? l.labels : 1; } // groups of a unit
    i64 units() const { return l.groups() / kinds(); }
    i64 kind(i64 b) const { return call.label ? call.label[b] : 0; }
    i64 group(i64 unit, i64 kind) const { return call.label ? kind * l.C + unit : unit; }

    // Whole units, each by one thread while it is in the cache; or pieces by all?
    bool whole(int threads) const { return !cut(units(), threads); }
    // Groups a thread looks at together before it writes any. One is still in its own cache when it is written, unless
    // it is large; then longer stretches of reading and of writing are what memory is quicker for.
    static constexpr i64 MOST = 4;
    template <class T> i64 abreast() const {
        const i64 size = l.B * length * i64(sizeof(T));
        return l.B == 1 || call.label || size < 384 << 10 ? 1 : std::max<i64>(1, std::min(MOST, (2 << 20) / size));
    }
    // Pieces of a segment, so that even one huge run keeps every thread busy.
    i64 pieces(int threads) const {
        return segments >= 4 * threads ? 1 : std::min<i64>(4 * threads, std::max<i64>(1, length / CHUNK));
    }
};

template <bool STREAM, class T> void runs_forward(const Call &call, const Forward &f) {
    const Runs runs{call};
    const Layout &l = call.at;
    const i64 groups = l.groups(), length = runs.length;
    const T *const x = static_cast<const T *>(f.x);
    T *const y = static_cast<T *>(f.y);
    const bool fixed = call.trust == Trust::fixed;
    const i64 next = ahead_of<T>(length, l.B == 1);
    const auto apply = [&](Runs::Place place, i64 begin, i64 end, i64 ahead) {
        const i64 segment = runs.segment(place);
        const Stat q = f.stats[runs.group(place)];
        runs.each_run(begin, end, [&](i64 p, i64 from, i64 to) {
            const i64 k = runs.gain(place, p), at = segment * length + from;
            const float s = (f.weight ? f.weight[k] : 1.f) * q.rate, t = (f.bias ? f.bias[k] : 0.f) - q.shift * s;
            weighing(call, [&](auto is) {
                run_apply<STREAM, is.value>(x + at, x + at + ahead, y + at, to - from, q.hi, s, t);
            });
        });
    };
    const int threads = threads_for(call);
    const bool alone = l.B == 1 && !call.label && packs(call, length); // a group is one short run
    const i64 abreast = STREAM ? runs.abreast<T>() : 1;
    if (!fixed && runs.whole(threads)) // constants are applied as memory lies
        return team(threads, [&](int t, int of) {
            const Part mine = part(runs.units(), t, of);
            i64 packed = mine.begin; // groups measured so far PACK at a time
            for (i64 g = mine.begin, many; g < mine.end; g += many) {
                many = std::min(abreast, mine.end - g);
                if (many > 1) {
                    Look seen[Runs::MOST];
                    for (i64 b = 0; b < l.B; ++b)
                        for (i64 k = 0; k < many; ++k) runs.look(x, runs.segment(runs.place(g + k, b)), 0, length, seen[k]);
                    for (i64 k = 0; k < many; ++k) f.stats[g + k] = settled(call, f, seen[k].moments(call.center), g + k);
                } else if (call.label) {
                    vector<Look> seen(std::size_t(runs.kinds()));
                    for (i64 b = 0; b < l.B; ++b)
                        runs.look(x, runs.segment(0, b, g), 0, length, seen[std::size_t(runs.kind(b))]);
                    for (i64 k = 0; k < runs.kinds(); ++k) {
                        const i64 own = runs.group(g, k);
                        f.stats[own] = settled(call, f, seen[std::size_t(k)].moments(call.center), own);
                    }
                } else if (alone && packed == g && g + PACK <= mine.end)
                    settle_pack(call, f, x + g * length, length, g), packed += PACK;
                else if (packed <= g)
                    f.stats[g] = settled(call, f, runs.look(x, g).moments(call.center), g);
                for (i64 b = l.B; b-- > 0 && y;) // the last was seen last
                    for (i64 k = many; k-- > 0;) apply(runs.place(g + k, b), 0, length, many * next);
            }
            settle();
        });
    const i64 pieces = runs.pieces(threads), items = runs.segments * pieces;
    vector<Look> seen(std::size_t(fixed ? 0 : items));
    vector<Moments> sums(std::size_t(groups), Moments{});
    if (!fixed)
        team(threads, [&](int t, int of) {
            const Part mine = part(items, t, of);
            for (i64 i = mine.begin; i < mine.end; ++i) {
                const Part piece = part(length, int(i % pieces), int(pieces));
                runs.look(x, i / pieces, piece.begin, piece.end, seen[std::size_t(i)]);
            }
        });
    for (i64 i = 0; i < items && !fixed; ++i)
        sums[std::size_t(runs.group(runs.place(i / pieces)))].add(seen[std::size_t(i)].moments(call.center));
    for (i64 g = 0; g < groups; ++g)
        f.stats[g] = fixed ? constant(call, g) : settled(call, f, sums[std::size_t(g)], g);
    if (!y) return;
    team(threads, [&](int t, int of) {
        const Part mine = part(items, t, of);
        for (i64 k = 0; k < mine.end - mine.begin; ++k) { // what was measured last is applied first
            const i64 i = fixed ? mine.begin + k : mine.end - 1 - k;
            const Part piece = part(length, int(i % pieces), int(pieces));
            apply(runs.place(i / pieces), piece.begin, piece.end, fixed ? 0 : -next);
        }
        settle();
    });
}

template <bool STREAM, class T> void runs_backward(const Call &call, const Backward &f) {
    const Runs runs{call};
    const Layout &l = call.at;
    const i64 groups = l.groups(), length = runs.length;
    const T *const x = static_cast<const T *>(f.x), *const dy = static_cast<const T *>(f.dy);
    T *const dx = static_cast<T *>(f.dx);
    const T *const to = STREAM || !dx ? x : dx; // what will be written through the cache
    const i64 next = ahead_of<T>(length, l.B == 1);
    const int threads = threads_for(call);
    const bool whole = runs.whole(threads);
    // Sums over every strand of dy and of dy (x - hi), from which come both the group's pull and the gain's gradient.
    // A strand is a run; or, where a thread has its group whole and one gain serves them, the runs of all b.
    const i64 abreast = whole && !l.gb && !call.label ? l.B : 1, strands = runs.segments / abreast;
    const auto place_of = [&](i64 strand) {
        return abreast > 1 ? Runs::Place{strand / l.C, 0, strand % l.C} : runs.place(strand);
    };
    const bool packed = whole && l.B == 1 && !call.label && packs_back<T>(call, l.S);
    vector<double> pull(std::size_t(strands * l.P * 2));
    const auto look = [&](i64 strand, Runs::Place s, i64 p) {
        const i64 at = runs.segment(s) * length + p * l.S;
        double *const out = pull.data() + (strand * l.P + p) * 2;
        const float hi = f.stats[runs.group(s)].hi;
        weighing(call, [&](auto is) {
            run_pull<is.value>(x + at, dy + at, to + at, nullptr, l.S, abreast, l.C * length, hi, out[0], out[1]);
        });
    };
    const auto look_pack = [&](i64 run, i64 g, i64 p) { // the same of PACK runs from run p of group g on
        float hi[PACK];
        double s1[PACK], s2[PACK];
        for (i64 k = 0; k < PACK; ++k) hi[k] = f.stats[g + (p + k) / l.P].hi;
        pack_pull(x + run * l.S, dy + run * l.S, to + run * l.S, nullptr, l.S, l.S, hi, s1, s2);
        for (i64 k = 0; k < PACK; ++k) pull[std::size_t(2 * (run + k))] = s1[k], pull[std::size_t(2 * (run + k) + 1)] = s2[k];
    };
    // Add what one strand's segment pulls: sums of gain dy and of gain dy xhat.
    const auto add = [&](i64 strand, Runs::Place place, double *sums) {
        const Stat &q = f.stats[runs.group(place)];
        for (i64 p = 0; p < l.P; ++p) {
            const double *const of = pull.data() + (strand * l.P + p) * 2;
            const double gain = f.weight ? double(f.weight[runs.gain(place, p)]) : 1.0;
            sums[0] += gain * of[0], sums[1] += gain * double(q.r) * (of[1] - double(q.lo) * of[0]);
        }
    };
    const auto descend = [&](Runs::Place place, i64 p, const Slope &s, i64 ahead) {
        const i64 at = runs.segment(place) * length + p * l.S;
        const float gain = f.weight ? f.weight[runs.gain(place, p)] : 1.f, *const w = runs.weights(place, p);
        weighing(call, [&](auto is) {
            run_descend<STREAM, is.value>(x + at, dy + at, dx + at, ahead, l.S, s.hi, gain * s.rate, s.q, s.r,
                                          l.ws ? w : nullptr, w && !l.ws ? *w : 1.f);
        });
    };
    if (whole)
        team(threads, [&](int t, int of) {
            const Part mine = part(runs.units(), t, of);
            vector<double> sums(std::size_t(2 * runs.kinds()));
            vector<Slope> slopes(std::size_t(runs.kinds()));
            i64 looked = mine.begin * l.P; // runs, where they go PACK at a time
            for (i64 g = mine.begin; g < mine.end; ++g) {
                for (; packed && looked < (g + 1) * l.P && looked + PACK <= mine.end * l.P; looked += PACK)
                    look_pack(looked, g, looked - g * l.P);
                std::fill(sums.begin(), sums.end(), 0.0);
                for (i64 b = 0; b < l.B; b += abreast) {
                    const Runs::Place place = runs.place(g, b);
                    const i64 strand = abreast > 1 ? g : runs.segment(place);
                    for (i64 p = packed ? std::max<i64>(0, looked - g * l.P) : 0; p < l.P; ++p) look(strand, place, p);
                    add(strand, place, sums.data() + 2 * runs.kind(b));
                }
                for (i64 k = 0; k < runs.kinds(); ++k)
                    slopes[std::size_t(k)] = slope(call, f.stats[runs.group(g, k)], sums[std::size_t(2 * k)],
                                                   sums[std::size_t(2 * k + 1)]);
                for (i64 b = l.B; b-- > 0 && dx;)
                    for (i64 p = l.P; p-- > 0;) descend(runs.place(g, b), p, slopes[std::size_t(runs.kind(b))], next);
            }
            settle();
        });
    else {
        team(threads, [&](int t, int of) {
            const Part mine = part(strands * l.P, t, of);
            for (i64 i = mine.begin; i < mine.end; ++i) look(i / l.P, runs.place(i / l.P), i % l.P);
        });
        vector<double> sums(std::size_t(2 * groups));
        for (i64 i = 0; i < strands; ++i) add(i, runs.place(i), sums.data() + 2 * runs.group(runs.place(i)));
        team(threads, [&](int t, int of) {
            const Part mine = part(strands * l.P, t, of);
            for (i64 i = mine.end; i-- > mine.begin && dx;) {
                const auto place = runs.place(i / l.P);
                const auto g = std::size_t(runs.group(place));
                descend(place, i % l.P, slope(call, f.stats[g], sums[2 * g], sums[2 * g + 1]), -next);
            }
            settle();
        });
    }
    if (!f.dweight && !f.dbias) return;
    vector<double> sum_w(std::size_t(l.gains())), sum_b(std::size_t(l.gains()));
    for (i64 i = 0; i < strands; ++i) {
        const auto place = place_of(i);
        const Stat &q = f.stats[runs.group(place)];
        for (i64 p = 0; p < l.P; ++p) {
            const double *const of = pull.data() + (i * l.P + p) * 2;
            const auto k = std::size_t(runs.gain(place, p));
            sum_w[k] += double(q.rate) * (of[1] - double(q.shift) * of[0]), sum_b[k] += of[0];
        }
    }
    for (std::size_t k = 0; k < sum_w.size(); ++k) {
        if (f.dweight) f.dweight[k] = float(sum_w[k]);
        if (f.dbias) f.dbias[k] = float(sum_b[k]);
    }
}

} // namespace
