"""Peak memory at 224×224: integrated gradients with 200 steps, and a study of many photographs.

    python benchmarks/memory.py [--quick] [--json FILE]

Each row is a process of its own. `peak` is its largest resident memory, of which the libraries alone take
what the first row says; `anonymous` is the part that the system cannot take back, as it can pages of mapped
files, such as those of stored maps (Linux). The images are in memory, as float32, except in the last rows,
where they are in a mapped file too. The network of the rows with many images is small, so that they end in
minutes: what a network needs grows with the images of a pass, not with those of the call.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

BEGIN = """
import json, resource, sys, tempfile, threading, time
import torch, torchvision, saliency_lab as sl
from torch import nn
torch.set_num_threads(1)
torch.manual_seed(0)
sl.show_progress(False)
count = int(sys.argv[1])
small = nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten(),
                      nn.Linear(576, 10))
peak = [0]

def watch():
    while True:
        with open("/proc/self/status") as file:
            peak[0] = max(peak[0], int(file.read().split("RssAnon:")[1].split()[0]) // 1024)
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
folder = tempfile.TemporaryDirectory()
if len(sys.argv) > 2:
    with open(f"{folder.name}/images", "wb") as file:
        for _ in range(count):
            file.write(torch.rand(3, 224, 224).numpy().tobytes())
    x = torch.from_file(f"{folder.name}/images", size=count * 3 * 224**2).reshape(count, 3, 224, 224)
else:
    x = torch.rand(count, 3, 224, 224)
y = torch.arange(count) % 10
began = time.process_time()
"""
END = """
print(json.dumps({"anonymous, MiB": peak[0],
                  "peak, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                  "seconds": round(time.process_time() - began, 1)}))
"""
LIBRARIES = "import captum, quantus\n"
INTEGRATED = "maps = sl.attribute({net}, x, y, 'integrated_gradients', steps={steps})\n"
STUDY = """
study = sl.Study({"net": small}, (x, y), store=f"{folder.name}/store")
study.attribute(["saliency", "grad_cam"]).score({"pixel_flipping": {"steps": 4}, "sparseness": {}})
"""
MAPPED = "the same study, images in a mapped file"
RESNET = "torchvision.models.resnet50(weights=None).eval()"
WORKS = {
    "libraries": (LIBRARIES, (1,), (1,)),
    "integrated gradients, 200 steps, small network": (
        INTEGRATED.format(net="small", steps=200),
        (64, 256),
        (8,),
    ),
    "integrated gradients, 20 steps, ResNet-50": (INTEGRATED.format(net=RESNET, steps=20), (1, 4), ()),
    "study, two methods, two metrics, small network": (STUDY, (250, 1_000), (50,)),
    MAPPED: (STUDY, (250, 1_000), (50,)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few images, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    rows = []
    widths = {"images": 8, "images, MiB": 13, "anonymous, MiB": 16, "peak, MiB": 11, "seconds": 10}
    print(f"{'work':<50}" + "".join(f"{name:>{width}}" for name, width in widths.items()))
    for name, (script, full, quick) in WORKS.items():
        for count in quick if options.quick else full:
            done = subprocess.run(
                [sys.executable, "-c", BEGIN + script + END, str(count), *["mapped"] * (name == MAPPED)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            found = json.loads(done.stdout.splitlines()[-1])
            row = {"work": name, "images": count} | found
            row["images, MiB"] = round(count * 3 * 224**2 * 4 / 2**20)
            rows.append(row)
            print(f"{name:<50}" + "".join(f"{row[key]:>{w}}" for key, w in widths.items()), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
