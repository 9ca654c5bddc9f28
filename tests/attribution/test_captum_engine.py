"""Captum's classes and objects as methods, and Captum as the second engine of the methods that it has."""

from __future__ import annotations

import captum.attr as ca
import numpy as np
import pytest
import torch
from captum.attr._utils.attribution import Attribution
from torch import nn

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab.attribution import attribute, list_methods


def enlarged(coarse, x):
    return ca.LayerAttribution.interpolate(coarse.sum(1, keepdim=True), x.shape[2:], "bilinear").expand_as(x)


def test_a_class_is_a_method(net, batch):
    x, y = batch
    expected = ca.IntegratedGradients(net).attribute(x, baselines=x.flip(0), target=y, n_steps=7)
    maps = attribute(net, x, y, ca.IntegratedGradients, baselines=x.flip(0), n_steps=7)
    torch.testing.assert_close(maps.values, expected.float())
    assert maps.method == "IntegratedGradients" and maps.settings["n_steps"] == 7
    trapezoid = ca.IntegratedGradients(net).attribute(x, target=y, n_steps=7, method="riemann_trapezoid")
    found = attribute(net, x, y, ca.IntegratedGradients, n_steps=7, quadrature="riemann_trapezoid")
    torch.testing.assert_close(found.values, trapezoid.float())


@pytest.mark.parametrize("given", ["2", "module", None])
def test_maps_of_a_layer_are_enlarged_and_a_note_says_so(net, batch, given):
    x, y = batch
    layer = {"module": net[2]}.get(given, given)
    name = "5" if given is None else "2"
    expected = ca.InternalInfluence(net, net.get_submodule(name)).attribute(x, target=y, n_steps=5)
    maps = attribute(net, x, y, ca.InternalInfluence, layer=layer, n_steps=5)
    torch.testing.assert_close(maps.values, enlarged(expected.detach(), x).float(), rtol=1e-4, atol=1e-6)
    assert maps.settings["layer"] == name and "enlarged" in maps.settings["note"]
    again = attribute(net, x, y, ca.InternalInfluence, **maps.settings)
    assert torch.equal(again.values, maps.values)


@pytest.mark.parametrize(
    "kind", [ca.LayerActivation, ca.LayerGradientXActivation, ca.LayerGradCam, ca.LayerIntegratedGradients]
)
def test_other_methods_of_a_layer(net, batch, kind):
    x, y = batch
    target = {} if kind is ca.LayerActivation else {"target": y}
    expected = kind(net, net[2]).attribute(x.clone().requires_grad_(True), **target)
    maps = attribute(net, x, y, kind, layer="2").values
    torch.testing.assert_close(maps, enlarged(expected.detach(), x).float(), rtol=1e-4, atol=1e-6)


def test_a_neuron(net, batch):
    x, y = batch
    expected = ca.NeuronGradient(net, net[2]).attribute(x.clone(), neuron_selector=(1, 3, 4))
    found = attribute(net, x, y, ca.NeuronGradient, layer="2", neuron_selector=(1, 3, 4))
    torch.testing.assert_close(found.values, expected)


def test_maps_of_tokens_are_laid_out(batch):
    import timm

    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2}
    vit = timm.models.VisionTransformer(num_classes=5, **sizes).eval()
    x = torch.rand(2, 3, 32, 32)
    layer = "blocks.1.norm1"
    kind = ca.LayerGradientXActivation
    tokens = kind(vit, vit.get_submodule(layer)).attribute(x.requires_grad_(True), target=1).detach()
    x = x.detach()
    expected = enlarged(tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4)), x)
    maps = attribute(vit, x, target=1, method=kind)
    torch.testing.assert_close(maps.values, expected)
    assert maps.settings["layer"] == layer


