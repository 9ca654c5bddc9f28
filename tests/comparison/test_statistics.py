from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from saliency_lab.comparison import statistics


def test_bca_intervals_cover_the_mean_of_a_skewed_population() -> None:
    draws = np.random.default_rng(1)
    runs, hits = 500, 0
    for run in range(runs):
        low, high = statistics.mean_interval(draws.lognormal(0, 0.5, (1, 120)), seed=run)[1:]
        hits += low <= math.exp(0.125) <= high
    assert 0.93 <= hits / runs <= 0.97


@pytest.mark.parametrize(("seed_spread", "image_spread"), [(0.0, 1.0), (0.3, 1.0), (1.0, 0.5)])
def test_intervals_over_three_seeds_cover_the_mean_over_seeds_and_images(
    seed_spread: float, image_spread: float
) -> None:
    draws = np.random.default_rng(2)
    runs, hits = 1000, 0
    for run in range(runs):
        scores = (
            7.0
            + seed_spread * draws.normal(size=(3, 1))
            + image_spread * draws.normal(size=(1, 60))
            + 0.3 * draws.normal(size=(3, 60))
        )
        low, high = statistics.mean_interval(scores, seed=run)[1:]
        hits += low <= 7.0 <= high
    assert 0.94 <= hits / runs <= 0.985


@pytest.mark.parametrize(
    ("seeds", "spreads"),
    [((4, 3), (0.3, 0.3)), ((3, 3), (0.05, 0.05)), ((3, 3), (1.5, 1.5)), ((3, 3), (1.5, 0.1))],
)
def test_the_difference_of_two_recipes_with_several_seeds_covers(
    seeds: tuple[int, int], spreads: tuple[float, float]
) -> None:
    draws = np.random.default_rng(3)
    runs, hits = 1000, 0
    for run in range(runs):
        images = draws.normal(size=(1, 60))
        a, b = (
            mean + spread * draws.normal(size=(count, 1)) + images + 0.2 * draws.normal(size=(count, 60))
            for mean, count, spread in zip((1.0, 0.0), seeds, spreads, strict=True)
        )
        low, high = statistics.difference_interval(a, b, seed=run)[1:]
        hits += low <= 1.0 <= high
    assert 0.93 <= hits / runs <= 0.985


def test_holm_holds_the_family_wise_error_of_paired_tests() -> None:
    draws = np.random.default_rng(4)
    runs, wrong = 400, 0
    for _ in range(runs):
        baseline = draws.normal(size=(1, 40))
        p = [statistics.compare_scores(baseline + draws.normal(size=(1, 40)), baseline).p for _ in range(5)]
        wrong += statistics.holm(p).min() < 0.05
    assert wrong / runs <= 0.05 + 1.64 * math.sqrt(0.05 * 0.95 / runs)
    assert wrong > 0  # it is a test that can reject


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=12))
@settings(max_examples=15, deadline=None)  # statsmodels collects garbage at every call
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    found = statistics.holm(p)
    known = ~np.isnan(p)
    assert np.isnan(found[~known]).all()
    if known.any():
        np.testing.assert_allclose(found[known], multipletests(np.array(p)[known], method="holm")[1])


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_the_binomial_test_of_the_pairs_that_disagree(pairs: list[tuple[bool, bool]]) -> None:
    a, b = (np.array([[pair[i] for pair in pairs]]) for i in (0, 1))
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    found = statistics.compare_proportions(a, b)
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert found.p == pytest.approx(expected)
    assert found.effect == pytest.approx((only_a - only_b) / len(pairs))


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=30))
@settings(max_examples=25, deadline=None)
def test_rank_biserial_is_what_the_definition_says(differences: list[int]) -> None:
    found = statistics.compare_scores(np.array([differences], float), np.zeros((1, len(differences))))
    moved = [d for d in differences if d]
    if not moved:
        assert (found.p, found.effect) == (1.0, 0.0)
        return
    # ranks with ties shared, by counting
    rank = {
        m: sum(abs(o) < m for o in moved) + (sum(abs(o) == m for o in moved) + 1) / 2 for m in map(abs, moved)
    }
    above = sum(rank[abs(d)] for d in moved if d > 0)
    below = sum(rank[abs(d)] for d in moved if d < 0)
    assert found.effect == pytest.approx((above - below) / (above + below))
    assert found.p == pytest.approx(stats.wilcoxon(moved).pvalue)
    assert -1 <= found.effect <= 1


