"""What a method is handed: a chunk of images on the model's device, and what to explain about them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from saliency_lab._common.inference import chunk_rows
from saliency_lab.attribution.calls import Rule
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
        """What is explained (a logit or a difference of two), (n,), for inputs `x` in the images' place.

        Inputs that are one image expanded run as one image.
        """
        count, shared = len(x), x.stride(0) == 0
        logits = self.model((x[:1] if shared else x).clone())  # a model may begin with an in-place operation
        return self.target.pick(logits.expand(count, -1) if shared else logits)

    def at(self, points: Tensor) -> Task:
        """The task at k·n other inputs: all n images' first, then all their second, and so on."""
        times = len(points) // len(self.x)
        return replace(self, x=points, target=self.target.repeat(times), index=self.index.repeat(times))

    def only(self, row: int) -> Task:
        """The task of one of its images."""
        target = self.target.rows(row, row + 1, self.x.device)
        return replace(self, x=self.x[row : row + 1], target=target, index=self.index[row : row + 1])

    def gradient(self, points: Tensor, rule: Rule | None = None) -> tuple[Tensor, Tensor]:
        """Gradient of the score at k·n inputs (as in `at`), and the scores (k·n,): one pass each way.

        With `rule`, the model's forward pass runs under it.
        """
        points = points.detach().requires_grad_(True)
        with torch.enable_grad():
            with rule or nullcontext():
                scores = self.at(points).score(points)
            (gradient,) = torch.autograd.grad(scores.sum(), points)
        return gradient, scores.detach()

    def draws(self, count: int) -> Iterator[range]:
        """Cut `count` evaluations of every image into groups that fit one forward pass."""
        step = max(1, self.rows // len(self.x))
        for start in range(0, count, step):
            yield range(start, min(count, start + step))
