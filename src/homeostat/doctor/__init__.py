"""Doctor: what normalization does wrong in a model, measured against what it would be if nothing were wrong.

batches -> probe -> Facts -> rules -> Report        a fix is surgery on a copy, probed again
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from homeostat.doctor.facts import Facts, Layer
from homeostat.doctor.fingerprint import changed, fingerprint
from homeostat.doctor.fixing import cure
from homeostat.doctor.gradients import Loss
from homeostat.doctor.location import Place, Places
from homeostat.doctor.probe import probe
from homeostat.doctor.report import FOUND, NOT_APPLICABLE, NOT_MEASURED, PASSED, SEVERITIES, Finding, Report, Result
from homeostat.doctor.rule import (
    DEFAULT,
    GROUPS,
    Limits,
    Measure,
    NotApplicable,
    NotMeasured,
    Rule,
    asked_for,
    every_rule,
)
from homeostat.nn.states import check_module
from homeostat.recognising.watching import Forward, call
from homeostat.surgery.calling import listed


def check(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward = call,
    loss: Loss | None = None,
    labels: Any = None,
    roles: dict[str, Any] | None = None,
    select: str | Iterable[str] = DEFAULT,
    ignore: str | Iterable[str] = (),
    limits: dict[str, float | tuple[float, float]] | None = None,
    built: str | None = None,
) -> Report:
    """Look at a model on some batches and report what normalization does wrong in it. The model stays as it was.

    A few batches of the size it is trained with are enough. `forward(model, batch)` calls it; without it a tensor is
    the input, of a sequence the first is, a dict is keywords. `loss(output, labels)` is what training lowers, `labels`
    those of the batches if they do not hold them. `roles` says what no tool can guess. `select` and
    `ignore` are codes, names or groups of rules; `limits` are levels by code from which on one speaks. A
    finding tells the line where its norm is built; `built`, "package.module:name", is what made the model, for norms
    that a library builds. `# homeostat: ignore[HS101]` on that line puts a finding aside.
    """
    check_module(model, "check")
    _check_real(model)
    data = [dict(batch) if isinstance(batch, Mapping) else batch for batch in listed(batches)]
    if not data:
        raise ValueError("check: there are no batches; a rule is judged on what a model does to some.")
    codes = asked_for(tuple([select] if isinstance(select, str) else select))
    codes -= asked_for(tuple([ignore] if isinstance(ignore, str) else ignore))
    start, before = time.perf_counter(), fingerprint(model)
    try:
        facts = probe(model, data, forward, roles, loss, labels)
    except Exception as error:
        harm = changed(before, fingerprint(model))
        error.add_note(
            f"This came up while the model was checked; it is {f'changed: {harm}' if harm else 'unchanged'}."
        )
        raise
    after = changed(before, fingerprint(model))
    judged = [_judged(rule, facts, _limits(rule, limits)) for code, rule in every_rule().items() if code in codes]
    order = {layer.name: i for i, layer in enumerate(facts.layers)}
    findings = [finding for _, some in judged for finding in some]
    places = Places(model, built)
    findings = [replace(f, location=places(f.module).ours, library=places(f.module).library) for f in findings]
    findings.sort(key=lambda f: (SEVERITIES.index(f.severity), f.code, -f.effect / f.limit, order.get(f.module, -1)))

    def again(report: Report, code: str, **how: Any) -> Any:
        def recheck(new: nn.Module) -> Report:
            told = {"loss": loss, "labels": labels, "roles": roles}
            return check(new, data, forward=forward, select=select, ignore=ignore, limits=limits, built=built, **told)

        return cure(model, data, forward, report, code, recheck, **how)

    return Report(
        findings=tuple(f for f in findings if not _ignored(f, places(f.module))),
        ignored=tuple(f for f in findings if _ignored(f, places(f.module))),
        results=tuple(result for result, _ in judged),
        norms=tuple(_norm(one, places(one.name)) for one in facts.layers),
        batches=len(data),
        seconds=time.perf_counter() - start,
        passes=facts.passes,
        changed=tuple(after),
        facts=facts,
        curer=again,
    )


def _check_real(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("check: the model is compiled by torch.jit.script; check what it was made of.")
    if any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        raise ValueError("check: the model has layers that have not seen an input yet; run it once.")
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise ValueError("check: the model is on the meta device and has no numbers yet; load its weights first.")


def explain(code: str) -> str:
    """What a rule is about: what it finds, why it matters, where it is wrong, what to do."""
    rule = every_rule()[sorted(asked_for(code))[0]]
    fix = rule.safety or "by hand"
    return f"{rule.code} {rule.name} ({rule.group}; fix: {fix}; limits {tuple(rule.limits)})\n\n{rule.text}"


def _limits(rule: Rule, given: dict[str, Any] | None) -> Limits:
    for word in (rule.code, rule.name):
        if given and word in given:
            return Limits(*given[word]) if isinstance(given[word], tuple | list) else Limits(given[word])
    return rule.limits


def _judged(rule: Rule, facts: Facts, limits: Limits) -> tuple[Result, list[Finding]]:
    state, why, measured = PASSED, "", list[Measure]()
    try:
        measured = sorted(rule.judge(facts), key=lambda m: -m.value)
    except NotApplicable as reason:
        state, why = NOT_APPLICABLE, str(reason)
    except NotMeasured as reason:
        state, why = NOT_MEASURED, str(reason)
    found = [_finding(rule, m, limits) for m in measured if m.speaks(limits.warn)]
    state = FOUND if found else state
    numbers = tuple(map(asdict, measured))
    return Result(rule.code, rule.name, rule.group, state, why, numbers, rule.text, tuple(limits)), found


def _ignored(finding: Finding, place: Place) -> bool:
    try:
        return finding.code in asked_for(place.ignored)
    except ValueError as error:
        raise ValueError(f"{place.ours} says what to ignore: {error}") from error


def _norm(layer: Layer, place: Place) -> dict[str, str | None]:
    frame, built = str(layer.found.frame), {"location": place.ours, "library": place.library}
    return {"name": layer.name, "kind": layer.found.kind, "frame": frame, **built}


def _finding(rule: Rule, m: Measure, limits: Limits) -> Finding:
    severity = "error" if limits.error is not None and m.value > limits.error else GROUPS[rule.group]
    return Finding(
        code=rule.code,
        name=rule.name,
        severity=severity,
        module=m.where,
        location=None,
        effect=m.value,
        null=m.null,
        low=m.low,
        high=m.high,
        limit=limits.warn,
        message=m.said,
        fix=rule.advice,
        safety=rule.safety,
    )
