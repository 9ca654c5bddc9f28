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
from saliency_lab._common.plugins import import_module, import_object
from saliency_lab._common.provenance import model_fingerprint
from saliency_lab._common.seeding import derive_seed, preserved_rng
from saliency_lab.data import ImageData, load_dataset
from saliency_lab.models import ModelCard, build_model, card_of, load_model, save_model
from saliency_lab.models.card import CUSTOM
from saliency_lab.models.checkpoint import put_card
from saliency_lab.training.loop import Fitted, Trainer
from saliency_lab.training.recipe import DataSource, Recipe, load_recipe
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
    """Train by a recipe; return the model on the CPU, in eval mode, its `card` telling how it was made.

    Parameters
    ----------
    recipe : str, path, mapping or Recipe
        A bundled name ("mnist/asgt"), a TOML file, or the recipe itself.
    data : ImageData, optional
        The images; by default what the recipe names.
    seed : int, optional
        Replaces the recipe's seed.
    out : path, optional
        Folder of the run. An interrupted run resumes there exactly; a finished one is loaded. Processes on
        several machines must share it.
    overrides : mapping, optional
        Dotted recipe keys, such as ``{"attack.eps": "8/255"}``.
    model : nn.Module, optional
        Your own, of images in [0, 1], that returns logits; a copy of it is trained.
    accelerator, devices, num_nodes, strategy
        As in `lightning_fabric.Fabric`.

    Returns
    -------
    nn.Module
        With `card`: recipe, metrics on the validation split, versions.

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
    data = data if data is not None else load_data(settled.data)
    own = model if model is not None else _own_model(settled)
    identity = {
        "recipe": settled.portable(),
        "data": data.fingerprint,
        "architecture": settled.model.name if own is None else model_fingerprint(own),
    }
    run = RunFolder(out, identity) if out is not None else None
    if run is not None and run.finished:
        return load_model(run.path, model=copy.deepcopy(own))
    net = copy.deepcopy(own) if own is not None else _build(settled, data)
    fabric = _fabric(accelerator, devices, num_nodes, strategy, settled.training.precision)
    if fabric.is_global_zero:
        logger.info("training %s, seed %d, on %d images", settled.name, settled.seed, len(data.train))
    with preserved_rng():
        fitted: Fitted = fabric.launch(_fit, settled, data, net, run)  # type: ignore[arg-type]
    net.load_state_dict(fitted.weights)
    put_card(net, _card(settled, data, fitted, CUSTOM if own is not None else settled.model.name))
    if run is not None and fabric.is_global_zero:
        net.card = save_model(net, run.path, card_of(net))  # type: ignore[assignment]
        run.close()
    for concern in fitted.concerns:
        warnings.warn(f"recipe '{settled.name}': {concern}", stacklevel=2)
    return net.eval()


def _fit(fabric: Fabric, recipe: Recipe, data: ImageData, net: nn.Module, run: RunFolder | None) -> Fitted:
    return Trainer(fabric, recipe, data, net, run).fit()


def _fabric(accelerator: str, devices: int | str, num_nodes: int, strategy: str, precision: str) -> Fabric:
    """Set Fabric up; what it does not know or have is an error that says so."""
    if strategy.startswith(("fsdp", "deepspeed", "xla")):
        raise InputError(f"strategy '{strategy}' shards the weights, which `train` cannot save; use 'ddp'")
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=precision,  # type: ignore[arg-type]
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"cannot train with accelerator '{accelerator}', devices {devices} and strategy '{strategy}': "
            f"{error}"
        ) from error
    if precision == "16-mixed" and fabric.device.type == "cpu":
        raise InputError('training.precision = "16-mixed" needs a GPU; on the CPU use "bf16-mixed"')
    return fabric


def load_data(spec: DataSource) -> ImageData:
    """Load what a `[data]` table names; every seed of a recipe sees the same validation split.

    Raises
    ------
    DataNotFoundError, InputError
        As `load_dataset`; or if `module:attribute` is no `ImageData`.
    """
    if ":" not in spec.name:
        return load_dataset(spec.name, spec.root, val_fraction=spec.val_fraction, image_size=spec.image_size)
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
    with preserved_rng(derive_seed(recipe.seed, "weights", name)):
        return import_module(name)


def _build(recipe: Recipe, data: ImageData) -> nn.Module:
    images = data.train.images
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    mean, std = [], []
    for channel in range(images.shape[1]):  # one at a time: float64 copies are large
        values = images[:, channel].double() / scale
        mean.append(values.mean().item())
        std.append(max(values.std().item(), 1e-3))
    return build_model(
        recipe.model.name,
        num_classes=len(data.classes),
        input_shape=data.input_shape,
        mean=mean,
        std=std,
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
    )
