"""Attacks along the gradient of the model itself: one forward and one backward pass to the input a step."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from saliency_lab._common.seeding import sample_normal, sample_seeds, sample_uniform
from saliency_lab._common.settings import Epsilon, Settings
from saliency_lab.attacks.ascent import Norm, project, random_start, steepest
from saliency_lab.attacks.losses import LossName, attack_loss, check_loss
from saliency_lab.attacks.problem import Outcome, Problem


class FgsmSettings(Settings):
    """One step of length ε from x along the sign (L∞) or the normalised gradient (L2)."""

    norm: Norm = "linf"
    loss: LossName = "ce"


class PgdSettings(Settings):
    """Projected gradient ascent from a random start.

    `step_size` is 2.5·ε / steps unless given. With `momentum` μ > 0 the direction is
    g ← μ·g + ∇/‖∇‖₁ (Dong et al., CVPR 2018). With `early_stop` a sample is left alone once broken;
    without it the attack goes on and returns the broken point of the highest loss.
    """

    norm: Norm = "linf"
    loss: LossName = "ce"
    steps: int = Field(40, ge=1)
    step_size: Epsilon | None = None
    restarts: int = Field(1, ge=1)
    momentum: float = Field(0.0, ge=0.0, le=1.0)
    early_stop: bool = True


def fgsm(problem: Problem, settings: FgsmSettings) -> Outcome:
    """Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015."""
    _check(problem, settings.loss, starts_at_x=True, method="fgsm")
    return climb(problem, [problem.x], loss=settings.loss, steps=1, step_size=problem.eps)


def pgd(problem: Problem, settings: PgdSettings) -> Outcome:
    """Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018."""
    _check(problem, settings.loss, starts_at_x=False, method="pgd")
    return climb(
        problem,
        [None] * settings.restarts,
        loss=settings.loss,
        steps=settings.steps,
        step_size=_step_size(problem, settings.step_size, settings.steps),
        momentum=settings.momentum,
        early_stop=settings.early_stop,
    )


def climb(
    problem: Problem,
    starts: list[Tensor | None],
    *,
    loss: LossName,
    steps: int,
    step_size: Tensor,
    momentum: float = 0.0,
    early_stop: bool = True,
) -> Outcome:
    """Climb the loss from each of `starts` (none: a random point of the ball); keep the best point a sample.

    A broken point is better than one that is not; among equals the higher loss wins. The start itself
    counts only if it is broken.
    """
    n = len(problem.x)
    best = problem.x.clone()
    best_loss = problem.x.new_full((n,), -torch.inf)
    broken = torch.zeros(n, dtype=torch.bool, device=problem.x.device)
    queries = torch.zeros(n, dtype=torch.long, device=problem.x.device)
    curve = problem.x.new_full((n, steps + 1), torch.nan)
    for restart, start in enumerate(starts):
        rows = (~broken).nonzero().flatten() if early_stop else torch.arange(n, device=problem.x.device)
        if not len(rows):
            break
        now = problem.take(rows)
        stride = step_size[rows]
        point = _ball_point(now, restart) if start is None else start[rows]
        velocity: Tensor | float = 0.0
        track = problem.x.new_full((n, steps + 1), torch.nan)
        improved = torch.zeros_like(broken)
        for step in range(steps + 1):
            climbing = step < steps
            with torch.set_grad_enabled(climbing):
                point = point.detach().requires_grad_(climbing)
                logits = now.model(point)
                values = attack_loss(loss, logits, now)
            queries[rows] += 1
            track[rows, step] = values.detach()
            reached = now.broken(logits)
            better = values.detach() > best_loss[rows]
            better = torch.where(reached == broken[rows], better & (reached | (step > 0)), reached)
            chosen = rows[better]
            best[chosen] = point.detach()[better]
            best_loss[chosen] = values.detach()[better]
            improved[chosen] = True
            broken[rows] |= reached
            stay = ~reached if early_stop else torch.ones_like(reached)
            if not climbing or not stay.any():
                break
            slope = torch.autograd.grad(values.sum(), point)[0].nan_to_num_()
            if not stay.all():
                rows, now, stride, slope, point = (
                    rows[stay],
                    now.take(stay),
                    stride[stay],
                    slope[stay],
                    point[stay],
                )
                velocity = velocity[stay] if isinstance(velocity, Tensor) else velocity
            if momentum:
                length = slope.abs().flatten(1).sum(1).reshape(-1, 1, 1, 1)
                slope = velocity = momentum * velocity + slope / length.clamp_min(
                    torch.finfo(slope.dtype).tiny
                )
            with torch.no_grad():
                move = stride.reshape(-1, 1, 1, 1) * steepest(slope, now.norm)
                point = project(point + move, now.x, now.eps, now.norm)
        curve[improved] = track[improved]
    return Outcome(best, queries, curve)


def _ball_point(problem: Problem, restart: int) -> Tensor:
    """Uniform point of the ball, from the seed, the restart's number and the sample's own pixels."""
    seeds = sample_seeds(problem.x, problem.seed, f"attack start {restart}")
    if problem.norm == "linf":
        noise = sample_uniform(seeds, problem.x.shape[1:])
    else:
        noise = sample_normal(seeds, (problem.x[0].numel() + 2,))
    return random_start(problem.x, problem.eps, problem.norm, noise)


def _step_size(problem: Problem, given: float | None, steps: int) -> Tensor:
    return problem.eps * (2.5 / steps) if given is None else torch.full_like(problem.eps, given)


def _check(problem: Problem, loss: LossName, *, starts_at_x: bool, method: str) -> None:
    targeted = problem.target is not None
    check_loss(loss, problem.logits.shape[1], targeted=targeted, starts_at_x=starts_at_x, method=method)
