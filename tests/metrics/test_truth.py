"""Metrics on data whose true map is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import saliency_lab as sl
from saliency_lab.data.planted import PlantedNet, true_map
from saliency_lab.metrics.catalogue import METRICS


@pytest.fixture(scope="module")
def planted():
    """Truth, gradient, random and inverted truth on 24 planted images; random has the truth's length."""
    x, y = sl.load_dataset("planted").test.sample(24)
    net = PlantedNet().eval()
    truth = true_map(x, y)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noise *= (truth.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1))[:, None, None, None]
    gradient = sl.attribute(net, x, y, method="saliency").values
    return net, x, y, {"truth": truth, "gradient": gradient, "random": noise, "inverted": -truth}


SETTINGS = {
    "faithfulness_correlation": {"runs": 40, "subset_size": 100},
    "sensitivity_n": {"runs": 20},
    "irof": {"segments": 60},
}


@pytest.mark.parametrize(
    "name",
    [
        "faithfulness_correlation", "faithfulness_estimate", "sensitivity_n", "infidelity", "pixel_flipping",
        "deletion", "insertion", "masked_input_accuracy", "masked_input_accuracy_lowest", "selectivity",
        "region_perturbation", "irof",
    ],
)  # fmt: skip
def test_truth_beats_gradient_beats_random_beats_inverted_truth(planted, name):
    net, x, y, maps = planted
    sign = 1 if METRICS[name].better == "higher" else -1
    scores = [
        sign * np.nanmean(sl.evaluate(net, x, y, map_, name, **SETTINGS.get(name, {})))
        for map_ in maps.values()
    ]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4


@pytest.mark.parametrize("name", ["monotonicity", "monotonicity_correlation", "road"])
def test_metrics_that_the_sign_of_the_map_can_mislead_still_tell_truth_from_random(planted, name):
    net, x, y, maps = planted
    sign = 1 if METRICS[name].better == "higher" else -1
    truth, gradient, random = (
        sign * np.nanmean(sl.evaluate(net, x, y, maps[key], name)) for key in ("truth", "gradient", "random")
    )
    assert truth > gradient > random


@pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name].family == "localisation"])
def test_localisation_finds_the_pattern_and_the_quadrant(name):
    x, y, masks = sl.load_dataset("planted").test.located(16)
    net = PlantedNet().eval()
    truth = true_map(x, y)
    best = {"top_k_intersection": 32 / 58}.get(name, 1.0)  # a tenth of 576 pixels, of which 32 are inside
    np.testing.assert_allclose(sl.evaluate(net, x, y, truth, name, masks=masks), best, atol=1e-6)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    assert np.nanmean(sl.evaluate(net, x, y, noise, name, masks=masks)) < 0.6 * best

    x, y, masks = sl.load_dataset("mosaic").test.located(40)
    inside = masks.float() + 0.01 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    model = sl.build_model("small_cnn", input_shape=(1, 56, 56), num_classes=5, seed=0)
    assert (sl.evaluate(model, x, y, inside, name, masks=masks) > 0.97).all()
    anywhere = torch.rand(x.shape, generator=torch.Generator().manual_seed(2))
    chance = {"auc": 0.5}.get(name, 0.25)
    assert abs(np.mean(sl.evaluate(model, x, y, anywhere, name, masks=masks)) - chance) < 0.2
