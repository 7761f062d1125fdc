"""Parts: what a probe saw of heads, experts, features, blocks and gradients. Values only, as Facts are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Heads:
    """One attention. `energy` is tr(W_h C W_h'), C the covariance of what head h gives to its part W_h of the output.

    `moved`: how far the outputs of the model move without the loudest head, in their spread; `held`: the same if the
    norm after it went on dividing by what it did; `louder`: by how much it turns up the others. None: not tried.
    """

    name: str
    energy: Array  # [samples, heads]
    moved: float | None = None
    held: float | None = None
    louder: float | None = None


@dataclass(frozen=True)
class Experts:
    """What experts that stand side by side give for the same tokens, and the norm that is given nothing else."""

    name: str
    norm: str
    centered: bool  # does it subtract the mean of the features
    given: Array  # [experts, tokens, features]


@dataclass(frozen=True)
class Features:
    """Features of a norm that share a statistic, by sample, over its places.

    `energy` is the mean square off what the norm subtracts.
    """

    name: str
    mean: Array  # [samples, features]
    var: Array
    energy: Array
    zeros: Array  # [features], share of values that are exactly 0
    pools: Array  # [features], the number of its pool


@dataclass(frozen=True)
class Turns:
    """Blocks of tokens on their way from one norm to the next: how long they are, and by what angle they turn."""

    name: str
    blocks: tuple[str, ...]
    length: Array  # [samples, blocks]
    angle: Array  # [samples, blocks], in radians


@dataclass(frozen=True)
class Gradient:
    """The root mean square of the loss's gradient at what a norm is given, in the order of the calls."""

    name: str
    rms: float


@dataclass(frozen=True)
class Moved:
    """How far something is from what it should be, by sample, and how large it is: squares of both."""

    name: str
    off: Array
    size: Array
    dtype: str


@dataclass(frozen=True)
class Critic:
    """Answers to real samples, a row each, as the batches stood and in several groupings of real ones alone."""

    mixed: bool  # did batches hold both kinds
    part: float  # of the real samples that a batch of them holds
    among: Array  # [real samples, columns]: with fakes in the batch; if none was mixed, in evaluation
    alone: tuple[Array, ...]


@dataclass(frozen=True)
class Parts:
    """All that was seen of parts."""

    heads: tuple[Heads, ...] = ()
    experts: tuple[Experts, ...] = ()
    banks: tuple[str, ...] = ()  # lists of experts, whether or not a norm sums them up
    features: tuple[Features, ...] = ()
    turns: tuple[Turns, ...] = ()
    gradients: tuple[Gradient, ...] = ()
    critic: Critic | None = None
    symmetry: tuple[Moved, ...] = ()
