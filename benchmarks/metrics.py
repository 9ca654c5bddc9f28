"""The fast engine compared with Quantus and with the bare forward passes of the same images.

    python benchmarks/metrics.py [--quick] [--json FILE] [--only metrics|study|memory] [--metric NAME]
                                 [--network NAME] [--samples N]

Seconds are processor time, so that other work on the machine counts little; there is one thread. Ratios are
medians over rounds in which the three take turns. The floor is `model(x)` under no_grad on as many
images, in the better of the two memory layouts and the best of three chunk sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import quantus
import torch
from torch import Tensor, nn

import saliency_lab as sl
from saliency_lab.metrics.catalogue import METRICS
from saliency_lab.metrics.probe import channels_last
from saliency_lab.metrics.sizes import settings_at_size

QUIET = {
    "abs": False,
    "normalise": False,
    "return_aggregate": False,
    "disable_warnings": True,
    "display_progressbar": False,
}
METHODS = [
    "saliency", "input_x_gradient", "integrated_gradients", "smoothgrad", "guided_backprop", "deconvolution",
    "deep_lift", "grad_cam",
]  # fmt: skip


def gradient(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
    """What both engines explain with, when the metric makes maps: one pass each way."""
    with torch.enable_grad():
        x = torch.as_tensor(np.asarray(inputs), dtype=torch.float32).requires_grad_(True)
        out = model(x).gather(1, torch.as_tensor(np.asarray(targets))[:, None]).sum()
        return torch.autograd.grad(out, x)[0].numpy()


def pairs(pixels: int, quick: bool) -> dict[str, tuple[dict[str, Any], Callable[[], Any] | None]]:
    """Metric → our settings, and Quantus's object with the same ones (None: it has no such metric)."""
    runs, steps = (20, 16) if quick else (50, 16)
    per_step = pixels // steps
    explain = {"explain": lambda model, x, classes: gradient(model, x, classes)}
    return {
        "faithfulness_correlation": (
            {"runs": runs, "subset_size": 224},
            lambda: quantus.FaithfulnessCorrelation(nr_runs=runs, subset_size=224, **QUIET),
        ),
        "faithfulness_estimate": (
            {"steps": steps},
            lambda: quantus.FaithfulnessEstimate(features_in_step=per_step, **QUIET),
        ),
        "sensitivity_n": ({"fractions": (0.2, 0.6), "runs": runs // 2}, None),
        "monotonicity_correlation": (
            {"steps": steps, "samples": 2},
            lambda: quantus.MonotonicityCorrelation(nr_samples=2, features_in_step=per_step, **QUIET),
        ),
        "infidelity": (
            {"patch_sizes": (4,)},
            lambda: quantus.Infidelity(perturb_patch_sizes=[4], n_perturb_samples=1, **QUIET),
        ),
        "pixel_flipping": (
            {"steps": steps},
            lambda: quantus.PixelFlipping(features_in_step=per_step, **QUIET),
        ),
        "deletion": ({"steps": steps}, None),
        "insertion": ({"steps": steps}, None),
        "masked_input_accuracy": ({"steps": steps}, None),
        "monotonicity": ({"steps": steps}, lambda: quantus.Monotonicity(features_in_step=per_step, **QUIET)),
        "selectivity": ({"patch_size": 4}, lambda: quantus.Selectivity(patch_size=4, **QUIET)),
        "region_perturbation": (
            {"patch_size": 4},
            lambda: quantus.RegionPerturbation(patch_size=4, **QUIET),
        ),
        "irof": ({}, lambda: quantus.IROF(**QUIET)),
        "road": ({}, lambda: quantus.ROAD(percentages=list(range(10, 100, 10)), **QUIET)),
        "sparseness": ({}, lambda: quantus.Sparseness(**QUIET)),
        "complexity": ({}, lambda: quantus.Complexity(**QUIET)),
        "effective_complexity": ({}, lambda: quantus.EffectiveComplexity(**QUIET)),
        "max_sensitivity": (
            {"samples": 10, **explain},
            lambda: quantus.MaxSensitivity(nr_samples=10, lower_bound=0.05, **QUIET),
        ),
        "avg_sensitivity": (
            {"samples": 10, **explain},
            lambda: quantus.AvgSensitivity(nr_samples=10, lower_bound=0.05, **QUIET),
        ),
        "mprt": (explain, lambda: quantus.MPRT(return_average_correlation=True, **QUIET)),
    }


class Floor:
    """The cheapest way found to predict images of one shape, and its price."""

    def __init__(self, model: nn.Module, shape: torch.Size) -> None:
        self.model = model
        choices = []
        for chunk in (32, 64, 128):
            x = torch.rand(chunk, *shape[1:])
            for layout in (Tensor.contiguous, channels_last):
                seconds = min(self._time(layout(x), 1) for _ in range(3)) / chunk
                choices.append((seconds, chunk, layout))
        _, self.chunk, self.layout = min(choices, key=lambda choice: choice[0])
        self.x = self.layout(torch.rand(self.chunk, *shape[1:]))

    def _time(self, x: Tensor, times: int) -> float:
        began = time.process_time()
        with torch.no_grad():
            for _ in range(times):
                self.model(x)
        return time.process_time() - began

    def seconds(self, images: int) -> float:
        """Predict `images` images: full chunks and the rest."""
        full, rest = divmod(images, self.chunk)
        return self._time(self.x, full) + (self._time(self.x[:rest], 1) if rest else 0.0)

    def gradients(self, images: int) -> float:
        """One pass each way for `images` images."""
        y = np.zeros(self.chunk, dtype=np.int64)
        began = time.process_time()
        for start in range(0, images, self.chunk):
            rows = min(self.chunk, images - start)
            gradient(self.model, self.x[:rows], y[:rows])
        return time.process_time() - began


def in_quantus(
    build: Callable[[], Any], model: nn.Module, x: Tensor, y: Tensor, maps: Tensor
) -> float | None:
    """Seconds that Quantus takes, None where it raises."""
    began = time.process_time()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            build()(
                model=model, x_batch=x.numpy(), y_batch=y.numpy(), a_batch=maps.numpy().copy(), softmax=True,
                channel_first=True, device="cpu", batch_size=64, explain_func=gradient,
            )  # fmt: skip
    except Exception:
        return None
    return time.process_time() - began


def scene(name: str, count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network and images: digits for sgt_cnn, uniform noise of CIFAR-10's shape for resnet18."""
    if name == "sgt_cnn":
        return sl.build_model(name, seed=0).eval(), *sl.load_dataset("digits").test.sample(count, seed=0)
    source = torch.Generator().manual_seed(0)
    x = torch.rand(count, 3, 32, 32, generator=source)
    model = sl.build_model(name, input_shape=(3, 32, 32), num_classes=10, seed=0).eval()
    return model, x, torch.arange(count) % 10


def show(rows: list[dict[str, Any]]) -> None:
    """Print the last row of a Markdown table, and its head before the first."""
    if len(rows) == 1:
        print("| " + " | ".join(rows[0]) + " |\n" + "| --- " * len(rows[0]) + "|")
    print("| " + " | ".join("" if v is None else str(v) for v in rows[-1].values()) + " |", flush=True)


def bench_metrics(
    quick: bool, chosen: list[str], networks: list[str], samples: int | None
) -> list[dict[str, Any]]:
    """Seconds of each metric over the floor, and over Quantus."""
    rows: list[dict[str, Any]] = []
    sizes = {"sgt_cnn": 16} if quick else {"sgt_cnn": 64, "resnet18": 16}
    for network, usual in sizes.items():
        count = samples or usual
        if networks and network not in networks:
            continue
        model, x, y = scene(network, count)
        pixels = x.shape[2] * x.shape[3]
        maps = torch.as_tensor(gradient(model, x, y))
        floor = Floor(model, x.shape)
        for name, (settings, build) in pairs(pixels, quick or network == "resnet18").items():
            if chosen and name not in chosen:
                continue
            metric = METRICS[name]
            parsed = settings_at_size(metric.settings(**settings), *x.shape[2:])
            per_sample = metric.forwards(parsed, pixels)
            explained = {
                "max_sensitivity": 10,
                "avg_sensitivity": 10,
                "mprt": 4 if network == "sgt_cnn" else 41,
            }
            ours, bare, theirs = [], [], []
            for _ in range(2 if quick else 3):
                if name in explained:
                    bare.append(floor.gradients(count * explained[name]))
                else:
                    bare.append(floor.seconds(count * per_sample))
                began = time.process_time()
                sl.evaluate(model, x, y, maps, name, engine="fast", **settings)
                ours.append(time.process_time() - began)
                if build is not None:
                    theirs.append(in_quantus(build, model, x, y, maps))
            seconds = [value for value in theirs if value is not None]
            over = [a / b for a, b in zip(ours, bare, strict=True) if b > 1e-4]
            rows.append(
                {
                    "network": network,
                    "metric": name,
                    "samples": count,
                    "ms_per_sample": round(1e3 * statistics.median(ours) / count, 3),
                    "over_floor": round(statistics.median(over), 2) if over else None,
                    "quantus_over_floor": round(
                        statistics.median(a / b for a, b in zip(seconds, bare, strict=False)), 2
                    )
                    if seconds and over
                    else None,
                    "quantus_over_fast": round(
                        statistics.median(a / b for a, b in zip(seconds, ours, strict=False)), 2
                    )
                    if seconds
                    else ("raises" if theirs else None),
                }
            )
            show(rows)
    return rows


def bench_study(quick: bool, networks: list[str], samples: int | None) -> list[dict[str, Any]]:
    """Eight methods × six metrics by `evaluate_many`, with and without faster passes, and with Quantus."""
    rows = []
    for network in networks or ["sgt_cnn"]:
        usual = {"sgt_cnn": 8 if quick else 32}.get(network, 2 if quick else 32)
        rows.append(_study(quick, network, samples or usual))
        show(rows)
    return rows


def _study(quick: bool, network: str, count: int) -> dict[str, Any]:
    model, x, y = scene(network, count)
    source = pairs(x.shape[2] * x.shape[3], quick)
    if not quick:
        subset = round(x.shape[2] * x.shape[3] * 2 / 7)  # the default of the fast engine
        source["faithfulness_correlation"] = (
            {},
            lambda: quantus.FaithfulnessCorrelation(nr_runs=100, subset_size=subset, **QUIET),
        )
    names = ["faithfulness_correlation", "pixel_flipping", "infidelity", "sparseness", "road"]
    if network != "sgt_cnn":
        names.remove("road")  # Quantus cannot score images of several channels
    metrics = {name: source[name][0] for name in names}
    methods = {method: sl.attribute(model, x, y, method=method) for method in METHODS}

    def ours(mode: Any, dtype: str | None = None) -> float:
        began = time.process_time()
        with sl.execution(compile=mode, dtype=dtype):
            scores[mode, dtype] = sl.evaluate_many(model, x, y, methods, metrics)
            for method in METHODS[:2]:
                settings = source["max_sensitivity"][0]
                sl.evaluate(model, x, y, methods[method], "max_sensitivity", **settings)
        return time.process_time() - began

    def theirs() -> float:
        began = time.process_time()
        for index, maps in enumerate(methods.values()):
            for name in [*names, *(["max_sensitivity"] if index < 2 else [])]:
                build = source[name][1]
                assert build is not None
                assert in_quantus(build, model, x, y, maps.values) is not None
        return time.process_time() - began

    scores: dict[Any, Any] = {}
    few = {method: each.values[:1] for method, each in methods.items()}
    sl.evaluate_many(model, x[:1], y[:1], few, metrics)  # what only the first call of a process costs
    rounds = 1 if quick or network == "resnet18" else 3  # of resnet18 a round takes seven minutes
    times = [(ours("auto"), ours(False), ours("auto", "bfloat16"), theirs()) for _ in range(rounds)]
    fast, eager, half, peer = (statistics.median(column) for column in zip(*times, strict=True))
    changes = _changes(scores[False, None], scores["auto", "bfloat16"])
    return {
        "network": network,
        "samples": count,
        "methods": len(methods),
        "metrics": len(names) + 1,
        "fast_seconds": round(fast, 2),
        "eager_seconds": round(eager, 2),
        "quantus_seconds": round(peer, 2),
        "bfloat16_seconds": round(half, 2),
        "fast_over_eager": round(statistics.median(a / b for a, b, *_ in times), 2),
        "times_faster": round(statistics.median(d / a for a, *_, d in times), 1),
        "times_faster_bfloat16": round(statistics.median(d / c for *_, c, d in times), 1),
        "bfloat16_median_change": round(float(np.median(changes)), 4),
        "bfloat16_largest_change": round(float(changes.max()), 3),
    }


def _changes(found: Any, others: Any) -> np.ndarray:
    """How far each score moves, in standard deviations of the scores of its metric."""
    moved = []
    for metric in next(iter(found.values())):
        ours, theirs = (
            np.concatenate([np.asarray(scores[metric].values) for scores in each.values()])
            for each in (found, others)
        )
        moved.append(np.abs(ours - theirs) / np.nanstd(ours))
    changes = np.concatenate(moved)
    return changes[np.isfinite(changes)]


MEMORY = """
import resource, sys, time, torch, saliency_lab as sl
torch.set_num_threads(1); sl.show_progress(False)
n = int(sys.argv[1]); model = sl.build_model("small_cnn", seed=0)
x = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0)); y = torch.arange(n) % 10
maps = torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(1))
sl.evaluate(model, x[:8], y[:8], maps[:8], "faithfulness_correlation")
began = time.perf_counter()
sl.evaluate(model, x, y, maps, "faithfulness_correlation")
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def bench_memory(quick: bool) -> list[dict[str, Any]]:
    """Time and peak memory of faithfulness correlation (100 runs, small_cnn) by the number of samples."""
    rows = []
    for count in (100, 1000) if quick else (100, 1000, 10000):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(count)], capture_output=True, text=True, check=True
        )
        seconds, kilobytes = done.stdout.split()[-2:]
        rows.append(
            {
                "samples": count,
                "seconds": round(float(seconds), 2),
                "ms_per_sample": round(1e3 * float(seconds) / count, 2),
                "peak_mb": round(int(kilobytes) / 1024),
                "inputs_mb": round(count * 2 * 784 * 4 / 2**20),
            }
        )
        show(rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples and rounds: under a minute")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--only", choices=["metrics", "study", "memory"])
    parser.add_argument("--metric", action="append", default=[], help="this one (may be repeated)")
    parser.add_argument("--network", action="append", default=[], choices=["sgt_cnn", "resnet18"])
    parser.add_argument("--samples", type=int, help="number of images that each metric is timed on")
    arguments = parser.parse_args()
    sl.show_progress(False)
    torch.set_num_threads(1)
    parts = {
        "metrics": lambda quick: bench_metrics(quick, arguments.metric, arguments.network, arguments.samples),
        "study": lambda quick: bench_study(quick, arguments.network, arguments.samples),
        "memory": bench_memory,
    }
    found = {}
    for name, part in parts.items():
        if arguments.only in (None, name):
            print(f"\n{name}\n")
            found[name] = part(arguments.quick)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
