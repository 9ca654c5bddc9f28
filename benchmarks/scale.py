"""How the cost of a study grows with images, pixels, methods and models: processor time and its exponents.

    python benchmarks/scale.py [--quick] [--json FILE]

One quantity varies at a time; the rest is small and fixed. The exponent is the slope of the least-squares
line of log(cost) on log(quantity): 1 is proportional, below 1 means that work is shared. Peak memory is that
of a process of its own, the libraries included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

RUN = """
import json, resource, sys, tempfile, time
import torch, saliency_lab as sl
torch.set_num_threads(1)
sl.show_progress(False)
images, pixels, methods, models = json.loads(sys.argv[1])
names = ["saliency", "input_x_gradient", "grad_cam", "guided_backprop", "deconvolution", "deep_lift",
         "integrated_gradients", "smoothgrad"][:methods]
shape = (1, pixels, pixels)
nets = {f"net-{i}": sl.build_model("small_cnn", input_shape=shape, seed=i) for i in range(models)}
source = torch.Generator().manual_seed(0)
x, y = torch.rand(images, *shape, generator=source), torch.randint(0, 10, (images,), generator=source)
metrics = {"faithfulness_correlation": {"runs": 20}, "pixel_flipping": {"steps": 8}, "sparseness": {}}

def run(few):
    with tempfile.TemporaryDirectory() as store:
        sl.Study(nets, (x[:few], y[:few]), store=store).attribute(names).score(metrics)

run(4)  # imports and first passes
began = time.process_time()
run(images)
print(time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

USUAL = {"images": 100, "pixels": 28, "methods": 2, "models": 1}
SIZES = {
    "images": (100, 1_000, 10_000),
    "pixels": (28, 56, 112, 224),
    "methods": (1, 2, 4, 8),
    "models": (1, 2, 4, 8),
}
QUICK = {"images": (50, 200), "pixels": (28, 56), "methods": (1, 4), "models": (1, 4)}


def cost(**sizes: int) -> tuple[float, float]:
    """Seconds and MiB of a study of these sizes."""
    given = json.dumps([sizes[name] for name in USUAL])
    done = subprocess.run([sys.executable, "-c", RUN, given], capture_output=True, text=True, check=True)
    seconds, peak = map(float, done.stdout.split()[-2:])
    return seconds, peak


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log(seconds) on log(size).

    >>> round(exponent([1, 2, 4], [3.0, 6.0, 12.0]), 6)
    1.0
    """
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two sizes of each quantity, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    rows = []
    print(f"{'quantity':<10}{'size':>8}{'seconds':>10}{'MiB':>8}{'exponent':>10}")
    for name, sizes in (QUICK if options.quick else SIZES).items():
        measured = [cost(**{**USUAL, name: size}) for size in sizes]
        slope = exponent(list(sizes), [seconds for seconds, _ in measured])
        for size, (seconds, peak) in zip(sizes, measured, strict=True):
            last = f"{slope:.2f}" if size == sizes[-1] else ""
            print(f"{name:<10}{size:>8}{seconds:>10.2f}{peak:>8.0f}{last:>10}", flush=True)
            rows.append({"quantity": name, "size": size, "seconds": seconds, "mib": peak, "exponent": slope})
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
