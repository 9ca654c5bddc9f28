"""Saliency-guided training, and the masking that it shares with the adversarial form."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from saliency_lab.training.masking import Fill, Ranking, lowest, masked, pixel_saliency
from saliency_lab.training.objectives.base import Objective, register
from saliency_lab.training.step import Step, divergence


class Masking(Objective):
    """Base of objectives with a mask M(x, s, k) and a KL term; its fields are their recipe keys."""

    weight: Annotated[float, Field(ge=0)] = 1.0
    """λ, the weight of the KL term."""
    fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    """k, the share of the pixels that is replaced."""
    fraction_schedule: Literal["constant", "linear", "adaptive"] = "constant"
    """`linear` raises k from 0 to `fraction` over the training. `adaptive` gives each sample the largest of
    ¼k, ½k, ¾k, k at which its masked input is still classified as its label, or else 0: our reading of
    SMOOT (Karkehabadi, Homayoun & Sasan 2023), which costs four more forward passes."""
    ranking: Ranking = "signed"
    """`random` is the control with which every claim about saliency is compared."""
    fill: Fill = "uniform"
    same_dropout: bool = True
    """Draw one dropout mask for both sides of the KL, so that it compares inputs and not masks."""

    def mask(self, step: Step, x: Tensor, saliency: Tensor | None) -> Tensor:
        """Return M(x, s, k) at this step."""
        if self.ranking == "random":
            scores = step.draw("ranking", torch.Size((len(x), *x.shape[2:])))
        else:
            assert saliency is not None
            scores = pixel_saliency(saliency, self.ranking)
        noise = step.draw("fill") if self.fill == "uniform" else None
        fraction: float | Tensor = self.fraction
        if self.fraction_schedule == "linear":
            fraction = self.fraction * step.progress
        elif self.fraction_schedule == "adaptive":
            fraction = torch.zeros(len(x), device=x.device)
            for quarter in (0.25, 0.5, 0.75, 1.0):
                candidate = masked(x, lowest(scores, quarter * self.fraction), self.fill, noise)
                fraction = torch.where(step.correct(candidate), quarter * self.fraction, fraction)
        return masked(x, lowest(scores, fraction), self.fill, noise)


@register
class SaliencyGuided(Masking):
    """CE(f(x), y) + λ·KL(p(x) ‖ p(M(x, s, k))), s = ∂z_y/∂x. Ismail et al., NeurIPS 2021.

    The clean forward also serves the saliency, up to the first layer with dropout or BatchNorm, exactly.
    """

    name: ClassVar[str] = "sgt"

    def terms(self, step: Step) -> dict[str, Tensor]:
        """Return the terms `clean` and `divergence`."""
        if self.ranking == "random":
            clean, saliency = step.logits(step.x), None
        else:
            clean, saliency = step.logits_and_saliency(step.x, step.y)
        hidden = step.logits(self.mask(step, step.x, saliency), draw=0 if self.same_dropout else 1)
        return {
            "clean": F.cross_entropy(clean, step.y),
            "divergence": self.weight * divergence(clean, hidden),
        }