def test_an_object_is_a_method_of_its_own_model(net, rgb_net, batch):
    x, y = batch
    saliency = ca.Saliency(net)
    expected = saliency.attribute(x.clone(), target=y)
    torch.testing.assert_close(attribute(net, x, y, saliency).values, expected)
    tunnel = ca.NoiseTunnel(ca.Saliency(net))
    maps = attribute(net, x, y, tunnel, nt_samples=3, stdevs=0.0)
    torch.testing.assert_close(maps.values, expected)
    with pytest.raises(InputError, match="was made for another model than the one that is explained"):
        attribute(rgb_net, torch.rand(1, 3, 12, 12), target=0, method=saliency)


@pytest.mark.parametrize("kind", [ca.GradientShap, ca.ShapleyValueSampling, ca.KernelShap])
def test_draws_are_keyed_by_seed_and_image(net, batch, kind):
    x, y = batch
    settings = {"baselines": x[:2]} if kind is ca.GradientShap else {}
    if kind is not ca.GradientShap:
        settings = {"feature_mask": (torch.arange(144) // 36).reshape(1, 1, 12, 12), "n_samples": 5}
    together = attribute(net, x, y, kind, **settings).values
    alone = torch.cat(
        [attribute(net, x[i : i + 1], y[i : i + 1], kind, **settings).values for i in range(len(x))]
    )
    torch.testing.assert_close(together, alone)
    state = torch.get_rng_state()
    assert not torch.equal(attribute(net, x, y, kind, seed=1, **settings).values, together)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_contrast_by_captum(net, batch):
    x, y = batch
    kind = ca.InputXGradient
    expected = attribute(net, x, y, kind).values - attribute(net, x, target=3, method=kind).values
    found = attribute(net, x, y, kind, target=("label", 3)).values
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_bad_calls_are_named(net, batch):
    with pytest.raises(InputError, match=r"unknown setting.*'n_step'; did you mean 'n_steps'"):
        attribute(net, *batch, ca.IntegratedGradients, n_step=3)
    with pytest.raises(InputError, match="permutes features among the images of a batch"):
        attribute(net, *batch, ca.FeaturePermutation)
    with pytest.raises(InputError, match=r"Captum's IntegratedGradients failed: .*method"):
        attribute(net, *batch, ca.IntegratedGradients, quadrature="simpson")
    with pytest.raises(InputError, match="'neuron_selector' must be given"):
        attribute(net, *batch, ca.NeuronGradient, layer="2")


def test_a_users_subclass_of_captum(net, batch):
    class Ones(Attribution):
        def attribute(self, inputs, target=None, scale: float = 1.0):
            return scale * torch.ones_like(inputs)

    maps = attribute(net, *batch, Ones, scale=2.0)
    assert (maps.values == 2).all() and maps.method == "Ones"


def test_captums_maps_are_scored_and_recomputed(net, batch):
    x, y = batch
    maps = attribute(net, x, y, ca.InternalInfluence, n_steps=3)
    assert len(sl.evaluate(net, x, y, maps, "pixel_flipping")) == len(x)
    assert len(sl.evaluate(net, x, y, maps, "max_sensitivity", samples=2)) == len(x)


# --- the second engine ------------------------------------------------------------------------------

SAME = {
    "saliency": {},
    "input_x_gradient": {},
    "integrated_gradients": {"steps": 9, "baseline": "mean"},
    "guided_backprop": {},
    "deconvolution": {},
    "deep_lift": {"baseline": "zero"},
    "grad_cam": {},
    "guided_grad_cam": {},
    "layer_conductance": {"steps": 9},
    "occlusion": {"window": 4, "stride": 4},
    "feature_ablation": {"segments": 6},
    "shapley_values": {"segments": 4},
}
SAMPLED = {
    "gradient_shap": {"n": 300},
    "smoothgrad": {"n": 300},
    "smoothgrad_sq": {"n": 300},
    "vargrad": {"n": 300},
    "shapley_value_sampling": {"n": 100, "segments": 4},
    "kernel_shap": {"n": 200, "segments": 4},
    "lime": {"n": 300, "segments": 4, "alpha": 1e-4},
}


@pytest.mark.parametrize("name", SAME)
def test_both_engines_give_the_same_maps(net, batch, name):
    x, y = batch
    if name == "deep_lift":  # Captum's rule for max pooling differs: docs/attribution.md says how
        net = nn.Sequential(*net[:3], nn.AvgPool2d(2), *net[4:])
    fast, slow = (attribute(net, x, y, name, engine=engine, **SAME[name]) for engine in ("fast", "captum"))
    torch.testing.assert_close(slow.values, fast.values, rtol=1e-3, atol=1e-5)
    assert slow.settings == {**fast.settings, "engine": "captum"} and "engine" not in fast.settings


@pytest.mark.parametrize("name", SAMPLED)
def test_engines_of_sampled_methods_agree_on_average(net, batch, name):
    x, y = batch[0][:2], batch[1][:2]
    settings = SAMPLED[name] | ({"baselines": batch[0]} if name == "gradient_shap" else {})
    fast, slow = (attribute(net, x, y, name, engine=engine, **settings) for engine in ("fast", "captum"))
    rows = torch.stack([fast.values.flatten(1), slow.values.flatten(1)])
    for one, other in rows.transpose(0, 1):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.9


def test_the_second_engine_is_named_where_there_is_none(net, batch):
    with pytest.raises(InputError, match=r"Captum does not have the method 'rise'; .*saliency, "):
        attribute(net, *batch, "rise", engine="captum")
    with pytest.raises(InputError, match="unknown engine 'captm'; did you mean 'captum'"):
        attribute(net, *batch, engine="captm")
    table = list_methods()
    assert table.engines["saliency"] == "fast, captum" and table.engines["rise"] == "fast"


def test_a_study_with_the_second_engine(net, batch, tmp_path):
    x, y = batch
    study = sl.Study({"net": net}, (x, y), store=tmp_path)
    study.attribute({"saliency": {}, "by captum": {"method": "saliency", "engine": "captum"}})
    table = study.score("sparseness").scores
    plain, captum = (table[table.method == name].score.to_numpy() for name in ("saliency", "by captum"))
    assert len(plain) == len(x)
    np.testing.assert_allclose(captum, plain, rtol=1e-4)


def test_a_model_of_parts(batch):
    x, y = batch
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 5)).eval()
    with pytest.raises(InputError, match="no module of Sequential returns a map"):
        attribute(model, x, y, ca.InternalInfluence)


