"""The presets with an input each, for tests that must hold for all of them."""

import math

import torch

import homeostat as hs

PRESETS = {
    "BatchNorm1d": (lambda: hs.nn.BatchNorm1d(6), (8, 6)),
    "BatchNorm2d": (lambda: hs.nn.BatchNorm2d(6), (4, 6, 5, 3)),
    "BatchNorm3d": (lambda: hs.nn.BatchNorm3d(6, momentum=None), (3, 6, 2, 3, 2)),
    "LayerNorm": (lambda: hs.nn.LayerNorm(6), (4, 3, 6)),
    "RMSNorm": (lambda: hs.nn.RMSNorm(6), (4, 3, 6)),
    "GroupNorm": (lambda: hs.nn.GroupNorm(3, 6), (4, 6, 5)),
    "InstanceNorm1d": (lambda: hs.nn.InstanceNorm1d(6, affine=True), (4, 6, 5)),
    "InstanceNorm2d": (lambda: hs.nn.InstanceNorm2d(6, affine=True, track_running_stats=True), (4, 6, 5, 3)),
    "InstanceNorm3d": (lambda: hs.nn.InstanceNorm3d(6), (3, 6, 2, 3, 2)),
    "Norm": (
        lambda: hs.Norm("b t (h d) -> b t h", center=False, gain=hs.Learned("d"), h=2, d=3),
        (2, 4, 6),
    ),
    "Norm with eps=auto": (
        lambda: hs.Norm("n c ... -> c", source=hs.Running(), gain=hs.Learned("c"), eps="auto", c=6),
        (4, 6, 5),
    ),
}


STYLE = torch.linspace(-2, 3, 5 * 6).sin().view(5, 6)


class InDomains(hs.nn.BatchNorm2d):
    """Every other sample is of another domain."""

    def forward(self, input):
        return super().forward(input, domain=torch.arange(len(input), device=input.device) % 2)


class InKinds(hs.nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input, kind=codes(input))


class Shared(hs.nn.GroupNorm):
    """Between the kinds."""

    def forward(self, input):
        return super().forward(input, kind=wave(input, 3).softmax(-1))


class Told(hs.Norm):
    """What it asks for follows from the shape of the input."""

    def forward(self, x):
        return super().forward(x, **{name: TELLING[name](x) for name in self.asks})


def wave(x, *shape):
    """Numbers within -1 and 1 for every sample, other ones for each."""
    each = torch.arange(math.prod(shape), dtype=x.dtype, device=x.device).reshape(shape)
    samples = torch.arange(len(x), dtype=x.dtype, device=x.device)
    return (each + 2 * samples.reshape(-1, *(1 for _ in shape))).sin()


def codes(x):
    return torch.arange(len(x), device=x.device) % 2, 3


TELLING = {
    "domain": codes,
    "kind": codes,
    "cond": lambda x: wave(x, 5),
    "map": lambda x: wave(x, 2, 3, 3) / 4,
    "style": lambda x: wave(x, 6, 2, 5) ** 3,
    "w": lambda x: wave(x, 6) + 2,
    "b": lambda x: wave(x, 6),
}


def told(source, gain, keep="c", **sizes):
    return Told(f"n c h w -> {keep}", source=source, gain=gain, c=6, **sizes)


def scaled(m):
    return m.mean / 2, m.var() * 4


def frozen():
    layer = told(hs.Running(0.5), hs.Given("n c"))
    layer(torch.randn(4, 6, 5, 3, generator=torch.Generator().manual_seed(1)) * 3)
    return hs.freeze(layer, inplace=True)[0]


def recorded():
    layer = hs.nn.BatchNorm2d(6, source=hs.Virtual())
    with hs.recording():
        layer(torch.randn(9, 6, 5, 3, generator=torch.Generator().manual_seed(1)) * 3)
    return layer


def blended():
    layer = hs.nn.BatchNorm2d(6, source=hs.Blended())
    with torch.no_grad():
        layer.rho.fill_(0.5)  # within its bounds; beyond them its gradient points back and is no derivative
    return layer


