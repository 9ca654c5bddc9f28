"""The attacks of AutoAttack as pyautoattack implements them, made independent of the batch.

pyautoattack draws starts for a whole batch from the global generator, so a sample's outcome there
moves with its batch-mates. Here APGD gets its starts from us, one per sample; FAB-T draws nothing; and
Square runs with one sequence of windows and signs, from the seed alone, that every sample sees.
Everything else is the library's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted, L1_projection
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from pydantic import Field
from torch import Tensor

from saliency_lab._common.checks import check_default_dtype
from saliency_lab._common.errors import InputError
from saliency_lab._common.seeding import (
    derive_seed,
    generator,
    preserved_rng,
    sample_normal,
    sample_seeds,
    sample_uniform,
)
from saliency_lab.attacks.ascent import Norm, norm_of, project
from saliency_lab.attacks.problem import AttackOutcome, AttackProblem, AttackSettings

_SILENT = logging.getLogger("saliency_lab.pyautoattack")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


class ApgdSettings(AttackSettings):
    """Auto-PGD on one loss: parameter-free but for its budget."""

    steps: int = Field(default=100, ge=1)
    restarts: int = Field(default=1, ge=1)


class TargetedSettings(AttackSettings):
    """An attack on the `target_classes` likeliest wrong classes in turn (at most K − 1 of K)."""

    steps: int = Field(default=100, ge=1)
    target_classes: int = Field(default=9, ge=1)


class SquareSettings(AttackSettings):
    """Random search by squares, with `queries` per sample, from the model's outputs alone.

    The schedule of window sizes is scaled to the number of queries in L∞; in L2 it is the library's default.
    """

    queries: int = Field(default=5000, ge=1)


class AutoAttackSettings(AttackSettings):
    """The standard ensemble: APGD-CE, targeted APGD-DLR, FAB-T, Square.

    As there, APGD-CE has 5 restarts in L1 and targeted APGD-DLR at most 5 classes; otherwise 1 and 9.
    """

    steps: int = Field(default=100, ge=1)
    target_classes: int = Field(default=9, ge=1)
    queries: int = Field(default=5000, ge=1)


def apgd_ce(problem: AttackProblem, settings: ApgdSettings) -> AttackOutcome:
    """Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble …", ICML 2020."""
    return _apgd(problem, settings, "ce")


def apgd_dlr(problem: AttackProblem, settings: ApgdSettings) -> AttackOutcome:
    """Croce and Hein, ICML 2020: Auto-PGD on the difference of logits ratio."""
    _need_classes(problem, 3, "apgd_dlr")
    return _apgd(problem, settings, "dlr")


def apgd_t(problem: AttackProblem, settings: TargetedSettings) -> AttackOutcome:
    """Croce and Hein, ICML 2020: Auto-PGD on the targeted difference of logits ratio."""
    _need_classes(problem, 4, "apgd_t")
    search = _Search(problem)
    for rank, classes in _targets(problem, settings.target_classes):
        rows = search.open_rows()
        if not len(rows):
            break
        now = search.problem.take(rows)
        library = APGDAttack_targeted(
            search.model, n_iter=settings.steps, norm=_NORMS[now.norm], eps=_radius(now), device=now.x.device,
            logger=_SILENT,
        )  # fmt: skip
        library.init_hyperparam(now.x)
        library.y_target = classes[rows]
        best, holds, adversarial = _single_run(library, now, settings.steps, f"target {rank}")
        search.add(rows, _attempts(best, holds, adversarial), passes=settings.steps + 1)
    return search.outcome()


def fab_t(problem: AttackProblem, settings: TargetedSettings) -> AttackOutcome:
    """Croce and Hein, "Minimally Distorted Adversarial Examples …" (FAB), ICML 2020."""
    search = _Search(problem)
    for rank, _ in _targets(problem, settings.target_classes):
        rows = search.open_rows()
        if not len(rows):
            break
        now = search.problem.take(rows)
        library = FABAttack_PT(
            search.model, norm=_NORMS[now.norm], n_iter=settings.steps, eps=_radius(now), device=now.x.device,
            targeted=True,
        )  # fmt: skip
        library.target_class = rank
        adversarial = library.attack_single_run(now.x.float(), now.y, is_targeted=True)
        search.add(rows, adversarial, passes=2 * settings.steps + 2)
    return search.outcome()


