"""Layer-wise relevance propagation: relevance goes back layer by layer, in proportion to contributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
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
    calls,
    check_functions,
    check_visible,
    deliver,
    depending,
    describe_module,
    refuse,
    trace,
    track_modules,
    uses_batch_statistics,
)
from saliency_lab._common.errors import InputError, unknown_name
from saliency_lab._common.settings import Settings
from saliency_lab.attribution.batch import Batch, slope
from saliency_lab.attribution.catalogue import Explained, method
from saliency_lab.attribution.deeplift import covers
from saliency_lab.attribution.fused_attention import FUSED

LayerRule = Literal[
    "epsilon", "gamma", "alpha1_beta0", "alpha2_beta1", "excitation", "flat", "w_square", "box"
]
Preset = Literal[
    "epsilon",
    "gamma",
    "alpha1_beta0",
    "epsilon_plus",
    "epsilon_plus_flat",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box",
    "excitation_backprop",
]


class Composite(NamedTuple):
    """Rules of convolutions, of linear layers, and of the first layer if it has another one."""

    convolution: LayerRule
    linear: LayerRule
    first: LayerRule | None = None


COMPOSITES: Mapping[Preset, Composite] = {
    "epsilon": Composite("epsilon", "epsilon"),
    "gamma": Composite("gamma", "epsilon"),
    "alpha1_beta0": Composite("alpha1_beta0", "alpha1_beta0"),
    "epsilon_plus": Composite("alpha1_beta0", "epsilon"),
    "epsilon_plus_flat": Composite("alpha1_beta0", "epsilon", "flat"),
    "epsilon_alpha2_beta1": Composite("alpha2_beta1", "epsilon"),
    "epsilon_alpha2_beta1_flat": Composite("alpha2_beta1", "epsilon", "flat"),
    "epsilon_gamma_box": Composite("gamma", "epsilon", "box"),
    "excitation_backprop": Composite("excitation", "excitation"),
}

Operation = Callable[[Tensor, Any], Tensor]
Terms = list[tuple[Tensor, Any]]

CONVOLUTION, LINEAR = calls("conv1d", "conv2d", "conv3d"), calls("linear")
MATRIX_PRODUCT = calls("matmul", "__matmul__", "bmm", "mm", "__rmatmul__")
SUM, DIFFERENCE, NEGATION = calls("add", "__radd__"), calls("sub", "subtract"), calls("neg", "negative")
ONE_BY_ONE = RELU | ELEMENTWISE | PRODUCTS | SUM | DIFFERENCE | NEGATION
PASSING = MAX_POOL | SHAPES
OTHER_LINEAR = (
    AVERAGE_POOL
    | CONTRACTIONS
    | calls(
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "avg_pool1d", "avg_pool3d", "sum"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool3d", "interpolate", "upsample", "unfold", "fold"),
        *("index_select", "repeat", "repeat_interleave", "tile"),
    )
)
SOFTMAX = calls("softmax")
NORMALISATION = calls("layer_norm", "group_norm", "rms_norm", "normalize")
BILINEAR = CONTRACTIONS | (PRODUCTS - DIVISIONS)
FROM_CONSTANT, MASKING = calls("rsub", "__rsub__"), calls("masked_fill")
TRANSFORMER = SOFTMAX | NORMALISATION | BILINEAR | FROM_CONSTANT | MASKING | FUSED.keys()
"""Calls that `attn_lrp` has rules for, and `lrp` has not."""


def stabilised(z: Tensor, epsilon: float) -> Tensor:
    """Z + ε·sign(z), with the sign of a zero as it is stored."""
    return torch.copysign(z.new_tensor(epsilon), z).add_(z)


def no_view(output: Tensor) -> Tensor:
    """Return what a custom function may return for the model to change in place: not a view."""
    return output.clone() if output._is_view() else output


@dataclass(frozen=True)
class Portion:
    """A quotient: `factor` · relevance / z, where z = `bias` + Σ op(input, weight) over `terms`."""

    terms: Terms
    bias: Tensor | float
    factor: Tensor | float = 1.0


Weights = Callable[[], Tensor]


def _signed(x: Tensor, positive: Weights, negative: Weights) -> Terms:
    """Return terms that weigh positive inputs by what `positive` returns, and negative ones by `negative`.

    Behind a ReLU no input is negative, and neither are inputs copied nor the other weights made.
    """
    if x.numel() and x.amin() < 0:
        return [(x.clamp_min(0), positive()), (x.clamp_max(0), negative())]
    return [(x, positive())]


class _Share(Function):
    """Output of a linear operation whose input gets relevance by its contributions.

    `facts` are the output, a function that returns the portions of the rule, the operation and ε.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, facts: tuple[Tensor, Callable[[], list[Portion]], Operation, float]
    ) -> Tensor:
        output, *ctx.rest = facts
        return no_view(output)

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, None]:
        portions, op, epsilon = ctx.rest
        shares = []
        for portion in portions():
            inputs = [part.detach().requires_grad_(True) for part, _ in portion.terms]
            with torch.enable_grad():
                parts = zip(inputs, portion.terms, strict=True)
                z = sum(op(part, weight) for part, (_, weight) in parts) + portion.bias
                ratio = relevance[0] * portion.factor / stabilised(z.detach(), epsilon)
                factors = torch.autograd.grad(z, inputs, ratio)
            shares += [part.detach() * factor for part, factor in zip(inputs, factors, strict=True)]
        return torch.stack(shares).sum(0) if len(shares) > 1 else shares[0], None


