from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

import saliency_lab as sl
from saliency_lab._common.errors import InputError, UnknownNameError
from saliency_lab.models.layers import declared_cam_layer

NAMES = ["small_cnn", "sgt_cnn", "lenet5", "resnet8", "resnet20", "resnet18", "vgg11_bn"]

# weights and biases counted by hand from the papers' tables, for 1×28×28 and ten classes
PARAMETERS = {
    "small_cnn": (16 * 16 + 16) + (16 * 16 * 32 + 32) + (7 * 7 * 32 * 100 + 100) + (100 * 10 + 10),
    "sgt_cnn": (9 * 32 + 32) + (32 * 9 * 64 + 64) + (64 * 12 * 12 * 128 + 128) + (128 * 10 + 10),
    "lenet5": (25 * 6 + 6) + (6 * 25 * 16 + 16) + (400 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_logits_of_both_image_sizes_with_a_gradient(name: str, shape: tuple[int, int, int]) -> None:
    model = sl.build_model(name, num_classes=7, input_shape=shape)
    x = torch.rand(2, *shape, requires_grad=True)
    logits = model(x)
    assert logits.shape == (2, 7)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert gradient.abs().sum() > 0
    assert not model.training


@pytest.mark.parametrize("name", NAMES)
def test_every_relu_is_a_module_used_once_and_not_in_place(name: str) -> None:
    model = sl.build_model(name)
    used: dict[nn.Module, int] = {}
    relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    handles = [
        module.register_forward_hook(lambda m, *_: used.update({m: used.get(m, 0) + 1})) for module in relus
    ]
    model(torch.rand(1, 1, 28, 28))
    for handle in handles:
        handle.remove()
    assert [used[module] for module in relus] == [1] * len(relus)
    assert not any(module.inplace for module in relus)
    # no functional ReLU: the traced graph calls none
    graph = torch.fx.symbolic_trace(model).graph
    called = {getattr(n.target, "__name__", n.target) for n in graph.nodes if n.op.startswith("call_f")}
    assert not called & {"relu", "relu_"}


@pytest.mark.parametrize("name", NAMES)
def test_the_cam_layer_gives_a_map_with_a_place(name: str) -> None:
    model = sl.build_model(name, input_shape=(3, 32, 32))
    cam = LayerGradCam(model, model.get_submodule(declared_cam_layer(model))).attribute(
        torch.rand(2, 3, 32, 32), target=1
    )
    assert cam.ndim == 4
    assert cam.shape[-1] > 1


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_parameter_counts(name: str) -> None:
    assert sum(p.numel() for p in sl.build_model(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "depth"), [("resnet8", 8), ("resnet20", 20), ("resnet18", 18), ("vgg11_bn", 9)]
)
def test_depths(name: str, depth: int) -> None:
    layers = [
        label
        for label, module in sl.build_model(name).named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in label
    ]
    assert len(layers) == depth  # VGG-11 with one linear layer for its three


def test_the_seed_decides_the_weights_and_the_global_generators_do_not() -> None:
    def weights(seed: int) -> torch.Tensor:
        return nn.utils.parameters_to_vector(sl.build_model("small_cnn", seed=seed).parameters())

    torch.manual_seed(5)
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = weights(0)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002
    torch.manual_seed(6)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_normalisation_is_the_first_thing_the_model_does() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    model = sl.build_model("resnet8", input_shape=(3, 32, 32), mean=mean, std=std)
    x = torch.rand(2, 3, 32, 32)
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(model(x), model.net(by_hand))


def test_torchvision_models_by_name() -> None:
    model = sl.build_model("torchvision/mobilenet_v3_small", num_classes=5, input_shape=(3, 32, 32))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert declared_cam_layer(model) is None
    with pytest.raises(UnknownNameError, match="did you mean 'mobilenet_v3_small'"):
        sl.build_model("torchvision/mobilenet_v3_smal", input_shape=(3, 32, 32))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "smallcnn"}, "did you mean 'small_cnn'"),
        ({"name": "small_cnn", "num_classes": 1}, "num_classes must be a whole number from 2"),
        ({"name": "small_cnn", "num_classes": "10"}, "not '10'"),
        ({"name": "small_cnn", "num_classes": 2.5}, "not 2.5"),
        ({"name": None}, "name must be the name of an architecture"),
        ({"name": "small_cnn", "input_shape": 28}, "input_shape must be"),
        (
            {"name": "small_cnn", "mean": "imagenet"},
            "mean must be a finite number, not 'imagenet'",
        ),
        ({"name": "small_cnn", "input_shape": (28, 28)}, "input_shape must be"),
        ({"name": "lenet5", "input_shape": (1, 8, 8)}, "'lenet5' does not take images of 1×8×8"),
        ({"name": "small_cnn", "mean": (0.1, 0.2, 0.3)}, "mean must be one value, or 1"),
        ({"name": "small_cnn", "std": 0.0}, "std finite and above 0"),
        ({"name": "torchvision/resnet18"}, "does not take images of 1×28×28"),
        ({"name": "torchvision/vit_b_16", "input_shape": (3, 32, 32)}, "does not take images of 3×32×32"),
    ],
)
def test_bad_arguments_are_named(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sl.build_model(**given)


def test_a_function_is_not_normalised_as_its_weights_would_be_hidden() -> None:
    """A study could not tell two such models apart."""
    net = sl.build_model("small_cnn")
    with pytest.raises(InputError, match=r"net must be a torch\.nn\.Module, not function"):
        sl.Normalised(lambda x: net(x), mean=0.5)


def test_cam_layer_of_a_users_own_model() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten())
    assert declared_cam_layer(net) is None
    net.cam_layer = "0"
    assert declared_cam_layer(net) == "0"
    assert declared_cam_layer(sl.Normalised(net)) == "net.0"
    net.cam_layer = "9"
    with pytest.raises(UnknownNameError, match="unknown layer of Sequential"):
        declared_cam_layer(net)


def test_the_list_has_every_name() -> None:
    table = sl.list_models()
    assert list(table.index) == [*NAMES, "torchvision/NAME", "timm/NAME"]
    assert table.loc["lenet5", "parameters"] == PARAMETERS["lenet5"]
