// A tensor as rows of columns, put in the order of their groups: table after table, whatever labels say.
#pragma once

#include "columns.hpp"
#include "share.hpp"

namespace {

// Short or crooked rows are read several at a time, as one row of `times` times the width.
i64 fold(i64 width, i64 rows) {
    i64 times = 1;
    if (width % 16 != 0 && width < 512)
        while (times < 16 && ((times * width) % 16 || times * width < 64)) times *= 2;
    else if (width < 64)
        while (times * width < 64) times *= 2;
    while (times > 1 && (rows % times || rows < 4 * times)) times /= 2;
    return times;
}
// Rows that differ in weight, gain or label are read one by one.
i64 fold(const Call &call) {
    const Layout &l = call.at;
    return call.where || call.label || l.gb ? 1 : fold(l.C * l.P * l.S, l.B * l.T);
}

struct Unit { // rows of one table and, where gains differ by b, of one block (a, b)
    i64 table, a, b;
};

template <class T> class Sheet {
  public:
    const Call &call;
    const Layout &l = call.at;
    const i64 columns = l.C * l.P * l.S, times = fold(call), width = columns * times;
    const i64 line = (width + LANES - 1) / LANES * LANES; // room for a value per column, in whole vectors

    explicit Sheet(const Call &c) : call(c), first(std::size_t(l.tables() + 1)) {
        const i64 rows = l.B * l.T / times;
        if (!call.label) {
            for (i64 k = 0; k <= l.A; ++k) first[std::size_t(k)] = k * rows;
            return;
        }
        vector<i64> next(std::size_t(l.labels + 1)); // a counting sort, which keeps the order within a label
        for (i64 b = 0; b < l.B; ++b) ++next[std::size_t(call.label[b] + 1)];
        for (i64 k = 0; k < l.labels; ++k) next[std::size_t(k + 1)] += next[std::size_t(k)];
        for (i64 k = 0; k <= l.labels; ++k) first[std::size_t(k)] = next[std::size_t(k)] * l.T;
        block.resize(std::size_t(l.B));
        for (i64 b = 0; b < l.B; ++b) block[std::size_t(next[std::size_t(call.label[b])]++)] = b;
    }

    i64 rows() const { return first.back(); }
    Part table(i64 k) const { return {first[std::size_t(k)], first[std::size_t(k + 1)]}; }
    bool whole(int threads) const { return !call.label && l.A >= threads && !cut(l.A, threads); }
    // few enough to sum in float, and to stay in the second cache between two looks
    i64 tile() const {
        const i64 most = call.where ? MOST / 2 : MOST; // weighed rows are added four by four, the others eight by eight
        return std::max<i64>(8, std::min<i64>(most, (1 << 18) / (width * i64(sizeof(T)))));
    }

    // f(unit, rows) for every unit among some rows
    template <class F> void walk(Part some, const F &f) const {
        i64 k = std::upper_bound(first.begin(), first.end(), some.begin) - first.begin() - 1;
        for (i64 i = some.begin; i < some.end; ++k) {
            for (const i64 end = std::min(some.end, first[std::size_t(k + 1)]); i < end;) {
                const i64 stop = l.gb ? std::min(end, (i / l.T + 1) * l.T) : end, at = l.gb ? block_of(i / l.T) : 0;
                f(Unit{k, call.label ? 0 : k, at % l.B}, Part{i, stop});
                i = stop;
            }
        }
    }
    // f(tile, first row) a few rows at a time; `back`: the last first, which may still be in a cache
    template <class F> void tiles(const T *x, Part some, bool back, const F &f) const {
        const T *at[MOST];
        const float *where[MOST];
        const bool along = (l.C > 1 && l.wc) || (l.P > 1 && l.wp) || (l.S > 1 && l.ws);
        const i64 most = tile();
        for (i64 done = 0, n, all = some.end - some.begin; done < all; done += n) {
            n = std::min(most, all - done);
            const i64 begin = back ? some.end - done - n : some.begin + done;
            point(x, begin, n, at);
            for (i64 i = 0; call.where && i < n; ++i) where[i] = weights(begin + i);
            f(Tile<T>{at, call.where ? where : nullptr, along, n, width}, begin);
        }
    }
    template <class P> void point(P *x, i64 begin, i64 n, P **at) const {
        for (i64 i = 0; i < n; ++i) at[i] = x + row(begin + i) * width;
    }
    // A line of values: f(group, gain) of each column
    template <class F> void spread(const Unit &u, const F &f) const {
        for (i64 again = 0, j = 0; again < times; ++again)
            for (i64 c = 0; c < l.C; ++c)
                for (i64 p = 0; p < l.P; ++p)
                    for (i64 s = 0, k = l.gain(u.a, u.b, c, p, 0); s < l.S; ++s, ++j) f(j, u.table * l.C + c, k + s * l.gs);
    }

    static constexpr i64 MOST = 256;

  private:
    vector<i64> first, block; // of each table its first row; of each place the block there, where labels say so

    i64 block_of(i64 place) const { return block.empty() ? place : block[std::size_t(place)]; }
    i64 row(i64 i) const { return block.empty() ? i : block[std::size_t(i / l.T)] * l.T + i % l.T; }
    const float *weights(i64 i) const {
        const i64 at = row(i), b = at / l.T;
        return call.where + (b / l.B) * l.wa + (b % l.B) * l.wb + (at % l.T) * l.wt;
    }
};

} // namespace
