"""Layer-wise relevance propagation: the score is handed back layer by layer, by contributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.autograd import Function

from saliency_lab._common.settings import Settings
from saliency_lab.attribution.batch import Batch, slope
from saliency_lab.attribution.calls import (
    AVERAGE_POOL,
    ELEMENTWISE,
    MAX_POOL,
    PRODUCTS,
    RELU,
    SHAPES,
    Call,
    Rule,
    calls,
    check_visible,
    deliver,
    depending,
    refuse,
    trace,
)
from saliency_lab.attribution.catalogue import Explained, method
from saliency_lab.attribution.deeplift import covers

Preset = Literal["epsilon", "gamma", "alpha1_beta0", "epsilon_plus", "epsilon_plus_flat"]
Kind = Literal["epsilon", "gamma", "positive", "flat"]
Operation = Callable[[Tensor, Any], Tensor]
Terms = list[tuple[Tensor, Any]]

CONVOLUTION, LINEAR, BATCH_NORM = calls("conv2d"), calls("linear"), calls("batch_norm")
SUM, DIFFERENCE = calls("add", "__radd__"), calls("sub", "subtract")
PASSING = MAX_POOL | SHAPES


def _stabilised(z: Tensor, epsilon: float) -> Tensor:
    return z + epsilon * torch.where(z < 0, -1.0, 1.0)


def _halves(a: Tensor, weight: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Parts of the input and the weights that make its positive contributions."""
    parts = [(a.clamp_min(0), weight.clamp_min(0))]
    if (a < 0).any():
        parts.append((a.clamp_max(0), weight.clamp_max(0)))
    return parts


class _Share(Function):
    """Output of a linear operation whose input gets relevance by its contributions to z.

    `facts` are the output; pairs (input, weight) whose images under the operation add up, with the
    bias, to z; the bias; the operation; and ε.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, facts: tuple[Tensor, Terms, Any, Operation, float]) -> Tensor:
        output, *ctx.rest = facts
        return output

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, None]:
        terms, bias, op, epsilon = ctx.rest
        inputs = [part.detach().requires_grad_(True) for part, _ in terms]
        with torch.enable_grad():
            z = sum(op(part, weight) for part, (_, weight) in zip(inputs, terms, strict=True)) + bias
            factors = torch.autograd.grad(z, inputs, relevance[0] / _stabilised(z.detach(), epsilon))
        shares = [part.detach() * factor for part, factor in zip(inputs, factors, strict=True)]
        return torch.stack(shares).sum(0) if len(shares) > 1 else shares[0], None


class _Split(Function):
    """Sum (or difference) of two activations; each gets relevance by its part of the result."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.epsilon = epsilon
        return a + b

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b = ctx.saved_tensors
        ratio = relevance[0] / _stabilised(a + b, ctx.epsilon)
        return (a * ratio).sum_to_size(a.shape), (b * ratio).sum_to_size(b.shape), None


