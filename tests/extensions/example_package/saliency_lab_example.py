"""A small package that adds one object of each kind to saliency_lab."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

import saliency_lab as sl
from saliency_lab.training import Objective


@sl.register("method")
def blurred_gradient(model, x, classes, sigma: Annotated[float, Field(gt=0)] = 1.0):
    """Average the gradient over its neighbours."""
    x = x.detach().requires_grad_()
    (maps,) = torch.autograd.grad(model(x).gather(1, classes[:, None]).sum(), x)
    return F.avg_pool2d(maps, 3, 1, 1) * sigma


@sl.register("metric", "centre", better="higher")
def centre_mass(model, x, y, maps, border: Annotated[int, Field(ge=1)] = 4):
    """Return the share of the map's magnitude that is not near the border."""
    size = maps.abs().sum(1)
    return size[:, border:-border, border:-border].sum((1, 2)) / size.sum((1, 2))


@sl.register("attack")
def brighten(model, x, y, eps, share: Annotated[float, Field(gt=0, le=1)] = 1.0):
    """Add the whole radius to every pixel."""
    return (x + share * eps).clamp(0, 1)


@sl.register("objective", "squeeze")
class Squeeze(Objective):
    """CE(f(x), y) + λ·mean ‖z‖²."""

    weight: float = Field(0.01, ge=0)

    def terms(self, step):
        """Return the cross-entropy and the penalty on large logits."""
        z = step.logits(step.x)
        return {"clean": F.cross_entropy(z, step.y), "squeeze": self.weight * z.square().sum(1).mean()}


@sl.register("dataset", "few_digits")
def few_digits(val_fraction: float = 0.2, seed: int = 0) -> sl.ImageData:
    """The digits with a validation split of its own size."""
    return sl.load_dataset("digits", val_fraction=val_fraction, seed=seed)


@sl.register("model", "linear")
def linear(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """One linear layer on the pixels."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], num_classes)
    )
