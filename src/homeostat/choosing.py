"""Choose: from a task and its sizes to a norm, with the reasons.

>>> print(choose("images", channels=256, spatial=196, batch=2).norm)
hs.nn.GroupNorm(32, 256)

A recommendation follows two questions: does the batch hold enough to measure a channel by, and may a sample's output
depend on its companions at all. TASKS is the whole of it: one function per task, on one screen each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from homeostat.noise import expected_noise, groups_for

QUIET = 0.1  # relative error of a variance that training does not notice
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


@dataclass(frozen=True)
class Shape:
    """What `choose` was told."""

    channels: int = 64
    spatial: int = 1
    batch: int = 32
    ranks: int = 1
    domains: int = 0
    classes: int = 0
    width: int = 0
    orbit: int = 4
    blocks: tuple[int, ...] = field(default_factory=tuple)

    @property
    def groups(self) -> int:
        """At most 32 groups of group norm, as quiet as can be asked for."""
        most = min(32, groups_for(self.channels, self.spatial, budget=QUIET))
        return next(g for g in range(most, 0, -1) if self.channels % g == 0)


def choose(task: str, **shape: Any) -> Choice:
    """A norm for a task. Sizes: channels, spatial (positions per sample), batch (per device), ranks (devices), domains,
    classes, width (of a conditioning vector), orbit (channels that a symmetry mixes), blocks (widths of modalities).
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r} is none of {', '.join(TASKS)}.")
    known = Shape.__dataclass_fields__
    for name, value in shape.items():
        if name not in known:
            raise TypeError(f"choose has no size {name}; sizes are {', '.join(known)}.")
        least = 0 if name in ("domains", "classes", "width") else 1
        if name != "blocks" and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ValueError(f"{name}={value!r} is a whole number of at least {least}.")
    found = Shape(**shape)
    if not isinstance(found.blocks, tuple | list) or any(not isinstance(n, int) or n < 1 for n in found.blocks):
        raise ValueError(f"blocks={found.blocks!r} are the widths of the modalities, whole numbers of at least 1.")
    if task == "symmetry" and found.channels % found.orbit:
        raise ValueError(f"{found.channels} channels are no whole number of orbits of {found.orbit}.")
    return TASKS[task](found)


def _pictures(s: Shape) -> Choice:
    noise = expected_noise(s.batch * s.spatial).var
    if s.domains > 1 and s.batch >= LEAST:
        why = f"{s.domains} domains differ in mean and scale: pooled, each is normalized by the others' statistics"
        code = f"hs.nn.BatchNorm2d({s.channels}, source=hs.Domain({s.domains}))"
        return Choice(code, "n c ... -> domain[n] c", f"Domain({s.domains})", (why,), noise * s.domains**0.5)
    if s.batch >= LEAST:
        why = f"{s.batch} samples measure each channel well, and evaluation costs nothing (the norm folds away)"
        other = "source=hs.Renorm() if batches are not drawn alike (sorted, by client, by video)"
        return Choice(f"hs.nn.BatchNorm2d({s.channels})", "n c ... -> c", "Running(0.1)", (why,), noise, (other,))
    own = expected_noise(s.channels // s.groups * s.spatial).var
    why = f"a batch of {s.batch} is too few samples: its statistics would differ from those of evaluation"
    within = f"{s.groups} groups of {s.channels // s.groups} channels keep a sample's own statistic within {own:.2g}"
    instead = [f"source=hs.Domain({s.domains}) with larger batches, for {s.domains} domains"] if s.domains > 1 else []
    instead += ["hs.freeze(model) to fine-tune what was trained with batch norm, at any batch size"]
    if s.ranks * s.batch >= LEAST:
        instead.append(f"statistics synced over the {s.ranks} devices, which see {s.ranks * s.batch} samples together")
    code = f"hs.nn.GroupNorm({s.groups}, {s.channels})"
    return Choice(code, "n (g c) ... -> n g", "Batch()", (why, within), own, tuple(instead))


def _rows(norm: str, frame: str, *why: str, instead: tuple[str, ...] = ()) -> Callable[[Shape], Choice]:
    def of(s: Shape) -> Choice:
        return Choice(norm.format(**vars(s)), frame, "Batch()", why, expected_noise(s.channels).var, instead)

    return of


def _generator(s: Shape) -> Choice:
    if s.classes:
        why = f"{s.classes} classes steer shared weights by gain and offset alone"
        if s.batch >= LEAST:
            code, noise = (
                f"hs.nn.ConditionalBatchNorm({s.channels}, {s.classes})",
                expected_noise(s.batch * s.spatial).var,
            )
            return Choice(code, "n c ... -> c, gain kind[n] c", "Running(0.1)", (why,), noise)
        code = f'hs.Norm("n (g c) ... -> n g", gain=hs.Conditional("kind[n] (g c)"), g={s.groups}, '
        code += f"c={s.channels // s.groups}, kind={s.classes})"
        few = f"a batch of {s.batch} is too few samples to measure a channel by"
        own = expected_noise(s.channels // s.groups * s.spatial).var
        return Choice(code, "n (g c) ... -> n g, gain kind[n] (g c)", "Batch()", (why, few), own)
    width = s.width or 256
    why = "a vector (time, prompt, latent) sets gain and offset of every sample"
    code = f"hs.nn.AdaGroupNorm({s.groups}, {s.channels}, width={width})"
    own = expected_noise(s.channels // s.groups * s.spatial).var
    return Choice(code, "n (g c) ... -> n g, gain n (g c)", "Batch()", (why,), own, ("hs.nn.AdaLayerNorm for tokens",))


def _critic(s: Shape) -> Choice:
    why = (
        "a statistic shared by the batch tells the critic the mix of real and fake, which it must not see",
        f"{s.groups} groups within each sample see the sample alone",
    )
    own = expected_noise(s.channels // s.groups * s.spatial).var
    code = f"hs.nn.GroupNorm({s.groups}, {s.channels})"
    return Choice(code, "n (g c) ... -> n g", "Batch()", why, own, ("hs.nn.spectral_weight(layer)",))


def _modalities(s: Shape) -> Choice:
    blocks = s.blocks or (s.channels // 2, s.channels - s.channels // 2)
    why = (
        "under one statistic the louder modality decides the scale of all",
        "hs.sharing_tax says what one affine for all would cost",
    )
    own = expected_noise(min(blocks)).var
    return Choice(f"hs.nn.ModalityNorm({tuple(blocks)})", "... d -> ... block[d]", "Batch()", why, own)


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
    "style": lambda s: Choice(
        f"hs.nn.AdaIN({s.channels})",
        "n c ... -> n c, gain n c",
        "Batch()",
        ("a picture's style is the mean and spread of its channels: take its own away, put another's on",),
        expected_noise(s.spatial).var,
    ),
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
    "symmetry": lambda s: Choice(
        f"hs.nn.OrbitNorm({s.channels // s.orbit}, {s.orbit})",
        "n (f k) ... -> f",
        "Running(0.1)",
        ("channels that a symmetry mixes must share statistic and gain; hs.assert_equivariant checks it",),
        expected_noise(s.batch * s.spatial).var,
    ),
}
