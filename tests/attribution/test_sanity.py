"""The sanity check by randomisation, on a network that reads digits."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

import captum.attr
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from saliency_lab._common.errors import InputError
from saliency_lab.attribution import attribute, sanity_check
from saliency_lab.attribution.reinitialisation import layers_from_output, randomise
from saliency_lab.metrics import evaluate
from saliency_lab.models import build_model
from saliency_lab.plotting.style import DIVERGING, SEQUENTIAL


@pytest.fixture(scope="module")
def check(trained, digits_sample):
    x, y = digits_sample.x, digits_sample.y
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    methods = ["saliency", "integrated_gradients", "guided_backprop", "edges", "random"]
    done = sanity_check(trained, x, y, methods, settings={"integrated_gradients": {"steps": 8}})
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    return done


def test_guided_backprop_shows_its_known_failure(check):
    """The gradient and integrated gradients forget with the model; guided back-propagation hardly does."""
    correlation = check.summary().rank_correlation
    assert abs(correlation["saliency"]) < 0.15 and abs(correlation["integrated_gradients"]) < 0.15
    assert correlation["guided_backprop"] > 0.35


def test_controls_score_as_controls_should(check):
    summary = check.summary()
    assert (summary.loc[["edges", "random"]] > 1 - 1e-9).all(axis=None)


def test_first_step_is_the_trained_model_and_each_step_changes_one_more_layer(check, trained, digits_sample):
    x, y = digits_sample.x, digits_sample.y
    table = check.likeness
    start = table[(table.step == 0)]
    assert (start.rank_correlation > 1 - 1e-9).all() and (start.layer == "trained").all()
    assert table.groupby("step").layer.first().tolist() == [
        "trained",
        "net.classifier.fc2",
        "net.classifier.fc1",
        "net.features.conv2",
        "net.features.conv1",
    ]
    assert len(table) == 5 * 5 * len(x)
    expected = attribute(trained, x[:4], y[:4], "saliency").values
    torch.testing.assert_close(check.maps["saliency"][0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("contrast", [False, True])
def test_a_predicted_class_stays_that_of_the_trained_model(trained, digits_sample, contrast):
    x = digits_sample.x[:6]
    with torch.no_grad():
        predicted = trained(x).argmax(1)
    words, classes = ("prediction", predicted) if not contrast else (("prediction", 3), (predicted, 3))
    checks = [sanity_check(trained, x, methods=["saliency"], target=target) for target in (words, classes)]
    assert checks[0].likeness.equals(checks[1].likeness)


def test_it_repeats(check, trained, digits_sample):
    again = sanity_check(trained, digits_sample.x, digits_sample.y, ["saliency"])
    first = check.likeness[check.likeness.method == "saliency"].reset_index(drop=True)
    assert again.likeness.equals(first)


def test_normalisation_goes_with_its_layer_and_every_parameter_is_drawn_anew():
    model = build_model("resnet8", input_shape=(3, 32, 32))
    layers = layers_from_output(model, torch.rand(1, 3, 32, 32))
    assert layers[0][0] == "net.fc" and layers[-1][0] == "net.stem.0"
    assert [name for name, _ in layers[-1][1]] == ["net.stem.0", "net.stem.1"]
    reached = {name for _, modules in layers for name, _ in modules}
    assert reached == {
        name for name, module in model.named_modules() if list(module.parameters(recurse=False))
    }


def test_a_transformers_attention_is_reached():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = model, nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(x.flatten(2).transpose(1, 2)).mean(1))

    names = {name for _, modules in layers_from_output(Net(), torch.rand(1, 8, 4, 4)) for name, _ in modules}
    assert {"layer.self_attn", "layer.self_attn.out_proj", "layer.linear1", "head"} <= names


@pytest.mark.long
def test_pictures(check):
    lines = check.plot()
    ax = lines.axes[0]
    names = [text.get_text() for text in lines.legends[0].get_texts()]
    assert names == [name.replace("_", " ") for name in check.maps]
    assert ax.get_xticklabels()[0].get_text() == "trained"
    assert len(check.plot_maps().axes) == 5 * 5 + 2  # the scales of maps with a sign, and of those without
    with pytest.raises(InputError, match="unknown measure"):
        check.plot("likeness")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["salency"]}, "did you mean 'saliency'"),
        ({"settings": {"lrp": {}}}, "methods that are not checked: lrp"),
        ({"methods": []}, "name at least one method"),
        ({"methods": 5}, "methods must be a name, a function, several, or label"),
        (
            {"methods": "saliency", "settings": {"saliency": 3}},
            "the settings of 'saliency' must be a mapping",
        ),
        ({"methods": [lambda m, x, c: x, lambda m, x, c: -x]}, "two different methods are called '<lambda>'"),
    ],
)
def test_bad_input_is_named(trained, digits_sample, options, message):
    with pytest.raises(InputError, match=message):
        sanity_check(trained, digits_sample.x, digits_sample.y, **options)


def test_images_that_the_model_does_not_take_are_named(trained, digits_sample):
    with pytest.raises(InputError, match=r"does not take images of shape \(1, 14, 14\)"):
        sanity_check(trained, digits_sample.x[..., :14, :14], digits_sample.y)


def test_a_method_named_twice_is_checked_once(net, batch):
    twice = sanity_check(net, *batch, ["saliency", "saliency"])
    pd.testing.assert_frame_equal(twice.likeness, sanity_check(net, *batch, "saliency").likeness)


def scaled_input(model, x, classes, factor: float = 1.0):
    return factor * x


def test_functions_and_classes_of_captum_are_checked_as_named_methods_are(net, batch):
    check = sanity_check(net, *batch, [scaled_input, captum.attr.Saliency, "input"])
    assert check.likeness.method.unique().tolist() == ["scaled_input", "Saliency", "input"]
    assert (check.summary().rank_correlation[["scaled_input", "input"]] > 1 - 1e-9).all()
    expected = attribute(net, *batch, captum.attr.Saliency).values
    torch.testing.assert_close(check.maps["Saliency"][0], expected[:4])
    alone = sanity_check(net, *batch, scaled_input, settings={"scaled_input": {"factor": -1.0}})
    torch.testing.assert_close(alone.maps["scaled_input"], -check.maps["scaled_input"])


def test_a_method_can_be_checked_with_several_settings(net, batch):
    few, more = ({"method": "smoothgrad", "n": n} for n in (2, 3))
    check = sanity_check(net, *batch, {"few": few, "more": more}, settings={"more": {"stdev": 0.3}})
    for label, settings in (("few", {"n": 2}), ("more", {"n": 3, "stdev": 0.3})):
        expected = attribute(net, *batch, "smoothgrad", **settings).values
        torch.testing.assert_close(check.maps[label][0], expected[:4])


def test_it_says_in_a_line_what_was_found(check):
    text = repr(check)
    assert "\n" not in text and len(text) < 300
    assert "edges 1" in text and "4 steps" in text


def test_an_image_whose_maps_are_not_kept_is_named(check):
    with pytest.raises(InputError, match="image must be a whole number from 0 to 3, not 7"):
        check.plot_maps(7)


def test_what_is_no_module_is_named(digits_sample):
    with pytest.raises(InputError, match=r"the model must be a torch\.nn\.Module, not str"):
        sanity_check("digits/at", digits_sample.x, digits_sample.y)


def test_a_model_without_parameters_is_named(digits_sample):
    with pytest.raises(InputError, match="no layer with parameters"):
        sanity_check(nn.Flatten(), digits_sample.x, digits_sample.y)


def test_under_inference_mode_it_is_the_same(net, batch):
    x, y = batch
    expected = sanity_check(net, x, y, ["saliency", "lrp"])
    with torch.inference_mode():
        found = sanity_check(net, x.clone(), y.clone(), ["saliency", "lrp"])
    pd.testing.assert_frame_equal(found.likeness, expected.likeness)


class OwnNorm(nn.Module):
    """A normalisation with a scale and a shift of its own, and no `reset_parameters`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (
            nn.functional.layer_norm(x, x.shape[1:]) * self.scale[:, None, None] + self.shift[:, None, None]
        )


