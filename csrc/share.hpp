// What the three ways through memory have in common: how the work is divided, and what is told about a group.
#pragma once

#include "norm.hpp"
#include "runs.hpp"
#include "team.hpp"

#include <vector>

namespace {

using std::vector;

constexpr i64 SERIAL = 16384; // elements below which waking a second thread costs more than it saves

int threads_for(const Call &call) {
    const Layout &l = call.at;
    return l.groups() * l.pool() < SERIAL ? 1 : call.threads;
}

void tell(const Moments &m, i64 g, double *mean, double *m2) {
    if (mean) mean[g] = m.mean, m2[g] = m.m2;
}

// Is a group to be cut in pieces, for want of groups?
bool cut(i64 groups, int threads) { return threads > 1 && groups < 2 * threads && groups % threads != 0; }

} // namespace
