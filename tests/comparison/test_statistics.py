from __future__ import annotations

import gc
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from saliency_lab.comparison import statistics
from saliency_lab.comparison.statistics import (
    MeanEstimate,
    difference_estimate,
    mean_estimate,
    share_difference_estimate,
    share_estimate,
)


def _coverage(draw: Callable[[], MeanEstimate], truth: float, runs: int = 500) -> float:
    """Share of the intervals that contain the truth; one without an interval counts as none."""
    intervals = [draw().interval(0.95) for _ in range(runs)]
    return float(np.mean([low <= truth <= high for _, low, high in intervals if not math.isnan(low)]))


@pytest.mark.parametrize(
    ("population", "truth"),
    [
        (lambda draws: draws.normal(3.0, 1.0, (1, 25)), 3.0),
        (lambda draws: draws.lognormal(0, 1, (1, 50)), math.exp(0.5)),
        (lambda draws: draws.exponential(size=(1, 20)), 1.0),
        (lambda draws: np.where(draws.random((1, 20)) < 0.1, draws.exponential(size=(1, 20)), 0.0), 0.1),
        (lambda draws: np.where(draws.random((1, 100)) < 0.05, draws.exponential(size=(1, 100)), 0.0), 0.05),
    ],
    ids=["normal", "log-normal", "exponential", "few zero-inflated", "zero-inflated"],
)
def test_intervals_over_images_cover_the_mean(
    population: Callable[[np.random.Generator], np.ndarray], truth: float
) -> None:
    draws = np.random.default_rng(1)
    assert _coverage(lambda: mean_estimate(population(draws)), truth) >= 0.92


@pytest.mark.parametrize(("seed_spread", "image_spread"), [(0.0, 1.0), (0.3, 1.0), (1.0, 0.5)])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_over_seeds_and_images_cover_the_mean(
    seeds: int, seed_spread: float, image_spread: float
) -> None:
    draws = np.random.default_rng(2)

    def draw() -> MeanEstimate:
        return mean_estimate(
            7.0
            + seed_spread * draws.normal(size=(seeds, 1))
            + image_spread * draws.normal(size=(1, 60))
            + 0.3 * draws.normal(size=(seeds, 60))
        )

    assert _coverage(draw, 7.0) >= 0.93


@pytest.mark.long
@pytest.mark.parametrize("of_images", [0.0, 1.0])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_test_of_a_difference_keeps_its_level_with_several_seeds(seeds: int, of_images: float) -> None:
    draws = np.random.default_rng(3)
    p = []
    for _ in range(400):
        common = draws.normal(size=(1, 40))
        a, b = (
            common + 0.2 * draws.normal(size=(seeds, 1)) + draws.normal(size=(seeds, 40)) for _ in range(2)
        )
        p.append(difference_estimate(a + of_images * draws.normal(size=(1, 40)), b).p_value())
    assert 0 < np.mean(np.array(p) < 0.05) <= 0.05 + 1.96 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.long
@pytest.mark.parametrize(("seeds", "others"), [(5, 2), (10, 2), (20, 2), (10, 3)])
def test_the_test_of_a_difference_keeps_its_level_with_unequal_seeds(seeds: int, others: int) -> None:
    """Welch's degrees of freedom alone reject 9 to 11 % with two seeds against ten or twenty."""
    draws = np.random.default_rng(5)
    p = []
    for _ in range(800):
        common = draws.normal(size=(1, 40))
        a, b = (
            common + 0.4 * draws.normal(size=(n, 1)) + 0.5 * draws.normal(size=(n, 40))
            for n in (seeds, others)
        )
        p.append(difference_estimate(a, b).p_value())
    assert 0 < np.mean(np.array(p) < 0.05) <= 0.05 + 1.96 * math.sqrt(0.05 * 0.95 / 800)


