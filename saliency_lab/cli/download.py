"""`saliency-lab download NAME`."""

from __future__ import annotations

from typing import Annotated

import typer

from saliency_lab.cli.options import DataRoot


def add_to(app: typer.Typer) -> None:
    """Register the subcommand."""
    app.command()(download)


def download(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Data set (`saliency-lab list datasets`).", show_default=False),
    ],
    data_root: DataRoot = None,
) -> None:
    """Fetch a data set's files. Only this, pretrained weights and RobustBench models use the network."""
    from saliency_lab.data import list_datasets, load_dataset

    data = load_dataset(name, data_root, download=True)
    print(f"{list_datasets(data_root)['found'][name]}: {data}")
