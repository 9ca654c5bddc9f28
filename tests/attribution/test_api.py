"""What `attribute` promises whatever the method."""

from __future__ import annotations

import copy
import random
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from saliency_lab._common.errors import InputError
from saliency_lab.attribution import attribute, list_methods

BASELINES = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(9))
QUICK: dict[str, dict[str, Any]] = {
    "gradient_shap": {"baselines": BASELINES, "n": 3},
    "deep_lift_shap": {"baselines": BASELINES},
    "layer_conductance": {"steps": 3},
    "occlusion": {"window": 4, "stride": 4},
    "feature_ablation": {"segments": 5},
    "shapley_value_sampling": {"segments": 5, "n": 2},
    "kernel_shap": {"segments": 5, "n": 8},
    "lime": {"segments": 5, "n": 8, "alpha": 1e-3},
    "rise": {"n": 70, "cells": 3},
    "integrated_gradients": {"steps": 6},
    "smoothgrad": {"n": 3},
    "smoothgrad_sq": {"n": 3},
    "vargrad": {"n": 3},
}
MANY = {
    **{name: {"n": 150} for name in ("gradient_shap", "smoothgrad", "smoothgrad_sq", "vargrad", "rise")},
    **{name: {"n": 150} for name in ("kernel_shap", "lime")},
    "integrated_gradients": {"steps": 150},
    "layer_conductance": {"steps": 150},
    "occlusion": {"window": 1, "stride": 1},
    "feature_ablation": {"segments": 150},
    "shapley_value_sampling": {"segments": 150},
}
ALL = list(list_methods().index)
ATTENTION = [name for name in ALL if list_methods().loc[name, "family"] == "attention"]
NAMES = [name for name in ALL if name not in ATTENTION]
CONTROLS = [name for name in ALL if list_methods().loc[name, "family"] == "control"]


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_shape_type_and_record(name, rgb_net, rgb_batch):
    x, y = rgb_batch
    settings = QUICK.get(name, {})
    if "baselines" in settings:
        settings = {**settings, "baselines": BASELINES.expand(-1, 3, -1, -1)}
    maps = attribute(rgb_net, x, y, name, seed=4, **settings)
    assert maps.values.shape == x.shape and maps.values.dtype == torch.float32
    assert not maps.values.requires_grad and maps.values.isfinite().all()
    assert (maps.method, maps.seed, maps.target) == (name, 4, "label")
    assert torch.equal(maps.classes, y)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_batch(name, net, batch):
    x, y = batch
    settings = QUICK.get(name, {})
    together = attribute(net, x, y, name, **settings).values
    order = torch.tensor([3, 0, 5])
    torch.testing.assert_close(
        attribute(net, x[order], y[order], name, **settings).values, together[order], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        attribute(net, x[2:3], y[2:3], name, **settings).values, together[2:3], rtol=1e-4, atol=1e-5
    )


class Fragile(nn.Module):
    """Fails at its n-th forward pass."""

    def __init__(self, inner: nn.Module, fail_at: int) -> None:
        super().__init__()
        self.inner, self.left = inner, fail_at

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        hidden = self.inner(x)
        if self.left == 0:
            raise RuntimeError("out of luck")
        return hidden


def _state(model: nn.Module, x: Tensor, y: Tensor) -> list[object]:
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), len(m._backward_pre_hooks))
        for m in model.modules()
    ]
    return [
        [(m.training, sorted(vars(m))) for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        {key: value.tolist() for key, value in model.state_dict().items()},
        hooks,
        (x.tolist(), x.requires_grad, x.grad, y.tolist()),
        (random.getstate(), torch.get_rng_state().tolist(), str(np.random.get_state())),  # noqa: NPY002
        torch.is_grad_enabled(),
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "fail_at"),
    [(name, fail_at) for name in ALL for fail_at in range(4) if not fail_at or name not in CONTROLS],
)
def test_nothing_is_left_changed(name, fail_at, batch):
    x, y = batch
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(300, 5))
    model = Fragile(net.train(), fail_at)
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[4](torch.rand(2, 300)).sum().backward()
    before = _state(model, x, y)
    if fail_at:
        with pytest.raises((RuntimeError, InputError), match=r"out of luck|no self-attention"):
            for _ in range(fail_at):
                attribute(model, x, y, name, **QUICK.get(name, {}))
    elif name in ATTENTION:
        with pytest.raises(InputError):
            attribute(model, x, y, name)
    else:
        attribute(model, x, y, name, **QUICK.get(name, {}))
    assert _state(model, x, y) == before


