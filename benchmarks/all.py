"""Run the benchmarks, the most informative first, within a limited time; go on where the last call ended.

    python benchmarks/all.py --json FILE [--minutes 60] [--quick] [--only NAME ...] [--list]

Each benchmark is a process of its own with one thread, and what it wrote is added to FILE as soon as it ends.
One that FILE has already is left out, so that the same call again goes on; `--only` runs some again. A
benchmark that would not end in the time that is left, as far as was estimated on a quiet core, is left for
the next call. `python benchmarks/tables.py FILE` writes the figures into the documentation.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

FOLDER = Path(__file__).parent


class Job(NamedTuple):
    """A script with its arguments, and the minutes that it takes on a quiet core."""

    arguments: tuple[str, ...]
    minutes: float
    is_short: bool = True
    """Whether `--quick` makes it end within a minute or two."""


JOBS: dict[str, Job] = {
    "startup": Job(("startup.py",), 1),
    "study sgt_cnn": Job(("metrics.py", "--only", "study", "--network", "sgt_cnn"), 2.5),
    "photographs": Job(("photographs.py",), 12),
    "pgd": Job(("attacks.py", "--only", "speed"), 4),
    "study resnet18": Job(("metrics.py", "--only", "study", "--network", "resnet18"), 7),
    "training compiled": Job(("compiled_training.py",), 12),
    "passes small": Job(
        ("passes.py", "--only", "sgt_cnn", "--only", "resnet8", "--only", "resnet18", "--compile"),
        6,
        is_short=False,
    ),
    "passes photographs": Job(
        ("passes.py", "--only", "resnet50", "--only", "vit_b_16", "--compile"), 12, is_short=False
    ),
    "memory": Job(("memory.py",), 5),
    "large data": Job(("large_data.py",), 3),
    "parallel": Job(("parallel.py",), 7),
    "stored maps": Job(("stored_maps.py",), 3),
    "scale": Job(("scale.py",), 15),
    "attribution": Job(("attribution.py",), 12),
    "metrics sgt_cnn": Job(("metrics.py", "--only", "metrics", "--network", "sgt_cnn"), 10),
    "metrics resnet18": Job(("metrics.py", "--only", "metrics", "--network", "resnet18"), 15),
    "training": Job(("training.py",), 12),
    "study": Job(("study.py",), 8),
    "gpu": Job(("gpu.py",), 10),
}


def machine() -> dict[str, str]:
    """Name what the figures were measured on."""
    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return {
        "processor": name,
        "cores": str(os.cpu_count()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def run(job: Job, quick: bool) -> dict[str, Any]:
    """Run a benchmark, and return its figures, or the end of what it printed if it failed."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "figures.json"
        command = [sys.executable, str(FOLDER / job.arguments[0]), *job.arguments[1:], "--json", str(target)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "SALIENCY_LAB_PROGRESS": "0"}
        done = subprocess.run(
            [*command, *(["--quick"] if quick else [])], env=environment, capture_output=True, text=True
        )
        found: dict[str, Any] = {
            "date": datetime.now(UTC).date().isoformat(),
            "minutes": round((time.perf_counter() - began) / 60, 1),
        }
        if target.exists():
            found["figures"] = json.loads(target.read_text(encoding="utf-8"))
        if done.returncode or "figures" not in found:
            found["failed"] = (done.stderr or done.stdout).strip()[-2000:]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures are collected")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--quick", action="store_true", help="the short form of each, to try them")
    parser.add_argument("--only", nargs="+", choices=list(JOBS), metavar="NAME", help="these, again")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and end")
    options = parser.parse_args()
    if options.list or options.json is None:
        for name, job in JOBS.items():
            print(f"{name:<22}{job.minutes:>6} min   python benchmarks/{' '.join(job.arguments)}")
        return 0
    until = time.perf_counter() + 60 * options.minutes
    collected: dict[str, Any] = {"benchmarks": {}}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    if options.json.exists():
        collected = json.loads(options.json.read_text(encoding="utf-8"))
    collected |= {"machine": machine(), "quick": options.quick}
    failed = False
    for name, job in JOBS.items():
        known = collected["benchmarks"].get(name, {})
        if name not in options.only if options.only else "figures" in known:
            continue
        if options.quick and not job.is_short:
            continue
        if not options.quick and time.perf_counter() + 60 * job.minutes > until:
            print(f"{name}: no time is left for it", flush=True)
            continue
        if name == "gpu" and not torch.cuda.is_available():
            print("gpu: there is none here", flush=True)
            continue
        found = run(job, options.quick)
        failed |= "failed" in found
        print(f"{name}: {found['minutes']} minutes" + (", failed" if "failed" in found else ""), flush=True)
        collected["benchmarks"][name] = found
        options.json.write_text(json.dumps(collected, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
