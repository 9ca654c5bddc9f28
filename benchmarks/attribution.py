"""Every method compared with the bare passes it needs, and with Captum (LRP: zennit) with the same settings.

    python benchmarks/attribution.py [--quick] [--json FILE] [--only METHOD ...] [--memory]

Ratios are medians over rounds in which the three take turns, of CPU time, which other work on the machine
disturbs less than the clock. The floor is the model's own forward (and, where the method needs one, backward)
passes on as many images, parameters frozen, in the best of three chunk sizes. `--memory` prints instead the
peak memory of integrated gradients with 200 steps on 100 and on 1,000 images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import captum.attr as ca
import torch
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import EpsilonPlus

import saliency_lab as sl
from saliency_lab.models.layers import declared_cam_layer

TARGETS = {
    "saliency": 1.05,
    "input_x_gradient": 1.05,
    "integrated_gradients": 1.05,
    "smoothgrad": 1.05,
    "guided_backprop": 1.05,
    "deconvolution": 1.05,
    "occlusion": 1.1,
    "rise": 1.1,
    "deep_lift": 1.2,
    "lrp": 1.3,
}


@dataclass(frozen=True)
class Case:
    """Our settings; the passes per image: forward alone, forward and backward; the peer's call."""

    settings: dict[str, Any]
    forwards: int
    backwards: int
    peer: Callable[[nn.Module, Tensor, Tensor], Tensor] | None