def own_norm_net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), OwnNorm(4), nn.GELU(), nn.Flatten(), nn.Linear(400, 5)]
    return nn.Sequential(*layers).eval()


def test_a_randomised_scale_does_not_switch_its_layer_off(batch):
    check = sanity_check(own_norm_net(), *batch, ["saliency"])
    assert (check.maps["saliency"].abs().amax((2, 3, 4)) > 1e-3).all()
    assert check.likeness.notna().all(axis=None)


def test_a_randomised_parameter_keeps_its_mean_and_spread():
    norm = OwnNorm(4000)
    randomise(norm, 0)
    assert (norm.scale == 1).all() and (norm.shift == 0).all()
    with torch.no_grad():
        norm.scale.copy_(torch.linspace(1.5, 2.5, 4000))
    before = norm.scale.clone()
    randomise(norm, 0)
    assert abs(norm.scale.mean() - 2) < 0.02 and abs(norm.scale.std() / before.std() - 1) < 0.05
    assert abs(torch.corrcoef(torch.stack([before, norm.scale.detach()]))[0, 1]) < 0.1


def test_a_method_without_negative_values_has_a_scale_without_a_sign(rgb_net, rgb_batch):
    check = sanity_check(rgb_net, rgb_batch[0][:2], rgb_batch[1][:2], ["saliency", "grad_cam"])
    assert (check.maps["saliency"] < 0).any() and not (check.maps["grad_cam"] < 0).any()
    signed, plain = (mpl.colormaps[name] for name in (DIVERGING, SEQUENTIAL))
    steps = check.maps["grad_cam"].shape[0]
    pictures = [ax.images[0].get_array() for ax in check.plot_maps().axes[: 2 * steps]]
    for step, picture in enumerate(pictures[:steps]):
        plane = check.maps["saliency"][step, 0].sum(0).double()
        end = plane.abs().quantile(0.995).item()
        np.testing.assert_allclose(picture, signed(((plane / end + 1) / 2).clamp(0, 1).numpy())[..., :3])
    for step, picture in enumerate(pictures[steps:]):
        plane = check.maps["grad_cam"][step, 0].sum(0).double()
        end = plane.quantile(0.995).item() or plane.max().item() or 1.0
        np.testing.assert_allclose(picture, plain((plane / end).clamp(0, 1).numpy())[..., :3])


