"""`saliency-lab audit MODEL...`."""

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
    Trust,
    attack_settings,
    draw_images,
    load_models,
)


def add_to(app: typer.Typer) -> None:
    """Register the subcommand."""
    app.command()(audit)


def audit(
    models: Checkpoints,
    eps: Annotated[str, typer.Option("--eps", help='Radius in image units, such as 0.1 or "8/255".')],
    method: Annotated[str, typer.Option("--method", help="The attack whose result is audited.")] = "pgd",
    full: Annotated[
        bool, typer.Option("--full", help="Reference attacks at AutoAttack's standard strength (slow).")
    ] = False,
    data: DataName = None,
    data_root: DataRoot = None,
    images: Images = IMAGES,
    seed: Seed = 0,
    settings: NamedSettings = [],  # noqa: B006 - typer copies it
    device: Device = "auto",
    trust: Trust = False,
    out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the audits here.")
    ] = None,
) -> None:
    """Say whether to believe a robust accuracy: run the checklist against the attack that reports it.

    Several models, and several seeds of one, are audited in turn, and each is also attacked by transfer from
    the others.
    """
    from saliency_lab._common.checks import format_epsilon
    from saliency_lab._common.files import output_file, write_json
    from saliency_lab.attacks.checklist import run_audit
    from saliency_lab.cli.output import print_table
    from saliency_lab.study.requests import read_attack
    from saliency_lab.study.sample import read_members

    if out is not None:
        output_file(out, ".json", name="--json")
    request = read_attack(method, eps, settings=attack_settings(settings, [method])[method])
    radius = max(request.eps)
    loaded = load_models(models, device, trust=trust)
    x, y = draw_images(loaded, data, data_root, images, seed, trust=trust)
    nets = {
        str(member) if len(loaded[member.model]) > 1 else member.model: member.net
        for member in read_members(loaded)
    }
    verdicts = {}
    for name, module in nets.items():
        others = {other: surrogate for other, surrogate in nets.items() if other != name}
        verdict = run_audit(
            module,
            x,
            y,
            *request.attack,
            eps=radius,
            surrogates=others,
            budget="full" if full else "quick",
            seed=seed,
        )
        audited = verdict.audited
        print(
            f"{name}: {verdict.verdict}. {method} at ε = {format_epsilon(audited.eps)} ({audited.norm}) "
            f"reports {verdict.robust_accuracy:.1%} robust; the worst case over all attacks is "
            f"{verdict.worst_case:.1%}. Each check and its evidence:"
        )
        print_table(verdict.table())
        verdicts[name] = verdict.to_dict()
    if out is not None:
        write_json(out, verdicts)
        print(out)
