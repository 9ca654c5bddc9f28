"""MART: misclassification-aware adversarial training."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from saliency_lab.training.objectives.base import Objective, register
from saliency_lab.training.step import Step


@register
class Mart(Objective):
    """BCE(p(x'), y) + λ·mean KL(p(x) ‖ p(x'))·(1 − p_y(x)). Wang et al., ICLR 2020.

    BCE(p, y) = −log p_y − log(1 − max over k ≠ y of p_k); x' = PGD(x) on the cross-entropy.
    """

    name: ClassVar[str] = "mart"

    weight: Annotated[float, Field(ge=0)] = 5.0
    """λ."""

    def terms(self, step: Step) -> dict[str, Tensor]:
        """Return the terms `boosted` and `divergence`."""
        adversarial = F.log_softmax(step.logits(step.perturb()), 1)
        clean = F.log_softmax(step.logits(step.x), 1)
        label = step.y[:, None]
        rival = adversarial.scatter(1, label, -torch.inf).amax(1)
        boosted = F.nll_loss(adversarial, step.y) - torch.log1p(-rival.exp().clamp_max(1 - 1e-6)).mean()
        distance = (clean.exp() * (clean - adversarial)).sum(1)
        doubt = 1 - clean.exp().gather(1, label).squeeze(1)
        return {"boosted": boosted, "divergence": self.weight * (distance * doubt).mean()}
