"""The tidy tables that a comparison is made from: one row per value, with what it is a value of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

SCORES = ["model", "recipe", "seed", "method", "metric", "sample", "score"]
ROBUSTNESS = ["model", "recipe", "seed", "attack", "eps", "sample", "robust"]
AUDITS = [
    *("model", "recipe", "seed", "attack", "eps", "n", "robust_accuracy", "worst_case", "verdict", "reason"),
    *("check", "check_verdict", "evidence"),
]


def tidy(
    parts: Sequence[tuple[Mapping[str, Any], Mapping[str, np.ndarray]]], columns: list[str]
) -> pd.DataFrame:
    """Return one row per value, with the keys of its part.

    >>> part = {"model": "at", "seed": 0}, {"score": np.array([0.25, 0.5])}
    >>> tidy([part], ["model", "seed", "sample", "score"]).values.tolist()
    [['at', 0, 0, 0.25], ['at', 0, 1, 0.5]]
    """
    if not parts:
        return pd.DataFrame(columns=columns)
    counts = [len(next(iter(values.values()))) for _, values in parts]
    rows = pd.DataFrame([keys for keys, _ in parts])
    repeated = rows.loc[np.repeat(np.arange(len(parts)), counts)].reset_index(drop=True)
    repeated["sample"] = np.concatenate([np.arange(count) for count in counts])
    for name in parts[0][1]:
        repeated[name] = np.concatenate([values[name] for _, values in parts])
    return repeated[columns]
