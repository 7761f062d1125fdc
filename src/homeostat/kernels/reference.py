"""The truth: measuring and applying, in the plainest arithmetic that keeps its digits. Fits on a screen.

    hi = mean(x), rounded      d = x - hi      lo = mean(d)      M2 = sum d^2 - n lo^2
    y = ((x - hi) - lo) / sqrt(M2 / n + eps) w + b

The mean is hi + lo: hi may be off by rounding, and lo repairs exactly that, because d is small and x - hi is exact
where x is near hi. So hi carries no gradient, and every other quantity is of the size of the spread.
Every line is differentiable and runs on any of the four array libraries; faster kernels are checked against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from homeostat.arrays import Array, Numpy
from homeostat.kernels.groups import Groups, groups_of
from homeostat.moments import Moments
from homeostat.plan import Plan
from homeostat.trust import THROUGH, Fixed, Pulled, Rule, Trust

# eps="auto": the smallest eps at which rstd, dx, and the rstd^3 of a composite gradient all stay finite for |dy| <= 1.
# float16 results must stay under 65504: rstd <= 4096 leaves a factor 16.
FLOOR = {"float64": 1e-200, "float32": 1e-24, "bfloat16": 1e-24, "float16": 2.0**-24}


class Job(NamedTuple):
    """One call, apart from its tensors: who shares, who is believed, who is given a gain."""

    plan: Plan
    gain: Plan | None = None
    codes: tuple[Array, ...] = ()
    trust: Trust = THROUGH
    eps: float | str = 1e-5
    center: bool = True
    ranks: Any = None  # the processes that measure together (ranks.py), if there are several


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """What one look at a tensor found; arrays in inner form."""

    n: Array | float
    hi: Array | float
    lo: Array | float
    m2: Array
    samples: Any = None  # of all ranks

    def moments(self, g: Groups) -> Moments:
        n = self.n if isinstance(self.n, float) else g.result(self.n)
        m2 = g.result(self.m2)
        return Moments(n, 0.0 * m2 if isinstance(self.hi, float) else g.result(self.hi + self.lo), m2)


def normalize(
    b: Numpy, x: Array, weight: Array | None, bias: Array | None, where: Array | None, job: Job
) -> tuple[Array, Seen | None, Groups]:
    """The whole act: look (unless constants are trusted), apply, put the gain on."""
    g = groups_of(b, job.plan, job.codes)
    z = b.reshape(b.cast(x, b.work_dtype(x)), job.plan.shape)
    where = where if where is None else b.reshape(b.cast(where, z.dtype), job.plan.shape)
    weight, bias = gains(b, z, weight, bias, job)
    seen, pull, eps = None, None, job.eps
    if isinstance(job.trust, Fixed):
        hi, lo, r = fixed(b, z, g, job.trust, job, x)
    elif eps == "auto":
        z, e, back, eps = auto(b, z, g, x, where, job.center, job.ranks)
        hi, lo, r = back.hi, back.lo, scale(b, back, eps)
        seen, eps = unscaled(b, back, e), b.ldexp(eps, 2 * e)
    else:
        seen = measure(b, z, g, where, job.center)
        seen = seen if job.ranks is None else job.ranks.join(seen, g, x.shape[0], z.dtype)
        hi, lo, r = seen.hi, seen.lo, scale(b, seen, eps)
    if isinstance(job.trust, Rule) and seen is not None:
        hi, z = seen.hi, b.reshape(b.cast(x, b.work_dtype(x)), job.plan.shape)  # eps="auto" had scaled them
        samples = int(x.shape[0]) if seen.samples is None else seen.samples
        lo, r = ruled(b, g, job.trust, seen, eps, samples)
    if isinstance(job.trust, Pulled) and seen is not None:
        pull = pulled(b, g, job.trust, seen, eps)
    y = apply(b, z, g, hi, lo, r, weight, bias, pull)
    return b.cast(b.reshape(y, x.shape), x.dtype), seen, g


def measure(b: Numpy, x: Array, g: Groups, where: Array | None = None, center: bool = True) -> Seen:
    """Count, mean as hi + lo, and M2 of each group. `where` weighs who is measured."""
    wide = b.group_dtype(x)
    x = x if where is None else b.where(where > 0, x, 0.0)  # 0 times a filling of -3e38, squared, is NaN
    n = g.count(x) if where is None else b.cast(g.total(where), wide)
    some = n + (n == 0)
    if not center:
        return Seen(n, 0.0, 0.0, b.cast(g.total(_weighed(x * x, where)), wide))
    hi = b.cast(b.detach(g.total(_weighed(x, where)) / some), x.dtype)
    d = x - g.spread(hi)
    wd = _weighed(d, where)
    s1, s2 = b.cast(g.total(wd), wide), b.cast(g.total(wd * d), wide)
    lo = s1 / some
    return Seen(n, b.cast(hi, wide), lo, b.maximum(s2 - s1 * lo, 0.0))


def scale(b: Numpy, seen: Seen, eps: float | Array) -> Array:
    """1 / sqrt(var + eps) per group; 1 where nobody was measured."""
    some = seen.n + (seen.n == 0)
    var = seen.m2 / some
    r = 1.0 / b.sqrt(var + eps) + 0.0 * var  # squares that overflowed make NaN, not a silent 0
    return r if isinstance(seen.n, float) else b.where(seen.n > 0, r, 1.0)


def apply(
    b: Numpy,
    x: Array,
    g: Groups,
    hi: Array | float,
    lo: Array | float,
    r: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    pull: tuple[Array, Array | float] | None = None,
) -> Array:
    """((x - hi) - lo) r, pulled if so, then the gain, whose arrays already broadcast against x."""
    y = x
    if not isinstance(hi, float):
        y = (x - g.spread(b.cast(hi, x.dtype))) - g.spread(b.cast(lo, x.dtype))
    y = y * g.spread(b.cast(r, x.dtype))
    if pull is not None:
        y = y * g.spread(b.cast(pull[0], x.dtype))
        y = y if isinstance(pull[1], float) else y + g.spread(b.cast(pull[1], x.dtype))
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def pulled(b: Numpy, g: Groups, trust: Pulled, seen: Seen, eps: float | Array | str) -> tuple[Array, Array | float]:
    """How far the batch is from the reference in scale and mean, within bounds; constants to the gradient."""
    some = seen.n + (seen.n == 0)
    own = b.sqrt(seen.m2 / some + eps)
    mean, var = (b.cast(g.inner(b.detach(part)), own.dtype) for part in (trust.mean, trust.var))
    sigma = b.sqrt(var + eps)
    r_max, d_max = (
        v if isinstance(v, float | int) else b.cast(g.inner(v), own.dtype) for v in (trust.r_max, trust.d_max)
    )
    ratio = _within(b, b.detach(own) / sigma, 1 / r_max, r_max)
    if isinstance(seen.hi, float):
        return ratio, 0.0
    off = _within(b, b.detach((seen.hi + seen.lo) - mean) / sigma, -d_max, d_max)
    if isinstance(seen.n, float):
        return ratio, off
    return b.where(seen.n > 0, ratio, 1.0), b.where(seen.n > 0, off, 0.0)


def ruled(
    b: Numpy, g: Groups, trust: Rule, seen: Seen, eps: float | Array | str, samples: int
) -> tuple[Array | float, Array]:
    """lo and rstd as a rule would have them: the mean stays hi + lo, so that no digit of it is lost."""
    m = seen.moments(g)
    given = eps if isinstance(eps, float | int) else g.result(eps)
    mean, var = trust.of(m, _each(b, m, g.plan, samples), given, g.plan.frame)
    lo, r = g.inner(mean), 1.0 / b.sqrt(b.cast(g.inner(var), seen.m2.dtype) + eps)
    lo = seen.lo if isinstance(seen.hi, float) else b.cast(lo, seen.m2.dtype) - seen.hi
    if trust.empty or isinstance(seen.n, float):
        return lo, r
    return lo if isinstance(lo, float) else b.where(seen.n > 0, lo, 0.0), b.where(seen.n > 0, r, 1.0)


def _each(b: Numpy, m: Moments, plan: Plan, samples: int) -> Array | float:
    """How many elements a sample has, over all groups that part the samples; 1 where nobody was measured."""
    apart = [0 in plan.spans[i] if kind == "label" else i == 0 for kind, i in plan.atoms]
    parts = tuple(i for i, one in enumerate(apart) if one and len(apart) == len(plan.groups))
    n = m.count
    if isinstance(n, float):
        for i in parts:
            n = n * plan.groups[i]
    elif parts:
        n = b.sum(n, parts)
    return (n + (n == 0)) / (samples + (samples == 0))


def _within(b: Numpy, x: Array, least: float, most: float) -> Array:
    return -b.maximum(-b.maximum(x, least), -most)


def auto(
    b: Numpy, x: Array, g: Groups, like: Array, where: Array | None, center: bool, ranks: Any = None
) -> tuple[Array, Array, Seen, Array]:
    """eps="auto". Returns z = x 2^-e (e per group, so z is near 1 and squares safely), e, what z shows, and eps for z.

    eps = max(u^2 / 12 * (mean^2 + var), floor): the variance that rounding alone makes at this size of x, for u the
    spacing of `like`'s dtype at 1; and never less than the dtype's floor. Relative, so scaling x changes nothing.
    """
    size = abs(x) if where is None else b.where(where > 0, abs(x), 0)
    relative, floor = auto_terms(b, like)
    # not below sqrt(floor), where the floor rules: scaled up any further, it would leave float32
    e = b.maximum(b.exponent(b.detach(g.largest(size))), math.frexp(floor)[1] // 2)
    e = e if ranks is None else ranks.largest(e)
    z = b.ldexp(x, -g.spread(e))
    z = z if where is None else _bounded(b, z, where)
    seen = measure(b, z, g, where, center)
    seen = seen if ranks is None else ranks.join(seen, g, x.shape[0], z.dtype)
    square = b.detach(seen.m2 / (seen.n + (seen.n == 0)) + (seen.hi + seen.lo) ** 2)
    least = b.broadcast(b.asarray(floor, x, b.group_dtype(x)), e.shape)
    return z, e, seen, b.maximum(square * relative, b.ldexp(least, -2 * e))


def auto_terms(b: Numpy, like: Array) -> tuple[float, float]:
    """eps="auto" = max(first * mean square, second) for `like`'s dtype."""
    name = getattr(like.dtype, "name", str(like.dtype).removeprefix("torch."))
    if name not in FLOOR:
        raise TypeError(f'eps="auto" knows {", ".join(FLOOR)}; x is {like.dtype}: give a number.')
    return float(b.finfo(like).eps) ** 2 / 12, FLOOR[name]


