"""The compiled kernels agree with float64 on labels, weights, gains per sample and trusted constants, as drawn.

A case is drawn by seed and written down in full: pattern, tensors, who counts how much. The truth reads the pattern
by itself, numbers the groups, and adds by number; autograd in float64 makes its gradients.
"""

import math
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
ROUNDING = {SINGLE: 0.0, BRAIN: 2.0**-8, HALF: 2.0**-10}
CHANNELS_LAST = torch.channels_last
BLOCK = 60  # cases in one test


@pytest.fixture(autouse=True)
def one_thread():
    """For the truth, whose operators would each wait for a second; the kernels are given the threads that are drawn."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    eps: float = 1e-5
    center: bool = True

    def __str__(self) -> str:
        where = None if self.where is None else (tuple(self.where.shape), self.where.stride(), self.where.dtype)
        return (
            f"{self.pattern}, x {tuple(self.x.shape)} {self.x.stride()} {self.x.dtype}, gain {self.gain}, {self.sizes} "
            f"where {where}, labels { ({k: n for k, (_, n) in self.labels.items()}) }, {type(self.trust).__name__}, "
            f"eps {self.eps}, center {self.center}"
        )


# ---------------------------------------------------------------- the truth, in float64


def axes_of(case):
    """Of every name: where along it each element lies (broadcasting against x), and how far it goes."""
    out, rank, words = {}, case.x.dim(), left_of(case.pattern)
    for i, word in enumerate(words):
        at = torch.arange(case.x.shape[i]).view([-1 if k == i else 1 for k in range(rank)])
        for name in reversed(word.strip("()").split()):
            n = case.sizes[name] if word.startswith("(") else case.x.shape[i]
            out[name] = at % n, n
            at = at // n
    for name, along in labels_of(case.pattern):
        codes, n = case.labels[name]
        out[name] = codes.view([codes.shape[along.index(word)] if word in along else 1 for word in words]), n
    return out


def left_of(pattern):
    return re.findall(r"\(.*?\)|\w+", pattern.split("->")[0])


def labels_of(pattern):
    return [(name, along.split()) for name, along in re.findall(r"(\w+)\[(.*?)\]", pattern)]


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
    ratio, off, bound = torch.ones(n).double(), torch.zeros(n).double(), []
    shift, scale = mean, own
    if isinstance(case.trust, Fixed):
        shift = case.trust.mean.double().reshape(-1) * case.center
        scale = (case.trust.var.double().reshape(-1) + case.eps).sqrt()
    if isinstance(case.trust, Pulled):
        sigma = (case.trust.var.double().reshape(-1) + case.eps).sqrt()
        ratio = (own / sigma).clamp(1 / case.trust.r_max, case.trust.r_max).where(count > 0, 1).detach()
        apart = (mean - case.trust.mean.double().reshape(-1)) / sigma
        off = apart.clamp(-case.trust.d_max, case.trust.d_max).where(count > 0, 0).detach() * case.center
        bound = ((own / sigma) != ratio).tolist()
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
    size |= {
        "dx": (ratio / scale.detach()).max().item(),
        "spread": (own**2 - case.eps).clamp_min(0).sqrt().detach(),
        "bound": bound,
    }
    return want, size


# ---------------------------------------------------------------- the kernels


def job_of(case):
    plan = plan_for(
        Frame.parse(case.pattern), tuple(case.x.shape), case.sizes, {k: n for k, (_, n) in case.labels.items()}
    )
    gain = None if case.gain is None else plan.keep(plan.frame.keep(case.gain))
    return Job(plan, gain, tuple(codes for codes, _ in case.labels.values()), case.trust, case.eps, case.center)


def run(case):
    """y, gradients and moments by the compiled kernels, flat."""
    job = job_of(case)
    inputs = [None if p is None else p.detach().requires_grad_() for p in (case.x, case.weight, case.bias)]
    chosen = routes.route(*inputs, case.where, job, True)[0]
    assert chosen == "fused", f"{case} is left to {chosen}"
    y, m = routes.normalize(*inputs, case.where, job, True)
    y.backward(case.dy)
    with torch.no_grad():
        again, _ = routes.normalize(*inputs, case.where, job, False)
    assert torch.equal(again.nan_to_num(0.5), y.nan_to_num(0.5)), f"{case}: y is another where nothing learns"
    assert y.stride() == case.x.stride(), case
    got = {"y": y.detach(), "dx": inputs[0].grad}
    got |= {name: p.grad for name, p in zip(("dw", "db"), inputs[1:], strict=True) if p is not None}
    if m is not None:
        got |= {"count": torch.as_tensor(m.count).expand(m.mean.shape), "mean": m.mean, "m2": m.m2}
    return {name: t.double().reshape(-1) for name, t in got.items()}


def normalized(case, threads, streamed=False):
    """By so many threads; `streamed`: written past the cache, as only large outputs are."""
    job_of(case).plan.memo.clear()  # of tasks made for the other kind of writing
    before = torch.get_num_threads(), task.STREAMED
    torch.set_num_threads(threads)
    task.STREAMED = 0 if streamed else before[1]
    try:
        return run(case)
    finally:
        torch.set_num_threads(before[0])
        task.STREAMED = before[1]


def drawn(draw, seed):
    rng = random.Random(f"{draw.__name__} {seed}")
    torch.manual_seed(rng.getrandbits(32))
    return draw(rng), rng


def check(seed, draw):
    case, rng = drawn(draw, seed)
    compare(case, normalized(case, rng.choice([1, 2, 3]), rng.random() < 0.25), f"{draw.__name__}, seed {seed}: {case}")


def compare(case, got, said):
    want, size = truth(case)
    assert got.keys() == want.keys(), said
    rounding = ROUNDING[case.x.dtype]
    m, odd = weights_of(case)
    wild = odd | ((m == 0) & (case.x.reshape(-1).double().abs() > 5e4))  # y may leave the range there
    assert torch.equal(got["y"].isnan(), odd), f"{said}: y is NaN elsewhere than where x is no number"
    for name in want:
        a, b = got[name], want[name]
        if name in ("y", "dx"):
            a, b = a[~wild], b[~wild]
        # 5e-6 is a few roundings of a y of 10; what is applied with 1 / sigma rounds at the size of that.
        bound = {
            "y": lambda b: 5e-6 * (1 + b.abs() / 10) + rounding * b.abs(),
            "dx": lambda b: 5e-6 * max(size["dx"], 1) * (1 + 1e-4 * size["dx"]) + (1e-6 + rounding) * b.abs(),
            "dw": lambda b: 1e-5 * size["dw"] + ROUNDING[case.weight.dtype] * b.abs() + 1e-7,
            "db": lambda b: 1e-5 * size["db"] + ROUNDING[case.bias.dtype] * b.abs() + 1e-7,
            "count": lambda b: 5e-6 * b,
            "mean": lambda b: 2e-6 * size["spread"] + 1e-9 * b.abs(),
            "m2": lambda b: 1e-5 * b + 1e-9,
        }[name](b)
        error = (a - b).abs() - bound
        assert (error <= 0).all(), f"{said}: {name} is off by {(a - b).abs()[~(error <= 0)].max():.1e} beyond its bound"
    assert not got["dx"][odd].any(), f"{said}: what is no number got a gradient"


# ---------------------------------------------------------------- what is drawn

# Of each pattern the gains that the kernels take.
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
LONG = {
    "b d -> b": (None, "d", "b d", "b"),
    "n c h w -> c": (None, "c", "n c"),
    "n c h w -> n c": (None, "c", "n c"),
    "n (g c) h w -> n g": (None, "(g c)"),
    "b t d ->": (None, "d", "b t d"),
    "n c h w ->": (None,),
    "b d -> e[b]": (None, "d", "b"),
}


def draw_labels(rng):
    """Some of the labels nobody has, and some a single row."""
    pattern = rng.choice(list(LABELLED))
    shape = shape_for(rng, pattern)
    return made(rng, pattern, shape, rng.choice(LABELLED[pattern]))


def draw_weights(rng):
    pattern = rng.choice([*IMAGES, *SEQUENCES])
    shape = shape_for(rng, pattern)
    return made(rng, pattern, shape, rng.choice((IMAGES | SEQUENCES)[pattern]), weighed=True)


def draw_gains(rng):
    """Conditional batch, group and instance norm, adaptive layer norm, one gain per head."""
    pattern = rng.choice([*IMAGES, *SEQUENCES])
    return made(rng, pattern, shape_for(rng, pattern), rng.choice((IMAGES | SEQUENCES)[pattern][1:]))


def draw_trust(rng):
    pattern = rng.choice(["n c h w -> c", "n c h w -> c", *IMAGES, *SEQUENCES, *LABELLED])
    shape = shape_for(rng, pattern)
    gain = rng.choice((IMAGES | SEQUENCES | LABELLED)[pattern])
    weighed = "[" not in pattern and rng.random() < 0.3
    return made(rng, pattern, shape, gain, weighed, rng.choice([Fixed, Pulled, Pulled]))


def draw_long(rng):
    """One or two groups of many elements, which several threads share."""
    pattern = rng.choice(list(LONG))
    few, many = rng.choice([1, 2]), rng.randint(20_000, 50_000)
    shape = {"b d": (few, many), "b t": (2, 5, many // 10)}.get(pattern[:3], (few, 2, many // 106, 53))
    return made(rng, pattern, shape, rng.choice(LONG[pattern]), weighed=pattern == "b d -> b" and rng.random() < 0.5)


DRAWS = draw_labels, draw_weights, draw_gains, draw_trust, draw_long


def shape_for(rng, pattern, most=40_000):
    while True:
        if pattern.startswith("n"):
            hw = rng.choice([(1, 2), (2, 3), (3, 7), (7, 7), (8, 8), (7, 33), (14, 14), (40, 53)])
            shape = rng.choice([1, 2, 3, 5, 9, 32]), rng.choice([2, 4, 6, 12, 16, 30, 48, 64, 96, 130]), *hw
        elif pattern.startswith("cell"):
            shape = rng.choice([1, 2, 5, 40, 300, 1000]), rng.choice([2, 3, 7, 16, 33, 64, 100, 257, 2100])
        else:
            d = rng.choice([2, 3, 4, 7, 16, 30, 48, 64, 100, 258, 512, 1026, 4098])
            shape = rng.choice([1, 2, 3, 7, 20, 64]), rng.choice([1, 2, 5, 16, 37, 100]), d
        n = torch.Size(shape).numel()
        if n <= most and (pattern != "b t d -> d" or n > shape[-1]):
            return shape


def made(rng, pattern, shape, gain, weighed=False, trust=None):
    """A case of this pattern and shape, all the rest drawn."""
    dtype = rng.choice([SINGLE, SINGLE, SINGLE, BRAIN, HALF])
    by_channels = len(shape) == 4 and rng.random() < 0.5
    sizes = {}
    for whole in re.findall(r"\((.*?)\)", pattern.split("->")[0]):
        n = shape[1 if whole == "g c" else -1]
        first = rng.choice([k for k in (1, 2, 3, n // 2, n) if n % k == 0 and (whole == "g c" or k < n)])
        sizes = dict(zip(whole.split(), (first, n // first), strict=True))
    x = torch.randn(shape) * rng.choice([0.1, 1, 1]) + rng.choice([0, 0, 3, 1e4 if dtype == SINGLE else 5])
    x, dy, where = x.to(dtype), torch.randn(shape).to(dtype), None
    if weighed:
        where = weights(rng, rng.choice(masks_of(pattern, shape, sizes, by_channels)), shape)
        x, dy = filled(rng, x, dy, where)
        where = arranged(rng, where, pattern, shape, by_channels)
    if by_channels:
        x = x.contiguous(memory_format=CHANNELS_LAST)
        dy = dy.contiguous(memory_format=CHANNELS_LAST) if rng.random() < 0.8 else dy
    elif pattern in ("b t d -> d", "b t d -> b t", "b t d -> e[b] d") and not weighed and rng.random() < 0.25:
        x, dy = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x, dy))
    x, dy = (moved(t) if rng.random() < 0.2 else t for t in (x, dy))
    case = Case(pattern, sizes, gain, x, dy, None, None, where, labels(rng, pattern, shape), THROUGH)
    case = case._replace(
        eps=rng.choice([1e-3, 0.1] if dtype == HALF else [1e-5, 1e-3, 0.1]), center=rng.random() < 0.75
    )
    return gained(rng, trusting(rng, case, trust or rng.choice([Fixed, Pulled, *6 * [None]])))


def masks_of(pattern, shape, sizes, by_channels):
    """Along which axes weights may differ (1) where the kernels shall take them."""
    if pattern == "b t d -> b t" or pattern == "b t d -> d":
        return "110 001 111 100 010 101 011".split()
    if len(shape) < 4:
        return {"b d -> b": ["10", "01", "11"], "b t d ->": ["111"]}.get(pattern, ["110", "001", "111"])
    n, _, h, w = shape
    short = pattern == "n c h w -> c" and n > 1 and h * w < 64 and not by_channels  # goes by columns, h w wide
    if short or (by_channels and sizes.get("g") == 1):
        return "1000 1111 0111".split()
    return "1011 1000 1111 0100 0011 1100 0111".split()


def weights(rng, mask, shape):
    """Of some dtype, a part of them 0, at times whole slices."""
    m = torch.rand([n if k == "1" else 1 for n, k in zip(shape, mask, strict=True)])
    m = m * (torch.rand(m.shape) > rng.choice([0.1, 0.5, 0.9]))
    for axis in range(m.dim()):
        if m.shape[axis] > 1 and rng.random() < 0.3:
            m.index_fill_(axis, torch.randint(m.shape[axis], (2,)), 0.0)
    kind = rng.choice([torch.bool, torch.bool, SINGLE, SINGLE, torch.float64, torch.int32])
    return (m * 8).ceil().to(kind) / 8 if kind == torch.float64 else m.ceil().to(kind) if kind != SINGLE else m


def filled(rng, x, dy, where):
    """Where nobody is measured may stand anything. What is finite there and far away has no place in a loss."""
    out = (where == 0).expand(x.shape) & (torch.rand(x.shape) < rng.choice([0.1, 1]))
    far = -6e4 if x.dtype == HALF else -1e30
    value = rng.choice([float("nan"), float("inf"), -float("inf"), far, far, 0.0])
    return x.masked_fill(out, value), dy.masked_fill(out, 0) if math.isfinite(value) else dy


def arranged(rng, where, pattern, shape, by_channels):
    """The same weights as they may lie in memory."""
    if by_channels:
        where = where.contiguous(memory_format=CHANNELS_LAST)
    if rng.random() < 0.2:
        where = where.expand(shape)
    elif where.is_contiguous() and rng.random() < 0.2:
        where = moved(where)
    elif pattern in ("b t d -> d", "b t d -> b t") and where.shape[0] > 1 < where.shape[1] and rng.random() < 0.3:
        where = where.transpose(0, 1).contiguous().transpose(0, 1)  # as (arange < lengths).T is
    return where


def moved(t):
    """To an address that is no multiple of a vector's."""
    room = torch.empty(t.numel() + 3, dtype=t.dtype)[3:]
    return room.as_strided(t.shape, t.stride(), room.storage_offset()).copy_(t)