def test_a_model_in_train_mode_is_looked_at_in_eval_mode(net, batch):
    x, y = batch
    expected = attribute(net, x, y).values
    assert torch.equal(attribute(net.train(), x, y).values, expected)


def test_a_model_that_changes_its_input_does_not_change_the_callers(net, batch):
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.sub_(0.5).mul_(2.0))

    x, y = batch
    kept = x.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such a model does not depend on the batch
        maps = attribute(InPlace(), x, y, "integrated_gradients", steps=5)
    assert torch.equal(x, kept)
    assert torch.isfinite(maps.values).all()


def test_targets(net, batch):
    x, y = batch
    with torch.no_grad():
        predicted = net(x).argmax(1)
    by_class = torch.stack([attribute(net, x, target=k).values for k in range(5)])
    rows = torch.arange(len(x))
    assert torch.equal(attribute(net, x, y).values, by_class[y, rows])
    assert torch.equal(attribute(net, x, target="prediction").values, by_class[predicted, rows])
    assert torch.equal(attribute(net, x, target=y).values, by_class[y, rows])
    contrast = attribute(net, x, y, target=("label", 2))
    torch.testing.assert_close(contrast.values, by_class[y, rows] - by_class[2], rtol=0, atol=1e-6)
    assert contrast.target == "label − class 2" and contrast.classes.tolist()[0] == [int(y[0]), 2]


def test_baselines(net, batch):
    x, y = batch

    def total(baseline: str | Tensor) -> Tensor:
        return attribute(net, x, y, "integrated_gradients", steps=4, baseline=baseline).total

    def expected(base: Tensor) -> Tensor:
        with torch.no_grad():
            return (net(x) - net(base))[torch.arange(len(x)), y].double()

    means = x.mean((2, 3), keepdim=True).expand_as(x)
    torch.testing.assert_close(total("zero"), expected(torch.zeros_like(x)))
    torch.testing.assert_close(total("mean"), expected(means))
    torch.testing.assert_close(total(x.flip(0)), expected(x.flip(0)))
    torch.testing.assert_close(total(x[0]), expected(x[:1].expand_as(x)))
    assert not torch.allclose(total("blur"), total("mean"))
    assert torch.equal(total("uniform"), total("uniform"))