class _Pass(Function):
    """Output of an elementwise operation that hands relevance back unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, output: list[Tensor]) -> Tensor:
        return output[0]

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, None]:
        return relevance[0], None


class _Propagation(Rule):
    """Computes what the model computes, with backward passes that hand back relevance."""

    def __init__(self, settings: LrpSettings) -> None:
        super().__init__()
        self.settings = settings
        self.refused: set[Call] = set()
        self.convolution: tuple[Tensor, Tensor, Tensor, Tensor | None, Operation, Kind] | None = None
        self.first = True

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = depending(args, kwargs)
        if func in CONVOLUTION or func in LINEAR:
            return self._parametric(func, *args, **kwargs)
        if func in BATCH_NORM and tensors:
            return self._batch_norm(*args, **kwargs)
        if func in AVERAGE_POOL and tensors:
            a = args[0]
            output = func(a.detach(), *args[1:], **kwargs)
            terms = [(a.detach(), None)]
            op = lambda part, _: func(part, *args[1:], **kwargs)  # noqa: E731
            return _Share.apply(a, (output, terms, 0.0, op, self.settings.epsilon))
        if func in SUM | DIFFERENCE and len(tensors) == 2:
            factor, second = kwargs.get("alpha", 1) * (-1 if func in DIFFERENCE else 1), args[1]
            if factor != 1:
                second = _Pass.apply(second, [factor * second.detach()])
            return deliver(_Split.apply(args[0].clone(), second, self.settings.epsilon), func, args, kwargs)
        elementwise = func in RELU or func in ELEMENTWISE or func in PRODUCTS or func in SUM | DIFFERENCE
        if elementwise and len(tensors) == 1:
            free = {key: value for key, value in kwargs.items() if key != "inplace"}
            output = func(
                *(each.detach().clone() if isinstance(each, Tensor) else each for each in args), **free
            )
            if output.shape == tensors[0].shape:
                return deliver(_Pass.apply(tensors[0].clone(), [output]), func, args, kwargs)
        output = func(*args, **kwargs)
        if func not in PASSING and depending(output):
            self.refused.add(func)
        return output

    def _parametric(
        self, func: Call, a: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """A convolution or a linear layer, by the preset's rule for it."""
        output = func(a.detach(), weight, bias, *args, **kwargs)
        if not a.requires_grad:
            return output
        kind = self._kind(func in CONVOLUTION)
        self.first = False
        op = lambda part, w: func(part, w, None, *args, **kwargs)  # noqa: E731
        shared = self._share(a, output, weight, bias, op, kind)
        self.convolution = (shared, a, weight, bias, op, kind) if func in CONVOLUTION else None
        return shared

    def _kind(self, convolution: bool) -> Kind:
        preset = self.settings.preset
        if preset == "epsilon_plus_flat" and self.first:
            return "flat"
        if preset == "alpha1_beta0" or (preset.startswith("epsilon_plus") and convolution):
            return "positive"
        return "gamma" if preset == "gamma" and convolution else "epsilon"

    def _share(
        self, a: Tensor, output: Tensor, weight: Tensor, bias: Tensor | None, op: Operation, kind: Kind
    ) -> Tensor:
        """`output`, handing relevance back by the rule `kind`."""
        x, gamma = a.detach().clone(), self.settings.gamma
        offset = weight.new_zeros(len(weight)) if bias is None else bias
        terms = [(x, weight)]
        if kind == "flat":
            terms, offset = [(torch.ones_like(x), torch.ones_like(weight))], torch.zeros_like(offset)
        elif kind == "positive":
            terms, offset = _halves(x, weight), offset.clamp_min(0)
        elif kind == "gamma":
            terms = [(x, weight + gamma * weight.clamp_min(0))]
            offset = offset + gamma * offset.clamp_min(0)
        offset = offset.reshape(-1, 1, 1) if weight.ndim == 4 else offset
        share: Tensor = _Share.apply(a, (output, terms, offset, op, self.settings.epsilon))
        return share

    def _batch_norm(
        self,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Merged with the convolution whose output it takes; alone, an affine layer under the ε rule."""
        output = F.batch_norm(x.detach(), mean, variance, weight, bias, training, momentum, eps)
        scale = (variance + eps).rsqrt() * (1.0 if weight is None else weight)
        shift = (0.0 if bias is None else bias) - mean * scale
        if self.convolution is not None and self.convolution[0] is x:
            _, a, kernel, offset, op, kind = self.convolution
            bias = shift + (0.0 if offset is None else offset * scale)
            return self._share(a, output, kernel * scale.reshape(-1, 1, 1, 1), bias, op, kind)
        shape = (-1,) + (1,) * (x.ndim - 2)
        terms = [(x.detach().clone(), scale.reshape(shape))]
        alone: Tensor = _Share.apply(
            x, (output, terms, shift.reshape(shape), torch.mul, self.settings.epsilon)
        )
        return alone


class LrpSettings(Settings):
    """`preset` chooses the rules; ε stabilises every division, γ weighs positive weights in `gamma`.

    `epsilon`: the ε rule everywhere. `gamma`: γ rule in convolutions, ε in linear layers. `alpha1_beta0`:
    positive contributions only. `epsilon_plus`: α1β0 in convolutions, ε in linear layers.
    `epsilon_plus_flat`: the same, and the first layer spreads relevance evenly over what it sees.
    """

    preset: Preset = "epsilon_plus"
    epsilon: float = Field(1e-6, gt=0)
    gamma: float = Field(0.25, ge=0)


@method(
    "lrp",
    family="backpropagation",
    passes="about 1 forward, 2 backward",
    reference="Bach et al., PLOS ONE 2015; Montavon et al., 2019 (presets)",
    settings=LrpSettings,
)
def lrp(batch: Batch, settings: LrpSettings) -> Explained:
    """Relevance of each input value; sums to the score, less what biases absorb.

    Raises
    ------
    InputError
        Names the modules with operations that have no rule, such as attention.
    """
    check_visible(batch.model, "lrp")
    rule = _Propagation(settings)
    points = batch.x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        with rule:
            logits = batch.model(points.clone())
        scores = batch.target.pick(logits)
        start = batch.target.pick(logits * logits.detach()).sum()  # its gradient is the logits' relevance
    if rule.refused:
        beyond = trace(batch.model, batch.x[:1], lambda *call: not covers(*call))
        refuse(
            "lrp",
            "has no rule for some of this model's operations",
            trace(batch.model, batch.x[:1], lambda func, *_: func in rule.refused),
            "Use 'integrated_gradients' on this model." if beyond else "Use 'deep_lift' or a gradient.",
        )
    return slope(start, points, batch.model), scores.detach()
