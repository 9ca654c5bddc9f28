"""Gradient methods and noise tunnels against Captum called directly."""

from __future__ import annotations

from unittest import mock

import captum.attr as ca
import pytest
import torch
from captum.attr._core.gradient_shap import InputBaselineXGradient

from saliency_lab._common.seeding import sample_normal, sample_seeds
from saliency_lab.attribution import attribute
from saliency_lab.attribution.gradient import quadrature


def test_saliency_is_captums_with_its_sign(net, batch):
    x, y = batch
    ours = attribute(net, x, y, "saliency").values
    theirs = ca.Saliency(net).attribute(x.clone(), target=y, abs=False)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (ours < 0).any()


def test_input_x_gradient_is_captums(rgb_net, rgb_batch):
    x, y = rgb_batch
    ours = attribute(rgb_net, x, y, "input_x_gradient").values
    torch.testing.assert_close(
        ours, ca.InputXGradient(rgb_net).attribute(x.clone(), target=y), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("gauss_legendre", "gausslegendre"),
        ("trapezoid", "riemann_trapezoid"),
        ("middle", "riemann_middle"),
        ("left", "riemann_left"),
        ("right", "riemann_right"),
    ],
)
def test_integrated_gradients_is_captums(net, batch, ours, theirs):
    x, y = batch
    base = torch.full_like(x[0], 0.3)
    maps = attribute(net, x, y, "integrated_gradients", steps=20, quadrature=ours, baseline=base)
    captum, delta = ca.IntegratedGradients(net).attribute(
        x, base.expand_as(x), target=y, n_steps=20, method=theirs, return_convergence_delta=True
    )
    if ours == "trapezoid":  # Captum's weights sum to (steps − 1) / steps there, so its maps fall short
        captum = captum * 20 / 19
    else:
        torch.testing.assert_close(maps.delta, delta.double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(maps.values, captum.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", ["gauss_legendre", "trapezoid", "middle", "left", "right"])
def test_quadrature_integrates_a_line(rule):
    nodes, weights = quadrature(rule, 40)
    assert weights.sum().item() == pytest.approx(1)
    error = abs((weights * nodes).sum().item() - 0.5)
    assert error <= (1e-12 if rule in {"gauss_legendre", "trapezoid", "middle"} else 1 / 80 + 1e-12)


def test_integrated_gradients_is_complete(net, batch):
    x, y = batch
    maps = attribute(net, x, y, "integrated_gradients", steps=200)
    with torch.no_grad():
        rows = torch.arange(len(x))
        gap = (net(x) - net(torch.zeros_like(x)))[rows, y]
    torch.testing.assert_close(maps.total.float(), gap)
    torch.testing.assert_close(maps.values.flatten(1).sum(1), gap, rtol=0, atol=5e-3)
    assert torch.equal(maps.completeness_error, maps.delta.abs() / maps.total.abs())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("smoothgrad", "smoothgrad"), ("smoothgrad_sq", "smoothgrad_sq"), ("vargrad", "vargrad")],
)
@pytest.mark.parametrize("base", ["saliency", "input_x_gradient"])
def test_noise_tunnels_are_captums_given_the_same_noise(net, batch, ours, theirs, base):
    x, y = batch
    draws = 5
    maps = attribute(net, x, y, ours, n=draws, stdev=0.2, base=base, seed=3).values
    noise = sample_normal(sample_seeds(x, 3, "noise 0"), (draws, *x.shape[1:]))
    inner = {"saliency": ca.Saliency, "input_x_gradient": ca.InputXGradient}[base](net)
    extra = {"abs": False} if base == "saliency" else {}
    with mock.patch(
        "captum.attr._core.noise_tunnel.torch.normal", lambda mean, std: std * noise.flatten(0, 1)
    ):
        expected = ca.NoiseTunnel(inner).attribute(x, theirs, nt_samples=draws, stdevs=0.2, target=y, **extra)
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-5)


def test_noise_beyond_one_block_is_drawn_anew(net, batch):
    """20 draws cross the blocks of 16 in which noise is drawn."""
    x, y = batch
    maps = attribute(net, x, y, "smoothgrad", n=20, stdev=0.1).values
    blocks = [
        sample_normal(sample_seeds(x, 0, f"noise {first}"), (count, *x.shape[1:]))
        for first, count in ((0, 16), (16, 4))
    ]
    points = [(x + 0.1 * noise).requires_grad_() for noise in torch.cat(blocks, 1).unbind(1)]
    gradients = [torch.autograd.grad(net(each).gather(1, y[:, None]).sum(), each)[0] for each in points]
    torch.testing.assert_close(maps, torch.stack(gradients).mean(0), rtol=0, atol=1e-5)


def test_zero_noise_is_the_base_method(net, batch):
    x, y = batch
    plain = attribute(net, x, y, "integrated_gradients", steps=8).values
    tunnel = attribute(
        net, x, y, "smoothgrad", stdev=0, n=3, base="integrated_gradients", base_settings={"steps": 8}
    ).values
    torch.testing.assert_close(tunnel, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        attribute(net, x, y, "vargrad", stdev=0, n=3).values, torch.zeros_like(x), rtol=0, atol=1e-12
    )


def test_gradient_shap_is_captums_given_the_same_draws(net, batch):
    """Captum draws baselines and coefficients from NumPy's global generator; here the draws are ours."""
    x, y = batch
    baselines = torch.rand(3, *x.shape[1:], generator=torch.Generator().manual_seed(8))
    maps = attribute(net, x, y, "gradient_shap", baselines=baselines, n=4, seed=5)
    chosen, alpha = [], []
    for seed in sample_seeds(x, 5, "expected"):
        source = torch.Generator().manual_seed(seed)
        chosen.append(torch.empty(4, dtype=torch.int64).random_(0, 3, generator=source))
        alpha.append(torch.empty(4).uniform_(generator=source))
    draws = []
    for k in range(4):
        base = baselines[torch.stack(chosen)[:, k]]
        coefficients = torch.stack(alpha)[:, k].double().numpy()
        with mock.patch("captum.attr._core.gradient_shap.np.random.uniform", return_value=coefficients):
            explainer = InputBaselineXGradient(net)
            draws.append(explainer.attribute(x.clone(), base, target=y).float())
    torch.testing.assert_close(maps.values, torch.stack(draws).mean(0), rtol=0, atol=1e-5)
    with torch.no_grad():
        rows = torch.arange(len(x))
        start = net(baselines)[:, y].mean(0)
        torch.testing.assert_close(maps.total.float(), net(x)[rows, y] - start)


def test_gradient_shap_converges_to_the_difference(net, batch):
    x, y = batch
    baselines = torch.rand(2, *x.shape[1:], generator=torch.Generator().manual_seed(8))
    deltas = [
        attribute(net, x, y, "gradient_shap", baselines=baselines, n=n).delta.abs().mean() for n in (4, 600)
    ]
    assert deltas[1] < deltas[0] / 3
