"""Training with uniform noise, the control for adversarial objectives."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from saliency_lab.attacks.ascent import random_start
from saliency_lab.training.objectives.base import Objective, register
from saliency_lab.training.step import Step


@register
class Noise(Objective):
    """CE(f(x + u), y), u uniform in the ε-ball, clipped to [0, 1]: noise of the attack's size."""

    name: ClassVar[str] = "noise"

    def terms(self, step: Step) -> dict[str, Tensor]:
        """Return the term `noisy`."""
        noisy = random_start(step.x, step.eps, step.attack.norm, step.start_noise())
        return {"noisy": F.cross_entropy(step.logits(noisy), step.y)}
