"""`saliency-lab train RECIPE`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from saliency_lab._common.errors import InputError
from saliency_lab.cli.options import DataRoot, RecipeName, Trust, key_values, numbers

LONGEST_NAME, SHORT_NAME = 255, 180
"""Bytes that a file system allows a name; bytes that are left of a longer one, before its hash."""


def add_to(app: typer.Typer) -> None:
    """Register the subcommand."""
    app.command()(train)


def train(
    recipe: RecipeName,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run; by default runs/RECIPE,CHANGES/seed-N. An interrupted run resumes there."
        ),
    ] = None,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any recipe key, such as attack.eps=8/255; repeatable."
        ),
    ] = [],  # noqa: B006 - typer copies it
    data_root: DataRoot = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", "--seed", help="One seed, or several: 0,1,2.")
    ] = None,
    accelerator: Annotated[
        str, typer.Option(help="auto (cuda if it is here, else cpu), cpu, cuda or mps.")
    ] = "auto",
    devices: Annotated[
        str, typer.Option(help="How many devices (processes) on this machine, or auto.")
    ] = "1",
    num_nodes: Annotated[int, typer.Option(min=1, help="How many machines.")] = 1,
    strategy: Annotated[
        str, typer.Option(help="Strategy of Lightning Fabric for several devices, such as ddp.")
    ] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="32-true, bf16-mixed or 16-mixed; short for --set training.precision=…")
    ] = None,
    trust: Trust = False,
) -> None:
    """Train a model by a recipe.

    The run's folder holds the weights (safetensors), a card, the log (CSV) and the recipe as it was used.
    """
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    from saliency_lab._common.checks import format_epsilon
    from saliency_lab.models import card_of
    from saliency_lab.training import load_recipe
    from saliency_lab.training import train as run

    overrides = key_values(settings)
    if data_root is not None:
        overrides["data.root"] = str(data_root)
    if precision is not None:
        overrides["training.precision"] = precision
    settled = load_recipe(recipe, overrides, trust=trust)
    chosen = [settled.seed] if seeds is None else list(dict.fromkeys(numbers("--seeds", seeds, int)))
    for seed in chosen:
        folder = out or Path("runs") / _folder_name(settled.name, overrides)
        if out is None or (seeds is not None and "," in seeds):
            folder = folder / f"seed-{seed}"
        model = run(
            settled,
            seed=seed,
            out=folder,
            accelerator=accelerator,
            devices=devices if devices == "auto" else _count(devices),
            num_nodes=num_nodes,
            strategy=strategy,
        )
        card = card_of(model)
        assert card is not None
        rank_zero_only(print)(  # each process of a distributed run comes here
            f"{folder}: validation accuracy {card.metrics['val_clean']:.1%} clean, "
            f"{card.metrics['val_robust']:.1%} under PGD-{settled.validation.steps} "
            f"at ε = {format_epsilon(settled.attack.eps)}"
        )


def _folder_name(recipe: str, overrides: Mapping[str, Any]) -> str:
    """Name a run by its recipe and what is changed in it; the seed has a folder of its own."""
    from saliency_lab._common.hashing import fingerprint

    unnamed = {"name", "seed", "data.root"}
    changes = [f"{key}={value}".replace("/", "-") for key, value in overrides.items() if key not in unnamed]
    folder, _, name = ",".join([recipe, *sorted(changes)]).rpartition("/")
    written = name.encode()
    if len(written) > LONGEST_NAME:
        name = f"{written[:SHORT_NAME].decode(errors='ignore')}…{fingerprint(name)[:12]}"
    return f"{folder}/{name}" if folder else name


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"--devices must be a number of devices or auto, not '{text}'")
    return int(text)
