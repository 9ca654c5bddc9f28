"""Photographs and a ResNet-50 at 224×224: metrics with Quantus and pytorch-grad-cam, maps with Captum.

    python benchmarks/photographs.py [--quick] [--only metrics|maps] [--images N] [--json FILE]

Weights are random. Processor time on one thread, in one process, all contenders on the same images. `eager`
are the model's own passes of as many images, two per pass, timed in the same round. Ours runs twice: as
`compile=False`, and in the form that `compile=True` finds, which is made before (`seconds of preparation`,
once per model). Quantus has no insertion curve and cannot score colour images by ROAD; ROAD's peer is
pytorch-grad-cam.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum.attr as ca
import quantus
import torch
import torchvision
from metrics import QUIET, gradient
from pytorch_grad_cam import ScoreCAM
from pytorch_grad_cam.metrics.road import ROADMostRelevantFirst
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

import saliency_lab as sl

METHODS = ["saliency", "input_x_gradient", "guided_backprop", "deconvolution", "grad_cam", "edges"]
SENSITIVE = METHODS[:2]
PERCENTAGES = (20.0, 50.0, 80.0)


def scene(images: int, side: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Photographs, mirrored where there are too few, and a network."""
    torch.manual_seed(0)
    net = (
        torchvision.models.resnet50(weights=None)
        if side == 224
        else torchvision.models.resnet18(weights=None)
    )
    x, y = sl.load_dataset("photos").test.all()
    x = torch.cat([x, x.flip(3), x.flip(2)])[:images]
    return net.eval().requires_grad_(False), nn.functional.interpolate(x, (side, side)), y.repeat(3)[:images]


def seconds(action: Callable[[], object]) -> float:
    began = time.process_time()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        action()
    return time.process_time() - began


def pairs(x: Tensor, count: int) -> list[Tensor]:
    """As many images, two per pass, whatever their number in `x`."""
    return list(x[torch.arange(count) % len(x)].split(2))


def bare(net: nn.Module, x: Tensor, count: int) -> None:
    """Predict as many images."""
    with torch.no_grad():
        for images in pairs(x, count):
            net(images)


def bare_gradients(net: nn.Module, x: Tensor, count: int) -> None:
    """Differentiate as many predictions."""
    for images in pairs(x, count):
        points = images.requires_grad_(True)
        torch.autograd.grad(net(points).amax(1).sum(), points)


def metrics(quick: bool, count: int) -> list[dict[str, Any]]:
    side = 64 if quick else 224
    net, x, y = scene(count, side)
    runs, steps, draws = (5, 4, 2) if quick else (50, 14, 3)
    maps = {name: sl.attribute(net, x, y, name) for name in METHODS}
    tensors = {name: each.values for name, each in maps.items()}
    explain = {"explain": lambda model, x, classes: gradient(model, x, classes)}
    per_step = side * side // steps
    subset = round(side * side * 2 / 7)
    works: dict[str, tuple[dict[str, Any], Callable[[], Any] | None, int]] = {
        "faithfulness_correlation": (
            {"runs": runs},
            lambda: quantus.FaithfulnessCorrelation(nr_runs=runs, subset_size=subset, **QUIET),
            count * (runs + 1),
        ),
        "pixel_flipping": (
            {"steps": steps},
            lambda: quantus.PixelFlipping(features_in_step=per_step, **QUIET),
            count * (1 + steps * len(METHODS)),
        ),
        "insertion": ({"steps": steps}, None, count * (1 + (steps - 1) * len(METHODS))),
        "road": ({"percentages": PERCENTAGES}, None, count * (1 + len(PERCENTAGES) * len(METHODS))),
    }

    def ours(name: str, settings: dict[str, Any], mode: Any) -> None:
        with sl.execution(compile=mode):
            sl.evaluate_many(net, x, y, tensors, {name: settings})

    began = time.perf_counter()
    with sl.execution(compile=True):
        sl.evaluate(net, x[:1], y[:1], tensors["saliency"][:1], "pixel_flipping", steps=4)
    prepared = time.perf_counter() - began
    rows = []
    for name, (settings, build, passes) in works.items():
        eager = seconds(lambda n=passes: bare(net, x, n))
        plain = seconds(lambda n=name, s=settings: ours(n, s, False))
        fast = seconds(lambda n=name, s=settings: ours(n, s, True))
        peer, who = None, ""
        if build is not None:
            who, peer = "Quantus", sum(in_quantus(build, net, x, y, each) for each in tensors.values())
        elif name == "road":
            who, peer = "pytorch-grad-cam", sum(in_grad_cam(net, x, y, each) for each in tensors.values())
        rows.append(row(name, passes, eager, plain, fast, peer, who))
    passes = count * draws * len(SENSITIVE)
    eager = seconds(lambda: bare_gradients(net, x, passes))

    def sensitivity(mode: Any) -> None:
        with sl.execution(compile=mode):
            for name in SENSITIVE:
                sl.evaluate(net, x, y, tensors[name], "max_sensitivity", samples=draws, **explain)

    plain, fast = seconds(lambda: sensitivity(False)), seconds(lambda: sensitivity(True))
    build = lambda: quantus.MaxSensitivity(nr_samples=draws, lower_bound=0.05, **QUIET)  # noqa: E731
    peer = sum(in_quantus(build, net, x, y, tensors[name]) for name in SENSITIVE)
    rows.append(row("max_sensitivity", passes, eager, plain, fast, peer, "Quantus"))
    shared = [each for each in rows if each["peer"] == "Quantus"]
    total = {
        key: sum(each[key] for each in shared) for key in ("eager s", "ours, eager s", "ours s", "peer s")
    }
    rows.append(
        row("all with Quantus", sum(each["passes"] for each in shared), *total.values(), "Quantus")  # type: ignore[arg-type]
    )
    return [{**each, "seconds of preparation": round(prepared, 1)} for each in rows]


