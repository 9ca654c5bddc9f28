"""Where we differ from Captum 0.9: the lines of the table in docs/attribution.md that no other test shows."""

from __future__ import annotations

import copy

import captum.attr as ca
import numpy as np
import pytest
import torch
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, GammaRule, PropagationRule
from torch import Tensor, nn

from saliency_lab.attribution import attribute


class Reused(nn.Module):
    """One ReLU module used twice around a residual sum, no biases."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second, self.last = (
                nn.Linear(*s, bias=False) for s in ((144, 6), (6, 6), (6, 5))
            )
        self.relu, self.relu_again = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.first(x.flatten(1)))
        return self.last(hidden + self.relu(self.second(hidden)))


class UsedOnce(Reused):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(self.first(x.flatten(1)))
        return self.last(hidden + self.relu_again(self.second(hidden)))


def test_deep_lift_refuses_a_module_used_twice(batch):
    x, y = batch
    with pytest.raises(RuntimeError, match="used more than once"):
        ca.DeepLift(Reused()).attribute(x, target=y)
    maps = attribute(Reused(), x, y, "deep_lift")
    expected = ca.DeepLift(UsedOnce()).attribute(x, target=y).detach()
    torch.testing.assert_close(maps.values, expected, rtol=0, atol=1e-5)


class SharedLayer(nn.Module):
    """One linear layer used twice, or twice the same one; one ReLU module throughout."""

    def __init__(self, *, twice: bool) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.middle, self.last = (
                nn.Linear(*s, bias=False) for s in ((144, 6), (6, 6), (6, 5))
            )
        self.again = self.middle if twice else copy.deepcopy(self.middle)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.middle, self.again):
            x = self.relu(layer(x.flatten(1)))
        return self.last(x)


def test_lrp_refuses_a_layer_used_twice_but_no_relu(batch):
    x, y = batch
    with pytest.raises(RuntimeError, match="used more than once"):
        ca.LRP(SharedLayer(twice=True)).attribute(x.clone(), target=y)
    captums = ca.LRP(SharedLayer(twice=False)).attribute(x.clone(), target=y).detach()
    for twice in (False, True):
        maps = attribute(SharedLayer(twice=twice), x, y, "lrp", preset="epsilon", epsilon=1e-9)
        torch.testing.assert_close(maps.values, captums, rtol=1e-4, atol=1e-5)


def test_lrp_gives_both_branches_the_whole_relevance(batch):
    x, y = batch
    captums = ca.LRP(UsedOnce()).attribute(x.clone(), target=y).detach()
    maps = attribute(Reused(), x, y, "lrp", preset="epsilon", epsilon=1e-9)
    torch.testing.assert_close(maps.values.double().flatten(1).sum(1), maps.total, rtol=1e-3, atol=1e-5)
    assert ((captums.flatten(1).sum(1) - maps.total).abs() > 0.05 * maps.total.abs()).all()


def test_lrp_refuses_a_flatten_module(net, batch):
    x, y = batch
    with pytest.raises(TypeError, match="Flatten"):
        ca.LRP(net).attribute(x.clone(), target=y)
    assert attribute(net, x, y, "lrp").values.isfinite().all()


def test_gradient_shap_moves_with_numpys_global_generator(net, batch):
    x, y = batch
    explainer, base = ca.GradientShap(net), x.flip(0)

    def captums() -> Tensor:
        torch.manual_seed(0)
        return explainer.attribute(x, base, target=y, n_samples=2)

    def ours() -> Tensor:
        return attribute(net, x, y, "gradient_shap", baselines=base, n=2).values

    np.random.seed(0)  # noqa: NPY002 - the generator in question
    first = captums(), ours()
    np.random.seed(1)  # noqa: NPY002
    assert not torch.equal(captums(), first[0]) and torch.equal(ours(), first[1])


def test_layer_conductance_leaves_out_the_ends(net, batch):
    """A unit's conductances over the layer sum to f(x) − f(b) only if the line is walked from end to end."""
    x, y = batch
    with torch.no_grad():
        gap = (net(x) - net(torch.zeros_like(x)))[torch.arange(len(x)), y]
    captums = ca.LayerConductance(net, net[5]).attribute(x, target=y, n_steps=5).flatten(1).sum(1)
    coarse = attribute(net, x, y, "layer_conductance", layer="5", steps=5, interpolation="nearest").values
    ours = coarse[:, 0, 1::3, 1::3].flatten(1).sum(1)  # 4×4 units on 12×12 pixels
    assert (ours - gap).abs().mean() < (captums - gap).abs().mean()
    torch.testing.assert_close(ours, gap, rtol=1e-3, atol=1e-4)  # exact: linear behind this layer