def test_many_tests_with_three_seeds_keep_the_family_wise_error() -> None:
    """Null differences, 3 seeds, 300 images, a seed standard deviation of 0.5, tables of 20 scores."""
    draws = np.random.default_rng(4)
    wrong, runs = 0, 100
    for _ in range(runs):
        p = []
        for _ in range(20):
            images = draws.normal(size=(1, 300))
            a, b = (
                0.5 * draws.normal(size=(3, 1)) + images + 0.3 * draws.normal(size=(3, 300)) for _ in "ab"
            )
            p.append(difference_estimate(a, b).p_value())
        wrong += statistics.holm(p).min() < 0.05
    assert wrong / runs <= 0.06


@given(
    st.integers(1, 4), st.integers(1, 4), st.floats(-2, 2), st.sampled_from([0.8, 0.95]), st.integers(0, 99)
)
@settings(max_examples=40, deadline=None)
def test_p_values_and_intervals_agree(seeds: int, others: int, shift: float, level: float, key: int) -> None:
    draws = np.random.default_rng(key)
    a, b = draws.normal(size=(seeds, 12)) + shift, draws.exponential(size=(others, 12))
    for estimate in (difference_estimate(a, b), share_difference_estimate(a > 0, b > 1)):
        p = estimate.p_value()
        on_the_edge = estimate.interval(1 - p)
        if p < 1:
            ends = on_the_edge.low if estimate.mean > 0 else on_the_edge.high
            assert ends == pytest.approx(0, abs=1e-6)
        _, low, high = estimate.interval(level)
        assert (low > 0 or high < 0) == (p < 1 - level)


def test_one_seed_without_skewness_is_students_paired_test() -> None:
    a = np.concatenate([np.linspace(-1, 1, 21), [5.0, -5.0]])[None] + 0.7
    found = difference_estimate(a, np.zeros_like(a))
    expected = stats.ttest_1samp(a[0], 0)
    assert found.p_value() == pytest.approx(expected.pvalue)
    assert found.interval(0.9)[1:] == pytest.approx(expected.confidence_interval(0.9))
    low, high = 0.7 - 1.5, 0.7 + 1.5
    assert found.p_equivalence(1.5) == pytest.approx(ttost_paired(a[0], np.zeros(23), -1.5, 1.5)[0])
    assert found.p_equivalence(0.6) > 0.5 and low < high


def test_the_skewness_correction_is_halls_cubic() -> None:
    values = np.random.default_rng(0).exponential(size=15)
    n, skewness = 15, float(stats.skew(values))
    low, high = mean_estimate(values[None]).interval(0.95)[1:]
    for end, quantile in ((low, stats.t.isf(0.025, n - 1)), (high, -stats.t.isf(0.025, n - 1))):
        t = (values.mean() - end) / stats.sem(values)
        a = skewness / math.sqrt(n)
        assert t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6 == pytest.approx(quantile)


def test_seeds_that_are_all_alike_on_constant_images_are_welchs_test() -> None:
    draws = np.random.default_rng(0)
    a, b = draws.normal(size=(4, 1)) + np.zeros((1, 9)), 2 * draws.normal(size=(6, 1)) + np.zeros((1, 9))
    expected = stats.ttest_ind(a[:, 0], b[:, 0], equal_var=False)
    for size in (0, 1e-12, 1e-9, 1e-7):
        found = difference_estimate(a + size * draws.normal(size=(1, 9)), b)
        assert found.p_value() == pytest.approx(expected.pvalue, rel=1e-4)
        assert found.interval()[1:] == pytest.approx(expected.confidence_interval(), rel=1e-4)


def test_equivalence_is_shown_only_within_the_margin() -> None:
    draws = np.random.default_rng(5)
    runs, edge, inside = 300, 0, 0
    for _ in range(runs):
        images = draws.normal(size=(1, 60))
        a, b = (images + 0.1 * draws.normal(size=(3, 1)) + 0.2 * draws.normal(size=(3, 60)) for _ in "ab")
        edge += difference_estimate(a + 0.5, b).p_equivalence(0.5) < 0.05
        inside += difference_estimate(a, b).p_equivalence(0.5) < 0.05
    assert edge / runs <= 0.05 + 1.96 * math.sqrt(0.05 * 0.95 / runs)
    assert inside / runs > 0.5


