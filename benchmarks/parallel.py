"""A study, and training, by one process with all threads, by one with one thread, and by one per core.

    python benchmarks/parallel.py [--quick] [--json FILE]

Wall time, so the machine must be otherwise idle; medians of interleaved rounds. Starting the worker
processes, which import the libraries, is shown apart: it is paid once per study.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RUN = """
import json, os, sys, tempfile, time
import torch

def train(seed):
    import saliency_lab as sl
    sl.show_progress(False)
    overrides = {"training.epochs": 5, "training.collapse": "keep"}
    sl.train("digits/at", sl.load_dataset("digits"), seed=seed, overrides=overrides)

def work(executor, network, images, models):
    import saliency_lab as sl
    sl.show_progress(False)
    if network == "training":
        list((map if executor is None else executor.map)(train, [9] * models))  # what a first call costs
        began = time.perf_counter()
        list((map if executor is None else executor.map)(train, range(models)))
        return time.perf_counter() - began
    shape = (1, 28, 28) if network in ("small_cnn", "sgt_cnn") else (3, 32, 32)
    nets = {f"net-{i}": sl.build_model(network, input_shape=shape, seed=i) for i in range(models)}
    source = torch.Generator().manual_seed(0)
    x, y = torch.rand(images, *shape, generator=source), torch.arange(images) % 10
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as store:
        study = sl.Study(nets, (x, y), store=store, executor=executor, compile=False)
        study.attribute(["saliency", "integrated_gradients"]).score({"pixel_flipping": {}, "sparseness": {}})
        assert study.failures.empty
    return time.perf_counter() - began

def warm(_):
    import saliency_lab.study
    torch.set_num_threads(1)
    time.sleep(0.5)

if __name__ == "__main__":
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    way, network, images, models = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    cores = len(os.sched_getaffinity(0))
    if way == "processes":
        began = time.perf_counter()
        with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
            list(pool.map(warm, range(cores)))
            started = time.perf_counter() - began
            print(json.dumps([work(pool, network, images, models), started]))
    else:
        torch.set_num_threads(cores if way == "threads" else 1)
        work(None, network, 4, 1)  # the first passes of the process
        print(json.dumps([work(None, network, images, models), 0.0]))
"""
# images and models; training is that of two small_cnn by adversarial training on digits
WORKS = {"training": (0, 2), "small_cnn": (256, 4), "sgt_cnn": (64, 4), "resnet18": (8, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one network, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    folder = tempfile.TemporaryDirectory()
    script = Path(folder.name) / "run.py"
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    rows = []
    print(f"{'network':<12}{'one thread':>12}{'threads':>10}{'processes':>12}{'starting them':>16}")
    try:
        script.write_text(RUN, encoding="utf-8")
        for network, (images, models) in WORKS.items():
            if options.quick and network != "small_cnn":
                continue
            taken: dict[str, list[list[float]]] = {"one": [], "threads": [], "processes": []}
            for _ in range(1 if options.quick else 3):
                for way, values in taken.items():
                    done = subprocess.run(
                        [sys.executable, str(script), way, network, str(images), str(models)],
                        capture_output=True, text=True, check=True, env=environment,
                    )  # fmt: skip
                    values.append(json.loads(done.stdout.splitlines()[-1]))
            middle = {way: statistics.median(value for value, _ in values) for way, values in taken.items()}
            starting = statistics.median(value for _, value in taken["processes"])
            names = {"one": "one thread, s", "threads": "all threads, s", "processes": "processes, s"}
            row = {"network": network, **{names[way]: round(value, 2) for way, value in middle.items()}}
            rows.append(row | {"starting the processes, s": round(starting, 2)})
            print(
                f"{network:<12}{middle['one']:>10.2f} s{middle['threads']:>8.2f} s"
                f"{middle['processes']:>10.2f} s{starting:>14.2f} s",
                flush=True,
            )
    finally:
        folder.cleanup()
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
