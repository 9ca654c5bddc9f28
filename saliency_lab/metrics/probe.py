"""Predictions of a model on a block of images and on variants of them, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from saliency_lab._common.baseline import BaselineName, named_baseline
from saliency_lab._common.calls import Call, Rule, calls, hidden_part
from saliency_lab._common.checks import check_logits
from saliency_lab._common.inference import (
    device_of,
    dtype_of,
    float64_device,
    pass_rows,
    run_without_graph,
    undisturbed,
)
from saliency_lab._common.passes import Layout, Passes, arranged
from saliency_lab._common.seeding import sample_seeds

Output = Literal["probability", "logit"]
"""Which output of the label's class is read: after the softmax, or before it."""

Baseline = BaselineName
"""The value that a removed pixel takes; the attribution methods have the same baselines."""

T = TypeVar("T")


class _ReadsMemory(Rule):
    """Notes whether a model reads where values are in memory, and not by their indices alone."""

    _READS = calls("as_strided", "stride", "data_ptr", "storage", "untyped_storage", "storage_offset")

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.found = self.found or func in self._READS
        return func(*args, **kwargs)


@dataclass(frozen=True)
class ProbePredictions:
    """Outputs for the label's class, float64, and whether that class won, bool; all of one shape."""

    logit: Tensor
    probability: Tensor
    correct: Tensor

    def read(self, output: Output) -> Tensor:
        """Return the probability or the logit of the label's class."""
        return self.probability if output == "probability" else self.logit

    @property
    def right(self) -> Tensor:
        """1 where the label's class won, else 0; NaN where the answer is not a number. Float64."""
        return self.correct.double().where(~self.probability.isnan(), torch.nan)

    @staticmethod
    def join(parts: Sequence[ProbePredictions]) -> ProbePredictions:
        """Join answers (N, K₁), (N, K₂), … into (N, K₁ + K₂ + …)."""
        joined = zip(*((part.logit, part.probability, part.correct) for part in parts), strict=True)
        return ProbePredictions(*(torch.cat(tensors, 1) for tensors in joined))


def _is_wide(model: nn.Module) -> bool:
    """Return whether a convolution has more than 128 channels.

    On the CPU `channels_last` is up to 1.5 times faster for narrow ones, as fast for wide ones on large maps,
    and up to 1.8 times slower for wide ones on maps of 4×4, in which networks for small images end.
    """
    return any(isinstance(module, nn.Conv2d) and module.out_channels > 128 for module in model.modules())


_MOST = 64
"""Images of a pass: half of a chunk, so that the first layers' outputs stay in the allocator."""


