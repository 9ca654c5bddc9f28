"""`saliency-lab list WHAT`."""

from __future__ import annotations

from typing import Annotated

import typer

from saliency_lab.cli.options import Json

KINDS = ["datasets", "models", "zoo", "recipes", "studies", "methods", "metrics", "attacks"]


def add_to(app: typer.Typer) -> None:
    """Register the subcommand."""
    app.command("list")(list_names)


def list_names(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND", help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}.", autocompletion=lambda: KINDS
        ),
    ],
    json: Json = None,
) -> None:
    """List the names that commands accept; `zoo` lists the trained networks of this package."""
    import saliency_lab
    from saliency_lab._common.errors import unknown_name
    from saliency_lab.cli.output import Output

    output = Output(json)
    if kind not in KINDS:
        raise unknown_name("kind of names", kind, KINDS)
    table = getattr(saliency_lab, f"list_{kind}")()
    output.table(table)
    output.json(table.reset_index())
