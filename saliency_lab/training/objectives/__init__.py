"""Training objectives by name. To add one: a file here with a registered class, and its import below."""

from saliency_lab.training.objectives.adversarial import Adversarial
from saliency_lab.training.objectives.adversarial_saliency_guided import AdversarialSaliencyGuided
from saliency_lab.training.objectives.base import OBJECTIVES, Objective
from saliency_lab.training.objectives.saliency_guided import SaliencyGuided
from saliency_lab.training.objectives.standard import Standard

__all__ = [
    "OBJECTIVES",
    "Adversarial",
    "AdversarialSaliencyGuided",
    "Objective",
    "SaliencyGuided",
    "Standard",
]