def test_undefined_similarities_warn(net, batch):
    check = sanity_check(net, *batch, ["saliency", "constant"])
    steps = check.likeness.step.nunique() - 1
    with pytest.warns(UserWarning, match=rf"are NaN: constant \({6 * steps} of {6 * steps}\)"):
        summary = check.summary()
    assert summary.loc["saliency"].notna().all() and summary.loc["constant", "rank_correlation"] != 0


def test_default_methods_that_refuse_the_model_are_left_out(batch):
    model = own_norm_net()
    with pytest.warns(UserWarning, match="leaves out guided_backprop: .*no.* can be seen.*GELU") as caught:
        check = sanity_check(model, *batch)
    assert len(caught) == 1 and list(check.maps) == ["saliency", "integrated_gradients", "edges"]
    with pytest.raises(InputError, match="guided_backprop changes the gradient at ReLUs"):
        sanity_check(model, *batch, ["saliency", "guided_backprop"])
    with pytest.raises(InputError, match="must return logits"):
        sanity_check(nn.Sequential(nn.Conv2d(1, 1, 3)), *batch)


def test_a_model_whose_modules_are_hidden_is_refused(net, batch):
    for model in (torch.jit.script(net), torch.jit.trace(net, batch[0]), torch.compile(net, backend="eager")):
        with pytest.raises(
            InputError,
            match=r"was (scripted|traced|compiled), which hides them; pass the module it was made from$",
        ):
            sanity_check(model, *batch, ["saliency"])