def row(
    name: str, passes: int, eager: float, plain: float, fast: float, peer: float | None, who: str
) -> dict[str, Any]:
    found = {
        "work": name,
        "passes": passes,
        "eager s": round(eager, 2),
        "ours, eager s": round(plain, 2),
        "ours s": round(fast, 2),
        "ours / eager": round(fast / eager, 3),
        "peer": who or None,
        "peer s": None if peer is None else round(peer, 2),
        "peer / ours": None if peer is None else round(peer / fast, 2),
    }
    print(" | ".join(str(value) for value in found.values()), flush=True)
    return found


def in_quantus(build: Callable[[], Any], net: nn.Module, x: Tensor, y: Tensor, maps: Tensor) -> float:
    return seconds(
        lambda: build()(
            model=net, x_batch=x.numpy(), y_batch=y.numpy(), a_batch=maps.numpy().copy(), softmax=True,
            channel_first=True, device="cpu", batch_size=2, explain_func=gradient,
        )
    )  # fmt: skip


def in_grad_cam(net: nn.Module, x: Tensor, y: Tensor, maps: Tensor) -> float:
    metric = ROADMostRelevantFirst
    targets = [ClassifierOutputTarget(int(label)) for label in y]
    cams = maps.sum(1).numpy()
    return seconds(lambda: [metric(percentile=int(each))(x, cams, targets, net) for each in PERCENTAGES])


def maps(quick: bool, count: int) -> list[dict[str, Any]]:
    side = 64 if quick else 224
    net, x, y = scene(count, side)
    window, draws, layer = (32, 8, "layer1") if quick else (32, 50, "layer1")
    channels = net.get_submodule(layer)[-1].conv3.out_channels if not quick else 64  # type: ignore[index]
    windows = (side // window) ** 2

    def score_cam() -> None:
        with ScoreCAM(net, [net.get_submodule(layer)]) as method:
            method.batch_size = 2
            method(x, [ClassifierOutputTarget(int(label)) for label in y])

    works: dict[str, tuple[dict[str, Any], int, Callable[[], object] | None, str]] = {
        "occlusion": (
            {"window": window, "stride": window},
            count * (1 + windows),
            lambda: ca.Occlusion(net).attribute(x, (3, window, window), (3, window, window), target=y),
            "Captum",
        ),
        "rise": ({"n": draws}, count * draws, None, ""),
        "score_cam": ({"layer": layer}, count * (1 + channels), score_cam, "pytorch-grad-cam"),
    }
    rows = []
    for name, (settings, passes, build, who) in works.items():

        def ours(mode: Any, name: str = name, settings: dict[str, Any] = settings) -> None:
            with sl.execution(compile=mode):
                sl.attribute(net, x, y, name, **settings)

        if not rows:
            ours(True)  # prepares the form
        eager = seconds(lambda n=passes: bare(net, x, n))
        plain, fast = seconds(lambda: ours(False)), seconds(lambda: ours(True))
        rows.append(row(name, passes, eager, plain, fast, None if build is None else seconds(build), who))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a ResNet-18 at 64×64, under a minute")
    parser.add_argument("--only", choices=["metrics", "maps"])
    parser.add_argument("--images", type=int, default=2, help="number of photographs (of 21)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    sl.show_progress(False)
    torch.set_num_threads(1)
    figures = {}
    for name, part in (("metrics", metrics), ("maps", maps)):
        if options.only in (None, name):
            count = max(1, options.images // 2) if name == "maps" else options.images
            figures[name] = part(options.quick, count)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
