from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab.comparison import Comparison, statistics
from saliency_lab.comparison.ranking import agreement, rank
from saliency_lab.data import LabelledImages
from saliency_lab.plotting import heatmap, ranks
from saliency_lab.study import Study

# Demšar, JMLR 2006, table 6: AUC of C4.5 with and without its parameters m and cf tuned, on 14 data sets
DEMSAR = {
    "C4.5": ".763 .599 .954 .628 .882 .936 .661 .583 .775 1 .940 .619 .972 .957",
    "C4.5+m": ".768 .591 .971 .661 .888 .931 .668 .583 .838 1 .962 .666 .981 .978",
    "C4.5+cf": ".771 .590 .968 .654 .886 .916 .609 .563 .866 1 .965 .614 .9751 .946",
    "C4.5+m+cf": ".798 .569 .967 .657 .898 .931 .685 .625 .875 1 .962 .669 .975 .970",
}


def test_the_worked_example_of_demsar() -> None:
    found = rank({name: np.array(values.split(), float) for name, values in DEMSAR.items()}, higher=True)
    assert found.ranks.round(3).to_dict() == {
        "C4.5+m+cf": 1.964, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5": 3.143
    }  # fmt: skip
    assert found.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=2e-3)
    without_ties = 12 * 14 / (4 * 5) * ((found.ranks**2).sum() - 4 * 5**2 / 4)
    assert without_ties == pytest.approx(9.28, abs=0.01)  # as printed there; the ties only raise it
    assert 0.01 < found.p < stats.chi2.sf(9.28, 3)


def test_pairs_differ_where_their_ranks_are_farther_apart_than_the_critical_difference() -> None:
    draws = np.random.default_rng(0)
    values = {f"m{i}": draws.normal(i / 3, size=40) for i in range(5)}
    found = rank(values, higher=False, alpha=0.05)
    assert next(iter(found.ranks.index)) == "m0"
    apart = np.abs(found.ranks.to_numpy()[:, None] - found.ranks.to_numpy())
    np.testing.assert_array_equal(found.pairs.to_numpy() < 0.05, apart > found.critical_difference)


@pytest.mark.long
def test_nemenyi_holds_the_family_wise_error() -> None:
    draws = np.random.default_rng(1)
    wrong = 0
    for _ in range(300):
        found = rank({str(i): draws.normal(size=30) for i in range(4)}, higher=True)
        wrong += np.ptp(found.ranks) > found.critical_difference
    assert 0 < wrong / 300 <= 0.075


def test_images_with_an_undefined_score_are_left_out_and_ties_share_ranks() -> None:
    a = np.array([1.0, 2, 3, np.nan])
    found = rank({"a": a, "b": a, "c": np.array([0.0, 0, 0, 0])}, higher=True)
    assert found.n == 3
    assert found.ranks.to_dict() == {"a": 1.5, "b": 1.5, "c": 3.0}
    same = rank({"a": a, "b": a, "c": a}, higher=True)
    assert same.p == 1.0
    with pytest.raises(InputError, match="three methods and two images"):
        rank({"a": a, "b": a}, higher=True)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("higher", [True, False])
def test_scores_that_only_rounding_separates_share_ranks(size: float, higher: bool) -> None:
    draws = np.random.default_rng(2)
    scores = size * draws.random(200)
    noise = scores * draws.normal(-1e-7, 1e-8, 200)  # always below, as a float32 sum in another order may be
    exact, rounded = (
        rank({"a": scores, "b": scores + shift, "c": scores + size * draws.normal(size=200)}, higher=higher)
        for shift, draws in ((0.0, np.random.default_rng(3)), (noise, np.random.default_rng(3)))
    )
    assert rounded.ranks.to_dict() == exact.ranks.to_dict() and rounded.p == exact.p
    assert exact.ranks["a"] == exact.ranks["b"]
    alike = rank({"a": scores, "b": scores + noise, "c": scores - noise}, higher=higher)
    assert alike.p == 1.0 and set(alike.ranks) == {2.0}
    apart = rank({"a": scores, "b": scores - 1e-4 * size, "c": scores - 2e-4 * size}, higher=higher)
    assert apart.ranks.to_dict() == ({"a": 1, "b": 2, "c": 3} if higher else {"c": 1, "b": 2, "a": 3})


