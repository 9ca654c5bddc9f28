"""Do saliency maps tell the truth, and does the way a model was trained change that?

Names are imported on first use, so that `import saliency_lab` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"

# public name → the package that defines it
_PACKAGES = {
    "Attributions": "attribution",
    "attribute": "attribution",
    "list_methods": "attribution",
    "sanity_check": "attribution",
    "AttackResult": "attacks",
    "attack": "attacks",
    "attack_map": "attacks",
    "audit": "attacks",
    "corrupt": "attacks",
    "list_attacks": "attacks",
    "minimal_epsilon": "attacks",
    "robustness_curve": "attacks",
    "steps_curve": "attacks",
    "transfer_attack": "attacks",
    "worst_case": "attacks",
    "explore": "explorer",
    "report": "reporting",
    "ImageBatch": "data",
    "ImageData": "data",
    "list_datasets": "data",
    "load_dataset": "data",
    "load_images": "data",
    "execution": "_common.execution",
    "evaluate": "metrics",
    "evaluate_detailed": "metrics",
    "evaluate_many": "metrics",
    "list_metrics": "metrics",
    "BinaryLogits": "models",
    "ModelCard": "models",
    "Normalised": "models",
    "build_model": "models",
    "list_models": "models",
    "list_zoo": "models",
    "load_model": "models",
    "save_model": "models",
    "wrap": "models",
    "list_recipes": "training",
    "load_recipe": "training",
    "train": "training",
    "Comparison": "comparison",
    "pool_comparisons": "comparison",
    "pool_differences": "comparison",
    "power": "comparison",
    "Study": "study",
    "verify": "experiment",
    "roar": "retraining",
    "list_studies": "experiment",
    "register": "_common.registry",
    "Settings": "_common.settings",
    "SaliencyLabError": "_common.errors",
    "show_progress": "_common.progress",
}

if TYPE_CHECKING:
    from saliency_lab._common.errors import SaliencyLabError
    from saliency_lab._common.execution import execution
    from saliency_lab._common.progress import show_progress
    from saliency_lab._common.registry import register
    from saliency_lab._common.settings import Settings
    from saliency_lab.attacks import (
        AttackResult,
        attack,
        attack_map,
        audit,
        corrupt,
        list_attacks,
        minimal_epsilon,
        robustness_curve,
        steps_curve,
        transfer_attack,
        worst_case,
    )
    from saliency_lab.attribution import Attributions, attribute, list_methods, sanity_check
    from saliency_lab.comparison import Comparison, pool_comparisons, pool_differences, power
    from saliency_lab.data import ImageBatch, ImageData, list_datasets, load_dataset, load_images
    from saliency_lab.experiment import list_studies
    from saliency_lab.explorer import explore
    from saliency_lab.metrics import evaluate, evaluate_detailed, evaluate_many, list_metrics
    from saliency_lab.models import (
        BinaryLogits,
        ModelCard,
        Normalised,
        build_model,
        list_models,
        list_zoo,
        load_model,
        save_model,
        wrap,
    )
    from saliency_lab.reporting import report
    from saliency_lab.retraining import roar
    from saliency_lab.study import Study
    from saliency_lab.training import list_recipes, load_recipe, train

__all__ = [
    "AttackResult",
    "Attributions",
    "BinaryLogits",
    "Comparison",
    "ImageBatch",
    "ImageData",
    "ModelCard",
    "Normalised",
    "SaliencyLabError",
    "Settings",
    "Study",
    "attack",
    "attack_map",
    "attribute",
    "audit",
    "build_model",
    "corrupt",
    "evaluate",
    "evaluate_detailed",
    "evaluate_many",
    "execution",
    "explore",
    "list_attacks",
    "list_datasets",
    "list_methods",
    "list_metrics",
    "list_models",
    "list_recipes",
    "list_studies",
    "list_zoo",
    "load_dataset",
    "load_images",
    "load_model",
    "load_recipe",
    "minimal_epsilon",
    "pool_comparisons",
    "pool_differences",
    "power",
    "register",
    "report",
    "roar",
    "robustness_curve",
    "sanity_check",
    "save_model",
    "show_progress",
    "steps_curve",
    "train",
    "transfer_attack",
    "verify",
    "worst_case",
    "wrap",
]


def __getattr__(name: str) -> object:
    package = _PACKAGES.get(name)
    if package is None:
        raise AttributeError(f"module 'saliency_lab' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"saliency_lab.{package}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACKAGES})
