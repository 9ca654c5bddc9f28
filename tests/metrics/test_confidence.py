"""Average drop, increase in confidence and ADCC against their formulas and against pytorch-grad-cam."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.arcc import Coherency, Complexity
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
from pytorch_grad_cam.metrics.road import (
    AveragerAcrossThresholds,
    NoisyLinearImputer,
    PerturbationConfidenceMetric,
    RemoveLeastRelevantFirst,
    RemoveMostRelevantFirst,
)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

import saliency_lab as sl
from saliency_lab.metrics import evaluate_detailed
from saliency_lab.metrics.catalogue import LERF, METRICS
from tests.metrics.conftest import gradient


def cams(maps):
    """The positive part of the pixel scores over their largest, as CAM methods give it, (N, H, W)."""
    scores = maps.double().sum(1).clamp_min(0)
    return (scores / scores.amax((1, 2), keepdim=True)).float().numpy()


def probability(model, x, y):
    with torch.no_grad():
        return model(x).double().softmax(1).gather(1, y[:, None])[:, 0].numpy()


def test_average_drop_and_increase_are_those_of_pytorch_grad_cam(scene):
    """Grad-CAM++'s drop is relative to the answer on the image; pytorch-grad-cam's is not."""
    model, x, y, maps = scene
    targets = [ClassifierOutputSoftmaxTarget(int(label)) for label in y]
    drop = DropInConfidence()(x, cams(maps), targets, model)
    before = probability(model, x, y)
    np.testing.assert_allclose(sl.evaluate(model, x, y, maps, "average_drop"), drop / before, atol=1e-5)
    increase = IncreaseInConfidence()(x, cams(maps), targets, model)
    np.testing.assert_array_equal(sl.evaluate(model, x, y, maps, "increase_in_confidence"), increase)
    assert 0 < increase.sum() < 6


def test_adcc_is_the_harmonic_mean_of_its_parts(scene):
    model, x, y, maps = scene
    masks = cams(maps)

    class Cam:
        """What pytorch-grad-cam calls to explain the masked images."""

        def __call__(self, input_tensor, targets):
            return cams(gradient(model, input_tensor, y))

    coherency = Coherency()(x, masks, None, model, Cam())
    complexity = Complexity()(masks)
    drop = sl.evaluate(model, x, y, maps, "average_drop")
    expected = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))
    found = sl.evaluate(model, x, y, maps, "adcc", explain=gradient)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_map_of_ones_drops_nothing_and_one_of_nothing_has_no_score(scene):
    model, x, y, _ = scene
    whole = torch.ones_like(x)
    np.testing.assert_allclose(sl.evaluate(model, x, y, whole, "average_drop"), 0, atol=1e-7)
    assert np.isnan(sl.evaluate(model, x, y, whole, "adcc", explain=gradient)).all()  # no coherency
    negative = -whole
    for name in ("average_drop", "increase_in_confidence"):
        scores = evaluate_detailed(model, x, y, negative, name)
        assert np.isnan(scores.values).all() and "no positive score" in scores.reasons[0]
        magnitudes = sl.evaluate(model, x, y, negative, name, absolute=True)
        np.testing.assert_array_equal(magnitudes, sl.evaluate(model, x, y, whole, name))


def test_what_the_map_does_not_mark_becomes_the_baseline(scene):
    model, x, y, _ = scene
    half = torch.zeros_like(x)
    half[..., :6] = 1
    blended = x.clone()
    blended[..., 6:] = 1
    before, after = probability(model, x, y), probability(model, blended, y)
    found = sl.evaluate(model, x, y, half, "average_drop", baseline="white")
    np.testing.assert_allclose(found, np.maximum(0, before - after) / before, atol=1e-6)


class TestRoad:
    """100 pixels and no ties, so that both count the same pixels for each percentage."""

    @pytest.fixture(params=[1, 3])
    def tens(self, request):
        source = torch.Generator().manual_seed(request.param)
        x = torch.rand(4, request.param, 10, 10, generator=source)
        maps = torch.rand(4, 1, 10, 10, generator=source)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = torch.nn.Sequential(
                torch.nn.Conv2d(request.param, 4, 3),
                torch.nn.ReLU(),
                torch.nn.Flatten(),
                torch.nn.Linear(256, 5),
            ).eval()
            with torch.no_grad():
                model[-1].weight.mul_(4)
        return model, x, model(x).argmax(1), maps

    def test_combined_is_pytorch_grad_cam_s(self, tens):
        model, x, y, maps = tens
        targets = [ClassifierOutputSoftmaxTarget(int(label)) for label in y]
        percentiles = [20, 40, 60, 80]

        def curve(remove):
            def at(percentile):
                return PerturbationConfidenceMetric(remove(percentile, NoisyLinearImputer(noise=0)))

            return AveragerAcrossThresholds(at, percentiles)(x, maps[:, 0].numpy(), targets, model)

        expected = (curve(RemoveLeastRelevantFirst) - curve(RemoveMostRelevantFirst)) / 2
        found = sl.evaluate(
            model, x, y, maps, "road_combined",
            percentages=[20.0, 40.0, 60.0, 80.0], noise=0.0, output="probability",
        )  # fmt: skip
        np.testing.assert_allclose(found, expected, atol=2e-3)
        assert (np.abs(found) > 0.01).any()

    def test_combined_is_half_the_difference_of_both_orders(self, tens):
        model, x, y, maps = tens
        most, least = (
            evaluate_detailed(model, x, y, maps, "road", order=order)
            for order in ("most_relevant_first", "least_relevant_first")
        )
        combined = evaluate_detailed(model, x, y, maps, "road_combined")
        np.testing.assert_allclose(combined.values, (least.values - most.values) / 2)
        np.testing.assert_allclose(combined.curve.values, (least.curve.values - most.curve.values) / 2)


ORDERED = [
    name
    for name in METRICS
    if "least_relevant_first" in str(METRICS[name].settings.model_fields.get("order"))
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "engine"), [(n, e) for n in ORDERED for e in METRICS[n].engines])
def test_the_least_relevant_first_is_the_negated_map_s_most_relevant_first(scene, small, name, engine):
    model, x, y, maps = scene
    given = small(name, x)
    least = sl.evaluate(model, x, y, maps, name, engine=engine, order="least_relevant_first", **given)
    np.testing.assert_allclose(
        least, sl.evaluate(model, x, y, -maps, name, engine=engine, **given), rtol=1e-6
    )
    assert not np.allclose(least, sl.evaluate(model, x, y, maps, name, engine=engine, **given))


def test_every_perturbation_curve_has_an_order_and_its_direction_turns_with_it():
    assert set(ORDERED) == {
        "pixel_flipping", "deletion", "insertion", "masked_input_accuracy", "selectivity",
        "region_perturbation", "irof", "road",
    }  # fmt: skip
    for name in ORDERED:
        metric = METRICS[name]
        assert metric.direction(metric.settings()) == metric.better
        other = metric.direction(metric.settings(order=LERF))
        assert {other, metric.better} == {"higher", "lower"}
    mprt = METRICS["mprt"]
    assert mprt.direction(mprt.settings(order="bottom_up")) == mprt.better


@pytest.mark.parametrize("engine", ["fast", "quantus"])
def test_tolerance_of_the_pointing_game_is_a_distance_to_the_mask(engine):
    """Zhang et al.: a hit if the highest point lies within a circle around the object."""
    size, model = 15, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(225, 2))
    points = [(0, 0), (2, 6), (7, 3), (4, 4), (11, 11), (14, 14)]
    masks = torch.zeros(1, 1, size, size)
    masks[0, 0, 6:9, 6:9] = 1
    maps = torch.zeros(len(points), 1, size, size)
    for row, (i, j) in enumerate(points):
        maps[row, 0, i, j] = 1
    x, y = torch.rand(len(points), 1, size, size), torch.zeros(len(points), dtype=torch.long)
    inside = [(i, j) for i in range(6, 9) for j in range(6, 9)]
    distances = [min(np.hypot(i - a, j - b) for a, b in inside) for i, j in points]
    for tolerance in (0, 2, 3, 4.5, 20):
        found = sl.evaluate(
            model, x, y, maps, "pointing_game", engine=engine, tolerance=tolerance,
            masks=masks.expand(len(points), -1, -1, -1),
        )  # fmt: skip
        assert found.tolist() == [float(distance <= tolerance) for distance in distances]
    empty = torch.zeros(len(points), 1, size, size)
    assert np.isnan(sl.evaluate(model, x, y, maps, "pointing_game", tolerance=20, masks=empty)).all()


def test_the_energy_pointing_game_is_attribution_localisation(scene, small):
    model, x, y, maps = scene
    masks = small("energy_pointing_game", x)["masks"]
    scores = maps.double().sum(1, keepdim=True).clamp_min(0)
    expected = (scores * masks).sum((1, 2, 3)) / scores.sum((1, 2, 3))
    for name in ("energy_pointing_game", "attribution_localisation"):
        np.testing.assert_allclose(sl.evaluate(model, x, y, maps, name, masks=masks), expected)
