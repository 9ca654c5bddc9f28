"""Adversarial saliency-guided training."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from saliency_lab.training.objectives.base import register
from saliency_lab.training.objectives.saliency_guided import Masking
from saliency_lab.training.step import Step, divergence


@register
class AdversarialSaliencyGuided(Masking):
    """CE(f(x), y) + CE(f(x'), y) + λ·KL(p(r) ‖ p(M(x', s, k))), s = ∂z/∂x' at x'. Guesmi et al. 2024.

    `reference = "clean"`: r = x, and s is taken for the label. `reference = "adversarial"`, as in the
    authors' code: r = x', and s is taken for the class predicted for x'.
    """

    name: ClassVar[str] = "asgt"

    reference: Literal["clean", "adversarial"] = "clean"
    saliency: Literal["own", "reuse"] = "own"
    """`reuse` ranks by the negative of the attack's last gradient, which saves a pass."""

    def terms(self, step: Step) -> dict[str, Tensor]:
        """Return the terms `clean`, `adversarial` and `divergence`."""
        attacked = step.perturb()
        if self.ranking == "random":
            adversarial, saliency = step.logits(attacked), None
        elif self.saliency == "reuse" and step.last_gradient is not None:
            adversarial, saliency = step.logits(attacked), -step.last_gradient
        else:
            target = step.y if self.reference == "clean" else None
            adversarial, saliency = step.logits_and_saliency(attacked, target)
        clean = step.logits(step.x)
        hidden = step.logits(self.mask(step, attacked, saliency), draw=0 if self.same_dropout else 1)
        reference = clean if self.reference == "clean" else adversarial
        return {
            "clean": F.cross_entropy(clean, step.y),
            "adversarial": F.cross_entropy(adversarial, step.y),
            "divergence": self.weight * divergence(reference, hidden),
        }
