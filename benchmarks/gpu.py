"""Every GPU row in at most ten minutes: passes, maps, scores, attacks and training steps, with the peers.

    python benchmarks/gpu.py [--quick] [--device cuda] [--minutes 9] [--json FILE]

ResNet-50 and ViT-B/16 at 224×224 with random weights. Each row is the best of three runs, wall time, after
one that warms up; the device is waited for. Rows are in order of interest; those for which no time is left
are missing from the file. `--quick --device cpu` tries everything with tiny networks.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import captum.attr as ca
import quantus
import torch
import torchvision
from metrics import QUIET
from torch import Tensor, nn

import saliency_lab as sl
from saliency_lab.training import OBJECTIVES, AttackSpec, Step

try:
    import torchattacks
except ImportError:
    torchattacks = None


class Bench:
    """A device, the sizes for it, and the rows so far."""

    def __init__(self, device: str, quick: bool, minutes: float) -> None:
        self.device, self.quick = torch.device(device), quick
        self.until = time.perf_counter() + 60 * minutes
        self.side, self.images = (32, 4) if quick else (224, 64)
        self.rows: list[dict[str, Any]] = []

    def network(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        if self.quick:
            name = "resnet18" if name == "resnet50" else name
        if self.quick and name == "vit_b_16":
            net: nn.Module = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32)
        else:
            net = getattr(torchvision.models, name)(weights=None)
        return net.eval().requires_grad_(False).to(self.device)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        source = torch.Generator().manual_seed(0)
        x = torch.rand(count, 3, self.side, self.side, generator=source)
        return x, torch.arange(count) % 10

    def seconds(self, action: Callable[[], object], times: int = 3) -> float:
        taken = []
        for _ in range(times + 1):
            self.wait()
            began = time.perf_counter()
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                action()
            self.wait()
            taken.append(time.perf_counter() - began)
        return min(taken[1:])

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def add(self, work: str, images: int, ours: float, floor: float | None, peers: dict[str, float]) -> None:
        row = {
            "work": work,
            "ms per image": round(1000 * ours / images, 3),
            "over the passes": None if floor is None else round(ours / floor, 2),
            **{f"{who} / ours": round(value / ours, 2) for who, value in peers.items()},
        }
        self.rows.append(row)
        print(" | ".join(f"{key}: {value}" for key, value in row.items()), flush=True)


def passes(bench: Bench) -> Iterator[None]:
    """Forward passes and input gradients in the form that `compile` finds, over the model's own."""
    for name in ("resnet50", "vit_b_16"):
        net = bench.network(name)
        x, y = bench.batch(bench.images * 4)
        there = x.to(bench.device)

        def bare(net: nn.Module = net, there: Tensor = there) -> None:
            with torch.no_grad():
                for chunk in there.split(32):
                    net(chunk)

        def predicted(net: nn.Module = net, x: Tensor = x, y: Tensor = y) -> None:
            sl.attribute(net, x[:2], y[:2], "occlusion", window=bench.side // 8, stride=bench.side // 8)

        for label, setting in {
            "own passes": {"compile": False},
            "compiled": {"compile": True},
            "compiled, bfloat16": {"compile": True, "dtype": "bfloat16"},
        }.items():
            with sl.execution(**setting):  # type: ignore[arg-type]
                floor = bench.seconds(bare) * 2 * 65 / len(x)
                bench.add(f"occlusion, {name}, {label}", 2, bench.seconds(predicted), floor, {})
        yield


def maps(bench: Bench) -> Iterator[None]:
    """Methods with Captum, over their own passes."""
    net = bench.network("resnet50")
    x, y = bench.batch(bench.images)
    there, labels = x.to(bench.device), y.to(bench.device)
    steps = 4 if bench.quick else 16

    def bare(times: int) -> None:
        for _ in range(times):
            for chunk, some in zip(there.split(32), labels.split(32), strict=True):
                points = chunk.clone().requires_grad_(True)
                torch.autograd.grad(net(points).gather(1, some[:, None]).sum(), points)

    works: dict[str, tuple[dict[str, Any], int, Callable[[], object]]] = {
        "saliency": ({}, 1, lambda: ca.Saliency(net).attribute(there, target=labels, abs=False)),
        "integrated_gradients": (
            {"steps": steps},
            steps,
            lambda: ca.IntegratedGradients(net).attribute(
                there, target=labels, n_steps=steps, internal_batch_size=64
            ),
        ),
    }
    for name, (settings, count, peer) in works.items():
        ours = bench.seconds(lambda n=name, s=settings: sl.attribute(net, x, y, n, **s))
        bench.add(
            f"{name}, resnet50",
            len(x),
            ours,
            bench.seconds(lambda c=count: bare(c)),
            {"Captum": bench.seconds(peer)},
        )
        yield


def scores(bench: Bench) -> Iterator[None]:
    """Metrics with Quantus, over the bare passes."""
    net = bench.network("resnet50")
    x, y = bench.batch(4 if bench.quick else 16)
    given = sl.attribute(net, x, y, "saliency")
    side, runs, steps = bench.side, 5 if bench.quick else 50, 4 if bench.quick else 14
    there = x.to(bench.device)

    def bare(count: int) -> None:
        with torch.no_grad():
            for _ in range(count):
                net(there)

    works: dict[str, tuple[dict[str, Any], int, Callable[[], Any]]] = {
        "pixel_flipping": (
            {"steps": steps},
            steps + 1,
            lambda: quantus.PixelFlipping(features_in_step=side * side // steps, **QUIET),
        ),
        "faithfulness_correlation": (
            {"runs": runs},
            runs + 1,
            lambda: quantus.FaithfulnessCorrelation(nr_runs=runs, subset_size=side * side * 2 // 7, **QUIET),
        ),
    }
    for name, (settings, count, build) in works.items():
        theirs = bench.seconds(
            lambda b=build: b()(
                model=net, x_batch=x.numpy(), y_batch=y.numpy(), a_batch=given.values.numpy().copy(),
                softmax=True, channel_first=True, device=str(bench.device), batch_size=32,
            ),
            times=1,
        )  # fmt: skip
        ours = bench.seconds(lambda n=name, s=settings: sl.evaluate(net, x, y, given, n, **s))
        floor = bench.seconds(lambda c=count: bare(c))
        bench.add(f"{name}, resnet50", len(x), ours, floor, {"Quantus": theirs})
        yield
    ours = bench.seconds(lambda: sl.evaluate(net, x, y, given, "road"))
    bench.add("road, resnet50", len(x), ours, bench.seconds(lambda: bare(10)), {})
    yield


def attacks(bench: Bench) -> Iterator[None]:
    """PGD with torchattacks, with an ε so small that nothing breaks."""
    net = sl.build_model("resnet18", input_shape=(3, 32, 32)).eval().to(bench.device)
    count, steps = (8, 3) if bench.quick else (512, 40)
    source = torch.Generator().manual_seed(0)
    x = torch.rand(count, 3, 32, 32, generator=source)
    with torch.no_grad():
        y = net(x.to(bench.device)).argmax(1).cpu()
    peers = {}
    if torchattacks is not None:
        peer = torchattacks.PGD(net, eps=1e-5, alpha=1e-6, steps=steps)
        peers["torchattacks"] = bench.seconds(lambda: peer(x, y))
    ours = bench.seconds(lambda: sl.attack(net, x, y, eps=1e-5, steps=steps))
    bench.add(f"PGD-{steps}, resnet18, 32×32", count, ours, None, peers)
    yield


def training(bench: Bench) -> Iterator[None]:
    """A step of each objective, in steps of standard training."""
    rows = 8 if bench.quick else 256
    net = sl.build_model("resnet18", input_shape=(3, 32, 32)).train().to(bench.device)
    source = torch.Generator().manual_seed(0)
    x = torch.rand(rows, 3, 32, 32, generator=source).to(bench.device)
    y = torch.randint(0, 10, (rows,), generator=source).to(bench.device)
    optimiser = torch.optim.SGD(net.parameters(), 1e-4)

    def step(objective: str) -> None:
        spec = AttackSpec(eps=0.03, steps=7)
        terms = OBJECTIVES[objective]().terms(
            Step(net=net, x=x, y=y, attack=spec, eps=0.03, progress=0.5, seed=0)
        )
        optimiser.zero_grad()
        sum(terms.values()).backward(inputs=list(net.parameters()))  # type: ignore[union-attr]
        optimiser.step()

    standard = bench.seconds(lambda: step("standard"))
    for name in ("standard", "sgt", "at", "asgt"):
        took = standard if name == "standard" else bench.seconds(lambda n=name: step(n))
        bench.add(f"training step, {name}, resnet18, batch of {rows}", rows, took, standard, {})
        yield


def memory(bench: Bench) -> Iterator[None]:
    """Largest memory of the device: integrated gradients with 200 steps, by the number of images."""
    if bench.device.type != "cuda":
        return
    net = bench.network("resnet50")
    for count in (16, 64):
        x, y = bench.batch(count)
        torch.cuda.reset_peak_memory_stats(bench.device)
        began = time.perf_counter()
        sl.attribute(net, x, y, "integrated_gradients", steps=200)
        bench.wait()
        row = {
            "work": f"integrated gradients, 200 steps, resnet50, {count} images",
            "ms per image": round(1000 * (time.perf_counter() - began) / count, 1),
            "peak, MiB": torch.cuda.max_memory_allocated(bench.device) >> 20,
        }
        bench.rows.append(row)
        print(row, flush=True)
        yield


PARTS = (scores, maps, attacks, training, memory, passes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny networks, under a minute")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="no row begins after as many")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here, after each part")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(
            "no GPU is available here, so nothing was measured; --device cpu --quick tries the script"
        )
    sl.show_progress(False)
    bench = Bench(options.device, options.quick, options.minutes)
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}\n")
    for part in PARTS:
        for _ in part(bench):
            if options.json is not None:
                found = {"device": name, "torch": torch.__version__, "rows": bench.rows}
                options.json.write_text(
                    json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
                )
            if time.perf_counter() > bench.until:
                return


if __name__ == "__main__":
    main()