def test_rounding_is_measured_by_the_scores_of_its_own_image() -> None:
    first, second = np.array([1e9, 1.0, 1.0, 1.0]), np.array([1e9 + 1, 1.001, 1.001, 1.001])  # one tie
    found = rank({"first": first, "second": second, "zero": np.zeros(4)}, higher=True)
    assert found.ranks.to_dict() == {"second": 1.125, "first": 1.875, "zero": 3.0}


def test_agreement_ignores_what_only_rounding_separates() -> None:
    draws = np.random.default_rng(4)
    first, second = draws.random((2, 3, 50))
    first[1] = first[0]

    def of(shift: float) -> pd.DataFrame:
        noisy = first + shift * np.array([[0.0], [1.0], [0.0]])
        by_method = [dict(zip("xyz", each, strict=True)) for each in (noisy, second)]
        return agreement([{"one": by_method[0], "two": by_method[1]}])

    pd.testing.assert_frame_equal(of(1e-8), of(0.0))
    assert not np.allclose(of(1e-2), of(0.0))


def test_methods_that_are_equal_in_theory_have_equal_ranks() -> None:
    """Grad-CAM, HiResCAM and XGrad-CAM are one method on a network that averages its last feature maps."""
    source = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, padding=1),
            torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 3),
        ).eval()  # fmt: skip
    x, y = torch.rand(60, 1, 16, 12, generator=source), torch.arange(60) % 3
    study = Study({"gap": net}, (x, y)).attribute(["grad_cam", "hires_cam", "xgrad_cam"])
    comparison = study.score(["sparseness", "complexity"]).compare()
    for metric in ("sparseness", "complexity"):
        found = comparison.ranking(metric)
        assert set(found.ranks) == {2.0} and found.p == 1.0


@given(st.integers(0, 2**32 - 1), st.integers(3, 6), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_agreement_is_the_mean_of_spearmans_correlations(seed: int, methods: int, images: int) -> None:
    draws = np.random.default_rng(seed)
    scores = [
        {
            metric: {str(m): draws.integers(0, 9, images).astype(float) for m in range(methods)}
            for metric in "ab"
        }
        for _ in range(2)
    ]
    scores[0]["a"]["0"][0] = np.nan
    each = []
    for model in scores:
        for image in range(images):
            a, b = ([model[metric][str(m)][image] for m in range(methods)] for metric in "ab")
            if np.ptp(a) > 0 and np.ptp(b) > 0:  # false where one is NaN
                each.append(stats.spearmanr(a, b).statistic)
    expected = np.mean(each) if each else np.nan
    assert agreement(scores).loc["a", "b"] == pytest.approx(expected, nan_ok=True)


@pytest.fixture
def ranked(make_study: Callable[..., Study]) -> Comparison:
    study = make_study(seeds=2).attribute(["saliency", "input_x_gradient", "random", "edges"])
    return study.score(["sparseness", "pixel_flipping", "complexity"]).attack("fgsm", eps=0.1).compare()


def test_a_comparison_ranks_methods_in_the_direction_of_the_metric(ranked: Comparison) -> None:
    found = ranked.ranking("complexity", "other")  # lower is better
    wide = (
        ranked.scores.query("model == 'other' and metric == 'complexity'")
        .groupby(["method", "sample"])["score"].mean().unstack("method")
    )  # fmt: skip
    expected = wide.rank(axis=1).mean().sort_values()
    pd.testing.assert_series_equal(found.ranks.sort_index(), expected.sort_index(), check_names=False)
    assert found.p == pytest.approx(stats.friedmanchisquare(*wide.to_numpy().T).pvalue)
    assert "1 is the best" in str(found)


def test_sparseness_and_complexity_agree(ranked: Comparison) -> None:
    table = ranked.agreement()
    assert table.loc["sparseness", "complexity"] > 0.7  # of one mind, though one is better low
    np.testing.assert_allclose(np.diag(table), 1)
    np.testing.assert_allclose(table, table.T)


def test_figures_show_ranks_agreement_dots_and_curves(ranked: Comparison) -> None:
    texts = [text.get_text().strip() for text in ranked.plot.ranking("sparseness").axes[0].texts]
    for method, value in ranked.ranking("sparseness").ranks.items():
        assert any(method.replace("_", " ") in text and f"{value:.2f}" in text for text in texts)
    cells = [text.get_text() for text in ranked.plot.agreement().axes[0].texts]
    assert len(cells) == 9
    assert cells.count("1.00") >= 3
    (ax,) = ranked.plot.dots("sparseness").axes
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "saliency", "input x gradient", "random", "edges"
    ]  # fmt: skip
    table = ranked.table().query("metric == 'sparseness'")
    drawn = sorted(float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() in ("o", "s"))
    np.testing.assert_allclose(drawn, sorted(table["mean"]))
    (ax,) = ranked.plot.slopes("sparseness").axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["plain", "other"]
    assert sorted(ax.lines[1].get_ydata()) == sorted(table[table["method"] == "input_x_gradient"]["mean"])
    (ax,) = ranked.plot.curves("pixel_flipping", method="random").axes
    assert "%" not in ax.yaxis.get_major_formatter()(0.5)  # probabilities, as its scores
    curves, at = ranked.pictures.read_curves("other", "random", "pixel_flipping")
    np.testing.assert_allclose(ax.lines[1].get_ydata(), curves.mean((0, 1)))
    np.testing.assert_allclose(ax.lines[1].get_xdata(), at)


