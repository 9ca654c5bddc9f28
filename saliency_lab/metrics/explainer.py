"""How a method's maps are made again: for other inputs, other classes and other networks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saliency_lab._common.errors import InputError
from saliency_lab._common.settings import Settings
from saliency_lab._common.warn import warn
from saliency_lab.attribution import Attributions
from saliency_lab.attribution.api import Originals, attribute_points
from saliency_lab.metrics.maps import take_maps

Explain = Callable[[nn.Module, Tensor, Tensor], Any]
"""`explain(model, x, classes)` returns maps of `x` (n, C, H, W) for one class per image (n,).

It is called as `attribute` calls a custom method: on chunks, on the model's device and in its type, with
the model in eval mode, gradients on and the generators seeded; all of it is put back.
"""


DIFFERENT = 0.1
"""Relative change of a map from which it is another one; rounding stays far below in any precision."""


class Explaining(Settings):
    """For metrics that make maps again; `explain` is needed where the maps are no `Attributions`."""

    explain: Explain | None = None


class Explainer:
    """How one method makes maps again, for images (n, C, H, W) whose given maps explain `classes` (n,)."""

    def __init__(self, attributions: Any, x: Tensor, y: Tensor, seed: int) -> None:
        self.source = attributions if isinstance(attributions, Attributions) else None
        self.images = x
        self.classes = y.cpu() if self.source is None else self.source.classes.cpu()
        self.places = torch.arange(len(x))
        self.seed = seed if self.source is None else self.source.seed
        self.memory: dict[Any, Any] = {}
        self._compared: set[Explain | None] = set()

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, rows: slice) -> Explainer:
        """Return it for some of the images."""
        part = copy.copy(self)
        part.images, part.classes, part.places = self.images[rows], self.classes[rows], self.places[rows]
        part.memory = {}
        return part

    def remember(self, key: tuple[Any, ...], compute: Callable[[], Tensor]) -> Tensor:
        """Return what was computed for `key`, computing it the first time; metrics of a method share it."""
        if key not in self.memory:
            self.memory[key] = compute()
        return self.memory[key]

    def __call__(
        self,
        model: nn.Module,
        points: Tensor,
        explain: Explain | None = None,
        *,
        classes: Tensor | None = None,
    ) -> Tensor:
        """Maps of `points`, in their shape, float64, on the CPU, by `explain` or as the given ones were made.

        `points` are one per image, (n, C, H, W), or several, (n, S, C, H, W). They are explained for the
        class of their image, or for `classes`, one per point. Φ is one function: whatever the method draws
        or was given for an image, it draws and is given for its points.

        Raises
        ------
        InputError
            If it is not known how the maps were made.
        """
        flat = points.flatten(0, -4).cpu()
        of = torch.arange(len(self)).repeat_interleave(len(flat) // len(self))
        method, settings = self._method() if explain is None else (_as_method(explain), {})
        maps = attribute_points(
            model,
            flat,
            self.classes[of] if classes is None else classes,
            Originals(self.images, of, self.places),
            method,
            seed=self.seed,
            settings=settings,
        )
        return maps.double().reshape(points.shape)

    def compare(self, model: nn.Module, maps: Tensor, explain: Explain | None = None) -> None:
        """Warn if `maps` (n, C, H, W) are not those of `model`; one map is made again to see it.

        That map is the first that is not zero. It is made once for each `explain`, whatever the rows.
        """
        varied = maps.flatten(1).any(1).nonzero()
        if explain in self._compared or not len(varied):
            return
        self._compared.add(explain)
        row = int(varied[0])
        given = maps[row].cpu().double()
        alone = self.rows(slice(row, row + 1))
        change = float((alone(model, alone.images, explain)[0] - given).norm() / given.norm())
        if change > DIFFERENT:
            name = "explain" if self.source is None or explain is not None else f"'{self.source.method}'"
            warn(
                f"{name} makes other maps of this model than those given: the map of image "
                f"{int(self.places[row])} differs by {change:.0%} of its norm. The metric compares the two, "
                "so its scores say little; pass the model that the maps were made for"
            )

    def _method(self) -> tuple[Any, Mapping[str, Any]]:
        """Return the method that made the given maps, and its settings."""
        source = self.source
        if source is None:
            raise InputError(
                "this metric makes maps again, but was given plain ones: pass the Attributions that "
                "`attribute` returned, or explain=f with f(model, x, classes) returning maps"
            )
        if source.own and source.function is None:
            raise InputError(
                f"this metric makes maps again, and these were made by your own '{source.method}', of which "
                "the file has only the name: pass explain=f with f(model, x, classes) returning maps"
            )
        if lost := source.lost_settings:
            raise InputError(
                "this metric makes maps again, and these were read from a file, which has only the "
                f"fingerprint of a tensor among the settings ({', '.join(lost)} of '{source.method}'): pass "
                "the Attributions that `attribute` returned, or explain=f with f(model, x, classes) "
                "returning maps"
            )
        if source.processing or self.classes.ndim != 1:
            raise InputError(
                "this metric makes maps again, and these were reduced, normalised or contrast two classes: "
                "pass the maps as `attribute` returned them for one class, or explain=f"
            )
        return source.function or source.method, source.settings


def _as_method(explain: Explain) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """Return `explain` as a method of `attribute`: its maps may be one value per pixel, or an array."""

    def explained(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
        return take_maps(explain(model, x, classes), x, of="what explain returns")

    return explained
