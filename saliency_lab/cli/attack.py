"""`saliency-lab attack MODEL...`."""

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
    NamedSettings,
    Seed,
    Store,
    attack_settings,
    open_study,
)


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command()(attack)


def attack(
    models: Checkpoints,
    eps: Annotated[
        list[str],
        typer.Option(
            "--eps", help='Radius in image units, such as 0.1 or "8/255"; repeatable, all in one call.'
        ),
    ],
    method: Annotated[str, typer.Option("--method", help="Attack (`saliency-lab list attacks`).")] = "pgd",
    data: DataName = None,
    data_root: DataRoot = None,
    images: Images = IMAGES,
    seed: Seed = 0,
    settings: NamedSettings = [],  # noqa: B006 - typer copies it
    device: Device = "auto",
    out: Store = Path("runs/study"),
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the table here.")
    ] = None,
) -> None:
    """Attack one or more models; print accuracy with 95 % intervals, write tables and a picture."""
    from saliency_lab._common.files import atomic_path
    from saliency_lab.cli.output import print_comparison
    from saliency_lab.plotting.style import save
    from saliency_lab.study import Study

    own = attack_settings(settings, method)
    study = open_study(models, data, data_root, images, seed, out, device)
    study.attack(method, eps=eps, **own)
    comparison = study.compare()
    print_comparison(comparison)
    for path in Study.load(out).write_tables():  # with what other runs left there
        print(path)
    if json is not None:
        with atomic_path(json) as beside:
            comparison.table().to_json(beside, orient="records", indent=2)
        print(json)
    attacked = study.robustness.query("eps > 0")
    if len(attacked):
        picture = out / f"robustness-{attacked['attack'].iloc[0]}.png"
        save(comparison.plot.robustness(), picture)
        print(picture)
