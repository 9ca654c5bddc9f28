"""What an audit found: each check of the list with its evidence, and the verdict on the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from torch import Tensor

from saliency_lab._common.checks import format_epsilon
from saliency_lab._common.html import facts, table
from saliency_lab._common.text import number_of
from saliency_lab.attacks.result import AttackResult

Verdict = Literal["pass", "warn", "fail", "skipped"]
Summary = Literal["believe", "doubt", "weak attack", "do not believe"]
About = Literal["attack", "model"]

SIGNIFICANCE = 0.05
"""The level of the tests of single items."""

MARKS: dict[Verdict, str] = {"pass": "✓", "warn": "!", "fail": "✗", "skipped": "–"}
"""A sign for each verdict on an item."""


@dataclass(frozen=True)
class Check:
    """One item of the checklist: its verdict, the evidence in words, and the numbers behind them.

    `about`: a failed item says that the attack is weak ("attack") or that the model misleads ("model").
    """

    name: str
    verdict: Verdict
    evidence: str
    numbers: dict[str, float]
    about: About = "attack"


def exceeds(count: int, n: int, limit: float) -> Verdict:
    """Fail if `count` of `n` is significantly more than a share of `limit`, by an exact binomial test.

    >>> exceeds(3, 50, 0.02), exceeds(4, 50, 0.02)
    ('pass', 'fail')
    """
    from scipy.stats import binom

    return "fail" if count and binom.sf(count - 1, n, limit) < SIGNIFICANCE else "pass"


def upper_bound(count: int, n: int) -> float:
    """Upper end of the one-sided 95 % Clopper-Pearson interval of a share.

    >>> round(upper_bound(0, 100), 3), round(upper_bound(0, 1), 2)
    (0.03, 0.95)
    """
    from scipy.stats import beta

    return 1.0 if count == n else float(beta.ppf(0.95, count + 1, n - count))


@dataclass(frozen=True, eq=False, repr=False)
class Audit:
    """The checklist's verdict on a robust accuracy.

    Attributes
    ----------
    verdict : "believe", "doubt", "weak attack" or "do not believe"
        "do not believe" if the model misleads attacks, so that no number here is safe; "weak attack" if the
        model's gradient is sound and stronger attacks break significantly more; "doubt" if the images are too
        few to say, or something warns.
    reason : str
        The items that decided, with their evidence.
    checks : tuple of Check
        Each item of the checklist, with its own verdict, evidence and numbers.
    audited : AttackResult
        The evaluation in question.
    robust : Tensor (N,) of bool
        Robust against every attack that was run.
    budget : "quick" or "full"
        Effort of the other attacks.
    seconds : float
        Time that the audit took.
    """

    verdict: Summary
    reason: str
    checks: tuple[Check, ...]
    audited: AttackResult
    robust: Tensor
    budget: str
    seconds: float

    def __repr__(self) -> str:
        radius = f"eps={format_epsilon(self.audited.eps)} ({self.audited.norm})"
        return (
            f"Audit({self.verdict}: {self.audited.method} at {radius} "
            f"says {self.robust_accuracy:.1%} robust, the worst case is {self.worst_case:.1%}; {self.reason})"
        )

    def _repr_html_(self) -> str:
        rows = {
            "verdict": self.verdict,
            "reported": f"{self.robust_accuracy:.1%} robust against {self.audited.method}",
            "worst case": f"{self.worst_case:.1%} robust against every attack that was run",
            "clean accuracy": f"{self.audited.clean_accuracy:.1%}",
            "images": str(len(self.audited)),
            "ε": f"{format_epsilon(self.audited.eps)} ({self.audited.norm})",
        }
        checks = [
            (check.name, f"{MARKS[check.verdict]}\N{NO-BREAK SPACE}{check.verdict}", check.evidence)
            for check in self.checks
        ]
        return facts("audit", rows) + table("checklist", ["check", "verdict", "evidence"], checks)

    @property
    def robust_accuracy(self) -> float:
        """The number in question."""
        return self.audited.robust_accuracy

    @property
    def worst_case(self) -> float:
        """Robust accuracy against every attack that was run: an upper bound of the true robust accuracy."""
        return self.robust.double().mean().item()

    def __iter__(self) -> Iterator[str]:
        """Names of the checks."""
        return (check.name for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def table(self) -> pd.DataFrame:
        """Return the checklist as a table.

        Returns
        -------
        DataFrame
            One row per item, indexed by its name: `verdict` and `evidence`.
        """
        return pd.DataFrame(
            [(check.name, check.verdict, check.evidence) for check in self.checks],
            columns=["check", "verdict", "evidence"],
        ).set_index("check")

    def to_dict(self) -> dict[str, Any]:
        """Return everything but tensors, as values that JSON can hold.

        Returns
        -------
        dict
            The verdict, the accuracies and the checklist.
        """
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "robust_accuracy": self.robust_accuracy,
            "worst_case": self.worst_case,
            "clean_accuracy": self.audited.clean_accuracy,
            "n": len(self.audited),
            "method": self.audited.method,
            "eps": self.audited.eps,
            "norm": self.audited.norm,
            "settings": self.audited.settings,
            "seed": self.audited.seed,
            "budget": self.budget,
            "seconds": self.seconds,
            "checks": [
                {
                    "check": c.name,
                    "verdict": c.verdict,
                    "evidence": c.evidence,
                    "numbers": c.numbers,
                    "about": c.about,
                }
                for c in self.checks
            ],
        }


def summarise(checks: Sequence[Check], n: int) -> tuple[Summary, str]:
    """Return the verdict on the whole, of `n` images, and the items that decided it."""
    severity: tuple[tuple[Summary, list[Check]], ...] = (
        ("do not believe", [c for c in checks if c.verdict == "fail" and c.about == "model"]),
        ("weak attack", [c for c in checks if c.verdict == "fail" and c.about == "attack"]),
        ("doubt", [c for c in checks if c.verdict == "warn"]),
    )
    for summary, deciding in severity:
        if deciding:
            also = severity[1][1] if summary == "do not believe" else []
            return summary, "; ".join(f"{check.name}: {check.evidence}" for check in [*deciding, *also])
    passed = sum(check.verdict == "pass" for check in checks)
    return "believe", f"{number_of(passed, 'check')} passed on {number_of(n, 'image')}"