def test_wilson_is_the_closed_form() -> None:
    right = np.array([[True] * 7 + [False] * 3])
    share, low, high = statistics.proportion_interval(right)
    z, n = stats.norm.isf(0.025), 10
    centre = (0.7 + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(0.7 * 0.3 / n + z**2 / (4 * n**2))
    assert (share, low, high) == pytest.approx((0.7, centre - half, centre + half))


@pytest.mark.parametrize("seeds", [1, 3])
def test_nothing_broken_is_not_certainty(seeds: int) -> None:
    share, low, high = statistics.proportion_interval(np.zeros((seeds, 30), bool))
    assert (share, low) == (0.0, 0.0)
    assert 0.05 < high < 0.2


def test_undefined_scores_are_left_out_in_pairs() -> None:
    a = np.array([[1.0, np.nan, 3.0, 4.0, 9.0]])
    b = np.array([[0.5, 1.0, np.nan, 3.0, 1.0]])
    assert statistics.compare_scores(a, b).n == 3
    assert statistics.mean_interval(a).mean == pytest.approx(17 / 4)
    assert statistics.difference_interval(a, b).mean == pytest.approx((0.5 + 1 + 8) / 3)
    nothing = np.full((1, 3), np.nan)
    assert np.isnan(statistics.mean_interval(nothing)).all()
    assert statistics.compare_scores(nothing, nothing).n == 0
    assert np.isnan(statistics.compare_scores(nothing, nothing).p)


@pytest.mark.parametrize("shape", [(1, 20), (3, 20)])
def test_a_constant_has_an_interval_of_no_width(shape: tuple[int, int]) -> None:
    assert statistics.mean_interval(np.full(shape, 0.25)) == (0.25, 0.25, 0.25)


def test_the_interval_over_seeds_has_the_width_of_a_hierarchical_bootstrap() -> None:
    draws = np.random.default_rng(0)
    scores = draws.normal(size=(30, 1)) / 3 + draws.normal(size=(1, 200)) + draws.normal(size=(30, 200)) / 3
    means = [scores[draws.integers(0, 30, 30)][:, draws.integers(0, 200, 200)].mean() for _ in range(4000)]
    low, high = np.percentile(means, [2.5, 97.5])
    found = statistics.mean_interval(scores)
    assert found.high - found.low == pytest.approx(high - low, rel=0.06)


def test_seeds_with_undefined_scores_still_count() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 40))
    scores[1, :5] = np.nan
    scores[:, 7] = np.nan
    mean, low, high = statistics.mean_interval(scores)
    assert low < mean < high
    assert mean == pytest.approx(np.nanmean(np.nanmean(np.delete(scores, 7, axis=1), axis=0)))


def test_intervals_are_the_same_every_time() -> None:
    scores = np.random.default_rng(0).normal(size=(2, 50))
    first = statistics.mean_interval(scores[:1], seed=5)
    assert statistics.mean_interval(scores[:1], seed=5) == first
    assert statistics.mean_interval(scores[:1], seed=6) != first


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).lognormal(0, 1, 2),
        np.random.default_rng(1).lognormal(0, 1.5, 7),
        np.random.default_rng(2).lognormal(0, 1, 300) - 3,
        np.random.default_rng(3).integers(0, 3, 40).astype(float),
        np.array([0.0] * 60 + [1.0]),
        np.random.default_rng(4).normal(size=3001),  # in several batches
        np.array([0.0, 1e-200]),  # of which scipy has no interval
        np.array([1.0, 2.0, np.inf]),
    ],
    ids=["two", "few", "skewed", "ties", "one differs", "many", "underflow", "infinite"],
)
@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_the_interval_of_one_seed_is_scipys_bca(values: np.ndarray, level: float) -> None:
    with warnings.catch_warnings(action="ignore"):
        expected = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=statistics.RESAMPLES,
            batch=max(1, statistics._BATCH_VALUES // len(values)),
            confidence_level=level,
            method="BCa",
            rng=np.random.default_rng(5),
        ).confidence_interval
    found = statistics._bca(values, level, seed=5)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("images", [2, 3, 5, 10, 25])
def test_intervals_of_few_images_cover_too(images: int) -> None:
    draws = np.random.default_rng(6)
    runs, hits = 600, 0
    for run in range(runs):
        low, high = statistics.mean_interval(draws.normal(3.0, 1.0, (1, images)), seed=run)[1:]
        hits += low <= 3.0 <= high
    assert 0.93 <= hits / runs <= 0.99


def test_one_value_has_a_mean_and_no_interval() -> None:
    found = statistics.mean_interval(np.array([[0.5, np.nan]]))
    assert found.mean == 0.5
    assert np.isnan([found.low, found.high]).all()


def test_a_single_seed_beside_several_is_taken_to_vary_like_them() -> None:
    draws = np.random.default_rng(0)
    covered = []
    for _ in range(500):
        many, one = (draws.normal(size=(seeds, 1)) + draws.normal(size=(seeds, 60)) for seeds in (3, 1))
        found = statistics.difference_interval(many, one)
        covered.append(found.low <= 0 <= found.high)
    assert np.mean(covered) >= 0.93


