"""fold-or-export: as it stands, an exported or folded network would not do what this one does.

What it is. Two things, seen while the model runs (a batch goes through it, and every reader of every tensor is noted).

    training mode   the model is in evaluation mode, and a norm in it is not: an export takes the batch's statistics
                    along, and calls change the stored ones
    shared          the layer that a norm follows has other readers too, has a weight that others use or that is
                    computed, or there are several: whoever folds by what stands side by side changes these as well

Why it matters. Nothing fails: the exported network answers, otherwise.

Known false alarms. Who never folds can live with the second; hs.fold sees it and leaves such a norm alone. Norms after
something that is not linear cannot be folded before it, are left by everyone, and are not named.

Fix. model.eval() for all of it, which is safe. hs.fold(model, batches), with a certificate of what it left and why, in
place of a fold by names; grouped transposed convolutions, too, it folds right.

References. Jacob et al. 2018, arXiv 1712.05877, on folding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from homeostat.doctor.facts import Facts, Layer
from homeostat.doctor.rule import SAFE, SUSPICIOUS, Case, Limits, Measure, NotApplicable, NotMeasured
from homeostat.recognising.found import RUNNING

GROUP, LIMITS, SAFETY = SUSPICIOUS, Limits(0.5), SAFE
ADVICE = "model.eval() for every part of it; hs.fold(model, batches), which leaves what cannot be folded"
SHARED = ("also goes to", "shares its weight with", "it follows ", "reads the weight of")


def judge(facts: Facts) -> list[Measure]:
    layers = [layer for layer in facts.layers if layer.found.source == RUNNING]
    if not layers:
        raise NotApplicable("no norm has constants that could be folded")
    if facts.unfolded is None:
        raise NotMeasured(facts.because("unfolded"))
    return [_measure(layer, facts.training, facts.unfolded.get(layer.name, "")) for layer in layers]


def _measure(layer: Layer, model_trains: bool, left: str) -> Measure:
    frozen = layer.step is not None and layer.step.wakes and layer.step.ahead == 0
    if layer.training and not model_trains and not frozen:
        said = "it is in training mode in a model in evaluation mode: it answers by the batch, and learns from it"
        return Measure(layer.name, 1.0, 0.0, 1.0, 1.0, said)
    before = left.partition(";")[0]
    if any(word in before for word in SHARED):
        return Measure(layer.name, 1.0, 0.0, 1.0, 1.0, f"it cannot be folded: {before}")
    return Measure(layer.name, 0.0, 0.0, 0.0, 0.0, f"nothing is lost: {left}" if left else "it can be folded")


def cure(model: nn.Module, where: list[str], data: list[Any], forward: Any) -> tuple[nn.Module, Any]:
    """In evaluation mode; what is shared stays, and is still named."""
    from homeostat.surgery.calling import compared, copied, samples_in
    from homeostat.surgery.certificate import Certificate, Change

    new = copied(model)
    awake = [name for name in where if new.get_submodule(name).training]
    if not awake:
        raise ValueError(f"fold-or-export: {', '.join(where)} cannot be folded; hs.fold(model, batches) leaves it.")
    for name in awake:
        new.get_submodule(name).eval()
    drift, _ = compared(model, new, data, forward)
    changed = tuple(Change(name, type(new.get_submodule(name)).__name__) for name in awake)
    left = tuple((name, "what it follows is shared") for name in where if name not in awake)
    return new, Certificate("put into evaluation mode", changed, left, drift, samples_in(data))


def bad(seed: int) -> Case:
    """Somebody called .train() on a part."""
    model, batches, _ = good(seed)
    model.get_submodule("1").train()
    return Case(model, batches)


def good(seed: int) -> Case:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
        batches = [torch.randn(16, 3, 8, 8) for _ in range(4)]
        for x in batches:
            model(x)
        return Case(model.eval(), batches)