class _Split(Function):
    """Sum of two activations; each gets relevance by its part of the result."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.epsilon = epsilon
        return a + b

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b = ctx.saved_tensors
        ratio = relevance[0] / stabilised(a + b, ctx.epsilon)
        return (a * ratio).sum_to_size(a.shape), (b * ratio).sum_to_size(b.shape), None


class _Pass(Function):
    """Output of an elementwise operation that hands relevance back unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, output: list[Tensor]) -> Tensor:
        return output[0]

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, None]:
        return relevance[0], None


class _FirstInput(Rule):
    """Keeps the input of the first convolution or linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.input: Tensor | None = None

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.input is None and (func in CONVOLUTION or func in LINEAR) and args[0].requires_grad:
            self.input = args[0].detach().clone()
        return func(*args, **kwargs)


def input_box(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest input (1, …) of the first layer, for images in [0, 1].

    What precedes the layer, such as a normalisation, is run on a black and on a white image.
    """
    ends = []
    for value in (0.0, 1.0):
        watch = _FirstInput()
        with torch.enable_grad(), watch:
            batch.model(torch.full_like(batch.x[:1], value).requires_grad_(True) * 1.0)
        if watch.input is None:
            raise InputError(
                f"lrp's rule 'box' needs a convolution or a linear layer, and {type(batch.model).__name__} "
                "calls none; use the preset 'epsilon'"
            )
        ends.append(watch.input)
    return torch.minimum(*ends), torch.maximum(*ends)


class _Layer(NamedTuple):
    """The last layer that ran: its output and the version of that, its input and a copy of it, and its rule.

    The version changes with every operation in place, such as a ReLU between layer and normalisation.
    """

    output: Tensor
    version: int
    a: Tensor
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    op: Operation
    rule: LayerRule


