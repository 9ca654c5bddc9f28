"""The audits of a study: one record per audit, and its checks as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from saliency_lab._common.checks import format_epsilon
from saliency_lab.attacks.verdict import MARKS, Verdict
from saliency_lab.comparison.format import count, radius, write_value
from saliency_lab.reporting.tables import Column, Entry, Table

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
            f"{worst}, on {count(self.n, 'image')}."
        )


def read_audits(audits: pd.DataFrame, models: Sequence[str]) -> list[Audited]:
    """Read `Study.audits`, which has one row per check."""
    found = []
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
        found.append(Audited(**facts, index=index, checks=table, results=results))
    return found


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
