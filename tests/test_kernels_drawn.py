"""The compiled kernels agree with float64 on labels, weights, gains per sample and trusted constants, as drawn.

A case is drawn by seed and written down in full: pattern, tensors, who counts how much. The truth reads the pattern
by itself, numbers the groups, and adds by number; autograd in float64 makes its gradients.
"""

import os
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from homeostat import routes
from homeostat.frame import Frame
from homeostat.kernels import cpu, task
from homeostat.kernels.reference import Job
from homeostat.plan import plan_for
from homeostat.trust import THROUGH, Fixed, Pulled

pytestmark = pytest.mark.skipif(cpu.native is None, reason=f"no native part: {cpu.info().get('reason')}")

SINGLE, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16
# y and dx round once more in the short formats: half a unit of the last place, and as much again for luck.
ROUNDING = {SINGLE: 0.0, BRAIN: 2.0**-8, HALF: 2.0**-10, torch.float64: 0.0}
BY_CHANNELS = torch.channels_last


class Case(NamedTuple):
    pattern: str
    sizes: dict[str, int]  # of split axes
    gain: str | None
    x: Tensor
    dy: Tensor
    weight: Tensor | None
    bias: Tensor | None
    where: Tensor | None
    labels: dict[str, tuple[Tensor, int]]
    trust: Any
    eps: float
    center: bool

    def __str__(self) -> str:
        where = None if self.where is None else (tuple(self.where.shape), self.where.stride(), self.where.dtype)
        return (
            f"{self.pattern}, gain {self.gain}, x {tuple(self.x.shape)} {self.x.stride()} {self.x.dtype}, {self.sizes}, "
            f"where {where}, labels {({k: n for k, (_, n) in self.labels.items()})}, {type(self.trust).__name__}, "
            f"eps {self.eps}, center {self.center}"
        )


# ---------------------------------------------------------------- the truth, in float64


def axes_of(case):
    """Of every name: where along it each element lies (broadcasting against x), and how far it goes."""
    left, right = case.pattern.split("->")
    out, rank = {}, case.x.dim()
    for i, word in enumerate(re.findall(r"\(.*?\)|\w+", left)):
        at = torch.arange(case.x.shape[i]).view([-1 if k == i else 1 for k in range(rank)])
        for name in reversed(word.strip("()").split()):
            n = case.sizes[name] if word.startswith("(") else case.x.shape[i]
            out[name] = at % n, n
            at = at // n
    for name, along in re.findall(r"(\w+)\[(.*?)\]", right):
        codes, n = case.labels[name]
        place = [codes.shape[along.split().index(a)] if a in along.split() else 1 for a in left.split()]
        out[name] = codes.view(place), n
    return out


def numbered(kept, case):
    """The number of each element's group, the last name fastest, and how many groups there are."""
    axes, at, n = axes_of(case), torch.zeros((), dtype=torch.int64), 1
    for name in re.findall(r"(\w+)(?:\[.*?\])?", kept):
        index, size = axes[name]
        at, n = at * size + index, n * size
    return at.expand(case.x.shape).reshape(-1), n


def weights_of(case):
    """How much each element counts, and which are neither measured nor finite."""
    m = torch.ones(()) if case.where is None else case.where
    m = m.double().expand(case.x.shape).reshape(-1)
    return m, (m == 0) & ~case.x.reshape(-1).isfinite()


def measured(x, m, k, n, center):
    """count, mean and M2 of each group, the mean 0 where nothing is centred."""
    total = lambda v: torch.zeros(n, dtype=torch.float64).index_add(0, k, v)  # noqa: E731
    count = total(m)
    mean = total(m * x) / count.where(count > 0, 1) if center else torch.zeros(n, dtype=torch.float64)
    return count, mean, total(m * (x - mean[k]) ** 2)


