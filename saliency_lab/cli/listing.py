"""`saliency-lab list WHAT`."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from saliency_lab.cli.options import Json


class What(enum.StrEnum):
    """What can be listed."""

    DATASETS = "datasets"
    MODELS = "models"
    ZOO = "zoo"
    RECIPES = "recipes"
    STUDIES = "studies"
    METHODS = "methods"
    METRICS = "metrics"
    ATTACKS = "attacks"


def add_to(app: typer.Typer) -> None:
    """Register the subcommand."""
    app.command("list")(list_names)


def list_names(
    what: Annotated[What, typer.Argument(help="What to list.", show_default=False)], json: Json = None
) -> None:
    """List what there is; `zoo` are the trained networks that come with the package."""
    import saliency_lab
    from saliency_lab.cli.output import Output

    output = Output(json)
    table = getattr(saliency_lab, f"list_{what.value}")()
    output.table(table)
    output.json(table.reset_index())
