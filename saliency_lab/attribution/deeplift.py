"""DeepLIFT's rescale rule: at every nonlinearity, differences from a baseline replace the derivative."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from saliency_lab._common.calls import (
    AVERAGE_POOL,
    CONTRACTIONS,
    DIVISIONS,
    ELEMENTWISE,
    MAX_POOL,
    PRODUCTS,
    RELU,
    SHAPES,
    Call,
    Rule,
    Traced,
    Ungraded,
    calls,
    check_visible,
    deliver,
    depending,
    out_of_place,
    refuse,
    softmax_dim,
    trace,
    track_modules,
    uses_batch_statistics,
)
from saliency_lab._common.errors import InputError
from saliency_lab._common.inference import float64_device, found_fault
from saliency_lab._common.settings import Settings
from saliency_lab._common.warn import warn
from saliency_lab.attribution.baseline import Baseline, Baselines, fitting, resolve_baseline
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.catalogue import Explained, method

LINEAR = (
    AVERAGE_POOL
    | SHAPES
    | calls(
        *("linear", "conv1d", "conv2d", "conv3d"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("batch_norm", "avg_pool1d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool3d", "sum"),
        *("add", "__radd__", "sub", "subtract", "rsub", "__rsub__", "neg", "negative", "interpolate"),
        *("upsample", "unfold", "fold", "index_select", "gather", "repeat", "tile"),
    )
)
ONE_TO_ONE = RELU | ELEMENTWISE
BY_CONSTANT = PRODUCTS | CONTRACTIONS
ADAPTIVE = calls("adaptive_max_pool2d")
SOFTMAX, LOG_SOFTMAX, LOG_SUM_EXP = calls("softmax"), calls("log_softmax"), calls("logsumexp")
EXPONENTIAL = SOFTMAX | LOG_SOFTMAX | LOG_SUM_EXP
_ROUNDING = 1e-2  # of the sizes that are summed, far above what rounding makes of them in float32
RECORDED = ONE_TO_ONE | MAX_POOL | EXPONENTIAL


def covers(func: Call, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor]) -> bool:
    """Return whether the multipliers pass this call: it is linear in `inputs`, or there is a rule for it."""
    if uses_batch_statistics(func, args, kwargs):
        return False
    if func in ONE_TO_ONE or func in DIVISIONS or func in EXPONENTIAL:
        return len(inputs) == 1 and inputs[0] is args[0]
    return func in LINEAR or func in MAX_POOL or (func in BY_CONSTANT and len(inputs) == 1)


class _RecordedRule(Rule):
    """Records the input of every nonlinearity on the baseline."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[tuple[Call, Tensor]] = []

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in RECORDED:
            self.inputs.append((func, torch.as_tensor(args[0]).clone()))  # it may be changed in place later
        return func(*args, **kwargs)


class _Rescale(Function):
    """Output of an elementwise function whose gradient is Δoutput / Δinput; `facts` are output and ratio."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, facts: tuple[Tensor, Tensor]) -> Tensor:
        output, ctx.ratio = facts
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.ratio.mul_(gradients[0]), None  # in place: the graph is run once


class _RescalePool(Function):
    """Output of max pooling; the change of each maximum is carried by where it is and where it was.

    `facts` are the output, and twice places and ratios: for the part that rose and for the part that fell.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, facts: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        output, *ctx.rest = facts
        ctx.shape = x.shape
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        places, rising, was, falling = ctx.rest
        spread = gradients[0].new_zeros(ctx.shape).flatten(2)
        for where, ratio in ((places, rising), (was, falling)):
            spread.scatter_add_(2, where.expand(ratio.shape).flatten(2), ratio.mul_(gradients[0]).flatten(2))
        return spread.view(ctx.shape), None


