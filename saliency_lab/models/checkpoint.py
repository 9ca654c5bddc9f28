"""Checkpoints: weights as safetensors beside a card as JSON; nothing is pickled."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_weights
from safetensors.torch import save as serialise_weights
from torch import nn

from saliency_lab._common.errors import CheckpointError, SaliencyLabError
from saliency_lab._common.files import atomic_path, write_json
from saliency_lab._common.html import facts
from saliency_lab._common.provenance import versions
from saliency_lab.models.catalogue import build_model
from saliency_lab.models.layers import Normalised

WEIGHTS, CARD = "model.safetensors", "model.json"
CUSTOM = "custom"
ZOO = Path(__file__).parent / "zoo"


class ModelCard(BaseModel):
    """What a checkpoint is and where it comes from.

    `architecture` is a name of `build_model`, or "custom" for a user's own module, whose other
    fields may stay empty. `save_model` fills in `mean`, `std`, `sha256` (of the weights file),
    `versions` and `created`.
    """

    model_config = ConfigDict(frozen=True)

    architecture: str = CUSTOM
    num_classes: int | None = None
    input_shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: tuple[str, ...] | None = None
    recipe: dict[str, Any] | None = None
    seed: int | None = None
    data: str | None = None
    """Fingerprint of the training data."""
    metrics: dict[str, float | None] = {}
    sha256: str = ""
    versions: dict[str, str] = {}
    created: str = ""

    def _repr_html_(self) -> str:
        shape = "" if self.input_shape is None else " × ".join(map(str, self.input_shape))
        measured = [f"{key} {value:.4g}" for key, value in self.metrics.items() if value is not None]
        known = {
            "architecture": self.architecture,
            "recipe": str((self.recipe or {}).get("name") or ""),
            "seed": "" if self.seed is None else str(self.seed),
            "image": shape,
            "classes": ", ".join(self.classes or ()) or str(self.num_classes or ""),
            "measured": ", ".join(measured),
            "training data": self.data or "",
            "weights (sha256)": self.sha256,
            "made": ", ".join(part for part in (self.created, _versions_of(self)) if part),
        }
        return facts("model", {name: value for name, value in known.items() if value})


def _versions_of(card: ModelCard) -> str:
    return ", ".join(
        f"{name} {card.versions[name]}" for name in ("saliency-lab", "torch") if name in card.versions
    )


def card_of(model: nn.Module) -> ModelCard | None:
    """Return the card that `train` or `load_model` put on a model; None for any other."""
    card = getattr(model, "card", None)
    return card if isinstance(card, ModelCard) else None


def save_model(model: nn.Module, folder: str | Path, card: ModelCard | None = None) -> ModelCard:
    """Write `folder`/model.safetensors and `folder`/model.json, each atomically; return the finished card.

    Without `card`, the model's own (`model.card`) is used, else one that says "custom".
    """
    folder = Path(folder)
    card = card or card_of(model) or ModelCard()
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    weights = serialise_weights(state)
    facts: dict[str, Any] = {
        "sha256": hashlib.sha256(weights).hexdigest(),
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if isinstance(model, Normalised):
        facts |= {"mean": tuple(model.mean.flatten().tolist()), "std": tuple(model.std.flatten().tolist())}
    card = card.model_copy(update=facts)
    with atomic_path(folder / WEIGHTS) as beside:
        beside.write_bytes(weights)
    write_json(folder / CARD, card.model_dump(mode="json"))
    return card


def load_model(
    path: str | Path, device: str | torch.device = "cpu", *, model: nn.Module | None = None
) -> nn.Module:
    """Load a checkpoint; return the module, in eval mode, with its card as `model.card`.

    Parameters
    ----------
    path
        The folder that `save_model` wrote, a .safetensors file with its .json beside it, or the name of a
        network that comes with the package, such as "mnist/asgt" (`list_zoo()`).
    device
        Where to put the model.
    model
        A module to load the weights into, for a "custom" checkpoint; a .safetensors file of any
        origin will do, and then needs no .json.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged or does not match its card, or the weights are of another
        architecture.
    """
    weights_path = _weights_of(Path(path))
    card_path = weights_path.with_suffix(".json")
    try:
        weights = weights_path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"no checkpoint at '{weights_path}' ({error.strerror}); name the folder that holds {WEIGHTS}, "
            "train the model first, or name one of list_zoo()"
        ) from error
    digest = hashlib.sha256(weights).hexdigest()
    card = (
        ModelCard(sha256=digest) if model is not None and not card_path.exists() else _parse_card(card_path)
    )
    if card.sha256 != digest:
        raise CheckpointError(
            f"'{weights_path}' ({len(weights):,} bytes) is not the file that '{card_path.name}' describes: "
            "it was cut short or changed. Copy both files again, or train the model again."
        )
    try:
        state = parse_weights(weights)
    except SafetensorError as error:
        raise CheckpointError(
            f"'{weights_path}' is damaged or no safetensors file ({error}); copy it again, or train the "
            "model again"
        ) from error
    if model is None:
        model = _build(card, weights_path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        problem = str(error).split("\n")[1].strip()
        raise CheckpointError(
            f"'{weights_path}' holds the weights of another architecture than {_describe(card, model)}: "
            f"{problem} Load it into a module of the architecture it was saved from."
        ) from None
    model.card = card  # type: ignore[assignment]
    return model.to(device).eval()


def read_card(path: str | Path) -> ModelCard:
    """Read the card of a checkpoint, `path` as in `load_model`, and leave its weights alone.

    Raises
    ------
    CheckpointError
        If the card is missing or damaged.
    """
    return _parse_card(_weights_of(Path(path)).with_suffix(".json"))


def list_zoo() -> pd.DataFrame:
    """The trained networks that come with the package, indexed by the name that `load_model` takes.

    Columns: architecture, size of the weights in kB, and what the card says was measured on test images:
    clean accuracy, and accuracy under PGD-40 at `eps`.

    >>> list_zoo().loc["digits/at", "architecture"]
    'small_cnn'
    """
    rows = []
    for name in zoo_names():
        card = read_card(name)
        facts = {"architecture": card.architecture, "kB": (ZOO / name / WEIGHTS).stat().st_size // 1000}
        measured = {key: card.metrics[key] for key in ("test_clean", "test_pgd40", "eps")}
        rows.append({"name": name, **facts, **measured, "sha256": card.sha256[:12]})
    return pd.DataFrame(rows).set_index("name")


def zoo_names() -> list[str]:
    """Names of the trained networks that come with the package."""
    return sorted(path.parent.relative_to(ZOO).as_posix() for path in ZOO.glob(f"*/*/{WEIGHTS}"))


def _weights_of(path: Path) -> Path:
    if path.as_posix() in zoo_names() and not path.exists():
        path = ZOO / path
    return path if path.suffix == ".safetensors" else path / WEIGHTS


def _parse_card(path: Path) -> ModelCard:
    try:
        return ModelCard.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CheckpointError(
            f"no checkpoint's card at '{path}' ({error.strerror}); name the folder that holds it beside the "
            "weights, train the model first, name one of list_zoo(), or pass model=… to load weights into a "
            "module of your own"
        ) from error
    except ValueError as error:  # no JSON, or not of this form
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"'{'.'.join(map(str, first['loc']))}': {first['msg']}"
        raise CheckpointError(
            f"the card '{path}' is damaged ({reason}); copy it again, or train the model again"
        ) from error


def _build(card: ModelCard, path: Path) -> nn.Module:
    if card.architecture == CUSTOM or card.num_classes is None or card.input_shape is None:
        raise CheckpointError(
            f"'{path}' holds the weights of a module of your own; pass that module: "
            "load_model(…, model=my_module)"
        )
    try:
        return build_model(
            card.architecture,
            num_classes=card.num_classes,
            input_shape=card.input_shape,
            mean=card.mean,
            std=card.std,
        )
    except SaliencyLabError as error:
        raise CheckpointError(f"the card beside '{path}' does not describe a model: {error}") from error


def _describe(card: ModelCard, model: nn.Module) -> str:
    return f"'{card.architecture}'" if card.architecture != CUSTOM else type(model).__name__
