"""Metrics that make maps again: Φ is one function, whose draws and settings belong to the original image."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab._common.seeding import sample_normal, sample_seeds
from saliency_lab.metrics.catalogue import METRICS

SMOOTH = {"n": 6, "stdev": 0.15}


class Curved(nn.Module):
    """Smooth, so that its maps are continuous; cheap, so that blocks can be crossed."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(36, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(2 * self.first(x.flatten(1))))


def images(count: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 6, 6, generator=source), torch.randint(0, 4, (count,), generator=source)


def sampled(x: Tensor) -> dict[str, tuple[str, dict]]:
    """Methods that draw, by a name for the test, with cheap settings."""
    baselines = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    shap = {"baselines": baselines, "n": 4, "stdev": 0.1}
    segments = torch.arange(36).reshape(6, 6) // 6
    return {
        "smoothgrad": ("smoothgrad", SMOOTH),
        "gradient_shap": ("gradient_shap", shap),
        "uniform": ("integrated_gradients", {"baseline": "uniform", "steps": 4}),
        "nested": ("vargrad", {**SMOOTH, "base": "gradient_shap", "base_settings": shap}),
        "orders": ("shapley_value_sampling", {"n": 2, "segments": segments}),
        "coalitions": ("kernel_shap", {"n": 12, "segments": segments, "baseline": "uniform"}),
    }


@pytest.mark.parametrize("name", sampled(torch.empty(0)))
def test_sensitivity_goes_to_zero_with_the_radius(name):
    model, (x, y) = Curved(), images(3)
    method, settings = sampled(x)[name]
    maps = sl.attribute(model, x, y, method, **settings)
    near, nearer = (
        sl.evaluate(model, x, y, maps, "max_sensitivity", samples=3, radius=radius) for radius in (1e-2, 1e-4)
    )
    assert (near > 0).all() and (nearer < 0.05 * near).all()


def test_the_lipschitz_estimate_does_not_diverge():
    model, (x, y) = Curved(), images(3)
    maps = sl.attribute(model, x, y, "smoothgrad", **SMOOTH)
    far, near = (
        sl.evaluate(model, x, y, maps, "local_lipschitz_estimate", radius=radius) for radius in (1e-2, 1e-3)
    )
    np.testing.assert_allclose(near, far, rtol=0.2)


def test_smoothgrad_s_sensitivity_is_that_of_the_mean_gradient_under_fixed_noise():
    model, (x, y) = Curved(), images(4)
    for image, label in zip(x.split(1), y.split(1), strict=True):
        noise = sample_normal(sample_seeds(image, 0, "noise 0"), (6, 1, 6, 6))[0]

        def fixed(model: nn.Module, x: Tensor, classes: Tensor, noise: Tensor = noise) -> Tensor:
            rows = []
            for one, which in zip(x, classes, strict=True):
                copies = (one + 0.15 * noise).requires_grad_(True)
                rows.append(torch.autograd.grad(model(copies)[:, which].sum(), copies)[0].mean(0))
            return torch.stack(rows)

        maps = sl.attribute(model, image, label, "smoothgrad", **SMOOTH)
        for name in ("max_sensitivity", "continuity", "input_invariance"):
            own = sl.evaluate(model, image, label, maps, name)
            theirs = sl.evaluate(model, image, label, maps.values, name, explain=fixed)
            np.testing.assert_allclose(own, theirs, rtol=1e-4)


def test_the_random_control_draws_for_the_image_it_is_given():
    """Its noise is the map and no error of an estimate, so the maps of neighbours have nothing in common."""
    model, (x, y) = Curved(), images(3)
    maps = sl.attribute(model, x, y, "random")
    assert (sl.evaluate(model, x, y, maps, "max_sensitivity", radius=1e-4) > 0.8).all()


def per_image(count: int) -> dict[str, tuple[str, dict]]:
    """Methods with settings that have one entry per image."""
    source = torch.Generator().manual_seed(3)
    baseline = torch.rand(count, 1, 6, 6, generator=source)
    segments = torch.randint(0, 4, (count, 6, 6), generator=source)
    return {
        "baseline": ("integrated_gradients", {"baseline": baseline, "steps": 3}),
        "segments": ("feature_ablation", {"segments": segments, "baseline": baseline}),
        "nested": (
            "smoothgrad",
            {"n": 2, "base": "integrated_gradients", "base_settings": {"baseline": baseline, "steps": 3}},
        ),
    }


def remaking(x: Tensor) -> dict[str, dict]:
    few = {"samples": 2}
    return {
        "max_sensitivity": few,
        "continuity": {"max_shift": 1},
        "attack_ssim": {"attacked": (x * 0.9 + 0.05)},
        "mprt": {},
        "smooth_mprt": few,
        "efficient_mprt": {"bins": 5},
        "random_logit": {},
        "input_invariance": {},
        "adcc": {},
    }


