"""Noise tunnels: statistics of any other method's maps over noisy copies of the image."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from saliency_lab._common.errors import InputError
from saliency_lab._common.seeding import sample_normal
from saliency_lab._common.settings import Settings, parse_settings
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.catalogue import METHODS, Explained, method

_BLOCK = 16  # draws of noise in memory at a time


class NoiseSettings(Settings):
    """`n` copies with Gaussian noise of standard deviation `stdev`, in units of the image range [0, 1].

    `base` is the method whose maps are taken, with its own settings in `base_settings`.
    """

    n: int = Field(25, ge=2)
    stdev: float = Field(0.15, ge=0)
    base: str = "saliency"
    base_settings: dict[str, Any] = Field(default_factory=dict)


def resolve_base(model: nn.Module, image: Tensor, settings: NoiseSettings) -> NoiseSettings:
    """Return the settings with those of the base method that only a run of the model tells."""
    resolve = METHODS[settings.base].resolve
    if resolve is None:
        return settings
    inner = parse_settings(
        METHODS[settings.base].settings, settings.base_settings, of=f"method '{settings.base}'"
    )
    return settings.model_copy(update={"base_settings": dict(resolve(model, image, inner))})


def _moments(batch: Batch, settings: NoiseSettings) -> tuple[Tensor, Tensor]:
    """Return the mean and (population) variance of the base method's maps, by Welford's updates."""
    base = METHODS[settings.base]
    if base.family == "noise":
        raise InputError(f"a noise tunnel cannot have the noise tunnel '{settings.base}' as its base")
    inner = parse_settings(base.settings, settings.base_settings, of=f"method '{base.name}'")
    mean, squares = torch.zeros_like(batch.x), torch.zeros_like(batch.x)
    for first in range(0, settings.n, _BLOCK):
        block = min(_BLOCK, settings.n - first)
        seeds = batch.seeds(f"noise {first}")
        noise = sample_normal(seeds, (block, *batch.x.shape[1:])).to(batch.x).transpose(0, 1)
        for group in batch.draws(block, of=settings.n, fast=base.family == "gradient"):
            added = settings.stdev * noise[group.start : group.stop]
            points, keys = batch.x + added, batch.keys + added  # a sampled base draws anew for each copy
            noisy = batch.at(points.flatten(0, 1), keys.flatten(0, 1))
            maps = base.run(noisy, inner)[0].reshape(points.shape)
            for count, values in enumerate(maps, first + group.start + 1):
                change = values - mean
                mean += change / count
                squares += change * (values - mean)
    return mean, squares / settings.n


@method(
    "smoothgrad",
    family="noise",
    passes="n × base",
    reference="Smilkov et al., arXiv:1706.03825, 2017",
    settings=NoiseSettings,
    resolve=resolve_base,
)
def smoothgrad(batch: Batch, settings: NoiseSettings) -> Explained:
    """Return the mean of the base method's maps at x + 𝒩(0, stdev²)."""
    return _moments(batch, settings)[0], None


@method(
    "smoothgrad_sq",
    family="noise",
    passes="n × base",
    reference="Hooker et al., NeurIPS 2019",
    settings=NoiseSettings,
    resolve=resolve_base,
)
def smoothgrad_sq(batch: Batch, settings: NoiseSettings) -> Explained:
    """Return the mean of the squares of the base method's maps at x + 𝒩(0, stdev²)."""
    mean, variance = _moments(batch, settings)
    return mean**2 + variance, None


@method(
    "vargrad",
    family="noise",
    passes="n × base",
    reference="Adebayo et al., NeurIPS 2018",
    settings=NoiseSettings,
    resolve=resolve_base,
)
def vargrad(batch: Batch, settings: NoiseSettings) -> Explained:
    """Return the variance of the base method's maps at x + 𝒩(0, stdev²)."""
    return _moments(batch, settings)[1], None
