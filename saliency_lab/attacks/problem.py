"""What an attack is asked to do, and what it hands back, for one chunk of samples on one device."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from saliency_lab.attacks.ascent import Norm


@dataclass(frozen=True, eq=False)
class Problem:
    """Samples to attack: images x (N, C, H, W), labels y (N,), targets (N,) or none, one ε each (N,).

    `logits` (N, K) are the model's on x; `seed` is that of every draw.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    target: Tensor | None
    logits: Tensor
    eps: Tensor
    norm: Norm
    seed: int

    def take(self, rows: Tensor) -> Problem:
        """Return the problem of some of the rows (a mask or indices)."""
        return replace(
            self,
            x=self.x[rows],
            y=self.y[rows],
            target=None if self.target is None else self.target[rows],
            logits=self.logits[rows],
            eps=self.eps[rows],
        )

    def broken(self, logits: Tensor) -> Tensor:
        """Mask (N,): the goal is reached (another class than y, or the target, has the largest logit)."""
        predictions = logits.argmax(1)
        return predictions != self.y if self.target is None else predictions == self.target


@dataclass(frozen=True, eq=False)
class Outcome:
    """Points found (N, C, H, W), forward passes spent a sample (N,), and the loss along the way or none.

    `loss_curve` (N, steps + 1) is the attack's own loss at each point of the restart that gave the
    returned point; NaN after an early stop.
    """

    points: Tensor
    queries: Tensor
    loss_curve: Tensor | None = None
