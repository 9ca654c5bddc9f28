"""Architectures by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from saliency_lab._common.errors import InputError, unknown_name
from saliency_lab._common.registry import Registry
from saliency_lab._common.seeding import derive_seed, preserved_rng
from saliency_lab.models.card import ModelCard
from saliency_lab.models.convnets import lenet5, sgt_cnn, small_cnn
from saliency_lab.models.layers import Normalised, Shape
from saliency_lab.models.resnet import resnet8, resnet18, resnet20
from saliency_lab.models.vgg import vgg11_bn

if TYPE_CHECKING:
    import pandas as pd

TORCHVISION = "torchvision/"

ARCHITECTURES: Registry[Callable[[int, Shape], nn.Module]] = Registry("architecture")
for _build in (small_cnn, sgt_cnn, lenet5, resnet8, resnet20, resnet18, vgg11_bn):
    ARCHITECTURES.add(_build.__name__, _build)


def build_model(
    name: str,
    *,
    num_classes: int = 10,
    input_shape: Sequence[int] = (1, 28, 28),
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    seed: int = 0,
) -> Normalised:
    """Build an untrained model of images in [0, 1] that returns logits; its `card` says what was built.

    Parameters
    ----------
    name
        One of `list_models()`, or "torchvision/NAME" for any classifier of torchvision (random weights).
    num_classes
        Number of logits, ≥ 2.
    input_shape
        Channels, height and width of an image.
    mean, std
        Normalisation inside the model, one value or one a channel; by default 0 and 1, which change nothing.
    seed
        Determines the initial weights; the global generators are left alone.

    Raises
    ------
    UnknownNameError
        If there is no such architecture.
    InputError
        If the images are too small for the architecture, or a value is out of range.

    Examples
    --------
    >>> model = build_model("small_cnn", num_classes=10, input_shape=(1, 28, 28))
    >>> sum(p.numel() for p in model.parameters())
    166406
    """
    if not isinstance(num_classes, int | np.integer) or num_classes < 2:
        raise InputError(f"num_classes must be a whole number of at least 2, not {num_classes!r}")
    sizes = list(input_shape) if isinstance(input_shape, Iterable) else []
    if len(sizes) != 3 or not all(isinstance(size, int | np.integer) and size >= 1 for size in sizes):
        raise InputError(
            f"input_shape must be (channels, height, width), such as (1, 28, 28), not {input_shape!r}"
        )
    channels, height, width = (int(size) for size in sizes)
    with preserved_rng(derive_seed(seed, "weights", name)):
        try:
            if isinstance(name, str) and name.startswith(TORCHVISION):
                net = _torchvision_model(name.removeprefix(TORCHVISION), num_classes)
                with torch.no_grad():
                    net.eval()(torch.zeros(1, channels, height, width))
            else:
                net = ARCHITECTURES[name](num_classes, (channels, height, width))
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"architecture '{name}' does not take images of {channels}×{height}×{width}: {error}"
            ) from error
    model = Normalised(net, 0.0 if mean is None else mean, 1.0 if std is None else std)
    for label, values in (("mean", model.mean), ("std", model.std)):
        if len(values) not in (1, channels):
            raise InputError(f"{label} must be one value, or {channels}, one a channel; got {len(values)}")
    model.card = ModelCard(  # type: ignore[assignment]
        architecture=name, num_classes=num_classes, input_shape=(channels, height, width)
    )
    return model.eval()


def _torchvision_model(name: str, num_classes: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision model", name, known)
    single_output = (
        {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    )
    return models.get_model(name, weights=None, num_classes=num_classes, **single_output)


def list_models() -> pd.DataFrame:
    """Architectures that `build_model` knows, with their size for ten classes of 28×28; one row a name."""
    import pandas as pd

    rows = {}
    for name in ARCHITECTURES:
        model = build_model(name)
        rows[name] = {
            "description": (ARCHITECTURES[name].__doc__ or "").split("\n")[0],
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
    rows["torchvision/NAME"] = {"description": "any classifier of torchvision, untrained", "parameters": None}
    return pd.DataFrame.from_dict(rows, orient="index").astype({"parameters": "Int64"}).rename_axis("name")
