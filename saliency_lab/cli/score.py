"""`saliency-lab score MODEL...`."""

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
    app.command()(score)


def score(
    models: Checkpoints,
    metric: Annotated[
        list[str],
        typer.Option(
            "--metric",
            metavar="A,B",
            help="Metrics (`saliency-lab list metrics`, or module:attribute); repeatable.",
        ),
    ] = ["faithfulness_correlation", "pixel_flipping", "sparseness"],  # noqa: B006 - typer copies it
    method: Methods = ["saliency", "integrated_gradients"],  # noqa: B006
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
    """Score the saliency maps of one or more models; print means with 95 % intervals, write tidy tables."""
    from saliency_lab._common.execution import execution
    from saliency_lab.cli.output import Output
    from saliency_lab.study import Study

    output = Output(json)
    methods, metrics = several(method), several(metric)
    given = named_settings(settings, [*methods, *metrics])
    maps, scores = requests_of("method", methods, given), requests_of("metric", metrics, given)
    with execution(**pass_settings(compile, dtype)):
        study, requests = open_study(
            models, data, data_root, images, seed, out, device, trust=trust, methods=maps, metrics=scores
        )
    study.compute(requests)
    comparison = study.compare()
    output.comparison(comparison)
    for path in Study.load(out).write_tables():  # with what other runs left there
        output.path(path)
    output.json(comparison.table())
