from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor, nn

from saliency_lab._common.errors import InputError
from saliency_lab.comparison import Comparison, statistics
from saliency_lab.comparison.claims import Claim, answer
from saliency_lab.comparison.measures import Measure
from saliency_lab.models import ModelCard
from saliency_lab.study import Study

N = 40


def _scores(seeds: int = 1) -> pd.DataFrame:
    """Model "b" is above "a" in sparseness, "c" is "a" with noise; one score is undefined."""
    draws = np.random.default_rng(0)
    base = draws.normal(size=N)
    rows = []
    for method in ("saliency", "smoothgrad"):
        for metric in ("sparseness", "pixel_flipping"):
            for model, shift in (("a", 0.0), ("b", 1.0), ("c", 0.0)):
                for seed in range(seeds):
                    score = base + shift + 0.3 * draws.normal(size=N)
                    rows.append(
                        pd.DataFrame(
                            {
                                "model": model,
                                "recipe": "",
                                "seed": seed,
                                "method": method,
                                "metric": metric,
                                "sample": range(N),
                                "score": score,
                            }
                        )
                    )
    table = pd.concat(rows, ignore_index=True)
    table.loc[(table["model"] == "c") & (table["sample"] == 3), "score"] = np.nan
    return table


def _robustness(seeds: int = 1) -> pd.DataFrame:
    draws = np.random.default_rng(1)
    rows = []
    for model, share in (("a", 0.2), ("b", 0.8), ("c", 0.25)):
        for seed in range(seeds):
            alive = np.ones(N, bool)
            for eps in (0.0, 0.1, 0.2):
                alive = alive & (draws.random(N) < (0.95 if eps == 0 else share**0.5))
                rows.append(
                    pd.DataFrame(
                        {
                            "model": model,
                            "recipe": "",
                            "seed": seed,
                            "attack": "pgd",
                            "eps": eps,
                            "sample": range(N),
                            "robust": alive,
                        }
                    )
                )
    return pd.concat(rows, ignore_index=True)


@pytest.fixture
def comparison() -> Comparison:
    return Comparison(_scores(), _robustness(), baseline="a")


def test_the_table_holds_what_scipy_and_statsmodels_say(comparison: Comparison) -> None:
    table = comparison.table().set_index(["metric", "method", "model"])
    scores = _scores().query("metric == 'sparseness' and method == 'saliency'")
    wide = scores.pivot(index="sample", columns="model", values="score")
    row = table.loc[("sparseness", "saliency", "b")]
    assert row["mean"] == pytest.approx(wide["b"].mean())
    assert row["difference"] == pytest.approx((wide["b"] - wide["a"]).mean())
    assert row["p_rank"] == pytest.approx(stats.wilcoxon(wide["b"] - wide["a"]).pvalue)
    assert np.log(row["p"]) == pytest.approx(np.log(stats.ttest_rel(wide["b"], wide["a"]).pvalue), rel=0.1)
    bca = stats.bootstrap((wide["b"],), np.mean, n_resamples=20000, rng=np.random.default_rng(3))
    assert row["low"] == pytest.approx(bca.confidence_interval.low, abs=0.03)
    assert row["high"] == pytest.approx(bca.confidence_interval.high, abs=0.03)
    robust = _robustness().query("model == 'b' and eps == 0.2")["robust"]
    row = comparison.table().query("metric == 'robust_accuracy' and eps == 0.2 and model == 'b'").iloc[0]
    assert row["mean"] == pytest.approx(robust.mean())
    assert (row["low"], row["high"]) == pytest.approx(proportion_confint(robust.sum(), N, method="wilson"))


