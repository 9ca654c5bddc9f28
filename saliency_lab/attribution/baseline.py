"""The setting `baseline`: the input that represents absent evidence."""

from __future__ import annotations

from typing import Annotated, TypeAlias, cast

import torch
from pydantic import AfterValidator
from torch import Tensor

from saliency_lab._common.baseline import BaselineName, named_baseline
from saliency_lab._common.errors import InputError
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.catalogue import PerImage


def _image_like(value: object) -> object:
    if isinstance(value, Tensor) and (value.ndim not in (3, 4) or not value.is_floating_point()):
        raise ValueError(
            f"a baseline is a floating-point tensor (C, H, W), or (N, C, H, W) with one per image, "
            f"not {value.dtype} {tuple(value.shape)}"
        )
    return _finite(value)


def _finite(value: object) -> object:
    if isinstance(value, Tensor) and not torch.isfinite(value).all():
        raise ValueError("a baseline must be finite, but this one contains NaN or infinity")
    return value


Baseline: TypeAlias = Annotated[BaselineName | Tensor, AfterValidator(_image_like), PerImage(ndim=4)]
"""A name of `BaselineName`; or a tensor (C, H, W), or (N, C, H, W) with one baseline per image."""


def _images(value: object) -> object:
    if not isinstance(value, Tensor) or value.ndim != 4 or not len(value) or not value.is_floating_point():
        raise ValueError(
            "baselines are a floating-point tensor (B, C, H, W), such as a batch of training images"
        )
    return _finite(value)


Baselines: TypeAlias = Annotated[Tensor, AfterValidator(_images)]
"""Images (B, C, H, W), B ≥ 1, over which a method averages; B need not equal the number of images."""


def fitting(baselines: Tensor, batch: Batch) -> Tensor:
    """Return the baselines on the device of the batch.

    Raises
    ------
    InputError
        If their shape is not that of the images.
    """
    if baselines.shape[1:] != batch.x.shape[1:]:
        raise InputError(
            f"baselines of shape {tuple(baselines.shape)} do not fit images {tuple(batch.x.shape[1:])}"
        )
    return baselines.to(batch.x)


def resolve_baseline(spec: str | Tensor, batch: Batch) -> Tensor:
    """Return the baseline (n, C, H, W) of each image of the batch.

    Raises
    ------
    InputError
        If a tensor fits neither one image nor the batch.
    """
    x = batch.x
    if not isinstance(spec, Tensor):
        return named_baseline(cast(BaselineName, spec), x, batch.seeds)
    given = spec if spec.ndim == 4 else spec[None]
    if given.shape[1:] != x.shape[1:]:
        raise InputError(f"a baseline of shape {tuple(spec.shape)} does not fit images {tuple(x.shape[1:])}")
    if len(given) == 1:
        return given.to(x).expand_as(x)
    if int(batch.index.max()) >= len(given):
        raise InputError(f"the baseline has {len(given)} images; give one, or one per image")
    return given[batch.index.to(given.device)].to(x)
