from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from saliency_lab._common.errors import InputError
from saliency_lab.comparison.claims import Answered, Claim, answer, by_chance, judge
from saliency_lab.comparison.comparison import Comparison
from saliency_lab.study.schema import ROBUSTNESS

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
    answers = judge(claim, comparison)
    by_metric = answers.groupby("metric")["verdict"].agg(set).to_dict()
    assert by_metric == {"sparseness": {"better"}, "complexity": {"worse"}, "odd": {"higher"}}
    held = comparison.measure("sparseness").values
    direct = held["good"].mean() - held["base"].mean()
    row = answers[(answers["metric"] == "sparseness") & (answers["over"] == "base")].iloc[0]
    assert row["difference"] == pytest.approx(direct)
    assert row["mean"] - row["mean_over"] == pytest.approx(direct)
    assert row["difference_low"] < direct < row["difference_high"]


def test_a_difference_that_is_noise_is_not_told_apart() -> None:
    claim = Claim(question="Sparser?", model="same", over="base", metric="sparseness")
    [asked] = answer([claim], _comparison())
    assert asked.differences["verdict"].tolist() == ["not told apart"]
    assert asked.answers == [("same", "base", {"not told apart": "sparseness (saliency)"})]
    assert str(asked) == "Sparser?\n  same against base: not told apart by sparseness (saliency)"


def test_a_question_that_nothing_answers_says_so() -> None:
    claim = Claim(question="Robust?", model="same", over="base", metric="robust_accuracy")
    for comparison in (None, _comparison()):
        [asked] = answer([claim], comparison)
        assert not len(asked.differences) and not asked.answers
        assert str(asked).startswith("Robust?\n  no answer: nothing ")


def test_a_difference_is_counted_once() -> None:
    both = Claim(question="?", model=["good", "same"], over=["good", "same"], metric="sparseness")
    answers = judge(both, _comparison())
    assert len(answers) == 2  # the same difference, both ways round
    asked = Answered("?", answers)
    text = by_chance([asked, asked], 0.95)
    assert "Intervals: 1, each at 95 %" in text and "about 0.1 would" in text
    assert by_chance([], 0.95) == ""


def test_a_claim_about_what_was_not_measured_is_an_error() -> None:
    claim = Claim(question="Faithful?", model="good", over="base", metric="sparseness", method="lime")
    with pytest.raises(InputError, match="nothing that was measured answers the claim 'Faithful"):
        judge(claim, _comparison())


def test_what_a_question_names_is_said_also_where_nothing_answers() -> None:
    claim = Claim(question="?", model="god", over="base", metric="sparseness")
    [asked] = answer([claim], _comparison())
    assert asked.problem and asked.missing == ["god"]


def test_what_a_question_names_and_nothing_answers_is_said() -> None:
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
    assert verdicts == {"good": "undefined", "same": "not told apart"}
    assert "Intervals: 1, " in by_chance([asked], 0.95)


def test_a_claim_must_name_a_method_of_maps_for_a_score_of_maps() -> None:
    claim = Claim(question="?", model="a", over="b", metric=["robust_accuracy", "sparseness"], method="pgd")
    known = ["accuracy", "robust_accuracy", "sparseness"]
    with pytest.raises(InputError, match="asks for sparseness; name a method of maps too"):
        claim.check(["a", "b"], known, ["saliency"], {"pgd": [0.1]})