def truth(case):
    """y, its gradients and the moments; `steepest` and `sizes` say how large what is rounded on the way."""
    k, n = numbered(case.pattern.split("->")[1], case)
    m, odd = weights_of(case)
    x = case.x.double().reshape(-1).masked_fill(odd, 0.0).requires_grad_()
    count, mean, m2 = measured(x, m, k, n, case.center)
    own = (m2 / count.where(count > 0, 1) + case.eps).sqrt().where(count > 0, 1)
    ratio, off = torch.ones(n).double(), torch.zeros(n).double()
    shift, scale = mean, own
    if isinstance(case.trust, Fixed):
        shift = case.trust.mean.double().reshape(-1) * case.center
        scale = (case.trust.var.double().reshape(-1) + case.eps).sqrt()
    if isinstance(case.trust, Pulled):
        sigma = (case.trust.var.double().reshape(-1) + case.eps).sqrt()
        ratio = (own / sigma).clamp(1 / case.trust.r_max, case.trust.r_max).where(count > 0, 1).detach()
        apart = ((mean - case.trust.mean.double().reshape(-1)) / sigma).clamp(-case.trust.d_max, case.trust.d_max)
        off = apart.where(count > 0, 0).detach() * case.center
    z = (x - shift[k]) / scale[k] * ratio[k] + off[k]
    y, dy = z, case.dy.double().reshape(-1).masked_fill(odd, 0.0)
    gains, size = {}, {}
    if case.gain is not None:
        h, many = numbered(case.gain, case)
        for name, p in (("dw", case.weight), ("db", case.bias)):
            if p is not None:
                gains[name] = p.detach().double().reshape(-1).requires_grad_()
                every = gains[name].index_select(0, h)
                y = y * every if name == "dw" else y + every
                terms = (dy * z.detach() if name == "dw" else dy).masked_fill(odd, 0.0) ** 2
                size[name] = torch.zeros(many).double().index_add(0, h, terms).sqrt().max().item()
    grads = torch.autograd.grad(y, [x, *gains.values()], dy, allow_unused=True)
    want = {"y": y.detach().masked_fill(odd, float("nan")), **dict(zip(["dx", *gains], grads, strict=True))}
    if not isinstance(case.trust, Fixed):
        want |= {"count": count, "mean": mean.detach(), "m2": m2.detach()}
    size |= {"dx": (ratio / scale.detach()).max().item(), "spread": (own**2 - case.eps).clamp_min(0).sqrt().detach()}
    return want, size


# ---------------------------------------------------------------- the kernels


def job_of(case):
    plan = plan_for(Frame.parse(case.pattern), tuple(case.x.shape), case.sizes, {k: n for k, (_, n) in case.labels.items()})
    gain = None if case.gain is None else plan.keep(plan.frame.keep(case.gain))
    return Job(plan, gain, tuple(codes for codes, _ in case.labels.values()), case.trust, case.eps, case.center)


def normalized(case, threads, stream=False):
    """y, gradients and moments by the compiled kernels, flat; `stream`: written past the cache as large outputs are."""
    job = job_of(case)
    job.plan.memo.clear()  # tasks made with the other kind of writing
    before, most = torch.get_num_threads(), task.STREAMED
    torch.set_num_threads(threads)
    task.STREAMED = 0 if stream else most
    try:
        inputs = [None if p is None else p.detach().requires_grad_() for p in (case.x, case.weight, case.bias)]
        chosen = routes.route(*inputs, case.where, job, True)[0]
        y, m = routes.normalize(*inputs, case.where, job, True)
        y.backward(case.dy)
        with torch.no_grad():
            again, _ = routes.normalize(*inputs, case.where, job, False)
    finally:
        torch.set_num_threads(before)
        task.STREAMED = most
    assert chosen == "fused", f"{case} is left to {chosen}"
    assert y.stride() == case.x.stride(), case
    assert torch.equal(again.nan_to_num(0.5), y.nan_to_num(0.5)), f"{case}: y is another where nothing learns"
    got = {"y": y.detach(), "dx": inputs[0].grad}
    got |= {name: p.grad for name, p in zip(("dw", "db"), inputs[1:], strict=True) if p is not None}
    if m is not None:
        got |= {"count": torch.as_tensor(m.count).expand(m.mean.shape), "mean": m.mean, "m2": m.m2}
    return {name: t.double().reshape(-1) for name, t in got.items()}


def check(seed, draw):
    rng = random.Random(f"{draw.__name__} {seed}")
    torch.manual_seed(rng.getrandbits(32))
    case = draw(rng)
    compare(case, normalized(case, rng.choice([1, 2, 3]), rng.random() < 0.25), f"{draw.__name__} {seed}: {case}")


def compare(case, got, said):
    want, size = truth(case)
    assert got.keys() == want.keys(), said
    rounding = ROUNDING[case.x.dtype]
    m, odd = weights_of(case)
    wild = odd | ((m == 0) & (case.x.reshape(-1).double().abs() > 6e4))  # y may leave the range there
    assert torch.equal(got["y"].isnan(), odd), f"{said}: y is NaN elsewhere than where x is no number"
    for name in want:
        a, b = got[name], want[name]
        if name in ("y", "dx"):
            a, b = a[~wild], b[~wild]
        # 5e-6 is a few roundings of a y of 10; what is applied with 1 / sigma rounds at the size of that.
        bound = {
            "y": lambda b: 5e-6 * (1 + b.abs() / 10) + rounding * b.abs(),
            "dx": lambda b: 5e-6 * max(size["dx"], 1) * (1 + 1e-4 * size["dx"]) + rounding * b.abs(),
            "dw": lambda b: (1e-5 + ROUNDING[case.weight.dtype]) * size["dw"] + 1e-10,
            "db": lambda b: (1e-5 + ROUNDING[case.bias.dtype]) * size["db"] + 1e-10,
            "count": lambda b: 1e-6 * b,
            "mean": lambda b: 2e-6 * size["spread"] + 1e-9 * b.abs(),
            "m2": lambda b: 1e-5 * b + 1e-9,
        }[name](b)
        error = (a - b).abs() - bound
        assert (error <= 0).all(), f"{said}: {name} is off by {(a - b).abs()[~(error <= 0)].max():.1e} beyond its bound"
    assert not got["dx"][odd].any(), f"{said}: what is no number got a gradient"


