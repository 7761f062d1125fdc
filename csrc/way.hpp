// Which way leads through memory, chosen by where the pooled elements lie:
//
//     rows       pooled elements contiguous, gain along them          layer and RMS norm
//     runs       pooled elements in contiguous runs, one gain each    batch, group, instance norm of NCHW
//     columns    kept elements contiguous, pooled ones far apart      the same of channels_last, tables
#pragma once

#include "norm.hpp"

enum class Way { rows, runs, columns };

inline Way way(const Call &call) {
    const Layout &l = call.at;
    const bool along = call.gain && l.gs == 1;
    if (l.B * l.T * l.P == 1 && !l.labels && (!call.gain || along)) return Way::rows;
    // Many short runs are better walked across; where many are few, and short is short, was measured.
    const std::int64_t run = l.P * l.S;
    const bool across = l.labels ? run < 64 : run <= 64 && l.B > 2 * run;
    return along || l.T > 1 || across ? Way::columns : Way::runs;
}

// Can weights of these strides be walked? Along columns they are dense, or one per row.
inline bool walkable(const Call &call) {
    const Layout &l = call.at;
    if (l.ws > 1) return false;
    if (way(call) != Way::columns) return true;
    const auto fits = [](std::int64_t n, std::int64_t have, std::int64_t want) { return n == 1 || have == want; };
    const bool one = fits(l.C, l.wc, 0) && fits(l.P, l.wp, 0) && fits(l.S, l.ws, 0);
    return one || (fits(l.C, l.wc, l.P * l.S) && fits(l.P, l.wp, l.S) && fits(l.S, l.ws, 1));
}
