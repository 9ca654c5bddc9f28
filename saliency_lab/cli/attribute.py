"""`saliency-lab attribute MODEL...`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from saliency_lab._common.errors import SaliencyLabError
from saliency_lab.cli.options import (
    IMAGES,
    Checkpoints,
    Compile,
    DataName,
    DataRoot,
    Device,
    Dtype,
    Images,
    Methods,
    NamedSettings,
    Seed,
    Store,
    Trust,
    named_settings,
    open_study,
    pass_settings,
    requests_of,
    several,
)


def add_to(app: typer.Typer) -> None:
    """Register the subcommand."""
    app.command()(attribute)


def attribute(
    models: Checkpoints,
    method: Methods = ["saliency"],  # noqa: B006 - typer copies it
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
    rows: Annotated[int, typer.Option(min=1, help="How many images the picture shows.")] = 6,
) -> None:
    """Compute saliency maps of one or more models; write the maps, and a picture for each method."""
    from saliency_lab._common.execution import execution
    from saliency_lab._common.files import distinct_stems
    from saliency_lab.comparison.plots import maps_of
    from saliency_lab.plotting.style import save

    methods = several(method)
    wanted = requests_of("method", methods, named_settings(settings, methods))
    with execution(**pass_settings(compile, dtype)):
        study, requests = open_study(
            models, data, data_root, images, seed, out, device, trust=trust, methods=wanted
        )
    study.compute(requests)
    problems = []
    stems = distinct_stems({model: re.sub(r"[^\w.=,-]+", "_", model).strip("_") for model in study.models})
    for name in wanted:
        try:
            for member in study.members:
                several_seeds = sum(each.model == member.model for each in study.members) > 1
                seed_of = f"-seed-{member.seed}" if several_seeds else ""
                path = out / "maps" / f"{stems[member.model]}{seed_of}-{name}.safetensors"
                study.read_maps(member.model, name, member.seed).save(path)
                print(path)
            path = out / f"maps-{name}.png"
            save(maps_of(study, study.models, name, rows), path)
            print(path)
        except SaliencyLabError as error:  # of this method; the others are written
            problems.append(error)
    if problems:
        raise problems[0]
