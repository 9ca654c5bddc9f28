"""Run the notebooks again, keep their output, and print how long each takes.

`python notebooks/run.py` runs all, `python notebooks/run.py 06` those whose name begins with 06.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main() -> None:
    """Run the chosen notebooks one after the other."""
    os.environ["SALIENCY_LAB_PROGRESS"] = "0"  # bars appear on a busy machine alone, and leave empty outputs
    folder = Path(__file__).parent
    for path in sorted(folder.glob("*.ipynb")):
        if len(sys.argv) > 1 and not path.name.startswith(tuple(sys.argv[1:])):
            continue
        notebook = nbformat.read(path, 4)
        start = time.perf_counter()
        client = NotebookClient(
            notebook,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
        )
        nbformat.write(client.execute(), path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