def test_holm_holds_the_family_wise_error_of_paired_tests() -> None:
    draws = np.random.default_rng(4)
    runs, wrong = 400, 0
    for _ in range(runs):
        baseline = draws.normal(size=(1, 40))
        p = [difference_estimate(baseline + draws.normal(size=(1, 40)), baseline).p_value() for _ in range(5)]
        wrong += statistics.holm(p).min() < 0.05
    assert wrong / runs <= 0.05 + 1.64 * math.sqrt(0.05 * 0.95 / runs)
    assert wrong > 0  # it is a test that can reject


def test_skewed_differences_of_mean_zero_are_rejected_by_the_rank_test_alone() -> None:
    draws = np.random.default_rng(7)
    means, ranks, runs = 0, 0, 200
    for _ in range(runs):
        a = draws.exponential(size=(1, 200)) - 1
        means += difference_estimate(a, np.zeros_like(a)).p_value() < 0.05
        ranks += statistics.rank_test(a, np.zeros_like(a)).p < 0.05
    assert means / runs <= 0.05 + 1.96 * math.sqrt(0.05 * 0.95 / runs)
    assert ranks / runs > 0.2


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    found = statistics.holm(p)
    known = ~np.isnan(p)
    assert np.isnan(found[~known]).all()
    if known.any():
        gc.freeze()  # statsmodels collects garbage at every call, and this is all that there is
        expected = multipletests(np.array(p)[known], method="holm")[1]
        gc.unfreeze()
        np.testing.assert_allclose(found[known], expected)


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_the_binomial_test_of_the_pairs_that_disagree(pairs: list[tuple[bool, bool]]) -> None:
    a, b = (np.array([[pair[i] for pair in pairs]]) for i in (0, 1))
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    found = statistics.mcnemar_test(a, b)
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert found.p == pytest.approx(expected)
    assert found.effect == pytest.approx((only_a - only_b) / len(pairs))


@pytest.mark.long
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=30))
@settings(max_examples=25, deadline=None)
def test_rank_biserial_is_what_the_definition_says(differences: list[int]) -> None:
    found = statistics.rank_test(np.array([differences], float), np.zeros((1, len(differences))))
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


