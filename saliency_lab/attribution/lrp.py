"""Layer-wise relevance propagation: relevance goes back layer by layer, in proportion to contributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.weak import WeakIdKeyDictionary

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
    is_in_place,
    out_of_place,
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
TRANSPOSED = calls("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
PRODUCT_FROM_LEFT, PRODUCT_AND_SUM = calls("__rmatmul__"), calls("addmm", "baddbmm")
EINSUM, TENSORDOT = calls("einsum"), calls("tensordot")
SUM, DIFFERENCE, NEGATION = calls("add", "__radd__"), calls("sub", "subtract"), calls("neg", "negative")
FROM_CONSTANT = calls("rsub", "__rsub__")
ADDITION = SUM | DIFFERENCE | FROM_CONSTANT
ONE_BY_ONE = RELU | ELEMENTWISE | PRODUCTS | ADDITION | NEGATION
CLONE = calls("clone", "contiguous")
PASSING = MAX_POOL | SHAPES
OTHER_LINEAR = (
    AVERAGE_POOL
    | TRANSPOSED
    | CONTRACTIONS
    | calls(
        *("avg_pool1d", "avg_pool3d", "sum"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool3d", "interpolate", "upsample", "unfold", "fold"),
        *("index_select", "repeat", "repeat_interleave", "tile"),
    )
)
SOFTMAX = calls("softmax")
NORMALISATION = calls("layer_norm", "group_norm", "rms_norm", "normalize")
BILINEAR = CONTRACTIONS | (PRODUCTS - DIVISIONS)
MASKING = calls("masked_fill")
TRANSFORMER = SOFTMAX | NORMALISATION | BILINEAR | MASKING | FUSED.keys()
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


class LinearCall(NamedTuple):
    """A call that is linear in one activation, and whose weights are constant: op(a, weight) + bias.

    `channels` is the dimension of the output to which `scaled` may bring a factor per channel: it returns the
    weight (first argument) of a layer whose output is multiplied by the factors (second argument). None where
    the weights have no such dimension.
    """

    a: Tensor
    weight: Tensor
    bias: Tensor | float
    op: Operation
    convolution: bool = False
    channels: int = -1
    scaled: Callable[[Tensor, Tensor], Tensor] | None = None


def linear_call(func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LinearCall | None:
    """Read a call of a convolution, a linear layer or a product with a constant matrix; None for others."""
    tensors = depending(args, kwargs)
    if len(tensors) != 1 or is_in_place(func, kwargs):
        return None
    if func in CONVOLUTION or func in TRANSPOSED or func in LINEAR:
        return _read_layer(func, *args, **kwargs) if args[0] is tensors[0] else None
    if func in CONTRACTIONS:
        return _read_product(func, args, kwargs, tensors[0])
    return None


def _read_layer(
    func: Call, a: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> LinearCall:
    trailing = [1] * (weight.ndim - 2)
    b: Tensor | float = 0.0 if bias is None else bias.reshape(-1, *trailing)

    def scaled(kernel: Tensor, factors: Tensor) -> Tensor:
        if func not in TRANSPOSED:
            return kernel * factors.reshape(-1, 1, *trailing)
        per_group = factors.reshape(-1, kernel.shape[1])  # kernel: (inputs, outputs of a group, …)
        return kernel * per_group.repeat_interleave(len(kernel) // len(per_group), 0).reshape(
            *kernel.shape[:2], *trailing
        )

    return LinearCall(
        a,
        weight,
        b,
        lambda part, kernel: func(part, kernel, None, *args, **kwargs),
        convolution=func not in LINEAR,
        channels=-(weight.ndim - 1),
        scaled=scaled,
    )


def _read_product(func: Call, args: tuple[Any, ...], kwargs: dict[str, Any], a: Tensor) -> LinearCall | None:
    """Read a product of two matrices or tensors, of which `a` is one; None for more of them."""
    bias: Any = 0.0
    product: Callable[[Any, Any], Tensor] = lambda left, right: func(left, right, *args[2:], **kwargs)  # noqa: E731
    operands: Sequence[Any] = args[:2]
    if func in EINSUM:
        equation, *operands = args
        if len(operands) == 1 and isinstance(operands[0], list | tuple):
            operands = operands[0]
        product = lambda left, right: torch.einsum(equation, left, right)  # noqa: E731
    elif func in PRODUCT_AND_SUM:
        bias, *operands = args
        factor, bias = kwargs.get("alpha", 1), bias * kwargs.get("beta", 1)
        product = lambda left, right: factor * torch.matmul(left, right)  # noqa: E731
    elif func in PRODUCT_FROM_LEFT:
        operands = args[1], args[0]
        product = torch.matmul
    if len(operands) != 2 or not any(each is a for each in operands):
        return None
    left, right = operands
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return None
    if right is a:
        return LinearCall(a, left, bias, lambda part, weight: product(weight, part))
    columns = func in CONTRACTIONS - EINSUM - TENSORDOT and right.ndim > 1
    scaled = (lambda weight, factors: weight * factors) if columns else None
    return LinearCall(a, right, bias, product, scaled=scaled)


class _FirstInput(Rule):
    """Keeps the input of the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.input: Tensor | None = None

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.input is None and (layer := linear_call(func, args, kwargs)) is not None:
            self.input = layer.a.detach().clone()
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
    """A layer that ran: its call, an unchanging copy of its input, its rule, and the version of its output.

    The version changes with every operation in place, such as a ReLU between layer and normalisation.
    """

    call: LinearCall
    x: Tensor
    rule: LayerRule
    version: int = 0


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
        self.layers = WeakIdKeyDictionary()  # the layers, by the outputs that the model still has
        self.first = True

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call by the rule for it; note the function where there is none."""
        tensors = depending(args, kwargs)
        layer = linear_call(func, args, kwargs)
        if layer is not None:
            with torch.no_grad():
                output = func(*args, **kwargs)
            rule = self._rule(layer.convolution)
            return self._by_rule(_Layer(layer, layer.a.detach().clone(), rule), output)
        constant = not uses_batch_statistics(func, args, kwargs)
        if func is torch.batch_norm and len(args) == 9 and tensors and constant:
            x, weight, bias, mean, variance, *more, _ = args  # it takes the weights first
            return self._batch_norm(x, mean, variance, weight, bias, *more)
        if func is F.batch_norm and tensors and constant:
            return self._batch_norm(*args, **kwargs)
        if func in CONTRACTIONS and len(tensors) == 1 and self.composite.linear != "epsilon":
            self.refused.add(func)  # of more than two tensors
        if func in OTHER_LINEAR and len(tensors) == 1 and any(each is tensors[0] for each in args):
            a = tensors[0]
            return self.share(a, lambda part: func(*(part if each is a else each for each in args), **kwargs))
        if func in SUM | DIFFERENCE and len(tensors) == 2:
            factor, second = kwargs.get("alpha", 1) * (-1 if func in DIFFERENCE else 1), args[1]
            second = _Pass.apply(second, [factor * second.detach()]) if factor != 1 else second.clone()
            return deliver(self.split(args[0].clone(), second), func, args, kwargs)
        if func in ADDITION | PRODUCTS | NEGATION and len(tensors) == 1 and not self.first:
            output = self._affine(func, args, kwargs, tensors[0])
            if output is not None:
                return output
        if len(tensors) == 1 and func in ONE_BY_ONE:
            free = {key: value for key, value in kwargs.items() if key != "inplace"}
            output = func(
                *(each.detach().clone() if isinstance(each, Tensor) else each for each in args), **free
            )
            if output.shape == tensors[0].shape:
                return deliver(_Pass.apply(tensors[0].clone(), [output]), func, args, kwargs)
        output = func(*args, **kwargs)
        if func in CLONE and (known := self._layer_of(args[0])) is not None:
            self._note(output, known)
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

    def _affine(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any], a: Tensor) -> Tensor | None:
        """Compute a sum or product of an activation and a constant; None for products that no layer takes.

        They are merged with the layer whose output `a` is. Of another activation, a sum is an affine layer.
        """
        first, second = args if len(args) == 2 else (args[0], -1)  # a negation is a product with −1
        alpha = kwargs.get("alpha", 1)
        if func in PRODUCTS | NEGATION:
            if func in DIVISIONS and (second is a or kwargs):
                return None
            constant = second if first is a else first
            scale, shift = (1 / constant if func in DIVISIONS else constant), 0.0
        else:
            ours, theirs = (-alpha, 1) if func in FROM_CONSTANT else (1, alpha if func in SUM else -alpha)
            scale, shift = (ours, theirs * second) if first is a else (theirs, ours * first)
        with torch.no_grad():
            output = out_of_place(func)(
                *(each.detach() if isinstance(each, Tensor) else each for each in args), **kwargs
            )
        layer = self._layer_of(a) if output.shape == a.shape else None
        merged = None if layer is None else _merge(layer, scale, shift)
        if merged is not None:
            result = self._by_rule(merged, output)
            delivered = deliver(result, func, args, kwargs)
            self._note(delivered, merged)
            return delivered
        if func in PRODUCTS | NEGATION:
            return None
        exact = a.clone()  # `a` may be changed in place
        return deliver(self.share(exact, lambda part: scale * part + shift), func, args, kwargs)

    def _layer_of(self, output: Tensor) -> _Layer | None:
        """Return the layer whose output this is, if nothing has changed it since."""
        layer: _Layer | None = self.layers.get(output)
        return layer if layer is not None and layer.version == output._version else None

    def _note(self, output: Tensor, layer: _Layer) -> None:
        """Remember the layer whose output this is."""
        self.layers[output] = layer._replace(version=output._version)

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

    def _by_rule(self, layer: _Layer, output: Tensor) -> Tensor:
        """Return `output`, which hands relevance back to the layer's input by its rule."""
        call, x, rule, _ = layer
        signs = output.sign() if rule == "gamma" else None  # the model may change the output in place
        box = self._bounds(x) if rule == "box" else None
        # of a layer whose normalisation follows, the merged layer's portions alone are asked for
        portions = lambda: self._portions(x, call.weight, call.bias, rule, signs, box)  # noqa: E731
        share: Tensor = _Share.apply(call.a, (output, portions, call.op, self.epsilon))
        self._note(share, layer)
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
        shape = (-1,) + (1,) * (x.ndim - 2)
        scale, shift = scale.reshape(shape), shift.reshape(shape)
        layer = self._layer_of(x)
        merged = None if layer is None else _merge(layer, scale, shift)
        if merged is not None:
            return self._by_rule(merged, output)
        portion = Portion([(x.detach().clone(), scale)], shift)
        alone: Tensor = _Share.apply(x, (output, lambda: [portion], torch.mul, self.epsilon))
        return alone


def _merge(layer: _Layer, scale: Tensor | float, shift: Tensor | float) -> _Layer | None:
    """Return the layer whose output is scale · output + shift; None if it has no weights for the scale.

    Scale and shift are numbers, or can be broadcast to the output.
    """
    call = layer.call
    if isinstance(scale, Tensor) and scale.numel() > 1:
        others = [size for place, size in enumerate(scale.shape, -scale.ndim) if place != call.channels]
        if call.scaled is None or any(size > 1 for size in others):
            return None
        weight = call.scaled(call.weight, scale.flatten())
    else:
        weight = call.weight * (scale.reshape(()) if isinstance(scale, Tensor) else scale)
    return layer._replace(call=call._replace(weight=weight, bias=call.bias * scale + shift))


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
