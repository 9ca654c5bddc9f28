"""Attacks along the gradient of the model itself: one forward and one backward pass to the input a step."""

from __future__ import annotations

import math
import warnings

import torch
from pydantic import Field
from torch import Tensor

from saliency_lab._common.settings import Epsilon, Settings
from saliency_lab.attacks.ascent import Norm, project, steepest
from saliency_lab.attacks.draws import ball_point, surface_point
from saliency_lab.attacks.losses import LossName, attack_loss, check_loss
from saliency_lab.attacks.problem import Outcome, Problem


class FgsmSettings(Settings):
    """One step of length ε from x along the sign (L∞) or the normalised gradient (L2)."""

    norm: Norm = "linf"
    loss: LossName = "ce"


class BimSettings(Settings):
    """Projected gradient ascent from x itself; steps as in `PgdSettings`."""

    norm: Norm = "linf"
    loss: LossName = "ce"
    steps: int = Field(default=10, ge=1)
    step_size: Epsilon | None = None
    momentum: float = Field(default=0.0, ge=0.0, le=1.0)
    early_stop: bool = True


class PgdSettings(Settings):
    """Projected gradient ascent from a random start.

    With `step_size` every step has that length, as in the paper. Without it step t of T has the length
    ε·(1 + cos(π·t/T)), from 2ε down to 0, which is as strong as APGD at the same number of steps where a
    constant step is not. With `momentum` μ > 0 the direction is
    g ← μ·g + ∇/‖∇‖₁ (Dong et al., CVPR 2018). With `early_stop` a sample is left alone once broken;
    without it the attack goes on and returns the broken point of the highest loss.
    """

    norm: Norm = "linf"
    loss: LossName = "ce"
    steps: int = Field(default=40, ge=1)
    step_size: Epsilon | None = None
    restarts: int = Field(default=1, ge=1)
    momentum: float = Field(default=0.0, ge=0.0, le=1.0)
    early_stop: bool = True


def fgsm(problem: Problem, settings: FgsmSettings) -> Outcome:
    """Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015."""
    _check(problem, settings.loss, starts_at_x=True, method="fgsm")
    return climb(problem, [problem.x], loss=settings.loss, lengths=problem.eps[None])


def r_fgsm(problem: Problem, settings: FgsmSettings) -> Outcome:
    """Tramèr et al., "Ensemble Adversarial Training", ICLR 2018: ε/2 at random, then ε/2 uphill."""
    _check(problem, settings.loss, starts_at_x=False, method="r_fgsm")
    half = problem.eps / 2
    start = surface_point(problem, "r_fgsm start", half)
    return climb(problem, [start], loss=settings.loss, lengths=half[None])


def bim(problem: Problem, settings: BimSettings) -> Outcome:
    """Kurakin et al., "Adversarial Examples in the Physical World", 2017 (momentum: Dong et al., 2018)."""
    _check(problem, settings.loss, starts_at_x=True, method="bim")
    return climb(
        problem,
        [problem.x],
        loss=settings.loss,
        lengths=step_lengths(problem.eps, settings.step_size, settings.steps),
        momentum=settings.momentum,
        early_stop=settings.early_stop,
    )


def pgd(problem: Problem, settings: PgdSettings) -> Outcome:
    """Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018."""
    _check(problem, settings.loss, starts_at_x=False, method="pgd")
    return climb(
        problem,
        [None] * settings.restarts,
        loss=settings.loss,
        lengths=step_lengths(problem.eps, settings.step_size, settings.steps),
        momentum=settings.momentum,
        early_stop=settings.early_stop,
    )