def test_an_estimate_is_computed_once(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    table = comparison.table()
    for name in ("mean_estimate", "difference_estimate"):
        monkeypatch.setattr(statistics, name, lambda *_: pytest.fail("computed again"))
    claim = Claim(question="?", model="b", over="a", metric="sparseness")
    rows = answer([claim], comparison)[0].differences
    of_b = table.query("metric == 'sparseness' and model == 'b'")
    for column in ("difference_low", "p"):
        assert rows[column].tolist() == of_b[column].tolist()
    measure = comparison.measure("sparseness")
    assert measure.interval("b", 0.9).low > measure.interval("b", 0.95).low


@pytest.mark.long
def test_holm_is_over_all_map_scores_and_over_all_accuracies(comparison: Comparison) -> None:
    table = comparison.table()
    share = table["metric"].isin(["accuracy", "robust_accuracy"])
    for family in (table[share], table[~share]):
        tested = family[family["p"].notna()]
        assert len(tested) == len(family) * 2 // 3  # all but the baseline
        np.testing.assert_allclose(tested["p_holm"], multipletests(tested["p"], method="holm")[1])


def test_undefined_scores_are_counted_and_shown(comparison: Comparison) -> None:
    table = comparison.table()
    scores = table[table["metric"] == "sparseness"].set_index(["method", "model"])
    assert scores.loc[("saliency", "c"), ["n", "undefined"]].tolist() == [N - 1, 1]
    assert scores.loc[("saliency", "a"), ["n", "undefined"]].tolist() == [N, 0]
    assert "1 NaN" in str(comparison)


def test_the_best_and_its_ties_follow_the_direction_of_the_metric(comparison: Comparison) -> None:
    ranks = comparison.table().set_index(["metric", "method", "model"])["rank"]
    assert ranks["sparseness", "saliency", "b"] == "best"  # higher is better
    assert ranks["sparseness", "saliency", "a"] == ranks["sparseness", "saliency", "c"] == ""
    assert ranks["pixel_flipping", "saliency", "b"] == ""  # lower is better
    assert sorted(ranks["pixel_flipping", "saliency", each] for each in "ac") == ["best", "tie"]
    flipped = Comparison(_scores(), _robustness(), baseline="a", better={"sparseness": "neither"})
    assert set(flipped.table().query("metric == 'sparseness'")["rank"]) == {""}


@pytest.mark.parametrize(("metric", "sign"), [("sparseness", 1.0), ("pixel_flipping", -1.0)])
def test_a_model_that_is_ahead_where_both_have_scores_is_no_worse_than_the_best(
    metric: str, sign: float
) -> None:
    plain = np.arange(40.0)
    lead = 1 + np.sin(plain)  # that varies, so that it can be tested
    ahead = np.where(plain < 30, plain + lead, np.nan)  # undefined where scores are best: a lower mean
    measure = Measure(
        metric, "saliency", np.nan, "higher" if sign > 0 else "lower",
        {"plain": sign * plain[None], "ahead": sign * ahead[None]},
    )  # fmt: skip
    means = {model: measure.interval(model, 0.95).mean for model in measure.values}
    assert measure.leaders(means, 0.05) == {"plain": "best", "ahead": "tie"}


def test_the_mark_is_the_corrected_test_of_the_printed_difference() -> None:
    """Null differences, three seeds that vary: a test over images would mark nearly all of them."""
    draws = np.random.default_rng(0)
    marked, significant_ranks, runs, n = 0, [], 12, 40
    keys = pd.MultiIndex.from_product(
        [list("uvwxyz"), ["a", "b"], range(3), range(n)], names=["method", "model", "seed", "sample"]
    )
    for _ in range(runs):
        score = draws.normal(size=(6, 1, 1, n)) + 0.5 * draws.normal(size=(6, 2, 3, 1))
        score = score + 0.3 * draws.normal(size=(6, 2, 3, n))
        scores = keys.to_frame(index=False).assign(metric="sparseness", score=score.ravel())
        table = Comparison(scores, _robustness().iloc[:0], baseline="a").table().query("model == 'b'")
        assert table["p_holm"].tolist() == statistics.holm(table["p"].to_numpy()).tolist()
        excludes_zero = (table["difference_low"] > 0) | (table["difference_high"] < 0)
        assert ((table["p"] < 0.05) == excludes_zero).all()
        assert (table["differs"] == (table["p_holm"] < 0.05)).all()
        marked += table["differs"].any()
        significant_ranks += (table["p_rank"] < 0.05).tolist()
    assert marked <= stats.binom.ppf(0.999, runs, 0.05)
    assert np.mean(significant_ranks) > 0.3


def test_a_collapsed_seed_is_shown_seed_by_seed() -> None:
    robustness = _robustness(3)
    collapsed = (robustness["model"] == "b") & (robustness["seed"] == 1) & (robustness["eps"] > 0)
    robustness.loc[collapsed, "robust"] = False
    comparison = Comparison(_scores(3), robustness, baseline="a")
    row = comparison.table().query("metric == 'robust_accuracy' and eps == 0.2 and model == 'b'").iloc[0]
    assert row["seeds_disagree"] and row["seed_means"][1] == 0
    assert np.isnan([row["mean"], row["low"], row["high"], row["difference"], row["p"]]).all()
    assert not row["differs"] and row["rank"] == ""
    values = ", ".join(f"{100 * mean:.1f} %" for mean in row["seed_means"])
    html = re.sub(r"</?small>", "", comparison.to_html())
    for text in (str(comparison), html, comparison.to_markdown()):
        assert f"seeds disagree {values}" in text
        assert "the training seeds seem to be of two kinds" in text
    assert "seeds disagree" in comparison.to_latex()
    figure = comparison.plot.robustness()
    (marks,) = (line for line in figure.axes[0].lines if line.get_label() == "_seeds")
    means = robustness[(robustness["model"] == "b") & (robustness["eps"] > 0)].groupby(["eps", "seed"])
    assert sorted(marks.get_ydata()) == pytest.approx(sorted(means["robust"].mean()))
    assert "single seeds" in figure.axes[0].texts[0].get_text()
    for draw in (comparison.plot.dots, comparison.plot.slopes):
        lines = [line for line in draw("robust_accuracy").axes[0].lines if line.get_label() == "_seeds"]
        assert [len(line.get_xdata()) for line in lines] == [3, 3]
    assert "b" not in [text.get_text() for text in comparison.plot.tradeoff().axes[0].texts]


def test_identical_scores_are_not_compared_and_not_counted() -> None:
    scores = _scores(2)
    random = scores["method"] == "smoothgrad"
    scores.loc[random, "score"] = scores.loc[random, "sample"] / N
    comparison = Comparison(scores, _robustness().iloc[:0], baseline="a")
    table = comparison.table().query("model != 'a'").set_index(["method", "metric", "model"]).sort_index()
    same = table.loc["smoothgrad"]
    assert same["identical"].all() and same[["p", "p_holm"]].isna().all(axis=None)
    assert not table.loc["saliency", "identical"].any()
    rest = table.loc["saliency"]
    np.testing.assert_allclose(rest["p_holm"], multipletests(rest["p"], method="holm")[1])
    assert "not tested and not counted" in str(comparison)


def test_a_score_of_zeros_and_ones_is_treated_as_a_share() -> None:
    draws = np.random.default_rng(0)
    a, b = (draws.random((1, 60)) < share for share in (0.02, 0.3))
    measure = Measure(
        "pointing_game", "saliency", np.nan, "higher", {"a": a.astype(float), "b": b.astype(float)}
    )
    low, high = proportion_confint(a.sum(), 60, method="wilson")
    assert measure.interval("a", 0.95)[1:] == pytest.approx((low, high))
    assert measure.p_value("b", "a") == statistics.mcnemar_test(b, a).p


def test_several_seeds_widen_the_interval_and_are_counted() -> None:
    scores = _scores(seeds=3)
    scores["score"] += scores["seed"] * 0.5
    row = (
        Comparison(scores, _robustness(3), baseline="a")
        .table()
        .query("metric == 'sparseness' and method == 'saliency' and model == 'b'")
        .iloc[0]
    )
    one = (
        Comparison(scores[scores["seed"] == 0], _robustness(), baseline="a")
        .table()
        .query("metric == 'sparseness' and method == 'saliency' and model == 'b'")
        .iloc[0]
    )
    assert (row["seeds"], row["n"]) == (3, 3 * N)
    assert row["high"] - row["low"] > 1.5 * (one["high"] - one["low"])


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_difference_the_other_way_round_is_the_same_with_its_sign_changed(seeds: int) -> None:
    comparison = Comparison(_scores(seeds), _robustness(seeds), baseline="a")
    for measure in comparison.measures:
        there, back = measure.difference("a", "b", 0.95), measure.difference("b", "a", 0.95)
        assert there == pytest.approx((-back.mean, -back.high, -back.low)), measure.label
        assert there.low <= there.mean <= there.high


def test_text_shows_every_model_and_measure_and_marks_what_differs(comparison: Comparison) -> None:
    text = str(comparison)
    lines = text.splitlines()
    assert "3 models on 40 images" in lines[0]
    (row,) = (line for line in lines if line.startswith("robust_accuracy ↑  pgd, ε = 0.2"))
    assert row.count("%") == 3
    assert row.count("†") == 1
    assert len({len(line) for line in lines if set(line) == {"─"}}) == 1
    last_rule = max(i for i, line in enumerate(lines) if set(line) == {"─"})
    assert max(map(len, lines[:last_rule])) <= len(lines[1])


def test_exports_say_the_same(comparison: Comparison) -> None:
    mean = f"{100 * comparison.measure('robust_accuracy', eps=0.2).values['b'].mean():.1f}"
    markdown, html, latex = comparison.to_markdown(), comparison.to_html(), comparison.to_latex()
    assert f"**{mean} %" in markdown
    assert f"<b>{mean} %" in html
    assert rf"\textbf{{{mean} \%" in latex
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {6}
    assert html.count("<tr>") == 1 + 7
    assert latex.count(r"\\") == 1 + 2 * 7  # each interval is below its mean
    assert "_" not in latex.replace(r"\_", "")


def test_a_name_of_two_lines_with_a_bar_is_one_cell_in_markdown() -> None:
    scores = _scores().replace({"model": {"b": "two\nlines|bar"}})
    markdown = Comparison(scores, _robustness().iloc[:0], baseline="a").to_markdown()
    head, rule, *_ = markdown.splitlines()
    assert "two lines\\|bar" in head
    assert set(rule) == {"|", " ", "-"}


def test_names_are_escaped_in_html() -> None:
    scores = _scores().replace({"model": {"b": "<script>"}})
    assert "<script>" not in Comparison(scores, _robustness().iloc[:0], baseline="a").to_html()


def test_models_on_other_images_are_not_compared_and_the_order_of_rows_does_not_matter() -> None:
    scores, robustness = _scores(2), _robustness(2)
    with pytest.raises(InputError, match=r"'a' \(seed 0\) has 39 of 40 images of score"):
        Comparison(scores.drop(index=5), robustness, baseline="a").table()
    shuffled = Comparison(scores.sample(frac=1, random_state=0), robustness, baseline="a").table()
    keys = ["metric", "method", "eps", "model"]
    pd.testing.assert_frame_equal(
        shuffled.sort_values(keys, ignore_index=True),
        Comparison(scores, robustness, baseline="a").table().sort_values(keys, ignore_index=True),
    )


@pytest.mark.parametrize("part", ["scores", "robustness"])
def test_one_of_the_two_tables_is_enough(part: str) -> None:
    scores, robustness = _scores(), _robustness()
    empty = (scores.iloc[:0], robustness) if part == "robustness" else (scores, robustness.iloc[:0])
    assert len(Comparison(*empty, baseline="a").table()) == (12 if part == "scores" else 9)


def test_mistakes_are_named(comparison: Comparison) -> None:
    with pytest.raises(InputError, match="unknown baseline: 'd'"):
        Comparison(_scores(), _robustness(), baseline="d")
    with pytest.raises(InputError, match="level must be a number between 0 and 1"):
        Comparison(_scores(), _robustness(), baseline="a", level=95)
    with pytest.raises(InputError, match="did you mean 'sparseness'"):
        comparison.plot.tradeoff("robust_accuracy", "sparsness")
    with pytest.raises(InputError, match=r"no attack at ε = 0\.3; there are: 0\.1, 0\.2"):
        comparison.plot.tradeoff(eps=0.3)
    with pytest.raises(InputError, match="made from tables"):
        comparison.plot.maps()


def test_figures_show_the_numbers_of_the_table(comparison: Comparison) -> None:
    before = dict(mpl.rcParams)
    figure = comparison.plot.tradeoff("robust_accuracy", "sparseness", method="smoothgrad", eps=0.1)
    assert isinstance(figure, Figure)
    (ax,) = figure.axes
    table = comparison.table().set_index(["metric", "method", "model"])
    drawn = [tuple(float(v[0]) for v in line.get_data()) for line in ax.lines if line.get_marker() in "os^"]
    robust = comparison.table().query("metric == 'robust_accuracy' and eps == 0.1").set_index("model")["mean"]
    expected = [(robust[model], table.loc[("sparseness", "smoothgrad", model), "mean"]) for model in "abc"]
    np.testing.assert_allclose(drawn, expected)
    assert {text.get_text() for text in ax.texts} == {"a", "b", "c", "40 images; 95 % intervals"}
    assert "robust accuracy (pgd, ε = 0.1)" in ax.get_xlabel()
    curves = comparison.plot.robustness().axes[0]
    np.testing.assert_allclose(curves.lines[1].get_ydata()[2], _robust_mean("b", 0.2))
    assert dict(mpl.rcParams) == before


def _robust_mean(model: str, eps: float) -> float:
    rows = _robustness()
    return rows[(rows["model"] == model) & (rows["eps"] == eps)]["robust"].mean()


def test_seeds_are_small_marks_of_the_tradeoff() -> None:
    comparison = Comparison(_scores(3), _robustness(3), baseline="a")
    (ax,) = comparison.plot.tradeoff().axes
    small = [line for line in ax.lines if line.get_markersize() == 4]
    assert [len(line.get_xdata()) for line in small] == [3, 3, 3]


def test_maps_are_those_of_the_study(make_study: Callable[..., Study]) -> None:
    study = make_study().attribute("saliency").score("sparseness")
    figure = study.compare("plain").plot.maps(n=3)
    titles = [ax.get_title() for ax in figure.axes]
    assert {"plain", "other"} <= set(titles)
    plot = study.compare("plain").plot
    assert "plain" not in [ax.get_title() for ax in plot.maps(n=3, models=["other"]).axes]
    with pytest.raises(InputError, match="unknown one of models: 'othr'"):
        plot.maps(models=["othr"])


def test_pictures_name_the_classes_where_a_card_tells_them(make_study: Callable[..., Study]) -> None:
    study = make_study()
    assert study.labels == [str(label) for label in study.y.tolist()]
    study.members[0].module.card = ModelCard(classes=tuple("abcdefghij"))  # type: ignore[assignment]
    assert study.labels == ["abcdefghij"[label] for label in study.y.tolist()]


def test_one_model_is_described_without_what_needs_two() -> None:
    comparison = Comparison(_scores().query("model == 'a'"), pd.DataFrame(columns=["model"]), baseline="a")
    text = str(comparison)
    assert text.startswith("1 model on 40 images")
    assert "baseline" not in text
    assert "differs from" not in text


def test_what_failed_for_one_model_costs_the_others_nothing() -> None:
    scores, robustness = _scores(), _robustness()
    scores.loc[scores["model"] == "b", "score"] = np.nan
    scores = scores[(scores["model"] != "c") | (scores["method"] != "smoothgrad")]
    fgsm = robustness[robustness["model"] != "b"].assign(attack="fgsm")
    of_c = robustness["model"] == "c"
    comparison = Comparison(scores, pd.concat([fgsm, robustness[~of_c]]), baseline="a", level=0.99)
    clean = comparison.measure("accuracy").values
    assert list(clean) == ["a", "b", "c"]  # of fgsm or of pgd, whichever there is
    for model, values in clean.items():
        own = robustness.query(f"model == '{model}' and eps == 0")["robust"].to_numpy()
        np.testing.assert_array_equal(values[0], own)
    axes = comparison.plot.robustness("pgd").axes[0]
    assert {line.get_label() for line in axes.lines} == {"a", "b"}
    assert any("99 % intervals" in text.get_text() for text in axes.texts)
    tradeoff = comparison.plot.tradeoff("accuracy", "sparseness", method="saliency")
    assert {text.get_text() for text in tradeoff.axes[0].texts} == {"a", "c", "40 images; 99 % intervals"}


def test_agreement_uses_the_models_that_have_scores() -> None:
    scores = pd.concat([_scores(), _scores().query("method == 'saliency'").assign(method="third")])
    without = scores[(scores["model"] != "b") | (scores["method"] == "third")]
    whole, part = (Comparison(each, _robustness(), baseline="a").agreement() for each in (scores, without))
    of_two = Comparison(scores[scores["model"] != "b"], _robustness(), baseline="a").agreement()
    pd.testing.assert_frame_equal(part, of_two)
    assert not np.allclose(part, whole)


def test_an_epsilon_may_be_a_fraction_in_words(comparison: Comparison) -> None:
    assert comparison.measure("robust_accuracy", eps="1/10").eps == 0.1
    assert comparison.plot.tradeoff("robust_accuracy", "accuracy", eps="2/10").axes


NOTHING = pd.DataFrame(columns=["model"])


def _table(column: str, rows: list[tuple[object, ...]], *keys: str) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["model", "seed", *keys, "sample", column])


