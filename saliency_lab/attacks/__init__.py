"""Attacks on a model's predictions, robustness curves, and what they say."""

from saliency_lab.attacks.curve import RobustnessCurve, robustness_curve
from saliency_lab.attacks.door import attack, list_attacks
from saliency_lab.attacks.result import AttackResult

__all__ = ["AttackResult", "RobustnessCurve", "attack", "list_attacks", "robustness_curve"]
