"""Choose: from a task and its sizes to a norm, with the reasons.

>>> print(choose("images", channels=256, spatial=196, batch=2).norm)
hs.nn.GroupNorm(32, 256)

A recommendation follows two questions: does the batch hold enough to measure a channel by, and may a sample's output
depend on its companions at all. TASKS is the whole of it: one function per task, on one screen each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from homeostat.errors import said
from homeostat.noise import expected_noise
from homeostat.shapes import FIRST, LAST, Shape

LEAST = 16  # samples that a batch statistic should come from: elements of one picture are not independent


@dataclass(frozen=True)
class Choice:
    """A norm as code, who shares its statistic and where that comes from, and why."""

    norm: str
    frame: str
    source: str
    why: tuple[str, ...]
    noise: float | None = None  # expected relative error of a variance, if elements were independent
    instead: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [self.norm, f"  frame   {self.frame}", f"  source  {self.source}"]
        if self.noise is not None:
            lines.append(f"  noise   {self.noise:.2g} of the variance, if elements were independent")
        lines += [f"  because {reason}" for reason in self.why]
        return "\n".join(lines + [f"  instead {other}" for other in self.instead])


def choose(task: str, **sizes: Any) -> Choice:
    """A norm for a task. Sizes: channels, spatial (positions per sample), batch (per device), ranks (devices), domains,
    classes, width (of a conditioning vector), orbit (channels that a symmetry mixes), blocks (widths of modalities).

    `shape`, of one sample, stands for channels and spatial: shape=(256, 14, 14). `layout` says where the channels of a
    picture are, "channels_first" or "channels_last" (the axes of x, not how torch lays them out in memory: that is
    free); tokens, nodes and series have theirs last.
    """
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"task={said(task)} is none of {', '.join(TASKS)}.")
    found = Shape.read(task, **sizes)
    if task == "symmetry" and found.channels % found.orbit:
        raise ValueError(f"{found.channels} channels are no whole number of orbits of {found.orbit}.")
    return TASKS[task](found)


def _batch(s: Shape, source: str = "") -> str:
    """Batch norm as code."""
    if s.layout == FIRST:
        return f"hs.nn.BatchNorm2d({s.channels}{source and f', source={source}'})"
    return f'hs.Norm("{s.frame("c", "c")}", source={source or "hs.Running()"}, gain=hs.Learned("c"), c={s.channels})'


def _group(s: Shape, preset: str = "", gain: str = 'hs.Learned("(g c)")', more: str = "") -> str:
    """Group norm as code, of a preset where there is one."""
    if preset and s.layout == FIRST:
        return preset
    sizes = f"g={s.groups}, c={s.channels // s.groups}{more}"
    return f'hs.Norm("{s.frame("(g c)", "n g")}", gain={gain}, {sizes})'


def _pictures(s: Shape) -> Choice:
    noise = expected_noise(s.batch * s.spatial).var
    if s.domains > 1 and s.batch >= LEAST:
        why = f"{s.domains} domains differ in mean and scale: pooled, each is normalized by the others' statistics"
        code = _batch(s, f"hs.Domain({s.domains})")
        return Choice(code, s.frame("c", "domain[n] c"), f"Domain({s.domains})", (why,), noise * s.domains**0.5)
    if s.batch >= LEAST:
        why = f"{s.batch} samples measure each channel well, and evaluation costs nothing (the norm folds away)"
        other = "source=hs.Renorm() if batches are not drawn alike (sorted, by client, by video)"
        return Choice(_batch(s), s.frame("c", "c"), "Running(0.1)", (why,), noise, (other,))
    own = expected_noise(s.channels // s.groups * s.spatial).var
    why = f"a batch of {s.batch} is too few samples: its statistics would differ from those of evaluation"
    within = f"{s.groups} groups of {s.channels // s.groups} channels keep a sample's own statistic within {own:.2g}"
    instead = [f"source=hs.Domain({s.domains}) with larger batches, for {s.domains} domains"] if s.domains > 1 else []
    instead += ["hs.freeze(model) to fine-tune what was trained with batch norm, at any batch size"]
    if s.ranks * s.batch >= LEAST:
        seen = f"statistics synced over the {s.ranks} devices, which see {s.ranks * s.batch} samples together"
        instead.append(f"{_batch(s, 'hs.Synced()')}: {seen}")
    code = _group(s, f"hs.nn.GroupNorm({s.groups}, {s.channels})")
    return Choice(code, s.frame("(g c)", "n g"), "Batch()", (why, within), own, tuple(instead))


def _rows(norm: str, frame: str, *why: str, instead: tuple[str, ...] = ()) -> Callable[[Shape], Choice]:
    def of(s: Shape) -> Choice:
        return Choice(norm.format(**vars(s)), frame, "Batch()", why, expected_noise(s.channels).var, instead)

    return of


def _generator(s: Shape) -> Choice:
    own = expected_noise(s.channels // s.groups * s.spatial).var
    if not s.classes:
        why = "a vector (time, prompt, latent) sets gain and offset of every sample"
        width = s.width or 256
        preset = f"hs.nn.AdaGroupNorm({s.groups}, {s.channels}, width={width})"
        code = _group(s, preset, f'hs.FiLM("n (g c)", width={width})')
        frame, other = s.frame("(g c)", "n g, gain n (g c)"), "hs.nn.AdaLayerNorm for tokens"
        return Choice(code, frame, "Batch()", (why,), own, (other,))
    why = f"{s.classes} classes steer shared weights by gain and offset alone"
    if s.batch < LEAST:
        code = _group(s, "", 'hs.Conditional("kind[n] (g c)")', f", kind={s.classes}")
        few = f"a batch of {s.batch} is too few samples to measure a channel by"
        return Choice(code, s.frame("(g c)", "n g, gain kind[n] (g c)"), "Batch()", (why, few), own)
    code = f"hs.nn.ConditionalBatchNorm({s.channels}, {s.classes})"
    if s.layout == LAST:
        gain = 'hs.Conditional("kind[n] c")'
        code = f'hs.Norm("{s.frame("c", "c")}", hs.Running(), {gain}, c={s.channels}, kind={s.classes})'
    noise = expected_noise(s.batch * s.spatial).var
    return Choice(code, s.frame("c", "c, gain kind[n] c"), "Running(0.1)", (why,), noise)


def _critic(s: Shape) -> Choice:
    why = (
        "a statistic shared by the batch tells the critic the mix of real and fake, which it must not see",
        f"{s.groups} groups within each sample see the sample alone",
    )
    own = expected_noise(s.channels // s.groups * s.spatial).var
    code = _group(s, f"hs.nn.GroupNorm({s.groups}, {s.channels})")
    return Choice(code, s.frame("(g c)", "n g"), "Batch()", why, own, ("hs.nn.spectral_weight(layer)",))


def _style(s: Shape) -> Choice:
    why = "a picture's style is the mean and spread of its channels: take its own away, put another's on"
    code = f"hs.nn.AdaIN({s.channels})"
    if s.layout == LAST:
        code = f'hs.Norm("{s.frame("c", "n c")}", gain=hs.Style("n c"), c={s.channels})'
    return Choice(code, s.frame("c", "n c, gain n c"), "Batch()", (why,), expected_noise(s.spatial).var)


def _symmetry(s: Shape) -> Choice:
    why = "channels that a symmetry mixes must share statistic and gain; hs.assert_equivariant checks it"
    fields = s.channels // s.orbit
    code = f"hs.nn.OrbitNorm({fields}, {s.orbit})"
    if s.layout == LAST:
        code = f'hs.Norm("{s.frame("(f k)", "f")}", hs.Running(), hs.Learned("f"), f={fields}, k={s.orbit})'
    noise = expected_noise(s.batch * s.spatial * s.orbit).var
    return Choice(code, s.frame("(f k)", "f"), "Running(0.1)", (why,), noise)


def _modalities(s: Shape) -> Choice:
    if min(s.blocks, default=s.channels // 2) < 2:
        raise ValueError("a modality of one feature minus its own mean is 0: give each at least 2, or blocks=.")
    blocks = s.blocks or (s.channels // 2, s.channels - s.channels // 2)
    why = (
        "under one statistic the louder modality decides the scale of all",
        "hs.sharing_tax says what one affine for all would cost",
    )
    own = expected_noise(min(blocks)).var
    return Choice(f"hs.nn.ModalityNorm({blocks})", "... d -> ... block[d]", "Batch()", why, own)


TASKS: dict[str, Callable[[Shape], Choice]] = {
    "images": _pictures,
    "segmentation": _pictures,
    "detection": _pictures,
    "language": _rows(
        "hs.nn.RMSNorm({channels})",
        "... d -> ...",
        "tokens come in any number, one by one at inference: only their own features are always there",
        "the mean of a token is small beside its length, so centring is left out",
        instead=("hs.nn.Residual(f, norm, 'pre') trains without warm-up; 'sandwich' bounds what a branch adds",),
    ),
    "vision transformer": _rows(
        "hs.nn.LayerNorm({channels})", "... d -> ...", "tokens are normalized by their own features, whatever the batch"
    ),
    "attention": _rows(
        "hs.nn.QKNorm({channels})",
        "... d -> ...",
        "queries and keys of bounded length bound the logits",
        instead=("hs.nn.HeadNorm(heads, d) on the heads' output, so that no head drowns the others",),
    ),
    "generation": _generator,
    "critic": _critic,
    "style": _style,
    "series": lambda s: Choice(
        "hs.nn.Reversible()",
        "n t c -> n c",
        "Batch()",
        ("level and scale drift: forecast without them, and put the very same back",),
        expected_noise(s.spatial).var,
    ),
    "graphs": lambda s: Choice(
        f"hs.nn.GraphNorm({s.channels})",
        "n d -> graph[n] d",
        "Partial()",
        ("graphs of any size in one batch, each by its own nodes; how much of the mean to take is learned",),
        expected_noise(s.spatial).var,
        ("hs.nn.PairNorm where deep layers make nodes alike",),
    ),
    "experts": lambda s: Choice(
        f"hs.nn.ExpertNorm({s.channels}, experts={max(2, s.domains)})",
        "t d -> t, gain expert[t] d",
        "Batch()",
        ("a statistic shared by all experts makes them alike: each token by itself, each expert its own gain",),
        expected_noise(s.channels).var,
    ),
    "modalities": _modalities,
    "symmetry": _symmetry,
}