def relu_net(bias: bool) -> nn.Sequential:
    """A network of modules that Captum's LRP knows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Conv2d(1, 6, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(6, 8, 3, bias=bias), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        layers += [nn.Dropout(), nn.Linear(32, 10, bias=bias), nn.ReLU(), nn.Linear(10, 5, bias=bias)]
        return nn.Sequential(*layers).double().eval()


LRP_PRESETS = ["epsilon", "gamma", "epsilon_plus", "alpha1_beta0", "excitation_backprop"]


@pytest.mark.parametrize("preset", LRP_PRESETS)
@pytest.mark.parametrize("bias", [True, False])
def test_lrp_by_captum_is_ours_where_the_rule_is_the_same(preset, bias, batch):
    """Captum's positive rules keep biases as they are, and ours treat them as weights."""
    net, settings = relu_net(bias), {"method": "lrp", "preset": preset, "epsilon": 1e-3}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    if bias and preset not in ("epsilon", "excitation_backprop"):
        with pytest.raises(InputError, match=r"keep biases as they are.*'0' has a bias.*engine='fast'"):
            attribute(net, *batch, engine="captum", **settings)
        return
    ours, theirs = (attribute(net, *batch, engine=engine, **settings).values for engine in ("fast", "captum"))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * float(ours.abs().max()))
    assert ours.abs().max() > 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(hasattr(module, "rule") for module in net.modules())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(144, 5)

    def forward(self, x):
        return self.head(self.layer(self.layer(x)).flatten(1))


class Residual(Twice):
    def forward(self, x):
        return self.head((self.layer(x) + x).flatten(1))


