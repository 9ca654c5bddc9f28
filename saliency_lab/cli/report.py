"""`saliency-lab report DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Register the subcommand."""
    app.command()(report)


def report(
    store: Annotated[
        Path, typer.Argument(metavar="DIR", help="The study's folder, as `study` or `score --out` leave it.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page; by default DIR/report.html.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Model that the others are compared with; by default the study's, or the first."),
    ] = None,
    level: Annotated[
        float | None, typer.Option(help="Level of the intervals; by default the study's, or 0.95.")
    ] = None,
    images: Annotated[int, typer.Option("--images", min=1, help="How many images the explorer shows.")] = 64,
) -> None:
    """Write a finished study as one HTML page that opens from disk and needs no network.

    The page has verdicts, tables with intervals, figures, an explorer of the maps, the audit, and how and on
    what machine each result was computed. The models are not needed.
    """
    from saliency_lab.reporting import report as write_report
    from saliency_lab.study import Study

    page = store / "report.html" if out is None else out
    print(write_report(Study.load(store), page, baseline=baseline, level=level, images=images))
