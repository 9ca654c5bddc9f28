"""`saliency-lab verify DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXIT_DAMAGED = 1


def add_to(app: typer.Typer) -> None:
    """Register the subcommand."""
    app.command()(verify)


def verify(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A study's store, the folder of a training run or of image data."),
    ],
) -> None:
    """Check every stored file against its digest: results, images, weights, tables, checkpoints, data caches.

    Exits with 1 if a file is damaged or missing. The next run of the study or training replaces it.
    """
    print_problems(folder)


def print_problems(folder: Path) -> None:
    """Print what is damaged in a folder, and end the command."""
    from saliency_lab.experiment import verify as check

    damaged = check(folder)
    print("every file is intact" if damaged.empty else damaged.to_string(index=False))
    raise typer.Exit(EXIT_DAMAGED if len(damaged) else 0)
