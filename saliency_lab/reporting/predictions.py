"""The classes that the models of a study predict, with their probabilities."""

from __future__ import annotations

from saliency_lab._common.inference import Predictions, predict_classes
from saliency_lab.study import Study


def read_predictions(study: Study, model: str) -> Predictions | None:
    """Return the predictions of a model's first seed, or None where its network is not there."""
    member = next(each for each in study.members if each.model == model)
    return None if member.module is None else predict_classes(member.module, study.x)


def name_of(study: Study, label: int) -> str:
    """Return the name of a class, or its number where it has none."""
    return study.classes[label] if label < len(study.classes) else str(label)
