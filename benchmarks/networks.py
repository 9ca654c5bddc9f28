"""Every attribution method on families of networks: which give a map, and why the others are refused.

    python benchmarks/networks.py [--quick] [--json FILE] [--causes]

Networks of torchvision and timm with random weights, on small images. Prints the table of methods × families
of docs/attribution.md; `--causes` prints each refusal instead. `tests/attribution/test_matrix.py` runs the
same combinations and asserts the maps and the causes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision import models as tv

import saliency_lab as sl
from saliency_lab._common.errors import InputError

CLASSES = 5
SETTINGS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 32},
    "smoothgrad": {"n": 2},
    "smoothgrad_sq": {"n": 2},
    "vargrad": {"n": 2},
    "guided_ig": {"steps": 4},
    "blur_ig": {"steps": 4},
    "xrai": {"steps": 4},
    "gradient_shap": {"n": 2},
    "layer_conductance": {"steps": 2},
    "occlusion": {"window": 16, "stride": 16},
    "feature_ablation": {"segments": 4},
    "shapley_value_sampling": {"segments": 4, "n": 1},
    "shapley_values": {"segments": 4},
    "kernel_shap": {"segments": 4, "n": 8},
    "lime": {"segments": 4, "n": 8, "alpha": 1e-6},
    "rise": {"n": 8, "cells": 2},
}
NEED_BASELINES = {"gradient_shap", "deep_lift_shap"}
GROUPS = {
    "rectified": ("guided_backprop", "deconvolution", "guided_grad_cam"),
    "deep_lift": ("deep_lift", "deep_lift_shap"),
    "lrp": ("lrp",),
    "attn_lrp": ("attn_lrp",),
    "attention": ("attention_rollout", "attention_relevance"),
}
"""Methods that refuse some networks, by what they need."""


@dataclass(frozen=True)
class Network:
    """A network with random weights: its family, the side of its images, and what refuses it.

    `refused` holds, for a group of methods, a regular expression of the cause.
    """

    family: str
    side: int
    build: Callable[[], nn.Module]
    refused: Mapping[str, str] = field(default_factory=dict)

    def prepared(self) -> tuple[nn.Module, Tensor]:
        """The network in eval mode, with statistics of its own activations, and one image."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.build()
            for parameter in model.parameters():  # heads, scales and residual branches that begin at zero
                if parameter.abs().max() < 1e-3:
                    nn.init.normal_(parameter, 0, 0.1) if parameter.ndim > 1 else nn.init.uniform_(parameter)
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                    module.momentum = 1.0
            with torch.no_grad():
                model.train()(torch.rand(8, 3, self.side, self.side))
            image = torch.rand(1, 3, self.side, self.side)
        return model.eval(), image

    def cause(self, method: str) -> str | None:
        """The expression that a refusal of the method matches; None if it gives a map."""
        return next((why for group, why in self.refused.items() if method in GROUPS[group]), None)


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=CLASSES, **options)


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: tv.get_model(name, weights=None, num_classes=CLASSES, **options)


TINY = {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 32, "patch_size": 8}
NO_ATTENTION, WINDOWS = "no self-attention was seen", "attends within windows or groups of"


def _refused(
    attention: str | None = NO_ATTENTION, *, activation: str = "", call: str = "", attn_lrp: str = ""
) -> dict[str, str]:
    """Causes: an activation other than ReLU; calls for which DeepLIFT and LRP, or AttnLRP, have no rule."""
    causes = {
        "rectified": rf"has none that can be seen: .*calls F\.{activation}" if activation else "",
        "deep_lift": rf"covers linear layers.* calls {call}" if call else "",
        "lrp": rf"has no rule .* calls {call}" if call else "",
        "attn_lrp": rf"has no rule .* calls {attn_lrp}" if attn_lrp else "",
        "attention": attention or "",
    }
    return {group: cause for group, cause in causes.items() if cause}