def square(problem: AttackProblem, settings: SquareSettings) -> AttackOutcome:
    """Andriushchenko et al., "Square Attack: a Query-Efficient Black-Box Adversarial Attack", ECCV 2020."""
    high, wide = problem.x.shape[-2:]
    if not square_begins(problem.norm, high, wide):
        raise InputError(
            f"attack 'square' with norm '{problem.norm}' begins with tiles a fifth of the image high, which "
            f"needs at least 5 pixels, and they do not fit into {high}×{wide} pixels; use 'linf', or "
            "images of another size"
        )
    search = _Search(problem)
    problem = search.problem
    library = _SharedDraws(
        search.model, norm=_NORMS[problem.norm], n_queries=settings.queries, eps=_radius(problem),
        device=problem.x.device, resc_schedule=problem.norm == "linf",
    )  # fmt: skip
    library.init_hyperparam(problem.x)
    library.draws = generator(problem.seed, "square")
    with preserved_rng(derive_seed(problem.seed, "square")), torch.no_grad():
        queries, adversarial = library.attack_single_run(problem.x.float(), problem.y)
    search.add(torch.arange(len(problem.x), device=problem.x.device), adversarial, passes=queries.long())
    return search.outcome()


def square_begins(norm: Norm, high: int, wide: int) -> bool:
    """Whether the library's first tiles in L1 and L2 end inside the image; of one pixel, they may go on."""
    if norm == "linf":
        return True
    side = high // 5
    start = (high - 5 * side) // 2
    return side == 1 or (side > 1 and all(start + each // side * side <= each for each in (high, wide)))


def autoattack(problem: AttackProblem, settings: AutoAttackSettings) -> AttackOutcome:
    """Croce and Hein, ICML 2020: APGD-CE, targeted APGD-DLR, FAB-T, Square; each on what the last left."""
    _need_classes(problem, 4, "autoattack")
    steps, targets = settings.steps, settings.target_classes
    restarts, aimed = (5, min(targets, 5)) if problem.norm == "l1" else (1, targets)
    search = _Search(problem)
    for run in (
        lambda now: apgd_ce(now, ApgdSettings(norm=now.norm, steps=steps, restarts=restarts)),
        lambda now: apgd_t(now, TargetedSettings(norm=now.norm, steps=steps, target_classes=aimed)),
        lambda now: fab_t(now, TargetedSettings(norm=now.norm, steps=steps, target_classes=targets)),
        lambda now: square(now, SquareSettings(norm=now.norm, queries=settings.queries)),
    ):
        rows = search.open_rows()
        if not len(rows):
            break
        outcome = run(problem.take(rows))
        search.add(rows, outcome.points, passes=outcome.queries)
    return search.outcome()


_NORMS: dict[Norm, Literal["Linf", "L2", "L1"]] = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class _SharedDraws(SquareAttack):
    """Square whose sign draws are one row for all samples: none depends on who else is in the batch.

    It draws from a generator of its own, so that no other thread takes a number from the sequence.
    Where the label's logit ties with another one, the predicted class decides whether the margin counts as
    broken: the library calls it broken, and fails with an error if that is so for all samples at the start.
    Logits that are not finite count as right, at a loss that any other point improves on.
    """

    draws: torch.Generator

    def margin_and_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        margin, loss = super().margin_and_loss(x, y)
        tied = margin == 0
        if tied.any():
            correct = self.predict(x[tied]).argmax(1) == y[tied]
            margin[tied] = torch.where(correct, 1.0, -1.0) * torch.finfo(margin.dtype).tiny
        lost = ~(margin.isfinite() & loss.isfinite())
        return margin.masked_fill(lost, 1.0), loss.masked_fill(lost, 1e6)

    def _uniform(self, shape: Sequence[int]) -> Tensor:
        return torch.rand(shape, generator=self.draws).to(self.device)

    def random_choice(self, shape: list[int]) -> Tensor:
        row = [1, *shape[1:]] if len(shape) == 4 else shape
        return (2 * self._uniform(row) - 1).sign().expand(shape)

    def random_int(self, low: int = 0, high: int = 1, shape: Sequence[int] = (1,)) -> Tensor:
        return (low + (high - low) * self._uniform(shape)).long()

    def eta(self, s: int) -> Tensor:
        delta: Tensor = super().eta(s)  # positive above and negative below, or turned, by a global draw
        upright = delta if delta[0, -1] > 0 else delta.T
        return upright.T if self._uniform([1]) > 0.5 else upright


class _Search:
    """The best point per sample over several runs: one that breaks the model, else that of the highest loss.

    The loss is the cross-entropy of the label, whatever a run raised, so that runs can be compared. FAB's
    nearest point may lie outside the ball: projected, it is judged anew like every other.
    """

    def __init__(self, problem: AttackProblem) -> None:
        check_default_dtype("the attacks of AutoAttack")
        problem = replace(problem, x=problem.x.contiguous())  # the library takes views of its rows
        self.problem = problem
        self.points = problem.x.clone()
        self.loss = F.cross_entropy(problem.logits, problem.y, reduction="none")
        self.broken = torch.zeros(len(problem.x), dtype=torch.bool, device=problem.x.device)
        self.queries = torch.zeros(len(problem.x), dtype=torch.long, device=problem.x.device)

    def model(self, x: Tensor) -> Tensor:
        """Float32 logits, as the library computes in, in a tensor of their own, since it writes into it.

        The sum of no pixels is added, which is 0 and has a gradient of 0: the library takes it for granted
        that there is one.
        """
        if not torch.is_grad_enabled():
            return self.problem.judge(x.to(self.problem.x.dtype)).to(torch.float32).clone()
        logits = self.problem.model(x.to(self.problem.x.dtype))
        return logits.to(torch.float32) + x.flatten(1)[:, :0].sum(1, keepdim=True)

    def open_rows(self) -> Tensor:
        """Samples that no run has broken yet."""
        return (~self.broken).nonzero().flatten()

    def add(self, rows: Tensor, points: Tensor, *, passes: int | Tensor) -> None:
        """Take over the points that break the model, and those of a higher loss than what is there."""
        now = self.problem.take(rows)
        with torch.no_grad():
            inside = project(points.detach().to(now.x.dtype), now.x, now.eps, now.norm)
            logits = now.judge(inside)
            hit = now.broken(logits)
            loss = F.cross_entropy(logits, now.y, reduction="none").to(self.loss.dtype)
        self.queries[rows] += passes + 1
        better = hit | (loss > self.loss[rows])
        chosen = rows[better]
        self.points[chosen], self.loss[chosen] = inside[better], loss[better]
        self.broken[chosen] = hit[better]

    def outcome(self) -> AttackOutcome:
        """What was found: a point that breaks the model, or the best attempt, which may be x itself."""
        return AttackOutcome(self.points, self.queries)


def _apgd(problem: AttackProblem, settings: ApgdSettings, loss: str) -> AttackOutcome:
    search = _Search(problem)
    for restart in range(settings.restarts):
        rows = search.open_rows()
        if not len(rows):
            break
        now = search.problem.take(rows)
        library = APGDAttack(
            search.model, n_iter=settings.steps, norm=_NORMS[now.norm], eps=_radius(now), loss=loss,
            device=now.x.device, logger=_SILENT,
        )  # fmt: skip
        library.init_hyperparam(now.x)
        best, holds, adversarial = _single_run(library, now, settings.steps, f"apgd {restart}")
        search.add(rows, _attempts(best, holds, adversarial), passes=settings.steps + 1)
    return search.outcome()


def _single_run(
    library: APGDAttack, problem: AttackProblem, steps: int, purpose: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Run APGD from each sample's own start; in L1 from a ball of 3ε over one of 2ε down to ε."""
    x, radius = problem.x.float(), _radius(problem)
    if problem.norm != "l1":
        best, holds, _, adversarial = library.attack_single_run(x, problem.y, x_init=_start(problem, purpose))
        return best, holds, adversarial
    point = x + sample_normal(sample_seeds(problem.x, problem.seed, purpose), x.shape[1:]).to(x)
    early = math.ceil(0.3 * steps)
    for factor, count in ((3, early), (2, early), (1, max(steps - 2 * early, 1))):
        library.n_iter, library.eps = count, factor * radius
        library.init_hyperparam(x)
        point = point + L1_projection(x, point - x, library.eps)
        point, holds, _, adversarial = library.attack_single_run(x, problem.y, x_init=point)
    return point, holds, adversarial


def _attempts(best: Tensor, holds: Tensor, adversarial: Tensor) -> Tensor:
    """APGD's point that breaks the model, or, where the model holds, that of the highest loss."""
    return torch.where(holds.reshape(-1, 1, 1, 1), best, adversarial)


def _start(problem: AttackProblem, purpose: str) -> Tensor:
    """APGD's start, on the surface of the ball, from each sample's own draw."""
    seeds = sample_seeds(problem.x, problem.seed, purpose)
    shape = problem.x.shape[1:]
    noise = (2 * sample_uniform(seeds, shape) - 1) if problem.norm == "linf" else sample_normal(seeds, shape)
    noise = noise.to(problem.x)
    radius = (problem.eps / norm_of(noise, problem.norm)).reshape(-1, 1, 1, 1)
    return (problem.x + radius * noise).clamp(0, 1).float()


def _targets(problem: AttackProblem, count: int) -> list[tuple[int, Tensor]]:
    """(rank from the top, the class of that rank on x (N,)): the library calls the second likeliest 2."""
    order = problem.logits.sort(dim=1).indices
    return [(rank, order[:, -rank]) for rank in range(2, min(count, order.shape[1] - 1) + 2)]


def _radius(problem: AttackProblem) -> float:
    """The one ε that the library takes."""
    first = problem.eps[0].item()
    if not bool((problem.eps == first).all()):
        raise InputError("this attack takes one ε for all samples")
    return float(first)


def _need_classes(problem: AttackProblem, needed: int, method: str) -> None:
    classes = problem.logits.shape[1]
    if classes < needed:
        raise InputError(
            f"attack '{method}' needs {needed} classes or more, not {classes}; "
            "use 'apgd_ce', 'fab_t' and 'square' and take the worst case"
        )
