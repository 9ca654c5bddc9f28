"""Checkpoints: weights as safetensors next to a card as JSON; nothing is pickled."""

from __future__ import annotations

import copy
import difflib
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_weights
from torch import Tensor, nn

from saliency_lab._common.arguments import check_flag, check_instance, check_path
from saliency_lab._common.errors import CheckpointError, InputError, SaliencyLabError
from saliency_lab._common.files import atomic_path, read_checked_json, write_checked_json
from saliency_lab._common.fingerprints import model_fingerprint
from saliency_lab._common.inference import check_module, named_device
from saliency_lab._common.plugins import NameFromFile, mark_names, names_code, untrusted
from saliency_lab._common.provenance import machine, versions
from saliency_lab._common.warn import warn
from saliency_lab.models.card import CUSTOM, ModelCard, card_of
from saliency_lab.models.catalogue import build_model, own_module
from saliency_lab.models.layers import Normalised
from saliency_lab.models.pretrained import is_pretrained_name, is_torchvision_model, load_pretrained
from saliency_lab.models.robustbench import PREFIX as ROBUSTBENCH
from saliency_lab.models.robustbench import load_robustbench
from saliency_lab.models.weights import (
    PICKLED,
    misfit,
    read_state,
    serialised_weights,
    weights_digest,
    without_wrapper,
)

WEIGHTS, CARD = "model.safetensors", "model.json"
ZOO = Path(__file__).parent / "zoo"


def save_model(model: nn.Module, folder: str | Path, card: ModelCard | None = None) -> ModelCard:
    """Write the weights and the card of a model, each file atomically.

    Parameters
    ----------
    model : nn.Module
        The model to save.
    folder : str or path
        Where `model.safetensors` and `model.json` are written.
    card : ModelCard, optional
        What the model is. By default its own, `model.card`, as far as it is still true: if the weights have
        changed, only what describes the architecture, and if that has changed too, nothing.

    Returns
    -------
    ModelCard
        The card as written, with the digest of the weights, the versions and the date.

    Raises
    ------
    InputError
        If `model` is no torch module, or its state holds what is no tensor, as a quantised one's does.

    Examples
    --------
    >>> import tempfile
    >>> model = build_model("small_cnn", num_classes=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     card = save_model(model, folder)
    ...     load_model(folder).card == card
    True
    """
    check_module(model)
    folder = check_path(folder, "folder")
    if card is not None:
        check_instance(card, ModelCard, "card", "a saliency_lab.ModelCard")
    weights = serialised_weights(model)
    card = _finished(card or _own_card(model, weights), model, weights)
    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(weights)
    write_checked_json(folder / CARD, card.model_dump(mode="json"))
    return card


def put_card(model: nn.Module, card: ModelCard) -> None:
    """Make `card`, finished as `save_model` does, the model's own: it describes these weights only."""
    model.card = _finished(card, model, serialised_weights(model))  # type: ignore[assignment]


