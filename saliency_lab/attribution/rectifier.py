"""Guided back-propagation and deconvolution: the gradient with another rule at every ReLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from saliency_lab._common.calls import (
    ELEMENTWISE,
    PRODUCTS,
    RELU,
    Call,
    Rule,
    Traced,
    Ungraded,
    calls,
    check_visible,
    depending,
    is_in_place,
    out_of_place,
    refuse,
    tensors_in,
    trace,
    track_modules,
)
from saliency_lab._common.settings import Settings
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.catalogue import Explained, method


class _PositiveReLU(Function):
    """A ReLU that passes back positive gradients only; `guided`, only where its input was positive too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, guided: bool, in_place: bool) -> Tensor:
        output = x.clamp_min_(0) if in_place else x.clamp_min(0)
        if in_place:
            ctx.mark_dirty(x)
        ctx.guided = guided
        ctx.set_materialize_grads(False)  # so that a missing gradient stays None
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None]:
        if gradients[0] is None:
            return None, None, None
        if not ctx.guided:
            return gradients[0].clamp_min(0), None, None
        (output,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradients[0], output, 0).clamp_min_(0), None, None


_MAXIMUM = calls("maximum", "max", "fmax")
_MAY_RECTIFY = _MAXIMUM | calls("clamp", "clamp_min", "clip", "threshold", "leaky_relu", "hardtanh")
_GATES = PRODUCTS | calls("where", "masked_fill", "__setitem__", "index_put", "masked_scatter")
_PROBE = torch.tensor([-1e4, -1.0, -1e-4, 0.0, 1e-4, 1.0, 1e4], dtype=torch.float64)


def _is_relu(func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call is the ReLU of its first argument, however it is spelt, such as clamp(min=0)."""
    if func in RELU:
        return True
    if func not in _MAY_RECTIFY or len(depending(args, kwargs)) != 1:
        return False
    others = list(tensors_in([args[1:], kwargs]))
    if any(each.any() for each in others) or (func in _MAXIMUM and not others):  # the maximum of a dimension
        return False
    zero = torch.zeros((), dtype=_PROBE.dtype)
    rest = [zero if isinstance(each, Tensor) else each for each in args[1:]]
    named = {key: zero if isinstance(each, Tensor) else each for key, each in kwargs.items()}
    named.pop("inplace", None)
    return torch.equal(out_of_place(func)(_PROBE, *rest, **named), _PROBE.clamp_min(0))


class _RectifierRule(Rule):
    def __init__(self, *, guided: bool) -> None:
        super().__init__()
        self.guided, self.used = guided, False
        self.running: list[tuple[str, nn.Module]] = []
        self.ungraded = Ungraded()
        self.gated: list[Traced] = []  # calls of what may be a ReLU

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in _MAXIMUM and len(args) > 1 and isinstance(args[1], Tensor) and not args[0].requires_grad:
            args = (args[1], args[0], *args[2:])
        if (
            len(args)
            and isinstance(args[0], Tensor)
            and args[0].requires_grad
            and _is_relu(func, args, kwargs)
        ):
            self.used = True
            return _PositiveReLU.apply(args[0], self.guided, is_in_place(func, kwargs))
        output = func(*args, **kwargs)
        if self.ungraded.changes(func, args, kwargs, output) and func in _GATES:
            self.gated.append(Traced(*self.running[-1], func))
        return output


def rectified_gradient(batch: Batch, method: str, *, guided: bool) -> Tensor:
    """Compute the gradient of the score, of which each ReLU passes back the positive part only.

    Raises
    ------
    InputError
        If the model calls no ReLU that can be seen: the map would be the plain gradient.
    """
    check_visible(batch.model, method)
    rule = _RectifierRule(guided=guided)
    with track_modules(batch.model, rule.running):
        gradient, _ = batch.gradient(batch.x, rule, method)
    if rule.gated:
        refuse(
            method,
            "changes the gradient at ReLUs, and this model may have one that is written by a mask, such as "
            "x * (x > 0)",
            rule.gated,
            "Write it by relu, or use 'saliency'.",
        )
    if not rule.used:
        others = trace(batch.model, batch.x[:1], lambda func, *_: func in ELEMENTWISE)
        refuse(
            method,
            "changes the gradient at ReLUs, and this model has none that can be seen",
            others,
            "Its map would be the plain gradient; use 'saliency'.",
        )
    return gradient


@method(
    "guided_backprop",
    family="backpropagation",
    passes="1 forward, 1 backward",
    reference="Springenberg et al., ICLR workshop 2015",
)
def guided_backprop(batch: Batch, settings: Settings) -> Explained:
    """Compute the gradient, where each ReLU also sets negative gradients to zero."""
    return rectified_gradient(batch, "guided_backprop", guided=True), None


@method(
    "deconvolution",
    family="backpropagation",
    passes="1 forward, 1 backward",
    reference="Zeiler & Fergus, ECCV 2014",
)
def deconvolution(batch: Batch, settings: Settings) -> Explained:
    """Compute the gradient, where each ReLU sets negative gradients to zero, whatever its input was."""
    return rectified_gradient(batch, "deconvolution", guided=False), None


def guided_gradient(batch: Batch) -> Tensor:
    """Return guided back-propagation's map, for `guided_grad_cam`."""
    return rectified_gradient(batch, "guided_grad_cam", guided=True)
