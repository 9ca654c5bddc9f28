"""Every setting of every method changes the map, or is refused where it means nothing; in both engines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saliency_lab._common.errors import InputError
from saliency_lab.attribution import attribute, list_methods
from saliency_lab.attribution.catalogue import CAPTUM, METHODS

IMAGES = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
OTHERS = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(2))
CLASSES = torch.tensor([0, 1])
LAYER = {"layer": "0", "relu": False, "interpolation": "nearest"}
BASELINE, NOISE_OF = {"baseline": "mean"}, {"steps": 3}
NOISE = {"n": 3, "stdev": 0.5, "base": "input_x_gradient", "base_settings": NOISE_OF}
NOISY = ("smoothgrad", "smoothgrad_sq", "vargrad")
SEGMENTED = {"segments": 3, "baseline": "mean"}


def few(kept: Tensor) -> float:
    return float(kept.sum() <= 2)


CHANGES: dict[str, dict[str, Any]] = {
    "saliency": {},
    "input_x_gradient": {},
    "integrated_gradients": {"steps": 3, "quadrature": "left", **BASELINE},
    "guided_ig": {"steps": 3, "fraction": 0.9, "distance": 0.3, **BASELINE},
    "blur_ig": {"steps": 3, "sigma": 2.0},
    "xrai": {"steps": 3, "scales": [20.0], "smallest": 0.2},
    "gradient_shap": {"baselines": OTHERS, "n": 3, "stdev": 0.5},
    **dict.fromkeys(NOISY, NOISE),
    "guided_backprop": {},
    "deconvolution": {},
    "deep_lift": BASELINE,
    "deep_lift_shap": {"baselines": OTHERS},
    "lrp": {"preset": "epsilon", "epsilon": 0.5, "gamma": 2.0, "rules": {"0": "w_square"}},
    "attn_lrp": {"epsilon": 0.5, "gamma": 2.0},
    **dict.fromkeys(["grad_cam", "guided_grad_cam", "grad_cam_plus_plus", "layer_cam", "hires_cam"], LAYER),
    **dict.fromkeys(["xgrad_cam", "eigen_cam", "score_cam", "ablation_cam"], LAYER),
    "full_grad": {"interpolation": "nearest"},
    "layer_conductance": {"layer": "0", "steps": 3, "interpolation": "nearest", **BASELINE},
    "attention_rollout": {
        "prefix_tokens": 0,
        "interpolation": "nearest",
        "heads": "max",
        "residual": 0.1,
    },
    "attention_relevance": {"prefix_tokens": 0, "interpolation": "nearest"},
    "occlusion": {"window": 4, "stride": 2, **BASELINE},
    "feature_ablation": SEGMENTED,
    "shapley_value_sampling": {**SEGMENTED, "n": 2},
    "shapley_values": SEGMENTED,
    "kernel_shap": {**SEGMENTED, "n": 10, "kernel": few},
    "lime": {**SEGMENTED, "n": 10, "alpha": 0.1, "kernel": few, "kernel_width": 0.1},
    "rise": {"n": 10, "cells": 3, "probability": 0.2, **BASELINE},
    **{name: {} for name in ("random", "edges", "input", "constant")},
}
"""For each method, another value of each of its settings."""

START: dict[str, dict[str, Any]] = {
    "gradient_shap": {"baselines": OTHERS[:1] / 2},
    "deep_lift_shap": {"baselines": OTHERS[:2] / 2},
    "occlusion": {"window": 3, "stride": 1},
    "lime": {"segments": 6, "n": 40, "alpha": 1e-3},
    "kernel_shap": {"segments": 6, "n": 40},
    "shapley_values": {"segments": 6},
    "shapley_value_sampling": {"segments": 6, "n": 5},
    "layer_conductance": {"layer": "3"},
    **{name: {"layer": "3"} for name, given in CHANGES.items() if given is LAYER},
}
"""What else is given, where the default would not do."""

WITH = {
    ("lrp", "gamma"): {"preset": "gamma"},
    **{(name, "base_settings"): {"base": "integrated_gradients"} for name in NOISY},
}
"""Settings that mean something only with others, and these."""

REFUSED = {
    ("attention_rollout", "prefix_tokens"): "needs a grid of patches",
    ("attention_relevance", "prefix_tokens"): "needs a grid of patches",
}
"""Where another value of a setting would be wrong on the network here, and why."""

REFUSED_BY_CAPTUM = {
    ("lrp", "rules"): "not rules by module",
    **{(name, "base_settings"): "has noise tunnels over saliency" for name in NOISY},
}


class Small(nn.Module):
    """A vision transformer with one class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(1, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        layers = [nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2)]
        self.blocks, self.head = nn.Sequential(*layers), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.blocks(tokens)[:, 0])


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if METHODS[name].family == "attention":
        return Small().eval()
    bias = name != "lrp"  # Captum's LRP has the γ rule for layers without a bias
    convolutions = [nn.Conv2d(1, 4, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2)]
    last = nn.Tanh() if METHODS[name].family == "layer" else nn.ReLU()  # behind it, CAMs have both signs
    convolutions += [nn.Conv2d(4, 6, 3, padding=1, bias=bias), last]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(6 * 8 * 8, 5, bias=bias)).eval()


