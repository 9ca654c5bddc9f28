"""Training objectives by name. To add one, write a file with a registered class and import it below."""

from saliency_lab.training.objectives.adversarial import Adversarial
from saliency_lab.training.objectives.adversarial_saliency_guided import AdversarialSaliencyGuided
from saliency_lab.training.objectives.base import OBJECTIVES, Objective
from saliency_lab.training.objectives.fast_adversarial import FastAdversarial
from saliency_lab.training.objectives.input_gradient import InputGradient
from saliency_lab.training.objectives.mart import Mart
from saliency_lab.training.objectives.noise import Noise
from saliency_lab.training.objectives.saliency_guided import SaliencyGuided
from saliency_lab.training.objectives.standard import Standard
from saliency_lab.training.objectives.trades import Trades

__all__ = [
    "OBJECTIVES",
    "Adversarial",
    "AdversarialSaliencyGuided",
    "FastAdversarial",
    "InputGradient",
    "Mart",
    "Noise",
    "Objective",
    "SaliencyGuided",
    "Standard",
    "Trades",
]
