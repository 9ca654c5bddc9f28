"""TRADES."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from saliency_lab.training.objectives.base import Objective, register
from saliency_lab.training.step import Step, divergence, full_precision


@register
class Trades(Objective):
    """CE(f(x), y) + β·max KL(p(x) ‖ p(x')) over x' in the ball. Zhang et al., ICML 2019.

    The inner maximum climbs the KL from a random start always: at x itself its gradient is 0.
    """

    name: ClassVar[str] = "trades"

    beta: Annotated[float, Field(ge=0)] = 6.0

    def terms(self, step: Step) -> dict[str, Tensor]:
        """Return the terms `clean` and `divergence`."""
        with step.evaluated() as net, torch.no_grad():
            fixed = full_precision(net(step.x))
        away = step.attack.model_copy(update={"random_start": True})
        attacked = step.perturb(lambda z: divergence(fixed, z) * len(z), away)
        clean = step.logits(step.x)
        return {
            "clean": F.cross_entropy(clean, step.y),
            "divergence": self.beta * divergence(clean, step.logits(attacked)),
        }
