"""Cross-entropy on clean images."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from saliency_lab.training.objectives.base import Objective, register
from saliency_lab.training.step import Step


@register
class Standard(Objective):
    """CE(f(x), y)."""

    name: ClassVar[str] = "standard"

    def terms(self, step: Step) -> dict[str, Tensor]:
        """Return the term `clean`."""
        return {"clean": F.cross_entropy(step.logits(step.x), step.y)}