def test_your_own_function_is_a_method(net, batch):
    x, y = batch

    def doubled(model: nn.Module, x: Tensor, classes: Tensor, times: float = 2.0) -> Tensor:
        point = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(point).gather(1, classes[:, None]).sum(), point)
        return times * gradient

    maps = attribute(net, x, y, doubled, times=3.0)
    torch.testing.assert_close(maps.values, 3 * attribute(net, x, y).values)
    assert maps.method == "doubled" and maps.settings == {"times": 3.0}
    with pytest.raises(InputError, match=r"doubled.*tims"):
        attribute(net, x, y, doubled, tims=3.0)
    with pytest.raises(
        InputError, match=r"must return maps \(N, 1, 12, 12\) for N images, not \(6, 12, 12\) for 6"
    ):
        attribute(net, x, y, lambda model, x, classes: x[:, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "salency"}, "unknown method 'salency'; did you mean 'saliency'"),
        ({"method": "IG"}, "there is no method 'IG' here; write \"integrated_gradients\""),
        (
            {"method": "smoothgrad", "stdv": 0.1},
            "unknown setting of method 'smoothgrad': 'stdv'; did you mean 'stdev'",
        ),
        ({"method": "smoothgrad", "n": 0}, "method 'smoothgrad': 'n'"),
        ({"method": "smoothgrad", "base": "vargrad"}, "noise tunnel"),
        (
            {"method": "smoothgrad", "base_settings": {"abs": True}},
            "unknown setting of method 'saliency': 'abs'",
        ),
        ({"method": "integrated_gradients", "baseline": "zeros"}, "method 'integrated_gradients'"),
        ({"method": "integrated_gradients", "baseline": torch.zeros(1, 3, 3)}, "does not fit images"),
        (
            {"method": "integrated_gradients", "baseline": torch.zeros(2, 1, 12, 12)},
            "baseline has 2 images",
        ),
        (
            {"method": "integrated_gradients", "baseline": torch.full((1, 12, 12), torch.nan)},
            "'baseline': a baseline must be finite",
        ),
        (
            {"method": "gradient_shap", "baselines": torch.full((2, 1, 12, 12), torch.inf)},
            "'baselines': a baseline must be finite",
        ),
        ({"method": 3}, "method must be a name or a function"),
        ({"y": None}, 'target="label" needs y'),
        ({"y": torch.zeros(3, dtype=torch.int64)}, "labels must have the shape"),
        ({"y": torch.full((6,), 5)}, "the model has the classes 0 … 4, not 5"),
        ({"target": 5}, "the model has the classes 0 … 4, not 5"),
        ({"target": "lable"}, "target must be"),
        ({"target": ("label", 9)}, "the model has the classes"),
        ({"x": torch.full((6, 1, 12, 12), 1.5)}, r"images must lie in \[0, 1\]"),
        ({"x": torch.full((6, 1, 12, 12), torch.nan)}, "NaN"),
        ({"x": torch.zeros(6, 12, 12)}, r"\(N, C, H, W\)"),
        ({"x": np.zeros((6, 1, 12, 12))}, "not ndarray; use torch.as_tensor"),
        ({"target": np.zeros(6, dtype=np.int64)}, r"target must be .* a tensor \(N,\) of classes"),
        ({"seed": None}, "seed must be an integer from 0 .* not None"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"seed": -1}, "seed must be an integer"),
    ],
)
def test_bad_input_is_named(net, batch, change, message):
    x, y = batch
    given = {"x": x, "y": y, **change}
    with pytest.raises(InputError, match=message):
        attribute(net, given.pop("x"), given.pop("y"), **given)


def test_a_model_that_returns_no_logits(batch):
    x, y = batch
    with pytest.raises(InputError, match="must return logits"):
        attribute(nn.Flatten(0), x, y)


@pytest.mark.parametrize(
    "name", ["saliency", "deep_lift", "deep_lift_shap", "lrp", "shapley_value_sampling", "rise", "occlusion"]
)
@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda logits: (logits, 0), r"it returned tuple; .* model\(x\)\[0\]"),
        (lambda logits: {"logits": logits}, r'it returned dict; .* model\(x\)\["logits"\]'),
        (
            lambda logits: SimpleNamespace(logits=logits),
            r"it returned SimpleNamespace; .* returns model\(x\)\.logits",
        ),
        (
            lambda logits: logits[:, 0],
            r"it returned one number per image, \(N,\); .*sl\.BinaryLogits\(model\)",
        ),
    ],
)
def test_a_model_that_returns_no_tensor_of_logits(name, wrap, message, net, batch):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Any:
            return wrap(self.net(x))

    with pytest.raises(InputError, match=r"must return logits \(N, K\).* but " + message):
        attribute(Wrapped(), *batch, name, **QUICK.get(name, {}))
    with pytest.raises(InputError, match="but " + message):
        attribute(Wrapped(), batch[0], method=name, target="prediction", **QUICK.get(name, {}))


