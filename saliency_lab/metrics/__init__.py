"""Score maps by name: one float64 per sample, from a fast engine and from Quantus."""

from saliency_lab.metrics import (  # noqa: F401 - registers the metrics
    axiomatic,
    comparison,
    complexity,
    confidence,
    curves,
    faithfulness,
    information,
    localisation,
    own,
    randomisation,
    road,
    robustness,
)
from saliency_lab.metrics.api import Scores, evaluate, evaluate_detailed, evaluate_many
from saliency_lab.metrics.catalogue import Curve, list_metrics
from saliency_lab.metrics.meta import meta_evaluate

__all__ = [
    "Curve",
    "Scores",
    "evaluate",
    "evaluate_detailed",
    "evaluate_many",
    "list_metrics",
    "meta_evaluate",
]