GATED = _refused(call=r"Tensor\.mul")
TRANSFORMER = {"activation": "gelu", "call": r"F\.layer_norm"}
NETWORKS: dict[str, Network] = {
    "resnet18": Network("ResNet", 32, _torchvision("resnet18"), _refused()),
    "resnet50": Network("ResNet", 32, _torchvision("resnet50"), _refused()),
    "resnext50_32x4d": Network("ResNet", 32, _torchvision("resnext50_32x4d"), _refused()),
    "seresnet18 (timm)": Network("ResNet", 32, _timm("legacy_seresnet18"), GATED),
    "vgg11_bn": Network("VGG, AlexNet", 32, _torchvision("vgg11_bn"), _refused()),
    "alexnet": Network("VGG, AlexNet", 64, _torchvision("alexnet"), _refused()),
    "squeezenet1_1": Network("VGG, AlexNet", 64, _torchvision("squeezenet1_1"), _refused()),
    "densenet121": Network("DenseNet", 32, _torchvision("densenet121"), _refused()),
    "inception_v3": Network(
        "Inception", 80, _torchvision("inception_v3", init_weights=False, aux_logits=False), _refused()
    ),
    "googlenet": Network("Inception", 64, _torchvision("googlenet", init_weights=False), _refused()),
    "mobilenet_v2": Network("MobileNet", 32, _torchvision("mobilenet_v2"), _refused(activation="hardtanh")),
    "mobilenet_v3_small": Network("MobileNet", 32, _torchvision("mobilenet_v3_small"), GATED),
    "shufflenet_v2_x0_5": Network("MobileNet", 32, _torchvision("shufflenet_v2_x0_5"), _refused()),
    "mnasnet0_5": Network("MobileNet", 32, _torchvision("mnasnet0_5"), _refused()),
    "efficientnet_b0": Network(
        "EfficientNet", 32, _torchvision("efficientnet_b0"), _refused(activation="silu", call=r"Tensor\.mul")
    ),
    "regnet_y_400mf": Network("RegNet", 32, _torchvision("regnet_y_400mf"), GATED),
    "regnet_x_400mf": Network("RegNet", 32, _torchvision("regnet_x_400mf"), _refused()),
    "convnext_atto (timm)": Network("ConvNeXt", 64, _timm("convnext_atto"), _refused(**TRANSFORMER)),
    "convnextv2_atto (timm)": Network(
        "ConvNeXt", 64, _timm("convnextv2_atto"), _refused(**TRANSFORMER, attn_lrp=r"Tensor\.norm")
    ),
    "vit_b_16, small": Network(
        "ViT, DeiT, BEiT",
        32,
        lambda: tv.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES),
        _refused(None, **TRANSFORMER),
    ),
    "vit_tiny (timm)": Network(
        "ViT, DeiT, BEiT", 32, _timm("vit_tiny_patch16_224", **TINY), _refused(None, **TRANSFORMER)
    ),
    "vit_tiny, mean over patches (timm)": Network(
        "ViT, DeiT, BEiT",
        32,
        _timm("vit_tiny_patch16_224", **TINY, global_pool="avg"),
        _refused(None, **TRANSFORMER),
    ),
    "vit with registers (timm)": Network(
        "ViT, DeiT, BEiT", 32, _timm("vit_small_patch14_reg4_dinov2", **TINY), _refused(None, **TRANSFORMER)
    ),
    "deit_tiny_distilled (timm)": Network(
        "ViT, DeiT, BEiT", 32, _timm("deit_tiny_distilled_patch16_224", **TINY), _refused(None, **TRANSFORMER)
    ),
    "beit_base (timm)": Network(
        "ViT, DeiT, BEiT", 32, _timm("beit_base_patch16_224", **TINY), _refused(None, **TRANSFORMER)
    ),
    "cait_xxs24 (timm)": Network(
        "CaiT", 32, _timm("cait_xxs24_224", **TINY), _refused("attends from 1 to 17 tokens", **TRANSFORMER)
    ),
    "swin_t": Network(
        "Swin",
        64,
        lambda: tv.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=CLASSES),
        _refused(WINDOWS, **TRANSFORMER),
    ),
    "swinv2_tiny (timm)": Network(
        "Swin",
        64,
        _timm(
            "swinv2_tiny_window8_256", img_size=64, embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)
        ),
        _refused(WINDOWS, **TRANSFORMER),
    ),
    "pvt_v2_b0 (timm)": Network(
        "PVT", 64, _timm("pvt_v2_b0"), _refused("attends from 256 to 4 tokens", **TRANSFORMER)
    ),
    "mobilevit_xxs (timm)": Network(
        "MobileViT", 64, _timm("mobilevit_xxs"), _refused(WINDOWS, activation="silu", call=r"F\.layer_norm")
    ),
    "maxvit, small": Network(
        "MaxViT",
        64,
        lambda: tv.MaxVit((64, 64), 8, 2, [8, 16], [1, 1], 4, 0.0, num_classes=CLASSES),
        _refused(WINDOWS, activation="gelu", call=r"Tensor\.mul"),
    ),
    "mixer_s32 (timm)": Network(
        "MLP-Mixer", 64, _timm("mixer_s32_224", img_size=64), _refused(**TRANSFORMER)
    ),
    "poolformer_s12 (timm)": Network(
        "MLP-Mixer", 64, _timm("poolformer_s12"), _refused(activation="gelu", call=r"F\.group_norm")
    ),
}


def run(method: str, model: nn.Module, image: Tensor) -> sl.Attributions:
    """The map of one image by the method, with settings that make it cheap."""
    settings = dict(SETTINGS.get(method, {}))
    if method in NEED_BASELINES:
        settings["baselines"] = image.flip(3)
    if "relu" in sl.list_methods().loc[method, "settings"]:
        settings["relu"] = False  # a map of random weights may be negative throughout
    return sl.attribute(model, image, method=method, target=1, **settings)


def outcome(method: str, model: nn.Module, image: Tensor) -> str:
    """Empty if the method gives a map, else why it refuses the network."""
    try:
        run(method, model, image)
    except InputError as error:
        return str(error)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two networks only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write whether each method works here")
    parser.add_argument("--causes", action="store_true", help="print each refusal")
    options = parser.parse_args()
    names = ["resnet18", "vit_tiny (timm)"] if options.quick else list(NETWORKS)
    methods = list(sl.list_methods().query("family != 'control'").index)
    given: dict[str, dict[str, list[bool]]] = {method: {} for method in methods}
    for name in names:
        network = NETWORKS[name]
        model, image = network.prepared()
        for method in methods:
            why = outcome(method, model, image)
            given[method].setdefault(network.family, []).append(not why)
            if why and options.causes:
                print(f"{method} · {name}: {why}")
    if options.json is not None:
        options.json.write_text(json.dumps(given, indent=1) + "\n", encoding="utf-8")
    if options.causes:
        return
    families = list(dict.fromkeys(NETWORKS[name].family for name in names))
    print("| method |", " | ".join(families), "|")
    print("| --- |", " | ".join("---" for _ in families), "|")
    for method in methods:
        marks = [_mark(given[method][family]) for family in families]
        print(f"| `{method}` |", " | ".join(marks), "|")


def _mark(given: list[bool]) -> str:
    return "✓" if all(given) else "some" if any(given) else "–"


if __name__ == "__main__":
    main()