def test_maps_that_are_not_finite_warn_once(net, batch):
    def broken(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
        return x / torch.tensor([1.0, 0, 1, 1, 0, 1]).reshape(6, 1, 1, 1)

    with pytest.warns(UserWarning, match="broken: 2 of 6 maps are not finite.*Sequential") as caught:
        attribute(net, *batch, broken)
    assert len(caught) == 1
    nn.init.constant_(net[0].weight, torch.nan)
    with pytest.warns(UserWarning, match="saliency: 140 of 140 maps are not finite") as caught:
        attribute(net, torch.rand(140, 1, 12, 12), target=0)
    assert len(caught) == 1


def test_list_methods_shows_settings():
    table = list_methods()
    assert table.index.name == "name" and "steps=50" in table.loc["integrated_gradients", "settings"]


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in NAMES if name not in {*CONTROLS, "deep_lift_shap"}])
def test_no_pass_holds_more_images_than_a_chunk(name):
    """So that memory does not grow with the images, the steps or the draws."""
    largest = 0

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu, self.last = nn.Conv2d(1, 1, 8, 8), nn.ReLU(), nn.Linear(9, 5)

        def forward(self, x: Tensor) -> Tensor:
            nonlocal largest
            largest = max(largest, len(x))
            return self.last(self.relu(self.conv(x)).flatten(1))

    torch.manual_seed(0)
    baselines = {"baselines": torch.rand(150, 1, 24, 24)} if name == "gradient_shap" else {}
    few, many = QUICK.get(name, {}), QUICK.get(name, {}) | MANY.get(name, {})
    attribute(Counting(), torch.rand(140, 1, 24, 24), method=name, target=1, **{**few, **baselines})
    attribute(Counting(), torch.rand(1, 1, 24, 24), method=name, target=1, **{**many, **baselines})
    assert 1 <= largest <= 128


@pytest.mark.parametrize("base", [name for name in NAMES if list_methods().loc[name, "family"] != "noise"])
def test_noise_tunnels_go_over_every_method(base, net, batch):
    x, y = batch
    maps = attribute(
        net, x[:2], y[:2], "smoothgrad", base=base, base_settings=QUICK.get(base, {}), n=2
    ).values
    assert maps.isfinite().all() and maps.shape == x[:2].shape


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_model_in_double_precision(name, net, batch):
    x, y = batch
    expected = attribute(net, x, y, name, **QUICK.get(name, {})).values
    maps = attribute(copy.deepcopy(net).double(), x, y, name, **QUICK.get(name, {})).values
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-4)


def test_channels_last_and_strided_images(net, batch):
    x, y = batch
    expected = attribute(net, x, y, "deep_lift").values
    strided = torch.stack([x, x], -1)[..., 0]
    for images in (x.to(memory_format=torch.channels_last), strided):
        torch.testing.assert_close(attribute(net, images, y, "deep_lift").values, expected)


