"""Attacks that look for the nearest misclassified point, and succeed if it lies inside the ball."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from saliency_lab.attacks.ascent import BallNorm, norm_of, project
from saliency_lab.attacks.problem import AttackOutcome, AttackProblem, AttackSettings


class CwSettings(AttackSettings):
    """Adam in tanh space on ‖δ‖² + c·max(margin + confidence, 0), with a binary search for c per sample."""

    norm: BallNorm = "l2"
    steps: int = Field(default=100, ge=1)
    search_steps: int = Field(default=6, ge=1)
    constant: float = Field(default=1.0, gt=0.0)
    learning_rate: float = Field(default=0.05, gt=0.0)
    confidence: float = Field(default=0.0, ge=0.0)


class EadSettings(AttackSettings):
    """Shrinkage-thresholding on c·max(margin + confidence, 0) + ‖δ‖² + beta·‖δ‖₁, with a search for c."""

    norm: BallNorm = "l1"
    steps: int = Field(default=100, ge=1)
    search_steps: int = Field(default=6, ge=1)
    constant: float = Field(default=1.0, gt=0.0)
    learning_rate: float = Field(default=0.02, gt=0.0)
    beta: float = Field(default=2.0, gt=0.0)
    confidence: float = Field(default=0.0, ge=0.0)


class DeepFoolSettings(AttackSettings):
    """Steps to the nearest boundary of the linearised model, over the `classes` likeliest classes."""

    norm: BallNorm = "l2"
    steps: int = Field(default=50, ge=1)
    classes: int = Field(default=10, ge=2)
    overshoot: float = Field(default=0.02, ge=0.0)


class _Nearest:
    """The nearest point per sample that reaches the goal, over all that were tried."""

    def __init__(self, problem: AttackProblem) -> None:
        self.problem = problem
        self.points = problem.x.clone()
        self.distance = problem.x.new_full((len(problem.x),), torch.inf)
        self.queries = torch.zeros(len(problem.x), dtype=torch.long, device=problem.x.device)

    def offer(self, points: Tensor, logits: Tensor, passes: Tensor | int = 1) -> Tensor:
        """Keep the points that reach the goal nearer than before; return the mask of those that reach it."""
        self.queries += passes
        reached = self.problem.broken(logits)
        distance = norm_of(points - self.problem.x, self.problem.norm)
        better = reached & (distance < self.distance)
        self.points[better], self.distance[better] = points[better], distance[better]
        return reached

    def outcome(self) -> AttackOutcome:
        """Points inside the ball: a nearest point outside it is projected, and will be judged again."""
        problem = self.problem
        return AttackOutcome(project(self.points, problem.x, problem.eps, problem.norm), self.queries)


def cw(problem: AttackProblem, settings: CwSettings) -> AttackOutcome:
    """Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017 (L2)."""
    x = problem.x
    centre = torch.atanh((2 * x - 1) * (1 - 1e-6))

    def minimise(constant: Tensor, nearest: _Nearest) -> Tensor:
        variable = centre.clone().requires_grad_()
        optimiser = torch.optim.Adam([variable], lr=settings.learning_rate)
        reached = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for _ in range(settings.steps):
            point = (torch.tanh(variable) + 1) / 2
            logits = problem.model(point)
            reached |= nearest.offer(point.detach(), logits.detach())
            size = (point - x).flatten(1).square().sum(1)
            loss = size + constant * _shortfall(problem, logits, settings.confidence)
            variable.grad = torch.autograd.grad(loss.sum(), variable)[0].nan_to_num()
            optimiser.step()
        return reached

    return _search_constant(problem, settings.constant, settings.search_steps, minimise)


def ead(problem: AttackProblem, settings: EadSettings) -> AttackOutcome:
    """Chen et al., "EAD: Elastic-Net Attacks to Deep Neural Networks via Adversarial Examples", AAAI 2018."""
    x = problem.x

    def minimise(constant: Tensor, nearest: _Nearest) -> Tensor:
        point, ahead = x.clone(), x.clone()
        reached = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for step in range(settings.steps):
            ahead = ahead.detach().requires_grad_()
            loss = constant * _shortfall(problem, problem.model(ahead), settings.confidence)
            loss = loss + (ahead - x).flatten(1).square().sum(1)
            slope = torch.autograd.grad(loss.sum(), ahead)[0].nan_to_num()
            rate = settings.learning_rate * (1 - step / settings.steps) ** 0.5
            delta = ahead.detach() - rate * slope - x
            shrunk = (x + delta.sign() * (delta.abs() - settings.beta * rate).clamp_min(0)).clamp(0, 1)
            ahead, point = shrunk + step / (step + 3) * (shrunk - point), shrunk
            reached |= nearest.offer(point, problem.judge(point), passes=2)
        return reached

    return _search_constant(problem, settings.constant, settings.search_steps, minimise)


def _search_constant(
    problem: AttackProblem, first: float, rounds: int, minimise: Callable[[Tensor, _Nearest], Tensor]
) -> AttackOutcome:
    """Search the smallest c per sample at which `minimise(c, nearest)` reaches the goal."""
    nearest = _Nearest(problem)
    constant = problem.x.new_full((len(problem.x),), first)
    low, high = torch.zeros_like(constant), torch.full_like(constant, torch.inf)
    for _ in range(rounds):
        reached = minimise(constant, nearest)
        high = torch.where(reached, torch.minimum(high, constant), high)
        low = torch.where(reached, low, torch.maximum(low, constant))
        constant = torch.where(high.isinf(), constant * 10, (low + high) / 2)
    return nearest.outcome()


def _slope(values: Tensor, point: Tensor) -> Tensor | None:
    """Gradient of the sum of `values` at `point`, of which the graph is kept; None if there is none."""
    if not values.requires_grad:
        return None
    return torch.autograd.grad(values.sum(), point, retain_graph=True, allow_unused=True)[0]


def _shortfall(problem: AttackProblem, logits: Tensor, confidence: float) -> Tensor:
    """What is missing to the goal, by the logits: max(z_y − maxᵢ≠y zᵢ + confidence, 0), or for the target."""
    goal = problem.y if problem.target is None else problem.target
    own = logits.gather(1, goal[:, None]).squeeze(1)
    other = logits.scatter(1, goal[:, None], -torch.inf).amax(1)
    gap = own - other if problem.target is None else other - own
    return (gap + confidence).clamp_min(0)


def deepfool(problem: AttackProblem, settings: DeepFoolSettings) -> AttackOutcome:
    """Moosavi-Dezfooli et al., "DeepFool: a Simple and Accurate Method to Fool Deep Networks", CVPR 2016."""
    x, count = problem.x, min(settings.classes, problem.logits.shape[1])
    others = problem.logits.scatter(1, problem.y[:, None], torch.inf).topk(count, 1).indices[:, 1:]
    nearest = _Nearest(problem)
    total, point = torch.zeros_like(x), x.clone()
    active = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for _ in range(settings.steps):
        point = point.detach().requires_grad_()
        logits = problem.model(point)
        active &= ~nearest.offer(point.detach(), logits.detach(), active.long())
        if not active.any():
            break
        gaps = logits.gather(1, others) - logits.gather(1, problem.y[:, None])  # (N, classes − 1), below 0
        rows_of_slopes = (_slope(gap, point) for gap in gaps.T)
        slopes = torch.stack(
            [torch.zeros_like(point) if each is None else each.nan_to_num() for each in rows_of_slopes], 1
        )
        slopes, gaps = _scaled(slopes, gaps.detach())
        flat = slopes.flatten(2)
        dual = flat.norm(dim=2) if problem.norm == "l2" else flat.abs().sum(2)
        distance = (gaps.abs() / dual.clamp_min(1e-12)).clamp_max(1e30)
        chosen = distance.argmin(1)
        rows = torch.arange(len(x), device=x.device)
        slope, length = slopes[rows, chosen], (distance[rows, chosen] + 1e-4).reshape(-1, 1, 1, 1)
        if problem.norm == "l2":
            step = length * slope / dual[rows, chosen].clamp_min(1e-12).reshape(-1, 1, 1, 1)
        else:
            step = length * slope.sign()
        total = torch.where(active.reshape(-1, 1, 1, 1), total + step, total)
        point = (x + (1 + settings.overshoot) * total).clamp(0, 1)
    else:
        nearest.offer(point.detach(), problem.judge(point.detach()), active.long())
    return nearest.outcome()


def _scaled(slopes: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply slopes (N, R, C, H, W) and gaps (N, R) by the power of 2 that brings the steepest to about 1.

    Where that is no underflow, no digit changes. The squares of gradients of 1e-20 are 0 in float32.
    """
    exponent = slopes.flatten(2).abs().amax(2).frexp().exponent.clamp_min(_LEAST_EXPONENT)
    return torch.ldexp(slopes, -exponent[..., None, None, None]), torch.ldexp(gaps, -exponent)


_LEAST_EXPONENT = -126  # of a normal number in float32