def test_bands_of_shares_stay_shares(digits_sample: LabelledImages) -> None:
    study = Study({"net": [sl.build_model("small_cnn", seed=seed) for seed in range(3)]}, digits_sample)
    study.attribute(["random"])
    study.score({"masked_input_accuracy": {"steps": 4}})
    comparison = study.compare()
    assert comparison.pictures is not None
    values, at = comparison.pictures.read_curves("net", "random", "masked_input_accuracy")
    share = np.array([statistics.share_estimate(values[:, :, k] == 1).interval() for k in range(len(at))])
    (ax,) = comparison.plot.curves("masked_input_accuracy").axes
    assert ax.yaxis.get_major_formatter()(0.5) == ax.xaxis.get_major_formatter()(0.5) == "50%"
    (band,) = ax.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(share.min())
    assert heights.max() == pytest.approx(share.max())


def test_curves_of_seeds_that_disagree_are_drawn_one_by_one() -> None:
    """A mean of trained and collapsed networks, with a band, would describe none of them."""
    x, y = sl.load_dataset("digits").test.sample(200, seed=0)
    trained, collapsed = (sl.load_model("digits/standard") for _ in range(2))
    with torch.no_grad():
        for each in collapsed.parameters():
            each.mul_(0.02)
        each[0] += 5  # the last bias: class 0 for every image
    rows = y == 0
    study = Study({"net": [trained, trained, collapsed], "one": trained}, (x[rows], y[rows]))
    study.attribute(["saliency"]).score({"masked_input_accuracy": {"steps": 8}})
    comparison = study.compare()
    assert comparison.table().set_index("model").loc["net", "seeds_disagree"]
    assert comparison.pictures is not None
    values, _ = comparison.pictures.read_curves("net", "saliency", "masked_input_accuracy")
    figure = comparison.plot.curves("masked_input_accuracy")
    (ax,) = figure.axes
    assert len(ax.collections) == 1  # the band of the model with one seed
    alone = [line.get_ydata() for line in ax.lines if line.get_label() == "_seeds"]
    np.testing.assert_allclose(alone, values.mean(1))
    assert any("single seeds, where seeds disagree" in text.get_text() for text in [*figure.texts, *ax.texts])


def test_what_cannot_be_ranked_says_why(ranked: Comparison) -> None:
    with pytest.raises(InputError, match="unknown metric"):
        ranked.ranking("gini")
    with pytest.raises(InputError, match="unknown model of this comparison: 'nobody'"):
        ranked.ranking("sparseness", "nobody")
    with pytest.raises(InputError, match="has no curve"):
        ranked.plot.curves("sparseness")
    neither = Comparison(ranked.scores, ranked.robustness, baseline="plain", better={"sparseness": "neither"})
    with pytest.raises(InputError, match="neither high nor low"):
        neither.ranking("sparseness")
    with pytest.raises(InputError, match="must be square"):
        heatmap.correlations(pd.DataFrame([[1.0, 2.0]]))
    with pytest.raises(InputError, match="two names"):
        ranks.critical_difference({"a": 1.0}, 0.5)
