"""The tidy tables of a study: one row per value, with what it is a value of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from saliency_lab.study.sample import Member

SCORES = ["model", "recipe", "seed", "method", "metric", "sample", "score"]
ROBUSTNESS = ["model", "recipe", "seed", "attack", "eps", "sample", "robust"]
AUDITS = [
    *("model", "recipe", "seed", "attack", "eps", "n", "robust_accuracy", "worst_case", "verdict", "reason"),
    *("check", "check_verdict", "evidence"),
]
FAILURES = ["model", "seed", "what", "error", "traceback"]


def tidy(
    parts: Sequence[tuple[Member, Mapping[str, Any], Mapping[str, np.ndarray]]], columns: list[str]
) -> pd.DataFrame:
    """Return one row per value, with the member and the keys of its part."""
    if not parts:
        return pd.DataFrame(columns=columns)
    rows = [{"model": m.model, "recipe": m.recipe, "seed": m.seed, **keys} for m, keys, _ in parts]
    counts = [len(next(iter(values.values()))) for *_, values in parts]
    repeated = pd.DataFrame(rows).loc[np.repeat(np.arange(len(parts)), counts)].reset_index(drop=True)
    repeated["sample"] = np.concatenate([np.arange(count) for count in counts])
    for name in parts[0][2]:
        repeated[name] = np.concatenate([values[name] for *_, values in parts])
    return repeated[columns]