def unscaled(b: Numpy, seen: Seen, e: Array) -> Seen:
    """What x shows, from what z = x 2^-e shows."""
    hi = seen.hi if isinstance(seen.hi, float) else b.ldexp(seen.hi, e)
    lo = seen.lo if isinstance(seen.lo, float) else b.ldexp(seen.lo, e)
    return Seen(seen.n, hi, lo, b.ldexp(seen.m2, 2 * e), seen.samples)


def fixed(
    b: Numpy, z: Array, g: Groups, trust: Fixed, job: Job, like: Array | None = None
) -> tuple[Array | float, float | Array, Array]:
    """hi, lo and rstd of constants; eps="auto" as the dtype of `like` has it, which is x before it became z."""
    wide = b.group_dtype(z)
    mean, var = (b.cast(g.inner(part), wide) for part in (trust.mean, trust.var))
    eps = job.eps
    if eps == "auto":
        relative, floor = auto_terms(b, z if like is None else like)
        eps = b.maximum((var + mean * mean) * relative, floor)
    r = 1.0 / b.sqrt(var + eps)
    if not job.center:
        return 0.0, 0.0, r
    hi = b.cast(mean, z.dtype) + 0.0  # a copy: memory may be written between this forward and its backward
    return hi, mean - b.cast(hi, wide), r


