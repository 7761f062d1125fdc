// The kernels without Python, against a plain loop in double: `make check-native` builds this with sanitizers.
//
//     check [draws] [first seed]        0: all agree    1: one does not, and it is named
//
// A draw is a layout, a dtype, a gain, weights, labels, a trust, a place in memory and a number of threads. Every array
// ends with its block, so that one element read or written too far is an error of the address sanitizer or of the
// processor; what lies before the first element, and what was not written, is NaN. Two drivers draw at once, as two
// Python threads do.

#include "norm.hpp"
#include "way.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

extern const Kernels kernels_checked; // the linker's other name for those of one instruction set
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*)());

namespace {

using i64 = std::int64_t;
using Doubles = std::vector<double>;
constexpr double EPS = 1e-5, NONE = std::numeric_limits<double>::quiet_NaN();

// ---- one element in memory

// A sign, an exponent from LEAST on and DIGITS binary digits: 16 bits together.
template <int DIGITS, int LEAST> struct Small {
    std::uint16_t bits;
};
using Brain = Small<7, -126>;
using Half = Small<10, -14>;

double value(double v) { return v; }
double value(float v) { return v; }
template <int DIGITS, int LEAST> double value(Small<DIGITS, LEAST> v) {
    const int size = v.bits & 0x7fff, e = size >> DIGITS, digits = size & ((1 << DIGITS) - 1);
    if (e == (0x7fff >> DIGITS)) return digits ? NONE : v.bits >> 15 ? -HUGE_VAL : HUGE_VAL;
    const double at = std::ldexp(e ? digits + (1 << DIGITS) : digits, LEAST - DIGITS + (e ? e - 1 : 0));
    return v.bits >> 15 ? -at : at;
}
void set(float &to, double v) { to = float(v); }
template <int DIGITS, int LEAST> void set(Small<DIGITS, LEAST> &to, double v) { // to nearest, ties to even
    const double size = std::fabs(v), infinite = (0x7fff >> DIGITS) << DIGITS;
    const int e = size > 0 && std::isfinite(v) ? std::max(std::ilogb(size), LEAST) : LEAST;
    const double bits = std::nearbyint(std::ldexp(size, DIGITS - e)) + ((e - LEAST) << DIGITS);
    to.bits = std::uint16_t((std::isnan(v) ? 0x7fff : int(std::min(bits, infinite))) | (std::signbit(v) ? 0x8000 : 0));
}
template <class T> constexpr int KIND = 0; // its place in Kernels, and the rounding of a value stored
template <> constexpr int KIND<Brain> = 1;
template <> constexpr int KIND<Half> = 2;
constexpr double ROUNDING[] = {0, 1.0 / 256, 1.0 / 2048};

// Where an array lies: in a heap block, `shift` elements past a cache line's boundary; or before a page that no one may
// touch, because the sanitizer does not see masked and streaming instructions.
struct Place {
    bool fenced;
    i64 shift;
};

template <class T> class Array {
    char *block = nullptr, *first = nullptr;
    std::size_t mapped = 0;

    static std::size_t bytes(i64 n) { return std::size_t(n) * sizeof(T); }
    void fence() {
        const std::size_t page = std::size_t(sysconf(_SC_PAGESIZE)), room = (bytes(size) + page - 1) / page * page;
        void *const p = mmap(nullptr, mapped = room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED || mprotect(static_cast<char *>(p) + room, page, PROT_NONE)) std::abort();
        block = static_cast<char *>(p), first = block + room - bytes(size);
    }
    void allocate(i64 shift) {
        void *p = nullptr;
        if (posix_memalign(&p, 64, bytes(size + shift))) std::abort();
        block = static_cast<char *>(p), first = block + bytes(shift);
    }

  public:
    const i64 size;
    Array(i64 n, Place place) : size(n) {
        place.fenced ? fence() : allocate(place.shift);
        std::memset(block, 0xff, std::size_t(first - block) + bytes(size)); // NaN, of every kind
    }
    Array(const Array &) = delete;
    Array &operator=(const Array &) = delete;
    ~Array() { mapped ? void(munmap(block, mapped)) : std::free(block); }
    T *data() const { return reinterpret_cast<T *>(first); }
    T *data_if(bool there) const { return there ? data() : nullptr; }
    T &operator[](i64 i) const { return data()[i]; }
    bool front_is_untouched() const {
        return std::all_of(block, first, [](char c) { return c == char(0xff); });
    }
};

// ---- one draw

struct Case {
    Layout at;
    bool weight, bias, dweight, dbias, center, stream, where, holes, wide, moments, applied, other, dsum;
    Trust trust;
    double r_max, d_max, mean;
    int threads, kind; // kind: of elements, as in Kernels
    Place place;

