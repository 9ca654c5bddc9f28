"""`saliency-lab power`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from saliency_lab._common.errors import InputError
from saliency_lab.cli.options import numbers

if TYPE_CHECKING:
    from saliency_lab.experiment.schema import Declaration


def add_to(app: typer.Typer) -> None:
    """Register the subcommand."""
    app.command()(power)


def power(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="[STUDY]",
            help="A study's TOML file, or the name of a bundled study: its seeds, images, level, margin and "
            "number of tests are taken unless they are given here.",
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Training seeds per model, such as 3,5,10 (the default).")
    ] = None,
    images: Annotated[str | None, typer.Option(help="Images, such as 500,2000 (the default).")] = None,
    difference: Annotated[
        str, typer.Option(help="True differences in percentage points, such as 2,4; 0 gives the error rate.")
    ] = "2,4",
    accuracy: Annotated[float, typer.Option(help="Accuracy of the worse model, in percent.")] = 85.0,
    seed_spread: Annotated[
        float,
        typer.Option(help="Standard deviation of the accuracy over training seeds, in percentage points."),
    ] = 1.2,
    correlation: Annotated[
        float, typer.Option(help="Correlation between networks of how difficult an image is.")
    ] = 0.6,
    comparisons: Annotated[
        int | None, typer.Option(min=1, help="Tests that are corrected together (Holm); by default 1.")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="Margin of equivalence in percentage points; by default none.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Simulated studies per row.")] = 500,
) -> None:
    """Simulate how often a study would detect a difference in accuracy, before it is run.

    Take --accuracy and --seed-spread from a pilot study of a few seeds.
    """
    from saliency_lab.cli.output import print_table
    from saliency_lab.comparison.power_analysis import power as simulate

    if 0 < accuracy < 1:
        raise InputError(f"--accuracy is in percent: {100 * accuracy:g}, not {accuracy:g}")
    level, declared_seeds, declared_images = 0.95, "3,5,10", "500,2000"
    tests: dict[str, _Test] = {"": (comparisons or 1, declared_seeds, None)}
    if study is not None:
        declared = _declaration(study)
        level, declared_images = declared.level, str(declared.data.images)
        primary, secondary = _differences(declared)
        if not primary | secondary:
            raise InputError(
                "this study compares nothing, so it detects no difference; give it a second model"
            )
        if comparisons:
            fewest = _fewest_seeds(declared, [pair for *_, pair in primary | secondary])
            tests = {f"{comparisons} corrected together": (comparisons, fewest, None)}
        else:
            tests = _tests(declared, secondary)
    for name, (number, own_seeds, own_margin) in tests.items():
        within = own_margin if margin is None else margin / 100
        table = simulate(
            [each / 100 for each in numbers("--difference", difference, float)],
            seeds=numbers("--seeds", seeds or own_seeds, int),
            images=numbers("--images", images or declared_images, int),
            accuracy=accuracy / 100,
            seed_spread=seed_spread / 100,
            correlation=correlation,
            comparisons=number,
            margin=within,
            level=level,
            runs=runs,
        )
        for column in ("difference", "half_width"):
            table[column] = [f"{100 * value:.2g} points" for value in table[column]]
        for column in ("detected", "undecided", "equivalent"):
            if column in table:
                table[column] = [f"{100 * value:.0f} %" for value in table[column]]
        print_table(table.rename(columns={"half_width": "half-width of the interval"}), name or None)


_Test: TypeAlias = tuple[int, str, float | None]
"""How many tests are corrected together, the seeds of a model, and the margin of equivalence if any."""


def _tests(declared: Declaration, secondary: Collection[_Difference]) -> dict[str, _Test]:
    """Return the tests of a study by the title of their table.

    The simulation is of accuracies, so endpoints that are scores of maps have no table. Equivalence is tested
    for primary endpoints alone, each within its own margin.

    Raises
    ------
    InputError
        If no accuracy is compared.
    """
    from saliency_lab.comparison.measures import SHARES

    tests: dict[str, _Test] = {}
    endpoints = [claim.primary for claim in declared.claims if claim.primary is not None]
    endpoints = [endpoint for endpoint in endpoints if endpoint.metric in SHARES]
    for margin in dict.fromkeys(endpoint.margin for endpoint in endpoints):
        pairs = [{each.model, each.over} for each in endpoints if each.margin == margin]
        within = "" if margin is None else f", equivalent within {100 * margin:g} points"
        tests[f"primary endpoint{within}"] = 1, _fewest_seeds(declared, pairs), margin
    if any(metric in SHARES for metric, *_ in secondary):
        number = len(secondary)
        seeds = _fewest_seeds(declared, [pair for *_, pair in secondary])
        tests[f"{number} corrected together"] = number, seeds, None
    if not tests:
        raise InputError(
            "this study compares scores of maps alone, and the power of accuracies is what is simulated; "
            "--comparisons N simulates N tests of accuracies with its seeds and images"
        )
    return tests


def _declaration(study: str) -> Declaration:
    from saliency_lab.experiment.schema import bundled_study, read_declaration

    path = study if study.endswith(".toml") else bundled_study(study)
    return read_declaration(path, trust=True)  # nothing is imported, because nothing is run


_Difference: TypeAlias = tuple[str, str, float, frozenset[str]]
"""Metric, method, ε, and the two models."""


def _fewest_seeds(declared: Declaration, pairs: Iterable[Collection[str]]) -> str:
    """Return the smallest number of networks of any model that is compared."""
    counts = {model: len(seeds) for model, seeds in declared.trained_seeds.items()}
    counts |= {model: 1 if isinstance(each, str) else len(each) for model, each in declared.models.items()}
    return str(min(counts[model] for pair in pairs for model in pair))


def _differences(declared: Declaration) -> tuple[set[_Difference], set[_Difference]]:
    """List the primary endpoints of a study, and the differences that are corrected together.

    Those are the claims' other differences. Where there is no claim they are those of every model from the
    baseline: of the accuracies, which are one family, or of the scores where nothing is attacked.
    """
    from saliency_lab._common.checks import parse_radii
    from saliency_lab.comparison.measures import ACCURACY, ROBUST, Measure
    from saliency_lab.study.requests import attack_arguments

    measures = [Measure(ACCURACY, "", 0.0, "higher", {})] if declared.attacks else []
    for attack in attack_arguments("attack", declared.attacks, "eps"):
        radii = [eps for eps in parse_radii(attack["eps"]) if eps > 0]
        measures += [Measure(ROBUST, attack["label"], eps, "higher", {}) for eps in radii]
    measures += [
        Measure(metric, method, 0.0, "neither", {})
        for metric in declared.metrics
        for method in declared.methods
    ]
    differences: set[_Difference] = set()
    primary: set[_Difference] = set()
    if not declared.claims:
        first, *others = [*declared.recipes, *declared.models]
        baseline = declared.baseline or first
        pairs = [frozenset((model, baseline)) for model in (first, *others) if model != baseline]
        family = [measure for measure in measures if measure.share] or measures
        return primary, {(m.metric, m.method, m.eps, pair) for m in family for pair in pairs}
    for claim in declared.claims:
        for measure in measures:
            place = measure.metric, measure.method, measure.eps
            if claim.primary is not None and claim.primary.is_measured_by(measure):
                primary.add((*place, frozenset((claim.primary.model, claim.primary.over))))
            if claim.asks_about(measure):
                asked = {frozenset((model, over)) for model in claim.model for over in claim.over}
                differences |= {(*place, pair) for pair in asked if len(pair) == 2}
    return primary, differences - primary
