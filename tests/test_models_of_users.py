"""Every entry point refuses the same models, with the same words; contexts of the caller do not matter."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency_lab as sl
from saliency_lab._common.errors import InputError

SHAPE = (1, 8, 8)
X = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 0, 1, 1])


def study(model: nn.Module) -> Any:
    return sl.Study({"model": model}, (X, Y)).attribute(["saliency"])


ENTRY_POINTS: dict[str, Callable[[nn.Module], Any]] = {
    "attribute": lambda model: sl.attribute(model, X, Y),
    "attribute, rise": lambda model: sl.attribute(model, X, Y, "rise", n=4),
    "evaluate": lambda model: sl.evaluate(model, X, Y, torch.ones_like(X), "pixel_flipping"),
    "attack": lambda model: sl.attack(model, X, Y, "fgsm", eps=0.1),
    "attack_map": lambda model: sl.attack_map(model, X, eps=0.1, steps=1),
    "audit": lambda model: sl.audit(model, X, Y, eps=0.1, budget="quick"),
    "sanity_check": lambda model: sl.sanity_check(model, X, Y, ["saliency"]),
    "Study": study,
}


def network(outputs: int = 2) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, outputs)).eval()


class Changed(nn.Module):
    def __init__(self, change: Callable[[Tensor], Any], outputs: int = 2) -> None:
        super().__init__()
        self.net, self.change = network(outputs), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.net(x))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.net(x * mask)


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(2))


def inference() -> nn.Module:
    with torch.inference_mode():
        return network()


def without_values() -> nn.Module:
    with torch.device("meta"):
        return network()


def exported() -> nn.Module:
    return torch.export.export(network().eval(), (X[:2],)).module()


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "one logit, (N, 1)": (
        lambda: network(1),
        r"per image, \(N, 1\); .* sl\.BinaryLogits\(model\)",
    ),
    "one logit, (N,)": (
        lambda: Changed(lambda z: z[:, 0]),
        r"one number per image, \(N,\); .* sl\.BinaryLogits\(model\)",
    ),
    "segmentation": (
        lambda: Changed(lambda z: z[:, :, None, None].expand(-1, -1, 8, 8)),
        r"a map per image, \(N, 2, 8, 8\), as for segmentation; .* model\(x\)\.mean\(\(2, 3\)\)",
    ),
    "dictionary": (lambda: Changed(lambda z: {"out": z}), r'returned dict; .* model\(x\)\["out"\]'),
    "two inputs": (TwoInputs, r"forward of TwoInputs needs more than images: mask; .* model\(x, mask\)"),
    "exported": (
        exported,
        "module of an exported program, .* eval mode; pass the module that it was made",
    ),
    "lazy": (lazy, r"Sequential has lazy modules, .* run it once, as in model\(x\[:1\]\)"),
    "on meta": (
        without_values,
        r"weights on the device meta, .* no values; .* model\.to_empty\(device='cpu'\)",
    ),
    "inference mode": (inference, "Sequential was made under torch.inference_mode"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_every_entry_point_refuses_the_same_models(entry_point, kind):
    build, message = REFUSED[kind]
    model = build()
    with pytest.raises(InputError, match=message):
        ENTRY_POINTS[entry_point](model)


@pytest.mark.parametrize("metric", ["mprt", "efficient_mprt", "max_sensitivity", "random_logit"])
def test_metrics_that_explain_again_refuse_a_model_of_two_inputs(metric):
    build, message = REFUSED["two inputs"]
    with pytest.raises(InputError, match=message):
        sl.evaluate(build(), X, Y, torch.rand_like(X), metric)


def test_probabilities_are_not_flattened_by_a_second_softmax():
    model = nn.Sequential(network(), nn.Softmax(1)).eval()
    with pytest.raises(InputError, match=r"returns probabilities, not logits.* remove its last softmax"):
        sl.evaluate(model, X, Y, torch.ones_like(X), "pixel_flipping")
    with (
        pytest.warns(UserWarning, match="returns probabilities, not logits"),
        pytest.raises(InputError, match=r"returns probabilities, not logits.* remove its last softmax"),
    ):
        sl.attribute(model, X, Y, "rise", n=4)
    with pytest.warns(UserWarning, match="returns probabilities, not logits"):
        sl.attribute(model, X, Y, "saliency")


def test_multi_label_targets_get_a_message_with_the_wrapper():
    labels = torch.nn.functional.one_hot(Y, 2).float()
    for call in (
        lambda: sl.attribute(network(), X, labels),
        lambda: sl.evaluate(network(), X, labels, torch.ones_like(X), "pixel_flipping"),
        lambda: sl.attack(network(), X, labels, "fgsm", eps=0.1),
    ):
        with pytest.raises(InputError, match=r"y\.argmax\(1\).*sl\.BinaryLogits\(model, output=k\)"):
            call()


@pytest.mark.parametrize("shape", ["(N,)", "(N, 1)"])
def test_binary_heads(shape):
    head = network(1) if shape == "(N, 1)" else Changed(lambda z: z[:, 0], 1)
    model = sl.BinaryLogits(head)
    z = head(X).reshape(-1)
    torch.testing.assert_close(model(X).softmax(1)[:, 1], z.sigmoid())
    torch.testing.assert_close(model(X)[:, 1] - model(X)[:, 0], z)
    point = X.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(head(point).sum(), point)
    maps = sl.attribute(model, X, target=(1, 0)).values
    torch.testing.assert_close(maps, gradient)
    rise = sl.attribute(model, X, target=1, method="rise", n=16, cells=3).values
    assert not torch.equal(rise[0], rise[1])
    assert len(set(sl.evaluate(model, X, Y, maps, "pixel_flipping"))) > 1


def test_one_label_of_several():
    net = network(4)
    torch.testing.assert_close(sl.BinaryLogits(net, output=3)(X)[:, 1] * 2, net(X)[:, 3])
    with pytest.raises(InputError, match=r"\(N, K\) with a column 4; Sequential returned \(5, 4\)"):
        sl.BinaryLogits(net, output=4)(X)
    with pytest.raises(InputError, match="with a column 5"):
        sl.BinaryLogits(network(1), output=5)(X)
    with pytest.raises(InputError, match=r"one logit per image.* returned \(5, 4\)"):
        sl.BinaryLogits(net)(X)
    with pytest.raises(InputError, match="output must be a whole number from 0"):
        sl.BinaryLogits(net, output=-1)


def test_a_model_that_was_refused_is_unchanged():
    model = inference()
    before = [parameter.requires_grad for parameter in model.parameters()], model.training
    with pytest.raises(InputError):
        sl.attribute(model, X, Y)
    assert before == ([parameter.requires_grad for parameter in model.parameters()], model.training)


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "occlusion", "grad_cam", "rise"])
def test_autocast_changes_nothing(method):
    model = network()
    plain = sl.attribute(model, X, Y, method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sl.attribute(model, X, Y, method)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(inside.values, plain.values)


def test_scores_do_not_depend_on_autocast():
    model, maps = network(), torch.rand(X.shape, generator=torch.Generator().manual_seed(1))
    plain = sl.evaluate(model, X, Y, maps, "pixel_flipping")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(sl.evaluate(model, X, Y, maps, "pixel_flipping"), plain)


SETTINGS = {
    "gradient_shap": {"baselines": X, "n": 2},
    "deep_lift_shap": {"baselines": X},
    "rise": {"n": 4},
    "shapley_values": {"segments": 3},
    **{name: {"steps": 4} for name in ("integrated_gradients", "guided_ig", "blur_ig", "xrai")},
    "kernel_shap": {"n": 8, "segments": 4},
    "lime": {"n": 8, "segments": 4, "alpha": 1e-4},
    "smoothgrad": {"n": 2},
    "smoothgrad_sq": {"n": 2},
    "vargrad": {"n": 2},
}


@pytest.fixture
def float64_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", [name for name in sl.list_methods().index if "attn" not in name])
def test_a_default_of_float64_changes_no_map(name, request):
    model, settings = network(), SETTINGS.get(name, {})
    if "attention" in name or "chefer" in name:
        pytest.skip("needs a transformer")
    expected = sl.attribute(model, X, Y, name, **settings).values
    request.getfixturevalue("float64_by_default")
    found = sl.attribute(model, X, Y, name, **settings).values
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "hide", [torch.jit.script, lambda net: torch.jit.trace(net, X)], ids=["script", "trace"]
)
def test_scripted_networks_with_buffers_work(hide):
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    ).eval()
    hidden = hide(net)
    maps = sl.attribute(hidden, X, Y, "saliency")
    torch.testing.assert_close(maps.values, sl.attribute(net, X, Y, "saliency").values)
    expected = sl.evaluate(net, X, Y, maps, "deletion")
    np.testing.assert_allclose(sl.evaluate(hidden, X, Y, maps, "deletion"), expected, atol=1e-5)
    assert torch.equal(sl.attack(hidden, X, Y, eps=0.1).robust, sl.attack(net, X, Y, eps=0.1).robust)
    assert sl.audit(hidden, X, Y, eps=0.1).verdict == sl.audit(net, X, Y, eps=0.1).verdict
    with pytest.raises(
        InputError, match="must see the modules and calls inside the model, but the model was"
    ):
        sl.attribute(hidden, X, Y, "lrp")


class AlwaysDropping(nn.Module):
    """Calls F.dropout without `training`, so that it drops in eval mode as well."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.body(x.flatten(1)).relu()))


