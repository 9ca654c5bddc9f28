"""Metrics on data whose true map is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import saliency_lab as sl
from saliency_lab.data.planted import ACROSS, CELL, PLANTED, PlantedNet, true_map
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


def cells_of(values):
    """Sums (N, 9) over the cells of images (N, 1, 24, 24)."""
    return torch.nn.functional.avg_pool2d(values.double(), CELL, divisor_override=1).flatten(1)


@pytest.mark.parametrize("variant", PLANTED)
def test_the_network_knows_the_label_and_the_true_map_is_complete(variant):
    x, y, masks = sl.load_dataset(variant).test.located(60)
    net, truth = PLANTED[variant].net().eval(), PLANTED[variant].true_map(x, y)
    assert (net(x).argmax(1) == y).all()
    assert (sl.evaluate(net, x, y, truth, "completeness") < 1e-5).all()
    assert (truth[~masks] == 0).all() and (truth[masks] > 0).all()
    gradient = sl.attribute(net, x, y, "saliency").values
    assert (gradient[truth != 0] == 0).float().mean() > 0.3  # saturated pixels, which matter all the same


@pytest.mark.parametrize("variant", PLANTED)
def test_the_true_map_holds_the_shapley_values_of_the_cells(variant):
    """By the definition: the mean marginal contribution over all orders in which cells are shown."""
    x, y, masks = sl.load_dataset(variant).test.located(12)
    net, truth = PLANTED[variant].net().eval(), PLANTED[variant].true_map(x, y)
    for image, label, mask, sums in zip(x, y, masks, cells_of(truth), strict=True):
        players = cells_of(mask[None]).squeeze(0).nonzero().flatten().tolist()
        values = {}
        for shown in [()] + [(p,) for p in players] + [tuple(players)]:
            keep = torch.zeros(ACROSS * ACROSS)
            keep[list(shown)] = 1
            keep = keep.reshape(1, ACROSS, ACROSS).repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
            values[shown] = net((image * keep)[None])[0, label].item()
        both = tuple(players)
        for player in players:
            if len(players) == 1:
                expected = values[both] - values[()]
            else:
                (other,) = set(players) - {player}
                expected = (values[(player,)] - values[()] + values[both] - values[(other,)]) / 2
            assert sums[player].item() == pytest.approx(expected, abs=1e-5)


def test_non_sensitivity_of_a_confident_network_prefers_the_true_map():
    """With probabilities, the softmax hides what a saturated network looks at."""
    x, y = sl.load_dataset("planted").test.sample(24)
    truth = true_map(x, y)

    class Confident(PlantedNet):
        def forward(self, x):
            return 3 * super().forward(x)

    one_patch = torch.zeros_like(truth)
    one_patch[:, :, :3, :3] = 1
    score = {
        (name, output): sl.evaluate(Confident().eval(), x, y, given, "non_sensitivity", output=output).mean()
        for name, given in (("truth", truth), ("patch", one_patch))
        for output in ("logit", "probability")
    }
    assert score["truth", "logit"] < 0.5 * score["patch", "logit"]
    assert score["truth", "probability"] > score["truth", "logit"]
    assert sl.evaluate(Confident().eval(), x, y, truth, "non_sensitivity").mean() == score["truth", "logit"]


def test_infidelity_of_redundant_evidence_prefers_a_map_of_less_to_the_true_one():
    """Removing one of two copies changes nothing, so the map that says nothing is without error."""
    x, y = sl.load_dataset("planted_redundant").test.sample(24)
    net, truth = PLANTED["planted_redundant"].net().eval(), PLANTED["planted_redundant"].true_map(x, y)
    noise = 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    small, whole = (
        [sl.evaluate(net, x, y, given, "infidelity", patch_sizes=sizes).mean() for given in (truth, noise)]
        for sizes in (("1/7",), (1.0,))
    )
    assert small[0] > 2 * small[1]
    assert whole[0] < whole[1]


def test_infidelity_depends_on_the_length_of_the_map(planted):
    """The gradient is three times as long as the truth, and errs about as much as a map of zeros."""
    net, x, y, maps = planted
    length = maps["gradient"].flatten(1).norm(dim=1) / maps["truth"].flatten(1).norm(dim=1)
    scaled = maps["gradient"] / length[:, None, None, None]
    zeros, long, short, noise = (
        sl.evaluate(net, x, y, given, "infidelity", patch_sizes=(3,)).mean()
        for given in (torch.zeros_like(x), maps["gradient"], scaled, maps["random"])
    )
    assert 2.5 < float(length.mean()) < 4
    assert short < 0.7 * zeros < zeros < noise < 1.15 * zeros
    assert 0.85 * zeros < long < 1.25 * zeros
