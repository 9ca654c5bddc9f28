"""Controls: maps that know nothing of the model; what does not beat them says nothing about it."""

from __future__ import annotations

import numpy as np
import torch
from skimage.filters import sobel

from saliency_lab._common.seeding import sample_normal, sample_seeds
from saliency_lab._common.settings import Settings
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.catalogue import Explained, method


@method("random", family="control", passes="none", reference="control")
def random(batch: Batch, settings: Settings) -> Explained:
    """Return standard normal noise, drawn by seed and image."""
    return sample_normal(sample_seeds(batch.exact, batch.seed, "random map"), batch.x.shape[1:]), None


@method("edges", family="control", passes="none", reference="Adebayo et al., NeurIPS 2018")
def edges(batch: Batch, settings: Settings) -> Explained:
    """Return Sobel's edge strength of each channel, as scikit-image computes it; ≥ 0."""
    images = batch.exact.float().cpu().numpy()
    maps = np.stack([[sobel(channel) for channel in image] for image in images])
    return torch.from_numpy(maps), None


@method("input", family="control", passes="none", reference="control")
def image(batch: Batch, settings: Settings) -> Explained:
    """Return the image itself."""
    return batch.exact, None


@method("constant", family="control", passes="none", reference="control")
def constant(batch: Batch, settings: Settings) -> Explained:
    """Return 1 everywhere: every pixel is as important as any other."""
    return torch.ones_like(batch.x), None
