"""`train`: from a recipe to a model."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from saliency_lab._common.errors import InputError
from saliency_lab._common.plugins import import_object
from saliency_lab._common.provenance import versions
from saliency_lab._common.seeding import derive_seed, preserved_rng
from saliency_lab.data import ImageData, load_dataset
from saliency_lab.models import ModelCard, build_model, load_model, save_model
from saliency_lab.models.checkpoint import CUSTOM
from saliency_lab.training.loop import Fitted, Trainer
from saliency_lab.training.recipe import DataSpec, Recipe, load_recipe
from saliency_lab.training.run import RunFolder

logger = logging.getLogger(__name__)


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    data: ImageData | None = None,
    *,
    seed: int | None = None,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    model: nn.Module | None = None,
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
) -> nn.Module:
    """Train by a recipe; return the model in eval mode, its `card` telling how it was made.

    Parameters
    ----------
    recipe : a bundled name ("mnist/asgt"), a TOML file, a mapping or a Recipe
    data : the images; by default what the recipe names
    seed : replaces the recipe's seed
    out : folder of the run. An interrupted run resumes there exactly; a finished one is loaded.
    overrides : dotted recipe keys, such as ``{"attack.eps": "8/255"}``
    model : your own module of images in [0, 1] that returns logits; a copy of it is trained
    accelerator, devices, num_nodes, strategy : as in `lightning_fabric.Fabric`

    Raises
    ------
    RecipeError, DataNotFoundError, CheckpointError, InputError
        Each names the key or the file, and what would do.
    TrainingError
        If the loss is not finite, or the model collapsed to a constant prediction.
    """
    changes = dict(overrides or {})
    if seed is not None:
        changes["seed"] = seed
    settled = load_recipe(recipe, changes)
    data = data if data is not None else _load_data(settled.data, settled.seed)
    own = model if model is not None else _own_model(settled)
    net = copy.deepcopy(own) if own is not None else _build(settled, data)
    identity = {
        "recipe": settled.portable(),
        "data": data.fingerprint,
        "architecture": settled.model.name if own is None else repr(own),
    }
    run = RunFolder(out, identity) if out is not None else None
    if run is not None and run.finished:
        return load_model(run.path, model=net if own is not None else None)
    logger.info("training %s, seed %d, on %d images", settled.name, settled.seed, len(data.train))
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=settled.training.precision,
    )
    with preserved_rng():
        fitted: Fitted = fabric.launch(_fit, settled, data, net, run)  # type: ignore[arg-type]
    net.load_state_dict(fitted.weights)
    net.card = _card(settled, data, fitted, CUSTOM if own is not None else settled.model.name)  # type: ignore[assignment]
    if run is not None and fabric.is_global_zero:
        net.card = save_model(net, run.path)  # type: ignore[assignment]
        run.drop_state()
    for concern in fitted.concerns:
        warnings.warn(f"recipe '{settled.name}': {concern}", stacklevel=2)
    return net.eval()


def _fit(fabric: Fabric, recipe: Recipe, data: ImageData, net: nn.Module, run: RunFolder | None) -> Fitted:
    return Trainer(fabric, recipe, data, net, run).fit()


def _load_data(spec: DataSpec, seed: int) -> ImageData:
    if ":" not in spec.name:
        return load_dataset(
            spec.name, spec.root, val_fraction=spec.val_fraction, seed=seed, image_size=spec.image_size
        )
    found = import_object(spec.name)
    found = found() if callable(found) else found
    if not isinstance(found, ImageData):
        raise InputError(
            f"data.name = '{spec.name}' is not a saliency_lab.ImageData, but {type(found).__name__}"
        )
    return found


def _own_model(recipe: Recipe) -> nn.Module | None:
    """The module that `module:attribute` names; None if the recipe names an architecture of ours."""
    name = recipe.model.name
    if ":" not in name:
        return None
    found = import_object(name)
    with preserved_rng(derive_seed(recipe.seed, "weights", name)):
        net = found if isinstance(found, nn.Module) else found()
    if not isinstance(net, nn.Module):
        raise InputError(f"model.name = '{name}' is not a torch module, but {type(net).__name__}")
    return net


def _build(recipe: Recipe, data: ImageData) -> nn.Module:
    images = data.train.images
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    channels = [images[:, channel].double() / scale for channel in range(images.shape[1])]
    return build_model(
        recipe.model.name,
        num_classes=len(data.classes),
        input_shape=data.input_shape,
        mean=[channel.mean().item() for channel in channels],
        std=[max(channel.std().item(), 1e-3) for channel in channels],
        seed=recipe.seed,
    )


def _card(recipe: Recipe, data: ImageData, fitted: Fitted, architecture: str) -> ModelCard:
    validation = fitted.validation
    return ModelCard(
        architecture=architecture,
        num_classes=len(data.classes),
        input_shape=data.input_shape,
        classes=data.classes,
        recipe=recipe.portable(),
        seed=recipe.seed,
        data=data.fingerprint,
        metrics={
            "epochs": fitted.epochs,
            "val_clean": validation.clean,
            "val_robust": validation.robust,
            "val_zero_gradient_share": validation.zero_gradient_share,
        },
        versions=versions(),
    )