def _own_rows(model: nn.Module, shape: torch.Size) -> int:
    """Return how many images a pass has where that was not measured."""
    rows = pass_rows(model, shape, backward=False)
    return min(rows, _MOST) if device_of(model).type == "cpu" else max(1, rows // 2)


def passes_of(model: nn.Module, x: Tensor) -> Passes:
    """Return the passes of a call that scores images (N, C, H, W); a measured form must beat the probe's."""
    layout: Layout = "contiguous" if _is_wide(model) else "channels_last"
    return Passes(model, x, own=(_own_rows(model, x.shape), layout))


class Probe:
    """A model, a block of images and labels, a seed, and the predictions so far.

    Predictions are cached by the images they are for, so that methods and metrics that need the same
    share the forward passes. Images and their variants are on `device`, the model's; maps and predictions,
    float64, are at `home`, which is the same wherever there is float64. `passes` are those of the call, which
    may run in a faster form of the model. `networks` are those that are made once for all blocks of the call.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        seed: int,
        passes: Passes | None = None,
        networks: dict[str, nn.Module] | None = None,
    ) -> None:
        self.model = model
        self.device, self.dtype = device_of(model), dtype_of(model)
        self.home = float64_device(self.device)
        self.images = x
        self.labels = y
        self.x = x.to(self.device)
        self.y = y.to(self.device)
        self.seed = seed
        self.passes = passes_of(model, x) if passes is None else passes
        self.chunk = self.passes.rows or _own_rows(model, x.shape)
        self.networks = {} if networks is None else networks
        self._memory: dict[Any, Any] = {}
        self._layout: Layout | None = "contiguous" if _is_wide(model) else None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def pixels(self) -> int:
        """H·W."""
        return self.x.shape[2] * self.x.shape[3]

    def remember(self, key: tuple[Any, ...], compute: Callable[[], T]) -> T:
        """Return what was computed for `key`, computing it the first time."""
        if key not in self._memory:
            self._memory[key] = compute()
        return cast(T, self._memory[key])

    def seeds(self, purpose: str) -> list[int]:
        """Return one seed per image, from (seed, purpose, the image)."""
        return self.remember(("seeds", purpose), lambda: sample_seeds(self.images, self.seed, purpose))

    def logits(self, images: Tensor) -> Tensor:
        """Logits (n, K) of images on the model's device, in one pass, in the model's own type."""
        images = images.to(self.dtype)
        with undisturbed(self.model), torch.inference_mode(False):
            if self.passes.plan is not None:
                out = self.passes.logits(images)
            elif self._layout is None:
                out = self._first_logits(images)
            else:
                out = run_without_graph(self.model, arranged(images, self._layout))
        return check_logits(out, len(images))

    def _first_logits(self, images: Tensor) -> Tensor:
        """Choose the layout in the first pass: the faster one, unless the model depends on it.

        `.view` needs rows in the plain order. What reads strides returns other logits without an error.
        """
        watch, given = _ReadsMemory(), arranged(images, "channels_last")
        try:
            with nullcontext() if hidden_part(self.model) else watch:
                out = run_without_graph(self.model, given)
        except RuntimeError:
            watch.found = True
        self._layout = "contiguous" if watch.found else "channels_last"
        return run_without_graph(self.model, arranged(images, self._layout)) if watch.found else out

    def ask(
        self,
        count: int,
        build: Callable[[Tensor, Tensor], Tensor],
        *,
        source: Tensor | None = None,
        base: ProbePredictions | None = None,
    ) -> ProbePredictions:
        """Return predictions (N, count) on variants of each image.

        `build(i, j)` returns variant `j[k]` of image `i[k]` for each k; passes are full chunks over
        images × variants, all images' first variant first: variants of a kind are built together.

        Variants that are one image are asked once where `source` (N, count) says so: it holds the number of
        the first of them, so a variant's own number if it is alone, or −1 if `base` (N, 1) is the answer.
        """
        own = torch.arange(count, device=self.device)
        source = own.expand(len(self), -1) if source is None else source
        asked = (source == own).T.flatten().nonzero()[:, 0]
        rows = [] if base is None else [(base.logit[:, 0], base.probability[:, 0], base.correct[:, 0])]
        place = torch.arange(len(self) * (count + 1), device=self.device)
        place[len(self) + asked] = torch.arange(len(asked), device=self.device) + len(self) * len(rows)
        for index in asked.split(self.chunk) if len(asked) else ():
            i, j = index % len(self), index // len(self)
            rows.append(self._answer(build(i, j), self.y[i]))
        at = place.view(count + 1, len(self)).gather(0, source.T + 1).T.to(self.home)
        return ProbePredictions(*(torch.cat(parts)[at] for parts in zip(*rows, strict=True)))

    def _answer(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # float64 before softmax: near 1, probabilities of float32 are 6e-8 apart, which is a drop's size
        logits, labels = self.logits(images).to(self.home).double(), labels.to(self.home)
        at = labels[:, None]
        return (
            logits.gather(1, at)[:, 0],
            logits.softmax(1).gather(1, at)[:, 0],
            logits.argmax(1) == labels,
        )

    @property
    def clean(self) -> ProbePredictions:
        """Predictions (N, 1) on the images themselves."""
        return self.remember(("clean",), lambda: self.ask(1, lambda i, j: self.x[i]))

    @property
    def predicted(self) -> Tensor:
        """The class (N,) predicted for each image, on the CPU."""
        return self.remember(
            ("predicted",),
            lambda: torch.cat([self.logits(chunk).argmax(1) for chunk in self.x.split(self.chunk)]).cpu(),
        )

    def empty(self, baseline: Baseline) -> ProbePredictions:
        """Return predictions (N, 1) on the baselines themselves."""
        return self.remember(("empty", baseline), lambda: self.ask(1, lambda i, j: self.fill(baseline)[i]))

    def fill(self, baseline: Baseline) -> Tensor:
        """Return what removed pixels become, (N, C, H, W)."""
        return self.remember(("fill", baseline), lambda: named_baseline(baseline, self.x, self.seeds))

    def touched(self, baseline: Baseline) -> Tensor:
        """Return which pixels (N, H·W) change when they are removed."""
        return self.remember(("touched", baseline), lambda: (self.x != self.fill(baseline)).any(1).flatten(1))
