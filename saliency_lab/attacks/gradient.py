"""Attacks along the gradient of the model itself: one forward and one backward pass to the input per step."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from saliency_lab._common.settings import PositiveEpsilon
from saliency_lab.attacks.ascent import Stepper, input_gradient
from saliency_lab.attacks.draws import ball_point, surface_point
from saliency_lab.attacks.losses import LossName, attack_loss, check_loss
from saliency_lab.attacks.problem import AttackOutcome, AttackProblem, AttackSettings
from saliency_lab.attacks.sources import FiniteDifferences


class SpsaSettings(AttackSettings):
    """PGD on the margin, its gradient estimated along `directions` random signs of length `spacing`."""

    steps: int = Field(default=40, ge=1)
    directions: int = Field(default=32, ge=1)
    spacing: PositiveEpsilon = 0.01


class FgsmSettings(AttackSettings):
    """One step of length ε from x along the sign (L∞) or the normalised gradient (L2)."""

    loss: LossName = "ce"


class BimSettings(AttackSettings):
    """Projected gradient ascent from x itself; steps as in `PgdSettings`."""

    loss: LossName = "ce"
    steps: int = Field(default=10, ge=1)
    step_size: PositiveEpsilon | None = None
    momentum: float = Field(default=0.0, ge=0.0, le=1.0)
    early_stop: bool = True


class PgdSettings(AttackSettings):
    """Projected gradient ascent from a random start.

    With `step_size` every step has that length, as in the paper. Without it step t of T has the length
    ε·(1 + cos(π·t/T)), from 2ε (t = 0) towards 0, which is as strong as APGD at the same number of
    steps where a constant step is not. With `momentum` μ > 0 the direction is
    g ← μ·g + ∇/‖∇‖₁ (Dong et al., CVPR 2018). With `early_stop` a sample is left alone once broken;
    without it the attack goes on and returns the broken point of the highest loss.
    """

    loss: LossName = "ce"
    steps: int = Field(default=40, ge=1)
    step_size: PositiveEpsilon | None = None
    restarts: int = Field(default=1, ge=1)
    momentum: float = Field(default=0.0, ge=0.0, le=1.0)
    early_stop: bool = True


def fgsm(problem: AttackProblem, settings: FgsmSettings) -> AttackOutcome:
    """Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015."""
    _check(problem, settings.loss, starts_at_x=True, method="fgsm")
    return climb(problem, [problem.x], loss=settings.loss, lengths=problem.eps[None])


def r_fgsm(problem: AttackProblem, settings: FgsmSettings) -> AttackOutcome:
    """Tramèr et al., "Ensemble Adversarial Training", ICLR 2018: ε/2 at random, then ε/2 uphill."""
    _check(problem, settings.loss, starts_at_x=False, method="r_fgsm")
    half = problem.eps / 2
    start = surface_point(problem, "r_fgsm start", half)
    return climb(problem, [start], loss=settings.loss, lengths=half[None], early_stop=False)


def bim(problem: AttackProblem, settings: BimSettings) -> AttackOutcome:
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


def pgd(problem: AttackProblem, settings: PgdSettings) -> AttackOutcome:
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


def spsa(problem: AttackProblem, settings: SpsaSettings) -> AttackOutcome:
    """Uesato et al., "Adversarial Risk and the Dangers of Evaluating Against Weak Attacks", ICML 2018."""
    measured = FiniteDifferences(problem.model, settings.directions, settings.spacing, problem.seed)
    lengths = step_lengths(problem.eps, None, settings.steps)
    outcome = climb(replace(problem, model=measured), [None], loss="margin", lengths=lengths)
    return replace(outcome, queries=outcome.queries * (1 + 2 * settings.directions))


def climb(
    problem: AttackProblem,
    starts: list[Tensor | None],
    *,
    loss: LossName,
    lengths: Tensor,
    momentum: float = 0.0,
    early_stop: bool = True,
) -> AttackOutcome:
    """Climb the loss from each of `starts` (none: a random point of the ball); keep the best one.

    `lengths` (steps, N) are those of the steps. Each point's one forward pass gives the gradient for the
    next step and the verdict on the point itself, so a sample is broken if any point on the way is.
    """
    steps = len(lengths)
    best = _Best(problem, steps)
    for restart, start in enumerate(starts):
        rows = best.open_rows(early_stop)
        if not len(rows):
            break
        now, stride = problem.take(rows), lengths[:, rows]
        point = ball_point(now, f"attack start {restart}") if start is None else start[rows]
        point = point.detach().clone().requires_grad_()
        stepper = Stepper(now.x, now.eps, now.norm)
        velocity = torch.zeros_like(point) if momentum else None
        track = point.new_full((len(rows), steps + 1), torch.nan)
        for step in range(steps):
            logits = now.model(point)
            values = attack_loss(loss, logits, now)
            reached = now.broken(logits)
            if step == 0 and start is problem.x:  # no point of the attack, though its source may err there
                reached = torch.zeros_like(reached)
            track[:, step] = values.detach()
            count = int(reached.sum())
            if count:
                gone = rows[reached]
                best.offer(gone, point.detach()[reached], values.detach()[reached], broken=True)
                if early_stop:
                    best.finish(gone, track[reached], passes=step + 1)
            if early_stop and count == len(rows):
                rows = rows[:0]
                break
            slope = input_gradient(values, point)
            if early_stop and count:
                stay = ~reached
                rows, now, stride = rows[stay], now.take(stay), stride[:, stay]
                slope, track, values = slope[stay], track[stay], values[stay]
                point = point.detach()[stay].requires_grad_()
                stepper = Stepper(now.x, now.eps, now.norm)
                velocity = None if velocity is None else velocity[stay]
            if velocity is not None:
                length = slope.abs().flatten(1).sum(1).clamp_min(torch.finfo(slope.dtype).tiny)
                slope = velocity = momentum * velocity + slope / length.reshape(-1, 1, 1, 1)
            stepper.step_(point, slope, stride[step])
            if not (finite := values.isfinite()).all():
                with torch.no_grad():  # back towards the image, where the model does answer
                    point[~finite] = (point[~finite] + now.x[~finite]) / 2
        if len(rows):
            with torch.no_grad():
                logits = now.judge(point)
                track[:, steps] = values = attack_loss(loss, logits, now)
            reached, last = now.broken(logits), point.detach()
            for rows_of, broken in ((~reached, False), (reached, True)):
                best.offer(rows[rows_of], last[rows_of], values[rows_of], broken=broken)
            best.finish(rows, track, passes=steps + 1)
    return AttackOutcome(best.points, best.queries, best.curve)


class _Best:
    """The best point per sample, of all broken ones and the last ones of the restarts.

    A broken point is better than one that is not; among equals the higher loss wins.
    """

    def __init__(self, problem: AttackProblem, steps: int) -> None:
        n = len(problem.x)
        self.points = problem.x.clone()
        self.loss = problem.x.new_full((n,), -torch.inf)
        self.broken = torch.zeros(n, dtype=torch.bool, device=problem.x.device)
        self.queries = torch.zeros(n, dtype=torch.long, device=problem.x.device)
        self.curve = problem.x.new_full((n, steps + 1), torch.nan)
        self._improved = torch.zeros_like(self.broken)

    def open_rows(self, early_stop: bool) -> Tensor:
        """Samples to go on with."""
        wanted = ~self.broken if early_stop else torch.ones_like(self.broken)
        return wanted.nonzero().flatten()

    def offer(self, rows: Tensor, points: Tensor, loss: Tensor, *, broken: bool) -> None:
        """Take over the points that are better than what is there."""
        better = loss > self.loss[rows]
        better = better | ~self.broken[rows] if broken else better & ~self.broken[rows]
        chosen = rows[better]
        self.points[chosen], self.loss[chosen] = points[better], loss[better]
        self.broken[chosen] |= broken
        self._improved[chosen] = True

    def finish(self, rows: Tensor, track: Tensor, *, passes: int) -> None:
        """Count a restart's passes, and keep its losses where it gave the best point so far."""
        self.queries[rows] += passes
        improved = self._improved[rows]
        self.curve[rows[improved]] = track[improved]
        self._improved[rows] = False


def step_lengths(eps: Tensor, given: float | None, steps: int) -> Tensor:
    """Lengths (steps, N): all the one given, or from 2ε (N,) towards 0 by a cosine."""
    if given is not None:
        return eps.new_full((steps, len(eps)), given)
    phase = torch.arange(steps, dtype=eps.dtype, device=eps.device) * (math.pi / steps)
    return torch.outer(1 + phase.cos(), eps)


def _check(problem: AttackProblem, loss: LossName, *, starts_at_x: bool, method: str) -> None:
    targeted = problem.target is not None
    check_loss(loss, problem.logits.shape[1], targeted=targeted, starts_at_x=starts_at_x, method=method)
