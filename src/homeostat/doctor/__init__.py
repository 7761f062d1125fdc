"""Doctor: what normalization does wrong in a model, measured against what it would be if nothing were wrong.

batches -> probe -> Facts -> rules -> Report        a fix is surgery on a copy, probed again
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from torch import nn

from homeostat.doctor.facts import Facts
from homeostat.doctor.fingerprint import changed, fingerprint
from homeostat.doctor.fixing import cure
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
    roles: dict[str, Any] | None = None,
    select: str | Iterable[str] = DEFAULT,
    ignore: str | Iterable[str] = (),
    limits: dict[str, float | tuple[float, float]] | None = None,
) -> Report:
    """Look at a model on some batches and report what normalization does wrong in it. The model stays as it was.

    A few batches of the size it is trained with are enough. `forward(model, batch)` calls it; without it a tensor is
    the input, of a sequence the first is, a dict is keywords. `roles` says what no tool can guess. `select` and
    `ignore` are codes, names or groups of rules; `limits` are levels by code from which on one speaks.
    """
    check_module(model, "check")
    data = listed(batches)
    if not data:
        raise ValueError("check: there are no batches; a rule is judged on what a model does to some.")
    codes = asked_for(tuple([select] if isinstance(select, str) else select))
    codes -= asked_for(tuple([ignore] if isinstance(ignore, str) else ignore))
    start, before = time.perf_counter(), fingerprint(model)
    facts = probe(model, data, forward, roles)
    after = changed(before, fingerprint(model))
    judged = [_judged(rule, facts, _limits(rule, limits)) for code, rule in every_rule().items() if code in codes]
    order = {layer.name: i for i, layer in enumerate(facts.layers)}
    findings = [finding for _, some in judged for finding in some]
    findings.sort(key=lambda f: (SEVERITIES.index(f.severity), f.code, -f.effect / f.limit, order.get(f.module, -1)))

    def again(report: Report, code: str, **how: Any) -> Any:
        def recheck(new: nn.Module) -> Report:
            return check(new, data, forward=forward, roles=roles, select=select, ignore=ignore, limits=limits)

        return cure(model, data, forward, report, code, recheck, **how)

    return Report(
        findings=tuple(findings),
        results=tuple(result for result, _ in judged),
        norms=tuple({"name": one.name, "kind": one.found.kind, "frame": str(one.found.frame)} for one in facts.layers),
        batches=len(data),
        seconds=time.perf_counter() - start,
        passes=facts.passes,
        changed=tuple(after),
        facts=facts,
        curer=again,
    )


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
    return Result(rule.code, rule.name, rule.group, FOUND if found else state, why, tuple(map(asdict, measured))), found


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