def test_kernel_shap_moves_with_torchs_global_generator(net, batch):
    x, _ = batch
    mask = torch.arange(144).reshape(12, 12) // 18
    maps = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        maps.append(ca.KernelShap(net).attribute(x[:1], target=1, feature_mask=mask, n_samples=12))
    ours = attribute(net, x[:1], method="kernel_shap", target=1, segments=mask, n=12).values
    torch.manual_seed(5)
    again = attribute(net, x[:1], method="kernel_shap", target=1, segments=mask, n=12).values
    assert torch.equal(ours, again) and not torch.equal(*maps)


def test_kernel_shap_fails_on_one_superpixel(net, batch):
    x, _ = batch
    with pytest.raises((ValueError, RuntimeError), match="prob"):  # which depends on global validation
        ca.KernelShap(net).attribute(
            x[:1], target=1, feature_mask=torch.zeros(12, 12, dtype=torch.int64), n_samples=5
        )


def test_saliency_is_absolute_by_default(net, batch):
    x, y = batch
    captums = ca.Saliency(net).attribute(x.clone(), target=y)
    torch.testing.assert_close(attribute(net, x, y).values.abs(), captums, rtol=0, atol=1e-6)


class Seen(nn.Module):
    """Keeps what goes into each of its passes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.last = nn.Linear(144, 5)
        self.passes: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append(x.detach().clone())
        return self.last(x.flatten(1))


def test_noise_tunnel_draws_few_and_wide_by_default():
    x, y = torch.full((6, 1, 12, 12), 0.5), torch.arange(6) % 5
    found = []
    torch.manual_seed(0)
    for explain in (
        lambda model: ca.NoiseTunnel(ca.Saliency(model)).attribute(x.clone(), target=y),
        lambda model: attribute(model, x, y, "smoothgrad"),
    ):
        model = Seen()
        explain(model)
        noisy = torch.cat([each for each in model.passes if (each != 0.5).any()])
        found.append((len(noisy) / len(x), float(noisy.std())))
    assert found[0][0] == 5 and abs(found[0][1] - 1) < 0.05
    assert found[1][0] == 25 and abs(found[1][1] - 0.15) < 0.01


def test_integrated_gradients_runs_all_steps_at_once(batch):
    x, y = batch
    theirs, ours = Seen(), Seen()
    ca.IntegratedGradients(theirs).attribute(x, target=y)
    attribute(ours, x, y, "integrated_gradients")
    assert max(map(len, theirs.passes)) == 50 * len(x)
    assert max(map(len, ours.passes)) <= 128


def test_train_mode_is_the_callers(net, batch):
    x, y = batch
    expected, norm = attribute(net, x, y).values, net.train()[1]
    before = norm.running_mean.clone()
    assert torch.equal(attribute(net, x, y).values, expected)
    assert torch.equal(norm.running_mean, before) and net.training
    captums = ca.Saliency(net).attribute(x.clone(), target=y, abs=False)
    assert not torch.allclose(captums, expected) and not torch.equal(norm.running_mean, before)


@pytest.mark.parametrize(
    ("preset", "rule", "bias"), [("gamma", GammaRule(), 0.5), ("alpha1_beta0", Alpha1_Beta0_Rule(), -0.5)]
)
def test_lrp_keeps_biases_as_they_are(batch, preset, rule: PropagationRule, bias):
    """One pixel a class, f = 2x + b: as a weight, b > 0 leaves 2x under γ, b < 0 leaves f under α1β0."""

    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)
            nn.init.constant_(self.conv.weight, 2.0)
            nn.init.constant_(self.conv.bias, bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).flatten(1)

    x, y = 0.3 + 0.7 * batch[0], batch[1]
    model, rows = Pixels(), torch.arange(len(x))
    pixel = x.flatten(1)[rows, y]
    ours = attribute(model, x, y, "lrp", preset=preset, epsilon=1e-9).values.flatten(1)[rows, y]
    torch.testing.assert_close(ours, 2 * pixel if bias > 0 else 2 * pixel + bias)
    model.conv.rule = rule
    captums = ca.LRP(model).attribute(x.clone(), target=y).detach().flatten(1)[rows, y]
    weight = 2.5 if bias > 0 else 2.0  # γ = 0.25 raises the weight and not the bias
    torch.testing.assert_close(captums, weight * pixel * (2 * pixel + bias) / (weight * pixel + bias))