def climb(
    problem: Problem,
    starts: list[Tensor | None],
    *,
    loss: LossName,
    lengths: Tensor,
    momentum: float = 0.0,
    early_stop: bool = True,
) -> Outcome:
    """Climb the loss from each of `starts` (none: a random point of the ball); keep the best point a sample.

    `lengths` (steps, N) are those of the steps. Each point's one forward pass gives the gradient for the
    next step and the verdict on the point itself.
    """
    steps = len(lengths)
    best = _Best(problem, steps)
    for restart, start in enumerate(starts):
        rows = best.open_rows(early_stop)
        if not len(rows):
            break
        now = problem.take(rows)
        point = ball_point(now, f"attack start {restart}") if start is None else start[rows]
        velocity = torch.zeros_like(point) if momentum else None
        best.begin_restart()
        for step in range(steps):
            point.requires_grad_()
            logits = now.model(point)
            values = attack_loss(loss, logits, now)
            reached = now.broken(logits)
            best.look(rows, step, point.detach(), values.detach(), reached)
            if early_stop and reached.all():
                rows = rows[:0]
                break
            slope = _input_gradient(values, point)
            point = point.detach()
            if early_stop and reached.any():
                stay = ~reached
                rows, now, point, slope = rows[stay], now.take(stay), point[stay], slope[stay]
                velocity = None if velocity is None else velocity[stay]
            if velocity is not None:
                length = slope.abs().flatten(1).sum(1).clamp_min(torch.finfo(slope.dtype).tiny)
                slope = velocity = momentum * velocity + slope / length.reshape(-1, 1, 1, 1)
            move = lengths[step, rows].reshape(-1, 1, 1, 1) * steepest(slope, now.norm)
            point = project(point + move, now.x, now.eps, now.norm)
        if len(rows):
            with torch.no_grad():
                logits = now.model(point)
                best.look(rows, steps, point, attack_loss(loss, logits, now), now.broken(logits))
        best.end_restart()
    return Outcome(best.points, best.queries, best.curve)


class _Best:
    """The best point seen a sample: a broken one before one that is not, then the higher loss.

    A start counts only if it is broken.
    """

    def __init__(self, problem: Problem, steps: int) -> None:
        n = len(problem.x)
        self.points = problem.x.clone()
        self.loss = problem.x.new_full((n,), -torch.inf)
        self.broken = torch.zeros(n, dtype=torch.bool, device=problem.x.device)
        self.queries = torch.zeros(n, dtype=torch.long, device=problem.x.device)
        self.curve = problem.x.new_full((n, steps + 1), torch.nan)

    def open_rows(self, early_stop: bool) -> Tensor:
        """Samples to go on with."""
        wanted = ~self.broken if early_stop else torch.ones_like(self.broken)
        return wanted.nonzero().flatten()

    def begin_restart(self) -> None:
        self._track = torch.full_like(self.curve, torch.nan)
        self._improved = torch.zeros_like(self.broken)

    def end_restart(self) -> None:
        self.curve[self._improved] = self._track[self._improved]

    def look(self, rows: Tensor, step: int, point: Tensor, loss: Tensor, reached: Tensor) -> None:
        self.queries[rows] += 1
        self._track[rows, step] = loss
        was_broken = self.broken[rows]
        higher = loss > self.loss[rows]
        comparable = higher if step > 0 else higher & reached
        better = torch.where(reached == was_broken, comparable, reached)
        chosen = rows[better]
        self.points[chosen] = point[better]
        self.loss[chosen] = loss[better]
        self._improved[chosen] = True
        self.broken[rows] = was_broken | reached


def _input_gradient(values: Tensor, point: Tensor) -> Tensor:
    """Gradient of each sample's loss at its own point, NaN taken as 0; all 0, with a warning, if none."""
    slope = torch.autograd.grad(values.sum(), point, allow_unused=True)[0] if values.requires_grad else None
    if slope is None:
        warnings.warn(
            "the model's logits have no gradient at the image, so this attack cannot see where to go; "
            "use 'square', and see what audit says",
            stacklevel=2,
        )
        return torch.zeros_like(point)
    return slope.nan_to_num()


def step_lengths(eps: Tensor, given: float | None, steps: int) -> Tensor:
    """Lengths (steps, N): all the one given, or from 2ε (N,) down to 0 by a cosine."""
    if given is not None:
        return eps.new_full((steps, len(eps)), given)
    phase = torch.arange(steps, dtype=eps.dtype, device=eps.device) * (math.pi / steps)
    return torch.outer(1 + phase.cos(), eps)


def _check(problem: Problem, loss: LossName, *, starts_at_x: bool, method: str) -> None:
    targeted = problem.target is not None
    check_loss(loss, problem.logits.shape[1], targeted=targeted, starts_at_x=starts_at_x, method=method)
