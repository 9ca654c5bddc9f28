"""Expected gradients: integrated gradients averaged over baselines, by sampling."""

from __future__ import annotations

import torch
from pydantic import Field

from saliency_lab._common.seeding import sample_normal
from saliency_lab._common.settings import Settings
from saliency_lab.attribution.baseline import Baselines, fitting
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.catalogue import Explained, method


class GradientShapSettings(Settings):
    """`n` draws of a baseline from `baselines` (B, C, H, W) and of a point on the line from it to the image.

    The image first gets Gaussian noise of standard deviation `stdev`.
    """

    baselines: Baselines
    n: int = Field(50, ge=1)
    stdev: float = Field(0.0, ge=0)


@method(
    "gradient_shap",
    family="gradient",
    passes="n × (1 forward, 1 backward)",
    reference="Lundberg & Lee, NeurIPS 2017; Erion et al., Nature Machine Intelligence 2021",
    settings=GradientShapSettings,
)
def gradient_shap(batch: Batch, settings: GradientShapSettings) -> Explained:
    """Return the mean of (x − b) · ∂f/∂x(b + α (x − b)), α uniform; sums to f(x) − mean f(b) as n grows."""
    baselines = fitting(settings.baselines, batch)
    sources = [torch.Generator().manual_seed(seed) for seed in batch.seeds("expected")]
    size = (len(sources), settings.n)
    chosen, alpha = torch.empty(size, dtype=torch.int64), torch.empty(size, dtype=torch.float32)
    for row, source in enumerate(sources):
        chosen[row].random_(0, len(baselines), generator=source)
        alpha[row].uniform_(generator=source)
    chosen, alpha = chosen.T.to(batch.x.device), alpha.T.to(batch.x)
    values = torch.zeros_like(batch.x)
    for group in batch.draws(settings.n):
        span = slice(group.start, group.stop)
        base = baselines[chosen[span]]
        ends = batch.x.expand_as(base)
        if settings.stdev:
            noise = [sample_normal(batch.seeds(f"noise {k}"), batch.x.shape[1:]) for k in group]
            ends = ends + settings.stdev * torch.stack(noise).to(batch.x)
        points = base + alpha[span, :, None, None, None] * (ends - base)
        gradient, _ = batch.gradient(points.flatten(0, 1))
        values += ((ends - base) * gradient.reshape(points.shape)).sum(0)
    mean = torch.stack([batch.score(each.expand_as(batch.x)) for each in baselines]).mean(0)
    return values / settings.n, batch.score(batch.x) - mean