RANDOM: dict[str, Callable[[nn.Module], Any]] = {
    "attribute": lambda net: sl.attribute(net, X, Y, "saliency"),
    "attribute, one image": lambda net: sl.attribute(net, X[:1], Y[:1], "deep_lift"),
    "evaluate": lambda net: sl.evaluate(net, X, Y, torch.rand_like(X), "deletion"),
    "study": study,
    "attack": lambda net: sl.attack(net, X, Y, eps=0.1, steps=1),
}


@pytest.mark.parametrize("entry", RANDOM)
def test_a_network_that_is_random_in_eval_mode_is_named(entry):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        RANDOM[entry](AlwaysDropping().eval())
    (message,) = (f"{each.message}" for each in caught)
    assert "AlwaysDropping is random in eval mode" in message and "training=self.training" in message


def test_a_network_that_is_meant_to_be_random_is_attacked_without_a_warning():
    net = AlwaysDropping().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sl.attack(net, X, Y, eps=0.1, steps=1, samples=3)
        sl.robustness_curve(net, X, Y, eps=(0, 0.1), steps=1, samples=3)
        assert sl.audit(net, X, Y, eps=0.1).verdict == "do not believe"
        sl.attribute(network(), X[:1], Y[:1], "saliency")


@pytest.mark.long
@pytest.mark.parametrize("hide", ["script", "trace", "compile"])
def test_hidden_models_get_one_message(hide):
    model = network()
    hidden = {
        "script": lambda: torch.jit.script(model),
        "trace": lambda: torch.jit.trace(model, X),
        "compile": lambda: torch.compile(model, backend="eager"),
    }[hide]()
    message = "must see the modules and calls inside the model, but the model was " + hide.removesuffix("e")
    for method in ("lrp", "deep_lift", "guided_backprop", "grad_cam", "layer_conductance", "full_grad"):
        with pytest.raises(InputError, match=message):
            sl.attribute(hidden, X, Y, method)
    with pytest.raises(InputError, match=message):
        sl.sanity_check(hidden, X, Y, ["saliency"])
    for method in ("saliency", "integrated_gradients", "occlusion", "rise"):
        torch.testing.assert_close(
            sl.attribute(hidden, X, Y, method).values, sl.attribute(model, X, Y, method).values
        )


