"""Facts: what a probe saw of a model. Values only, so that a rule can neither touch the model nor look again."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from homeostat.doctor.parts import Parts
from homeostat.moments import Moments
from homeostat.recognising.found import Found

Array = np.ndarray


@dataclass(frozen=True)
class Step:
    """What a training step does to a norm: mode after model.train(), updates of memory, what pulls at its gain."""

    wakes: bool
    ahead: int  # batches counted in the forward pass
    back: int  # and while gradients were computed
    pull: Array | None  # |gradient of its gain|


@dataclass(frozen=True)
class Layer:
    """One norm. Moments are NumPy's in float64, one for each batch that reached it, in the order of the batches.

    `samples` are of its input where its statistics are the batch's: of every sample by itself, [samples, groups]; norms
    that measure each sample alone have one entry per pool. `stored` are those that it uses in evaluation, if any.
    """

    found: Found
    calls: int  # the most in one batch
    training: bool  # its mode as the model came
    learns: bool  # does its gain require a gradient
    momentum: float | None
    tracked: int | None  # batches that its running statistics have seen
    gain: Array | None
    stored: Moments | None
    dtype: str  # of its input
    pool: float  # elements that share a statistic, in the smallest batch it was given
    together: bool  # do the samples of a batch share its statistics while it trains
    samples: tuple[Moments, ...]  # as the batch's statistics are used
    asked: tuple[Moments, ...]  # in evaluation
    lost: float | None = None  # the share of its output that rounding took, on some samples
    step: Step | None = None  # None where no step could be taken

    @property
    def name(self) -> str:
        return self.found.name


@dataclass(frozen=True)
class Seen:
    """Outputs of one way to run the model: a row per sample, of the samples in `order`; a few columns of many."""

    order: Array  # numbers of samples, as they stood in all batches one after the other
    rows: Array  # [samples, columns] in float64
    classes: bool  # is a row a score per class

    def of(self, sample: Array) -> Array:
        """Rows in another order."""
        at = np.empty(len(self.order), dtype=int)
        at[self.order] = np.arange(len(self.order))
        found: Array = self.rows[at[sample]]
        return found


@dataclass(frozen=True)
class Facts:
    """Everything that rules may judge by. What was not seen is None, and `why` says the reason by its name."""

    layers: tuple[Layer, ...]
    left: tuple[tuple[str, str], ...]  # could not be recognised, and why
    never: tuple[str, ...]  # norms that no batch reached
    sizes: tuple[int, ...]  # samples in each batch
    evaluated: Seen | None  # all in evaluation
    again: Seen | None  # the same samples in evaluation, in other batches of the same sizes
    trained: Seen | None  # norms by the batch's statistics, all else in evaluation
    mixed: tuple[Seen, ...]  # the same in other companies
    training: bool = False  # the mode of the model as it came
    unfolded: dict[str, str] | None = None  # norms that cannot go into the layers beside them, and why
    parts: Parts = field(default_factory=Parts)  # heads, experts, features, and what roles and a loss ask for
    why: dict[str, str] = field(default_factory=dict)
    roles: dict[str, object] = field(default_factory=dict)
    passes: float = 0.0  # forward passes per batch that it took
    seconds: float = 0.0

    def because(self, *what: str, otherwise: str = "the model gave no outputs to compare") -> str:
        """Why something was not seen."""
        return next((self.why[name] for name in what if name in self.why), otherwise)

    @property
    def shared(self) -> tuple[Layer, ...]:
        """Norms in which the samples of a batch share statistics."""
        return tuple(layer for layer in self.layers if layer.together)