def _constant(metric: str, by_seed: dict[str, list[float]], images: int = 20) -> pd.DataFrame:
    """Scores that do not vary over the images, one value per training seed."""
    rows = [
        (model, seed, metric, "constant", image, value)
        for model, values in by_seed.items()
        for seed, value in enumerate(values)
        for image in range(images)
    ]
    return _table("score", rows, "metric", "method")


@pytest.mark.parametrize("value", [6.664, 0.0, -1e-9])
def test_seeds_with_the_same_score_for_all_images_do_not_disagree(value: float) -> None:
    values = [value, value * (1 + 1e-15), value]
    table = Comparison(_constant("complexity", {"a": values, "b": values}), NOTHING, baseline="a").table()
    assert not table["seeds_disagree"].any() and table["mean"].tolist() == pytest.approx([value, value])
    assert table.loc[1, "identical"]


@pytest.mark.parametrize("by_seed", [[0.3, 0.31], [6.6, 6.6, 1.0]])
def test_scores_that_do_not_depend_on_the_image_have_the_interval_of_the_seeds(by_seed: list[float]) -> None:
    scores = _constant("complexity", {"a": by_seed})
    noise = np.random.default_rng(0).normal(0, 1e-8, len(scores))
    for size in (0.0, 1.0):  # and with the rounding of float32
        scores["score"] += size * noise
        (row,) = Comparison(scores, NOTHING, baseline="a").table().to_dict("records")
        assert not row["seeds_disagree"] and row["mean"] == pytest.approx(np.mean(by_seed))
        expected = stats.ttest_1samp(by_seed, 0.0).confidence_interval()
        ends = [max(expected.low, 0.0), expected.high]  # complexity is not negative
        assert [row["low"], row["high"]] == pytest.approx(ends, rel=1e-5)