class Parametrised(nn.Module):
    """A network whose weights are computed from others, in one of torch's ways."""

    def __init__(self, how: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = how(nn.Conv2d(1, 6, 3)), how(nn.Linear(600, 20))
        self.head = how(nn.Linear(20, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.fc(self.conv(x).relu().flatten(1)).relu())


class Doubled(nn.Module):
    """A parametrisation that has no inverse."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": lambda layer: layer,
    "old weight norm": nn.utils.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "weight norm": nn.utils.parametrizations.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "cayley": lambda layer: nn.utils.parametrizations.orthogonal(layer, orthogonal_map="cayley"),
    "householder": lambda layer: nn.utils.parametrizations.orthogonal(
        layer, orthogonal_map="householder", use_trivialization=False
    ),
    "exponential without inverse": lambda layer: nn.utils.parametrizations.orthogonal(
        layer, orthogonal_map="matrix_exp", use_trivialization=False
    ),
    "without inverse": lambda layer: nn.utils.parametrize.register_parametrization(
        layer, "weight", Doubled()
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_weights_that_are_computed_are_drawn_anew(batch, way, used):
    model = Parametrised(WAYS[way])
    if used:  # leaves tensors with a history in the modules
        model(batch[0]).sum()
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logits = model(batch[0]).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check = sanity_check(model, *batch, ["saliency"])
    assert check.likeness.layer.unique().tolist() == ["trained", "head", "fc", "conv"]
    assert abs(check.summary().rank_correlation["saliency"]) < 0.2
    randomised = check.maps["saliency"][1:]
    assert randomised.isfinite().all() and (randomised.abs().amax((2, 3, 4)) > 1e-6).all()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(batch[0]), logits)


@pytest.mark.parametrize("way", ["old weight norm", "weight norm", "old spectral norm", "spectral norm"])
def test_a_redrawn_weight_is_that_of_the_layer_without_reparametrisation(way):
    plain, layer = nn.Linear(8, 5), WAYS[way](nn.Linear(8, 5)).eval()
    x = torch.rand(3, 8)
    for each in (plain, layer):
        randomise(each, 3)
    with torch.no_grad():
        scale = torch.linalg.matrix_norm(plain.weight, 2) if "spectral" in way else 1.0
        expected = x @ plain.weight.T / scale + plain.bias
        torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-4)


class Overwritten(nn.Linear):
    """A layer that computes its weight from a buffer at each pass, and does not say so."""

    def __init__(self) -> None:
        super().__init__(144, 5)
        self.register_buffer("kept", self.weight.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.kept)


def test_a_model_that_randomising_does_not_change_is_refused(batch):
    model = nn.Sequential(nn.Flatten(), Overwritten())
    with pytest.raises(InputError, match=r"re-initialising the layers of Sequential \(1\) does not change"):
        sanity_check(model, *batch, ["saliency"])
    maps = attribute(model, *batch)
    with pytest.raises(InputError, match=r"re-initialising the layers of Sequential \(1\) does not change"):
        evaluate(model, *batch, maps, metric="mprt")


def test_a_layer_that_randomising_does_not_change_is_named(batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 144), nn.ReLU(), Overwritten())
    with pytest.warns(UserWarning, match="re-initialising 3 did not change what Sequential returns"):
        sanity_check(model, *batch, ["saliency"])


@pytest.mark.parametrize("way", ["old weight norm", "orthogonal"])
@pytest.mark.parametrize("metric", ["mprt", "efficient_mprt", "smooth_mprt"])
def test_the_metrics_of_randomisation_redraw_computed_weights(batch, way, metric):
    model = Parametrised(WAYS[way])
    model(batch[0]).sum()
    maps = attribute(model.eval(), *batch)
    scores = evaluate(model, *batch, maps, metric=metric)
    assert np.isfinite(scores).all()
    if metric == "mprt":
        plain = Parametrised(WAYS["none"]).eval()
        expected = evaluate(plain, *batch, attribute(plain, *batch), metric=metric)
        assert abs(scores.mean() - expected.mean()) < 0.2


def test_a_model_with_two_inputs_is_named(batch):
    class Two(nn.Linear):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return super().forward(x.flatten(1)) * mask

    with pytest.raises(InputError, match=r"needs more than images: mask"):
        sanity_check(Two(144, 5), *batch, ["saliency"])


def test_a_model_that_cannot_be_copied_is_named_with_its_attribute() -> None:
    class Locked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.lock = nn.Linear(16, 3), threading.Lock()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.flatten(1))

    with pytest.raises(
        InputError, match="Locked cannot be copied, because of its attribute 'lock': cannot pickle"
    ):
        sanity_check(Locked(), torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), "saliency")


class Unusual(nn.Module):
    """Complex weights, a count, and a `reset_parameters` that needs an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(12, 7, dtype=torch.complex64) * (3 + 1j))
        self.count = nn.Parameter(torch.tensor([3]), requires_grad=False)

    def reset_parameters(self, scale: float) -> None:
        raise AssertionError("nobody knows the scale")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * self.filter) / self.count


@pytest.mark.parametrize("metric", ["mprt", None])
def test_complex_weights_and_counts_are_randomised_or_left(batch, metric):
    torch.manual_seed(0)
    model = nn.Sequential(Unusual(), nn.Flatten(), nn.Linear(144, 5)).eval()
    if metric is None:
        assert sanity_check(model, *batch, ["saliency"]).likeness.notna().all(axis=None)
    else:
        assert np.isfinite(evaluate(model, *batch, attribute(model, *batch), metric)).all()


def test_complex_weights_keep_the_mean_and_spread_of_their_parts():
    layer = Unusual()
    layer.filter.data = torch.complex(1 + 2 * torch.randn(80, 80), -3 + 0.5 * torch.randn(80, 80))
    before = layer.filter.detach().clone()
    randomise(layer, 0)
    assert int(layer.count) == 3 and not torch.equal(before, layer.filter)
    for part in ("real", "imag"):
        old, new = (getattr(each.detach(), part) for each in (before, layer.filter))
        assert abs(new.mean() - old.mean()) < 0.1 and abs(new.std() / old.std() - 1) < 0.05
