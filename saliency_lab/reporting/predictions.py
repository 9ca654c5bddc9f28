"""The classes that the models of a study predict, with their probabilities."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from saliency_lab._common.checks import are_probabilities
from saliency_lab._common.inference import predict
from saliency_lab.study import Study


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted classes (N,) and their probabilities (N,)."""

    classes: list[int]
    probabilities: list[float]


def predict_classes(model: nn.Module, x: Tensor) -> Predictions:
    """Return the class that a model predicts for each image (N, C, H, W), and its probability.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> len(predict_classes(model, torch.rand(2, 1, 2, 2)).classes)
    2
    """
    outputs = predict(model, x).double()
    shares = outputs if are_probabilities(outputs) else outputs.softmax(1)
    probabilities, classes = shares.max(1)
    return Predictions(classes.tolist(), probabilities.tolist())


def read_predictions(study: Study, model: str) -> Predictions | None:
    """Return the predictions of a model's first seed, or None where its network is not there."""
    member = next(each for each in study.members if each.model == model)
    return None if member.module is None else predict_classes(member.module, study.x)


def name_of(study: Study, label: int) -> str:
    """Return the name of a class, or its number where it has none."""
    return study.classes[label] if label < len(study.classes) else str(label)
