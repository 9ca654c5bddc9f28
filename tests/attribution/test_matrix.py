"""Every method on every network of `benchmarks/networks.py`: a map, or a refusal with the true cause."""

from __future__ import annotations

import importlib.util
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from saliency_lab._common.errors import InputError
from saliency_lab.attribution import attribute, list_methods

pytestmark = pytest.mark.slow


def _load() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "networks.py"
    spec = importlib.util.spec_from_file_location("networks", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["networks"] = module  # where dataclasses look up its annotations
    spec.loader.exec_module(module)
    return module


networks = _load()
COMPLETE = {"deep_lift", "deep_lift_shap"}


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_method_gives_a_map_or_says_why_not(name):
    network = networks.NETWORKS[name]
    model, image = network.prepared()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for method in list_methods().index:
        cause = network.cause(method)
        if cause is not None:
            with pytest.raises(InputError, match=rf"^{method} .*({cause})") as refusal:
                networks.run(method, model, image)
            assert re.search("use .?'[a-z_]+'", str(refusal.value), re.IGNORECASE), "no alternative is named"
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message="Objective did not converge")  # LIME, on 8 samples
            maps = networks.run(method, model, image)
        assert maps.values.shape == image.shape and maps.values.isfinite().all(), method
        assert method == "constant" or maps.values.std() > 0, method
        if method in COMPLETE:
            assert maps.completeness_error.max() < 1e-2, method
    assert all((value == before[key]).all() for key, value in model.state_dict().items())


GAMES = {"shapley_values": {}, "shapley_value_sampling": {"n": 1}, "kernel_shap": {"n": 12}}
"""Methods whose superpixels share f(x) − f(baseline)."""
SIGNED, POSITIVE = ("epsilon", "gamma"), ("alpha1_beta0", "epsilon_plus", "excitation_backprop")
"""Presets of LRP. The positive ones lose the relevance of a unit without positive contributions.

No such unit has relevance where a ReLU follows every layer or sum, as in the families of `RECTIFIED`.
"""
RECTIFIED = ("ResNet", "VGG, AlexNet")


def without_biases(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(bias := getattr(module, "bias", None), Tensor):
            bias.data.zero_()
        if isinstance(mean := getattr(module, "running_mean", None), Tensor):
            mean.zero_()
    return model


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_what_is_promised_to_sum_up_does(name):
    """In float64. Paths are so short that the integral has next to no error, whatever the network."""
    network = networks.NETWORKS[name]
    model, image = network.prepared()
    model, image = model.double(), image.double()
    short = {"steps": 4, "baseline": image[0] * (1 - 1e-7)}
    paths = {"integrated_gradients": short, "guided_ig": short, "blur_ig": {"steps": 4, "sigma": 0.175}}
    for method, settings in paths.items():
        maps = attribute(model, image, method=method, target=1, **settings)
        assert maps.completeness_error.max() < 1e-3, method
    half = network.side // 2
    quarters = (torch.arange(network.side) >= half).long()
    quarters = 2 * quarters[:, None] + quarters
    with torch.no_grad():
        gap = (model(image) - model(torch.zeros_like(image)))[0, 1]
    for method, settings in GAMES.items():
        values = attribute(model, image, method=method, target=1, segments=quarters, **settings).values[0, 0]
        assert values[::half, ::half][:2, :2].sum() == pytest.approx(float(gap), rel=1e-3), method
    if network.cause("lrp") is None:
        model = without_biases(model)
        score = float(model(image)[0, 1].detach())
        for preset in SIGNED + POSITIVE * (network.family in RECTIFIED):
            maps = attribute(model, image, method="lrp", target=1, preset=preset, epsilon=1e-12)
            assert float(maps.values.double().sum()) == pytest.approx(score, rel=1e-3), preset