class Functional(Twice):
    def forward(self, x):
        return self.head(torch.relu(self.layer(x)).flatten(1))


@pytest.mark.parametrize(
    ("make", "settings", "reason"),
    [
        (Twice, {}, "takes each layer once, and 'layer' runs again"),
        (Residual, {}, r"no rule for torch.Tensor.add, which is called in the model \(Residual\)"),
        (Functional, {}, r"no rule for torch.relu, which is called in the model \(Functional\)"),
        (lambda: nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()), {}, "own for batch normalisation"),
        (lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.GELU(), nn.Flatten(), nn.Linear(144, 5)), {}, "gelu"),
        (lambda: relu_net(False), {"preset": "epsilon_plus_flat"}, "is for epsilon, gamma, epsilon_plus"),
        (lambda: relu_net(False), {"rules": {"0": "flat"}}, "not rules by module"),
        (lambda: relu_net(False), {"target": (0, 1)}, "not a contrast"),
        (
            lambda: nn.Sequential(
                nn.Tanh(), nn.Conv2d(1, 1, 1, bias=False), nn.Tanh(), *relu_net(False).float()
            ),
            {"preset": "gamma"},
            "non-negative inputs, and '3' has negative ones",
        ),
    ],
)
def test_lrp_by_captum_is_refused_where_the_rule_is_another(make, settings, reason, batch):
    model = make().eval()
    if isinstance(model, nn.Sequential) and isinstance(model[0], nn.Tanh):
        with torch.no_grad():
            model[1].weight.fill_(-1.0)
    given = {"method": "lrp", "preset": "epsilon", "target": 1} | settings
    with pytest.raises(InputError, match=reason):
        attribute(model, batch[0], engine="captum", **given)


def test_lrp_by_captum_on_a_network_of_torchvision():
    from torchvision.models import squeezenet1_1

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = squeezenet1_1(weights=None, num_classes=5).double().eval()
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    given = {"target": 1, "method": "lrp", "preset": "epsilon"}
    ours, theirs = (attribute(net, x, engine=engine, **given).values for engine in ("fast", "captum"))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * float(ours.abs().max()))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", [ca.FeatureAblation, ca.KernelShap])
def test_a_mask_of_features_without_a_row_per_image_is_that_of_every_image(net, batch, kind, count):
    x, y = (each[:count] for each in batch)
    mask = torch.arange(12)[:, None] // 6 * 2 + torch.arange(12)[None] // 6
    more = {"n_samples": 8} if kind is ca.KernelShap else {}
    expected = attribute(net, x, y, kind, feature_mask=mask.expand(count, 1, 12, 12), **more).values
    assert len(expected[0].unique()) == 4
    for given in (mask, mask[None], mask[None, None]):
        torch.testing.assert_close(attribute(net, x, y, kind, feature_mask=given, **more).values, expected)


@pytest.mark.parametrize("given", ["2", "module", None])
def test_the_layer_of_a_contrast_has_the_name_of_the_users_model(net, batch, given):
    """The gradient of a difference is the difference of the gradients."""
    x, y = batch
    layer = {"module": net[2]}.get(given, given)
    other = (y + 1) % 3

    def find(target):
        return attribute(net, x, y, ca.LayerGradientXActivation, layer=layer, target=target).values

    found, expected = find(("label", other)), find("label") - find(other)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    conductance = {"layer": layer, "steps": 5, "engine": "captum"}
    assert attribute(net, x, y, "layer_conductance", target=("label", other), **conductance).values.any()


@pytest.mark.parametrize(
    ("method", "words"), [(ca.LRP, "use the method 'lrp'"), (ca.Saliency, "pass the class")]
)
def test_what_explains_one_class_says_so_of_a_contrast(net, batch, method, words):
    x, y = batch
    given = method(net) if method is ca.Saliency else method
    with pytest.raises(InputError, match=f"explains one class, not a contrast; {words}"):
        attribute(net, x, y, given, target=("label", (y + 1) % 3))