def test_seeds_of_two_kinds_disagree_where_scores_vary_over_images() -> None:
    scores = _constant("complexity", {"a": [6.6, 6.6, 1.0]})
    scores["score"] += np.random.default_rng(0).normal(0, 1e-3, len(scores))
    assert Comparison(scores, NOTHING, baseline="a").table()["seeds_disagree"].all()
    hits = _constant("pointing_game", {"a": [1.0, 1.0, 0.0]})  # shares, which are judged by their gap alone
    assert Comparison(hits, NOTHING, baseline="a").table()["seeds_disagree"].all()


def test_two_seeds_are_of_two_kinds_only_where_one_collapsed() -> None:
    scores = _constant("complexity", {"a": [6.6, 1.0]})
    scores["score"] += np.random.default_rng(0).normal(0, 1e-3, len(scores))
    row = Comparison(scores, NOTHING, baseline="a").table().iloc[0]
    assert not row["seeds_disagree"] and row["low"] == 0 and row["high"] > 20  # Student, 1 degree of freedom
    for second, disagree in ((12, False), (2, True)):
        rows = [
            ("a", seed, "pgd", eps, i, i < (20, second)[seed])
            for seed in (0, 1)
            for eps in (0.0, 0.1)
            for i in range(24)
        ]
        table = Comparison(NOTHING, _table("robust", rows, "attack", "eps"), baseline="a").table()
        assert (table["seeds_disagree"] == disagree).all()


