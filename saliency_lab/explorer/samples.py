"""Which images of a study to look at, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from saliency_lab._common.checks import format_epsilon

if TYPE_CHECKING:
    from saliency_lab.study import Study
    from saliency_lab.study.sample import Member


@dataclass(frozen=True)
class ImageFilter:
    """What became of a prediction: `wrong` without an attack, `changed` or `kept` under an attack at ε."""

    kind: Literal["wrong", "changed", "kept"]
    attack: str
    eps: float

    def __str__(self) -> str:
        if self.kind == "wrong":
            return "wrong without an attack"
        verb = "changed" if self.kind == "changed" else "not changed"
        return f"{verb} by {self.attack}, ε = {format_epsilon(self.eps)}"


class Samples:
    """The facts about each image of a study: class, predictions under attack, scores."""

    def __init__(self, study: Study) -> None:
        self.labels = study.y.numpy()
        self._robust = _by_sample(study.robustness, ["model", "seed", "attack", "eps"], "robust")
        self._scores = _by_sample(study.scores, ["model", "seed", "method", "metric"], "score")

    @property
    def metrics(self) -> list[str]:
        """Labels of the metrics that images can be sorted by."""
        return list(dict.fromkeys(metric for *_, metric in self._scores))

    @property
    def attacks(self) -> list[tuple[str, float]]:
        """The attacks of the study, each at each ε > 0."""
        return sorted({(attack, eps) for *_, attack, eps in self._robust if eps > 0})

    @property
    def outcomes(self) -> list[ImageFilter]:
        """What images can be filtered by."""
        attacks = self.attacks
        if not attacks:
            return []
        pairs = [
            (ImageFilter("changed", attack, eps), ImageFilter("kept", attack, eps)) for attack, eps in attacks
        ]
        return [*(outcome for pair in pairs for outcome in pair), ImageFilter("wrong", attacks[0][0], 0.0)]

    def select(self, label: int | None, outcome: ImageFilter | None, members: Sequence[Member]) -> np.ndarray:
        """Positions of the images of a class (None: of any) with an outcome.

        An image is `changed` or `wrong` if it is for one of the members, and `kept` if it is for all.
        """
        keep = np.ones(len(self.labels), dtype=bool) if label is None else self.labels == label
        if outcome is not None:
            seen = [mask for member in members if (mask := self._outcome(outcome, member)) is not None]
            if seen:
                keep &= np.all(seen, axis=0) if outcome.kind == "kept" else np.any(seen, axis=0)
            else:
                keep[:] = False
        return keep.nonzero()[0]

    def scores(self, metric: str, members: Sequence[Member], methods: Sequence[str]) -> np.ndarray:
        """Mean score of each image over these members and methods, (N,); NaN where there is none."""
        rows = [
            self._scores[key]
            for member in members
            for method in methods
            if (key := (member.model, member.seed, method, metric)) in self._scores
        ]
        mean = np.full(len(self.labels), np.nan)
        table = np.reshape(rows, (-1, len(mean)))
        known = np.isfinite(table)
        return np.divide(np.nansum(table, axis=0), known.sum(0), out=mean, where=known.any(0))

    def _outcome(self, outcome: ImageFilter, member: Member) -> np.ndarray | None:
        at = (member.model, member.seed, outcome.attack)
        clean, robust = self._robust.get((*at, 0.0)), self._robust.get((*at, outcome.eps))
        if clean is None or robust is None:
            return None
        if outcome.kind == "wrong":
            return ~clean
        return clean & ~robust if outcome.kind == "changed" else robust


def _by_sample(table: pd.DataFrame, keys: list[str], column: str) -> dict[Any, np.ndarray]:
    """Values of each group of rows, in the order of the images."""
    groups = table.sort_values("sample", kind="stable").groupby(keys, sort=False)
    return {group: rows.to_numpy() for group, rows in groups[column]}
