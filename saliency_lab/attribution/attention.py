"""Methods that follow the attention through a vision transformer: attention rollout and Chefer's relevance.

Both multiply one square matrix per block over the same tokens. What the network does is read from a run:
which calls are attention, that nothing else mixes tokens between them, which tokens are patches of the
image, and which tokens the head reads. A network for which such a product means nothing is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from saliency_lab._common.calls import (
    AVERAGE_POOL,
    CONTRACTIONS,
    ELEMENTWISE,
    MAX_POOL,
    PRODUCTS,
    RELU,
    SHAPES,
    Call,
    calls,
    check_functions,
    check_visible,
    depending,
    describe_module,
    softmax_dim,
    track_modules,
)
from saliency_lab._common.errors import InputError
from saliency_lab._common.inference import no_gradient
from saliency_lab._common.seeding import generator
from saliency_lab._common.settings import Settings
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.catalogue import Explained, Resolve, method
from saliency_lab.attribution.fused_attention import FUSED, AttentionRule
from saliency_lab.attribution.layer import Interpolation, enlarge
from saliency_lab.attribution.positions import lies_elsewhere, marks, reached
from saliency_lab.models.cam_layer import Execution

SOFTMAX = calls("softmax")
LEADS_TO_SOFTMAX = (
    RELU
    | ELEMENTWISE
    | PRODUCTS
    | SHAPES
    | calls("add", "__radd__", "sub", "masked_fill", "where", "nan_to_num")
)
KEEPS_WEIGHTS = SHAPES | calls("masked_fill", "repeat_interleave")
CONVOLUTION = calls("conv1d", "conv2d", "conv3d") | MAX_POOL | AVERAGE_POOL


@dataclass(eq=False)
class _Attention:
    """One attention: its scores and weights (softmax), (…, T, T), and what it returns."""

    module: str
    scores: Tensor
    weights: Tensor
    output: Tensor | None = None
    token_dim: int = -2
    """The dimension of `output` that counts tokens."""

    @property
    def size(self) -> tuple[int, ...]:
        """How many tokens attend to how many."""
        return tuple(self.weights.shape[-2:])


@dataclass(eq=False)
class _Watch(AttentionRule):
    """Records each attention, and what else mixes tokens.

    An attention is a softmax over the last of at least three dimensions, by which something is multiplied.
    """

    running: list[tuple[str, nn.Module]] = field(default_factory=list)
    seen: list[_Attention] = field(default_factory=list)
    unexplained: dict[int, str] = field(default_factory=dict)
    """Modules of products of activations, by number, that neither lead to a softmax nor follow one."""
    convolutions: list[tuple[int, str, Tensor]] = field(default_factory=list)
    """What a convolution or pooling returned, its module, and how many attentions there were before."""

    def __post_init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []  # alive, so that their ids in the next two stay theirs
        self.weights: dict[int, _Attention] = {}
        self.leading: dict[int, set[int]] = {}

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call, and note what it is."""
        output = super().call(func, args, kwargs)
        inputs = depending(args, kwargs)
        if func in FUSED or not isinstance(output, Tensor) or not output.requires_grad or not inputs:
            return output
        if func in SOFTMAX:
            self._softmax(args, kwargs, output)
        elif func in CONTRACTIONS and len(inputs) == 2:
            self._product(args, inputs, output)
        elif func in CONVOLUTION and _may_mix(func, args, kwargs, output):
            self.convolutions.append((len(self.seen), describe_module(self.running), output))
        else:
            if func in KEEPS_WEIGHTS and (known := self.weights.get(id(inputs[0]))) is not None:
                self._tag(self.weights, output, known)
            if func in LEADS_TO_SOFTMAX:
                numbers = set().union(*(self.leading.get(id(each), set()) for each in inputs))
                if numbers:
                    self._tag(self.leading, output, numbers)
        return output

    def _tag(self, tags: dict[int, Any], tensor: Tensor, tag: Any) -> None:
        self.tensors.append(tensor)
        tags[id(tensor)] = tag

    def _softmax(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if output.ndim < 3 or softmax_dim(args, kwargs) % output.ndim != output.ndim - 1:
            return
        for number in self.leading.get(id(args[0]), set()):
            self.unexplained.pop(number, None)
        self._tag(self.weights, output, _Attention(describe_module(self.running), args[0], output))

    def _product(self, args: tuple[Any, ...], inputs: list[Tensor], output: Tensor) -> None:
        known = [self.weights.get(id(each)) for each in inputs]
        place = next(
            (place for place, each in enumerate(known) if each and inputs[place].shape[-2:] == each.size),
            None,
        )
        attention = None if place is None else known[place]
        if place is None or attention is None:
            number = len(self.tensors)
            self.unexplained[number] = describe_module(self.running)
            self._tag(self.leading, output, {number})
            return
        attention.output, attention.token_dim = output, -2 if place == 0 else -1
        if isinstance(args[0], str) and "->" in args[0]:  # einsum: where the queries' letter is in the result
            operands, result = args[0].replace(" ", "").split("->")
            attention.token_dim = result.index(operands.split(",")[place][-2]) - len(result)
        self.seen.append(attention)


def _may_mix(func: Call, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> bool:
    """Return whether a convolution or pooling looks at more than one position at a time."""
    if func in MAX_POOL | AVERAGE_POOL:
        return output.shape != args[0].shape and output.ndim > 2
    weight = args[1] if len(args) > 1 else kwargs["weight"]
    return any(size > 1 for size in weight.shape[2:])


def _mixes(output: Tensor, before: _Attention, logits: Tensor) -> bool:
    """Return whether the logits depend on what a call returned, and a value of it on several tokens."""
    ones = torch.ones_like(logits)
    if torch.autograd.grad(logits, output, ones, retain_graph=True, allow_unused=True)[0] is None:
        return False
    assert before.output is not None
    start = torch.zeros_like(output)
    start.view(-1)[start.numel() // 2] = torch.nan
    return int(_tokens(reached(output, before.output, start), before.token_dim).sum()) != 1


def _refusal(name: str, cause: str) -> InputError:
    """Return the error that names the method, the cause, and what works instead."""
    return InputError(f"{name} {cause}; use 'integrated_gradients', 'saliency' or 'rise' on this network")


@dataclass(frozen=True, eq=False)
class _Watched:
    """A run on `points`: its attentions and logits, with their graph, and what tells where tokens lie."""

    points: Tensor
    seen: list[_Attention]
    logits: Tensor
    execution: Execution


def _watched(name: str, model: nn.Module, images: Tensor) -> _Watched:
    """Run the model on images, and return what was seen.

    Raises
    ------
    InputError
        If there is no attention, or it is not one square matrix per block over the same tokens.
    """
    watch, execution = _Watch(), Execution(images)
    points = images.detach().clone().requires_grad_(True)
    with torch.enable_grad(), track_modules(model, watch.running), execution, watch:
        logits = model(points * 1.0)
    if not logits.requires_grad:
        raise no_gradient(model)
    check_functions(logits, model, images[:1], name)
    seen, count = watch.seen, len(points)
    if not seen and not watch.unexplained:
        raise _refusal(
            name, f"needs a vision transformer, and in {type(model).__name__} no self-attention was seen"
        )
    for attention in seen:
        rows, columns = attention.size
        if rows != columns:
            raise _refusal(
                name,
                f"multiplies square matrices over one set of tokens, but {attention.module} attends from "
                f"{rows} to {columns} tokens",
            )
        size = seen[0].size[0]
        if rows != size:
            raise _refusal(
                name,
                f"multiplies matrices over one set of tokens, but {attention.module} attends over {rows} "
                f"tokens and {seen[0].module} over {size}",
            )
        if attention.weights.ndim == 3 and len(attention.weights) % count == 0:
            continue
        if attention.weights.ndim != 4 or len(attention.weights) != count:
            raise _refusal(
                name,
                f"needs attention over all tokens of an image, but {attention.module} attends within windows "
                f"or groups of {rows} tokens",
            )
    if watch.unexplained:
        module = next(iter(watch.unexplained.values()))
        raise _refusal(
            name,
            "reads attention from the softmax of a matrix that multiplies the values, but "
            f"{module} mixes tokens by another product of activations",
        )
    for number, module, output in watch.convolutions:
        if 0 < number < len(seen) and _mixes(output, seen[number - 1], logits):
            raise _refusal(name, f"follows attention only, but between blocks {module} mixes positions")
    return _Watched(points, seen, logits, execution)


def _heads(weights: Tensor, count: int) -> Tensor:
    """Weights (count, heads, T, T) of attention that may have its heads in the first dimension."""
    return weights if weights.ndim == 4 else weights.unflatten(0, (count, -1))


def _tokens(reached: Tensor, dim: int) -> Tensor:
    """Return which tokens (T,) have any entry that is true."""
    return reached.movedim(dim, 0).flatten(1).any(1)


def _check_between(name: str, seen: list[_Attention]) -> None:
    """Refuse a network in which tokens are mixed, moved or left out between two attentions."""
    for before, after in pairwise(seen):
        size = after.scores.shape[-1]
        chosen = torch.zeros(size, dtype=torch.bool)
        chosen[[0, size // 3, size // 2]] = True  # another order, such as column by column, moves one of them
        assert before.output is not None
        tokens = _tokens(reached(after.scores, before.output, _own(after, chosen)), before.token_dim)
        if not tokens.any():
            raise _refusal(
                name,
                f"multiplies the attention of one block after the other, but that of {after.module} does not "
                f"depend on that of {before.module}",
            )
        if not torch.equal(tokens.cpu(), chosen):
            raise _refusal(
                name,
                f"follows attention only, but between {before.module} and {after.module} tokens are mixed or "
                "moved",
            )


def _own(attention: _Attention, tokens: Tensor) -> Tensor:
    """Return zeros of the shape of the scores, with NaN at those of `tokens` (T,) for themselves."""
    start = torch.zeros_like(attention.scores)
    start.diagonal(dim1=-2, dim2=-1)[..., tokens.to(start.device)] = torch.nan
    return start


def _check_rows(name: str, run: _Watched, prefix: int, grid: tuple[int, int]) -> None:
    """Refuse patches that are ordered in another way than by the rows of the image."""
    first = run.seen[0]
    for mark in marks(grid):
        tokens = torch.cat([torch.zeros(prefix, dtype=torch.bool), mark.flatten()])
        pixels = reached(first.scores, run.points, _own(first, tokens))[0].any(0)
        if lies_elsewhere(pixels, mark):
            raise _refusal(
                name,
                f"needs patches in the order of the image's rows, but in {first.module} the "
                f"{grid[0]}×{grid[1]} patches have another order",
            )


def _image_tokens(name: str, model: nn.Module, image: Tensor) -> tuple[Tensor, _Watched]:
    """Return which tokens (T,) depend on the image: all but class, distillation and register tokens.

    The score of a token for itself in the first attention is compared between three images, of which the
    second differs from the first in one quarter, and the third in the rest.
    """
    noise = torch.rand(3, *image.shape[1:], generator=generator(0, "attention")).to(image)
    corner = torch.zeros(image.shape[2:], dtype=torch.bool, device=image.device)
    corner[: (image.shape[2] + 1) // 2, : (image.shape[3] + 1) // 2] = True
    images = torch.stack([noise[0], noise[1].where(corner, noise[0]), noise[0].where(corner, noise[2])])
    run = _watched(name, model, images)
    seen = run.seen
    _check_between(name, seen)
    own = _heads(seen[0].scores.detach(), 3).diagonal(dim1=-2, dim2=-1)  # (3, heads, T)
    change = (own[1:] - own[:1]).abs()
    rounding = 1e-5 * own.abs().amax((0, 2), keepdim=True)
    changed = change > (1e-3 * change.amax((0, 2), keepdim=True)).maximum(rounding)
    if changed.any() and not changed[0].any(-1).all():
        raise _refusal(
            name,
            f"needs attention over all tokens of an image, but {seen[0].module} attends within windows "
            f"or groups of {seen[0].size[0]} tokens",
        )
    return changed.any(0).any(0), run


def _count_prefix(name: str, model: nn.Module, image: Tensor, given: int | None) -> int:
    """Number of tokens in front of the patches: `given`, or found by a run of the network.

    Raises
    ------
    InputError
        If the network's attention cannot be followed, or the other tokens are no grid of patches.
    """
    check_visible(model, name)
    patches, run = _image_tokens(name, model, image)
    if given is None and not patches.any():
        raise _refusal(
            name,
            "finds the patches by the score of each token for itself in the first attention, and in "
            f"{type(model).__name__} these do not depend on the image (give prefix_tokens=)",
        )
    prefix = int(patches.nonzero()[0]) if given is None else given
    if given is None and not patches[prefix:].all():
        places = ", ".join(str(int(place)) for place in (~patches).nonzero()[:5])
        raise _refusal(
            name,
            "needs the tokens that do not depend on the image (class, distillation, registers) in front of "
            f"the patches, but in {type(model).__name__} they are number {places}",
        )
    grid = run.execution.grid(len(patches) - prefix)
    if grid is None:
        raise _refusal(
            name,
            f"needs a grid of patches, but behind {prefix} token(s) that do not depend on the image "
            f"{type(model).__name__} has {max(0, len(patches) - prefix)} tokens for images of "
            f"{tuple(image.shape[2:])} pixels (give their number by prefix_tokens=)",
        )
    _check_rows(name, run, prefix, grid)
    return prefix


def _on_image(name: str, batch: Batch, flow: Tensor, run: _Watched, settings: RelevanceSettings) -> Tensor:
    """Average the rows of `flow` (n, T, T) of the tokens that the head reads, on the grid of patches."""
    last, logits = run.seen[-1], run.logits
    assert last.output is not None and settings.prefix_tokens is not None
    read = _tokens(reached(logits, last.output, torch.full_like(logits, torch.nan)), last.token_dim)
    if not read.any():
        raise _refusal(
            name, f"needs a head that reads the tokens, which that of {type(batch.model).__name__} does not"
        )
    patches = flow[:, read].mean(1)[:, settings.prefix_tokens :]
    grid = run.execution.grid(patches.shape[1])
    assert grid is not None
    return enlarge(patches[:, None].unflatten(2, grid), batch.x, settings.interpolation)


class RelevanceSettings(Settings):
    """`prefix_tokens` is the number of tokens in front of the patches (default: found by a run)."""

    prefix_tokens: int | None = Field(None, ge=0)
    interpolation: Interpolation = "bilinear"


class RolloutSettings(RelevanceSettings):
    """How attention is averaged and where the patches are.

    `heads`: how the heads of a layer become one; `residual`: the share of each token that skips attention;
    `prefix_tokens`: the number of tokens in front of the patches (default: found by a run).
    """

    heads: Literal["mean", "max", "min"] = "mean"
    residual: float = Field(0.5, ge=0, lt=1)


def _resolve(name: str) -> Resolve:
    """Return the function that fills in the number of prefix tokens, for the method `name`."""

    def resolve(model: nn.Module, image: Tensor, settings: Any) -> Any:
        prefix = _count_prefix(name, model, image, settings.prefix_tokens)
        return settings.model_copy(update={"prefix_tokens": prefix})

    return resolve


@method(
    "attention_rollout",
    family="attention",
    passes="1 forward",
    reference="Abnar & Zuidema, ACL 2020",
    settings=RolloutSettings,
    resolve=_resolve("attention_rollout"),
)
def attention_rollout(batch: Batch, settings: RolloutSettings) -> Explained:
    """Compute the row of the token that the head reads, such as a class token, in Πₗ (r·I + (1 − r)·Aₗ).

    Aₗ are the attention weights of block l, r is `residual`. Later blocks stand on the left, and each row of
    a factor is scaled to sum 1. The map does not depend on the class.

    Raises
    ------
    InputError
        If the attention is not one square matrix per block over the same tokens.
    """
    run = _watched("attention_rollout", batch.model, batch.x)
    flow = None
    for attention in run.seen:
        heads = _heads(attention.weights.detach(), len(batch.x))
        joined = heads.mean(1) if settings.heads == "mean" else getattr(heads, f"a{settings.heads}")(1)
        eye = torch.eye(joined.shape[-1]).to(joined)
        mixed = settings.residual * eye + (1 - settings.residual) * joined
        mixed = mixed / mixed.sum(-1, keepdim=True)
        flow = mixed if flow is None else mixed @ flow
    assert flow is not None
    return _on_image("attention_rollout", batch, flow, run, settings), None


@method(
    "attention_relevance",
    family="attention",
    passes="1 forward, 1 backward to the first attention",
    reference="Chefer et al., ICCV 2021",
    settings=RelevanceSettings,
    resolve=_resolve("attention_relevance"),
)
def attention_relevance(batch: Batch, settings: RelevanceSettings) -> Explained:
    """Compute the rows of R − I of the tokens that the head reads.

    R begins as I and becomes R + mean((∂f/∂A ⊙ A)⁺)·R block by block; A are the attention weights
    of a block, and the mean is over its heads.

    Raises
    ------
    InputError
        If the attention is not one square matrix per block over the same tokens.
    """
    run = _watched("attention_relevance", batch.model, batch.x)
    with torch.enable_grad():
        score = batch.target.pick(run.logits).sum()
    weights = [each.weights for each in run.seen]
    gradients = torch.autograd.grad(score, weights, retain_graph=True, materialize_grads=True)
    # without I, next to which small values vanish
    flow = torch.zeros(len(batch.x), *run.seen[0].size).to(batch.x)
    for attention, gradient in zip(run.seen, gradients, strict=True):
        positive = (gradient * attention.weights.detach()).clamp_min(0)
        mixed = _heads(positive, len(batch.x)).mean(1)
        flow = flow + mixed + mixed @ flow
    return _on_image("attention_relevance", batch, flow, run, settings), None
