"""What the study's audits said, one record an audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from saliency_lab.attacks.verdict import MARKS
from saliency_lab.comparison.format import count, radius, short, write_value
from saliency_lab.reporting.tables import Cell, Column, Table, hue

_KEYS = ["model", "seed", "attack", "eps", "n", "robust_accuracy", "worst_case", "verdict", "reason"]


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

    @property
    def radius(self) -> str:
        """ε, written."""
        return radius(self.eps)

    @property
    def sentence(self) -> str:
        """The verdict, and the worst case beside what the attack reports."""
        reported, worst = (write_value(each, share=True) for each in (self.robust_accuracy, self.worst_case))
        return (
            f"{self.attack} at {self.radius} reports {reported} robust; the worst case over all attacks is "
            f"{worst}, on {count(self.n, 'image')}."
        )


def read_audits(audits: pd.DataFrame, models: Sequence[str]) -> list[Audited]:
    """Read `Study.audits`: a row a check, beside its audit's verdict."""
    found = []
    key: Any
    for position, (key, rows) in enumerate(audits.groupby(_KEYS, sort=False, dropna=False)):
        facts = dict(zip(_KEYS, key, strict=True))
        checks = [
            [
                Cell(row["check"]),
                Cell(
                    f"{MARKS.get(row['check_verdict'], '')} {row['check_verdict']}",
                    badge=row["check_verdict"],
                ),
                Cell(row["evidence"]),
            ]
            for row in rows.to_dict("records")
        ]
        caption = (
            f"Checks of {facts['attack']} at {radius(facts['eps'])} on {facts['model']}, seed {facts['seed']}"
        )
        columns = [Column("check"), Column("verdict"), Column("evidence")]
        index = hue(models, facts["model"])
        found.append(
            Audited(**facts, index=index, checks=Table(f"audit-{position}", caption, columns, checks))
        )
    return found


def overview(audits: Sequence[Audited]) -> Table:
    """A row an audit: its verdict, and the worst case beside what the attack reports."""
    columns = [
        Column("model", filtered=True),
        Column("seed", "number"),
        Column("attack", filtered=True),
        Column("ε", "number", filtered=True),
        Column("reported", "number", help="accuracy under the attack"),
        Column("worst case", "number", help="accuracy under every attack of the audit: the number to report"),
        Column("n", "number", help="images"),
        Column("verdict", filtered=True),
        Column("reason"),
    ]
    rows = [
        [
            Cell(each.model, model=each.index),
            Cell(str(each.seed), each.seed),
            Cell(each.attack),
            Cell(short(each.eps), each.eps),
            Cell(write_value(each.robust_accuracy, share=True), each.robust_accuracy),
            Cell(write_value(each.worst_case, share=True), each.worst_case),
            Cell(f"{each.n:,}", each.n),
            Cell(each.verdict, badge=each.verdict.replace(" ", "-")),
            Cell(each.reason),
        ]
        for each in audits
    ]
    return Table("audits", "Verdicts on the accuracies under attack", columns, rows)