class Blind(nn.Module):
    """Detaches its input, as a rounding or JPEG defence may."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.detach())


@pytest.mark.parametrize(
    "name", ["saliency", "integrated_gradients", "smoothgrad", "deep_lift", "lrp", "guided_backprop"]
)
def test_a_model_without_a_gradient_is_refused(name, net, batch):
    with pytest.raises(InputError, match=r"logits of Blind have no gradient at the image.*'occlusion'"):
        attribute(Blind(net), *batch, name, **QUICK.get(name, {}))
    assert attribute(Blind(net), *batch, "occlusion", window=6).values.abs().max() > 0


def test_numpys_integers_are_integers(net, batch):
    x, _ = batch
    maps = attribute(net, x, target=np.int64(2))
    assert maps.target == "class 2" and torch.equal(maps.values, attribute(net, x, target=2).values)
    assert torch.equal(maps[np.int64(1)].values, maps.values[1:2])


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_maps_under_no_grad_and_inference_mode_are_those_outside(name, mode, net, batch):
    expected = attribute(net, *batch, name, **QUICK.get(name, {}))
    with mode():
        x, y = (each.clone() for each in batch)  # inference tensors, as everything made in here
        settings = {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in QUICK.get(name, {}).items()
        }
        maps = attribute(net, x, y, name, **settings)
    assert torch.equal(maps.values, expected.values) and torch.equal(maps.classes, expected.classes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_half_precision_is_run_in_float32_with_its_own_weights(name, dtype, net, batch):
    """Stabilisers, squares of gradients and small differences of outputs would be rounded to zero in it."""
    half = copy.deepcopy(net).to(dtype)
    own = {key: (value.data_ptr(), value.clone()) for key, value in half.state_dict().items()}
    maps = attribute(half, *batch, name, **QUICK.get(name, {}))
    expected = attribute(copy.deepcopy(half).float(), *batch, name, **QUICK.get(name, {}))
    assert torch.equal(maps.values, expected.values) and maps.values.dtype == torch.float32
    for key, value in half.state_dict().items():
        assert value.data_ptr() == own[key][0] and torch.equal(value, own[key][1])
    assert half[0].weight.dtype == dtype


def test_a_model_that_converts_to_half_precision_itself_is_refused(batch):
    class Converts(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(144, 5).bfloat16()

        def forward(self, x):
            return self.linear(x.flatten(1).bfloat16())

    model = Converts()
    with pytest.raises(InputError, match="its forward converts to another type"):
        attribute(model, *batch)
    assert model.linear.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_draws_and_controls_do_not_depend_on_the_models_type(dtype, batch):
    torch.manual_seed(0)
    (x, y), model = batch, nn.Sequential(nn.Flatten(), nn.Linear(144, 5))
    half = copy.deepcopy(model).to(dtype)
    for name in CONTROLS:
        assert torch.equal(attribute(half, x, y, name).values, attribute(model, x, y, name).values)
    settings = {"steps": 2, "baseline": "uniform"}
    expected = attribute(model, x, y, "integrated_gradients", **settings).values
    found = attribute(half, x, y, "integrated_gradients", **settings).values
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02 * float(expected.abs().max()))


def test_images_that_the_model_does_not_take_are_named(net: nn.Module) -> None:
    with pytest.raises(InputError, match=r"does not take images of shape \(3, 12, 12\)"):
        attribute(net, torch.rand(2, 3, 12, 12), target=0)


def test_an_error_of_a_method_of_ones_own_stays_as_it_is(net: nn.Module) -> None:
    def broken(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        attribute(net, torch.rand(2, 1, 12, 12), target=0, method=broken)


def test_the_probability_of_a_prediction_is_the_output_of_a_model_that_returns_probabilities() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Softmax(1))
    x = torch.rand(3, 1, 4, 4)
    maps = attribute(net, x, target="prediction")
    torch.testing.assert_close(maps.probabilities, net(x).amax(1).detach())


def test_deep_lift_names_checkpointing() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.body, x, use_reentrant=False)

    net, x = Checkpointed(), torch.rand(2, 1, 4, 4)
    assert torch.equal(attribute(net, x, target=1).values, attribute(net.body, x, target=1).values)
    with pytest.raises(InputError, match=r"Checkpointed computes parts of its forward pass a second time"):
        attribute(net, x, method="deep_lift", target=1)


def test_a_name_in_other_letters_is_answered_with_ours() -> None:
    for given, known in (("LRP", "lrp"), ("Grad-CAM", "grad_cam"), ("DeepLIFT", "deep_lift")):
        with pytest.raises(InputError, match=f"unknown method '{given}'; did you mean '{known}'"):
            attribute(nn.Flatten(), torch.rand(1, 1, 2, 2), method=given, target=0)


def test_a_network_without_activations_is_refused_without_an_empty_list() -> None:
    with pytest.raises(InputError, match=r"has none that can be seen\. Its map would be"):
        attribute(
            nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
            torch.rand(1, 1, 2, 2),
            method="guided_backprop",
            target=0,
        )
