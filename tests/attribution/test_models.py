"""Every method on the shipped architectures and on torchvision's networks as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from saliency_lab._common.errors import InputError
from saliency_lab.attribution import attribute, list_methods
from saliency_lab.models import build_model

CAM = ("grad_cam", "guided_grad_cam", "grad_cam_plus_plus", "layer_cam", "hires_cam", "xgrad_cam")
CAM += ("score_cam", "ablation_cam", "eigen_cam")
CHEAP = {
    "integrated_gradients": {"steps": 2},
    "smoothgrad": {"n": 2},
    "smoothgrad_sq": {"n": 2},
    "vargrad": {"n": 2},
    "gradient_shap": {"n": 2},
    "layer_conductance": {"steps": 2},
    "guided_ig": {"steps": 2},
    "blur_ig": {"steps": 2},
    "xrai": {"steps": 2},
    "shapley_values": {"segments": 3},
    "occlusion": {"window": 16, "stride": 16},
    "feature_ablation": {"segments": 3},
    "shapley_value_sampling": {"segments": 3, "n": 1},
    "kernel_shap": {"segments": 3, "n": 4},
    "lime": {"segments": 3, "n": 4},
    "rise": {"n": 4, "cells": 2},
    **{name: {"relu": False} for name in CAM},
}
NO_SENSE = {"guided_backprop", "deconvolution", "deep_lift", "deep_lift_shap", "lrp", "guided_grad_cam"}


def _run(model: nn.Module, name: str, x: Tensor, **settings: str) -> Tensor:
    settings = {**CHEAP.get(name, {}), **settings}
    if name in {"gradient_shap", "deep_lift_shap"}:
        settings["baselines"] = x.flip(3)
    maps = attribute(model, x, method=name, target=1, **settings)
    assert maps.values.shape == x.shape and maps.values.isfinite().all()
    assert name == "lime" or (maps.values != 0).any()
    if name.startswith("deep_lift"):
        assert maps.completeness_error.max() < 1e-2
    return maps.values


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )
    nn.init.normal_(model.heads.head.weight)
    return model.eval()


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    grey, colour = (1, 28, 28), (3, 32, 32)
    shapes = {"small_cnn": grey, "resnet18": colour, "vgg11_bn": colour, "torchvision/resnet18": colour}
    return {
        name: build_model(name, num_classes=5, input_shape=shape, mean=0.4, std=0.3)
        for name, shape in shapes.items()
    }


def _images(model_name: str) -> Tensor:
    shape = (1, 1, 28, 28) if model_name == "small_cnn" else (1, 3, 32, 32)
    return torch.rand(shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.long
@pytest.mark.parametrize("model", ["small_cnn", "resnet18", "vgg11_bn", "torchvision/resnet18"])
@pytest.mark.parametrize("name", list_methods().query("family != 'attention'").index)
def test_convolutional_networks(models, name, model):
    net, settings = models[model], {}
    if name in ("score_cam", "ablation_cam"):  # a pass per channel: the first convolution has the fewest
        settings["layer"] = next(layer for layer, part in net.named_modules() if isinstance(part, nn.Conv2d))
    _run(net, name, _images(model), **settings)


@pytest.mark.parametrize("name", [name for name in list_methods().index if name not in NO_SENSE])
def test_vision_transformer(vit, name):
    x = _images("vit")
    _run(vit, name, x)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("guided_backprop", r"has none that can be seen: encoder.*GELU\) calls F.gelu"),
        ("deep_lift", r"nonlinearities only: encoder.*LayerNorm\) calls F.layer_norm"),
        ("lrp", r"no rule for some of this model's operations: .*layer_norm"),
    ],
)
def test_a_transformer_is_refused_by_module(vit, name, message):
    with pytest.raises(InputError, match=message):
        attribute(vit, _images("vit"), method=name, target=1)


@pytest.mark.parametrize("name", ["deep_lift", "lrp", "guided_backprop"])
def test_torchvisions_resnet_agrees_with_its_twin_without_reuse(models, name):
    """Its blocks use one in-place ReLU twice; the same network with a ReLU of its own for each use agrees."""
    import copy
    from types import MethodType

    model = models["torchvision/resnet18"]
    twin = copy.deepcopy(model)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.first(self.bn1(self.conv1(x)))))
        return self.second(out + (x if self.downsample is None else self.downsample(x)))

    for module in twin.modules():
        if type(module).__name__ == "BasicBlock":
            module.first, module.second = nn.ReLU(), nn.ReLU()
            module.forward = MethodType(forward, module)
    x = _images("resnet")
    torch.testing.assert_close(_run(model, name, x), _run(twin, name, x), rtol=1e-3, atol=1e-5)
