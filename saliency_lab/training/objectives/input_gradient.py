"""Input-gradient regularisation by double back-propagation."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from saliency_lab._common.inference import attention_differentiable_twice
from saliency_lab.training.objectives.base import Objective, register
from saliency_lab.training.step import Step, required_gradient


@register
class InputGradient(Objective):
    """CE(f(x), y) + λ·mean ‖∂CE/∂x‖². Drucker & LeCun 1992; Ross & Doshi-Velez, AAAI 2018.

    The gradient is of each sample's own cross-entropy; with BatchNorm in train mode it also
    runs through the batch statistics.
    """

    name: ClassVar[str] = "input_gradient"

    weight: Annotated[float, Field(ge=0)] = 0.1
    """λ, for images in [0, 1]."""

    def terms(self, step: Step) -> dict[str, Tensor]:
        """Return the terms `clean` and `gradient`."""
        x = step.x.detach().requires_grad_()
        with attention_differentiable_twice():
            losses = F.cross_entropy(step.logits(x), step.y, reduction="none")
            gradient = required_gradient(losses.sum(), x, create_graph=True)
        return {"clean": losses.mean(), "gradient": self.weight * gradient.flatten(1).square().sum(1).mean()}
