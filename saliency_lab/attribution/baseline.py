"""The input that stands for "nothing there"."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import AfterValidator
from scipy.ndimage import gaussian_filter
from torch import Tensor

from saliency_lab._common.errors import InputError
from saliency_lab._common.seeding import sample_uniform
from saliency_lab.attribution.catalogue import PerImage
from saliency_lab.attribution.task import Task


def _image_like(value: object) -> object:
    if isinstance(value, Tensor) and (value.ndim not in (3, 4) or not value.is_floating_point()):
        raise ValueError(
            f"a baseline is floating point (C, H, W), or (N, C, H, W) with one an image, "
            f"not {value.dtype} {tuple(value.shape)}"
        )
    return _finite(value)


def _finite(value: object) -> object:
    if isinstance(value, Tensor) and not torch.isfinite(value).all():
        raise ValueError("a baseline is finite, and this one holds NaN or infinity")
    return value


Baseline: TypeAlias = Annotated[
    Literal["zero", "mean", "blur", "uniform"] | Tensor, AfterValidator(_image_like), PerImage(ndim=4)
]
"""What stands for nothing.

`zero`; `mean`: each channel's mean over the image; `blur`: a Gaussian blur of the image, σ an eighth of its
longer side; `uniform`: noise on [0, 1), one draw a sample; a tensor (C, H, W), or (N, C, H, W) one an image.
"""


def _images(value: object) -> object:
    if not isinstance(value, Tensor) or value.ndim != 4 or not len(value) or not value.is_floating_point():
        raise ValueError(
            "baselines are a floating-point tensor (B, C, H, W), such as a batch of training images"
        )
    return _finite(value)


Baselines: TypeAlias = Annotated[Tensor, AfterValidator(_images)]
"""A batch (B, C, H, W) of images over which to average; B ≥ 1, and any number of them."""


def fitting(baselines: Tensor, task: Task) -> Tensor:
    """The batch of baselines on the task's device; an error if they are of another shape than the images."""
    if baselines.shape[1:] != task.x.shape[1:]:
        raise InputError(
            f"baselines of shape {tuple(baselines.shape)} do not fit images {tuple(task.x.shape[1:])}"
        )
    return baselines.to(task.x)


def resolve_baseline(spec: str | Tensor, task: Task) -> Tensor:
    """The baseline (n, C, H, W) of each image of the task.

    Raises
    ------
    InputError
        If a tensor fits neither one image nor the batch.
    """
    x = task.x
    if isinstance(spec, Tensor):
        given = spec if spec.ndim == 4 else spec[None]
        if given.shape[1:] != x.shape[1:]:
            raise InputError(
                f"baseline of shape {tuple(spec.shape)} does not fit images {tuple(x.shape[1:])}"
            )
        if len(given) == 1:
            return given.to(x).expand_as(x)
        if int(task.index.max()) >= len(given):
            raise InputError(f"baseline holds {len(given)} images; give one, or one an image")
        return given[task.index.to(given.device)].to(x)
    if spec == "zero":
        return x.new_zeros(1, *x.shape[1:]).expand_as(x)
    if spec == "mean":
        return x.mean((2, 3), keepdim=True).expand_as(x)
    if spec == "blur":
        sigma = max(x.shape[2:]) / 8
        values = x.cpu() if x.dtype == torch.float64 else x.float().cpu()  # NumPy has no bfloat16
        blurred = gaussian_filter(values.numpy(), sigma=(0, 0, sigma, sigma), mode="nearest")
        return torch.from_numpy(blurred).to(x)
    return sample_uniform(task.seeds("baseline"), x.shape[1:]).to(x)