def test_the_interval_of_a_share_is_wilsons() -> None:
    right = np.array([[True] * 7 + [False] * 3])
    share, low, high = share_estimate(right).interval()
    z, n = stats.norm.isf(0.025), 10
    centre = (0.7 + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(0.7 * 0.3 / n + z**2 / (4 * n**2))
    assert (share, low, high) == pytest.approx((0.7, centre - half, centre + half))


@pytest.mark.parametrize("seeds", [1, 3])
def test_nothing_broken_is_not_certainty(seeds: int) -> None:
    share, low, high = share_estimate(np.zeros((seeds, 30), bool)).interval()
    assert (share, low) == (0.0, 0.0)
    assert 0.05 < high < 0.2


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("centre", [0.03, 0.5, 0.97])
def test_intervals_of_accuracies_over_seeds_cover(centre: float, seeds: int) -> None:
    draws = np.random.default_rng(8)

    def draw() -> MeanEstimate:
        rates = draws.beta(20 * centre, 20 * (1 - centre), (seeds, 1))
        return share_estimate(draws.random((seeds, 200)) < rates)

    assert _coverage(draw, centre, 300) >= 0.89  # docs/statistics.md has the table


def test_undefined_scores_are_left_out_in_pairs() -> None:
    a = np.array([[1.0, np.nan, 3.0, 4.0, 9.0]])
    b = np.array([[0.5, 1.0, np.nan, 3.0, 1.0]])
    assert statistics.rank_test(a, b).n == 3
    assert mean_estimate(a).mean == pytest.approx(17 / 4)
    assert difference_estimate(a, b).mean == pytest.approx((0.5 + 1 + 8) / 3)
    nothing = np.full((1, 3), np.nan)
    assert np.isnan(mean_estimate(nothing).interval()).all()
    assert statistics.rank_test(nothing, nothing).n == 0
    assert np.isnan(statistics.rank_test(nothing, nothing).p)
    assert np.isnan(difference_estimate(nothing, nothing).p_value())


@pytest.mark.parametrize(
    "values",
    [
        np.full((1, 20), 0.25),
        np.full((3, 20), 0.25),
        np.array([[0.0] * 18 + [0.3, 0.7]]),
        np.array([[0.5, np.nan]]),
        np.array([[1.0, 2.0, np.inf]]),
    ],
    ids=["constant", "constant over seeds", "two differ from 0", "one value", "infinite"],
)
@pytest.mark.filterwarnings("error")
def test_too_few_different_values_have_a_mean_and_no_interval(values: np.ndarray) -> None:
    found = mean_estimate(values)
    assert found.mean == pytest.approx(np.nanmean(values))
    assert np.isnan(found.interval()[1:]).all()
    assert np.isnan(found.p_value())


def test_differences_that_rounding_alone_makes_differ_are_constant() -> None:
    base = np.random.default_rng(0).random((3, 30))
    assert (base + 0.1 - base).std() > 0
    for alike in (base[:1], np.repeat(base[:1], 3, axis=0)):
        estimate = difference_estimate(alike + 0.1, alike)
        assert estimate.mean == pytest.approx(0.1) and math.isnan(estimate.p_value())
        assert math.isnan(estimate.interval().low) and math.isnan(estimate.interval().high)
    by_seed = stats.ttest_ind(base.mean(1) + 0.1, base.mean(1), equal_var=False)  # seeds that differ remain
    estimate = difference_estimate(base + 0.1, base)
    assert estimate.p_value() == pytest.approx(by_seed.pvalue)
    assert estimate.interval()[1:] == pytest.approx(by_seed.confidence_interval())
    small = np.random.default_rng(1).normal(1e-6, 1e-6, (1, 30))  # small differences of scores near 1 count
    tested = difference_estimate(base[:1] + small, base[:1])
    assert tested.p_value() == pytest.approx(mean_estimate(small).p_value(), rel=1e-5)


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_scores_that_rounding_in_float32_makes_differ_are_constant(shift: float) -> None:
    noise = np.random.default_rng(0).normal(0, 3e-8, (2, 200))
    a, b = (np.float32(0.25 + each + noise) for each in (shift, 0.0))
    assert len(np.unique(a[0])) > 2
    for estimate in (mean_estimate(a.astype(float)), difference_estimate(a.astype(float), b.astype(float))):
        assert estimate.distances is None
    assert mean_estimate(a.astype(float)).mean == pytest.approx(0.25 + shift)


def test_the_variance_over_seeds_and_images_is_that_of_a_hierarchical_bootstrap() -> None:
    draws = np.random.default_rng(0)
    scores = draws.normal(size=(30, 1)) / 3 + draws.normal(size=(1, 200)) + draws.normal(size=(30, 200)) / 3
    means = [scores[draws.integers(0, 30, 30)][:, draws.integers(0, 200, 200)].mean() for _ in range(4000)]
    low, high = np.percentile(means, [2.5, 97.5])
    found = mean_estimate(scores).interval()
    assert found.high - found.low == pytest.approx(high - low, rel=0.06)


def test_the_interaction_of_seeds_and_images_is_counted_once() -> None:
    """The mean's variance is (MS seeds + MS images − MS interaction) / (S N), by the analysis of variance."""
    draws = np.random.default_rng(1)
    seeds, images = 40, 300
    scores = draws.normal(size=(seeds, images)) + draws.normal(size=(seeds, 1)) / 5
    grand = scores.mean()
    rows, columns = scores.mean(1, keepdims=True), scores.mean(0, keepdims=True)
    squares = [
        images * ((rows - grand) ** 2).sum() / (seeds - 1),
        seeds * ((columns - grand) ** 2).sum() / (images - 1),
        ((scores - rows - columns + grand) ** 2).sum() / (seeds - 1) / (images - 1),
    ]
    variance = (squares[0] + squares[1] - squares[2]) / (seeds * images)
    found = mean_estimate(scores).interval()
    assert found.high - found.low == pytest.approx(2 * stats.t.isf(0.025, 39) * math.sqrt(variance), rel=0.02)


def test_seeds_with_undefined_scores_still_count() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 40))
    scores[1, :5] = np.nan
    scores[:, 7] = np.nan
    mean, low, high = mean_estimate(scores).interval()
    assert low < mean < high
    assert mean == pytest.approx(np.nanmean(np.nanmean(np.delete(scores, 7, axis=1), axis=0)))