def gains(b: Numpy, z: Array, weight: Array | None, bias: Array | None, job: Job) -> tuple[Array | None, Array | None]:
    """The learned affine in a form that broadcasts against z."""
    if job.gain is None:
        return None, None
    h = groups_of(b, job.gain)
    return tuple(p if p is None else b.cast(h.inner(p), z.dtype) for p in (weight, bias))  # type: ignore[return-value]


def gradient(
    b: Numpy,
    dy: Array,
    x: Array,
    g: Groups,
    seen: Seen | None,
    hi: Array | float,
    lo: Array | float,
    r: Array,
    weight: Array | None,
    where: Array | None,
    center: bool,
    pull: tuple[Array, Array | float] | None = None,
) -> tuple[Array, Array]:
    """dx and z, what the gain multiplies (its gradient is sum dy z).

        dx = r (g - m / n (sum g + xhat sum g xhat))        g = dy w, m the weight in `where` (1 if none)

    `seen` is None where the statistics are constants: then dx = r g. Pulled: z = xhat ratio + off, g = dy w ratio.
    """
    xhat = apply(b, x, g, hi, lo, r)
    z = xhat if pull is None else apply(b, x, g, hi, lo, r, None, None, pull)
    dg = dy if weight is None else dy * weight
    dg = dg if pull is None else dg * g.spread(b.cast(pull[0], x.dtype))
    rate = g.spread(b.cast(r, x.dtype))
    if seen is None:
        return dg * rate, z
    xhat = xhat if where is None else _bounded(b, xhat, where)
    some = seen.n + (seen.n == 0)
    back = xhat * g.spread(b.cast(g.total(dg * xhat) / some, x.dtype))
    if center:
        back = back + g.spread(b.cast(g.total(dg) / some, x.dtype))
    if where is not None:
        back = b.where(where > 0, back * where, 0)
    return (dg - back) * rate, z


def _weighed(x: Array, where: Array | None) -> Array:
    return x if where is None else x * where


def _bounded(b: Numpy, x: Array, where: Array) -> Array:
    """What is not measured, kept finite: a filling may leave the range, and inf would reach its group's gradients."""
    most = float(b.finfo(x).max) / 4
    return b.where(where > 0, x, -b.maximum(-b.maximum(x, -most), -most))


def cleaned(b: Numpy, x: Array, where: Array) -> tuple[Array, Array, Array]:
    """0 in place of what is neither measured nor finite, a weight per element, and where that was."""
    where = b.broadcast(where, x.shape)
    odd = ~((where > 0) | b.xp.isfinite(x))
    return b.fill(x, odd, 0), where, odd
