"""What a study costs beyond its results: keys, store, a second run, statistics, and what two workers win.

python benchmarks/study.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import saliency_lab as sl
from saliency_lab.metrics import evaluate_many

METHODS = {
    "saliency": {},
    "input_x_gradient": {},
    "integrated_gradients": {},
    "smoothgrad": {"n": 10},
}
METRICS = ["faithfulness_correlation", "pixel_flipping", "sparseness"]
EPS = [0.05, 0.1, 0.2]


def seconds(function: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> float:
    """Processor time: other work on the machine does not count."""
    started = clock()
    function()
    return clock() - started


def networks(count: int, architecture: str = "small_cnn") -> dict[str, nn.Module]:
    """Trained, so that the attacks have something to break."""
    data = sl.load_dataset("digits")
    recipe = {"training.epochs": 3, "model.name": architecture}
    return {f"net-{i}": sl.train("digits/standard", data, seed=i, overrides=recipe) for i in range(count)}


def bare(nets: dict[str, nn.Module], x: torch.Tensor, y: torch.Tensor) -> None:
    """The same calls without a study."""
    for net in nets.values():
        maps = {name: sl.attribute(net, x, y, name, **METHODS[name]) for name in METHODS}
        for metric in METRICS:
            evaluate_many(net, x, y, maps, [metric])
        sl.robustness_curve(net, x, y, "pgd", eps=[0.0, *EPS], steps=40)


def whole(nets: dict[str, nn.Module], x: torch.Tensor, y: torch.Tensor, store: str, **more: Any) -> sl.Study:
    study = sl.Study(nets, (x, y), store=store, **more)
    return study.attribute(METHODS).score(METRICS).attack("pgd", eps=EPS, steps=40)


def overhead(architecture: str, rounds: int, images: int) -> dict[str, float]:
    """Of keys and store, and of the statistics, over the same calls without a study."""
    x, y = sl.load_dataset("digits").test.sample(images)
    nets = networks(2, architecture)
    ratios, shares, times = [], [], []
    bare(nets, x, y)
    for turn in range(rounds):
        with tempfile.TemporaryDirectory() as store:
            calls = [lambda: bare(nets, x, y), lambda at=store: whole(nets, x, y, at)]
            taken = {i: seconds(calls[i]) for i in ((0, 1) if turn % 2 else (1, 0))}
            without = taken[0]
            times.append(taken[1])
            study = whole(nets, x, y, store)
            shares.append(seconds(lambda s=study: s.compare().table()) / without)
        ratios.append(times[-1] / without)
    return {
        f"{architecture}: study over the bare calls": statistics.median(ratios),
        f"{architecture}: its statistics over the bare calls": statistics.median(shares),
        f"{architecture}: seconds of the study": statistics.median(times),
    }


def second_run() -> dict[str, float]:
    """Over 1,000 finished results: 21 networks, 6 methods, 7 metrics, one attack."""
    torch.manual_seed(0)
    nets = {f"m{i}": nn.Sequential(nn.Flatten(), nn.Linear(784, 10)) for i in range(21)}
    x, y = sl.load_dataset("digits").test.sample(64)
    methods = ["saliency", "input_x_gradient", "random", "edges", "input", "constant"]
    metrics = ["sparseness", "complexity", "effective_complexity", "pixel_flipping"]
    metrics += ["selectivity", "deletion", "insertion"]
    with tempfile.TemporaryDirectory() as store:

        def run() -> sl.Study:
            study = sl.Study(nets, (x, y), store=store)
            return study.attribute(methods).score(metrics).attack("fgsm", eps=0.1)

        run()
        again = statistics.median(seconds(run) for _ in range(3))
        study = run()
        table = seconds(lambda: study.compare().table())
        return {
            "results": float(len(list(Path(store).glob("cells/*/*/*.safetensors")))),
            "seconds of a second run": again,
            "seconds of reading the table of scores": seconds(lambda: study.scores),
            "seconds of all its statistics": table,
        }


def two_workers(images: int) -> dict[str, float]:
    """Wall time of one Dask worker over two, one torch thread each; starting the workers does not count."""
    from distributed import Client, LocalCluster

    x, y = sl.load_dataset("digits").test.sample(images)
    nets = networks(6)
    walls = []
    for workers in (1, 2):
        with (
            tempfile.TemporaryDirectory() as store,
            LocalCluster(
                n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0"
            ) as cluster,
            Client(cluster) as client,
        ):
            client.run(lambda: __import__("saliency_lab.study").study and None)
            client.run(lambda: __import__("torch").set_num_threads(1))
            walls.append(
                seconds(lambda: whole(nets, x, y, store, executor=client.get_executor()), time.perf_counter)
            )
    return {"one Dask worker over two": walls[0] / walls[1], "seconds of two Dask workers": walls[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute; leaves Dask out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sl.show_progress(False)
    found = overhead("small_cnn", 3 if options.quick else 7, 64 if options.quick else 256) | second_run()
    if not options.quick:
        found |= overhead("sgt_cnn", 3, 64) | two_workers(256)
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value:10.3f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
