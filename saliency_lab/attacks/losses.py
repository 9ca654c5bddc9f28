"""The losses that an attack raises; each takes a batch's logits and returns one value per sample."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from saliency_lab._common.errors import InputError
from saliency_lab.attacks.problem import AttackProblem

LossName = Literal["ce", "dlr", "margin", "kl", "scaled_ce"]


def attack_loss(name: LossName, logits: Tensor, problem: AttackProblem) -> Tensor:
    """Loss (N,) that rises as the attack gets closer to its goal, from logits (N, K).

    With z the logits, y the label, t the target if there is one, and z₁ ≥ z₂ ≥ … the sorted logits:

    - `ce`: cross-entropy of y; targeted: minus the cross-entropy of t.
    - `margin`: maxᵢ≠y zᵢ − z_y; targeted: z_t − maxᵢ≠t zᵢ (Carlini and Wagner, S&P 2017).
    - `dlr`: the margin over z₁ − z₃; targeted: (z_t − z_y) over z₁ − (z₃ + z₄)/2
      (Croce and Hein, ICML 2020). It does not change when the logits are scaled or shifted.
    - `kl`: KL(p(x) ‖ p(x')), the inner loss of TRADES; untargeted only.
    - `scaled_ce`: `ce` of the logits over (z₁ − z_K)/10, the divisor treated as a constant, so that a model
      with huge logits keeps its gradient (Carlini et al., "On Evaluating Adversarial Robustness", 2019).
    """
    if name == "margin":
        return _towards_goal(logits, problem)
    if name == "dlr":
        return _dlr(logits, problem)
    if name == "kl":
        reference = problem.logits.log_softmax(1)
        return F.kl_div(logits.log_softmax(1), reference, log_target=True, reduction="none").sum(1)
    if name == "scaled_ce":
        low, high = logits.detach().aminmax(dim=1, keepdim=True)
        span = high - low
        logits = logits * (10 / span.where(span > 0, 10))  # logits that are all one stay as they are
    if problem.target is None:
        return F.cross_entropy(logits, problem.y, reduction="none")
    return -F.cross_entropy(logits, problem.target, reduction="none")


def check_loss(name: LossName, classes: int, *, targeted: bool, starts_at_x: bool, method: str) -> None:
    """Refuse a loss that cannot work here.

    Raises
    ------
    InputError
        `dlr` with fewer than 3 classes (4 if targeted); `kl` with a target, or from x itself, where
        its gradient is zero.
    """
    needed = 4 if targeted else 3
    if name == "dlr" and classes < needed:
        raise InputError(f"{method}: loss 'dlr' needs {needed} classes or more, not {classes}; use 'margin'")
    if name == "kl" and targeted:
        raise InputError(f"{method}: loss 'kl' has no targeted form; use 'ce'")
    if name == "kl" and starts_at_x:
        raise InputError(
            f"{method}: loss 'kl' has a zero gradient at x, where {method} starts; "
            "use 'ce', or a method with a random start ('pgd', 'r_fgsm')"
        )


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """maxᵢ≠y zᵢ − z_y (N,): below 0 where y has the largest logit.

    >>> margin(torch.tensor([[3.0, 1.0, 0.5]]), torch.tensor([0]))
    tensor([-2.])
    """
    own = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - own


def _towards_goal(logits: Tensor, problem: AttackProblem) -> Tensor:
    """The margin of the label, or minus the target's: it rises towards the goal."""
    return margin(logits, problem.y) if problem.target is None else -margin(logits, problem.target)


def _dlr(logits: Tensor, problem: AttackProblem) -> Tensor:
    tiny = torch.finfo(logits.dtype).tiny
    if problem.target is None:
        top = logits.topk(3, dim=1).values
        return margin(logits, problem.y) / (top[:, 0] - top[:, 2]).clamp_min(tiny)
    top = logits.topk(4, dim=1).values
    gain = logits.gather(1, problem.target[:, None]) - logits.gather(1, problem.y[:, None])
    return gain.squeeze(1) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(tiny)