class _RescaleExponential(Function):
    """Softmax, its logarithm, or log Σ exp, by the rescale rule for each of its steps.

    `facts` are the output, the multipliers of log Σ exp, the ratio Δs / Δ log s (None where the output is no
    softmax), whether log Σ exp itself is the output, and along which dimension.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, facts: tuple[Any, ...]) -> Tensor:
        output, *ctx.rest = facts
        result: Tensor = output
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        multipliers, ratio, is_sum, dim = ctx.rest
        gradient = gradients[0]
        if is_sum:
            return gradient.reshape(multipliers.sum(dim, keepdim=True).shape) * multipliers, None
        inner = gradient if ratio is None else gradient * ratio
        return inner - multipliers * inner.sum(dim, keepdim=True), None


class _RowsDiffer(Exception):
    """The recorded run has other rows, as where the model folds the images of a batch into rows."""


class _Replay(Rule):
    """Runs the image, with multipliers from the recorded run of the baseline.

    Raises
    ------
    _RowsDiffer
        If an activation of the baseline, run as one image, does not fit those of the images.
    """

    def __init__(self, recorded: list[tuple[Call, Tensor]]) -> None:
        super().__init__()
        self.left: Iterator[tuple[Call, Tensor]] = iter(recorded)
        self.refused = False
        self.running: list[tuple[str, nn.Module]] = []
        self.ungraded = Ungraded()
        self.gated: list[Traced] = []  # calls of what depends on the image in two ways

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = self._call(func, args, kwargs)
        if self.ungraded.changes(func, args, kwargs, output):
            self.gated.append(Traced(*self.running[-1], func))
        return output

    def _call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        other = self._other(func) if func in RECORDED else None
        inputs = depending(args, kwargs)
        covered = covers(func, args, kwargs, inputs)
        if other is None or not inputs or not covered:
            output = func(*args, **kwargs)
            self.refused |= not covered and bool(depending(output))
            return output
        if other.ndim != args[0].ndim or any(
            size not in (1, wanted) for size, wanted in zip(other.shape, args[0].shape, strict=True)
        ):
            raise _RowsDiffer
        if func in MAX_POOL:
            return self._pool(func, args[0], other, args[1:], kwargs)
        if func in EXPONENTIAL:
            return self._exponential(func, args[0], other, args[1:], kwargs)
        x = args[0].detach()
        free = {key: value for key, value in kwargs.items() if key != "inplace"}
        plain = out_of_place(func)
        with torch.no_grad():
            output, start = plain(x, *args[1:], **free), plain(other, *args[1:], **free)
            if func in RELU:  # (x⁺ − o⁺) / (x − o) without the difference, so the derivative where x = o
                ratio = (output + start).div_(x.abs().add_(other.abs())).nan_to_num_(0.0)
            else:  # where changes cancel, 0/0, its limit: they still pass one by one
                ratio = (output - start).div_(x - other)
                ratio = torch.where(x == other, _derivative(plain, x, args[1:], free), ratio)
        return deliver(_Rescale.apply(args[0], (output, ratio)), func, args, kwargs)

    def _pool(
        self, func: Call, x: Tensor, other: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        pool = F.adaptive_max_pool2d if func in ADAPTIVE else F.max_pool2d
        with torch.no_grad():
            options = {**kwargs, "return_indices": True}
            output, places = pool(x.detach(), *args, **options)
            old, was = pool(other, *args, **options)
            change = output - old
            there = other.flatten(2).expand(len(x), -1, -1).gather(2, places.flatten(2)).view_as(output)
            before = x.flatten(2).gather(2, was.expand_as(output).flatten(2)).view_as(output)
            rising = change.clamp_min(0).div_(output - there).nan_to_num_(1.0)  # 0/0: the derivative,
            rising.masked_fill_(change < 0, 0.0)  # unless the maximum left another place and fell
            falling = change.clamp_max_(0).div_(before.sub_(old)).nan_to_num_(0.0)
        return _RescalePool.apply(x, (output, places, rising, was, falling))

    def _exponential(
        self, func: Call, x: Tensor, other: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Compute softmax, its logarithm or log Σ exp as exp, sum, logarithm and difference in turn."""
        dim = softmax_dim((x, *args), kwargs)
        with torch.no_grad():
            output = func(x.detach(), *args, **kwargs)
            multipliers = _log_sum_exp_multipliers(x.detach(), other, dim)
            ratio = _softmax_ratio(x.detach(), other, dim) if func in SOFTMAX else None
        facts = (output, multipliers, ratio, func in LOG_SUM_EXP, dim)
        result: Tensor = _RescaleExponential.apply(x, facts)
        return result

    def _other(self, func: Call) -> Tensor:
        recorded, other = next(self.left, (None, None))
        if recorded is not func or other is None:
            raise _other_calls()
        return other


def _other_calls() -> InputError:
    return InputError(
        "deep_lift compares a run on the image with a run on the baseline, and this model makes other calls "
        "in one than in the other (its forward depends on the values); use 'integrated_gradients'"
    )


def _double(x: Tensor) -> Tensor:
    return x.to(float64_device(x.device), torch.float64)


