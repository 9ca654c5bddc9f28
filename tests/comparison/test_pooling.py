from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab.comparison import Comparison, pool_comparisons, pool_differences

STUDIES = {"a": (-0.06, -0.10, -0.02), "b": (-0.03, -0.07, 0.01), "c": (-0.10, -0.18, -0.02)}
Z = stats.norm.isf(0.025)


def test_the_fixed_effect_is_the_mean_weighted_by_precision() -> None:
    pooled = pool_differences(STUDIES, share=True)
    effects = np.array([mean for mean, _, _ in STUDIES.values()])
    errors = np.array([(high - low) / (2 * Z) for _, low, high in STUDIES.values()])
    weights = errors**-2.0
    mean, error = (weights * effects).sum() / weights.sum(), weights.sum() ** -0.5
    row = pooled.table.loc["fixed effect"]
    assert row[["difference", "low", "high"]].tolist() == pytest.approx(
        [mean, mean - Z * error, mean + Z * error]
    )
    assert row["p"] == pytest.approx(2 * stats.norm.sf(abs(mean) / error))
    q = (weights * (effects - mean) ** 2).sum()
    assert pooled.p_heterogeneity == pytest.approx(stats.chi2.sf(q, 2))
    assert pooled.heterogeneity == pytest.approx(max(0.0, 1 - 2 / q))
    assert pooled.table["weight_fixed"].iloc[:3].tolist() == pytest.approx(list(weights / weights.sum()))


def test_studies_that_agree_are_not_heterogeneous() -> None:
    draws = np.random.default_rng(0)
    for _ in range(100):
        effect, halves = round(float(draws.normal(0, 0.05)), 2), draws.uniform(0.01, 0.06, 3).round(2)
        pooled = pool_differences({str(i): (effect, effect - h, effect + h) for i, h in enumerate(halves)})
        assert (pooled.heterogeneity, pooled.tau) == (0.0, 0.0)
        assert pooled.p_heterogeneity == pytest.approx(1.0)
        assert "heterogeneity: I² = 0 %, p = 1" in str(pooled)
        assert pooled.table.loc["random effects", "difference"] == pytest.approx(effect)


def test_random_effects_solve_paule_and_mandels_equation() -> None:
    studies = {"a": (0.5, 0.4, 0.6), "b": (0.1, 0.0, 0.2), "c": (-0.2, -0.35, -0.05), "d": (0.3, 0.1, 0.5)}
    pooled = pool_differences(studies)
    effects = np.array([mean for mean, _, _ in studies.values()])
    variances = np.array([((high - low) / (2 * Z)) ** 2 for _, low, high in studies.values()])
    weights = 1 / (variances + pooled.tau**2)
    mean = (weights * effects).sum() / weights.sum()
    q = (weights * (effects - mean) ** 2).sum()
    assert q == pytest.approx(3, rel=1e-3)
    row = pooled.table.loc["random effects"]
    assert row["difference"] == pytest.approx(mean, rel=1e-4)
    half = stats.t.isf(0.025, 3) * math.sqrt(max(q / 3, 1) / weights.sum())
    assert row["high"] - row["difference"] == pytest.approx(half, rel=1e-3)
    assert row["low"] < 0 < row["high"]
    assert pooled.table.loc["fixed effect", "low"] > 0  # which disagreeing studies do not bear out


def test_several_weak_studies_of_one_sign_are_evidence_together() -> None:
    weak = {str(i): (-0.05, -0.105, 0.005) for i in range(4)}
    pooled = pool_differences(weak, share=True)
    assert (pooled.table["high"].iloc[:4] > 0).all()
    assert pooled.table.loc["fixed effect", "p"] < 0.001
    assert pooled.table.loc["random effects", "p"] < 0.05
    assert "−5.0 points" in str(pooled) and "I² = 0 %" in str(pooled)


def test_a_forest_plot_has_every_study_and_both_pooled_rows() -> None:
    (ax,) = pool_differences(STUDIES, share=True).plot(title="ASGT − AT").axes
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["a", "b", "c", "fixed effect", "random effects"]
    drawn = [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "s"]
    assert drawn == [-0.06, -0.03, -0.10]
    assert len(ax.patches) == 2


def _comparison(shift: float, key: int) -> Comparison:
    draws = np.random.default_rng(key)
    rows = []
    for model, mean in (("base", 0.0), ("other", shift)):
        for seed in range(3):
            score = mean + 0.1 * draws.normal() + draws.normal(size=50)
            keys = {"model": model, "recipe": "", "seed": seed, "method": "saliency", "metric": "sparseness"}
            rows.append(pd.DataFrame(keys | {"sample": range(50), "score": score}))
    empty = pd.DataFrame(columns=["model", "recipe", "seed", "attack", "eps", "sample", "robust"])
    return Comparison(pd.concat(rows), empty, baseline="base")


def test_comparisons_are_pooled_by_their_own_intervals() -> None:
    comparisons = {name: _comparison(1.0, key) for key, name in enumerate(("one", "two", "three"))}
    pooled = pool_comparisons(comparisons, "other", "base", "sparseness")
    for name, comparison in comparisons.items():
        row = comparison.table().query("model == 'other'").iloc[0]
        found = pooled.table.loc[name, ["difference", "low", "high"]]
        assert found.tolist() == row[["difference", "difference_low", "difference_high"]].tolist()
        assert pooled.table.loc[name, "p"] == row["p"]
    assert sl.pool_comparisons is pool_comparisons
    with pytest.raises(InputError, match="unknown model of 'one': 'gone'"):
        pool_comparisons(comparisons, "gone", "base", "sparseness")


def test_a_study_whose_seeds_disagree_is_named() -> None:
    split = _comparison(1.0, 0)
    apart = (split.scores["model"] == "other") & (split.scores["seed"] == 1)
    split.scores.loc[apart, "score"] += 100.0
    lost = _comparison(1.0, 1)
    lost.scores.loc[(lost.scores["model"] == "other") & (lost.scores["seed"] > 0), "score"] = np.nan
    for bad, reason in ((split, ", because the training seeds of 'other' disagree"), (lost, "")):
        message = f"the study 'two' has no interval of this difference{reason}; leave the study out"
        with pytest.raises(InputError, match=message):
            pool_comparisons({"one": _comparison(1.0, 2), "two": bad}, "other", "base", "sparseness")


def test_what_cannot_be_pooled_is_refused() -> None:
    with pytest.raises(InputError, match="at least two studies, not 1"):
        pool_differences({"a": (0.1, 0.0, 0.2)})
    with pytest.raises(InputError, match="differences, that of 'b', must be a finite number"):
        pool_differences(STUDIES | {"b": (0.1, math.nan, math.nan)})


@pytest.mark.parametrize(
    ("studies", "message"),
    [
        ({"a": (5.0, 0.0, 1.0), "b": (0.5, 0.0, 1.0)}, "that of 'a', must lie within its interval"),
        ({"fixed effect": (0.5, 0.0, 1.0), "b": (0.5, 0.0, 1.0)}, "cannot be named 'fixed effect'"),
    ],
)
def test_impossible_differences_are_refused(studies, message) -> None:
    with pytest.raises(InputError, match=message):
        pool_differences(studies)
