"""Draw docs/figures/methods/*.jpg and docs/figures/metrics/*.png, one picture for each method and metric.

The name `overview` stands for docs/figures/methods.png and sanity.png: all methods on one digit, and their
sanity check.

Methods explain two photographs of scikit-image. Those that EfficientNet's activations do not suit explain
digits instead, and those that need attention a small transformer, trained here on crops of the photographs.
Metrics score the maps of four methods. Run `python docs/catalogue_pictures.py [NAME ...]`; all take minutes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from torchvision.transforms import v2

import saliency_lab as sl
from saliency_lab.comparison.measures import Measure
from saliency_lab.data.planted import PlantedNet, true_map
from saliency_lab.metrics.catalogue import METRICS
from saliency_lab.plotting.maps import gallery, grid
from saliency_lab.plotting.style import axis_label, figure, looks, save, styled

FIGURES = Path(__file__).parent / "figures"
DPI = 130
"""Sharp on screens of two pixels per point, at the width of a page's text."""
PHOTOGRAPHS = ("Egyptian cat", "espresso")
SETTINGS: dict[str, dict[str, Any]] = {
    "layer_cam": {"layer": "net._blocks.10"},
    "occlusion": {"window": 48, "stride": 16},
    "shapley_value_sampling": {"n": 10},
}
ON_DIGITS = ("score_cam", "xgrad_cam")
"""Methods that expect activations without negative values, which EfficientNet's last layer has."""

FRACTION = "fraction of the pixels removed"
PROBABILITY = "probability"
CURVES = {
    "pixel_flipping": ("fraction of the pixels flipped", PROBABILITY),
    "deletion": (FRACTION, PROBABILITY),
    "insertion": ("fraction of the pixels shown", PROBABILITY),
    "masked_input_accuracy": (FRACTION, "accuracy"),
    "masked_input_accuracy_lowest": (FRACTION, "accuracy"),
    "selectivity": (FRACTION, PROBABILITY),
    "region_perturbation": ("patches removed", "fall of the probability"),
    "irof": (FRACTION, "probability, 1 = image"),
    "monotonicity": ("fraction of the pixels shown", PROBABILITY),
    "sic": ("information in the image", PROBABILITY + ", 1 = image"),
    "aic": ("information in the image", "accuracy"),
    "road": (FRACTION, "accuracy"),
    "road_combined": (FRACTION, "half the difference"),
}
"""The axes of each metric's curve, whose values are means over the images."""

COMPARED = ("integrated_gradients", "saliency", "edges", "random")


