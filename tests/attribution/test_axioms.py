"""What theory says a map must be, on linear and two-layer ReLU networks drawn at random."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from saliency_lab.attribution import attribute

SEEDS = st.integers(0, 10_000)
EXAMPLES = settings(max_examples=12, deadline=None)
PIXELS = (torch.arange(9)).reshape(3, 3)
DIFFERENCE_METHODS = {
    "integrated_gradients": {"steps": 300, "quadrature": "middle"},
    "deep_lift": {},
    "lrp": {"preset": "epsilon", "epsilon": 1e-9},
    "input_x_gradient": {},
}
PIXEL_METHODS = {
    "occlusion": {"window": 1, "stride": 1},
    "feature_ablation": {"segments": PIXELS},
    "shapley_value_sampling": {"segments": PIXELS, "n": 2},
}


def _draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _linear(source: torch.Generator) -> nn.Sequential:
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3, bias=False))
    model[1].weight.data = torch.randn(3, 9, generator=source)
    return model


def _two_layers(source: torch.Generator) -> nn.Sequential:
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=source)
    return model


def _images(source: torch.Generator) -> Tensor:
    return torch.rand(2, 1, 3, 3, generator=source)


@pytest.mark.parametrize("name", [*DIFFERENCE_METHODS, *PIXEL_METHODS])
@EXAMPLES
@given(seed=SEEDS)
def test_linear_model_is_input_times_weight(name, seed):
    source = _draw(seed)
    model, x = _linear(source), _images(source)
    expected = x * model[1].weight[1].reshape(1, 1, 3, 3).detach()
    options = {**DIFFERENCE_METHODS, **PIXEL_METHODS}[name]
    maps = attribute(model, x, method=name, target=1, **options).values
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", ["integrated_gradients", "deep_lift"])
@EXAMPLES
@given(seed=SEEDS)
def test_completeness(name, seed):
    source = _draw(seed)
    model, x = _two_layers(source), _images(source)
    base = torch.rand(1, 3, 3, generator=source)
    maps = attribute(model, x, method=name, target=0, baseline=base, **DIFFERENCE_METHODS[name])
    with torch.no_grad():
        gap = (model(x) - model(base[None]))[:, 0]
    size = 0.05 if name == "integrated_gradients" else 1e-4
    torch.testing.assert_close(maps.values.flatten(1).sum(1), gap, rtol=0, atol=size)


@pytest.mark.parametrize(
    "name", ["saliency", *DIFFERENCE_METHODS, *PIXEL_METHODS, "guided_backprop", "deconvolution"]
)
@EXAMPLES
@given(seed=SEEDS, pixel=st.integers(0, 8))
def test_dummy_pixel_gets_nothing(name, seed, pixel):
    source = _draw(seed)
    model, x = _two_layers(source), _images(source)
    model[1].weight.data[:, pixel] = 0
    options = {**DIFFERENCE_METHODS, **PIXEL_METHODS}.get(name, {})
    maps = attribute(model, x, method=name, target=0, **options).values
    torch.testing.assert_close(maps.flatten(1)[:, pixel], torch.zeros(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["saliency", *DIFFERENCE_METHODS, "occlusion", "feature_ablation"])
@EXAMPLES
@given(seed=SEEDS)
def test_symmetric_pixels_get_the_same(name, seed):
    source = _draw(seed)
    model, x = _two_layers(source), _images(source)
    model[1].weight.data[:, 4] = model[1].weight.data[:, 7]
    x[:, 0, 1, 1] = x[:, 0, 2, 1]
    options = {**DIFFERENCE_METHODS, **PIXEL_METHODS}.get(name, {})
    flat = attribute(model, x, method=name, target=0, **options).values.flatten(1)
    torch.testing.assert_close(flat[:, 4], flat[:, 7], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["integrated_gradients", "occlusion"])
@EXAMPLES
@given(seed=SEEDS)
def test_sensitivity(name, seed):
    """Image and baseline differ in one pixel: it gets the difference of the scores, the others nothing.

    Between two steps of integrated gradients a hidden unit may switch, which is an error of at most one step
    times the change of the slope.
    """
    source = _draw(seed)
    model, x = _two_layers(source), _images(source)
    base = x.clone()
    base[:, 0, 0, 2] = 1 - base[:, 0, 0, 2]
    options = {**DIFFERENCE_METHODS, **PIXEL_METHODS}[name]
    maps = attribute(model, x, method=name, target=0, baseline=base, **options).values.flatten(1)
    with torch.no_grad():
        gap = (model(x) - model(base))[:, 0]
    switches = (model[3].weight[0] * model[1].weight[:, 2]).abs().sum() * (x - base)[:, 0, 0, 2].abs()
    error = switches.detach() / options["steps"] if name == "integrated_gradients" else torch.zeros(2)
    assert ((maps[:, 2] - gap).abs() <= error + 1e-5).all()
    others = maps[:, [0, 1, *range(3, 9)]]
    torch.testing.assert_close(others, torch.zeros_like(others), rtol=0, atol=1e-5)


@EXAMPLES
@given(seed=SEEDS)
def test_implementation_invariance(seed):
    """The same function from other weights: hidden units permuted and scaled. DeepLIFT keeps it here too."""
    source = _draw(seed)
    model, x = _two_layers(source), _images(source)
    order, scale = torch.randperm(6, generator=source), 0.5 + torch.rand(6, generator=source)
    twin = _two_layers(source)
    twin[1].weight.data = model[1].weight.data[order] * scale[:, None]
    twin[1].bias.data = model[1].bias.data[order] * scale
    twin[3].weight.data = model[3].weight.data[:, order] / scale
    twin[3].bias.data = model[3].bias.data
    for name in ("saliency", "integrated_gradients", "deep_lift", "occlusion"):
        options = {**DIFFERENCE_METHODS, **PIXEL_METHODS}.get(name, {})
        maps = [attribute(each, x, method=name, target=2, **options).values for each in (model, twin)]
        torch.testing.assert_close(*maps, rtol=1e-3, atol=1e-4)


@EXAMPLES
@given(seed=SEEDS)
def test_two_layer_saliency_in_closed_form(seed):
    source = _draw(seed)
    model, x = _two_layers(source), _images(source)
    first, second = model[1].weight.double(), model[3].weight.double()
    hidden = x.flatten(1).double() @ first.T + model[1].bias.double()
    expected = ((hidden > 0) * second[1]) @ first
    maps = attribute(model, x, method="saliency", target=1).values
    torch.testing.assert_close(maps.flatten(1).double(), expected.detach(), rtol=1e-4, atol=1e-5)
    back = (hidden > 0) * second[1].clamp_min(0)
    guided = attribute(model, x, method="guided_backprop", target=1).values.flatten(1).double()
    torch.testing.assert_close(guided, (back @ first).detach(), rtol=1e-4, atol=1e-5)
