"""Methods that read the gradient with respect to the input: one forward and one backward pass per point."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saliency_lab._common.settings import Settings
from saliency_lab.attribution.baseline import Baseline, resolve_baseline
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.catalogue import Explained, method


@method(
    "saliency",
    family="gradient",
    passes="1 forward, 1 backward",
    reference="Simonyan et al., ICLR workshop 2014",
)
def saliency(batch: Batch, settings: Settings) -> Explained:
    """Return ∂f/∂x, with its sign; Captum takes the absolute value by default."""
    return batch.gradient(batch.x)[0], None


@method(
    "input_x_gradient",
    family="gradient",
    passes="1 forward, 1 backward",
    reference="Shrikumar et al., arXiv:1605.01713, 2016",
)
def input_x_gradient(batch: Batch, settings: Settings) -> Explained:
    """Return the gradient times the image, x · ∂f/∂x."""
    return batch.x * batch.gradient(batch.x)[0], None


Quadrature = Literal["gauss_legendre", "trapezoid", "middle", "left", "right"]


def quadrature(rule: Quadrature, steps: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights on [0, 1], float64, (steps,) each; the weights sum to 1."""
    if rule == "gauss_legendre":
        roots, lengths = np.polynomial.legendre.leggauss(steps)
        return torch.from_numpy((roots + 1) / 2), torch.from_numpy(lengths / 2)
    if rule == "trapezoid":
        weights = torch.full((steps,), 1.0 / (steps - 1), dtype=torch.float64)
        weights[[0, -1]] /= 2
        return torch.linspace(0, 1, steps, dtype=torch.float64), weights
    shift = {"left": 0.0, "middle": 0.5, "right": 1.0}[rule]
    nodes = (torch.arange(steps, dtype=torch.float64) + shift) / steps
    return nodes, torch.full((steps,), 1.0 / steps, dtype=torch.float64)


class IntegratedGradientsSettings(Settings):
    """`steps` points on the straight line from the baseline to the image, weighted by `quadrature`."""

    steps: int = Field(50, ge=2)
    quadrature: Quadrature = "gauss_legendre"
    baseline: Baseline = "zero"


@method(
    "integrated_gradients",
    family="gradient",
    passes="steps × (1 forward, 1 backward) + 2 forward",
    reference="Sundararajan et al., ICML 2017",
    settings=IntegratedGradientsSettings,
)
def integrated_gradients(batch: Batch, settings: IntegratedGradientsSettings) -> Explained:
    """Integrate the gradient along the straight line from the baseline to the image.

    The map sums to f(x) − f(b). Memory does not grow with the steps.
    """
    base = resolve_baseline(settings.baseline, batch)
    difference = batch.x - base
    nodes, weights = (each.to(batch.x) for each in quadrature(settings.quadrature, settings.steps))
    total = torch.zeros_like(batch.x)
    for group in batch.draws(settings.steps):
        span = slice(group.start, group.stop)
        points = base + nodes[span].reshape(-1, 1, 1, 1, 1) * difference
        gradient, _ = batch.gradient(points.flatten(0, 1))
        total += torch.tensordot(weights[span], gradient.reshape(points.shape), 1)
    return difference * total, batch.score(batch.x) - batch.score(base)