def maps(name: str, engine: str, **settings: Any) -> Tensor:
    return attribute(network(name), IMAGES, CLASSES, name, engine=engine, **settings).values


def test_every_setting_of_every_method_is_in_the_table():
    assert {name: set(METHODS[name].settings.model_fields) for name in list_methods().index} == {
        name: set(given) for name, given in CHANGES.items()
    }


@pytest.mark.filterwarnings("ignore:Objective did not converge")
@pytest.mark.parametrize(
    ("name", "setting", "engine"),
    [
        (name, setting, engine)
        for name, given in CHANGES.items()
        for setting in given
        for engine in (["fast", "captum"] if name in CAPTUM else ["fast"])
    ],
)
def test_a_setting_changes_the_map_or_is_refused(name, setting, engine):
    start = START.get(name, {}) | WITH.get((name, setting), {})
    changed = start | {setting: CHANGES[name][setting]}
    reasons = REFUSED if engine == "fast" else REFUSED_BY_CAPTUM
    if (reason := reasons.get((name, setting))) is not None:
        with pytest.raises(InputError, match=reason):
            maps(name, engine, **changed)
        return
    before = maps(name, engine, **start)
    after = maps(name, engine, **changed)
    assert before.std() > 0
    assert (after - before).abs().max() > 1e-3 * before.abs().max()


@pytest.mark.parametrize("given", [{}, {"preset": "epsilon"}, {"rules": {"0": "epsilon"}}])
def test_a_gamma_that_no_rule_has_is_refused(given):
    with pytest.raises(InputError, match=r"gamma=2 is the γ of the rule 'gamma', which neither preset="):
        maps("lrp", "fast", gamma=2.0, **given)
    ruled = given | {"rules": {"3": "gamma"}}
    assert not torch.equal(maps("lrp", "fast", **ruled), maps("lrp", "fast", gamma=2.0, **ruled))


def test_the_width_of_a_kernel_that_is_a_function_is_refused():
    with pytest.raises(InputError, match=r"kernel_width=0.5 belongs to the kernels 'cosine' and 'euclidean'"):
        maps("lime", "fast", kernel=few, kernel_width=0.5)


@pytest.mark.parametrize(
    "given", [{"kernel": few}, {"kernel": "euclidean", "kernel_width": 5.0}, {"kernel_width": 0.3}]
)
def test_both_engines_weigh_samples_by_the_kernel(given):
    settings = {"segments": 4, "n": 300, "alpha": 1e-4, **given}
    fast, slow = (maps("lime", engine, **settings) for engine in ("fast", "captum"))
    assert fast.flatten(1).any(1).all()
    torch.testing.assert_close(slow, fast, rtol=0, atol=0.2 * float(fast.abs().max()))