def test_intervals_end_where_the_scores_do() -> None:
    scores = np.array([[0.9, 1.0, 0.2, 0.95, 0.99, 0.97]])
    assert mean_estimate(scores).interval().high > 1
    assert mean_estimate(scores, (0.0, 1.0)).interval().high == 1


def test_a_single_seed_next_to_several_is_taken_to_vary_like_them() -> None:
    draws = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        many, one = (draws.normal(size=(seeds, 1)) + draws.normal(size=(seeds, 60)) for seeds in (3, 1))
        found = difference_estimate(many, one).interval()
        covered.append(found.low <= 0 <= found.high)
    assert np.mean(covered) >= 0.93


def test_the_interval_of_a_difference_of_shares_is_that_of_bonett_and_price() -> None:
    n, only_a, only_b = 500, 3, 1
    a, b = np.ones((1, n), bool), np.ones((1, n), bool)
    b[0, :only_a], a[0, -only_b:] = False, False
    found = share_difference_estimate(a, b).interval()
    p, q = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = stats.norm.isf(0.025) * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    assert found == pytest.approx(((only_a - only_b) / n, p - q - half, p - q + half))


@pytest.mark.parametrize(("n", "moved"), [(500, 0.01), (200, 0.02), (500, 0.1)])
def test_a_few_images_that_moved_are_no_difference_of_shares(n: int, moved: float) -> None:
    draws = np.random.default_rng(5)
    runs, different = 500, 0
    for _ in range(runs):
        a = draws.random((1, n)) < 0.8
        b = a ^ (draws.random((1, n)) < moved) & (draws.random((1, n)) < np.where(a, 0.25, 1.0))
        different += share_difference_estimate(a, b).p_value() < 0.05
    assert different / runs <= 0.05 + 1.64 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.3), (5, 0.3)])
def test_the_difference_of_shares_covers(seeds: int, spread: float) -> None:
    draws = np.random.default_rng(6)
    truth = float(
        np.mean(special.expit(2 + spread * draws.normal(size=10**6)))
        - np.mean(special.expit(1 + spread * draws.normal(size=10**6)))
    )

    def draw() -> MeanEstimate:
        hard = draws.normal(size=100)
        a, b = (
            special.ndtr(0.8 * hard + 0.6 * draws.normal(size=(seeds, 100)))
            < special.expit(centre + spread * draws.normal(size=(seeds, 1)))
            for centre in (2.0, 1.0)
        )
        return share_difference_estimate(a, b)

    assert _coverage(draw, truth) >= 0.93


def test_seeds_of_equal_accuracy_are_no_certainty() -> None:
    """That three seeds of each model reach the same accuracy by chance says little about the images."""
    draws = np.random.default_rng(0)
    a, b = (
        np.array([draws.permutation([True] * k + [False] * (100 - k)) for _ in range(3)]) for k in (97, 98)
    )
    assert share_difference_estimate(a, b).p_value() > 0.2


