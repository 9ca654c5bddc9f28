"""What an attack is asked to do, and what it hands back, for one chunk of samples on one device."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import Field
from torch import Tensor, nn

from saliency_lab._common.inference import run_without_graph
from saliency_lab._common.passes import Passes
from saliency_lab._common.settings import Settings
from saliency_lab.attacks.ascent import BallNorm, Norm


class AttackSettings(Settings):
    """Settings of every attack.

    `norm` of the ball; `samples`: passes that a random model's probabilities are averaged over (expectation
    over transformation); `quantised`: search and return points whose pixels are multiples of 1/255.
    """

    norm: BallNorm = "linf"
    samples: int = Field(default=1, ge=1)
    quantised: bool = False


@dataclass(frozen=True, eq=False)
class AttackProblem:
    """Samples to attack: images x (N, C, H, W), labels y (N,), targets (N,) or none, one ε each (N,).

    `logits` (N, K) are the model's on x; `seed` is that of every draw. `forwards` are the passes without a
    graph, where they may run in a faster form of the model.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    target: Tensor | None
    logits: Tensor
    eps: Tensor
    norm: Norm
    seed: int
    forwards: Passes | None = None

    def take(self, rows: Tensor) -> AttackProblem:
        """Return the problem of some of the rows (a mask or indices)."""
        return replace(
            self,
            x=self.x[rows],
            y=self.y[rows],
            target=None if self.target is None else self.target[rows],
            logits=self.logits[rows],
            eps=self.eps[rows],
        )

    def judge(self, points: Tensor) -> Tensor:
        """Logits (N, K) of points, without a graph."""
        if self.forwards is not None and self.forwards.plan is not None:
            return self.forwards.logits(points)
        return run_without_graph(self.model, points)

    def broken(self, logits: Tensor) -> Tensor:
        """Mask (N,): the goal is reached (another class than y, or the target, has the largest logit).

        Logits that are not finite reach no goal.
        """
        predictions = logits.argmax(1)
        reached = predictions != self.y if self.target is None else predictions == self.target
        return reached & logits.isfinite().all(1)


@dataclass(frozen=True, eq=False)
class AttackOutcome:
    """Points found (N, C, H, W), forward passes spent per sample (N,), and the loss along the way or none.

    `loss_curve` (N, steps + 1) is the attack's own loss at each point of the restart that gave the
    returned point; NaN after an early stop.
    """

    points: Tensor
    queries: Tensor
    loss_curve: Tensor | None = None