def transformer(photographs: torch.Tensor, names: list[str]) -> torch.nn.Module:
    """Train a small vision transformer to tell crops of the photographs apart."""
    torch.manual_seed(0)
    cut = v2.Compose([v2.RandomResizedCrop(224, scale=(0.2, 0.8), antialias=True), v2.RandomHorizontalFlip()])
    labels = torch.arange(210) % len(names)
    crops = torch.stack([cut(photographs[k]) for k in labels]).clamp(0, 1)
    net = timm.models.VisionTransformer(
        patch_size=16, num_classes=len(names), embed_dim=96, depth=4, num_heads=4
    )
    model = sl.wrap(net, mean=0.5, std=0.25, classes=names, size=224).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(20):
        for rows in torch.randperm(len(crops)).split(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(crops[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def draw_methods(names: list[str]) -> None:
    """Explain two images by each method, and draw them next to their maps."""
    net = sl.load_model("imagenet/efficientnet_lite0")
    data = sl.load_dataset("photos")
    x, y = data.test.all()
    classes = [data.classes[label] for label in y]
    rows = [classes.index(name) for name in PHOTOGRAPHS]
    others = [k for k in range(len(x)) if k not in rows]
    digits = sl.load_dataset("digits")
    small, (figures, _) = sl.load_model("digits/standard"), digits.test.sample(2, seed=0)
    references, _ = digits.train.sample(20, seed=0)
    families = sl.list_methods().family
    on_photographs = (net, x[rows], "EfficientNet-Lite0", x[others])
    on_digits = (small, figures, "small_cnn on digits", references)
    vit = None
    for name in names:
        tried = [on_digits] if name in ON_DIGITS else [on_photographs, on_digits]
        if families[name] == "attention":
            vit = vit or transformer(x, classes)
            tried = [(vit, x[rows], "small ViT, trained on crops", x[others])]
        for model, images, of, baselines in tried:
            settings = SETTINGS.get(name, {}) if model is net else {}
            if name in ("gradient_shap", "deep_lift_shap"):
                settings = {"baselines": baselines}
            try:
                maps = sl.attribute(model, images, method=name, target="prediction", **settings)
                break
            except sl.SaliencyLabError as refusal:
                print(f"{name} on {of}: {refusal}")
        chances = maps.probabilities.tolist()
        labels = [f"{label}, {chance:.0%}" for label, chance in zip(maps.class_names, chances, strict=True)]
        fine = images.shape[-1] > 64 and families[name] not in ("layer", "attention")
        drawn = grid(
            images, {name: maps}, labels=labels, title=of, smooth=1.5 * fine, scale="panel", cell=2.0
        )
        path = FIGURES / "methods" / f"{name}.jpg"
        drawn.savefig(path, dpi=DPI, pil_kwargs={"quality": 75, "optimize": True})


@styled
def draw_scores(name: str, scores: dict[str, sl.metrics.Scores], images: str) -> Figure:
    """Draw each image's score by method, and the mean curve where the metric has one."""
    look = looks(list(scores))
    curves = {method: each.curve for method, each in scores.items() if each.curve is not None}
    drawn = figure(7.0 if curves else 5.6, 2.5)
    panels = drawn.subplots(1, 2 if curves else 1, squeeze=False)[0]
    draws = np.random.default_rng(0)
    ticks, ends = [], []
    for row, (method, each) in enumerate(scores.items()):
        values = each.values[np.isfinite(each.values)]
        missing = len(each.values) - len(values)
        ticks.append(method + (f"\n{missing} of {len(each.values)} without score" if missing else ""))
        if not len(values):
            continue
        heights = row + draws.uniform(-0.25, 0.25, len(values))
        panels[0].plot(values, heights, ".", color=look[method].colour, alpha=0.3, markersize=4)
        measure = Measure(
            name, method, np.nan, METRICS[name].better, {method: values[None]}, METRICS[name].bounds
        )
        mean, low, high = measure.interval(method, 0.95)[:3]
        ends += [mean if np.isnan(low) else low]
        error = None if np.isnan(low) else [[mean - low], [high - mean]]
        panels[0].errorbar(
            mean, row, xerr=error, fmt=look[method].marker, color="black", capsize=3, markersize=5
        )
    panels[0].set_yticks(range(len(scores)), ticks)
    panels[0].set_ylim(len(scores) - 0.5, -0.5)
    panels[0].set_xlabel(axis_label(name, METRICS[name].better))
    low, high = METRICS[name].bounds
    finite = np.concatenate([each.values[np.isfinite(each.values)] for each in scores.values()])
    if np.isinf([low, high]).any() and len(finite):
        left, right = np.quantile(finite, [0.02, 0.98]) * 1.1  # a few far values would squeeze the others
        panels[0].set_xlim(left=min(0.0, left, *ends), right=right or None)
    for method, curve in curves.items():
        at = curve.at if curve.at.ndim == 1 else curve.at.mean(0)
        panels[1].plot(at, np.nanmean(curve.values, 0), color=look[method].colour, label=method)
    if curves:
        panels[1].set(xlabel=CURVES[name][0], ylabel=CURVES[name][1])
    if len(finite) and np.abs(finite).max() >= 1e5:
        panels[0].xaxis.set_major_formatter(EngFormatter())
    drawn.suptitle(images, fontsize="small")
    return drawn


def draw_metrics(names: list[str]) -> None:
    """Score maps of four methods by each metric."""
    digits, model = sl.load_dataset("digits"), sl.load_model("digits/standard")
    x, y = digits.test.sample(60, seed=0)
    maps = {method: sl.attribute(model, x, y, method) for method in COMPARED}
    attacked = sl.attack(model, x, y, "pgd", eps=0.1, steps=20).adversarial
    planted = sl.load_dataset("planted").test.located(60)
    reader = PlantedNet()
    located = {method: sl.attribute(reader, planted.x, planted.y, method) for method in COMPARED[:2]}
    located["truth"] = true_map(planted.x, planted.y)
    located["random"] = sl.attribute(reader, planted.x, planted.y, "random")
    for name in names:
        images = "60 test images of the digits, small_cnn"
        if METRICS[name].family == "localisation":
            images = "60 images with a planted pattern, whose evidence is known"
            scores = {
                method: sl.evaluate_detailed(reader, planted.x, planted.y, each, name, masks=planted.masks)
                for method, each in located.items()
            }
        else:
            given = {"attacked": attacked} if name.startswith("attack_") else {}
            scores = {
                method: sl.evaluate_detailed(model, x, y, each, name, **given)
                for method, each in maps.items()
            }
        drawn = draw_scores(name, scores, images)
        drawn.savefig(FIGURES / "metrics" / f"{name}.png", dpi=DPI, pil_kwargs={"optimize": True})


def draw_overview() -> None:
    """Draw one digit with its maps by all methods, and how maps change as the network is randomised."""
    data, model = sl.load_dataset("digits"), sl.load_model("digits/standard")
    x, y = data.test.sample(16, seed=0)
    train, _ = data.train.batch(slice(20))
    given = {name: {"baselines": train} for name in ("gradient_shap", "deep_lift_shap")}
    names = sl.list_methods().query("family != 'attention'").index
    one = slice(3, 4)
    maps = {name: sl.attribute(model, x[one], y[one], name, **given.get(name, {})) for name in names}
    save(gallery(x[3], maps, columns=8, cell=1.05), FIGURES / "methods.png")
    check = sl.sanity_check(model, x, y, ["saliency", "integrated_gradients", "guided_backprop", "edges"])
    save(check.plot(), FIGURES / "sanity.png")


def main() -> None:
    """Draw the pictures of the named methods and metrics, or all."""
    named = set(sys.argv[1:])
    methods = [name for name in sl.list_methods().index if not named or name in named]
    metrics = [name for name in sl.list_metrics().index if not named or name in named]
    for kind in ("methods", "metrics"):
        (FIGURES / kind).mkdir(exist_ok=True)
    if methods:
        draw_methods(methods)
    if metrics:
        draw_metrics(metrics)
    if not named or "overview" in named:
        draw_overview()


if __name__ == "__main__":
    main()