def labels(rng, pattern, shape):
    out = {}
    for name, along in labels_of(pattern):
        extent = [shape[left_of(pattern).index(axis)] for axis in along]
        n = rng.randint(1, 40)
        out[name] = (torch.rand(extent) ** rng.choice([1, 3]) * rng.randint(1, n)).long(), n
    return out


def trusting(rng, case, kind):
    """Constants near what is there: some groups are pulled as far as they need, others to a bound."""
    if kind is None:
        return case
    k, n = numbered(case.pattern.split("->")[1], case)
    m, odd = weights_of(case)
    count, mean, m2 = measured(case.x.double().reshape(-1).masked_fill(odd, 0.0), m, k, n, case.center)
    var = m2 / count.where(count > 0, 1)
    wide = rng.choice([SINGLE, SINGLE, torch.float64])
    at = (mean + 2 * var.sqrt() * torch.randn(n)).to(wide).view(job_of(case).plan.groups)
    of = (var * (1.5 * torch.randn(n)).exp() + 1e-6).to(wide).view(at.shape)
    bounds = () if kind is Fixed else (rng.choice([1.0, 1.5, 3.0]), rng.choice([0.0, 0.5, 5.0]))
    return case._replace(trust=kind(at, of, *bounds))


def gained(rng, case):
    if case.gain is None:
        return case
    shape = job_of(case).gain.groups
    kind = rng.choice([*4 * [SINGLE], BRAIN, HALF if case.x.dtype == HALF else SINGLE])
    weight, bias = (1 + torch.randn(shape) / 3).to(kind), (torch.randn(shape) / 3).to(kind)
    return case._replace(**rng.choice([{"weight": weight, "bias": bias}, {"weight": weight}, {"bias": bias}]))


