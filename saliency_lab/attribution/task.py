"""What a method is handed: a chunk of images on the model's device, and what to explain about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from saliency_lab._common.inference import chunk_rows
from saliency_lab.attribution.target import Target


@dataclass(frozen=True, eq=False)
class Task:
    """A chunk of n images; the model is in eval mode and its parameters take no gradient.

    `index` holds the images' places in the caller's batch, for settings given one a sample.
    """

    model: nn.Module
    x: Tensor
    target: Target
    index: Tensor
    seed: int

    @property
    def rows(self) -> int:
        """How many images one forward pass may hold."""
        return chunk_rows(self.x.shape)

    def score(self, x: Tensor) -> Tensor:
        """What is explained (a logit or a difference of two), (n,), for inputs `x` in the images' place."""
        return self.target.pick(self.model(x.clone()))  # a model may begin with an in-place operation

    def at(self, points: Tensor) -> Task:
        """The task at k·n other inputs: all n images' first, then all their second, and so on."""
        times = len(points) // len(self.x)
        return replace(self, x=points, target=self.target.repeat(times), index=self.index.repeat(times))

    def gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of the score at k·n inputs (as in `at`), and the scores (k·n,): one pass each way."""
        points = points.detach().requires_grad_(True)
        with torch.enable_grad():
            scores = self.at(points).score(points)
            (gradient,) = torch.autograd.grad(scores.sum(), points)
        return gradient, scores.detach()

    def draws(self, count: int) -> Iterator[range]:
        """Cut `count` evaluations of every image into groups that fit one forward pass."""
        step = max(1, self.rows // len(self.x))
        for start in range(0, count, step):
            yield range(start, min(count, start + step))