def cases(x: Tensor, quick: bool) -> dict[str, Case]:
    steps = 3 if quick else 8
    size = x.shape[-1]
    window, channels = size // (2 if quick else 4), x.shape[1]
    windows = (size // window) ** 2
    quarters = torch.arange(size)[:, None] // (size // 2) * 2 + torch.arange(size) // (size // 2)

    def tunnel(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return ca.NoiseTunnel(ca.Saliency(model)).attribute(
            x, "smoothgrad", nt_samples=steps, stdevs=0.15, target=y, abs=False
        )

    def grad_cam(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        layer = declared_cam_layer(model)
        assert layer is not None
        return ca.LayerGradCam(model, model.get_submodule(layer)).attribute(x, target=y)

    def occlude(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return ca.Occlusion(model).attribute(
            x, (channels, window, window), (channels, window, window), target=y
        )

    def relevance(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        composite = EpsilonPlus(canonizers=[SequentialMergeBatchNorm()])
        with Gradient(model, composite) as attributor:
            return attributor(x, torch.eye(10)[y])[1]

    return {
        "saliency": Case({}, 0, 1, lambda m, x, y: ca.Saliency(m).attribute(x, target=y, abs=False)),
        "input_x_gradient": Case({}, 0, 1, lambda m, x, y: ca.InputXGradient(m).attribute(x, target=y)),
        "integrated_gradients": Case(
            {"steps": steps},
            1,
            steps,
            lambda m, x, y: ca.IntegratedGradients(m).attribute(x, target=y, n_steps=steps),
        ),
        "smoothgrad": Case({"n": steps}, 0, steps, tunnel),
        "guided_backprop": Case({}, 0, 1, lambda m, x, y: ca.GuidedBackprop(m).attribute(x, target=y)),
        "deconvolution": Case({}, 0, 1, lambda m, x, y: ca.Deconvolution(m).attribute(x, target=y)),
        "deep_lift": Case({}, 0, 1, lambda m, x, y: ca.DeepLift(m).attribute(x, target=y)),
        "lrp": Case({}, 1, 1, relevance),
        "grad_cam": Case({}, 0, 1, grad_cam),
        "occlusion": Case({"window": window, "stride": window}, 1 + windows, 0, occlude),
        "feature_ablation": Case(
            {"segments": quarters},
            5,
            0,
            lambda m, x, y: ca.FeatureAblation(m).attribute(x, target=y, feature_mask=quarters),
        ),
        "shapley_value_sampling": Case(
            {"segments": quarters, "n": 4},
            17,
            0,
            lambda m, x, y: ca.ShapleyValueSampling(m).attribute(
                x, target=y, feature_mask=quarters, n_samples=4
            ),
        ),
        "rise": Case({"n": 4 * steps}, 4 * steps, 0, None),
    }


def bare(model: nn.Module, x: Tensor, y: Tensor, forwards: int, backwards: int, rows: int) -> None:
    """The passes alone."""
    for images, labels in zip(x.split(rows), y.split(rows), strict=True):
        with torch.no_grad():
            for _ in range(forwards):
                model(images)
        for _ in range(backwards):
            point = images.detach().requires_grad_(True)
            torch.autograd.grad(model(point).gather(1, labels[:, None]).sum(), point)


def seconds(action: Callable[[], Any]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


def compare(model: nn.Module, name: str, case: Case, x: Tensor, y: Tensor, rounds: int) -> dict[str, Any]:
    model.eval().requires_grad_(False)
    passes = (case.forwards, case.backwards)
    sizes = (32, 64, 128)
    tried = {
        rows: min(seconds(lambda r=rows: bare(model, x, y, *passes, r)) for _ in range(2)) for rows in sizes
    }
    best = min(tried, key=lambda rows: tried[rows])
    peer, peer_runs = case.peer, True
    times: dict[str, list[float]] = {"ours": [], "floor": [], "peer": []}
    sl.attribute(model, x, y, name, **case.settings)
    for _ in range(rounds):
        times["floor"].append(seconds(lambda: bare(model, x, y, *passes, best)))
        times["ours"].append(seconds(lambda: sl.attribute(model, x, y, name, **case.settings)))
        if peer is not None and peer_runs:
            try:
                times["peer"].append(seconds(lambda: peer(model, x.clone(), y)))
            except Exception:
                peer_runs = False
    floor = times["floor"]
    ratio = {
        key: statistics.median(each / base for each, base in zip(values, floor, strict=True))
        for key, values in times.items()
        if len(values) == len(floor)
    }
    return {
        "method": name,
        "floor_ms_per_image": 1000 * statistics.median(floor) / len(x),
        "ours": ratio["ours"],
        "peer": ratio.get("peer"),
        "target": TARGETS.get(name),
    }


PEAK = """
import resource, sys, torch, saliency_lab as sl
sl.show_progress(False)
x = torch.rand(int(sys.argv[1]), 1, 28, 28)
sl.attribute(sl.build_model("small_cnn"), x, method="integrated_gradients", target=0, steps=200)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def memory() -> None:
    print("integrated_gradients, 200 steps, small_cnn, 28×28: peak resident memory")
    for count in (100, 1000):
        found = subprocess.run(
            [sys.executable, "-c", PEAK, str(count)], capture_output=True, text=True, check=True
        )
        data = 2 * count * 28 * 28 * 4 / 2**20
        print(f"{count:6} images: {float(found.stdout):7.0f} MiB (images and maps: {data:.1f})")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images, steps and rounds")
    parser.add_argument("--json", type=Path, help="write the table there too")
    parser.add_argument("--only", nargs="+", help="these methods only")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    options = parser.parse_args()
    if options.memory:
        memory()
        return 0
    warnings.simplefilter("ignore")
    sl.show_progress(False)
    rounds = 3 if options.quick else 5
    networks = [("sgt_cnn", (1, 28, 28), 32 if options.quick else 128)]
    networks.append(("resnet18", (3, 32, 32), 2 if options.quick else 8))
    table = []
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds\n")
    print(f"{'network':10} {'method':24} {'floor ms/image':>14} {'ours':>6} {'peer':>7} {'target':>7}")
    for network, shape, count in networks:
        model = sl.build_model(network, input_shape=shape)
        source = torch.Generator().manual_seed(0)
        every = torch.rand(4 * count, *shape, generator=source)
        labels = torch.randint(0, 10, (4 * count,), generator=source)
        for name, case in cases(every, options.quick).items():
            if options.only and name not in options.only:
                continue
            # of methods of one pass, the checks of a call are a part that shrinks with the images
            some = 4 * count if network == "resnet18" and case.forwards + case.backwards <= 2 else count
            x, y = every[:some], labels[:some]
            row = {"network": network, "images": some} | compare(model, name, case, x, y, rounds)
            table.append(row)
            floor = row["floor_ms_per_image"]
            shown = [f"{row[key]:.2f}" if row[key] else "–" for key in ("ours", "peer", "target")]
            print(
                f"{network:10} {name:24} {floor:14.3f} {shown[0]:>6} {shown[1]:>7} {shown[2]:>7}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
