"""Baselines by name: the images that attribution methods and metrics use in place of removed evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from saliency_lab._common.seeding import sample_uniform

BaselineName = Literal["zero", "black", "white", "mean", "blur", "uniform"]
"""The names of baselines, for methods and metrics alike.

- `zero` and `black`: 0 in every channel;
- `white`: 1 in every channel;
- `mean`: the mean of each channel over the image;
- `blur`: the image under a Gaussian blur with σ = r in a window of 2r + 1 pixels, where r is 5/28 of the
  shorter side, rounded down (at least 1): 11 pixels and σ = 5 at 28×28, 81 pixels and σ = 40 at 224×224;
- `uniform`: noise on [0, 1), drawn for each image by the seed and its pixels.
"""


def named_baseline(name: BaselineName, x: Tensor, seeds: Callable[[str], Sequence[int]]) -> Tensor:
    """Return the baselines (N, C, H, W) of the images `x`.

    Parameters
    ----------
    name : str
        One of `BaselineName`.
    x : Tensor
        Images (N, C, H, W) in [0, 1].
    seeds : callable
        Returns one seed per image for a purpose; called only for `uniform`.

    Returns
    -------
    Tensor
        Of the shape, type and device of `x`; it may share memory between images.

    Examples
    --------
    >>> named_baseline("mean", torch.tensor([[[[0.0, 1.0]]]]), lambda purpose: [0])
    tensor([[[[0.5000, 0.5000]]]])
    """
    if name == "mean":
        return x.mean((2, 3), keepdim=True).expand_as(x)
    if name == "blur":
        return _blur(x)
    if name == "uniform":
        return sample_uniform(seeds("baseline"), x.shape[1:]).to(x)
    return torch.full_like(x[:1, :1, :1, :1], float(name == "white")).expand_as(x)


def _blur(x: Tensor) -> Tensor:
    shorter = min(x.shape[2:])
    radius = min(shorter - 1, max(1, 5 * shorter // 28))
    if radius == 0:
        return x.clone()
    precise = torch.promote_types(x.dtype, torch.float32)
    return gaussian_blur(x.to(precise), [2 * radius + 1] * 2, [float(radius)] * 2).to(x)


def baseline_revision(settings: Mapping[str, Any]) -> int:
    """Return which definition of the baselines in `settings` a result has; 0 for those that never changed.

    It is part of the key of a stored result: `blur` and `uniform` were defined differently before.
    """
    given = settings.get("baseline")
    inner = settings.get("base_settings")
    revision = 1 if isinstance(given, str) and given in ("blur", "uniform") else 0
    return max(revision, baseline_revision(inner)) if isinstance(inner, Mapping) else revision
