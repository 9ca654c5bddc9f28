"""`saliency-lab attack MODEL...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saliency_lab.cli.options import (
    IMAGES,
    Checkpoints,
    Compile,
    DataName,
    DataRoot,
    Device,
    Dtype,
    Images,
    Json,
    NamedSettings,
    Seed,
    Store,
    Trust,
    attack_settings,
    open_study,
    pass_settings,
    several,
)


def add_to(app: typer.Typer) -> None:
    """Register the subcommand."""
    app.command()(attack)


def attack(
    models: Checkpoints,
    eps: Annotated[
        list[str],
        typer.Option(
            "--eps", metavar="A,B", help='Radii in image units, such as 0.1 or "8/255"; repeatable.'
        ),
    ],
    method: Annotated[
        list[str],
        typer.Option(
            "--method",
            metavar="A,B",
            help="Attacks (`saliency-lab list attacks`, or module:attribute); repeatable.",
        ),
    ] = ["pgd"],  # noqa: B006 - typer copies it
    data: DataName = None,
    data_root: DataRoot = None,
    images: Images = IMAGES,
    seed: Seed = 0,
    settings: NamedSettings = [],  # noqa: B006
    device: Device = "auto",
    compile: Compile = None,
    dtype: Dtype = None,
    trust: Trust = False,
    out: Store = Path("runs/study"),
    json: Json = None,
) -> None:
    """Attack one or more models; print accuracy with 95 % intervals, write tables and pictures."""
    from saliency_lab._common.execution import execution
    from saliency_lab.cli.output import Output
    from saliency_lab.plotting.style import save
    from saliency_lab.study import Study
    from saliency_lab.study.requests import GridRequests, read_attack

    output = Output(json)
    radii = several(eps)
    chosen = attack_settings(settings, several(method))
    with execution(**pass_settings(compile, dtype)):  # a mistake is reported before any model is loaded
        attacks = [read_attack(name, radii, settings=own) for name, own in chosen.items()]
    study, _ = open_study(models, data, data_root, images, seed, out, device, trust=trust)
    study.compute(GridRequests(attacks=attacks))
    comparison = study.compare()
    output.comparison(comparison)
    for path in Study.load(out).write_tables():  # with what other runs left there
        output.path(path)
    attacked = study.robustness.query("eps > 0")
    for name in dict.fromkeys(attacked["attack"]):
        picture = out / f"robustness-{name}.png"
        save(comparison.plot.robustness(name), picture)
        output.path(picture)
    output.json(comparison.table())