@pytest.mark.long
@pytest.mark.parametrize("case", per_image(1))
@pytest.mark.parametrize("name", remaking(torch.empty(0)))
def test_settings_given_one_an_image_stay_with_their_image(case, name):
    """Over two blocks, and for a part of the maps, the scores are those of the images alone."""
    model, (x, y) = Curved(), images(132)
    method, settings = per_image(132)[case]
    maps = sl.attribute(model, x, y, method, **settings)
    every = sl.evaluate(model, x, y, maps, name, **remaking(x)[name])
    for rows in (slice(126, 131), slice(-3, None)):
        some = sl.evaluate(model, x[rows], y[rows], maps[rows], name, **remaking(x[rows])[name])
        np.testing.assert_allclose(some, every[rows], atol=1e-6)


@pytest.mark.parametrize("case", per_image(1))
@pytest.mark.parametrize("rows", [slice(1, 3), [4, 0], torch.tensor([2, 2]), 3, -1], ids=str)
def test_a_part_of_the_maps_can_be_recomputed_from_its_settings(case, rows):
    model, (x, y) = Curved(), images(5)
    method, settings = per_image(5)[case]
    maps = sl.attribute(model, x, y, method, **settings)
    part = maps[rows]
    places = torch.arange(5)[[rows] if isinstance(rows, int) else rows]
    again = sl.attribute(model, x[places], y[places], method, **part.settings)
    torch.testing.assert_close(again.values, maps.values[places], rtol=0, atol=1e-6)


def test_baselines_to_average_over_are_not_taken_for_one_an_image():
    model, (x, y) = Curved(), images(5)
    maps = sl.attribute(model, x, y, "gradient_shap", baselines=x, n=3)
    assert maps[1:3].settings["baselines"].shape == x.shape


def test_maps_of_a_file_that_lost_a_tensor_say_so(tmp_path):
    model, (x, y) = Curved(), images(3)
    for method, settings, lost in (
        ("gradient_shap", {"baselines": x, "n": 2}, "baselines"),
        (
            "smoothgrad",
            {"n": 2, "base": "integrated_gradients", "base_settings": {"baseline": x}},
            r"base_settings\.baseline",
        ),
    ):
        maps = sl.attribute(model, x, y, method, **settings)
        read = sl.Attributions.load(maps.save(tmp_path / "maps.safetensors"))
        with pytest.raises(
            InputError, match=rf"file.*only the fingerprint of a tensor .*\({lost} of '{method}'\).*explain=f"
        ):
            sl.evaluate(model, x, y, read, "max_sensitivity")


class Trainable(nn.Module):
    """Batch norm and dropout, both of which would change a map made in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.body = nn.BatchNorm2d(1), nn.Dropout(0.5), Curved()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.drop(self.norm(x)))


@pytest.mark.parametrize("name", remaking(torch.empty(0)))
def test_explain_runs_as_a_method_of_attribute_does(name):
    model, (x, y) = Trainable().train(), images(4)
    state = {key: value.clone() for key, value in model.state_dict().items()}

    def gradient(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
        assert not model.training and torch.is_grad_enabled()
        x = x.clone().requires_grad_(True)
        noise = 0.01 * torch.randn(1)  # of the global generator, which must be seeded
        return torch.autograd.grad(model(x).gather(1, classes[:, None]).sum(), x)[0] + noise

    maps = sl.attribute(model, x, y, gradient)
    settings = remaking(x)[name]
    with torch.no_grad():
        by_explain = sl.evaluate(model, x, y, maps.values, name, explain=gradient, **settings)
        torch.rand(5)
        again = sl.evaluate(model, x, y, maps.values, name, explain=gradient, **settings)
    np.testing.assert_array_equal(by_explain, again)
    np.testing.assert_allclose(by_explain, sl.evaluate(model, x, y, maps, name, **settings), rtol=1e-5)
    assert model.training and model.drop.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_every_metric_that_makes_maps_again_is_among_those_tested(small):
    x, _ = images(2)
    shared = {"avg_sensitivity", "local_lipschitz_estimate", "attack_rank_correlation", "attack_top_k"}
    relative = {name for name in METRICS if name.startswith("relative_") and name.endswith("_stability")}
    remade = {name for name in METRICS if METRICS[name].maps is not None}
    assert remade == set(remaking(x)) | shared | relative


class Convolved(nn.Module):
    """A network with named layers, and a linear one that is not part of a prediction."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.out, self.unused = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(3, 4), nn.Linear(3, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("grad_cam", {}),
        ("layer_conductance", {"steps": 4}),
        ("lrp", {"rules": {"conv": "flat"}}),
        ("smoothgrad", {"n": 3, "base": "grad_cam"}),
    ],
)
def test_methods_that_name_a_layer_are_made_again_behind_the_shift(method, settings):
    model, (x, y) = Convolved().eval(), images(3)
    maps = sl.attribute(model, x, y, method, **settings)
    names = [name for name, _ in model.named_modules()]
    found = sl.evaluate(model, x, y, maps, "input_invariance")
    assert np.isfinite(found).any() and (found[np.isfinite(found)] <= 1).all()
    if method == "grad_cam":  # which looks at the activations, and these are those of the unshifted image
        np.testing.assert_allclose(found[np.isfinite(found)], 1, atol=1e-5)
    assert [name for name, _ in model.named_modules()] == names
    assert not any(module.training for module in model.modules())


