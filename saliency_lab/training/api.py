"""`train`, the public entry point: from a recipe to a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn.parameter import is_lazy

from saliency_lab._common.arguments import check_count, check_flag, check_path, check_text
from saliency_lab._common.checks import check_default_dtype, check_seed
from saliency_lab._common.copying import copy_model
from saliency_lab._common.cores import has_bfloat16
from saliency_lab._common.errors import CheckpointError, InputError, SaliencyLabError
from saliency_lab._common.execution import execution
from saliency_lab._common.fingerprints import model_fingerprint
from saliency_lab._common.inference import check_input_kept, predict
from saliency_lab._common.seeding import preserved_rng
from saliency_lab._common.warn import warn
from saliency_lab.data import ImageData, Split, load_dataset
from saliency_lab.models import ModelCard, build_model, card_of, load_model, save_model
from saliency_lab.models.card import CUSTOM
from saliency_lab.models.catalogue import ARCHITECTURES, is_custom, own_module
from saliency_lab.models.checkpoint import architecture_of, put_card
from saliency_lab.training.loop import Fitted, Trainer
from saliency_lab.training.recipe import DataSource, Recipe, check_overrides, load_recipe, nested
from saliency_lab.training.run import RunFolder, read_identity, run_folder_name

logger = logging.getLogger(__name__)

MOST_PROCESSES = 10_000
"""The largest number of devices, and of nodes, that `train` accepts."""


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
    trust: bool = False,
) -> nn.Module:
    """Train a model by a recipe and return it on the CPU, in eval mode.

    Parameters
    ----------
    recipe : str, path, mapping or Recipe
        A bundled name ("mnist/asgt"), a TOML file, or the recipe itself.
    data : ImageData, optional
        The images; by default what the recipe names. The card then has this data set's name.
    seed : int, optional
        Replaces the recipe's seed.
    out : path, optional
        Folder of the run. An interrupted run resumes there exactly; a finished one is loaded. Processes on
        several machines must share it.
    overrides : mapping, optional
        Dotted recipe keys, such as ``{"attack.eps": "8/255"}``.
    model : nn.Module, optional
        Your own module, which takes images in [0, 1] and returns at least one logit per class. A copy of it
        is trained.
    accelerator, devices, num_nodes, strategy : str, int or str, int, str
        As in `lightning_fabric.Fabric`; "auto" is CUDA if there is a GPU, else the CPU.
    trust : bool
        Whether to import code that the file of the recipe names as `module:attribute`, which runs it.

    Returns
    -------
    nn.Module
        Its `card` records the recipe, metrics on the validation split, and versions.

    Raises
    ------
    RecipeError, DataNotFoundError, CheckpointError, InputError
        If the recipe, the data, a checkpoint or an argument is wrong, or the recipe's file names code and is
        not trusted.
    TrainingError
        If the loss is not finite, or the model collapsed to a constant prediction.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> quick = {"training.epochs": 1, "validation.images": 16, "validation.steps": 1}
    >>> model = sl.train("digits/standard", seed=0, overrides=quick)
    >>> model.card.recipe["training"]["epochs"], model.card.seed
    (1, 0)
    """
    check_default_dtype("the weights in training")
    changes = check_overrides(overrides)
    if seed is not None:
        changes["seed"] = check_seed(seed)
    out = None if out is None else check_path(out, "out")
    for name, text in (("accelerator", accelerator), ("strategy", strategy)):
        check_text(text, name)
    if not isinstance(devices, str):
        check_count(devices, "devices", most=MOST_PROCESSES)
    check_count(num_nodes, "num_nodes", most=MOST_PROCESSES)
    check_flag(trust, "trust")
    settled = load_recipe(recipe, changes, trust=trust)
    _check_given(settled, data, model, changes)
    named, data = data is None, data if data is not None else load_data(settled.data)
    count, batch = len(data.train), settled.training.batch_size
    if not count:
        raise InputError(f"data set '{data.name}' has no training images, only images to explain and score")
    if batch > count:
        raise InputError(f"training.batch_size = {batch} is more than the {count} training images; lower it")
    own = model if model is not None else named_module(settled, data, settled.seed)
    classes = len(data.classes) if own is None else _check_own(own, data)
    identity = {
        "recipe": settled.portable(),
        "data": data.fingerprint,
        "architecture": settled.model.name if own is None else model_fingerprint(own),
        **settled.own_code(),
    }
    run = RunFolder(out, identity) if out is not None else None
    if run is not None and run.finished:
        return load_model(run.path, model=None if own is None else copy_model(own))
    fabric = _fabric(accelerator, devices, num_nodes, strategy, settled.training.precision)
    with run.alone() if run is not None and fabric.is_global_zero else nullcontext():
        if run is not None and run.finished:  # by another process in the meantime
            return load_model(run.path, model=None if own is None else copy_model(own))
        net = copy_model(own) if own is not None else _build(settled, data)
        if fabric.is_global_zero:
            logger.info("training %s, seed %d, on %d images", settled.name, settled.seed, len(data.train))
        with preserved_rng():
            fitted: Fitted = fabric.launch(_fit, settled, data, net, run)  # type: ignore[arg-type]
        net.load_state_dict(fitted.weights)
        name = settled.model.name
        by_name = model is None and name in ARCHITECTURES
        architecture = name if own is None or by_name else _architecture(own, data)
        card = _card(settled, data, fitted, architecture, classes, named=named)
        if own is not None and model is None:
            card = card.model_copy(update={"code": _code(own, fitted.weights)})
        put_card(net, card)
        if run is not None and fabric.is_global_zero:
            net.card = save_model(net, run.path, card_of(net))  # type: ignore[assignment]
            run.close()
    for concern in fitted.concerns:
        warn(f"recipe '{settled.name}': {concern}")
    return net.eval()


def _check_given(
    recipe: Recipe, data: ImageData | None, model: nn.Module | None, overrides: Mapping[str, Any]
) -> None:
    """Check the data set and the model, and that no override is without effect because of them."""
    if data is not None and not isinstance(data, ImageData):
        raise InputError(
            f"data must be a saliency_lab.ImageData, as load_dataset returns it, not {type(data).__name__}"
        )
    if model is not None and not isinstance(model, nn.Module):
        raise InputError(
            f"model must be a torch.nn.Module, not {type(model).__name__}; an architecture is named by "
            "overrides={'model.name': …}"
        )
    changed = nested(overrides)
    if data is not None:
        idle = {"root", "image_size", "val_fraction"}
        if ":" not in recipe.data.name and recipe.data.name != data.name:
            idle.add("name")  # the recipe then names where the same data are found
        for key in sorted(idle & changed.get("data", {}).keys()):
            raise InputError(
                f"the override 'data.{key}' has no effect where data=… is given; leave one of them out"
            )
    if model is not None and "model" in changed:
        raise InputError(
            "the override 'model.name' has no effect where model=… is given; leave one of them out"
        )


def _check_own(model: nn.Module, data: ImageData) -> int:
    """Check that a user's own network can be trained on `data`; return how many logits it has."""
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if is_lazy(parameter):
            raise InputError(
                f"the model's parameter '{name}' has no shape yet; pass an image through it once"
            )
        if parameter.dtype != torch.float32:
            raise InputError(
                f"the model's parameter '{name}' is {parameter.dtype}, and training needs float32; call "
                "model.float(), and set training.precision for less"
            )
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError("no parameter of the model takes a gradient, so there is nothing to train")
    x, _ = data.train.batch(slice(2))
    try:
        with preserved_rng(0):
            logits = predict(copy_model(model), x)
            check_input_kept(copy_model(model), x)
    except SaliencyLabError:
        raise
    except Exception as error:
        raise InputError(
            f"the model fails on images of the shape {tuple(x.shape)}: {type(error).__name__}: {error}"
        ) from error
    classes = logits.shape[1]
    if classes < len(data.classes):
        raise InputError(
            f"of {len(x)} images of {len(data.classes)} classes the model must return logits of the shape "
            f"({len(x)}, {len(data.classes)}), but returned {tuple(logits.shape)}"
        )
    return classes


