"""Fast adversarial training: one large step from a random start."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from saliency_lab.training.objectives.base import Objective, register
from saliency_lab.training.step import Step


@register
class FastAdversarial(Objective):
    """CE(f(x'), y), x' = one step of `stride`·ε from a random start. Wong, Rice & Kolter, ICLR 2020.

    It can overfit catastrophically to the single step: watch `val_robust` in the log.
    """

    name: ClassVar[str] = "fast_at"

    stride: Annotated[float, Field(gt=0)] = 1.25
    """The step size as a multiple of ε."""

    def terms(self, step: Step) -> dict[str, Tensor]:
        """Return the term `adversarial`."""
        single = step.attack.model_copy(
            update={"steps": 1, "step_size": self.stride * step.attack.eps, "random_start": True}
        )
        return {"adversarial": F.cross_entropy(step.logits(step.perturb(spec=single)), step.y)}
