"""How a method's maps are made again: for other inputs, other classes and other networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from saliency_lab._common.errors import InputError
from saliency_lab._common.inference import chunk_rows
from saliency_lab._common.settings import Settings
from saliency_lab.attribution import Attributions, attribute
from saliency_lab.metrics.maps import take_maps

Explain = Callable[[nn.Module, Tensor, Tensor], Any]
"""`explain(model, x, classes)` returns maps of `x` (n, C, H, W) for one class an image (n,)."""

GROUP = 512
"""Images handed to `attribute` at a time, which cuts them into passes; your own function gets one pass's."""


class Explaining(Settings):
    """For metrics that make maps again; `explain` is needed where the maps are no `Attributions`."""

    explain: Explain | None = None


class Explainer:
    """One method's way to make maps, and the classes (n,) that the given maps explain."""

    def __init__(self, attributions: Any, y: Tensor) -> None:
        self.source = attributions if isinstance(attributions, Attributions) else None
        self.classes = y.cpu() if self.source is None else self.source.classes.cpu()
        self.memory: dict[Any, Any] = {}

    def rows(self, rows: slice) -> Explainer:
        """Return it for some of the images."""
        part = copy.copy(self)
        part.classes, part.memory = self.classes[rows], {}
        return part

    def remember(self, key: tuple[Any, ...], compute: Callable[[], Tensor]) -> Tensor:
        """Return what was computed for `key`, computing it the first time; metrics of a method share it."""
        if key not in self.memory:
            self.memory[key] = compute()
        return self.memory[key]

    def __call__(
        self, model: nn.Module, x: Tensor, classes: Tensor, explain: Explain | None = None
    ) -> Tensor:
        """Maps (n, C, H, W), float64, on the CPU, by `explain` or as the given ones were made.

        Raises
        ------
        InputError
            If it is not known how the maps were made.
        """
        run = explain or self._again
        size = GROUP if explain is None else max(1, chunk_rows(x.shape) // 2)
        parts = [
            take_maps(run(model, some, which), some, of="what explain returns")
            for some, which in zip(x.cpu().split(size), classes.split(size), strict=True)
        ]
        return torch.cat(parts)

    def _again(self, model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
        source = self.source
        if source is None:
            raise InputError(
                "this metric makes maps again, but was given plain ones: hand in the Attributions that "
                "`attribute` returned, or explain=f with f(model, x, classes) returning maps"
            )
        if source.own and source.function is None:
            raise InputError(
                f"this metric makes maps again, and these were made by your own '{source.method}', of which "
                "their file holds the name alone: hand in explain=f with f(model, x, classes) returning maps"
            )
        if source.processing or self.classes.ndim != 1:
            raise InputError(
                "this metric makes maps again, and these were reduced, normalised or contrast two classes: "
                "hand in the maps as `attribute` returned them for one class, or explain=f"
            )
        method = source.function or source.method
        return attribute(model, x, classes, method=method, seed=source.seed, **source.settings).values
