"""Options that several verbs share, and the study they describe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saliency_lab._common.errors import InputError, unknown_name

if TYPE_CHECKING:
    from torch import nn

    from saliency_lab.data import Sample
    from saliency_lab.study import Study

Checkpoints = Annotated[
    list[Path],
    typer.Argument(
        metavar="MODEL...", help="Folders of trained models, as `train` leaves them.", show_default=False
    ),
]
DataName = Annotated[
    str | None, typer.Option("--data", help="Data set; by default the one the first model was trained on.")
]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", help="Folder of the data files; by default $SALIENCY_LAB_DATA, then ./data."),
]
Images = Annotated[int, typer.Option("--images", min=1, help="How many test images, stratified by class.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the choice of images and of every draw.")]
Store = Annotated[
    Path, typer.Option("--out", help="Folder of the results; what is there already is not computed again.")
]
Methods = Annotated[
    list[str], typer.Option("--method", help="Attribution method (`saliency-lab list methods`); repeatable.")
]
NamedSettings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="NAME.KEY=VALUE",
        help="A setting, such as integrated_gradients.steps=100; repeatable.",
    ),
]


def key_values(pairs: Sequence[str]) -> dict[str, Any]:
    """Read repeated `key=value` options; values are TOML, or else plain text."""
    from saliency_lab.training import parse_override

    return dict(parse_override(pair) for pair in pairs)


def named_settings(pairs: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give each name its settings from `NAME.KEY=VALUE` options."""
    settings: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in key_values(pairs).items():
        name, dot, setting = key.partition(".")
        if not dot:
            raise InputError(f"--set {key}=… names no method, metric or attack; write NAME.{key}=…")
        if name not in settings:
            raise unknown_name("owner of a setting:", name, names)
        settings[name][setting] = value
    return settings


def open_study(
    checkpoints: Sequence[Path], data: str | None, root: Path | None, images: int, seed: int, store: Path
) -> Study:
    """Load the models and draw the test images of a study kept in `store`."""
    from saliency_lab.study import Study

    models = load_models(checkpoints)
    return Study(models, draw_images(models, data, root, images, seed), store=store, seed=seed)


def load_models(checkpoints: Sequence[Path]) -> dict[str, list[nn.Module]]:
    """Load checkpoints by the recipe they were trained by: several seeds of one recipe are one model.

    The name is the recipe's last part ("asgt" for "mnist/asgt") where that is unique; a checkpoint that
    tells no recipe goes by its folder.
    """
    from saliency_lab.models import card_of, load_model

    by_recipe: dict[str, list[nn.Module]] = {}
    for path in checkpoints:
        model = load_model(path)
        card = card_of(model)
        recipe = card.recipe if card else None
        by_recipe.setdefault(recipe["name"] if recipe else path.as_posix(), []).append(model)
    short = [name.rpartition("/")[2] for name in by_recipe]
    names = short if len(set(short)) == len(short) else list(by_recipe)
    return dict(zip(names, by_recipe.values(), strict=True))


def draw_images(
    models: dict[str, list[nn.Module]], data: str | None, root: Path | None, images: int, seed: int
) -> Sample:
    """Draw test images of the named data set, or of the one the first model was trained on."""
    from saliency_lab.data import load_dataset
    from saliency_lab.models import card_of

    if data is None:
        card = card_of(next(iter(models.values()))[0])
        recipe = card.recipe if card else None
        if not recipe:
            raise InputError("the model does not say what it was trained on; name it with --data")
        data = recipe["data"]["name"]
    return load_dataset(data, root).test.sample(images, seed)
