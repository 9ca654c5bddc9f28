"""DeepLIFT's rescale rule: at every nonlinearity, differences from a baseline take the derivative's place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from saliency_lab._common.errors import InputError
from saliency_lab._common.settings import Settings
from saliency_lab.attribution.baseline import Baseline, Baselines, fitting, resolve_baseline
from saliency_lab.attribution.calls import (
    ELEMENTWISE,
    MAX_POOL,
    RELU,
    Call,
    Rule,
    deliver,
    interacts,
    refuse,
    trace,
)
from saliency_lab.attribution.catalogue import Explained, method
from saliency_lab.attribution.task import Task

_NEAR = 1e-10  # below this difference of inputs the derivative takes over, as in Captum


class _Record(Rule):
    """Notes what goes into every nonlinearity on the baseline."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[tuple[Call, Tensor]] = []

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in RELU or func in ELEMENTWISE or func in MAX_POOL:
            self.inputs.append((func, args[0].clone()))  # it may be changed in place later
        return func(*args, **kwargs)


class _Rescale(Function):
    """Output of an elementwise function whose gradient is Δoutput / Δinput; `facts` are output and ratio."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, facts: tuple[Tensor, Tensor]) -> Tensor:
        output, ratio = facts
        ctx.save_for_backward(ratio)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.saved_tensors[0], None


class _RescalePool(Function):
    """Output of max pooling; the change of each maximum is carried by where it is and where it was.

    `facts` are the image's output and the places of its maxima, and the baseline's input, output, places.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, facts: tuple[Tensor, ...]) -> Tensor:
        output, places, other, old, was = facts
        ctx.save_for_backward(x - other, output - old, (output - old).clamp_min(0), places, was)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        difference, change, rise, places, was = ctx.saved_tensors
        spread, plain = torch.zeros_like(difference).flatten(2), torch.zeros_like(difference).flatten(2)
        for share, where in ((rise, places), (change - rise, was.expand(change.shape))):
            spread.scatter_add_(2, where.flatten(2), (gradients[0] * share).flatten(2))
        plain.scatter_add_(2, places.flatten(2), gradients[0].flatten(2))
        ratio = torch.where(difference.flatten(2).abs() < _NEAR, plain, spread / difference.flatten(2))
        return ratio.view_as(difference), None


class _Replay(Rule):
    """Runs the image against the recorded baseline."""

    def __init__(self, recorded: list[tuple[Call, Tensor]]) -> None:
        super().__init__()
        self.left: Iterator[tuple[Call, Tensor]] = iter(recorded)
        self.refused = False

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if interacts(func, args):
            self.refused = True
        if func in MAX_POOL:
            return self._pool(args[0], self._other(func), args[1:], kwargs)
        if func not in RELU and func not in ELEMENTWISE:
            return func(*args, **kwargs)
        if not args[0].requires_grad:
            self._other(func)
            return func(*args, **kwargs)
        x, other = args[0].detach(), self._other(func)
        free = {key: value for key, value in kwargs.items() if key != "inplace"}
        plain = _out_of_place(func)
        with torch.no_grad():
            output, old = plain(x, *args[1:], **free), plain(other, *args[1:], **free)
            difference = x - other
            ratio = (output - old) / difference
        near = difference.abs() < _NEAR
        if func in RELU:
            slope: Tensor = (x > 0).to(x.dtype)
        else:
            with torch.enable_grad():
                point = x.clone().requires_grad_(True)
                (slope,) = torch.autograd.grad(plain(point, *args[1:], **free).sum(), point)
        result = _Rescale.apply(args[0], (output, torch.where(near, slope, ratio)))
        return deliver(result, func, args, kwargs)

    def _pool(self, x: Tensor, other: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        output, places = F.max_pool2d(x.detach(), *args, **{**kwargs, "return_indices": True})
        old, was = F.max_pool2d(other, *args, **{**kwargs, "return_indices": True})
        return _RescalePool.apply(x, (output, places, other, old, was))

    def _other(self, func: Call) -> Tensor:
        recorded, other = next(self.left, (None, None))
        if recorded is not func or other is None:
            raise InputError(
                "deep_lift runs the image beside the baseline, and this model computes them differently "
                "(its forward depends on the values); use 'integrated_gradients'"
            )
        return other


def _out_of_place(func: Call) -> Call:
    """The same function without the trailing underscore."""
    name = func.__name__
    if not name.endswith("_") or name.endswith("__"):
        return func
    return next(getattr(place, name[:-1]) for place in (torch, F, Tensor) if hasattr(place, name[:-1]))


def rescale(task: Task, base: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """DeepLIFT's map against one baseline (n, C, H, W); a baseline all images share runs as one image.

    Raises
    ------
    InputError
        Names the modules that multiply, normalise or attend, which the rescale rule does not cover.
    """
    record = _Record()
    with record:
        start = task.score(base)
    replay = _Replay(record.inputs)
    multipliers, scores = task.gradient(task.x, replay)
    if replay.refused:
        culprits = [(name, func) for name, func, mixes in trace(task.model, task.x[:1]) if mixes]
        refuse(
            method,
            "covers linear layers, max pooling and elementwise nonlinearities only",
            culprits,
            "Use 'integrated_gradients' or 'gradient_shap' on this model.",
        )
    return (task.x - base) * multipliers, scores - start


class DeepLiftSettings(Settings):
    """`baseline` is what the image is compared with."""

    baseline: Baseline = "zero"


@method(
    "deep_lift",
    family="backpropagation",
    passes="2 forward (1 with a shared baseline), 1 backward",
    reference="Shrikumar et al., ICML 2017 (rescale rule)",
    settings=DeepLiftSettings,
)
def deep_lift(task: Task, settings: DeepLiftSettings) -> Explained:
    """(x − b) times the multipliers Δoutput / Δinput, chained back to the image; sums to f(x) − f(b)."""
    return rescale(task, resolve_baseline(settings.baseline, task), "deep_lift")


class DeepLiftShapSettings(Settings):
    """`baselines` (B, C, H, W), such as a batch of training images; the map is the mean over them."""

    baselines: Baselines


@method(
    "deep_lift_shap",
    family="backpropagation",
    passes="B × (1 forward, 1 backward)",
    reference="Lundberg & Lee, NeurIPS 2017",
    settings=DeepLiftShapSettings,
)
def deep_lift_shap(task: Task, settings: DeepLiftShapSettings) -> Explained:
    """Mean of DeepLIFT's maps over a batch of baselines; sums to f(x) − mean f(b)."""
    maps, total = torch.zeros_like(task.x), torch.zeros_like(task.x[:, 0, 0, 0])
    for base in fitting(settings.baselines, task):
        values, gap = rescale(task, base.expand_as(task.x), "deep_lift_shap")
        maps += values / len(settings.baselines)
        total += gap / len(settings.baselines)
    return maps, total