@pytest.mark.parametrize(
    ("means", "disagree"),
    [
        ([0.98, 0.97, 0.10], True),
        ([0.98, 0.10], True),
        ([0.95, 0.94, 0.96, 0.95, 0.11], True),
        ([0.11, 0.10, 0.96, 0.95, 0.97], True),
        ([0.82, 0.0, 0.70], True),
        ([0.24, 0.36, 0.62], False),
        ([0.97, 0.98, 0.90], False),
        ([0.1, 0.2, 0.3, 0.4, 0.8], False),
        ([0.98], False),
        ([0.98, math.nan, 0.1, 0.97], True),
    ],
)
def test_a_collapsed_seed_is_detected(means: list[float], disagree: bool) -> None:
    assert statistics.seeds_disagree(np.array(means), 0.2) == disagree


def test_differences_that_rounding_alone_makes_share_a_rank() -> None:
    a, b = np.zeros((3, 24), bool), np.zeros((3, 24), bool)
    a[:, :12], b[:2, :12] = True, True  # 1 against 2/3 on twelve images
    b[:1, 12:] = True  # 0 against 1/3 on the others
    found = statistics.rank_test(a.astype(float), b.astype(float))
    assert (found.p, found.effect) == (1.0, 0.0)
    scores = np.random.default_rng(0).random((3, 30))
    assert statistics.rank_test(scores, scores[[2, 0, 1]]) == (30, 1.0, 0.0)  # means in another order


@given(
    st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=1, max_size=8),
    st.integers(0, 99),
    st.sampled_from([1e-20, 1.0, 1e20]),
)
@settings(max_examples=40, deadline=None)
def test_places_are_those_of_the_numbers_before_rounding(
    images: list[list[int]], key: int, size: float
) -> None:
    exact = np.array(images, float)
    noise = np.random.default_rng(key).uniform(-1e-8, 1e-8, exact.shape)
    largest = np.abs(exact).max(axis=1, keepdims=True)
    found = statistics.places(size * (exact + largest * noise).T)
    np.testing.assert_array_equal(found, stats.rankdata(exact, method="dense", axis=1).T)


@pytest.mark.filterwarnings("error")
def test_places_of_what_is_not_finite() -> None:
    values = np.array([[math.inf, 1.0, math.nan, -math.inf, math.inf, 1.0 + 1e-9]])
    expected = np.array([[3.0, 2.0, math.nan, 1.0, 3.0, 2.0]])
    np.testing.assert_array_equal(statistics.places(values.T), expected.T)
    nothing = np.full((3, 2), math.nan)
    np.testing.assert_array_equal(statistics.places(nothing), nothing)
    assert statistics.places(np.empty((3, 0))).shape == (3, 0)


def test_differences_that_rounding_in_float32_makes_are_none() -> None:
    draws = np.random.default_rng(0)
    a = draws.random((1, 60)) * np.logspace(-6, 6, 60)  # each image has its own scale
    found = statistics.rank_test(a, a * (1 + 1e-7 * draws.normal(1, 0.1, (1, 60))))
    assert found == (60, 1.0, 0.0)


def test_differences_of_many_images_that_are_close_by_chance_keep_their_ranks() -> None:
    draws = np.random.default_rng(0)
    b = draws.random((1, 20_000))
    a = b + draws.normal(1e-4, 1e-2, b.shape)
    assert np.median(np.diff(np.sort(np.abs(a - b)[0]))) < statistics.ROUNDING
    found = statistics.rank_test(a, b)
    ranks, signs = stats.rankdata(np.abs(a - b)[0]), np.sign(a - b)[0]
    assert found.effect == pytest.approx((ranks * signs).sum() / ranks.sum(), abs=1e-4)
    assert found.p == pytest.approx(stats.wilcoxon((a - b)[0]).pvalue, rel=1e-2)


