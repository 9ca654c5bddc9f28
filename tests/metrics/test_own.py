"""A user's own metrics: Quantus objects and functions; and maps that are made again."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pytest
import quantus
import torch
from pydantic import Field
from torch import Tensor

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab._common.seeding import preserved_rng
from saliency_lab.metrics import evaluate_detailed, evaluate_many
from saliency_lab.metrics.catalogue import METRICS
from saliency_lab.metrics.probe import Probe
from tests.metrics.conftest import gradient

QUIET = {"disable_warnings": True, "return_aggregate": False}


@pytest.mark.parametrize(
    ("metric", "settings"),
    [
        (quantus.PixelFlipping(features_in_step=12, return_auc_per_sample=True, **QUIET), {}),
        (quantus.FaithfulnessCorrelation(nr_runs=8, subset_size=20, **QUIET), {}),
        (quantus.SensitivityN(features_in_step=12, **QUIET), {}),
        (quantus.Sparseness(**QUIET), {}),
        (quantus.MaxSensitivity(nr_samples=2, **QUIET), {"explain": gradient}),
        (quantus.PointingGame(**QUIET), {"masks": torch.ones(6, 1, 12, 12)}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_quantus_object_scores_each_sample_by_itself(scene, metric, settings):
    model, x, y, maps = scene
    before = dict(vars(metric))
    scores = evaluate_detailed(model, x, y, maps, metric, **settings)
    assert scores.values.shape == (6,)
    assert scores.engine == "quantus"
    assert scores.metric == type(metric).__name__
    assert vars(metric) == before
    louder = maps.clone()
    louder[0] *= 100
    again = sl.evaluate(model, x, y, louder, metric, **settings)
    np.testing.assert_allclose(again[1:], scores.values[1:], rtol=1e-6)
    if not isinstance(metric, quantus.SensitivityN):  # which correlates over samples, of which there is one
        assert np.isfinite(scores.values).all()


def test_sample_that_quantus_cannot_score_is_counted(scene):
    model, x, y, maps = scene
    maps = maps.clone()
    maps[2] = -1.0  # Quantus refuses a map without a positive value
    scores = evaluate_detailed(model, x, y, maps, quantus.Sparseness(**QUIET))
    assert np.isnan(scores.values).tolist() == [False, False, True, False, False, False]
    assert scores.reasons[2].startswith("Quantus cannot score it: AssertionError")


def test_function_is_a_metric(scene):
    model, x, y, maps = scene

    def mean_magnitude(model, x, y, maps):
        assert not model.training
        return maps.abs().mean((1, 2, 3))

    scores = evaluate_detailed(model.train(), x, y, maps, mean_magnitude)
    assert scores.metric == "mean_magnitude"
    np.testing.assert_allclose(scores.values, maps.abs().mean((1, 2, 3)), rtol=1e-6)
    assert model.training


def test_function_that_returns_one_number_is_refused(scene):
    with pytest.raises(InputError, match=r"one number per sample, \(6,\)"):
        sl.evaluate(*scene, lambda model, x, y, maps: maps.mean())


def top_mass(model, x, y, maps, *, k: Annotated[float, Field(gt=0, le=1)] = 0.1, masks: Tensor | None = None):
    """Share of the magnitude that lies on the top fraction `k` of the pixels, or inside the masks."""
    size = maps.abs().sum(1).flatten(1)
    if masks is not None:
        return (size * masks.flatten(1)).sum(1) / size.sum(1)
    return size.topk(round(k * size.shape[1])).values.sum(1) / size.sum(1)


class TestFunctionWithSettings:
    def test_settings_are_validated_and_recorded(self, scene):
        scores = evaluate_detailed(*scene, top_mass, k=0.5)
        size = scene[3].double().abs().sum(1).flatten(1).sort(descending=True).values
        np.testing.assert_allclose(scores.values, size[:, :72].sum(1) / size.sum(1), rtol=1e-5)
        assert scores.settings == {"k": 0.5, "masks": None}
        with pytest.raises(InputError, match=r"metric 'top_mass': 'k'.*less than or equal to 1"):
            sl.evaluate(*scene, top_mass, k=2.0)
        with pytest.raises(InputError, match=r"metric 'top_mass'.*did you mean 'masks'"):
            sl.evaluate(*scene, top_mass, mask=1)

    def test_settings_given_per_sample_stay_with_their_sample(self, scene):
        model, x, y, maps = scene
        x, y, maps = (each.repeat_interleave(25, 0) for each in (x, y, maps))
        masks = torch.rand(150, 1, 12, 12) < 0.5  # a block holds 128 samples
        scores = sl.evaluate(model, x, y, maps, top_mass, masks=masks)
        size = maps.abs().sum(1, keepdim=True)
        np.testing.assert_allclose(scores, (size * masks).sum((1, 2, 3)) / size.sum((1, 2, 3)), rtol=1e-5)

    def test_a_setting_without_a_default_must_be_given(self, scene):
        def scaled(model, x, y, maps, factor: float):
            return factor * maps.flatten(1).amax(1)

        with pytest.raises(InputError, match=r"metric 'scaled': 'factor' must be given"):
            sl.evaluate(*scene, scaled)
        np.testing.assert_allclose(
            sl.evaluate(*scene, scaled, factor=2.0), 2 * scene[3].flatten(1).amax(1), rtol=1e-6
        )


class TestQuantusObjectsOfPointsOutsideTheRange:
    """The map and the distance belong to one point, also where Quantus leaves [0, 1]."""

    def test_local_lipschitz_estimate_is_quantus_s_own(self, scene):
        model, x, y, _ = scene
        x = (x * 4 - 1.5).clamp(0, 1)  # most pixels at 0 or 1, so that neighbours leave the range
        maps = gradient(model, x, y)
        metric = quantus.LocalLipschitzEstimate(nr_samples=4, perturb_std=0.5, **QUIET)
        points = []

        def explain(model, x, classes):
            points.append(x)
            return gradient(model, x, classes)

        found = sl.evaluate(model, x, y, maps, metric, explain=explain, seed=3)
        assert torch.cat(points).min() < -0.5 and torch.cat(points).max() > 1.5
        seeds = Probe(model, x, y, seed=3).seeds("quantus")
        for row, seed in enumerate(seeds):
            one = slice(row, row + 1)
            with preserved_rng(seed):
                theirs = quantus.LocalLipschitzEstimate(nr_samples=4, perturb_std=0.5, **QUIET)(
                    model=model, x_batch=x[one].numpy(), y_batch=y[one].numpy(), a_batch=maps[one].numpy(),
                    channel_first=True, softmax=True, device="cpu",
                    explain_func=lambda model, inputs, targets, **_: gradient(
                        model, torch.as_tensor(inputs).float(), torch.as_tensor(targets)
                    ).numpy(),
                )  # fmt: skip
            np.testing.assert_allclose(found[row], theirs[0], rtol=1e-5)

    def test_bundled_methods_explain_them_too(self, digits_sample, trained):
        x, y = digits_sample
        maps = sl.attribute(trained, x, y, "saliency")
        metric = quantus.MaxSensitivity(nr_samples=2, lower_bound=0.5, **QUIET)
        by_name = sl.evaluate(trained, x, y, maps, metric)
        by_hand = sl.evaluate(trained, x, y, maps.values, metric, explain=gradient)
        np.testing.assert_allclose(by_name, by_hand, rtol=1e-4)


def test_function_of_other_arguments_is_refused(scene):
    with pytest.raises(InputError, match=r"is called as \(model, x, y, maps, \*\*settings\): too many"):
        sl.evaluate(*scene, lambda maps: maps)


def test_what_is_no_metric_is_refused(scene):
    with pytest.raises(InputError, match="a Quantus metric object, or a function"):
        sl.evaluate(*scene, 3)


class TestMapsMadeAgain:
    def test_from_attributions(self, digits_sample, trained):
        x, y = digits_sample
        maps = sl.attribute(trained, x, y, method="input_x_gradient")
        scores = sl.evaluate(trained, x, y, maps, "max_sensitivity", samples=2)
        by_hand = sl.evaluate(
            trained, x, y, maps.values, "max_sensitivity", samples=2,
            explain=lambda model, x, classes: x * gradient(model, x, classes),
        )  # fmt: skip
        np.testing.assert_allclose(scores, by_hand, rtol=1e-4)

    def test_maps_of_another_class_are_refused(self, digits_sample, trained):
        x, y = digits_sample
        other = (y + 1) % 10
        maps = sl.attribute(trained, x, other)
        with pytest.raises(InputError, match=r"another class than y for 8 of 8 samples; pass y=maps.classes"):
            sl.evaluate(trained, x, y, maps, "pixel_flipping")
        sl.evaluate(trained, x, maps.classes, maps, "pixel_flipping")

    def test_plain_maps_need_explain(self, scene):
        with pytest.raises(InputError, match="pass the Attributions"):
            sl.evaluate(*scene, "max_sensitivity", samples=2)

    def test_reduced_maps_need_explain(self, digits_sample, trained):
        x, y = digits_sample
        maps = sl.attribute(trained, x, y, method="saliency").reduce()
        with pytest.raises(InputError, match="reduced, normalised"):
            sl.evaluate(trained, x, y, maps, "max_sensitivity", samples=2)

    def test_metrics_of_a_method_share_the_maps(self, scene):
        model, x, y, maps = scene
        calls = []

        def explain(model, x, classes):
            calls.append(len(x))
            return gradient(model, x, classes)

        settings = {"samples": 3, "explain": explain}
        names = ("max_sensitivity", "avg_sensitivity", "local_lipschitz_estimate", "relative_input_stability")
        evaluate_many(model, x, y, {"map": maps}, dict.fromkeys(names, settings))
        assert (
            sum(calls) == 18 + 1
        )  # 6 images with 3 neighbours each, and the first map, to see whose maps these are

    def test_explain_that_returns_another_shape_is_named(self, scene):
        with pytest.raises(InputError, match="what explain returns"):
            sl.evaluate(
                *scene, "max_sensitivity", samples=2, explain=lambda model, x, classes: torch.zeros(len(x))
            )


def test_an_own_metric_has_no_bounds():
    assert METRICS.find(lambda model, x, y, maps: torch.zeros(len(x))).bounds == (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "not NoneType: None"),
        ({"a": 1}, "not dict"),
        (["a"] * 6, "not list"),
        (torch.zeros(6, dtype=torch.complex64), "not complex numbers"),
        (torch.zeros(6, 2), r"not \(6, 2\)"),
    ],
)
def test_a_metric_that_returns_something_else_is_told_so(scene, returned, words):
    with pytest.raises(InputError, match=rf"must return one number per sample, \(6,\), {words}"):
        sl.evaluate(*scene, lambda model, x, y, maps: returned)
