from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from saliency_lab._common.errors import InputError
from saliency_lab.comparison.claims import Answered, Claim, Endpoint, answer, describe_tests
from saliency_lab.comparison.comparison import Comparison
from saliency_lab.comparison.schema import ROBUSTNESS

IMAGES = 60


def _comparison(seeds: int = 3) -> Comparison:
    """Scores of which the differences are known: `good` is 1 above, `same` equal up to noise."""
    draws = np.random.default_rng(0)
    by_image = draws.normal(size=IMAGES)
    rows = []
    for model, shift in (("base", 0.0), ("good", 1.0), ("same", 0.0)):
        for seed in range(seeds):
            noise = draws.normal(scale=0.3, size=IMAGES)
            for metric in ("sparseness", "complexity", "odd"):  # higher, lower, neither is better
                for sample in range(IMAGES):
                    score = by_image[sample] + shift + noise[sample]
                    rows.append([model, "", seed, "saliency", metric, sample, score])
    scores = pd.DataFrame(rows, columns=["model", "recipe", "seed", "method", "metric", "sample", "score"])
    return Comparison(scores, pd.DataFrame(columns=ROBUSTNESS), baseline="base")


def test_a_claim_is_answered_by_the_interval_of_the_paired_difference() -> None:
    comparison = _comparison()
    claim = Claim(
        question="?", model="good", over=["base", "same"], metric=["sparseness", "complexity", "odd"]
    )
    answers = answer([claim], comparison)[0].differences
    by_metric = answers.groupby("metric")["verdict"].agg(set).to_dict()
    assert by_metric == {"sparseness": {"better"}, "complexity": {"worse"}, "odd": {"higher"}}
    values = comparison.measure("sparseness").values
    direct = values["good"].mean() - values["base"].mean()
    row = answers[(answers["metric"] == "sparseness") & (answers["over"] == "base")].iloc[0]
    assert row["difference"] == pytest.approx(direct)
    assert row["mean"] - row["mean_over"] == pytest.approx(direct)
    assert row["difference_low"] < direct < row["difference_high"]


def test_a_difference_that_is_noise_is_not_significant() -> None:
    claim = Claim(question="Sparser?", model="same", over="base", metric="sparseness")
    [asked] = answer([claim], _comparison())
    assert asked.differences["verdict"].tolist() == ["not significantly different"]
    assert asked.answers == [("same", "base", {"not significantly different": "sparseness (saliency)"})]
    assert str(asked) == "Sparser?\n  same against base: not significantly different by sparseness (saliency)"


def test_a_question_that_nothing_answers_says_so() -> None:
    claim = Claim(question="Robust?", model="same", over="base", metric="robust_accuracy")
    for comparison in (None, _comparison()):
        [asked] = answer([claim], comparison)
        assert not len(asked.differences) and not asked.answers
        assert str(asked).startswith("Robust?\n  no answer: nothing ")


def test_a_difference_is_counted_once() -> None:
    both = Claim(question="?", model=["good", "same"], over=["good", "same"], metric="sparseness")
    answers = answer([both], _comparison())[0].differences
    assert len(answers) == 2  # the same difference, both ways round
    asked = Answered("?", answers)
    text = describe_tests([asked, asked], 0.95)
    assert "Differences tested together: 1 (no primary endpoint was declared)" in text
    assert answers["p_corrected"].tolist() == answers["p"].tolist()
    assert describe_tests([], 0.95) == ""


def test_a_claim_about_what_was_not_measured_is_an_error() -> None:
    claim = Claim(question="Faithful?", model="good", over="base", metric="sparseness", method="lime")
    [answered] = answer([claim], _comparison())
    assert "nothing that was measured answers the claim 'Faithful" in answered.problem
    assert answered.differences.empty


def test_what_a_question_names_is_shown_also_where_nothing_answers() -> None:
    claim = Claim(question="?", model="god", over="base", metric="sparseness")
    [asked] = answer([claim], _comparison())
    assert asked.problem and asked.missing == ["god"]


def test_what_a_question_names_and_nothing_answers_is_shown() -> None:
    claim = Claim(question="?", model=["good", "god"], over="base", metric=["sparseness", "sparsness"])
    [asked] = answer([claim], _comparison())
    assert asked.missing == ["god", "sparsness"]
    assert "not measured: god, sparsness" in str(asked)


def test_a_difference_without_an_interval_is_undefined() -> None:
    comparison = _comparison()
    comparison.scores.loc[comparison.scores["model"] == "good", "score"] = np.nan
    claim = Claim(question="?", model=["good", "same"], over="base", metric="sparseness")
    [asked] = answer([claim], comparison)
    verdicts = asked.differences.set_index("model")["verdict"].to_dict()
    assert verdicts == {"good": "undefined", "same": "not significantly different"}
    assert "tested together: 1 " in describe_tests([asked], 0.95)


