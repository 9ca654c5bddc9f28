"""Options that several verbs share, and the data they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saliency_lab._common.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from saliency_lab.data import Sample

Checkpoints = Annotated[
    list[Path], typer.Argument(help="Folders of trained models, as `train` leaves them.", show_default=False)
]
DataName = Annotated[
    str | None, typer.Option("--data", help="Data set; by default the one the first model was trained on.")
]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", help="Folder of the data files; by default $SALIENCY_LAB_DATA, then ./data."),
]
Images = Annotated[int, typer.Option("--images", min=1, help="How many test images, stratified by class.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the choice of images and every draw.")]
Store = Annotated[
    Path, typer.Option("--out", help="Folder of the results; what is there already is not computed again.")
]


def key_values(pairs: list[str]) -> dict[str, Any]:
    """Read repeated `key=value` options; values are TOML, or else plain text."""
    from saliency_lab.training import parse_override

    return dict(parse_override(pair) for pair in pairs)


def load_models(checkpoints: list[Path]) -> dict[str, nn.Module]:
    """Load each checkpoint under its folder's name, or its path where two folders share a name."""
    from saliency_lab.models import load_model

    names = [path.name for path in checkpoints]
    if len(set(names)) < len(names):
        names = [str(path) for path in checkpoints]
    return {name: load_model(path) for name, path in zip(names, checkpoints, strict=True)}


def test_sample(
    models: dict[str, nn.Module], data: str | None, root: Path | None, images: int, seed: int
) -> Sample:
    """Draw test images of the named data set, or of the one the first model's recipe names."""
    from saliency_lab.data import load_dataset

    if data is None:
        card: Any = getattr(next(iter(models.values())), "card", None)
        recipe = getattr(card, "recipe", None)
        if not recipe:
            raise InputError("the model does not say what it was trained on; name it with --data")
        data, stored_root = recipe["data"]["name"], recipe["data"]["root"]
        root = root or (Path(stored_root) if stored_root else None)
    return load_dataset(data, root).test.sample(images, seed)
