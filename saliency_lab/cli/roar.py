"""`saliency-lab roar RECIPE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saliency_lab.cli.options import (
    DataRoot,
    Device,
    Json,
    Methods,
    RecipeName,
    Trust,
    key_values,
    named_settings,
    numbers,
    requests_of,
    several,
)


def add_to(app: typer.Typer) -> None:
    """Register the subcommand."""
    app.command()(roar)


def roar(
    recipe: RecipeName,
    method: Methods = ["saliency", "integrated_gradients"],  # noqa: B006 - typer copies it
    fractions: Annotated[
        str, typer.Option(help="Shares of the pixels that are replaced by the mean of their channel.")
    ] = "0.1,0.3,0.5,0.7,0.9",
    keep: Annotated[
        bool, typer.Option("--keep", help="KAR: replace the least important pixels, not the most important.")
    ] = False,
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Rank pixels by the magnitude of their attributions.")
    ] = False,
    seeds: Annotated[str, typer.Option("--seeds", "--seed", help="Training seeds.")] = "0,1,2",
    settings: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any recipe key, such as training.epochs=5; repeatable."
        ),
    ] = [],  # noqa: B006
    method_settings: Annotated[
        list[str],
        typer.Option(
            "--method-set",
            metavar="NAME.KEY=VALUE",
            help="A setting of a method, such as smoothgrad.n=50; repeatable.",
        ),
    ] = [],  # noqa: B006
    data_root: DataRoot = None,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder of the results; by default runs/roar. Run the command again to continue."
        ),
    ] = None,
    json: Json = None,
    trust: Trust = False,
) -> None:
    """Retrain a recipe on images without the pixels that each method finds most important (ROAR).

    A method is better than the control `random` if the accuracy falls further. With --keep, the least
    important pixels are replaced (KAR), and a better method loses less. Every network is trained
    once; run the same command again to continue after an interruption.
    """
    from saliency_lab.cli.output import Output
    from saliency_lab.metrics.catalogue import LERF, MORF
    from saliency_lab.plotting.style import save
    from saliency_lab.retraining import roar as run

    overrides = key_values(settings)
    if data_root is not None:
        overrides["data.root"] = str(data_root)
    names = several(method)
    folder = Path("runs/roar") if out is None else out
    output = Output(json)
    result = run(
        recipe,
        methods=requests_of("method", names, named_settings(method_settings, names)),
        fractions=numbers("--fractions", fractions, float),
        order=LERF if keep else MORF,
        absolute=absolute,
        seeds=numbers("--seeds", seeds, int),
        out=folder,
        overrides=overrides,
        device=device,
        trust=trust,
    )
    output.table(result.summary().drop(columns="seed_means"))
    picture = folder / f"{result.name.lower()}-{result.recipe.replace('/', '-')}.png"
    save(result.plot(), picture)
    output.path(picture)
    output.json(result.table())
