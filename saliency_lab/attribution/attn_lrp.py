"""AttnLRP: layer-wise relevance propagation with rules for attention, normalisation layers and products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd import Function

from saliency_lab._common.calls import (
    PRODUCTS,
    Call,
    calls,
    check_visible,
    deliver,
    depending,
    is_in_place,
    out_of_place,
    softmax_dim,
)
from saliency_lab._common.settings import Settings
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.catalogue import Explained, method
from saliency_lab.attribution.fused_attention import AttentionRule
from saliency_lab.attribution.lrp import (
    ADDITION,
    BILINEAR,
    MASKING,
    NORMALISATION,
    SOFTMAX,
    Composite,
    LayerRule,
    Propagation,
    no_view,
    propagate,
    stabilised,
)

ROOT, INVERSE_ROOT, POWER = calls("sqrt"), calls("rsqrt"), calls("pow", "__pow__")
RECIPROCAL = calls("reciprocal", "__rdiv__", "__rtruediv__")


class _Product(Function):
    """A product of two activations; each gets half of the relevance, by its contributions.

    `facts` are the function, its arguments with the activations left out, and ε.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, facts: tuple[Any, float]) -> Tensor:
        ctx.op, ctx.epsilon = facts
        ctx.save_for_backward(a, b)
        return no_view(ctx.op(a, b))

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, Tensor, None]:
        inputs = [each.detach().requires_grad_(True) for each in ctx.saved_tensors]
        with torch.enable_grad():
            z = ctx.op(*inputs)
            ratio = relevance[0] / (2 * stabilised(z.detach(), ctx.epsilon))
            factors = torch.autograd.grad(z, inputs, ratio)
        a, b = (each.detach() * factor for each, factor in zip(inputs, factors, strict=True))
        return a, b, None


