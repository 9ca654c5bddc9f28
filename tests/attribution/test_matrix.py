"""Every method on networks of torchvision and timm: a finite map, or a refusal that names its cause."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from saliency_lab._common.errors import InputError
from saliency_lab.attribution import attribute, list_methods

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    **{
        name: (lambda name=name: getattr(models, name)(num_classes=10), 64)
        for name in (
            *("alexnet", "vgg11_bn", "resnet18", "resnet50", "densenet121", "mobilenet_v2", "mnasnet0_5"),
            *(
                "mobilenet_v3_small",
                "efficientnet_b0",
                "regnet_y_400mf",
                "shufflenet_v2_x0_5",
                "squeezenet1_1",
            ),
            *("convnext_tiny", "swin_t"),
        )
    },
    "googlenet": (lambda: models.googlenet(num_classes=10, init_weights=False), 64),
    "inception_v3": (lambda: models.inception_v3(num_classes=10, init_weights=False), 128),
    **{
        f"timm {name} {settings}": (
            lambda name=name, settings=settings: timm.create_model(name, num_classes=10, **settings),
            64,
        )
        for name, settings in (
            ("vit_tiny_patch16_224", {"img_size": 64, "depth": 3}),
            (
                "vit_tiny_patch16_224",
                {"img_size": 64, "depth": 3, "class_token": False, "global_pool": "avg"},
            ),
            ("vit_tiny_patch16_224", {"img_size": 64, "depth": 3, "reg_tokens": 4}),
            ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 3}),
            ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "depths": (1, 1, 1, 1)}),
            ("beit_base_patch16_224", {"img_size": 64, "depth": 2}),
            ("cait_xxs24_224", {"img_size": 64, "depth": 2}),
            ("mixer_s16_224", {"img_size": 64, "num_blocks": 2}),
            ("convnext_atto", {}),
            ("mobilevit_xxs", {}),
            ("pvt_v2_b0", {}),
            ("xcit_nano_12_p16_224", {"depth": 2}),
        )
    },
}
CHEAP = {
    "integrated_gradients": {"steps": 2},
    "guided_ig": {"steps": 2},
    "blur_ig": {"steps": 2},
    "xrai": {"steps": 2},
    "smoothgrad": {"n": 2},
    "smoothgrad_sq": {"n": 2},
    "vargrad": {"n": 2},
    "gradient_shap": {"n": 2},
    "layer_conductance": {"steps": 2},
    "feature_ablation": {"segments": 3},
    "shapley_values": {"segments": 2},
    "shapley_value_sampling": {"segments": 2, "n": 1},
    "kernel_shap": {"segments": 2, "n": 4},
    "lime": {"segments": 2, "n": 4, "alpha": 0.0},
    "rise": {"n": 4, "cells": 2},
}
REFUSE = {
    "guided_backprop",
    "deconvolution",
    "guided_grad_cam",
    "deep_lift",
    "deep_lift_shap",
    "lrp",
    "attn_lrp",
}
REFUSE |= {"attention_rollout", "attention_relevance"}
SLOW = {"score_cam", "ablation_cam"}  # a pass per channel: tested on small networks in test_cam.py


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_every_method_gives_a_map_or_names_the_cause(network):
    build, size = NETWORKS[network]
    torch.manual_seed(0)
    model = build().eval()
    for name, parameter in model.named_parameters():  # a head that timm or torchvision sets to zero
        if name.rpartition(".")[0] in ("head", "heads.head", "head.fc") and not parameter.any():
            nn.init.normal_(parameter)
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    problems = []
    for name in list_methods().index:
        if name in SLOW:
            continue
        settings = dict(CHEAP.get(name, {}))
        if name in ("gradient_shap", "deep_lift_shap"):
            settings["baselines"] = x.flip(3)
        if name == "occlusion":
            settings |= {"window": size // 2, "stride": size // 2}
        try:
            maps = attribute(model, x, target=1, method=name, **settings)
        except InputError as refusal:
            if name not in REFUSE:
                problems.append(f"{name} refused: {refusal}")
            continue
        if not maps.values.isfinite().all() or maps.values.shape != x.shape:
            problems.append(f"{name}: no finite map")
    assert not problems
