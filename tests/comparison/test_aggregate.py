from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from saliency_lab._common.errors import InputError
from saliency_lab.comparison import Comparison, aggregate


def test_the_interquartile_mean_is_scipys_trimmed_mean_of_all_scores() -> None:
    scores = np.random.default_rng(0).lognormal(size=(8, 3))
    ordered = np.sort(scores.ravel())
    assert aggregate.interquartile_mean(scores) == pytest.approx(ordered[6:-6].mean())
    outlying = scores.copy()
    outlying[0, 0] = 1e9
    assert aggregate.interquartile_mean(outlying) < 2 * aggregate.interquartile_mean(scores)


@pytest.mark.parametrize("ties", [False, True])
def test_the_probability_of_improvement_is_the_mann_whitney_statistic(ties: bool) -> None:
    draws = np.random.default_rng(1)
    a, b = draws.normal(0.3, 1, (7, 1)), draws.normal(0, 1, (5, 1))
    if ties:
        a, b = a.round(), b.round()
    u = stats.mannwhitneyu(a[:, 0], b[:, 0]).statistic
    assert aggregate.probability_of_improvement(a, b) == pytest.approx(u / 35)
    total = aggregate.probability_of_improvement(a, b) + aggregate.probability_of_improvement(b, a)
    assert total == pytest.approx(1)


def test_a_performance_profile_is_one_minus_the_empirical_distribution() -> None:
    scores = np.random.default_rng(2).random((6, 2))
    thresholds = np.linspace(0, 1, 11)
    expected = 1 - stats.ecdf(scores.ravel()).cdf.evaluate(thresholds)
    np.testing.assert_allclose(aggregate.performance_profile(scores, thresholds), expected)


def test_the_bootstrap_is_that_of_scipy_for_one_task() -> None:
    scores = np.random.default_rng(3).normal(size=(12, 1))
    found = aggregate.stratified_bootstrap(lambda x: float(x.mean()), [scores], resamples=5000)
    expected = stats.bootstrap(
        (scores[:, 0],), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert found[1:] == pytest.approx(tuple(expected), abs=0.03)


def test_the_bootstrap_draws_within_tasks() -> None:
    """Tasks of very different size: a bootstrap that mixed them would vary a lot."""
    scores = np.array([[0.0, 100.0]] * 6)
    assert aggregate.stratified_bootstrap(lambda x: float(x.mean()), [scores]) == (50.0, 50.0, 50.0)


def _comparison(seeds: int) -> Comparison:
    draws = np.random.default_rng(4)
    rows = []
    for model, shift in (("base", 0.0), ("good", 0.5)):
        for method in ("saliency", "smoothgrad"):
            for seed in range(seeds):
                score = shift + 0.1 * draws.normal() + draws.normal(size=20)
                keys = {"model": model, "recipe": "", "seed": seed, "method": method, "metric": "complexity"}
                rows.append(pd.DataFrame(keys | {"sample": range(20), "score": score}))
    return Comparison(
        pd.concat(rows),
        pd.DataFrame(columns=["model", "seed", "attack", "eps", "sample", "robust"]),
        baseline="base",
    )


def test_a_comparison_aggregates_five_seeds_in_the_direction_of_the_metric() -> None:
    comparison = _comparison(6)
    table = comparison.aggregate("complexity")  # lower is better
    means = comparison.scores.groupby(["model", "method", "seed"])["score"].mean()
    assert table.loc["good", "iqm"] == pytest.approx(stats.trim_mean(means["good"], 0.25))
    assert table.loc["good", ["seeds", "tasks"]].tolist() == [6, 2]
    assert (table["low"] <= table["iqm"]).all() and (table["iqm"] <= table["high"]).all()
    wins = [
        stats.mannwhitneyu(-means["good", method], -means["base", method]).statistic / 36
        for method in ("saliency", "smoothgrad")
    ]
    assert table.loc["good", "improvement"] == pytest.approx(np.mean(wins))
    assert table.loc["good", "improvement"] < 0.5
    assert np.isnan(table.loc["base", "improvement"])
    one = comparison.aggregate("complexity", "smoothgrad")
    assert one.loc["good", "tasks"] == 1
    (ax,) = comparison.plot.profile("complexity").axes
    assert ax.yaxis.get_major_formatter()(0.5) == "50%" != ax.xaxis.get_major_formatter()(0.5)
    for line in ax.lines[:2]:
        heights = line.get_ydata()
        assert heights[-1] == 0 and (np.diff(heights) <= 0).all()


@pytest.mark.long
def test_four_seeds_are_too_few_to_aggregate() -> None:
    with pytest.raises(InputError, match="aggregates need 5 training seeds or more, and 'base' has 4"):
        _comparison(4).aggregate("complexity")
    with pytest.raises(InputError, match="unknown metric of this comparison"):
        _comparison(5).aggregate("sparseness")