def test_one_image_does_not_say_that_seeds_are_of_two_kinds() -> None:
    table = Comparison(_constant("complexity", {"a": [6.6, 6.6, 1.0]}, 1), NOTHING, baseline="a").table()
    assert not table["seeds_disagree"].any() and table.loc[0, "mean"] == pytest.approx(14.2 / 3)


def test_scores_that_are_zero_for_all_images_are_no_share() -> None:
    scores = _constant("max_sensitivity", {"a": [0.0], "b": [1.0]}, 100)
    assert Comparison(scores, NOTHING, baseline="a").table()[["low", "high"]].isna().all(axis=None)
    hits = _constant("pointing_game", {"a": [0.0], "b": [1.0]}, 100)  # its range is 0 to 1
    table = Comparison(hits, NOTHING, baseline="a").table()
    assert table[["low", "high"]].to_numpy().tolist() == [
        pytest.approx(proportion_confint(count, 100, method="wilson")) for count in (0, 100)
    ]


def test_the_unattacked_accuracy_has_every_seed_that_any_attack_has() -> None:
    draws = np.random.default_rng(0)
    right = {seed: draws.random(30) > 0.3 for seed in range(3)}
    rows = [
        ("a", seed, attack, eps, image, bool(right[seed][image] and eps == 0))
        for attack, seeds in (("pgd", (0, 1)), ("fgsm", (1, 2)))
        for seed in seeds
        for eps in (0.0, 0.2)
        for image in range(30)
    ]
    comparison = Comparison(
        _table("score", [], "metric", "method"), _table("robust", rows, "attack", "eps"), baseline="a"
    )
    np.testing.assert_array_equal(
        comparison.measure("accuracy").values["a"], np.stack([right[seed] for seed in range(3)])
    )


