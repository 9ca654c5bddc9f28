"""The audits of a study: one record per audit, its checks as a table, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from saliency_lab._common.checks import format_epsilon
from saliency_lab._common.text import number_of
from saliency_lab.attacks.checklist import BUDGETS
from saliency_lab.attacks.verdict import MARKS, Verdict
from saliency_lab.comparison.content import Column, Entry, Table, audits_by_model
from saliency_lab.comparison.format import one_line, radius, write_value
from saliency_lab.study import Study

_KEYS = ["model", "seed", "attack", "eps", "n", "robust_accuracy", "worst_case", "verdict", "reason"]


class AuditCheck(NamedTuple):
    """One check of an audit."""

    check: str
    verdict: Verdict
    evidence: str


@dataclass(frozen=True)
class Audited:
    """One audit of one network: its verdict, and its checks as a table."""

    model: str
    index: int
    seed: int
    attack: str
    eps: float
    n: int
    robust_accuracy: float
    worst_case: float
    verdict: str
    reason: str
    checks: Table
    results: list[AuditCheck]

    @property
    def radius(self) -> str:
        """ε in words."""
        return radius(self.eps)

    @property
    def sentence(self) -> str:
        """The worst case compared with what the attack reports."""
        reported, worst = (write_value(each, share=True) for each in (self.robust_accuracy, self.worst_case))
        return (
            f"{self.attack} at {self.radius} reports {reported} robust; the worst case over all attacks is "
            f"{worst}, on {number_of(self.n, 'image')}."
        )


def read_audits(audits: pd.DataFrame, models: Sequence[str]) -> list[Audited]:
    """Read `Study.audits`, which has one row per check."""
    audited = []
    key: Any
    for position, (key, rows) in enumerate(audits.groupby(_KEYS, sort=False, dropna=False)):
        facts = dict(zip(_KEYS, key, strict=True))
        results = [
            AuditCheck(row["check"], row["check_verdict"], row["evidence"]) for row in rows.to_dict("records")
        ]
        checks = [
            [
                Entry(each.check),
                Entry(f"{MARKS[each.verdict]} {each.verdict}", badge=each.verdict),
                Entry(each.evidence),
            ]
            for each in results
        ]
        caption = (
            f"Checks of {facts['attack']} at {radius(facts['eps'])} on {facts['model']}, seed {facts['seed']}"
        )
        columns = [Column("check"), Column("verdict"), Column("evidence")]
        index = list(models).index(facts["model"])
        table = Table(f"audit-{position}", caption, columns, checks)
        audited.append(Audited(**facts, index=index, checks=table, results=results))
    return audited


def overview(audits: Sequence[Audited]) -> Table:
    """Return one row per audit: its verdict, and the worst case compared with what the attack reports."""
    columns = [
        Column("model", filtered=True),
        Column("seed", "number"),
        Column("attack", filtered=True),
        Column("ε", "number", filtered=True),
        Column("reported", "number", help="accuracy under the attack"),
        Column(
            "worst case",
            "number",
            help="accuracy under every attack of the audit: an upper bound of the true robust accuracy",
        ),
        Column("n", "number", help="images"),
        Column("verdict", filtered=True),
        Column("reason"),
    ]
    rows = [
        [
            Entry(each.model, model=each.index),
            Entry(str(each.seed), each.seed),
            Entry(each.attack),
            Entry(format_epsilon(each.eps), each.eps),
            Entry(write_value(each.robust_accuracy, share=True), each.robust_accuracy),
            Entry(write_value(each.worst_case, share=True), each.worst_case),
            Entry(f"{each.n:,}", each.n),
            Entry(each.verdict, badge=each.verdict.replace(" ", "-")),
            Entry(each.reason),
        ]
        for each in audits
    ]
    return Table("audits", "Verdicts on the accuracies under attack", columns, rows)


@dataclass(frozen=True)
class AuditSummary:
    """What the audits say together: a row per model, how they were made, and every warning."""

    table: Table
    notes: list[str]
    doubts: list[str]


_NEXT_TO_NOTHING = 0.05


def summarise_audits(study: Study, audits: Sequence[Audited]) -> AuditSummary:
    """Summarise the audits of a study over the training seeds."""
    columns = [
        *(Column("model"), Column("attack"), Column("images"), Column("attack reports")),
        *(Column("worst case of all attacks"), Column("verdict by seed")),
    ]
    rows = [
        [
            Entry(each.model),
            Entry(f"{each.attack}, {radius(each.eps)}"),
            Entry(str(each.n)),
            *(Entry(write_value(value, share=True)) for value in (each.robust_accuracy, each.worst_case)),
            Entry(", ".join(f"{times} × {verdict}" for verdict, times in each.verdicts.items())),
        ]
        for each in audits_by_model(study.audits)
    ]
    stored = _stored_audits(study)
    budgets = {depends["budget"] for _, depends in stored}
    strength = "; ".join(
        f"{BUDGETS[each].queries:,} queries, {BUDGETS[each].steps} steps and {BUDGETS[each].targets} targets"
        for each in BUDGETS
        if each in budgets
    )
    notes = [
        "All attacks: FGSM with and without a random start, the attack in question with more steps and other "
        "starts, noise, PGD on rescaled logits and on the margin, Square, APGD-CE, targeted APGD and FAB "
        f"(the last four with {strength})."
    ]
    checks = [(audit, check) for audit in audits for check in audit.results]
    skipped = dict.fromkeys((c.check, c.evidence) for _, c in checks if c.verdict == "skipped")
    notes += [f"Not checked: {check} ({evidence})." for check, evidence in skipped]
    notes += _transfer_sources(study, stored)
    if any(audit.robust_accuracy <= _NEXT_TO_NOTHING for audit in audits):
        notes.append("Where the attack leaves next to nothing, there is next to nothing to doubt.")
    doubts = [
        f"{audit.model}, seed {audit.seed}, {one_line((radius(audit.eps), ''))}: {check.check} "
        f"({check.verdict}): {check.evidence}"
        for audit, check in checks
        if audit.verdict != "believe" and check.verdict in {"warn", "fail"}
    ]
    return AuditSummary(Table("audits-by-model", "Audits by model", columns, rows), notes, doubts)


def _stored_audits(study: Study) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the model of each audit, and what its result depends on."""
    audits = [(place.model, key) for place, key in study.results.items() if place.kind == "audit"]
    described = [(model, study.store.describe("audit", key)) for model, key in audits]
    return [(model, each[0].depends) for model, each in described if each is not None]


def _transfer_sources(study: Study, stored: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Say from which models points were transferred, where an audit did not use all: in a part of a study."""
    models = {str(member): member.model for member in study.members}
    several = {model for model in study.models if list(models.values()).count(model) > 1}
    used: dict[str, set[str]] = {}
    complete = True
    for model, depends in stored:
        named = {models.get(name, name) for name in depends.get("sources", {})}
        used[model] = used.get(model, set()) | named
        complete &= set(study.models) - ({model} - several) <= named  # one seed cannot serve itself
    if complete:
        return []
    groups: dict[str, list[str]] = {}
    for model, sources in used.items():
        ordered = [each for each in study.models if each in sources] + sorted(sources - set(study.models))
        groups.setdefault(", ".join(ordered) or "none", []).append(model)
    listed = "; ".join(f"{', '.join(audited)} from {sources}" for sources, audited in groups.items())
    return [f"Parts of the study were audited on their own, so points were transferred to {listed}."]
