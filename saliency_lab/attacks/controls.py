"""Controls that use no gradient: whatever they break, a working attack breaks as well."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from saliency_lab.attacks.draws import ball_point, surface_point
from saliency_lab.attacks.problem import AttackOutcome, AttackProblem, AttackSettings


class DrawSettings(AttackSettings):
    """The best of `draws` random points per sample."""

    draws: int = Field(default=10, ge=1)


def noise(problem: AttackProblem, settings: DrawSettings) -> AttackOutcome:
    """Control: points drawn uniformly from the ε-ball."""
    return _best_of(problem, settings.draws, lambda now, i: ball_point(now, f"noise {i}"))


def random_direction(problem: AttackProblem, settings: DrawSettings) -> AttackOutcome:
    """Control: points at the distance ε along random directions (signs for L∞, unit vectors for L2)."""
    return _best_of(problem, settings.draws, lambda now, i: surface_point(now, f"direction {i}", now.eps))


def _best_of(
    problem: AttackProblem, draws: int, draw: Callable[[AttackProblem, int], Tensor]
) -> AttackOutcome:
    best = problem.x.clone()
    best_loss = problem.x.new_full((len(best),), -torch.inf)
    queries = torch.zeros(len(best), dtype=torch.long, device=best.device)
    rows = torch.arange(len(best), device=best.device)
    with torch.no_grad():
        for i in range(draws):
            now = problem.take(rows)
            point = draw(now, i)
            logits = now.judge(point)
            queries[rows] += 1
            reached = now.broken(logits)
            loss = F.cross_entropy(logits, now.y, reduction="none").to(best_loss.dtype)
            better = reached | (loss > best_loss[rows])
            best[rows[better]], best_loss[rows[better]] = point[better], loss[better]
            rows = rows[~reached]
            if not len(rows):
                break
    return AttackOutcome(best, queries)