def test_a_claim_must_name_a_method_of_maps_for_a_score_of_maps() -> None:
    claim = Claim(question="?", model="a", over="b", metric=["robust_accuracy", "sparseness"], method="pgd")
    known = ["accuracy", "robust_accuracy", "sparseness"]
    with pytest.raises(InputError, match="asks for sparseness; name a method of maps too"):
        claim.check(["a", "b"], known, ["saliency"], {"pgd": [0.1]})


def _accuracies(rates: dict[str, list[float]], images: int = 200) -> Comparison:
    """Attacked accuracies of which each seed has exactly this rate, on images of differing difficulty."""
    draws = np.random.default_rng(0)
    difficulty = np.arange(images) / images
    rows = []
    for model, by_seed in rates.items():
        for seed, rate in enumerate(by_seed):
            noisy = difficulty + 0.05 * draws.normal(size=images)
            right = noisy < np.quantile(noisy, rate)
            for eps, robust in ((0.0, np.ones(images, bool)), (0.1, right), (0.2, right)):
                table = {"model": model, "recipe": "", "seed": seed, "attack": "pgd", "eps": eps}
                rows.append(pd.DataFrame(table | {"sample": range(images), "robust": robust}))
    scores = pd.DataFrame(columns=["model", "recipe", "seed", "method", "metric", "sample", "score"])
    return Comparison(scores, pd.concat(rows, ignore_index=True), baseline=next(iter(rates)))


RATES = {
    "at": [0.900, 0.905, 0.895, 0.900, 0.905],
    "asgt": [0.900, 0.900, 0.905, 0.895, 0.900],
    "worse": [0.80, 0.79, 0.81, 0.80, 0.80],
    "collapsed": [0.90, 0.90, 0.10, 0.90, 0.90],
}
ENDPOINT = {"metric": "robust_accuracy", "method": "pgd", "eps": 0.2}


def test_a_primary_endpoint_is_tested_alone_and_the_others_together() -> None:
    comparison = _accuracies(RATES)
    claims = [
        Claim(
            question="Robust?", model=["worse", "asgt"], over="at", metric=["robust_accuracy", "accuracy"],
            primary=Endpoint(model="worse", over="at", **ENDPOINT),
        ),
        Claim(question="Again?", model="worse", over="asgt", metric="robust_accuracy", eps=0.1),
    ]  # fmt: skip
    first, second = answer(claims, comparison)
    table = first.differences
    primary, secondary = table[table["endpoint"] == "primary"], table[table["endpoint"] == "secondary"]
    assert primary[["model", "over", "eps", "verdict"]].to_numpy().tolist() == [["worse", "at", 0.2, "worse"]]
    assert primary["p_corrected"].tolist() == primary["p"].tolist()
    assert not secondary.duplicated(["metric", "eps", "model", "over"]).any()
    family = pd.concat([secondary, second.differences])
    np.testing.assert_allclose(
        family["p_corrected"], multipletests(family["p"], method="holm")[1], atol=1e-12
    )
    assert "Differences tested together: 6 (all others are secondary)" in describe_tests(
        [first, second], 0.95
    )
    assert "Each primary endpoint is tested on its own at 5 %" in describe_tests([first], 0.95)
    lines = str(first).splitlines()
    assert lines[1].startswith(
        "  primary endpoint: worse against at, robust accuracy (pgd, ε = 0.2): worse ("
    )
    assert any(line.startswith("  secondary: asgt against at: not significantly different") for line in lines)


def test_a_primary_endpoint_that_is_asked_again_stays_uncorrected() -> None:
    comparison = _accuracies(RATES)
    first = Claim(
        question="Robust?", model="worse", over="at", metric="robust_accuracy",
        primary=Endpoint(model="worse", over="at", **ENDPOINT),
    )  # fmt: skip
    reverse = Claim(question="The other way?", model="at", over="worse", metric="robust_accuracy")
    one, two = answer([first, reverse], comparison)
    primary = one.differences.iloc[0]
    (again,) = two.differences[two.differences["eps"] == 0.2].to_dict("records")
    assert again["p_corrected"] == again["p"] == primary["p"]
    assert (primary["verdict"], again["verdict"]) == ("worse", "better")
    assert "Differences tested together: 1 (all others are secondary)" in describe_tests([one, two], 0.95)


