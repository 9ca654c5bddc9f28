"""Defaults are fractions of the image, and the cost is known before it is paid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab._common.progress import show_progress
from saliency_lab.attribution import Attributions
from saliency_lab.experiment.schema import bundled_study, list_studies, read_declaration
from saliency_lab.metrics import cost, evaluate_detailed
from saliency_lab.metrics.api import make_job
from saliency_lab.metrics.catalogue import METRICS, stored_settings
from saliency_lab.metrics.sizes import SizedSettings, parse_size, pixels_of
from saliency_lab.study.requests import read_metrics
from saliency_lab.study.sample import StudySample

SIZED = [name for name in METRICS if issubclass(METRICS[name].settings, SizedSettings)]
AT_28 = {
    "faithfulness_correlation": {"subset_size": 224},
    "infidelity": {"patch_sizes": (4,)},
    "non_sensitivity": {"patch_size": 4},
    "selectivity": {"patch_size": 4},
    "region_perturbation": {"patch_size": 4},
    "continuity": {"max_shift": 4, "step": 1},
}
"""What the defaults were, in pixels, when they were written for 28×28 images."""


@pytest.mark.parametrize("name", SIZED)
def test_defaults_at_28_pixels_are_what_they_were(name):
    sized = dict(METRICS[name].settings().at_size(28, 28))
    assert {key: sized[key] for key in AT_28[name]} == AT_28[name]
    assert set(AT_28) == set(SIZED)


def test_a_fraction_and_its_pixels_are_one_request():
    settings = METRICS["selectivity"].settings
    for given in ("1/7", 1 / 7, 8):
        assert stored_settings(settings(patch_size=given), 56, 56)["patch_size"] == 8


@pytest.mark.parametrize("size", [32, 56, 224])
def test_the_cost_at_another_size_is_that_at_28(size):
    """Within the rounding of a patch to whole pixels."""
    at, here = sl.list_metrics()["forwards"], sl.list_metrics(image_size=size)["forwards"]
    assert (here <= 1.4 * at + 1).all()
    assert (sl.list_metrics(image_size=size)["maps"] == sl.list_metrics()["maps"]).all() or size == 32
    four_pixels = METRICS["infidelity"].settings(patch_sizes=(4,))
    assert METRICS["infidelity"].forwards(four_pixels, 224**2) == 3137


@pytest.mark.parametrize("name", [name for name in SIZED if name != "continuity"])
def test_a_call_records_pixels(scene, name):
    model, x, y, maps = scene
    recorded = evaluate_detailed(model, x, y, maps, name).settings
    for key, value in dict(METRICS[name].settings().at_size(12, 12)).items():
        assert recorded[key] == value
    np.testing.assert_array_equal(
        sl.evaluate(model, x, y, maps, name),
        sl.evaluate(model, x, y, maps, name, **{key: recorded[key] for key in AT_28[name]}),
    )


@pytest.mark.parametrize("bad", [0, -1, 0.0, 1.5, "0", "a", "1/0", True, None, float("nan")])
def test_a_size_is_pixels_or_a_fraction(scene, bad):
    with pytest.raises(InputError, match=r"'patch_size'.*a number of pixels, or a fraction of the image"):
        sl.evaluate(*scene, "selectivity", patch_size=bad)


def test_sizes_are_rounded_and_at_least_a_pixel():
    assert [pixels_of(parse_size(size), 32) for size in (5, "1/7", 0.5, 1.0, 1e-9)] == [5, 5, 16, 32, 1]


def test_settings_added_later_are_no_part_of_the_key_where_nothing_changes():
    continuity = METRICS["continuity"].settings
    assert stored_settings(continuity(), 28, 28) == {"explain": None, "max_shift": 4}
    assert stored_settings(continuity(max_shift=4), 56, 56) == {"explain": None, "max_shift": 4, "step": 2}


def test_bundled_studies_of_other_sizes_give_their_sizes_in_pixels():
    """So that their numbers do not depend on the defaults."""
    checked = 0
    for study in list_studies().index:
        declaration = read_declaration(bundled_study(study))
        name = declaration.data.name if declaration.data else None
        if name is None or not declaration.metrics or name in ("mnist", "fashion_mnist", "digits"):
            continue
        x, y = torch.zeros(1, 3, 64, 64), torch.zeros(1, dtype=torch.long)
        for request in read_metrics(declaration.metrics, StudySample(x, y, x[:, :1] == 0)):
            settings = METRICS.find(request.what).settings
            if issubclass(settings, SizedSettings):
                checked += 1
                given = settings(**{key: value for key, value in request.settings.items() if key != "engine"})
                assert given.at_size(8, 8) == given, f"{study}: {request.label}"
    assert checked


class TestEstimate:
    def test_of_forward_passes_and_maps(self, scene):
        model, x, _, maps = scene
        made = Attributions(values=maps, method="saliency", settings={}, target="label", seconds=12.0, seed=0,
                            classes=torch.zeros(6, dtype=torch.long), provenance={})  # fmt: skip
        jobs = [make_job(name, {}, None) for name in ("pixel_flipping", "max_sensitivity", "mprt")]
        found = cost.estimate(model, x, {"a": made, "b": made}, jobs, 0.5)
        assert found == [6 * 2 * 29 * 0.5, 6 * 2 * 10 * 2.0, 6 * 2 * 2 * 2.0]  # two layers
        assert cost.estimate(model, x, {"a": maps}, jobs[1:2], 0.5) == [6 * 10 * 1.5]

    def test_is_shown_before_more_than_a_minute_of_work(self, scene, monkeypatch, capsys):
        model, x, y, maps = scene
        show_progress(True)
        try:
            sl.evaluate(model, x, y, maps, "infidelity")
            assert "takes up to" not in capsys.readouterr().err
            monkeypatch.setattr(cost, "LONG", 1e-9)
            monkeypatch.setattr(cost, "_measured", lambda model, x: 1.0)
            sl.evaluate(model, x, y, maps, "infidelity")
            shown = capsys.readouterr().err
            assert "scoring the maps of 6 images takes up to" in shown
            assert "list_metrics(image_size=12)" in shown
            sl.evaluate(model, x, y, maps, "sparseness")
            assert "takes up to" not in capsys.readouterr().err
            show_progress(False)
            sl.evaluate(model, x, y, maps, "infidelity")
            assert "takes up to" not in capsys.readouterr().err
        finally:
            show_progress(False)


@pytest.mark.parametrize("bad", [0, -3, 2.5, "224", True])
def test_an_image_size_is_a_side_in_pixels(bad):
    with pytest.raises(InputError, match="image_size must be a whole number from 1"):
        sl.list_metrics(image_size=bad)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny"])
def test_networks_of_torchvision_and_timm_at_224_pixels(name):
    """With random weights, behind a normalisation: every metric but those that make maps again is finite."""
    import timm
    import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "resnet18":
            net = torchvision.models.resnet18(num_classes=6)
        else:
            net = timm.create_model("vit_tiny_patch16_224", num_classes=6)
    model = sl.Normalised(net, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).eval()
    source = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 28, 28, generator=source).repeat_interleave(8, 2).repeat_interleave(8, 3)
    y = model(x).argmax(1)
    maps = sl.attribute(model, x, y, "input_x_gradient")
    masks = torch.zeros(1, 1, 224, 224)
    masks[..., 60:160, 60:160] = 1
    metrics = {}
    for each in METRICS:
        metric = METRICS[each]
        if metric.maps is None and not metric.whole:
            metrics[each] = {"masks": masks} if metric.family == "localisation" else {}
    metrics["faithfulness_correlation"] = {"runs": 10}
    metrics["sensitivity_n"] = {"runs": 5}
    metrics["monotonicity_correlation"] = {"steps": 8, "samples": 2}
    metrics["irof"] = {"segments": 20}
    metrics["sic"] = metrics["aic"] = {"thresholds": (0.1, 0.5), "minimum": 0.0}
    found = sl.evaluate_many(model, x, y, {"map": maps}, metrics)["map"]
    assert {each for each, scores in found.items() if not np.isfinite(scores.values).all()} <= {"sic", "aic"}
    assert found["infidelity"].settings["patch_sizes"] == (32,)
    for each in ("pixel_flipping", "selectivity", "road", "faithfulness_correlation"):
        given = {"steps": 28} if each == "pixel_flipping" else metrics[each]
        other = sl.evaluate(model, x, y, maps, each, engine="quantus", **given)
        np.testing.assert_allclose(found[each].values, other, atol=1e-4)
