"""Closely: heads, experts, features and blocks, seen in a pass that is made anyway; and what roles and a loss ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from homeostat.doctor.experts import Bank, Shown, answers, asking
from homeostat.doctor.facts import Seen
from homeostat.doctor.features import Gauge, Turning, gauging
from homeostat.doctor.gradients import Loss, gradients
from homeostat.doctor.heads import Attention, hearing
from homeostat.doctor.parts import Critic, Gradient, Moved, Parts
from homeostat.doctor.rule import NotMeasured
from homeostat.doctor.telling import GROUPINGS, Run, critic, symmetry
from homeostat.doctor.without import tried
from homeostat.recognising.found import Found
from homeostat.recognising.watching import Forward, eagerly, put_back


@dataclass
class Closely:
    """What hooks saw in one pass, and what is asked afterwards; `passes` is what that took, on the first batch."""

    model: nn.Module
    norms: dict[str, tuple[Found, nn.Module]]
    heard: list[Attention]
    banks: list[Bank]
    shown: list[Shown]
    gauges: list[Gauge]
    turning: Turning
    passes: float = 0.0

    def parts(
        self,
        batches: list[Any],
        forward: Forward,
        told: dict[str, Any],
        loss: Loss | None,
        labels: Any,
        sizes: tuple[int, ...],
        run: Run,
        evaluated: Seen | None,
        trained: Seen | None,
        why: dict[str, str],
    ) -> Parts:
        with put_back(self.model), eagerly():
            self.model.eval()
            experts = answers(self.banks, self.shown)
        slope: tuple[Gradient, ...] = ()
        if loss is None:
            why["gradients"] = "no loss is given: check(..., loss=, labels=)"
        else:
            try:
                slope = gradients(self.model, self.norms, batches[0], forward, loss, labels)
            except Exception as error:
                why["gradients"] = f"the loss, or its gradient, raises: {str(error).strip().partition(chr(10))[0]}"
            self.passes += 3
        moved: tuple[Moved, ...] = ()
        if "group_action" in told:
            moved = symmetry(self.model, batches, forward, told["group_action"])
            self.passes += 2 * len(batches)
        seen: Critic | None = None
        if "real_fake" in told and sizes and trained and evaluated:
            try:
                seen = critic(batches, sizes, told["real_fake"], run, trained, evaluated)
                self.passes += GROUPINGS * (sum(map(len, seen.alone[:1])) / sum(sizes)) * len(batches)
            except NotMeasured as reason:
                why["critic"] = str(reason)
        heads, runs = tried(self.heard, self.model, [m for _, m in self.norms.values()], batches[0], forward)
        self.passes += runs
        return Parts(
            heads=heads,
            experts=experts,
            banks=tuple(bank.name for bank in self.banks if not bank.strange and len(bank.fed) > 1),
            features=tuple(f for gauge in self.gauges if (f := gauge.seen) is not None),
            turns=self.turning.seen,
            gradients=slope,
            critic=seen,
            symmetry=moved,
        )


@contextmanager
def closely(model: nn.Module, norms: dict[str, tuple[Found, nn.Module]], told: dict[str, Any]) -> Iterator[Closely]:
    """Hooks for one pass in evaluation."""
    with (
        hearing(model) as heard,
        asking(model, norms) as (banks, shown),
        gauging(norms, told.get("blocks")) as (gauges, turning),
    ):
        yield Closely(model, norms, heard, banks, shown, gauges, turning)