# Sources with an input each; the everyday ones are above.
SOURCES = {
    "Ghost": (lambda: hs.nn.BatchNorm2d(6, source=hs.Ghost(2)), (4, 6, 5, 3)),
    "Ghost with a rest": (lambda: hs.nn.BatchNorm2d(6, source=hs.Ghost(3)), (4, 6, 5, 3)),
    "Domain": (lambda: InDomains(6, source=hs.Domain(3)), (4, 6, 5, 3)),
    "Shrunk": (lambda: hs.nn.BatchNorm2d(6, source=hs.Shrunk(3)), (4, 6, 5, 3)),
    "Virtual": (recorded, (4, 6, 5, 3)),
    "Mixed": (lambda: hs.nn.BatchNorm2d(6, source=hs.Mixed()), (4, 6, 5, 3)),
    "Blended": (blended, (4, 6, 5, 3)),
    "Running auto": (lambda: hs.nn.BatchNorm2d(6, source=hs.Running("auto")), (4, 6, 5, 3)),
    "Renorm": (lambda: hs.nn.BatchNorm2d(6, source=hs.Renorm(r_max=9.0, d_max=9.0)), (4, 6, 5, 3)),
    "Renorm on a schedule": (
        lambda: hs.nn.BatchNorm2d(6, source=hs.Renorm(schedule=((0, 9.0, 9.0), (9, 20.0, 20.0)))),
        (4, 6, 5, 3),
    ),
    # a source and a gain at once, so that each is compiled and exported with another's company
    "Cumulative, Conditional": (lambda: told(hs.Cumulative(), hs.Conditional("kind[n] c"), kind=3), (4, 6, 5, 3)),
    "Ghost of Batch, FiLM": (lambda: told(hs.Ghost(2, hs.Batch()), hs.FiLM("n c", width=5)), (4, 6, 5, 3)),
    "Renorm per domain, Spatial": (
        lambda: told(hs.Domain(3, hs.Renorm(r_max=9.0, d_max=9.0)), hs.Spatial("n c h w", width=2, hidden=4)),
        (4, 6, 5, 3),
    ),
    "Partial, Style": (lambda: told(hs.Partial(), hs.Style("n c"), "n c"), (4, 6, 5, 3)),
    "Frozen, Given": (frozen, (4, 6, 5, 3)),
    "By, Learned per head": (
        lambda: hs.Norm("b t (h d) -> b t h", hs.By(scaled), hs.Learned("(h d)"), h=2, d=3),
        (2, 4, 6),
    ),
    "Renorm of parts": (
        lambda: hs.nn.BatchNorm2d(6, source=hs.Ghost(2, hs.Renorm(r_max=9.0, d_max=9.0))),
        (4, 6, 5, 3),
    ),
    "Shrunk of parts of domains": (
        lambda: InDomains(6, source=hs.Shrunk(3, hs.Ghost(3, hs.Domain(3, hs.Running("auto"))))),
        (4, 6, 5, 3),
    ),
    "Mixed of Domain": (lambda: InDomains(6, source=hs.Mixed(inner=hs.Domain(3))), (4, 6, 5, 3)),
    "GraphNorm": (lambda: hs.nn.GraphNorm(6), (5, 6)),
    "EvoNormB0": (lambda: hs.nn.EvoNormB0(6), (4, 6, 5, 3)),
    "LRN": (lambda: hs.nn.LRN(3, alpha=0.5), (4, 6, 5, 3)),
    "DAIN": (lambda: hs.nn.DAIN(6), (4, 5, 6)),
    "ModalityNorm": (lambda: hs.nn.ModalityNorm((2, 4)), (4, 3, 6)),
    "Balanced": (lambda: hs.Norm("... d -> ...", gain=hs.Balanced("d", blocks=(2, 4)), d=6), (4, 3, 6)),
    "Around": (lambda: hs.nn.GemmaRMSNorm(6), (4, 3, 6)),
    "BatchNorm2d, Conditional": (lambda: InKinds(6, gain=hs.Conditional("kind[n] c", classes=3)), (4, 6, 5, 3)),
    "GroupNorm, shares": (lambda: Shared(2, 6, gain=hs.Conditional("kind[n] (g c)", classes=3)), (4, 6, 5)),
    "LayerNorm, Style": (lambda: hs.nn.LayerNorm(6, gain=hs.Style("d", reference=STYLE)), (4, 3, 6)),
}
PRESETS |= SOURCES


def writes(layer):
    """Is there memory that a batch changes, or one that is recorded?"""
    source = getattr(layer, "source", hs.Batch())
    with hs.recording():
        return bool(set(source.names) - set(source.learns)) and source.writes(True)


NAMES = tuple(PRESETS)
HOLDING = tuple(name for name, (build, _) in PRESETS.items() if writes(build()))
REMEMBERING = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "InstanceNorm2d", "Norm with eps=auto", "EvoNormB0")


def make(name, dtype=torch.float32):
    """The layer with gains that are not 1 and 0, and an input whose mean is not 0."""
    torch.manual_seed(0)
    build, shape = PRESETS[name]
    layer = build().to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    return layer, torch.randn(shape, dtype=dtype) * 2 + 3


def everything(layer, x, f=None):
    """y, dx, the gradient of every parameter, and every buffer afterwards."""
    x = x.detach().clone().requires_grad_()
    y = (layer if f is None else f)(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    named = {"y": y.detach(), "dx": x.grad}
    named |= {f"grad of {name}": p.grad for name, p in layer.named_parameters()}
    return named | {name: b.clone() for name, b in layer.named_buffers()}


def assert_same(got, want, rtol=1e-5, atol=1e-5):
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=rtol, atol=atol, msg=lambda said, n=name: f"{n}: {said}")