def _fit(fabric: Fabric, recipe: Recipe, data: ImageData, net: nn.Module, run: RunFolder | None) -> Fitted:
    with execution(compile=False):  # nothing is measured, so that training is repeatable to the last bit
        return Trainer(fabric, recipe, data, net, run).fit()


def _fabric(accelerator: str, devices: int | str, num_nodes: int, strategy: str, precision: str) -> Fabric:
    """Set up Fabric; a device or strategy that does not exist is an InputError."""
    if accelerator == "auto":  # Fabric's "auto" would also choose an Apple GPU
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "16-mixed" and accelerator == "cpu":
        raise InputError('training.precision = "16-mixed" needs a GPU; on the CPU use "bf16-mixed"')
    if precision == "bf16-mixed" and accelerator == "cpu" and not has_bfloat16():
        warn(
            "this processor has no instructions for bfloat16, so training in it takes about ten times as "
            'long as in float32; training.precision = "32-true" is faster here, and gives other weights',
        )
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
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"cannot train with accelerator '{accelerator}', devices {devices} and strategy '{strategy}': "
            f"{error}"
        ) from error
    return fabric


def fabric_device(device: str) -> dict[str, Any]:
    """Return the arguments of `train` and Fabric for a device named as in torch.

    >>> fabric_device("cuda:1"), fabric_device("auto")
    ({'accelerator': 'cuda', 'devices': '1,'}, {'accelerator': 'auto', 'devices': 1})
    """
    kind, _, index = device.partition(":")
    return {"accelerator": kind, "devices": f"{index}," if index and kind != "cpu" else 1}


