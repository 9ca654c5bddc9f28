"""Guided back-propagation and deconvolution: the gradient with another rule at every ReLU."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from saliency_lab._common.settings import Settings
from saliency_lab.attribution.calls import ELEMENTWISE, RELU, Call, Rule, deliver, refuse, trace
from saliency_lab.attribution.catalogue import Explained, method
from saliency_lab.attribution.task import Task


class _GuidedReLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x > 0)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clamp_min(0) * ctx.saved_tensors[0]


class _DeconvolutionReLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clamp_min(0)


class _RectifierRule(Rule):
    def __init__(self, function: type[Function]) -> None:
        super().__init__()
        self.function, self.used = function, False

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func not in RELU:
            return func(*args, **kwargs)
        self.used = True
        return deliver(self.function.apply(args[0]), func, args, kwargs)


def rectified_gradient(task: Task, function: type[Function], method: str) -> Tensor:
    """The gradient of the score with `function` in the place of every ReLU.

    Raises
    ------
    InputError
        If the model calls no ReLU that can be seen: the map would be the plain gradient.
    """
    rule = _RectifierRule(function)
    gradient, _ = task.gradient(task.x, rule)
    if not rule.used:
        others = [(name, func) for name, func, _ in trace(task.model, task.x[:1]) if func in ELEMENTWISE]
        refuse(
            method,
            "changes the gradient at ReLUs, and this model has none that can be seen",
            others,
            "Its map would be the plain gradient; use 'saliency' (and an uncompiled, unscripted model).",
        )
    return gradient


@method(
    "guided_backprop",
    family="backpropagation",
    passes="1 forward, 1 backward",
    reference="Springenberg et al., ICLR workshop 2015",
)
def guided_backprop(task: Task, settings: Settings) -> Explained:
    """The gradient, where each ReLU also stops what is negative on the way back."""
    return rectified_gradient(task, _GuidedReLU, "guided_backprop"), None


@method(
    "deconvolution",
    family="backpropagation",
    passes="1 forward, 1 backward",
    reference="Zeiler & Fergus, ECCV 2014",
)
def deconvolution(task: Task, settings: Settings) -> Explained:
    """The gradient, where each ReLU stops what is negative on the way back, whatever its input was."""
    return rectified_gradient(task, _DeconvolutionReLU, "deconvolution"), None


def guided_gradient(task: Task) -> Tensor:
    """Guided back-propagation's map, for `guided_grad_cam`."""
    return rectified_gradient(task, _GuidedReLU, "guided_grad_cam")
