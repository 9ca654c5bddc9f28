"""What a method gets: a batch of images on the model's device, and what to explain about them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from saliency_lab._common.calls import Rule, check_functions
from saliency_lab._common.checks import check_logits, refuse_probabilities
from saliency_lab._common.inference import no_gradient, pass_rows, run_without_graph
from saliency_lab._common.passes import Passes
from saliency_lab._common.seeding import sample_seeds
from saliency_lab.attribution.target import Target


def slope(score: Tensor, points: Tensor, model: nn.Module) -> Tensor:
    """Return the gradient of a scalar with respect to the points that the model was given.

    Raises
    ------
    InputError
        If there is none: the model detaches its input, or does not look at it.
    """
    gradient = torch.autograd.grad(score, points, allow_unused=True)[0] if score.requires_grad else None
    if gradient is None:
        raise no_gradient(model)
    return gradient


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of n images; the model is in eval mode and its parameters take no gradient.

    `keys` (n, C, H, W) are the images that random draws are keyed by: the images themselves, or those that
    they are compared with. `exact` are the inputs `x` before they were converted to the model's type.
    `index` are their places in the caller's images, for settings with one entry per image. `forwards` and
    `gradients` run the passes of the call, and `total` is the number of images of the call.
    """

    model: nn.Module
    x: Tensor
    keys: Tensor
    exact: Tensor
    target: Target
    index: Tensor
    seed: int
    forwards: Passes
    gradients: Passes
    total: int

    def seeds(self, purpose: str) -> list[int]:
        """Return one seed per image, from (seed, purpose, the key of the image)."""
        return sample_seeds(self.keys, self.seed, purpose)

    def score(self, x: Tensor) -> Tensor:
        """Return what is explained (a logit or a difference of two), (n,), for `x` in place of the images.

        Inputs that are one expanded image run as one image.
        """
        return self.target.pick(self._logits(x))

    def chance(self, x: Tensor) -> Tensor:
        """Return the softmax probability of the class, or a difference of two, (n,), as `score` does.

        Raises
        ------
        InputError
            If the model returns probabilities already.
        """
        logits = self._logits(x)
        refuse_probabilities(logits, "use a method that reads its outputs as they are, such as 'occlusion'")
        return self.target.pick(logits.softmax(1))

    def _logits(self, x: Tensor) -> Tensor:
        count, shared = len(x), x.stride(0) == 0
        images = x[:1] if shared else x
        if self.forwards.plan is not None and not torch.is_grad_enabled():
            output = self.forwards.logits(images)
        elif torch.is_grad_enabled():
            output = self.model(images.clone())  # a model may begin with an in-place operation
        else:
            output = run_without_graph(self.model, images.clone())
        logits = check_logits(output, 1 if shared else count).to(self.x)
        return logits.expand(count, -1) if shared else logits

    def at(self, points: Tensor, keys: Tensor | None = None) -> Batch:
        """Return the batch at k·n other inputs: the first of all n images, then the second of all, and so on.

        `keys` key the draws there; without them, the points do.
        """
        times = len(points) // len(self.x)
        return replace(
            self,
            x=points,
            keys=points if keys is None else keys,
            exact=points,
            target=self.target.repeat(times),
            index=self.index.repeat(times),
        )

    def only(self, row: int) -> Batch:
        """Return the batch of one of its images."""
        rows = slice(row, row + 1)
        target = self.target.rows(row, row + 1, self.x.device)
        return replace(
            self,
            x=self.x[rows],
            keys=self.keys[rows],
            exact=self.exact[rows],
            target=target,
            index=self.index[rows],
        )

    def gradient(self, points: Tensor, rule: Rule | None = None, method: str = "") -> tuple[Tensor, Tensor]:
        """Return the gradient of the score at k·n inputs (as in `at`), and the scores (k·n,).

        It takes one pass forward and one back. With `rule`, the model's forward pass runs under it, for
        `method`.

        Raises
        ------
        InputError
            If the logits have no gradient at the image, or a rule cannot see some of the model's calls.
        """
        if rule is None and self.gradients.plan is not None:
            return self._fast_gradient(points, self.gradients.plan.rows)
        points = points.detach().requires_grad_(True)
        with torch.enable_grad(), rule or nullcontext():
            scores = self.at(points).score(points)
            total = scores.sum()
        gradient = slope(total, points, self.model)
        if rule is not None:
            check_functions(total, self.model, self.x[:1], method)
        return gradient, scores.detach()

    def _fast_gradient(self, points: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        net, target = self.gradients.differentiable(), self.at(points).target
        slopes, values = [], []
        for start in range(0, len(points), rows):
            some = points[start : start + rows].detach().requires_grad_(True)
            with torch.enable_grad():
                logits = check_logits(net(some.clone()), len(some))
                scores = target.rows(start, start + len(some), points.device).pick(logits)
                total = scores.sum()
            slopes.append(slope(total, some, self.model))
            values.append(scores.detach())
        return torch.cat(slopes), torch.cat(values)

    def rows(self, *, backward: bool) -> int:
        """Return how many images one pass has, forward or also back."""
        planned = (self.gradients if backward else self.forwards).rows
        return planned or pass_rows(self.model, self.x.shape, backward=backward)

    def draws(
        self, count: int, *, backward: bool = True, of: int | None = None, fast: bool = True
    ) -> Iterator[range]:
        """Cut `count` evaluations of every image into groups that fit one pass, forward or also back.

        They are part of `of` evaluations per image, where a method makes them in blocks. With `fast`, they
        may run in a faster form of the model; a method that looks inside the model gives False.
        """
        if fast:
            (self.gradients if backward else self.forwards).expect((of or count) * self.total)
        step = max(1, self.rows(backward=backward) // len(self.x))
        for start in range(0, count, step):
            yield range(start, min(count, start + step))