def load_data(spec: DataSource) -> ImageData:
    """Load what a `[data]` table names; every seed of a recipe sees the same validation split.

    Raises
    ------
    DataNotFoundError, InputError
        As `load_dataset`; or if `module:attribute` is no `ImageData`, or the table has keys that it ignores.
    """
    return load_dataset(spec.name, spec.root, val_fraction=spec.val_fraction, image_size=spec.image_size)


def named_module(recipe: Recipe, data: ImageData, seed: int) -> nn.Module | None:
    """Make the user's own module that the recipe names; None if it names a built-in architecture."""
    name = recipe.model.name
    return own_module(name, len(data.classes), data.input_shape, seed) if is_custom(name) else None


def run_folder(
    models: Path, recipe: Recipe, data: ImageData, seed: int, model: nn.Module | None = None
) -> Path:
    """Return the folder of a training run in the folder `models`, named by what decides the result.

    `model` is as for `train`. Earlier versions did not count a module that the recipe names. The folder that
    they gave to a run is used if it holds the run of this module.
    """
    own = named_module(recipe, data, seed) if model is None else model
    earlier = models / run_folder_name(recipe, seed, data.fingerprint)
    if own is None:
        return earlier
    architecture = model_fingerprint(own)
    with suppress(CheckpointError):
        if read_identity(earlier).get("architecture") == architecture:
            return earlier
    return models / run_folder_name(recipe, seed, data.fingerprint, architecture)


def _build(recipe: Recipe, data: ImageData) -> nn.Module:
    mean, std = _channel_statistics(data.train)
    return build_model(
        recipe.model.name,
        num_classes=len(data.classes),
        input_shape=data.input_shape,
        mean=mean,
        std=std,
        seed=recipe.seed,
    )


def _channel_statistics(split: Split) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation of each channel, of values in [0, 1]."""
    channels = range(split.images.shape[1])
    # from the counts of the 256 values, so that few images are read at once
    if split.images.dtype == torch.uint8:
        counts = torch.zeros(len(channels), 256, dtype=torch.float64)
        for block in split.blocks():
            for channel in channels:
                counts[channel] += torch.bincount(block[:, channel].flatten(), minlength=256)
        values = torch.arange(256, dtype=torch.float64) / 255
        total = counts.sum(1)
        mean = (counts * values).sum(1) / total
        deviation = ((counts * (values - mean[:, None]).square()).sum(1) / (total - 1)).sqrt()
        return mean.tolist(), deviation.clamp_min(_LEAST_DEVIATION).tolist()
    means, deviations = [], []
    for channel in channels:  # one at a time, because float64 copies are large
        pixels = split.images[:, channel].double()
        means.append(pixels.mean().item())
        deviations.append(max(pixels.std().item(), _LEAST_DEVIATION))
    return means, deviations


_LEAST_DEVIATION = 1e-3


def _code(own: nn.Module, weights: Mapping[str, torch.Tensor]) -> str:
    """Return the fingerprint of an untrained module once it has the weights, as `load_model` makes it."""
    fresh = copy_model(own)
    fresh.load_state_dict(weights)
    return model_fingerprint(fresh)


def _architecture(own: nn.Module, data: ImageData) -> str:
    """Return the architecture of a given module if `build_model` makes it for these images, else "custom"."""
    card = card_of(own)
    return architecture_of(own) if card and card.input_shape == data.input_shape else CUSTOM


def _card(
    recipe: Recipe, data: ImageData, fitted: Fitted, architecture: str, num_classes: int, *, named: bool
) -> ModelCard:
    """Return the model's card; `named` says that the data are those that the recipe names."""
    validation, settled = fitted.validation, recipe.portable()
    if not named and ":" not in recipe.data.name and recipe.data.name != data.name:
        settled["data"] = {"name": data.name, "augmentation": recipe.data.augmentation}
    return ModelCard(
        architecture=architecture,
        num_classes=num_classes,
        input_shape=data.input_shape,
        classes=data.classes,
        recipe=settled,
        seed=recipe.seed,
        data=data.fingerprint,
        metrics={
            "epochs": fitted.epochs,
            "val_clean": validation.clean,
            "val_robust": validation.robust,
            "val_zero_gradient_share": validation.zero_gradient_share,
        },
    )