def _finished(card: ModelCard, model: nn.Module, weights: bytes) -> ModelCard:
    facts: dict[str, Any] = {
        "sha256": hashlib.sha256(weights).hexdigest(),
        "versions": versions(),
        "machine": machine(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if isinstance(model, Normalised):
        facts |= {"mean": tuple(model.mean.flatten().tolist()), "std": tuple(model.std.flatten().tolist())}
    return card.model_copy(update=facts)


def _own_card(model: nn.Module, weights: bytes) -> ModelCard:
    """The model's own card, or what of it still holds."""
    card = card_of(model) or ModelCard()
    if card.architecture != architecture_of(model):
        return ModelCard()
    if card.sha256 in ("", hashlib.sha256(weights).hexdigest()):
        return card
    return ModelCard(
        architecture=card.architecture, num_classes=card.num_classes, input_shape=card.input_shape
    )


def architecture_of(model: nn.Module) -> str:
    """The name by which `build_model` makes this module; "custom" also where a layer was replaced since."""
    card = card_of(model)
    if card is None or card.architecture == CUSTOM or card.num_classes is None or card.input_shape is None:
        return CUSTOM
    try:
        built = build_model(card.architecture, num_classes=card.num_classes, input_shape=card.input_shape)
    except SaliencyLabError:
        return CUSTOM
    return card.architecture if repr(built) == repr(model) else CUSTOM


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    model: nn.Module | None = None,
    weights: str | Path | None = None,
    trust: bool = False,
) -> nn.Module:
    """Load a checkpoint or a pretrained network; return it in eval mode, with its card as `model.card`.

    Every model takes images in [0, 1] and normalises inside. An architecture of `build_model` comes back in
    the file's dtypes; a module of your own keeps its own.

    Parameters
    ----------
    path : str or path
        The folder that `save_model` wrote, or a .safetensors file next to its .json; the name of a trained
        network of this package, such as "mnist/asgt" (`list_zoo()`); or the name of a pretrained network:
        "torchvision/NAME", "timm/NAME", "hf/NAME" (an image classifier of the Hugging Face hub, or the folder
        that `save_pretrained` wrote), or "imagenet/efficientnet_lite0", which needs no download;
        or, where RobustBench is installed, one of its own: "robustbench/cifar10/Linf/Carmon2019Unlabeled".
    device : str or torch.device
        Where to put the model: "cpu", "cuda", "cuda:1", "mps", or "auto" (CUDA if there is one, else the
        CPU).
    model : nn.Module, optional
        A module to load the weights into, for a "custom" checkpoint; a .safetensors file or a .pth file of
        any origin will do, and then needs no .json. If the weights are those of this module as `wrap` returns
        it, it comes back wrapped, with the same mean and std.
    weights : str or path, optional
        For a pretrained network: "DEFAULT" for those that its library calls so, which are downloaded once;
        the name of others of torchvision, such as "IMAGENET1K_V1"; or a file that holds its state dict, whose
        number of classes may differ. Files of torch.save are read with `weights_only=True`.
    trust : bool
        Whether to import the module that the card of a "custom" checkpoint names as `module:attribute`, which
        runs its code. The card of any other checkpoint never imports anything.

    Returns
    -------
    nn.Module
        The model in eval mode, which takes images (N, C, H, W) in [0, 1] and returns logits (N, K).

    Raises
    ------
    CheckpointError
        If a file is missing, damaged or does not match its card, cannot be downloaded, or the weights are of
        another architecture, and `model` is then as it was; or if the card names code and is not trusted.
    InputError
        If the device is not here, `model` is not a torch module, there is no such network or there are no
        such weights, or the library of its family is not installed.
    UnknownNameError
        If the family has no network of that name.

    Warns
    -----
    UserWarning
        If the code of the module that the card names has changed since it was trained.

    Examples
    --------
    >>> load_model("digits/at").card.architecture
    'small_cnn'
    """
    device = named_device(device)
    if isinstance(path, nn.Module):
        raise InputError(
            f"load_model takes a name or a path; make a model of your {type(path).__name__} with "
            "saliency_lab.wrap(module, mean=…, std=…, classes=…)"
        )
    name = path if isinstance(path, str) else ""  # "hf//folder", whose slashes a path would merge
    path = check_path(path)
    name = name or path.as_posix()
    check_flag(trust, "trust")
    if weights is not None:
        weights = check_path(weights, "weights")
    if model is None and name.startswith(ROBUSTBENCH):
        return load_robustbench(name).to(device)
    if model is None and is_pretrained_name(name):
        return load_pretrained(name, None if weights is None else str(weights)).to(device)
    if weights is not None:
        raise InputError(
            f"weights goes with a pretrained network, such as 'torchvision/resnet50', not with '{path}'; the "
            "checkpoint holds its own"
        )
    if model is not None and not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise InputError(
            f"model must be a torch.nn.Module to load the weights into, not {what}; make one first"
        )
    if path.suffix in PICKLED:
        return _load_into(model, path).to(device).eval()
    weights_path = _weights_of(path)
    card_path = weights_path.with_suffix(".json")
    try:
        content = weights_path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"no checkpoint at '{weights_path}' ({error.strerror}); {_hint(path)}name the folder that "
            f"holds {WEIGHTS}, train the model first, or name one of list_zoo()"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    card = (
        ModelCard(sha256=digest) if model is not None and not card_path.exists() else _parse_card(card_path)
    )
    if model is not None and names_code(card.architecture) and not trust:
        card = card.model_copy(update={"architecture": CUSTOM})  # a name that nothing checked, nor imports
    if card.sha256 != digest:
        raise CheckpointError(
            f"'{weights_path}' ({len(content):,} bytes) is not the file that '{card_path.name}' describes: "
            "it was cut short or changed. Copy both files again, or train the model again."
        )
    try:
        state = parse_weights(content)
    except SafetensorError as error:
        raise CheckpointError(
            f"'{weights_path}' is damaged or no safetensors file ({error}); copy it again, or train the "
            "model again"
        ) from error
    named = model is None
    if model is None:
        model = _custom(card, card_path, trust=trust)
    if model is None:
        model = _built(card, weights_path)
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in state:
                tensor.data = tensor.data.to(state[name].dtype)
    model = _load_state(model, state, weights_path, _describe(card, model))
    if named and card.code and model_fingerprint(model) != card.code:
        warn(
            f"the code of the module that '{card_path}' names has changed since it was trained, so this may "
            "be another network; use the earlier code, or train the model again"
        )
    model.card = card  # type: ignore[assignment]
    return model.to(device).eval()


def _load_into(model: nn.Module | None, path: Path) -> nn.Module:
    """Load a file of torch.save into a user's module."""
    if model is None:
        raise CheckpointError(
            f"'{path}' does not say which architecture its weights are of; pass the module, "
            "load_model(…, model=my_module), or its name, load_model('torchvision/NAME', weights='"
            f"{path}')"
        )
    state = without_wrapper(read_state(path), model.state_dict())
    model = _load_state(model, state, path, type(model).__name__)
    model.card = ModelCard(weights=path.name, sha256=weights_digest(model))  # type: ignore[assignment]
    return model


def _load_state(model: nn.Module, state: Mapping[str, Tensor], path: Path, architecture: str) -> nn.Module:
    """Load a state dict and return the model, wrapped if the state is that of the wrapped model.

    If the state does not fit, the model is left as it was.
    """
    if set(state) == {"mean", "std", *(f"net.{key}" for key in model.state_dict())}:
        try:
            model = Normalised(model, *(state[name].flatten().tolist() for name in ("mean", "std")))
        except InputError as error:
            raise CheckpointError(
                f"'{path}' holds a mean and a std that cannot normalise images ({error}); pass the module "
                "that has them itself"
            ) from error
    before = copy.deepcopy(model.state_dict())
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        model.load_state_dict(before)  # torch loads what fits before it complains
        raise CheckpointError(
            f"'{path}' holds the weights of another architecture than {architecture}: "
            f"{misfit(error)}. Load it into a module of the architecture it was saved from."
        ) from None
    return model


def read_card(path: str | Path) -> ModelCard:
    """Read the card of a checkpoint, `path` as in `load_model`, and leave its weights alone.

    Raises
    ------
    CheckpointError
        If the card is missing or damaged.
    """
    return _parse_card(_weights_of(check_path(path)).with_suffix(".json"))


def check_checkpoint(path: Path) -> dict[Path, str]:
    """Check the two files of a checkpoint, `path` as in `load_model`; return what is wrong with which."""
    weights = _weights_of(path)
    card = weights.with_suffix(".json")
    try:
        expected = _parse_card(card).sha256
    except CheckpointError as error:
        return {card: str(error)}
    if not expected:
        return {card: f"'{card}' does not describe any weights"}
    if not weights.exists():
        return {weights: f"'{weights}' is missing"}
    if hashlib.sha256(weights.read_bytes()).hexdigest() != expected:
        return {weights: f"'{weights}' is damaged: it is not the file that '{card.name}' describes"}
    return {}


def list_zoo() -> pd.DataFrame:
    """List the trained networks that come with the package.

    Returns
    -------
    DataFrame
        One row per network, indexed by the name that `load_model` takes: `architecture`, size of the weights
        in `kB`, the accuracy on test images (`test_clean`) and that under PGD-40 at `eps` (`test_pgd40`), and
        how the `sha256` of the weights begins.

    Examples
    --------
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
        fields = read_checked_json(path, ModelCard.model_fields)
        known = {name: value for name, value in fields.items() if name in ModelCard.model_fields}
        return ModelCard.model_validate(known | {"recipe": mark_names(fields.get("recipe"), path)})
    except OSError as error:
        raise CheckpointError(
            f"no checkpoint's card at '{path}' ({error.strerror}); name the folder that holds it and the "
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


def _hint(folder: Path) -> str:
    """Return what may have been meant: a name of the zoo or of torchvision, or a checkpoint lower down."""
    near = difflib.get_close_matches(folder.as_posix(), zoo_names(), n=1, cutoff=0.8)
    if near:
        return f"did you mean '{near[0]}'? Otherwise "
    if is_torchvision_model(folder.as_posix()):
        return f"did you mean load_model('torchvision/{folder}', weights='DEFAULT')? Otherwise "
    inside = sorted(path.parent for path in folder.glob(f"*/{CARD}"))
    return f"there is one in '{inside[0]}'; otherwise " if inside else ""


def _custom(card: ModelCard, path: Path, *, trust: bool) -> nn.Module | None:
    """Make the module that a card in the file `path` names as `module:attribute`; None if it names none."""
    key, name = "architecture", card.architecture
    trained = (card.recipe or {}).get("model")
    if name == CUSTOM and isinstance(trained, Mapping):
        key, name = "recipe.model.name", str(trained.get("name"))
    if not names_code(name):
        return None
    if not trust:
        raise CheckpointError(
            f"{untrusted(NameFromFile(name, path), key)}; or import it yourself and pass the module: "
            "load_model(…, model=my_module)"
        )
    return own_module(name, card.num_classes or 0, card.input_shape or (0, 0, 0), card.seed or 0)


def _built(card: ModelCard, path: Path) -> nn.Module:
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
        raise CheckpointError(f"the card next to '{path}' does not describe a model: {error}") from error


def _describe(card: ModelCard, model: nn.Module) -> str:
    return f"'{card.architecture}'" if card.architecture != CUSTOM else type(model).__name__