def test_the_mode_of_a_network_with_dropout_at_its_root_stays_and_does_not_count():
    class Dropped(Convolved):
        def forward(self, x: Tensor) -> Tensor:
            return self.out(nn.functional.dropout(torch.relu(self.conv(x)).mean((2, 3)), 0.5, self.training))

    model, (x, y) = Dropped().train(), images(3)
    maps = sl.attribute(model, x, y, "saliency")
    np.testing.assert_allclose(sl.evaluate(model, x, y, maps, "input_invariance"), 1, atol=1e-5)
    assert all(module.training for module in model.modules())


def test_the_representation_is_that_of_the_linear_layer_that_runs_last():
    model, (x, y) = Convolved().eval(), images(3)
    maps = sl.attribute(model, x, y, "input_x_gradient")
    name = "relative_representation_stability"
    found = sl.evaluate(model, x, y, maps, name, samples=3)
    del model.unused
    again = sl.evaluate(model, x, y, maps.values, name, samples=3, explain=explain)
    np.testing.assert_array_equal(found, again)

    class Twice(Convolved):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + super().forward(x.flip(3))

    class Functional(Convolved):
        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self.conv(x)).mean((2, 3))
            return nn.functional.linear(hidden, self.out.weight, self.out.bias)

    for other, message in ((Twice(), "runs several times"), (Functional(), "and none runs")):
        own = sl.attribute(other.eval(), x, y, "input_x_gradient")
        with pytest.raises(InputError, match=message):
            sl.evaluate(other, x, y, own, name, samples=3)


def explain(model: nn.Module, points: Tensor, classes: Tensor) -> Tensor:
    return sl.attribute(model, points, classes, "input_x_gradient").values


def test_a_constant_map_of_the_attacked_image_has_no_overlap():
    model, (x, y) = Curved(), images(3)
    maps = sl.attribute(model, x, y, "saliency").values
    for value in (0.0, 0.5):
        constant = {
            "attacked": x.flip(3),
            "explain": lambda m, points, c, v=value: torch.full_like(points, v),
        }
        assert np.isnan(sl.evaluate(model, x, y, maps, "attack_top_k", **constant)).all()