def _log_sum_exp_multipliers(x: Tensor, other: Tensor, dim: int) -> Tensor:
    """Δ log Σ exp / Δx by the rescale rule for exp and for log; their derivative where nothing changes."""
    a, b = _double(x), _double(other)
    shift = torch.maximum(a.amax(dim, keepdim=True), b.amax(dim, keepdim=True))
    change = a - b
    small = change.abs() < 1
    start = (b - shift).exp()
    slope = (start * change.expm1() / change).where(small, ((a - shift).exp() - start) / change)
    slope = slope.where(change != 0, start)
    rise = ((a - shift).exp() - start).sum(dim, keepdim=True)
    log_rise = a.logsumexp(dim, keepdim=True) - b.logsumexp(dim, keepdim=True)
    ratio = (log_rise / rise).where(rise != 0, 1 / start.sum(dim, keepdim=True))
    return (slope * ratio).to(x)


def _softmax_ratio(x: Tensor, other: Tensor, dim: int) -> Tensor:
    """Δs / Δ log s of the softmax s; s where nothing changes."""
    a, b = (_double(each).log_softmax(dim) for each in (x, other))
    change = a - b
    small = change.abs() < 1
    ratio = (b.exp() * change.expm1() / change).where(small, (a.exp() - b.exp()) / change)
    return ratio.where(change != 0, a.exp()).to(x)


def _derivative(func: Call, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the derivative of an elementwise function at `x`."""
    with torch.enable_grad():
        point = x.clone().requires_grad_(True)
        return torch.autograd.grad(func(point, *args, **kwargs).sum(), point)[0]


def rescale(batch: Batch, base: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Compute DeepLIFT's map for one baseline (n, C, H, W); a shared baseline runs as one image.

    Raises
    ------
    InputError
        Names the modules with operations that the rescale rule does not cover, such as attention.
    """
    check_visible(batch.model, method)
    try:
        try:
            replay, start, multipliers, scores = _run(batch, base, method)
        except _RowsDiffer:
            replay, start, multipliers, scores = _run(batch, base.contiguous(), method)
    except _RowsDiffer:
        raise _other_calls() from None
    if replay.refused:
        refuse(
            method,
            "covers linear layers, 2-D max pooling, softmax and elementwise nonlinearities only",
            trace(batch.model, batch.x[:1], lambda *call: not covers(*call)),
            "Use 'integrated_gradients' or 'gradient_shap' on this model.",
        )
    if replay.gated:
        refuse(
            method,
            "follows gradients, and this model combines an activation with a value that depends on the image "
            "without one, such as a mask x > 0 or what was detached",
            replay.gated,
            "Write it by a function that has a gradient, such as relu, or use 'integrated_gradients'.",
        )
    maps, gap = (batch.x - base) * multipliers, scores - start
    size = maps.abs().flatten(1).sum(1) + scores.abs() + start.abs()
    missing = int(((maps.flatten(1).sum(1) - gap).abs() > _ROUNDING * size).sum())
    if missing and found_fault(batch.model) != "random":
        warn(
            f"{method}: {missing} of {len(maps)} maps do not sum to f(x) − f(b), as they should: "
            f"{type(batch.model).__name__} computes something from the image that torch does not see, as by "
            "NumPy or item(); use 'integrated_gradients'",
        )
    return maps, gap


def _run(batch: Batch, base: Tensor, method: str) -> tuple[_Replay, Tensor, Tensor, Tensor]:
    """Run the baseline and then the images; return the second run, f(b), the multipliers and f(x)."""
    record = _RecordedRule()
    with record:
        start = batch.score(base)
    replay = _Replay(record.inputs)
    with track_modules(batch.model, replay.running):
        multipliers, scores = batch.gradient(batch.x, replay, method)
    return replay, start, multipliers, scores


class DeepLiftSettings(Settings):
    """`baseline` is the image that the input is compared with."""

    baseline: Baseline = "zero"


@method(
    "deep_lift",
    family="backpropagation",
    passes="2 forward (1 with a shared baseline), 1 backward",
    reference="Shrikumar et al., ICML 2017 (rescale rule)",
    settings=DeepLiftSettings,
)
def deep_lift(batch: Batch, settings: DeepLiftSettings) -> Explained:
    """Multiply x − b by the multipliers Δoutput / Δinput, chained as gradients are; sums to f(x) − f(b)."""
    return rescale(batch, resolve_baseline(settings.baseline, batch), "deep_lift")


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
def deep_lift_shap(batch: Batch, settings: DeepLiftShapSettings) -> Explained:
    """Average DeepLIFT's maps over a batch of baselines; sums to f(x) − mean f(b)."""
    maps, total = torch.zeros_like(batch.x), torch.zeros_like(batch.x[:, 0, 0, 0])
    for base in fitting(settings.baselines, batch):
        values, gap = rescale(batch, base.expand_as(batch.x), "deep_lift_shap")
        maps += values / len(settings.baselines)
        total += gap / len(settings.baselines)
    return maps, total