@pytest.mark.filterwarnings("error")
def test_undefined_predictions_are_left_out_of_shares() -> None:
    draws = np.random.default_rng(0)
    a, b = (np.where(draws.random((3, 40)) < share, 1.0, 0.0) for share in (0.9, 0.6))
    a[:, 3], b[:, 7] = np.nan, np.nan
    both = np.delete(a, [3, 7], axis=1), np.delete(b, [3, 7], axis=1)
    alone = np.delete(a, 3, axis=1)
    assert share_estimate(a).interval() == share_estimate(alone > 0).interval()
    found = share_difference_estimate(a, b)
    assert found.interval() == share_difference_estimate(*(each > 0 for each in both)).interval()
    one = statistics.mcnemar_test(a[:1], b[:1])
    only_a, only_b = ((each[0] > other[0]).sum() for each, other in (both, both[::-1]))
    assert (one.n, one.p) == (38, pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue))
    lost = a.copy()
    lost[1] = np.nan
    assert share_estimate(lost).interval() == share_estimate(a[[0, 2]]).interval()
    lost[2] = np.nan  # one of three: nothing says how seeds differ
    for estimate in (share_estimate(lost), share_difference_estimate(lost, b)):
        assert math.isfinite(estimate.mean) and estimate.distances is None
    nothing = np.full((1, 4), np.nan)
    for estimate in (share_estimate(nothing), share_difference_estimate(nothing, b[:1, :4])):
        assert math.isnan(estimate.mean)
    single = np.where(draws.random((3, 40)) < 0.1, np.nan, a)  # an image that some seeds have counts
    assert share_estimate(single).mean == pytest.approx(mean_estimate(single).mean)
    difference = share_difference_estimate(single, b)
    assert difference.mean == pytest.approx(difference_estimate(single, b).mean)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_shares_of_a_whole_are_ranked_as_their_counts(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array([[pair[i] for pair in pairs]], float) for i in (0, 1))
    assert statistics.rank_test(a / 9, b / 9) == statistics.rank_test(a, b)


@pytest.mark.filterwarnings("error")
def test_a_seed_without_a_score_leaves_what_is_known() -> None:
    scores = np.random.default_rng(0).random((3, 20))
    lost = scores.copy()
    lost[1] = np.nan
    assert mean_estimate(lost).interval() == mean_estimate(scores[[0, 2]]).interval()
    expected = difference_estimate(scores[[0, 2]], scores)
    assert difference_estimate(lost, scores).interval() == expected.interval()
    lost[2] = np.nan  # one of three: nothing says how seeds differ
    mean, low, high = mean_estimate(lost).interval()
    assert mean == pytest.approx(scores[0].mean())
    assert np.isnan([low, high]).all()
    for found in (difference_estimate(lost, scores), difference_estimate(scores[:1], lost)):
        assert np.isfinite(found.mean) and np.isnan(found.interval()[1:]).all() and np.isnan(found.p_value())
    one = mean_estimate(np.array([[0.3], [0.5]])).interval()
    assert one.mean == pytest.approx(0.4)
    assert np.isnan(one[1:]).all()


@pytest.mark.parametrize(
    ("whole", "partial", "undefined"), [(2, 3, 0.9), (1, 4, 0.9), (2, 8, 0.9), (1, 9, 0.8)]
)
def test_seeds_with_few_scores_do_not_make_differences_significant(whole, partial, undefined):
    """Two models that are alike; more seeds are no evidence where most of their scores are undefined."""
    rng = np.random.default_rng(1)

    def scores(images: np.ndarray) -> np.ndarray:
        drawn = rng.normal(0, 0.5, (whole + partial, 1)) + images + rng.normal(0, 0.5, (whole + partial, 50))
        drawn[whole:][rng.random((partial, 50)) < undefined] = np.nan
        return drawn

    found = 0
    for _ in range(200):
        images = rng.normal(size=50)
        found += difference_estimate(scores(images), scores(images)).p_value() < 0.05
    assert found <= 18  # of 200 at 5 %: more in one of 400 runs
