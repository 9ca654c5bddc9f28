"""What keeping freed memory saves: each measurement in processes with it and without it, in turn.

    python benchmarks/allocator.py [--quick] [--json FILE]

Prints the median time of a pass and of a training step, and the ratio of the two. The processes differ in
nothing but the variable SALIENCY_LAB_KEEP_MEMORY.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

PASSES = """
import time, torch, saliency_lab as sl
from saliency_lab._common.inference import predict
torch.set_num_threads(1)
net = sl.build_model("{name}", input_shape={shape})
x = torch.rand({images}, *{shape})
predict(net, x)
started = time.perf_counter()
for _ in range({rounds}):
    predict(net, x)
print((time.perf_counter() - started) / {rounds})
"""

TRAINING = """
import time, torch, saliency_lab as sl
torch.set_num_threads(1)
data = sl.load_dataset("digits")
keys = {{"training.epochs": {rounds}, "validation.images": 16, "validation.steps": 1}}
sl.train("digits/{name}", data, overrides=keys | {{"training.epochs": 1}})
started = time.perf_counter()
sl.train("digits/{name}", data, overrides=keys)
print((time.perf_counter() - started) / {rounds})
"""


def seconds(script: str, keep: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ
        | {"SALIENCY_LAB_KEEP_MEMORY": keep, "SALIENCY_LAB_PROGRESS": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two pairs of processes each, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    pairs, rounds = (2, 2) if options.quick else (7, 6)
    small, coloured = (1, 28, 28), (3, 32, 32)
    work = {
        "pass, small_cnn, 28×28": PASSES.format(name="small_cnn", shape=small, images=512, rounds=rounds),
        "pass, resnet8, 32×32": PASSES.format(name="resnet8", shape=coloured, images=256, rounds=rounds),
        "epoch, digits/standard": TRAINING.format(name="standard", rounds=rounds),
        "epoch, digits/sgt": TRAINING.format(name="sgt", rounds=rounds),
    }
    rows = []
    print(f"{'work':<26}{'kept (s)':>10}{'returned (s)':>14}{'ratio':>8}")
    for name, script in work.items():
        found = [(seconds(script, "1"), seconds(script, "0")) for _ in range(pairs)]
        ratio = statistics.median(kept / returned for kept, returned in found)
        kept, returned = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{name:<26}{kept:>10.3f}{returned:>14.3f}{ratio:>8.2f}", flush=True)
        rows.append({"work": name, "kept": kept, "returned": returned, "ratio": ratio})
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
