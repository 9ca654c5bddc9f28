"""Random points of the ball, from the seed, a purpose and the sample's own pixels."""

from __future__ import annotations

from torch import Tensor

from saliency_lab._common.seeding import sample_normal, sample_seeds, sample_uniform
from saliency_lab.attacks.ascent import project, random_start
from saliency_lab.attacks.problem import AttackProblem


def ball_point(problem: AttackProblem, purpose: str) -> Tensor:
    """Uniform in the ε-ball, clipped to [0, 1]."""
    seeds = sample_seeds(problem.x, problem.seed, purpose)
    if problem.norm == "linf":
        noise = sample_uniform(seeds, problem.x.shape[1:])
    else:
        noise = sample_normal(seeds, (problem.x[0].numel() + 2,))
    return random_start(problem.x, problem.eps, problem.norm, noise)


def surface_point(problem: AttackProblem, purpose: str, radius: Tensor) -> Tensor:
    """`radius` (N,) along random signs (L∞) or a uniform unit vector (L2), clipped to [0, 1]."""
    seeds = sample_seeds(problem.x, problem.seed, purpose)
    direction = sample_normal(seeds, problem.x.shape[1:]).to(problem.x)
    if problem.norm == "linf":
        direction = direction.sign()
    else:
        direction = direction / direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    point = problem.x + radius.reshape(-1, 1, 1, 1) * direction
    return project(point, problem.x, radius, problem.norm)