# ---------------------------------------------------------------- claims


@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.__name__[5:])
def test_whatever_is_drawn_agrees_with_float64(draw, block):
    for seed in range(BLOCK * block, BLOCK * (block + 1)):
        check(seed, draw)


@pytest.mark.parametrize("isa", ["v2", "v3", "v4", "v4b"])
def test_every_instruction_set_agrees_with_float64_on_what_is_drawn(isa):
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_kernels_drawn as t\n"  # noqa: PTH120
    code += "t.torch.set_num_threads(1)\n"
    code += "for draw in t.DRAWS:\n    for seed in range(1000, 1024): t.check(seed, draw)\n"
    code += "print(t.cpu.info()['instructions'])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"HOMEOSTAT_ISA": isa},
        capture_output=True,
        text=True,
    )
    if "or this machine does not have it" in done.stderr:
        pytest.skip(f"this machine has no {isa} instructions")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == isa


def test_the_draws_reach_what_they_are_meant_for():
    """Labels nobody has and labels of one row; groups masked entirely; references within the bounds and beyond."""
    counts = {draw: [] for draw in DRAWS}
    pulls = []
    for draw in (draw_labels, draw_weights, draw_trust):
        for seed in range(BLOCK):
            case, _ = drawn(draw, seed)
            want, size = truth(case)
            counts[draw] += want["count"].tolist() if "count" in want else []
            pulls += size["bound"]
    assert {0.0, 1.0} <= set(counts[draw_labels])
    assert 0.0 in counts[draw_weights]
    assert any(0 < n < 1 or n % 1 for n in counts[draw_weights])
    assert 0.1 < sum(pulls) / len(pulls) < 0.9


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_reference_that_may_not_pull_is_as_if_it_were_not_there(channels_last, weighed):
    torch.manual_seed(0)
    x, dy = torch.randn(5, 12, 9, 11) + 3, torch.randn(5, 12, 9, 11)
    if channels_last:
        x, dy = (t.contiguous(memory_format=CHANNELS_LAST) for t in (x, dy))
    where = torch.rand(5, 1, 9, 11) > 0.5 if weighed else None
    through = Case("n c h w -> c", {}, "c", x, dy, torch.randn(12), torch.randn(12), where, {}, THROUGH)
    pulled = through._replace(trust=Pulled(torch.randn(12) * 100, torch.rand(12), 1.0, 0.0))
    want = run(through)
    for name, value in run(pulled).items():
        torch.testing.assert_close(value, want[name], rtol=1e-6, atol=1e-6)