    bool learns() const { return weight || bias; }
    i64 weights() const {
        const Layout &l = at;
        return 1 + (l.A - 1) * l.wa + (l.B - 1) * l.wb + (l.T - 1) * l.wt + (l.C - 1) * l.wc + (l.P - 1) * l.wp +
               (l.S - 1) * l.ws;
    }
};

// The strides of an array of the axes named in `among`, dense, in memory order.
struct Axis {
    char name;
    i64 size;
    i64 *stride;
};
void stretch(std::initializer_list<Axis> fastest_first, const std::string &among) {
    i64 step = 1;
    for (const Axis &axis : fastest_first)
        if (among.find(axis.name) != std::string::npos) *axis.stride = step, step *= axis.size;
}
Layout laid(i64 A, i64 B, i64 T, i64 C, i64 P, i64 S, const std::string &gain, i64 labels = 0) {
    Layout l{};
    l.A = A, l.B = B, l.T = T, l.C = C, l.P = P, l.S = S, l.labels = labels;
    stretch({{'s', S, &l.gs}, {'p', P, &l.gp}, {'c', C, &l.gc}, {'b', B, &l.gb}, {'a', A, &l.ga}}, gain);
    return l;
}
void weigh(Layout &l, const std::string &among) {
    stretch({{'s', l.S, &l.ws}, {'p', l.P, &l.wp}, {'c', l.C, &l.wc},
             {'t', l.T, &l.wt}, {'b', l.B, &l.wb}, {'a', l.A, &l.wa}},
            among);
}

class Draw {
    std::mt19937_64 bits;

  public:
    explicit Draw(std::uint64_t seed) : bits(seed) {}
    i64 below(i64 n) { return i64(bits() % std::uint64_t(n)); }
    bool chance(int percent) { return below(100) < percent; }
    template <class T> T of(std::initializer_list<T> list) { return list.begin()[below(i64(list.size()))]; }
    double normal() { return std::normal_distribution<double>()(bits); }
    std::string some(const char *names) {
        std::string out;
        for (; *names; ++names)
            if (chance(40)) out += *names;
        return out;
    }