def test_errors_report_the_users_sizes():
    with pytest.raises(InputError, match=r"Sequential does not take images of shape \(1, 9, 9\) \(C, H, W\)"):
        sl.attribute(network(), torch.rand(200, 1, 9, 9), target=0)

    def short(model, x, classes):
        return x[:, :, 1:]

    with pytest.raises(InputError, match=r"must return maps \(N, 1, 8, 8\) for N images, not \(.*1, 7, 8\)"):
        sl.attribute(network(), X, Y, short)


class Batch(nn.Module):
    """A network whose forward takes batches of one size."""

    def __init__(self, size: int, *, silent: bool = False) -> None:
        super().__init__()
        self.size, self.silent, self.net = size, silent, network()

    def forward(self, x: Tensor) -> Tensor:
        if self.silent and len(x) != self.size:
            raise AssertionError
        return self.net(x.view(self.size, 1, 8, 8))


def test_a_fixed_size_of_the_batch_is_named():
    for silent, reason in ((False, "is invalid for input of size 64"), (True, "AssertionError")):
        together = rf"takes these {len(X)} images together and not one alone \(.*{reason}.*any number"
        with pytest.raises(InputError, match=together):
            sl.attack(Batch(len(X), silent=silent), X, Y, eps=0.1)
        with pytest.raises(InputError, match=rf"does not take images of shape .*{reason}, given one image"):
            sl.attribute(Batch(3 * len(X), silent=silent), X, Y, "saliency")