def test_the_interval_of_a_difference_of_shares_is_that_of_bonett_and_price() -> None:
    n, only_a, only_b = 500, 3, 1
    a, b = np.ones((1, n), bool), np.ones((1, n), bool)
    b[0, :only_a], a[0, -only_b:] = False, False
    found = statistics.share_difference_interval(a, b)
    p, q = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = stats.norm.isf(0.025) * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    assert found == pytest.approx(((only_a - only_b) / n, p - q - half, p - q + half))


@pytest.mark.parametrize(("n", "moved"), [(500, 0.01), (200, 0.02), (500, 0.1)])
def test_a_few_images_that_moved_are_no_difference_of_shares(n: int, moved: float) -> None:
    draws = np.random.default_rng(5)
    runs, told = 1000, 0
    for _ in range(runs):
        a = draws.random((1, n)) < 0.8
        b = a ^ (draws.random((1, n)) < moved) & (draws.random((1, n)) < np.where(a, 0.25, 1.0))
        _, low, high = statistics.share_difference_interval(a, b)
        told += low > 0 or high < 0
    assert told / runs <= 0.05 + 1.64 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.02)])
def test_the_difference_of_shares_covers(seeds: int, spread: float) -> None:
    draws = np.random.default_rng(6)
    runs, hits = 1000, 0
    for _ in range(runs):
        hard = draws.random(100)
        rates = 0.85 + spread * draws.normal(size=(seeds, 1)), 0.7 + spread * draws.normal(size=(seeds, 1))
        a, b = (0.7 * hard + 0.3 * draws.random((seeds, 100)) < rate for rate in rates)
        low, high = statistics.share_difference_interval(a, b)[1:]
        hits += low <= _TRUE_DIFFERENCE <= high
    assert hits / runs >= 0.94


@pytest.mark.parametrize(("of_a", "of_b"), [((0.2, 0.8), (0.1, 0.5)), ((0.85, 0.95), (0.0, 0.9))])
def test_the_difference_of_shares_covers_where_seeds_vary_much(
    of_a: tuple[float, float], of_b: tuple[float, float]
) -> None:
    draws = np.random.default_rng(7)
    runs, hits = 1000, 0
    for _ in range(runs):
        a, b = (draws.random((3, 200)) < draws.uniform(*ends, (3, 1)) for ends in (of_a, of_b))
        low, high = statistics.share_difference_interval(a, b)[1:]
        hits += low <= (sum(of_a) - sum(of_b)) / 2 <= high
    assert 0.92 <= hits / runs <= 0.985  # such seeds are not normal


_SUM = 0.7 * np.random.default_rng(0).random(2_000_000) + 0.3 * np.random.default_rng(1).random(2_000_000)
_TRUE_DIFFERENCE = float((_SUM < 0.85).mean() - (_SUM < 0.7).mean())


def test_differences_that_rounding_alone_tells_apart_share_a_rank() -> None:
    a, b = np.zeros((3, 24), bool), np.zeros((3, 24), bool)
    a[:, :12], b[:2, :12] = True, True  # 1 against 2/3 on twelve images
    b[:1, 12:] = True  # 0 against 1/3 on the others
    found = statistics.compare_scores(a.astype(float), b.astype(float))
    assert (found.p, found.effect) == (1.0, 0.0)
    assert statistics.compare_proportions(a, b).p == 1.0
    scores = np.random.default_rng(0).random((3, 30))
    assert statistics.compare_scores(scores, scores[[2, 0, 1]]) == (30, 1.0, 0.0)  # means in another order


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_shares_of_a_whole_are_ranked_as_their_counts(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array([[pair[i] for pair in pairs]], float) for i in (0, 1))
    assert statistics.compare_scores(a / 9, b / 9) == statistics.compare_scores(a, b)


@pytest.mark.filterwarnings("error")
def test_a_seed_without_a_score_and_a_single_image_leave_what_is_known() -> None:
    scores = np.random.default_rng(0).random((3, 20))
    lost = scores.copy()
    lost[1] = np.nan
    assert statistics.mean_interval(lost) == statistics.mean_interval(scores[[0, 2]])
    assert statistics.difference_interval(lost, scores) == statistics.difference_interval(
        scores[[0, 2]], scores
    )
    lost[2] = np.nan  # one of three: nothing says how seeds differ
    mean, low, high = statistics.mean_interval(lost)
    assert mean == pytest.approx(scores[0].mean())
    assert np.isnan([low, high]).all()
    one = statistics.mean_interval(np.array([[0.3], [0.5]]))
    assert one.mean == pytest.approx(0.4)
    assert np.isnan(one[1:]).all()