def test_the_largest_epsilon_is_the_default_in_any_order() -> None:
    robustness = _robustness().sort_values("eps", ascending=False, kind="stable")
    assert Comparison(_scores(), robustness, baseline="a").measure("robust_accuracy").eps == 0.2


def test_a_note_on_seeds_that_disagree_leaves_the_panel_its_width() -> None:
    one = _robustness(3).query("model == 'b'")
    alike = pd.concat([one.assign(model=name) for name in ("a", "b", "adversarial")])
    split = alike.copy()
    split.loc[(split["model"] == "b") & (split["seed"] == 0) & (split["eps"] < 0.2), "robust"] = False
    widths = []
    for rows in (alike, split):
        comparison = Comparison(pd.DataFrame(), rows, baseline="a")
        assert comparison.table()["seeds_disagree"].any() == (rows is split)
        figure = comparison.plot.robustness()
        figure.savefig(io.BytesIO(), format="svg")
        widths.append(figure.axes[0].get_position().width)
    assert widths[1] > 0.9 * widths[0]


def test_a_recipe_with_scores_of_a_single_seed_is_not_tested() -> None:
    table = _scores(3)
    table.loc[(table["model"] == "b") & (table["seed"] > 0), "score"] = np.nan  # two of three collapsed
    comparison = Comparison(table, pd.DataFrame(), baseline="a")
    rows = comparison.table().query("model == 'b'")
    assert rows["mean"].notna().all() and rows["difference"].notna().all()
    assert rows[["low", "difference_low", "p", "p_holm"]].isna().all(axis=None)
    assert not rows["differs"].any() and not rows["rank"].any()
    asked = Claim(question="Is b sparser?", model="b", over="a", metric="sparseness")
    assert set(answer([asked], comparison)[0].differences["verdict"]) == {"undefined"}
    assert "only one of the training seeds has scores" in str(comparison)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seeds", [1, 3])
def test_infinite_scores_have_a_note_and_no_interval(seeds: int) -> None:
    table = _scores(seeds)
    table.loc[(table["model"] == "b") & (table["sample"] < 3), "score"] = np.inf
    printed = str(Comparison(table, pd.DataFrame(), baseline="a"))
    assert "inf: some of the values are infinite" in printed and "too few of its values" not in printed


@pytest.mark.parametrize("value", [np.nan, "False", 0.5, None])
def test_what_is_neither_right_nor_wrong_is_refused(value: object) -> None:
    table = _robustness().astype({"robust": object})
    assert Comparison(pd.DataFrame(), table, baseline="a").table()["mean"].notna().all()
    table.loc[5, "robust"] = value
    with pytest.raises(InputError, match="robust must be True or False in every row"):
        Comparison(pd.DataFrame(), table, baseline="a")


@pytest.mark.parametrize("column", ["model", "seed", "metric", "method", "sample", "score"])
def test_a_table_without_a_column_is_named(column: str) -> None:
    with pytest.raises(InputError, match=f"scores has no column '{column}'"):
        Comparison(_scores().drop(columns=column), pd.DataFrame(), baseline="a")


def test_rows_that_belong_nowhere_and_scores_in_words_are_refused() -> None:
    table = _scores().astype({"seed": float, "score": float})
    table.loc[7, "seed"] = np.nan
    with pytest.raises(InputError, match="scores has rows without 'seed'"):
        Comparison(table, pd.DataFrame(), baseline="a")
    with pytest.raises(InputError, match="score must be a number in every row"):
        Comparison(_scores().astype({"score": str}), pd.DataFrame(), baseline="a")


def test_an_image_that_is_listed_twice_is_named() -> None:
    scores = _scores()
    scores.loc[1, "sample"] = 0  # and image 1 is missing
    with pytest.raises(InputError, match=r"'a' \(seed 0\) has more than one row of score for sparseness"):
        Comparison(scores, NOTHING, baseline="a").table()


def test_a_score_that_failed_for_one_seed_cannot_be_aggregated() -> None:
    scores = _scores(6)
    lost = (scores["model"] == "b") & (scores["seed"] == 5) & (scores["method"] == "smoothgrad")
    comparison = Comparison(scores[~lost], NOTHING, baseline="a")
    with pytest.raises(InputError, match=r"numbers of training seeds \(saliency: 6, smoothgrad: 5\)"):
        comparison.aggregate("sparseness")


