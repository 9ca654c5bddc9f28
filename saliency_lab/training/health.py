"""Validation after an epoch, and the signs that a run failed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lab._common.errors import TrainingError
from saliency_lab._common.inference import chunk_rows, device_of, predict, undisturbed
from saliency_lab.attacks import attack
from saliency_lab.training.recipe import Recipe

CONSTANT_SHARE = 0.99
RIGHT_SHARE = 0.9
ZERO_GRADIENT_SHARE = 0.5
_SMALLER = 'lower optimizer.learning_rate or attack.eps, or set training.precision = "32-true"'


@dataclass(frozen=True)
class Validation:
    """Measured on the validation images after an epoch."""

    clean: float
    """Accuracy on x."""
    robust: float
    """Accuracy after PGD at the recipe's ε and the validation's steps."""
    constant_share: float
    """Share of the most frequent predicted class."""
    zero_gradient_share: float
    """Share of the images whose cross-entropy has an input gradient of exactly 0."""

    @property
    def collapsed(self) -> bool:
        """Whether the network collapsed to a constant prediction."""
        return predicts_one_class(self.constant_share, self.clean)

    def concerns(self) -> list[str]:
        """Return warnings about the run, each with the recipe key to change."""
        if self.zero_gradient_share <= ZERO_GRADIENT_SHARE:
            return []
        return [
            f"the input gradient is exactly 0 for {self.zero_gradient_share:.0%} of the validation "
            "images (the softmax is saturated), so gradient attacks fail there and the robust "
            "accuracy is too high: lower training.epochs or raise optimizer.weight_decay, and audit it"
        ]


def predicts_one_class(share: float, accuracy: float) -> bool:
    """Say whether a `share` of at least 99 % of the predictions is one class, and fewer than 90 % are right.

    Where more are right, nearly all labels are that class.
    """
    return share >= CONSTANT_SHARE and accuracy < RIGHT_SHARE


def collapse_message(validation: Validation, recipe: Recipe, *, attacked: bool) -> str:
    """Return a message about a constant prediction; `attacked` says whether the objective uses ε."""
    return (
        f"the model predicts one class for {validation.constant_share:.0%} of the validation images "
        f"(clean accuracy {validation.clean:.1%}): it collapsed to a constant; "
        f"{collapse_cure(recipe, attacked=attacked)}"
    )


def collapse_cure(recipe: Recipe, *, attacked: bool) -> str:
    """Return the recipe keys to change so that predictions do not become one class."""
    if not attacked or recipe.attack.eps == 0:
        return "lower optimizer.learning_rate, or train for more training.epochs"
    if recipe.attack.warmup == 0:
        return "set attack.warmup = 0.2, so that ε rises gradually, or lower attack.eps"
    return "lower optimizer.learning_rate, raise attack.warmup, or train for more training.epochs"


def validate(net: nn.Module, x: Tensor, y: Tensor, recipe: Recipe) -> Validation:
    """Measure `net` on validation images (N, C, H, W) in [0, 1] and their labels.

    Raises
    ------
    TrainingError
        If its logits are not finite.
    """
    logits = predict(net, x)
    if not torch.isfinite(logits).all():
        raise TrainingError(f"recipe '{recipe.name}': the model's logits became NaN or infinite; {_SMALLER}")
    predictions = logits.argmax(1)
    outcome = attack(
        net,
        x,
        y,
        "pgd",
        eps=recipe.attack.eps,
        norm=recipe.attack.norm,
        steps=recipe.validation.steps,
        seed=recipe.seed,
    )
    return Validation(
        clean=(predictions == y).double().mean().item(),
        robust=outcome.robust_accuracy,
        constant_share=(predictions.bincount().max() / len(y)).item(),
        zero_gradient_share=_zero_gradient_share(net, x, y),
    )


def _zero_gradient_share(net: nn.Module, x: Tensor, y: Tensor) -> float:
    device = device_of(net)
    size, zeros = chunk_rows(x.shape, device), 0
    with undisturbed(net):
        for images, labels in zip(x.split(size), y.split(size), strict=True):
            images = images.to(device).requires_grad_()
            loss = F.cross_entropy(net(images), labels.to(device), reduction="sum")
            gradient = None
            if loss.requires_grad:
                gradient = torch.autograd.grad(loss, images, allow_unused=True)[0]
            some = torch.zeros_like(images) if gradient is None else gradient
            zeros += int((some.flatten(1).abs().amax(1) == 0).sum())
    return zeros / len(x)


def check_finite(sums: dict[str, float], epoch: int) -> None:
    """Check that the loss is finite, before the state is saved.

    Raises
    ------
    TrainingError
        If a term is NaN or infinite.
    """
    for term, value in sums.items():
        if not math.isfinite(value):
            raise TrainingError(f"the loss term '{term}' became {value} in epoch {epoch + 1}; {_SMALLER}")
