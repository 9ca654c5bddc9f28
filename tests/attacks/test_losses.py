"""Each loss against its formula, worked out by hand with NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saliency_lab.attacks.losses import attack_loss
from saliency_lab.attacks.problem import AttackProblem

LOGITS = torch.tensor([[3.0, 1.0, 0.5, -1.0, 2.0], [0.0, 4.0, 1.0, -2.0, 3.5]], dtype=torch.float64)
CLEAN = torch.tensor([[5.0, 0.0, 0.0, 0.0, 1.0], [0.0, 2.0, 0.0, 0.0, 0.0]], dtype=torch.float64)


def problem(target: list[int] | None = None) -> AttackProblem:
    return AttackProblem(
        model=lambda x: x, x=torch.zeros(2, 1, 2, 2), y=torch.tensor([0, 4]),
        target=None if target is None else torch.tensor(target),
        logits=CLEAN, eps=torch.ones(2), norm="linf", seed=0,
    )  # fmt: skip


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


Z = LOGITS.numpy()
P, Q = softmax(CLEAN.numpy()), softmax(Z)


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("ce", None, -np.log(Q[[0, 1], [0, 4]])),
        ("ce", [1, 2], np.log(Q[[0, 1], [1, 2]])),
        ("margin", None, [2.0 - 3.0, 4.0 - 3.5]),
        ("margin", [4, 1], [2.0 - 3.0, 4.0 - 3.5]),
        ("dlr", None, [-(3 - 2) / (3 - 1), -(3.5 - 4) / (4 - 1)]),
        ("dlr", [1, 0], [-(3 - 1) / (3 - 0.75), -(3.5 - 0) / (4 - 0.5)]),
        ("kl", None, (P * np.log(P / Q)).sum(1)),
        ("scaled_ce", None, -np.log(softmax(Z * 10 / np.array([[4.0], [6.0]]))[[0, 1], [0, 4]])),
    ],
)
def test_loss(name, target, expected) -> None:
    assert torch.allclose(
        attack_loss(name, LOGITS, problem(target)), torch.as_tensor(np.asarray(expected)), atol=1e-12
    )


@pytest.mark.parametrize("name", ["dlr", "scaled_ce"])
def test_scale_of_the_logits_does_not_matter(name) -> None:
    logits = LOGITS.clone().requires_grad_()
    plain = attack_loss(name, logits, problem())
    scaled = attack_loss(name, logits * 1000, problem())
    assert torch.allclose(plain, scaled)
    gradient = torch.autograd.grad(scaled.sum(), logits)[0]
    assert (gradient.abs().sum(1) > 0.1).all()  # where the cross-entropy's has vanished


def test_logits_that_are_all_one_have_a_loss_and_a_gradient() -> None:
    logits = torch.zeros(2, 5, requires_grad=True)
    scaled = attack_loss("scaled_ce", logits, problem())
    assert torch.equal(scaled, attack_loss("ce", logits, problem()))
    assert (torch.autograd.grad(scaled.sum(), logits)[0].abs().sum(1) > 0).all()