# ---------------------------------------------------------------- what is drawn

# Of each pattern the gains the kernels take, and the weights: a 1 for each axis of x along which they differ.
IMAGES = {
    "n c h w -> c": (None, "c", "n c", "n"),
    "n c h w -> n c": (None, "c", "n c", "n"),
    "n (g c) h w -> n g": (None, "(g c)", "n (g c)", "g", "n g", "c", "n"),
}
SEQUENCES = {
    "b t d -> d": (None, "d", "b d", "b"),
    "b t d -> b t": (None, "d", "b d", "t d", "b t d", "b", "t", "b t"),
    "b t (h d) -> b t h": (None, "(h d)", "b t (h d)", "h", "d"),
    "b t d ->": (None, "d", "b t d"),
}
LABELLED = {
    "n c h w -> dom[n] c": (None, "c", "n c", "n"),
    "n (g c) h w -> dom[n] g": (None, "(g c)", "n (g c)", "g", "n"),
    "cell gene -> lab[cell] gene": (None, "gene", "cell gene", "cell"),
    "b t d -> e[b t] d": (None, "d", "b t d", "b t"),
    "b t d -> e[b t]": (None, "d", "b t d", "b t"),
    "b t d -> e[b] d": (None, "d", "b d", "b"),
    "b t d -> e[b] f[t] d": (None, "d", "b t d", "b t"),
    "b t (h d) -> e[b t] h": (None, "(h d)", "b t (h d)", "h", "d"),
}
OF_IMAGES = "1011 1000 1111 0100 0011 1100 0111".split()
OF_SHORT_RUNS = "1000 1111 0111".split()  # batch norm of fewer than 64 pixels goes by columns, whatever lies between
OF_SEQUENCES = "110 001 111 100 010 101 011".split()
OF_HEADS = "110 001 111".split()
OF_ALL = "111".split()


def images(rng, most=50_000):
    while True:
        n, c = rng.choice([1, 2, 3, 5, 9, 32]), rng.choice([2, 4, 6, 12, 16, 30, 48, 64, 96])
        h, w = rng.choice([(1, 2), (2, 3), (3, 7), (7, 7), (8, 8), (7, 33), (14, 14), (40, 53)])
        if n * c * h * w <= most:
            return n, c, h, w


def sequences(rng, most=50_000):
    while True:
        b, t = rng.choice([1, 2, 3, 7, 20, 64]), rng.choice([1, 2, 5, 16, 37, 100])
        d = rng.choice([2, 4, 6, 16, 30, 48, 64, 100, 258, 512, 1026, 4098])
        if 1 < b * t and b * t * d <= most:
            return b, t, d


def splits(rng, shape):
    c = shape[1]
    return {"g": (g := rng.choice([g for g in (2, 3, c // 2, c) if g and c % g == 0])), "c": c // g}


def heads(rng, shape):
    h = rng.choice([h for h in (1, 2, 3) if shape[-1] % h == 0 and shape[-1] > h])
    return {"h": h, "d": shape[-1] // h}


def made(rng, pattern, shape, gain, sizes=None, mask="", labels=None, trust=None, center=None, channels_last=None):
    """A case of this pattern and shape, the rest of it drawn."""
    dtype = rng.choice([SINGLE, SINGLE, SINGLE, BRAIN, HALF])
    x = torch.randn(shape) * rng.choice([0.1, 1, 1, 1]) + rng.choice([0, 0, 3, 1e4 if dtype == SINGLE else 5])
    where = None if not mask else weights(rng, [n if m == "1" else 1 for n, m in zip(shape, mask, strict=True)])
    x, dy = x.to(dtype), torch.randn(shape).to(dtype)
    if where is not None:
        out = (where == 0).expand(shape) & (torch.rand(shape) < rng.choice([0.1, 1]))
        filling = rng.choice([float("nan"), float("inf"), -float("inf"), -6e4 if dtype == HALF else -3e38, 0.0])
        x = x.masked_fill(out, filling)
        dy = dy.masked_fill(out, 0) if abs(filling) > 6e3 and rng.random() < 2 else dy
    case = Case(
        pattern, sizes or {}, gain, x, dy, None, None, where, labels or {}, THROUGH,
        rng.choice([1e-5, 1e-5, 1e-3, 0.1]), rng.random() < 0.75 if center is None else center,
    )
    case = laid_out(rng, case, channels_last)
    return trusting(rng, gained(rng, case), trust)