def _single(metric: str, values: dict[str, list[float]]) -> pd.DataFrame:
    """Scores of one seed."""
    rows = [
        (model, 0, metric, "saliency", image, score)
        for model, own in values.items()
        for image, score in enumerate(own)
    ]
    return _table("score", rows, "metric", "method")


@pytest.mark.parametrize(("metric", "bounds"), [("pointing_game", None), ("pg", {"pg": (0, 1)})])
@pytest.mark.parametrize("undefined", [0, 1, 4])
def test_a_score_of_right_and_wrong_is_tested_as_such_whatever_its_label(
    metric: str, bounds: dict[str, tuple[float, float]] | None, undefined: int
) -> None:
    hits = {"a": [1.0] * 20 + [np.nan] * undefined, "b": [1.0] * 15 + [0.0] * 5 + [1.0] * undefined}
    table = Comparison(_single(metric, hits), NOTHING, baseline="a", bounds=bounds).table()
    a, b = table.to_dict("records")
    assert b["p"] == pytest.approx(stats.binomtest(0, 5).pvalue) == 0.0625
    assert (a["low"], a["high"]) == pytest.approx(proportion_confint(20, 20, method="wilson"))
    right = 15 + undefined
    assert (b["low"], b["high"]) == pytest.approx(proportion_confint(right, right + 5, method="wilson"))
    p, q = 1 / 22, 6 / 22  # Bonett and Price, of the 20 images that both have
    half = stats.norm.isf(0.025) * np.sqrt((p + q - (p - q) ** 2) / 22)
    assert b["difference"] == pytest.approx(-0.25)
    assert [b["difference_low"], b["difference_high"]] == pytest.approx([p - q - half, p - q + half])


def test_a_study_says_what_its_labels_stand_for(
    tiny_sample: tuple[Tensor, Tensor], make_net: Callable[[int], nn.Module], tmp_path: Path
) -> None:
    def always(model: nn.Module, x: Tensor, y: Tensor, maps: Tensor) -> Tensor:
        return torch.ones(len(x))

    x, y = tiny_sample
    study = Study({"plain": make_net(0)}, (x, y, torch.ones_like(x)), store=tmp_path / "store")
    study.attribute("saliency").score({"pg": {"metric": "pointing_game"}, "monotonicity": always})
    loaded = Study.load(tmp_path / "store")
    for comparison in (study.compare(), loaded.compare()):
        table = comparison.table().set_index(["metric", "model"])
        ends = table.loc[("pg", "plain"), ["low", "high"]].tolist()  # the mask is the whole image: all hits
        assert ends == pytest.approx(proportion_confint(len(x), len(x), method="wilson"))
        assert np.isnan(table.loc[("monotonicity", "plain"), "low"])  # a user's own, of unknown range


def _read_back(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    table.to_csv(path, index=False)
    return pd.read_csv(path)


@pytest.mark.parametrize("names", ["12", ["1", "2", "0.1"]])
def test_models_whose_names_are_numbers_are_compared(names: Sequence[str], tmp_path: Path) -> None:
    named = dict(zip("abc", names, strict=False))
    tables = [table[table["model"].isin([*named])] for table in (_scores(), _robustness())]
    written = [table.replace({"model": named}) for table in tables]
    read = [_read_back(table, tmp_path / "table.csv") for table in written]
    assert all(pd.api.types.is_numeric_dtype(table["model"]) for table in read)
    expected = Comparison(*tables, baseline="b").table().replace({"model": named})
    for baseline in ("2", 2, 2.0, np.int64(2)):
        found = Comparison(*read, baseline=baseline)  # type: ignore[arg-type]
        assert found.baseline == "2" and found.models == [*names]
        pd.testing.assert_frame_equal(found.table(), expected)
    assert pd.api.types.is_numeric_dtype(read[0]["model"]), "the table of the caller is left as it was"
    with pytest.raises(InputError, match="unknown baseline: '3'"):
        Comparison(*read, baseline=3)  # type: ignore[arg-type]


def test_metrics_methods_and_attacks_whose_names_are_numbers_are_compared() -> None:
    scores = _scores().query("metric == 'sparseness'").replace({"method": {"saliency": 1, "smoothgrad": 2}})
    comparison = Comparison(scores.assign(metric=7), _robustness().assign(attack=8), baseline="a")
    assert {(m.metric, m.method) for m in comparison.measures if not m.share} == {("7", "1"), ("7", "2")}
    assert comparison.measure("robust_accuracy").method == "8"
    assert "7" in str(comparison) and comparison.plot.robustness("8").axes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"better": {"sparseness": "up"}},
            "unknown direction of 'sparseness' in better: 'up'; known: higher",
        ),
        ({"better": {"sparseness": None}}, "direction of 'sparseness' in better must be one of 'higher'"),
        ({"bounds": {"sparseness": (1, 0)}}, "bounds of 'sparseness' must be its smallest and its largest"),
        ({"bounds": {"sparseness": 1}}, "bounds of 'sparseness' must be its smallest and its largest"),
        ({"bounds": {"sparseness": (0, np.nan)}}, "bounds of 'sparseness' must be its smallest"),
        ({"bounds": {"sparseness": ("0", "1")}}, "bounds of 'sparseness' must be its smallest"),
        ({"bounds": [0, 1]}, "bounds must be a mapping"),
    ],
)
def test_what_is_said_of_a_metric_is_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Comparison(_scores(), _robustness(), baseline="a", **given)


