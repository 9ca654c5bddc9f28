"""Adversarial training."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from saliency_lab.training.objectives.base import Objective, register
from saliency_lab.training.step import Step


@register
class Adversarial(Objective):
    """w·CE(f(x), y) + CE(f(x'), y), x' = PGD(x); w = 0 is Madry et al., ICLR 2018."""

    name: ClassVar[str] = "at"

    clean_weight: Annotated[float, Field(ge=0)] = 0.0

    def terms(self, step: Step) -> dict[str, Tensor]:
        """Return the terms `adversarial`, and `clean` if its weight is not 0."""
        attacked = step.perturb()
        terms = {"adversarial": F.cross_entropy(step.logits(attacked), step.y)}
        if self.clean_weight:
            terms["clean"] = self.clean_weight * F.cross_entropy(step.logits(step.x), step.y)
        return terms
