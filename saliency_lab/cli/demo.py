"""`saliency-lab demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Register the subcommand."""
    app.command()(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the models, tables and figures.")] = Path("runs/demo"),
) -> None:
    """Run a complete example on scikit-learn's digits: train, explain, score, attack and compare networks.

    Nothing is downloaded. A second run finds what the first one left, and takes seconds.
    """
    from saliency_lab.cli.output import print_comparison
    from saliency_lab.experiment.demo import run_demo
    from saliency_lab.reporting import report

    study, written = run_demo(out)
    print_comparison(study.compare(baseline="standard"))
    written.append(report(study, out / "report.html", baseline="standard"))
    print("\nwritten:")
    for path in written:
        print(f"  {path}")