def test_networks_that_compute_one_function_have_identical_scores() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(512, 3),
        ).eval()  # fmt: skip
        x, order = torch.rand(60, 1, 8, 8), torch.randperm(8)
    permuted, other = copy.deepcopy(net), copy.deepcopy(net)
    with torch.no_grad():
        permuted[0].weight.copy_(net[0].weight[order])
        permuted[0].bias.copy_(net[0].bias[order])
        permuted[2].weight.copy_(net[2].weight[:, order])
        other[0].weight.mul_(1.001)
    study = Study({"net": net, "permuted": permuted, "other": other}, (x, torch.arange(60) % 3))
    study.attribute(["saliency", "input_x_gradient"]).score(["sparseness", "complexity"])
    table = study.compare().table()
    scores = study.scores.pivot(index=["metric", "method", "sample"], columns="model", values="score")
    assert (scores["net"] != scores["permuted"]).any()
    assert table[table["model"] == "permuted"]["identical"].all()
    assert not table[table["model"] == "other"]["identical"].any()
    assert table[table["model"] == "other"]["p"].notna().all()


@pytest.mark.parametrize(
    "values",
    [
        {"a": [0.5], "b": [0.6]},
        {"a": [0.5] * 20, "b": [0.6] * 20},
        {"a": [0.5] * 20, "b": [0.5 + 1e-12] * 20, "c": [0.6] * 20},
    ],
    ids=["one image", "constant", "constant and identical"],
)
def test_models_that_were_not_tested_have_no_marks(values: dict[str, list[float]]) -> None:
    comparison = Comparison(_single("sparseness", values), NOTHING, baseline="a")
    assert comparison.table()["p"].isna().all() and not comparison.table()["rank"].any()


def test_only_models_that_were_tested_or_are_identical_are_ties() -> None:
    draws = np.random.default_rng(0)
    best = 2 + draws.random(40)
    values = {
        "best": best,
        "same": best - 1e-9,
        "worse": best - 1 - 0.1 * draws.random(40),
        "untested": best - 1,
    }
    comparison = Comparison(
        _single("sparseness", {model: own.tolist() for model, own in values.items()}),
        NOTHING,
        baseline="best",
    )
    ranks = comparison.table().set_index("model")["rank"].to_dict()
    assert ranks == {"best": "best", "same": "tie", "worse": "", "untested": ""}


def test_small_scores_of_seeds_that_disagree_are_not_printed_as_zero() -> None:
    scores = _constant("infidelity", {"a": [0.000204, 0.000012, 0.000012]})
    scores["score"] *= 1 + 1e-3 * np.random.default_rng(0).normal(size=len(scores))
    printed = str(Comparison(scores, NOTHING, baseline="a"))
    means = scores.groupby("seed")["score"].mean()
    assert f"seeds disagree {means[0]:.4g}, {means[1]:.4g}".replace("-", "−") in printed


def test_a_seed_without_rows_is_lost_as_one_whose_scores_are_undefined() -> None:
    draw = np.random.default_rng(0)
    values = {("whole", 0): 0.6, ("whole", 1): 0.7, ("rest", 0): 0.9}
    scores = pd.DataFrame(
        [
            {
                "model": model,
                "seed": seed,
                "metric": "m",
                "method": "saliency",
                "sample": image,
                "score": score,
            }
            for (model, seed), mean in values.items()
            for image, score in enumerate(mean + 0.2 * draw.standard_normal(40))
        ]
    )
    robust = scores.rename(columns={"method": "attack", "score": "robust"}).drop(columns="metric")
    robust = pd.concat(
        [robust.assign(eps=eps, robust=robust["robust"] > 0.5 + eps) for eps in (0.0, 0.1)], ignore_index=True
    )
    better = {"m": "higher"}
    seeds = {"whole": [0, 1], "rest": [0, 1]}
    comparison = Comparison(scores, robust, baseline="whole", better=better, seeds=seeds)
    table = comparison.table()
    rest = table[table["model"] == "rest"]
    assert len(rest) == 3 and rest[["low", "difference_low", "p"]].isna().all(axis=None)
    assert not rest["differs"].any() and (rest["rank"] == "").all()
    assert all(np.isnan(means[1]) for means in rest["seed_means"])
    assert table[table["model"] == "whole"]["low"].notna().all()
    text = str(comparison)
    assert "Not all training seeds have results: rest (1 of 2)." in text
    assert "only one of the training seeds has scores" in text

    known = Comparison(scores, robust, baseline="whole", better=better).table()
    means = known[["mean", "difference"]]
    pd.testing.assert_frame_equal(table[["mean", "difference"]], means)
    assert known[known["model"] == "rest"]["low"].notna().all()
