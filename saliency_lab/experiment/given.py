"""The networks that a declared study is given as trained: the table [models]."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from torch import nn

from saliency_lab._common.arguments import check_path
from saliency_lab._common.errors import CheckpointError, InputError
from saliency_lab._common.warn import warn
from saliency_lab.data import ImageData
from saliency_lab.experiment.part import WHOLE, Part
from saliency_lab.experiment.schema import Declaration
from saliency_lab.models import card_of, load_model, read_card
from saliency_lab.models.card import check_data
from saliency_lab.models.catalogue import ARCHITECTURES, own_module
from saliency_lab.models.checkpoint import check_checkpoint, zoo_names
from saliency_lab.models.pretrained import is_pretrained_name, split_weights
from saliency_lab.study.cache.results import Failure


def finished_models(
    declared: Declaration, data: ImageData, device: torch.device, part: Part = WHOLE, *, trust: bool
) -> tuple[dict[str, list[nn.Module]], dict[tuple[str, int], Failure]]:
    """Load the networks of [models] that belong to the part; return them, and failures of damaged ones.

    A failure is listed under the seed on the card or, if that is damaged, under the checkpoint's position.
    """
    models: dict[str, list[nn.Module]] = {}
    damaged: dict[tuple[str, int], Failure] = {}
    for name, sources in declared.models.items():
        if not part.has(name):
            continue
        listed = [sources] if isinstance(sources, str) else sources
        if len(set(listed)) < len(listed):
            raise InputError(f"model '{name}' lists a checkpoint twice; each must be another seed")
        if not listed:
            raise InputError(f"model '{name}' lists no checkpoint; name one, or leave the model out")
        for position, source in enumerate(listed):
            path, weights = _found(declared.folder, source)
            if _is_own(source) and not path.exists():
                own = own_module(source, len(data.classes), data.input_shape, declared.seed)
                models.setdefault(name, []).append(own.to(device))
                continue
            try:
                net = load_model(path.as_posix(), device, weights=weights, trust=trust)
                check_data(card_of(net), name, data.name, data.input_shape, data.classes)
                models.setdefault(name, []).append(net)
            except CheckpointError as error:
                if not path.exists() or not check_checkpoint(path):
                    raise  # a mistake in the study, not damage
                warn(f"{name}: {error}; the study continues without it")
                seed = position
                with contextlib.suppress(CheckpointError):
                    known = read_card(path).seed
                    seed = position if known is None else known
                damaged[name, seed] = Failure.of(error)
    return {name: networks for name, networks in models.items() if networks}, damaged


def _found(folder: Path, source: str) -> tuple[Path, str | Path | None]:
    """Return the folder of a network, relative to the study's file, or its name; and the weights it gets."""
    path = folder / check_path(source)
    if path.exists():
        return path, None
    name, weights = split_weights(source)
    if weights is not None and (folder / weights).is_file():
        return Path(name), folder / weights
    return Path(name) if name in zoo_names() or is_pretrained_name(name) else path, weights


def _is_own(source: str) -> bool:
    """Return whether a model's source is registered, or `module:attribute`, and not a folder."""
    return ":" in source or source in ARCHITECTURES.extensions()