def test_equivalence_within_the_margin_is_an_answer() -> None:
    endpoint = {"model": "asgt", "over": "at", **ENDPOINT}
    verdicts = {}
    for margin in (0.001, 0.5):
        claim = Claim(
            question="?", model="asgt", over="at", metric="robust_accuracy",
            primary=Endpoint(**endpoint, margin=margin),
        )  # fmt: skip
        [asked] = answer([claim], _accuracies(RATES))
        row = asked.differences.iloc[0]
        verdicts[margin] = row["verdict"]
        assert (row["p_equivalence"] < 0.05) == (row["verdict"] == "equivalent")
    assert verdicts == {0.001: "not significantly different", 0.5: "equivalent"}
    assert "equivalent within ±50 points (difference" in asked.primary
    assert "equivalence within ±50 points: p" in asked.primary


@pytest.mark.parametrize(
    ("metric", "margin", "written"),
    [
        ("robust_accuracy", 0.0125, "±1.25 points:"),
        ("robust_accuracy", 0.0004, "±0.04 points:"),
        ("sparseness", 0.0004, "±0.0004:"),
        ("sparseness", 0.125, "±0.125:"),
    ],
)
def test_a_margin_is_printed_as_it_was_declared(metric: str, margin: float, written: str) -> None:
    share = metric == "robust_accuracy"
    comparison = _accuracies(RATES) if share else _comparison()
    model, over = ("asgt", "at") if share else ("good", "base")
    endpoint = Endpoint(model=model, over=over, metric=metric, eps=0.2 if share else None, margin=margin)
    claim = Claim(question="?", model=model, over=over, metric=metric, primary=endpoint)
    assert f"equivalence within {written} p = " in answer([claim], comparison)[0].primary


@pytest.mark.parametrize(
    ("metric", "margin", "words"),
    [
        ("accuracy", 2, "2 points of accuracy are 0.02"),
        ("robust_accuracy", 1, "is a share of the images, below 1"),
        ("sparseness", 1.5, r"the whole range of sparseness \(0 to 1\)"),
    ],
)
def test_a_margin_that_makes_everything_equivalent_is_refused(metric: str, margin: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Endpoint(model="a", over="b", metric=metric, margin=margin)


def test_seeds_that_disagree_and_identical_scores_are_no_differences() -> None:
    claim = Claim(question="?", model="collapsed", over="at", metric="robust_accuracy", eps=0.2)
    [row] = answer([claim], _accuracies(RATES))[0].differences.to_dict("records")
    assert row["verdict"] == "seeds disagree" and np.isnan([row["p"], row["difference"]]).all()
    comparison = _comparison()
    same = comparison.scores["metric"] == "odd"
    for scores in (comparison.scores, comparison.scores.copy()):
        scores.loc[same, "score"] = scores.loc[same, "sample"].astype(float)
    claim = Claim(question="?", model="good", over="base", metric=["odd", "sparseness"])
    rows = answer([claim], comparison)[0].differences.set_index("metric")
    assert rows.loc["odd", "verdict"] == "identical" and np.isnan(rows.loc["odd", "p"])
    assert rows.loc["sparseness", "p"] == rows.loc["sparseness", "p_corrected"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "b2"}, "unknown model in the claim"),
        ({"method": "fgsm"}, "unknown method in the claim"),
        ({"eps": 0.3}, "is not attacked at"),
        ({"eps": None}, "must name one ε: 0.1, 0.2"),
        ({"method": ""}, "must name an attack: pgd, square"),
        ({"method": "square", "eps": 0.2}, "at which square is not run"),
        ({"over": "b"}, "compares 'b' with itself"),
        ({"metric": "sparseness", "method": "", "eps": None}, "must name a method: saliency, smoothgrad"),
    ],
)
def test_a_primary_endpoint_must_be_one_difference(change: dict[str, object], message: str) -> None:
    endpoint = {"model": "b", "over": "a", "metric": "robust_accuracy", "method": "pgd", "eps": 0.2}
    claim = Claim(question="?", model="b", over="a", metric="accuracy", primary=Endpoint(**endpoint | change))  # type: ignore[arg-type]
    attacks = {"pgd": [0.1, 0.2], "square": [0.1]}
    with pytest.raises(InputError, match=message):
        claim.check(
            ["a", "b"], ["accuracy", "robust_accuracy", "sparseness"], ["saliency", "smoothgrad"], attacks
        )


def test_a_primary_endpoint_that_was_not_measured_is_named() -> None:
    claim = Claim(
        question="?", model="same", over="base", metric="sparseness",
        primary=Endpoint(model="gone", over="base", metric="sparseness"),
    )  # fmt: skip
    [asked] = answer([claim], _comparison())
    assert asked.missing == ["gone", "the primary endpoint"]
    assert asked.primary == ""
