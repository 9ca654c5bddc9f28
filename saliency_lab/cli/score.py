"""`saliency-lab score MODEL...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saliency_lab.cli.options import (
    IMAGES,
    Checkpoints,
    DataName,
    DataRoot,
    Device,
    Images,
    Methods,
    NamedSettings,
    Seed,
    Store,
    named_settings,
    open_study,
)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command()(score)


def score(
    models: Checkpoints,
    metric: Annotated[
        list[str], typer.Option("--metric", help="Metric (`saliency-lab list metrics`); repeatable.")
    ] = ["faithfulness_correlation", "pixel_flipping", "sparseness"],  # noqa: B006 - typer copies it
    method: Methods = ["saliency", "integrated_gradients"],  # noqa: B006
    data: DataName = None,
    data_root: DataRoot = None,
    images: Images = IMAGES,
    seed: Seed = 0,
    settings: NamedSettings = [],  # noqa: B006
    device: Device = "auto",
    out: Store = Path("runs/study"),
) -> None:
    """Score the saliency maps of one or more models; print means with 95 % intervals, write tidy tables."""
    from saliency_lab.cli.output import print_comparison
    from saliency_lab.study import Study

    requests = named_settings(settings, [*method, *metric])
    study = open_study(models, data, data_root, images, seed, out, device)
    study.attribute({name: requests[name] for name in method})
    study.score({name: requests[name] for name in metric})
    print_comparison(study.compare())
    for path in Study.load(out).write_tables():  # with what other runs left there
        print(path)