class Single(nn.Module):
    """A network that squeezes the answer on one image."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(0)


def test_a_network_that_fails_on_one_image_is_refused_every_time():
    model = Single()
    for _ in range(2):
        with pytest.raises(InputError, match="for 1 image"):
            sl.attack(model, X, Y, eps=0.1)


class Opaque(nn.Module):
    """A network that can be evaluated, and raises where it is differentiated."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.net = kind, network()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        if self.kind == "NumPy":
            return self.net(torch.from_numpy(x.numpy().copy()))
        logits = self.net(x)
        if self.kind == "in place":
            powers = logits.exp()
            squares = powers * powers
            powers.add_(1)
            return squares
        if logits.requires_grad:
            logits.register_hook(lambda gradient: 1 / 0)
        return logits


@pytest.mark.parametrize("kind", ["NumPy", "in place", "hook"])
@pytest.mark.parametrize(
    "call",
    [
        *(ENTRY_POINTS[name] for name in ("attribute", "attack", "attack_map", "audit")),
        lambda model: sl.attribute(model, X, Y, "integrated_gradients", steps=4),
        lambda model: sl.attack(model, X, Y, "pgd", eps=0.1, gradients_from=model),
        lambda model: sl.robustness_curve(model, X, Y, eps=(0, 0.1)),
        lambda model: sl.evaluate(
            model, X, Y, sl.attribute(network(), X, Y, "saliency"), "max_sensitivity", samples=2
        ),
    ],
)
def test_a_model_without_a_backward_pass_gets_one_message(kind, call):
    with pytest.raises(InputError, match=r"Opaque cannot be differentiated .*; use what only evaluates it"):
        call(Opaque(kind))


@pytest.mark.parametrize("kind", ["NumPy", "in place", "hook"])
def test_what_only_evaluates_a_model_needs_no_backward_pass(kind):
    model = Opaque(kind)
    sl.attribute(model, X, Y, "occlusion")
    sl.attack(model, X, Y, "square", eps=0.1, queries=5)
    sl.evaluate(model, X, Y, torch.ones_like(X), "pixel_flipping")


def test_the_error_of_a_custom_method_stays_as_it_is():
    def method(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        sl.attribute(network(), X, Y, method)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_frozen_script_without_a_mode_is_explained_as_the_network_that_it_was_made_from():
    frozen = torch.jit.freeze(torch.jit.script(network()))
    assert not hasattr(frozen, "training")
    for name in ("saliency", "occlusion"):
        expected = sl.attribute(network(), X, Y, name).values
        torch.testing.assert_close(sl.attribute(frozen, X, Y, name).values, expected)