def test_eight_python_threads_at_once_get_the_bits_that_each_gets_alone():
    cases = [drawn(draw, seed)[0] for draw in DRAWS for seed in range(2000, 2008)]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone = [run(case) for case in cases]
        with ThreadPoolExecutor(8, initializer=torch.set_num_threads, initargs=(2,)) as pool:
            together = list(pool.map(run, 4 * cases))
    finally:
        torch.set_num_threads(before)
    for case, want, got in zip(4 * cases, 4 * alone, together, strict=True):
        for name in want:
            assert torch.equal(got[name].nan_to_num(0.5), want[name].nan_to_num(0.5)), f"{case}: {name}"


def test_the_forked_workers_of_a_data_loader_normalize():
    code = """
import torch, homeostat as hs

class Tables(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        x = torch.randn(64, 700, generator=torch.Generator().manual_seed(i))
        by_label = hs.normalize(x, "cell gene -> lab[cell] gene", lab=(torch.arange(64) % 3, 4))
        return by_label, hs.normalize(x, "cell gene -> cell", where=x > 0)

tables = Tables()
torch.set_num_threads(2)
tables[0]  # this process has a team of threads before it forks
torch.set_num_threads(1)  # which is what the workers have
want = [tables[i] for i in range(8)]
torch.set_num_threads(2)
for _ in range(2):
    loader = torch.utils.data.DataLoader(tables, batch_size=2, num_workers=2, multiprocessing_context="fork")
    for k, batch in enumerate(loader):
        for i in range(2):
            assert all(torch.equal(got[i], one) for got, one in zip(batch, want[2 * k + i], strict=True))
    tables[0]
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
