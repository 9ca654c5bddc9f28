"""A user's own metrics: Quantus objects and functions; and maps that are made again."""

from __future__ import annotations

import numpy as np
import pytest
import quantus
import torch

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab.metrics import evaluate_detailed, evaluate_many
from saliency_lab.metrics.catalogue import METRICS

QUIET = {"disable_warnings": True, "return_aggregate": False}


def gradient(model, x, classes):
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        return torch.autograd.grad(model(x).gather(1, classes[:, None]).sum(), x)[0]


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
    with pytest.raises(InputError, match=r"one number a sample, \(6,\)"):
        sl.evaluate(*scene, lambda model, x, y, maps: maps.mean())


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
        with pytest.raises(InputError, match="hand in the Attributions"):
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
        assert sum(calls) == 18

    def test_explain_that_returns_another_shape_is_named(self, scene):
        with pytest.raises(InputError, match="what explain returns"):
            sl.evaluate(
                *scene, "max_sensitivity", samples=2, explain=lambda model, x, classes: torch.zeros(len(x))
            )


def test_an_own_metric_has_no_bounds():
    assert METRICS.find(lambda model, x, y, maps: torch.zeros(len(x))).bounds == (-np.inf, np.inf)