    // Around what loops care about: vectors of 4, 8, 16, tiles of 64 and 256, blocks of 512, chunks of 4096.
    i64 extent(i64 most) {
        const i64 n = of({1,  1,  2,  3,  4,  7,   8,   15,  16,  17,   31,  33,
                          63, 64, 65, 100, 129, 257, 511, 513, 1000, 4096, 9001});
        return std::min(most, std::max<i64>(1, n + (n > 16 ? below(5) - 2 : 0)));
    }
    Layout layout();
    Case one();
};

// The presets in both memory formats, and layouts that no preset has.
Layout Draw::layout() {
    const i64 n = extent(9), c = extent(chance(30) ? 5 : 40), hw = extent(9001), g = extent(5), k = extent(12);
    const i64 labels = chance(50) ? 1 + below(5) : 0, few = chance(50) ? 8192 + 64 * below(500) : 8000 + below(30000);
    switch (below(11)) {
    case 0: return laid(extent(300), 1, 1, 1, 1, hw, "s");                  // layer
    case 1: return laid(1 + below(2), 1, 1, 1, 1, few, "s");                // few long rows
    case 2: return laid(n, 1, 1, c, 1, extent(300), of({"as", "cs", "s"})); // adaptive, per head
    case 3: return laid(1, n, 1, c, 1, hw, of({"c", "bc"}), labels);        // batch, conditional, by domain
    case 4: return laid(1, extent(600), 1, extent(1000), 1, 1, "c", labels); // the same of channels_last, tables
    case 5: return laid(1, n, extent(600), c, 1, 1, of({"c", "bc"}), labels);
    case 6: return laid(n, 1, 1, g, k, hw, of({"cp", "acp"}));              // group
    case 7: return laid(n, extent(600), 1, g, 1, k, of({"cs", "acs"}));
    case 8: return laid(n, 1, 1, c, 1, hw, of({"c", "ac"}));                // instance
    case 9: return laid(n, extent(600), 1, c, 1, 1, of({"c", "ac"}));
    }
    return laid(labels ? 1 : extent(6), extent(70), extent(5), extent(9), extent(5), extent(70), some("abcps"), labels);
}

Case Draw::one() {
    const i64 least = chance(30) ? 16384 : 1, most = 12 * std::max<i64>(least, 2000); // threads share 16384 and more
    Case c{};
    do c.at = layout();
    while (c.at.elements() < least || c.at.elements() > most);
    c.weight = chance(70), c.bias = chance(60), c.dweight = c.weight && chance(80), c.dbias = c.bias && chance(80);
    c.center = chance(70), c.stream = chance(40), c.applied = chance(95), c.wide = chance(50);
    c.trust = of({Trust::through, Trust::through, Trust::through, Trust::fixed, Trust::pulled});
    c.r_max = of({1.0, 1.5, 3.0}), c.d_max = of({0.0, 0.5, 5.0});
    c.kind = of({0, 0, 1, 2}), c.mean = of({0., 3., 5., c.kind ? -100. : -10000.});
    c.moments = c.trust != Trust::fixed && chance(50);
    c.threads = of({1, 2, 3}), c.place = {chance(30), chance(40) ? 0 : 1 + below(15)};
    return c;
}

template <class T> struct Arrays {
    Array<T> x, other, sum, dy, dsum, y, dx;
    Array<float> weight, bias, dweight, dbias, where;
    Array<i64> label;
    Array<float> mean_given, var_given;
    Array<double> wide_mean, wide_var, mean, m2, count;
    Array<Stat> stats;

    explicit Arrays(const Case &c, i64 n, i64 gains, i64 groups)
        : x(n, c.place), other(n, c.place), sum(n, c.place), dy(n, c.place), dsum(n, c.place), y(n, c.place),
          dx(n, c.place), weight(gains, c.place), bias(gains, c.place), dweight(gains, c.place),
          dbias(gains, c.place), where(c.weights(), c.place), label(c.at.B, c.place), mean_given(groups, c.place),
          var_given(groups, c.place), wide_mean(groups, c.place), wide_var(groups, c.place), mean(groups, c.place),
          m2(groups, c.place), count(groups, c.place), stats(groups, c.place) {}
    bool fronts_are_untouched() const {
        return sum.front_is_untouched() && y.front_is_untouched() && dx.front_is_untouched() &&
               dweight.front_is_untouched() && dbias.front_is_untouched() && mean.front_is_untouched() &&
               m2.front_is_untouched() && count.front_is_untouched() && stats.front_is_untouched();
    }
    const Array<T> &normalized(const Case &c) const { return c.other ? sum : x; }
};

// ---- the seam: all that knows how the kernels are called; when norm.hpp changes, these few functions do

template <class T> Call call_of(const Case &c, const Arrays<T> &in) {
    Call call{};
    call.at = c.at, call.eps = EPS, call.gain = c.learns(), call.center = c.center, call.stream = c.stream;
    call.trust = c.trust, call.r_max = c.r_max, call.d_max = c.d_max, call.threads = c.threads, call.wide = c.wide;
    call.where = in.where.data_if(c.where), call.label = in.label.data_if(c.at.labels > 0);
    call.mean = c.wide ? static_cast<const void *>(in.wide_mean.data()) : in.mean_given.data();
    call.var = c.wide ? static_cast<const void *>(in.wide_var.data()) : in.var_given.data();
    return call;
}
// Weights and a sum that this layout's way through memory can take.
void fit(Case &c, Draw &draw) {
    Call call{};
    call.at = c.at, call.gain = c.learns();
    if (draw.chance(40)) weigh(call.at, draw.of({std::string("abtcps"), std::string("abt"), draw.some("abtcps")}));
    c.where = walkable(call) && call.at.wa + call.at.wb + call.at.wt + call.at.wc + call.at.wp + call.at.ws > 0;
    c.holes = c.where && draw.chance(50);
    if (c.where) c.at = call.at;
    c.other = way(call) == Way::rows && draw.chance(30), c.dsum = way(call) == Way::rows && draw.chance(30);
}
template <class T> void run_forward(const Kernels &kernels, const Case &c, const Arrays<T> &in) {
    kernels.forward[KIND<T>](call_of(c, in),
                             {in.x.data(), in.other.data_if(c.other), in.weight.data_if(c.weight),
                              in.bias.data_if(c.bias), in.sum.data_if(c.other), in.y.data_if(c.applied),
                              in.stats.data(), in.mean.data_if(c.moments), in.m2.data_if(c.moments),
                              in.count.data_if(c.moments)});
}
template <class T> void run_backward(const Kernels &kernels, const Case &c, const Arrays<T> &in) {
    kernels.backward[KIND<T>](call_of(c, in), {in.normalized(c).data(), in.dy.data(), in.dsum.data_if(c.dsum),
                                               in.weight.data_if(c.weight), in.stats.data(), in.dx.data(),
                                               in.dweight.data_if(c.dweight), in.dbias.data_if(c.dbias)});
}

// ---- the truth: groups first, then everything from them

struct At { // an element: its place, group, gain, weight
    i64 i, g, k, w;
};
template <class T, class F> void each(const Case &c, const Arrays<T> &in, const F &f) {
    const Layout &l = c.at;
    i64 i = 0;
    for (i64 a = 0; a < l.A; ++a)
        for (i64 b = 0; b < l.B; ++b)
            for (i64 t = 0; t < l.T; ++t)
                for (i64 e = 0; e < l.C; ++e)
                    for (i64 p = 0; p < l.P; ++p)
                        for (i64 s = 0; s < l.S; ++s)
                            f(At{i++, (l.labels ? in.label[b] : a) * l.C + e, l.gain(a, b, e, p, s),
                                 a * l.wa + b * l.wb + t * l.wt + e * l.wc + p * l.wp + s * l.ws});
}

struct Value { // `size` is the sum of the magnitudes it was added up from: what an error is relative to
    double v = 0, size = 0;
    void add(double term, double of) { v += term, size += of; }
};
using Values = std::vector<Value>;

// xhat = (x - mean) r of a mean and an r as measured; y = (x - shift) rate; both x - mean and 1/r unless pulled
struct Group {
    double n = 0, mean = 0, m2 = 0, r = 1, shift = 0, rate = 1;
    Value c1, c2;

