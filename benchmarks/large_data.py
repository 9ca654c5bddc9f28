"""A folder of photographs that is larger than the memory: decode it, sample from it, train on it.

    python benchmarks/large_data.py [--quick] [--images N] [--json FILE]

Writes JPEG files of 256×256 into a temporary folder, and uses them in processes of their own: one decodes
them at 224×224 on one core, one on all cores, one is killed half-way, one goes on, one loads the finished
file, samples from it and trains. The milliseconds per image are those of a whole call of `load_dataset`,
which decodes, writes and hashes the images.
Anonymous memory (`RssAnon`) is what a process cannot give back; pages of the mapped file are counted apart,
because the system takes them back when memory is short. The libraries alone take about 300 MiB.
100,000 photographs are 15 GB decoded; `--images` makes as many as the disk and your patience allow.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 224
WATCH = """
import json, sys, threading, time
import torch, saliency_lab as sl
from torch import nn
torch.set_num_threads(1)
sl.show_progress(False)
peak = {"RssAnon": 0, "VmRSS": 0}

def watch():
    while True:
        with open("/proc/self/status") as file:
            text = file.read()
        for key in peak:
            peak[key] = max(peak[key], int(text.split(key + ":")[1].split()[0]) // 1024)
        time.sleep(0.02)

threading.Thread(target=watch, daemon=True).start()
began, used = time.perf_counter(), time.process_time()
"""
LOAD = "data = sl.load_dataset('image_folder', sys.argv[1], image_size=224)\n"
SAMPLE = "x, y = data.test.sample(64)\nassert x.shape == (64, 3, 224, 224)\n"
TRAIN = """
net = nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                    nn.Linear(4, 2))
recipe = {"data": {"name": "image_folder"}, "training": {"epochs": 1, "batch_size": 64, "collapse": "keep"},
          "validation": {"images": 64, "steps": 1}}
import warnings; warnings.simplefilter("ignore")
sl.train(recipe, data, model=net)
"""
REPORT = """
print(json.dumps(peak | {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - used}))
"""


def write_photographs(root: Path, count: int) -> None:
    """Write smooth noise, so that a file has about the size of a photograph's."""
    draws = np.random.default_rng(0)
    noise = [Image.fromarray(draws.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(64)]
    tiles = [each.resize((256, 256), Image.Resampling.BICUBIC) for each in noise]
    for part, share in (("train", 0.9), ("test", 0.1)):
        for label in ("a", "b"):
            folder = root / part / label
            folder.mkdir(parents=True)
            for index in range(max(40, round(count * share / 2))):
                tiles[index % len(tiles)].rotate(index % 360).save(folder / f"{index}.jpg", quality=90)


def run(script: str, root: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", WATCH + script + REPORT, str(root)], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def interrupt(root: Path, half: int) -> int:
    """Kill a process that decodes once `half` bytes are written; return the bytes that are there then."""
    process = subprocess.Popen([sys.executable, "-c", WATCH + LOAD, str(root)])
    size = 0
    while process.poll() is None and size < half:
        time.sleep(0.02)
        size = sum(path.stat().st_size for path in root.parent.glob(".saliency_lab/.*.partial"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    return size


def decode_afresh(root: Path, cores: set[int]) -> float:
    """Decode everything again on some of the cores; return the seconds per image."""
    shutil.rmtree(root.parent / ".saliency_lab", ignore_errors=True)
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # which the process inherits
    try:
        return run(LOAD, root)["seconds"] / len(list(root.rglob("*.jpg")))
    finally:
        os.sched_setaffinity(0, own)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2,000 photographs, under a minute")
    parser.add_argument("--images", type=int, default=12_000, help="number of photographs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    count = 2_000 if options.quick else options.images
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photographs"
        write_photographs(root, count)
        files = len(list(root.rglob("*.jpg")))
        decoded = files * 3 * SIDE**2
        cores = os.sched_getaffinity(0)
        seconds: dict[str, list[float]] = {"one core": [], "all cores": []}
        for _ in range(1 if options.quick else 2):
            seconds["one core"].append(decode_afresh(root, {min(cores)}))
            seconds["all cores"].append(decode_afresh(root, cores))
        shutil.rmtree(root.parent / ".saliency_lab")
        killed = interrupt(root, decoded // 2)
        rows = {
            "continued after being killed": run(LOAD, root),
            "loaded again": run(LOAD, root),
            "64 images sampled": run(LOAD + SAMPLE, root),
            "trained for an epoch": run(LOAD + TRAIN, root),
        }
    figures = {
        "images": files,
        "decoded, MiB": round(decoded / 2**20),
        "decoded before the process was killed, MiB": round(killed / 2**20),
        "cores": len(cores),
        **{f"milliseconds per image, {name}": round(1000 * min(each), 2) for name, each in seconds.items()},
        "steps": rows,
    }
    for name, value in figures.items():
        if name != "steps":
            print(f"{name:<45}{value:>10}")
    print(f"\n{'step':<32}{'seconds':>9}{'anonymous, MiB':>16}{'with mapped pages, MiB':>24}")
    for name, row in rows.items():
        print(f"{name:<32}{row['seconds']:>9.1f}{row['RssAnon']:>16}{row['VmRSS']:>24}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