class _Softmax(Function):
    """A softmax s of x along a dimension: x receives x·(R − s·ΣR), its first-order Taylor expansion."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, output: list[Tensor], dim: int) -> Tensor:
        ctx.save_for_backward(x, output[0])
        ctx.dim = dim
        return output[0]

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, None, None]:
        x, s = ctx.saved_tensors
        share = x * (relevance[0] - s * relevance[0].sum(ctx.dim, keepdim=True))
        return share.masked_fill(x == -torch.inf, 0.0), None, None


def _exponent(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """Return the exponent of a power if it is one constant number."""
    exponent = args[1] if len(args) > 1 else kwargs.get("exponent")
    if isinstance(exponent, Tensor) and (exponent.numel() != 1 or exponent.requires_grad):
        return None
    return None if exponent is None else float(exponent)


class _AttentionPropagation(AttentionRule, Propagation):
    """LRP with the rules of AttnLRP."""

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call by the rule for it."""
        args = tuple(each.detach() if hasattr(each, "_is_constant") else each for each in args)
        tensors = depending(args, kwargs)
        power = _exponent(args, kwargs) if func in POWER else None
        root = func in ROOT or power == 0.5
        roots = [each for each in tensors if hasattr(each, "_is_root")]
        reciprocals = [each for each in tensors if hasattr(each, "_is_reciprocal")]
        inverse = func in INVERSE_ROOT or power == -0.5
        if tensors and (inverse or (roots and func in RECIPROCAL) or (reciprocals and root)):
            with torch.no_grad():  # what a normalisation divides by is a constant
                output = out_of_place(func)(*args, **kwargs)
            if is_in_place(func, kwargs):
                output = args[0].copy_(output)
                output._is_constant = True
            return output
        output = self._call(func, args, kwargs, tensors)
        if tensors and (root or (roots and len(tensors) == 1 and func in ADDITION)):
            output._is_root = True
        if tensors and (func in RECIPROCAL or power == -1):
            output._is_reciprocal = True
        return output

    def _call(
        self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[Tensor]
    ) -> Any:
        if func in BILINEAR and len(tensors) == 2:
            return self._product(func, args, kwargs)
        if func in SOFTMAX and tensors:
            with torch.no_grad():
                output = func(*args, **kwargs)
            return _Softmax.apply(args[0].to(output.dtype), [output], softmax_dim(args, kwargs))
        if func in NORMALISATION and tensors:
            return self._normalise(func, args, kwargs)
        if func in MASKING and len(tensors) == 1 and tensors[0] is args[0]:
            return func(*args, **kwargs)
        return super().call(func, args, kwargs)

    def _product(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute a product of two activations; it is refused where they are not two plain arguments."""
        places = [place for place, each in enumerate(args) if isinstance(each, Tensor) and each.requires_grad]
        if len(places) != 2:
            return Propagation.call(self, func, args, kwargs)
        plain = torch.mul if func in PRODUCTS else func

        def op(a: Tensor, b: Tensor) -> Tensor:
            given = list(args)
            given[places[0]], given[places[1]] = a, b
            return plain(*given, **kwargs)

        product = _Product.apply(args[places[0]].clone(), args[places[1]].clone(), (op, self.epsilon))
        return deliver(product, func, args, kwargs) if func in PRODUCTS else product

    def _normalise(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Compute a normalisation by the ε rule, with what it divides by taken as a constant."""
        freeze = next(freeze for functions, freeze in FROZEN.items() if func in functions)
        with torch.no_grad():
            op = freeze(args[0].detach(), *args[1:], **kwargs)
        return self.share(args[0], op)


def _affine(part: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = part if weight is None else part * weight
    return scaled if bias is None else scaled + bias


def _freeze_layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Callable[[Tensor], Tensor]:
    dims = tuple(range(-len(normalized_shape), 0))
    scale = (x.var(dims, correction=0, keepdim=True) + eps).rsqrt()
    return lambda part: _affine((part - part.mean(dims, keepdim=True)) * scale, weight, bias)


def _freeze_group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Callable[[Tensor], Tensor]:
    scale = (x.reshape(len(x), num_groups, -1).var(-1, correction=0, keepdim=True) + eps).rsqrt()
    shape = (-1, *[1] * (x.ndim - 2))
    weight, bias = (None if each is None else each.reshape(shape) for each in (weight, bias))

    def op(part: Tensor) -> Tensor:
        groups = part.reshape(len(x), num_groups, -1)
        return _affine(((groups - groups.mean(-1, keepdim=True)) * scale).view_as(part), weight, bias)

    return op


def _freeze_rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Callable[[Tensor], Tensor]:
    dims = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    scale = (x.square().mean(dims, keepdim=True) + eps).rsqrt()
    return lambda part: _affine(part * scale, weight, None)


def _freeze_normalize(
    x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None
) -> Callable[[Tensor], Tensor]:
    scale = x.norm(p, dim, keepdim=True).clamp_min(eps).reciprocal()
    return lambda part: part * scale


FROZEN: dict[frozenset[Call], Callable[..., Callable[[Tensor], Tensor]]] = {
    calls("layer_norm"): _freeze_layer_norm,
    calls("group_norm"): _freeze_group_norm,
    calls("rms_norm"): _freeze_rms_norm,
    calls("normalize"): _freeze_normalize,
}
"""For each normalisation: a function of its arguments that returns it with the divisor of `x` fixed."""


class AttnLrpSettings(Settings):
    """`epsilon` stabilises every division; `gamma` > 0 is the γ of linear layers and convolutions."""

    epsilon: float = Field(1e-6, gt=0)
    gamma: float = Field(0.0, ge=0)


@method(
    "attn_lrp",
    family="backpropagation",
    passes="about 1 forward, 2 backward",
    reference="Achtibat et al., ICML 2024",
    settings=AttnLrpSettings,
)
def attn_lrp(batch: Batch, settings: AttnLrpSettings) -> Explained:
    """Compute the relevance of each input value, through attention, normalisation layers and products.

    A softmax passes relevance by its Taylor expansion, a product half to each factor, and a normalisation
    layer as if it divided by a constant. Biases, added constants and the softmax absorb relevance.

    Raises
    ------
    InputError
        Names the modules with operations that have no rule.
    """
    check_visible(batch.model, "attn_lrp")
    layers: LayerRule = "gamma" if settings.gamma else "epsilon"
    rule = _AttentionPropagation(
        Composite(layers, layers), epsilon=settings.epsilon, gamma=settings.gamma, rules={}
    )
    relevance, _ = propagate(batch, rule, "attn_lrp")
    return relevance, None
