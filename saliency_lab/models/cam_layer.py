"""The layer whose map a CAM method explains, and how a layer's output lies over the image.

Both are read from the execution: which module ran, with which shapes, and what the network did with them.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import Node

from saliency_lab._common.calls import (
    CONTRACTIONS,
    Call,
    Rule,
    calls,
    depending,
    hidden_part,
    tensors_in,
    track_modules,
)
from saliency_lab._common.checks import check_logits
from saliency_lab._common.errors import InputError
from saliency_lab._common.inference import no_gradient, undisturbed
from saliency_lab._common.seeding import generator
from saliency_lab._common.threads import in_this_thread
from saliency_lab._common.warn import warn
from saliency_lab.models.layers import declared_cam_layer

SPATIAL = calls(
    *("conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d"),
    *("batch_norm", "group_norm", "instance_norm", "interpolate"),
)
AVERAGE_POOL = calls("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d")
ALONG_CHANNELS = calls("linear", "layer_norm", "rms_norm")
NORMALISATION = calls("layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm")
PERMUTE, CONCATENATE, SOFTMAX = calls("permute"), calls("cat", "concat", "concatenate"), calls("softmax")
PART = calls("__getitem__", "narrow", "select", "index_select")
REORDERED = calls("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims") | {
    Tensor.mT.__get__  # type: ignore[attr-defined]
}
RESHAPED = calls("reshape", "view", "flatten", "unflatten", "reshape_as", "view_as")
CONVOLUTION = calls("conv2d")


@dataclass(frozen=True)
class Arrangement:
    """How a layer's output holds a value for each position of the image.

    A map (N, D, h, w), or (N, h, w, D) with `channels_last`; a map whose rows are joined, (N, D, h·w), with
    `flat`; or tokens (N, T, D), of which the first `before` and the last `after` belong to no position and
    the others are the positions of `grid`, row by row. With `tokens_first`, tokens are (T, N, D), as in
    torch's own transformer layers unless they are made with `batch_first=True`.
    """

    grid: tuple[int, int]
    channels_last: bool = False
    flat: bool = False
    tokens: bool = False
    before: int = 0
    after: int = 0
    tokens_first: bool = False

    def to_map(self, output: Tensor) -> Tensor:
        """Return an output of the layer as a map (N, D, h, w)."""
        if self.flat:
            return output.unflatten(2, self.grid)
        if not self.tokens:
            return output.permute(0, 3, 1, 2) if self.channels_last else output
        output = output.transpose(0, 1) if self.tokens_first else output
        patches = output[:, self.before : output.shape[1] - self.after]
        return patches.transpose(1, 2).unflatten(2, self.grid)

    @property
    def channel_dim(self) -> int:
        """The dimension of the output that counts channels."""
        return -1 if self.tokens or self.channels_last else 1

    @property
    def batch_dim(self) -> int:
        """The dimension of the output that counts images."""
        return 1 if self.tokens_first else 0


class Execution(Rule):
    """Watches a forward pass for what tells how the layers' outputs are arranged.

    Which dimension counts channels is followed from call to call: a convolution works on channels first, a
    linear layer on channels last, and what reorders or joins dimensions moves it. Where that is lost, the
    layout is that of the last call that fixes it. Tokens without a position are those that were joined to
    tokens that depend on the image and do not depend on it themselves.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images
        self.channels_last = False
        self.channel_dims: dict[int, tuple[ref[Tensor], int]] = {}  # by id
        self.grids: list[tuple[int, int]] = []
        self.added: dict[int, tuple[int, int]] = {}  # total → tokens before and after those with a position
        self.without_position: list[Tensor] = []  # parts of tokens that hold such tokens alone

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call and note what it tells."""
        output = self.compute(func, args, kwargs)
        if isinstance(output, Tensor) and output.requires_grad and output.ndim in (3, 4):
            self.note(func, args, kwargs, output)
            if func in PART and self._is_without_position(func, args, kwargs):
                self.without_position.append(output)
        return output

    def compute(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the call returns."""
        return func(*args, **kwargs)

    def note(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """Keep what a call says about the arrangement of its output."""
        if (dim := self._follow(func, args, kwargs, output)) is not None:
            self.channel_dims[id(output)] = ref(output), dim
        else:
            self.channel_dims.pop(id(output), None)
        if func in SPATIAL and output.ndim == 4:
            self.channels_last = False
            self.grids.append((output.shape[2], output.shape[3]))
        elif func in ALONG_CHANNELS:
            self.channels_last = True
        elif func in PERMUTE and output.ndim == 4:
            dims = args[1:] or (kwargs["dims"],)
            order = tuple(dim % 4 for dim in (dims[0] if len(dims) == 1 else dims))
            if order in ((0, 2, 3, 1), (0, 3, 1, 2)):
                self.channels_last = order == (0, 2, 3, 1)
        elif func in CONCATENATE and output.ndim == 3:
            parts = args[0]
            dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
            depends = [
                part.requires_grad and not any(part is each for each in self.without_position)
                for part in parts
            ]
            dim %= 3
            joins_tokens = dim == 1 or (dim == 0 and output.shape[1] == len(self.images))
            if joins_tokens and any(depends) and not all(depends):
                sizes = [part.shape[dim] for part in parts]
                first, last = depends.index(True), len(parts) - depends[::-1].index(True)
                self.added[output.shape[dim]] = (
                    sum(sizes[:first]) + self._added_to(sizes[first])[0],
                    sum(sizes[last:]) + self._added_to(sizes[last - 1])[1],
                )

    def _added_to(self, total: int) -> tuple[int, int]:
        """Return how many of `total` tokens have no position: those before and those after the others."""
        return (0, 0) if self._seen_grid(total) else self.added.get(total, (0, 0))

    def channel_dim(self, output: Tensor) -> int | None:
        """Return the dimension of a tensor that counts channels, if it is known."""
        known, dim = self.channel_dims.get(id(output), (None, None))
        return dim if known is not None and known() is output else None

    def _follow(
        self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> int | None:
        """Return the dimension of a call's output that counts channels, from that of its first input."""
        if func in SPATIAL and output.ndim == 4:
            return 1
        source = next((each for each in depending(args) if self.channel_dim(each) is not None), None)
        if source is None:
            return output.ndim - 1 if func in ALONG_CHANNELS else None
        dim = self.channel_dim(source)
        assert dim is not None
        if func in REORDERED:
            sizes = list(range(2, 2 + source.ndim))
            moved = func(torch.empty(sizes, device="meta"), *args[1:], **kwargs)
            return list(moved.shape).index(sizes[dim])
        if func in RESHAPED:
            if dim == source.ndim - 1 and output.shape[-1] == source.shape[-1]:
                return output.ndim - 1
            return 1 if dim == 1 and output.shape[1] == source.shape[1] else None
        return dim if output.ndim == source.ndim and func not in CONTRACTIONS else None

    def _is_without_position(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Return whether a call takes, from tokens (N, T, D), only some that have no position."""
        whole = args[0] if args else None  # with keywords alone, nothing is known
        if not isinstance(whole, Tensor) or whole.ndim != 3:
            return False
        dim = 0 if are_tokens_first(whole, len(self.images)) else 1
        total = whole.shape[dim]
        if total not in self.added:
            return False
        before, after = self.added[total]
        positions = torch.zeros(whole.shape, dtype=torch.bool, device=whole.device)
        positions.narrow(dim, before, total - before - after).fill_(True)
        return not func(positions, *args[1:], **kwargs).any()

    def arrangement(self, output: object, count: int) -> Arrangement | None:
        """Return how the output of a layer for `count` images is arranged; None if it has no positions.

        A square output (count, count, D) is taken for (N, T, D).
        """
        if not isinstance(output, Tensor) or output.ndim == 0:
            return None
        tokens_first = are_tokens_first(output, count)
        if len(output) != count and not tokens_first:
            return None
        if output.ndim == 4:
            first, second, third = output.shape[1:]
            dim = self.channel_dim(output)
            last = self.channels_last if dim is None else dim == 3
            # a view may have brought the channels to the front
            if last and not self._may_cover(first, second):
                last = not self._may_cover(second, third)
                if last:
                    return None
            return Arrangement((first, second) if last else (second, third), channels_last=last)
        if output.ndim != 3:
            return None
        total, width = output.shape[0 if tokens_first else 1], output.shape[2]
        if width == 1:  # one value per channel
            return None
        ends = [self.added[total]] if total in self.added else [(0, 0), (1, 0)]
        seen = [self._seen_grid(total - before - after) for before, after in ends]
        dim = self.channel_dim(output)
        may_be_flat = not tokens_first and (not any(seen) if dim is None else dim == 1)
        if may_be_flat and (grid := self._seen_grid(width)) is not None:
            return Arrangement(grid, flat=True)
        for (before, after), known in sorted(zip(ends, seen, strict=True), key=lambda each: each[1] is None):
            grid = known or self.grid(total - before - after)
            if grid is not None:
                return Arrangement(grid, tokens=True, before=before, after=after, tokens_first=tokens_first)
        return None

    def grid(self, count: int) -> tuple[int, int] | None:
        """Return rows and columns of `count` patches: those of a map that was seen, else as `patch_grid`."""
        return self._seen_grid(count) or patch_grid(count, self.images)

    def _seen_grid(self, count: int) -> tuple[int, int] | None:
        return next((grid for grid in reversed(self.grids) if math.prod(grid) == count), None)

    def _may_cover(self, rows: int, columns: int) -> bool:
        """Whether strides, rounded either way, can take the image's height and width to this grid."""
        height, width = self.images.shape[2:]
        return (rows - 1) * width < (columns + 1) * height and (columns - 1) * height < (rows + 1) * width


def are_tokens_first(output: Tensor, count: int) -> bool:
    """Return whether an output for `count` images has the shape (T, N, D), and not (N, T, D).

    >>> are_tokens_first(torch.zeros(16, 1, 8), 1), are_tokens_first(torch.zeros(1, 16, 8), 1)
    (True, False)
    """
    return output.ndim == 3 and len(output) != count == output.shape[1]


def patch_grid(count: int, x: Tensor) -> tuple[int, int] | None:
    """Return rows and columns of `count` patches over images (n, C, H, W), or None if no grid has as many.

    The grid has the proportions of the images, or those that square patches leave that do not fit evenly.
    """
    height, width = x.shape[2:]
    common = math.gcd(height, width)
    even = [(height // common * k, width // common * k) for k in range(1, common + 1)]
    cut = [(height // side, width // side) for side in range(1, min(height, width) + 1)]
    return next((grid for grid in even + cut if math.prod(grid) == count), None)


# --- which layer ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """One run of a module, from call `begin` to call `end`, and its output.

    `output` is None if it is no tensor; `shape` is then that of the first tensor in it.
    """

    name: str
    begin: int
    end: int
    output: Tensor | None
    shape: tuple[int, ...] | None
    arrangement: Arrangement | None
    normalises: bool
    pools: bool

    @property
    def has_positions(self) -> bool:
        return self.arrangement is not None and math.prod(self.arrangement.grid) > 1


class _Record(Execution):
    """Records the runs of all modules, and where self-attention and convolutions are called."""

    def __init__(self, image: Tensor) -> None:
        super().__init__(image)
        self.number = 0
        self.running: list[tuple[str, nn.Module]] = []
        self.begun: list[int] = []
        self.runs: list[_Run] = []
        self.attending: set[str] = set()
        self.self_attention: list[tuple[int, list[str]]] = []
        self.convolutions: list[int] = []
        self.called: dict[str, set[Call]] = {}
        self.copies: dict[int, tuple[Tensor, int, Tensor]] = {}  # by id: copy, its version, original
        self.nodes: dict[int, Node] = {}  # by id of an original: what made its copy

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = super().call(func, args, kwargs)
        self.number += 1
        if isinstance(output, Tensor) and output.requires_grad:
            self.called.setdefault(self.running[-1][0] if self.running else "", set()).add(func)
            if func in CONVOLUTION and max(output.shape[2:]) > 1:
                self.convolutions.append(self.number)
        if (tokens := _attention_size(func, args, kwargs, output)) is not None:
            names = [name for name, _ in self.running]
            self.attending.update(names[-1:])
            if tokens[0] == tokens[1] > 1:
                self.self_attention.append((self.number, names))
        return output

    def enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note that a module begins."""
        self.begun.append(self.number)

    def leave(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: object) -> Tensor | None:
        """Note that a module ends; return a copy of its output for the network to go on with.

        An in-place operation that follows then leaves the recorded output alone.
        """
        called = self.called.get(name, set())
        normal = bool(called & NORMALISATION) or "norm" in type(module).__name__.lower()
        depends = isinstance(output, Tensor) and output.requires_grad
        copied = self.copies.get(id(output))
        if copied is not None and copied[0]._version != copied[1]:  # changed in place since
            copied = None
        original = copied[2] if copied else output if isinstance(output, Tensor) and depends else None
        run = _Run(
            name,
            self.begun.pop(),
            self.number,
            original,
            next((tuple(each.shape) for each in tensors_in(output)), None),
            self.arrangement(output, 1) if depends else None,
            normalises=normal and not any(True for _ in module.children()),
            pools=bool(called) and called <= AVERAGE_POOL,
        )
        self.runs.append(run)
        if original is None or copied is not None:
            return None
        copy = original.clone()
        self.copies[id(copy)] = (copy, copy._version, original)
        assert copy.grad_fn is not None
        self.nodes[id(original)] = copy.grad_fn
        return copy

    def carries_all(self, run: _Run, logits: Tensor) -> bool:
        """Return whether the logits depend on the image through the output of this run alone."""
        seen = {self.nodes.get(id(run.output))}
        left = [logits.grad_fn]
        while left:
            node = left.pop()
            if node is None or node in seen:
                continue
            if hasattr(node, "variable"):  # the image: a way that goes around the output
                return False
            seen.add(node)
            left += [following for following, _ in node.next_functions]
        return True


def _attention_size(
    func: Call, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
) -> tuple[int, int] | None:
    """Return how many tokens attend to how many in this call, if it is attention or the softmax of one."""
    if func in (F.scaled_dot_product_attention, F.multi_head_attention_forward):
        query = args[0] if args else kwargs["query"]
        key = args[1] if len(args) > 1 else kwargs["key"]
        dim = -2 if func is F.scaled_dot_product_attention else 0
        return query.shape[dim], key.shape[dim]
    if func in SOFTMAX and isinstance(output, Tensor) and output.ndim >= 3:
        return output.shape[-2], output.shape[-1]
    return None


def _record(model: nn.Module, image: Tensor) -> tuple[_Record, Tensor]:
    """Run the model on one image, and return what happened and the logits."""
    record = _Record(image)
    with track_modules(model, record.running), ExitStack() as hooks:
        for name, module in model.named_modules():
            leave = in_this_thread(partial(record.leave, name))
            hooks.enter_context(module.register_forward_pre_hook(in_this_thread(record.enter)))
            hooks.enter_context(module.register_forward_hook(leave))
        with torch.enable_grad(), record:
            logits = model(image.detach().clone().requires_grad_(True) * 1.0)
    return record, check_logits(logits, 1)


def default_layer(model: nn.Module, image: Tensor) -> str:
    """Return the name of the layer that CAM methods use unless one is given.

    It is the layer that the model declares as its `cam_layer`; else, in a transformer, the first
    normalisation of the last block; else the last module through whose output, with more than one position,
    the logits depend on the image; where there is none, the last whose output has a gradient, with a
    warning. Average pooling, parts of an attention module and modules that run several times are no
    candidates. The model's parameters must take no gradient, as inside `undisturbed`. The choice depends
    on the model and on the shape of the image (1, C, H, W), not on its pixels.

    Raises
    ------
    InputError
        If no module's output has positions.
    """
    if (declared := declared_cam_layer(model)) is not None:
        return declared
    name, carries_all = _choose(model, image)
    if not carries_all:
        warn(
            f"{type(model).__name__} has no module whose output carries all that the logits depend on, so "
            f"maps of its layer '{name}' show a part of the evidence; name another by layer=…"
        )
    return name


def _choose(model: nn.Module, image: Tensor) -> tuple[str, bool]:
    """Return the name of the default layer, and whether no evidence goes around it (but for a residual sum).

    Raises
    ------
    InputError
        If no module's output has positions.
    """
    noise = torch.rand(image.shape, dtype=torch.float32, generator=generator(0, "default layer")).to(image)
    record, logits = _record(model, noise)
    times = Counter(run.name for run in record.runs)
    once = [run for run in record.runs if times[run.name] == 1 and run.has_positions]
    if not once and not logits.requires_grad:
        raise no_gradient(model)
    if not once:
        raise InputError(
            f"no module of {type(model).__name__} returns a map with more than one position for images of "
            f"shape {tuple(image.shape[1:])}, and CAM methods need one; use larger images, make a module of "
            "what its forward computes in functions, such as its last convolution, or use another method, "
            "such as 'saliency'"
        )
    graded = _with_gradient(once, logits) or once
    norm = _first_norm_of_last_block(record, once, logits)
    if norm is not None and any(norm is run for run in graded):  # else no head reads its positions
        return norm.name, True
    outside = [run for run in graded if not any(run.name.startswith(f"{each}.") for each in record.attending)]
    runs = outside or graded
    proper = [run for run in runs if not run.pools] or runs
    last = next((run for run in reversed(proper) if record.carries_all(run, logits)), None)
    attention = record.self_attention[0][0] if record.self_attention else 0
    chosen = proper[-1] if last is None or last.end < attention else last
    same = [run for run in proper if run.output is chosen.output]  # by nested modules: the outermost
    *_, outermost = (run for run in same if f"{same[0].name}.".startswith(f"{run.name}."))
    return outermost.name, last is not None or attention > 0


def cam_layer_for_card(model: nn.Module, image: Tensor) -> str | None:
    """Return the name of the layer that CAM methods use for images of the shape of `image` (1, C, H, W).

    None if there is no such layer, or a compiled part of the model hides its modules.
    """
    if hidden_part(model):
        return None
    try:
        with undisturbed(model):  # its parameters take no gradient, so that what does depends on the image
            declared = declared_cam_layer(model)
            return _choose(model, image)[0] if declared is None else declared
    except InputError:  # no output has positions; a CAM method says so if one is asked for
        return None


def _with_gradient(runs: list[_Run], logits: Tensor) -> list[_Run]:
    """Return the runs at whose positions a random mixture of the logits has a gradient."""
    if not logits.requires_grad:
        return []
    source = generator(0, "default layer")
    weights = torch.randn(logits.shape, dtype=torch.float32, generator=source).to(logits)
    outputs = [run.output for run in runs if run.output is not None]
    gradients = torch.autograd.grad((weights * logits).sum(), outputs, allow_unused=True)
    return [
        run
        for run, gradient in zip(runs, gradients, strict=True)
        if gradient is not None and run.arrangement is not None and run.arrangement.to_map(gradient).any()
    ]


def _first_norm_of_last_block(record: _Record, runs: list[_Run], logits: Tensor) -> _Run | None:
    """Return the first normalisation of the last block with self-attention, if the network ends in blocks.

    It comes before the attention, or, where normalisations follow the residual sums, carries all evidence.
    """
    if not record.self_attention:
        return None
    number, running = record.self_attention[-1]
    earlier = {name for _, names in record.self_attention[:-1] for name in names}
    blocks = {run.name: run for run in record.runs}
    for name in reversed(running):
        block = blocks[name]
        if name in earlier:
            return None  # it is more than one block
        inside = [
            run
            for run in runs
            if run.name.startswith(f"{name}.") and run.normalises and run.shape == block.shape
        ]
        if inside and (inside[0].begin < number or record.carries_all(inside[0], logits)):
            follows = any(number > block.end for number in record.convolutions)
            return None if follows else inside[0]
    return None
