"""Attacks on a model's predictions, robustness curves, and whether to believe them."""

from saliency_lab.attacks.api import attack
from saliency_lab.attacks.checklist import audit
from saliency_lab.attacks.corruptions import corrupt
from saliency_lab.attacks.curve import RobustnessCurve, minimal_epsilon, robustness_curve, steps_curve
from saliency_lab.attacks.methods import list_attacks
from saliency_lab.attacks.result import AttackResult, robustbench_entry
from saliency_lab.attacks.saliency import MapAttackResult, attack_map
from saliency_lab.attacks.transfer import transfer_attack, worst_case
from saliency_lab.attacks.verdict import Audit

__all__ = [
    "AttackResult",
    "Audit",
    "MapAttackResult",
    "RobustnessCurve",
    "attack",
    "attack_map",
    "audit",
    "corrupt",
    "list_attacks",
    "minimal_epsilon",
    "robustbench_entry",
    "robustness_curve",
    "steps_curve",
    "transfer_attack",
    "worst_case",
]