    double slack() const { return 1 + r * std::fabs(mean) * 0x1p-20; } // a mean is known to so much of its size
};

double within(double least, double v, double most) { return std::min(std::max(v, least), most); }

template <class T> class Truth {
    const Case &c;
    const Arrays<T> &in;
    std::vector<Group> groups;

    double x(At at) const { return value(in.normalized(c)[at.i]); }
    double counts(At at) const { return c.where ? double(in.where[at.w]) : 1; }
    double weight(At at) const { return c.weight ? double(in.weight[at.k]) : 1; }
    Group &group(At at) { return groups[std::size_t(at.g)]; }

    void measure() {
        each(c, in, [&](At at) {
            if (counts(at) > 0) group(at).n += counts(at), group(at).mean += counts(at) * x(at);
        });
        for (Group &g : groups) g.mean = c.center && g.n > 0 ? g.mean / g.n : 0;
        each(c, in, [&](At at) {
            const double d = x(at) - group(at).mean;
            if (counts(at) > 0) group(at).m2 += counts(at) * d * d;
        });
    }
    void settle(Group &g, i64 i) const {
        const double mean = c.wide ? in.wide_mean[i] : double(in.mean_given[i]);
        const double sigma = std::sqrt((c.wide ? in.wide_var[i] : double(in.var_given[i])) + EPS);
        if (c.trust == Trust::fixed) {
            g.n = 0, g.mean = g.shift = c.center ? mean : 0, g.r = g.rate = 1 / sigma;
        } else if (g.n > 0) {
            const double own = std::sqrt(g.m2 / g.n + EPS);
            g.r = g.rate = 1 / own, g.shift = g.mean;
            if (c.trust != Trust::pulled) return;
            const double ratio = within(1 / c.r_max, own / sigma, c.r_max);
            g.rate = ratio / own;
            if (c.center) g.shift -= within(-c.d_max, (g.mean - mean) / sigma, c.d_max) / g.rate;
        }
    }
    void forward() {
        each(c, in, [&](At at) {
            const Group &g = group(at);
            const double w = weight(at), b = c.bias ? double(in.bias[at.k]) : 0, z = (x(at) - g.shift) * g.rate;
            y[std::size_t(at.i)] = {std::isfinite(x(at)) ? z * w + b : NONE,
                                    std::fabs(w) * (std::fabs(z) + g.rate / g.r * g.slack()) + std::fabs(b)};
        });
    }
    void backward() {
        each(c, in, [&](At at) {
            Group &g = group(at);
            if (!std::isfinite(x(at))) return; // not measured: a hole
            const double dy = value(in.dy[at.i]), h = (x(at) - g.mean) * g.r, z = (x(at) - g.shift) * g.rate;
            dweight[std::size_t(at.k)].add(dy * z, std::fabs(dy) * (std::fabs(z) + g.rate / g.r * g.slack()));
            dbias[std::size_t(at.k)].add(dy, std::fabs(dy));
            const double down = g.n > 0 ? weight(at) * dy / g.n : 0;
            if (c.center) g.c1.add(down, std::fabs(down));
            g.c2.add(down * h, std::fabs(down) * (std::fabs(h) + g.slack()));
        });
        each(c, in, [&](At at) {
            const Group &g = group(at);
            Value &to = dx[std::size_t(at.i)];
            if (c.dsum) to.add(value(in.dsum[at.i]), std::fabs(value(in.dsum[at.i])));
            if (!std::isfinite(x(at))) return;
            const double down = weight(at) * value(in.dy[at.i]), h = (x(at) - g.mean) * g.r, m = counts(at);
            to.add(g.rate * (down - m * (g.c1.v + h * g.c2.v)),
                   g.rate * (std::fabs(down) + m * (g.c1.size + (std::fabs(h) + g.slack()) * g.c2.size)));
        });
    }

  public:
    Values y, dx, dweight, dbias, mean, m2, count;

    Truth(const Case &of, const Arrays<T> &arrays)
        : c(of), in(arrays), groups(std::size_t(of.at.groups())), y(std::size_t(of.at.elements())), dx(y.size()),
          dweight(std::size_t(of.at.gains())), dbias(dweight.size()) {
        measure();
        for (const Group &g : groups) {
            mean.push_back({g.mean, std::fabs(g.mean) + 1}), count.push_back({g.n, g.n});
            m2.push_back({g.m2, g.m2 + g.n});
        }
        for (std::size_t i = 0; i < groups.size(); ++i) settle(groups[i], i64(i));
        forward();
        backward();
    }
};

// ---- the comparison

// Relative to the terms' magnitudes: twice the largest of 20,000 draws. Weighed sums start without a guess of the mean.
double tolerance(const Case &c) { return c.where ? 6e-5 : 2e-6; }

template <class T> bool agree(const char *name, double tolerance, const Array<T> &got, const Values &want) {
    for (i64 i = 0; i < got.size; ++i) {
        const Value &w = want[std::size_t(i)];
        const double v = value(got[i]), rounding = ROUNDING[KIND<T>] * std::max(std::fabs(w.v), 0x1p-14);
        if (std::isnan(w.v) ? std::isnan(v) : std::fabs(v - w.v) <= tolerance * w.size + rounding) continue;
        std::printf("%s[%lld] is %.9g, not %.9g, in\n", name, (long long)i, v, w.v);
        return false;
    }
    return true;
}

template <class T> bool added(const Case &c, const Arrays<T> &in) {
    Array<T> want(1, {});
    for (i64 i = 0; c.other && i < in.sum.size; ++i) {
        set(want[0], double(float(value(in.x[i])) + float(value(in.other[i]))));
        if (std::isnan(value(want[0])) || value(in.sum[i]) == value(want[0])) continue;
        return std::printf("sum[%lld] is %.9g, not %.9g, in\n", (long long)i, value(in.sum[i]), value(want[0])) < 0;
    }
    return true;
}

template <class T> void fill(Draw &draw, const Case &c, const Arrays<T> &in) {
    for (i64 i = 0; i < in.x.size; ++i) {
        set(in.x[i], draw.normal() + c.mean), set(in.dy[i], draw.normal());
        if (c.other) set(in.other[i], draw.normal());
        if (c.dsum) set(in.dsum[i], draw.normal());
    }
    for (i64 k = 0; k < in.weight.size; ++k)
        in.weight[k] = float(1 + draw.normal() / 3), in.bias[k] = float(draw.normal() / 3);
    for (i64 w = 0; w < in.where.size; ++w) in.where[w] = draw.of({0.f, 1.f, 1.f, 0.3f, 2.f});
    for (i64 b = 0; b < in.label.size && c.at.labels; ++b) in.label[b] = draw.below(c.at.labels);
    for (i64 g = 0; g < in.stats.size; ++g) {
        in.wide_mean[g] = c.mean + draw.normal(), in.wide_var[g] = 0.5 + double(draw.below(8)) / 4;
        in.mean_given[g] = float(in.wide_mean[g]), in.var_given[g] = float(in.wide_var[g]);
    }
    each(c, in, [&](At at) {
        if (c.holes && in.where[at.w] == 0 && draw.chance(20)) set(in.x[at.i], draw.of({NONE, HUGE_VAL, -HUGE_VAL}));
    });
}

void tell(const Case &c) {
    const Layout &l = c.at;
    std::printf("    %s, sizes", c.kind == 0 ? "float32" : c.kind == 1 ? "bfloat16" : "float16");
    for (const i64 n : {l.A, l.B, l.T, l.C, l.P, l.S}) std::printf(" %lld", (long long)n);
    std::printf(", gain");
    for (const i64 n : {l.ga, l.gb, l.gc, l.gp, l.gs}) std::printf(" %lld", (long long)n);
    std::printf(", where");
    for (const i64 n : {l.wa, l.wb, l.wt, l.wc, l.wp, l.ws}) std::printf(" %lld", (long long)n);
    std::printf(", labels %lld, trust %d, mean %g, threads %d, shift %lld\n   ", (long long)l.labels, int(c.trust),
                c.mean, c.threads, (long long)c.place.shift);
    const auto say = [](const char *name, bool is) { is ? void(std::printf(" %s", name)) : void(); };
    say("weight", c.weight), say("bias", c.bias), say("dweight", c.dweight), say("dbias", c.dbias);
    say("center", c.center), say("stream", c.stream), say("where", c.where), say("holes", c.holes), say("wide", c.wide);
    say("moments", c.moments), say("applied", c.applied), say("other", c.other), say("dsum", c.dsum);
    say("fenced", c.place.fenced);
}

template <class T> bool check(Draw &draw, const Kernels &kernels, const Case &c) {
    const Arrays<T> in(c, c.at.elements(), c.at.gains(), c.at.groups());
    fill(draw, c, in);
    run_forward(kernels, c, in);
    run_backward(kernels, c, in);
    const Truth<T> t(c, in);
    const auto agrees = [&](const char *name, bool there, const auto &got, const Values &want) {
        return !there || agree(name, tolerance(c), got, want);
    };
    bool good = added(c, in) && agrees("y", c.applied, in.y, t.y) && agrees("dx", true, in.dx, t.dx) &&
                agrees("dweight", c.dweight, in.dweight, t.dweight) && agrees("dbias", c.dbias, in.dbias, t.dbias) &&
                agrees("mean", c.moments, in.mean, t.mean) && agrees("m2", c.moments, in.m2, t.m2) &&
                agrees("count", c.moments, in.count, t.count);
    if (good && !in.fronts_are_untouched()) good = std::printf("written before an array's first element, in\n") < 0;
    if (!good) tell(c);
    return good;
}

bool check(const Kernels &kernels, std::uint64_t seed) {
    Draw draw(seed);
    Case c = draw.one();
    fit(c, draw);
    const bool good = c.kind == 0   ? check<float>(draw, kernels, c)
                      : c.kind == 1 ? check<Brain>(draw, kernels, c)
                                    : check<Half>(draw, kernels, c);
    if (!good) std::printf(", seed %llu\n", (unsigned long long)seed);
    return good;
}

// ---- the program

bool runs_here() {
    const auto is = [](const char *set) { return std::strcmp(kernels_checked.name, set) == 0; };
#if defined(__x86_64__)
    if (is("v2")) return __builtin_cpu_supports("sse4.2");
    if (is("v3")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (is("v4b") && !__builtin_cpu_supports("avx512bf16")) return false;
    if (is("v4") || is("v4b")) return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
    return is("base");
}

// Where a sanitizer ends the process, say how to see it again.
std::atomic<long long> drawing[2];
void say_what_was_drawn() {
    std::fprintf(stderr, "%s: seed %lld or %lld: check 1 <seed>\n", kernels_checked.name, drawing[0].load(),
                 drawing[1].load());
}

} // namespace

int main(int count, char **words) {
    const i64 draws = count > 1 ? std::atoll(words[1]) : 1000, first = count > 2 ? std::atoll(words[2]) : 0;
    if (!runs_here()) return std::printf("%s: not on this machine\n", kernels_checked.name) < 0;
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(say_what_was_drawn);
    std::atomic<i64> next{first};
    std::atomic<bool> good{true};
    const auto drive = [&](int driver) {
        for (i64 seed; good && (seed = next++) < first + draws;) {
            drawing[driver] = seed;
            if (!check(kernels_checked, std::uint64_t(seed))) good = false;
        }
    };
    std::thread other(drive, 1);
    drive(0);
    other.join();
    std::printf("%s: %s\n", kernels_checked.name, good ? (std::to_string(draws) + " draws agree").c_str() : "wrong");
    return good ? 0 : 1;
}