class Propagation(Rule):
    """Computes what the model computes, with backward passes that hand back relevance.

    `running` are the modules that run at the moment (`track_modules`), for `rules` by module name; `box` is
    the range of the first layer's input, where its rule needs one.
    """

    def __init__(
        self,
        composite: Composite,
        *,
        epsilon: float,
        gamma: float,
        rules: Mapping[str, LayerRule],
        box: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.composite, self.epsilon, self.gamma = composite, epsilon, gamma
        self.rules, self.box = rules, box
        self.running: list[tuple[str, nn.Module]] = []
        self.applied: set[str] = set()
        self.refused: set[Call] = set()
        self.layer: _Layer | None = None
        self.first = True

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call by the rule for it; note the function where there is none."""
        tensors = depending(args, kwargs)
        if (func in CONVOLUTION or func in LINEAR) and len(tensors) == 1 and tensors[0] is args[0]:
            return self._parametric(func, *args, **kwargs)
        constant = not uses_batch_statistics(func, args, kwargs)
        if func is torch.batch_norm and len(args) == 9 and tensors and constant:
            x, weight, bias, mean, variance, *more, _ = args  # it takes the weights first
            return self._batch_norm(x, mean, variance, weight, bias, *more)
        if func is F.batch_norm and tensors and constant:
            return self._batch_norm(*args, **kwargs)
        if func in MATRIX_PRODUCT and len(tensors) == 1 and len(args) == 2:
            return self._matrix_product(func, *args)
        if func in OTHER_LINEAR and len(tensors) == 1 and any(each is tensors[0] for each in args):
            a = tensors[0]
            return self.share(a, lambda part: func(*(part if each is a else each for each in args), **kwargs))
        if func in SUM | DIFFERENCE and len(tensors) == 2:
            factor, second = kwargs.get("alpha", 1) * (-1 if func in DIFFERENCE else 1), args[1]
            if factor != 1:
                second = _Pass.apply(second, [factor * second.detach()])
            return deliver(self.split(args[0].clone(), second), func, args, kwargs)
        if len(tensors) == 1 and func in ONE_BY_ONE:
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

    def split(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a + b, each of which gets relevance by its part of the sum."""
        total: Tensor = _Split.apply(a, b, self.epsilon)
        return total

    def share(self, a: Tensor, op: Callable[[Tensor], Tensor]) -> Tensor:
        """op(a) of a linear or affine function, under the ε rule."""
        with torch.no_grad():
            output = op(a.detach())
        portion = Portion([(a.detach().clone(), None)], 0.0)
        share: Tensor = _Share.apply(a, (output, lambda: [portion], lambda part, _: op(part), self.epsilon))
        return share

    def _parametric(
        self, func: Call, a: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Compute a convolution or a linear layer by the rule for it."""
        output = func(a.detach(), weight, bias, *args, **kwargs)
        rule = self._rule(func in CONVOLUTION)
        op = lambda part, w: func(part, w, None, *args, **kwargs)  # noqa: E731
        x = a.detach().clone()
        shared = self._by_rule(a, x, output, weight, bias, op, rule)
        if func in CONVOLUTION or a.ndim == 2:  # channels are dimension 1, as batch normalisation takes them
            self.layer = _Layer(shared, shared._version, a, x, weight, bias, op, rule)
        return shared

    def _matrix_product(self, func: Call, left: Tensor, right: Tensor) -> Tensor:
        """Compute the product of an activation and constant weights: a linear layer written by hand."""
        a, weight = (left, right) if left.requires_grad else (right, left)
        op = func if a is left else lambda part, w: func(w, part)
        with torch.no_grad():
            output = func(left, right)
        return self._by_rule(a, a.detach().clone(), output, weight, None, op, self._rule(False))

    def _rule(self, convolution: bool) -> LayerRule:
        """Return the rule for the call that is made now: the innermost module's, or that of the composite."""
        first, self.first = self.first, False
        for name, _ in reversed(self.running):
            if name in self.rules:
                self.applied.add(name)
                rule = self.rules[name]
                if rule == "box" and not first:
                    raise InputError(
                        f"lrp: the rule 'box' is for the first layer, whose input is bounded, not for "
                        f"{describe_module(self.running)}; use 'gamma' or 'epsilon' there"
                    )
                return rule
        if first and self.composite.first is not None:
            return self.composite.first
        return self.composite.convolution if convolution else self.composite.linear

    def _by_rule(
        self,
        a: Tensor,
        x: Tensor,
        output: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        op: Operation,
        rule: LayerRule,
    ) -> Tensor:
        """Return `output`, which hands relevance back to `a` by `rule`; `x` is an unchanging copy of `a`."""
        b: Any = 0.0 if bias is None else bias.reshape(-1, *[1] * (weight.ndim - 2))
        signs = output.sign() if rule == "gamma" else None  # the model may change the output in place
        box = self._bounds(x) if rule == "box" else None
        # of a layer whose normalisation follows, the merged layer's portions alone are asked for
        portions = lambda: self._portions(x, weight, b, rule, signs, box)  # noqa: E731
        share: Tensor = _Share.apply(a, (output, portions, op, self.epsilon))
        return share

    def _portions(
        self,
        x: Tensor,
        weight: Tensor,
        b: Any,
        rule: LayerRule,
        signs: Tensor | None,
        box: tuple[Tensor, Tensor] | None,
    ) -> list[Portion]:
        """The portions of a rule; `signs` are those of the output, `box` bounds the input."""
        if rule == "flat":
            return [Portion([(torch.ones_like(x), torch.ones_like(weight))], 0.0)]
        if rule == "w_square":
            return [Portion([(torch.ones_like(x), weight**2)], b**2)]
        if rule == "epsilon":
            return [Portion([(x, weight)], b)]
        above: Weights = lambda: weight.clamp_min(0)  # noqa: E731
        below: Weights = lambda: weight.clamp_max(0)  # noqa: E731
        b_above, b_below = (b.clamp_min(0), b.clamp_max(0)) if isinstance(b, Tensor) else (0.0, 0.0)
        if rule == "box":
            assert box is not None
            return [Portion([(x, weight), (box[0], -above()), (box[1], -below())], 0.0)]
        if rule in ("alpha1_beta0", "excitation"):
            return [Portion(_signed(x, above, below), 0.0 if rule == "excitation" else b_above)]
        if rule == "alpha2_beta1":
            return [
                Portion(_signed(x, above, below), b_above, 2.0),
                Portion(_signed(x, below, above), b_below, -1.0),
            ]
        # gamma: positive outputs favour what is positive, negative ones what is negative
        assert signs is not None
        upwards: Weights = lambda: weight + self.gamma * above()  # noqa: E731
        downwards: Weights = lambda: weight + self.gamma * below()  # noqa: E731
        return [
            Portion(_signed(x, upwards, downwards), b + self.gamma * b_above, (signs > 0).to(x)),
            Portion(_signed(x, downwards, upwards), b + self.gamma * b_below, (signs < 0).to(x)),
        ]

    def _bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the box of the first layer's input `x`, one for each of its rows."""
        assert self.box is not None
        low, high = self.box
        slack = 1e-4 * (high - low).abs().max()
        if low.shape[1:] != x.shape[1:] or ((x < low - slack) | (x > high + slack)).any():
            raise InputError(
                "lrp's rule 'box' takes the range of the first layer's input from a black and a white image, "
                f"and {describe_module(self.running)} gets values outside of it; use "
                "'epsilon_plus_flat' or another preset"
            )
        return low.expand_as(x), high.expand_as(x)

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
        """Merged with the layer whose output it takes; alone, an affine layer under the ε rule."""
        output = F.batch_norm(x.detach(), mean, variance, weight, bias, training, momentum, eps)
        scale = (variance + eps).rsqrt() * (1.0 if weight is None else weight)
        shift = (0.0 if bias is None else bias) - mean * scale
        layer = self.layer
        if layer is not None and layer.output is x and layer.version == x._version:
            merged = shift + (0.0 if layer.bias is None else layer.bias * scale)
            kernel = layer.weight * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
            return self._by_rule(layer.a, layer.x, output, kernel, merged, layer.op, layer.rule)
        shape = (-1,) + (1,) * (x.ndim - 2)
        portion = Portion([(x.detach().clone(), scale.reshape(shape))], shift.reshape(shape))
        alone: Tensor = _Share.apply(x, (output, lambda: [portion], torch.mul, self.epsilon))
        return alone


def propagate(batch: Batch, rule: Propagation, method: str) -> tuple[Tensor, Tensor]:
    """Compute the relevance of each input value and the scores, by one pass each way under `rule`.

    Raises
    ------
    InputError
        Names the modules with operations that have no rule, and a method that has.
    """
    points = batch.x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        with track_modules(batch.model, rule.running), rule:
            logits = batch.model(points.clone())
        scores = batch.target.pick(logits)
        start = batch.target.pick(logits * logits.detach()).sum()  # its gradient is the logits' relevance
    check_functions(logits, batch.model, batch.x[:1], method)
    if rule.refused:
        beyond = trace(batch.model, batch.x[:1], lambda *call: not covers(*call))
        instead = "Use 'integrated_gradients' on this model."
        if not beyond:
            instead = "Use 'deep_lift' or a gradient."
        elif method == "lrp" and rule.refused <= TRANSFORMER:
            instead = "Use 'attn_lrp' or 'integrated_gradients' on this model."
        refuse(
            method,
            "has no rule for some of this model's operations",
            trace(batch.model, batch.x[:1], lambda func, *_: func in rule.refused),
            instead,
        )
    if unused := set(rule.rules) - rule.applied:
        name = min(unused)
        kind = type(batch.model.get_submodule(name)).__name__
        raise InputError(
            f"{method}: a rule is given for '{name}' ({kind}), in which no convolution or linear layer runs"
        )
    return slope(start, points, batch.model), scores.detach()


class LrpSettings(Settings):
    """`preset` chooses the rules, `rules` those of single modules by their names.

    `epsilon` stabilises every division; `gamma` is the γ of the rule of that name. A module's rule holds for
    every convolution and linear layer in it; the innermost module's rule counts.

    Presets: `epsilon`: the ε rule everywhere. `gamma`: generalised γ rule in convolutions, ε elsewhere.
    `alpha1_beta0`: positive contributions only. `epsilon_plus`: α1β0 in convolutions, ε in linear layers.
    `epsilon_alpha2_beta1`: α2β1 in convolutions, ε in linear layers. `…_flat`: the same, and the first layer
    spreads relevance evenly over what it sees. `epsilon_gamma_box`: `gamma`, and the box rule for images in
    [0, 1] in the first layer. `excitation_backprop`: positive contributions without biases.
    """

    preset: Preset = "epsilon_plus"
    epsilon: float = Field(1e-6, gt=0)
    gamma: float = Field(0.25, ge=0)
    rules: dict[str, LayerRule] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_gamma(self) -> Self:
        used = {*COMPOSITES[self.preset], *self.rules.values()}
        if self.gamma != type(self).model_fields["gamma"].default and "gamma" not in used:
            raise ValueError(
                f"gamma={self.gamma:g} is the γ of the rule 'gamma', which neither preset='{self.preset}' "
                "nor the given rules have; use preset='gamma' or 'epsilon_gamma_box', or leave it out"
            )
        return self


@method(
    "lrp",
    family="backpropagation",
    passes="about 1 forward, 2 backward",
    reference="Bach et al., PLOS ONE 2015; Montavon et al., 2019 (presets)",
    settings=LrpSettings,
)
def lrp(batch: Batch, settings: LrpSettings) -> Explained:
    """Compute the relevance of each input value; sums to the score minus what biases absorb.

    Raises
    ------
    InputError
        Names the modules with operations that have no rule, such as attention.
    """
    check_visible(batch.model, "lrp")
    modules = dict(batch.model.named_modules())
    for name in settings.rules:
        if name not in modules:
            raise unknown_name("layer", name, filter(None, modules))
    composite = COMPOSITES[settings.preset]
    boxed = composite.first == "box" or "box" in settings.rules.values()
    rule = Propagation(
        composite,
        epsilon=settings.epsilon,
        gamma=settings.gamma,
        rules=settings.rules,
        box=input_box(batch) if boxed else None,
    )
    return propagate(batch, rule, "lrp")
