"""What starting costs: `import saliency_lab`, and `saliency-lab --help`, beyond starting Python.

    python benchmarks/startup.py [--quick] [--json FILE]

Processor time of fresh processes, medians; the files are in the system's cache after the first one.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

COMMANDS = {
    "python": ["-c", "pass"],
    "import saliency_lab": ["-c", "import saliency_lab"],
    "import torch": ["-c", "import torch"],
    "saliency-lab --help": ["-m", "saliency_lab.cli", "--help"],
}
TARGETS = {"import saliency_lab": 0.10, "saliency-lab --help": 0.4}


def seconds(arguments: list[str]) -> float:
    """Processor time of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three processes each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range((3 if options.quick else 11) + 1):
        for name, arguments in COMMANDS.items():
            took = seconds(arguments)
            if turn:  # the first round fills the cache of files
                times[name].append(took)
    bare = statistics.median(times["python"])
    rows = [
        {"what": name, "seconds": round(statistics.median(values) - bare, 3), "target": TARGETS.get(name)}
        for name, values in times.items()
        if name != "python"
    ]
    for row in rows:
        print(f"{row['what']:<24}{row['seconds']:>8.3f} s")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