class Defined(nn.Module):
    """Defines its layers in an order of its own; they run from `first` to `head`."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        makes = {"first": lambda: nn.Conv2d(1, 4, 3), "second": lambda: nn.Conv2d(4, 4, 3)}
        makes["head"] = lambda: nn.Linear(4, 3)
        for name in names:
            self.add_module(name, makes[name]())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh()).tanh().mean((2, 3)))


@pytest.mark.parametrize("order", ["top_down", "bottom_up"])
def test_layers_are_randomised_in_the_order_in_which_they_run(order):
    torch.manual_seed(0)
    net, other = Defined(("first", "second", "head")).eval(), Defined(("head", "second", "first")).eval()
    other.load_state_dict(net.state_dict())
    x, y = torch.rand(5, 1, 8, 8), torch.arange(5) % 3
    scores = [sl.evaluate(each, x, y, sl.attribute(each, x, y), "mprt", order=order) for each in (net, other)]
    np.testing.assert_array_equal(*scores)


class Sequence(nn.Module):
    """A head on every token, and the mean over tokens: they come first, second or as rows of their own."""

    def __init__(self, order: str) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed, self.head = nn.Linear(6, 5), nn.Linear(5, 4)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.tanh(nn.functional.linear(x[:, 0], self.embed.weight, self.embed.bias))  # (N, 6, 5)
        if self.order == "first":
            return self.head(tokens.transpose(0, 1)).mean(0)
        if self.order == "rows":
            return self.head(tokens.flatten(0, 1)).unflatten(0, (len(x), -1)).mean(1)
        if self.order == "rows of tokens":
            return self.head(tokens.transpose(0, 1).flatten(0, 1)).unflatten(0, (-1, len(x))).mean(0)
        return self.head(tokens).mean(1)


@pytest.mark.parametrize("count", [1, 4, 6])
@pytest.mark.parametrize("order", ["first", "rows"])
def test_the_representation_is_that_of_the_image_wherever_tokens_are(order, count):
    """Also with as many images as tokens."""
    x, y = images(count)
    scores = []
    for each in (order, "second"):
        model = Sequence(each).eval()
        maps = sl.attribute(model, x, y, "input_x_gradient")
        scores.append(
            sl.evaluate(model, x, y, maps, "relative_representation_stability", samples=3, radius=0.01)
        )
    assert np.isfinite(scores[1]).any()
    np.testing.assert_allclose(*scores, rtol=1e-4)


def test_a_representation_that_mixes_images_is_refused():
    model, (x, y) = Sequence("rows of tokens").eval(), images(3)
    maps = sl.attribute(model, x, y, "input_x_gradient")
    with pytest.raises(InputError, match="does not hold the images one after the other"):
        sl.evaluate(model, x, y, maps, "relative_representation_stability", samples=3)


def test_the_representation_of_a_compiled_network_is_refused():
    net, (x, y) = Convolved().eval(), images(3)
    maps = sl.attribute(net, x, y, "saliency")
    with pytest.raises(InputError, match=r"the model was compiled.*or use 'relative_output_stability'"):
        sl.evaluate(torch.compile(net, backend="eager"), x, y, maps, "relative_representation_stability")


@pytest.mark.parametrize("method", ["smoothgrad", "vargrad", "saliency"])
def test_a_method_with_noise_is_invariant_to_a_shift(method):
    model, (x, y) = Curved(), images(3)
    settings = {} if method == "saliency" else SMOOTH
    maps = sl.attribute(model, x, y, method, **settings)
    np.testing.assert_allclose(sl.evaluate(model, x, y, maps, "input_invariance"), 1, atol=1e-5)


MAKES_MAPS = sorted(name for name in METRICS if METRICS[name].maps is not None)


def scored(model: nn.Module, x: Tensor, y: Tensor, maps: sl.Attributions, name: str) -> None:
    attacked = {"attacked": x.flip(0)} if name.startswith("attack_") else {}
    few = {"samples": 2} if "samples" in METRICS[name].settings.model_fields else {}
    sl.evaluate(model, x, y, maps, name, **attacked, **few)


@pytest.mark.parametrize("name", MAKES_MAPS)
def test_maps_of_another_network_are_noticed(name):
    """Its weights may have changed in place since, too: the object is the same."""
    model, (x, y) = Curved(), images(3)
    maps = sl.attribute(model, x, y, "saliency")
    with torch.no_grad():
        model.first.weight.mul_(torch.linspace(-1, 1, 36))
    with pytest.warns(UserWarning, match="'saliency' makes other maps of this model .* image 0 differs by"):
        scored(model, x, y, maps, name)


@pytest.mark.parametrize("method", [*sampled(torch.empty(0)), "random", "saliency"])
def test_maps_of_this_network_are_believed(method):
    """Also behind a zero map, as rows of other maps, and rounded to half the precision."""
    model, (x, y) = Curved(), images(5)
    name, settings = sampled(x).get(method, (method, {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maps = sl.attribute(model, x, y, name, **settings)
        maps.values[0] = 0
        scored(model, x, y, maps, "max_sensitivity")
        scored(model, x[[4, 2]], y[[4, 2]], maps[[4, 2]], "max_sensitivity")
        halved = replace(maps, values=maps.values.half().float())
        scored(model, x, y, halved, "max_sensitivity")


def test_another_explanation_is_noticed_once():
    model, (x, y) = Curved(), images(3)
    maps = sl.attribute(model, x, y, "saliency").values
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        explain = {"explain": lambda model, x, classes: x}
        requests = {"max_sensitivity": explain, "continuity": explain}
        sl.evaluate_many(model, x, y, {"plain": maps}, requests)
    assert ["explain makes other maps" in str(each.message) for each in seen] == [True]


def test_quantus_metrics_notice_maps_of_another_network():
    quantus = pytest.importorskip("quantus")
    model, (x, y) = Curved(), images(2)
    maps = sl.attribute(model, x, y, "saliency")
    with torch.no_grad():
        model.first.weight.mul_(torch.linspace(-1, 1, 36))
    metric = quantus.MaxSensitivity(nr_samples=2, disable_warnings=True)
    with pytest.warns(UserWarning, match="'saliency' makes other maps of this model"):
        sl.evaluate(model, x, y, maps, metric)
