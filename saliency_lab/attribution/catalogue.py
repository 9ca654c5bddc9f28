"""The methods by name: what each is, its settings, and the function that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import pandas as pd
from torch import Tensor

from saliency_lab._common.registry import Registry
from saliency_lab._common.settings import Settings, list_settings
from saliency_lab.attribution.batch import Batch

Explained: TypeAlias = tuple[Tensor, Tensor | None]
"""Maps (n, C, H, W), and the scores (n,) they ought to sum to (None where the method promises no sum)."""


@dataclass(frozen=True)
class Method:
    """One way to attribute.

    `run(batch, settings)` returns `Explained`; `passes` says in words what it costs an image.
    """

    name: str
    family: str
    run: Callable[[Batch, Any], Explained]
    settings: type[Settings]
    passes: str
    reference: str


METHODS: Registry[Method] = Registry("method")


@dataclass(frozen=True)
class PerImage:
    """Marks a setting that, as a tensor of `ndim` dimensions and more than one entry, holds one an image."""

    ndim: int

    def holds(self, value: object) -> bool:
        """Whether `value` is such a tensor."""
        return isinstance(value, Tensor) and value.ndim == self.ndim and len(value) > 1


def settings_of_rows(name: str, settings: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """Settings of the method `name` for the images at `rows`: what is given one an image is cut to them."""
    fields = METHODS[name].settings.model_fields
    cut = dict(settings)
    for key, value in settings.items():
        marks = fields[key].metadata if key in fields else []
        if any(isinstance(mark, PerImage) and mark.holds(value) for mark in marks):
            cut[key] = value[rows]
    if isinstance(settings.get("base_settings"), Mapping):
        cut["base_settings"] = settings_of_rows(settings["base"], settings["base_settings"], rows)
    return cut


def method(
    name: str, *, family: str, passes: str, reference: str, settings: type[Settings] = Settings
) -> Callable[[Callable[[Batch, Any], Explained]], Callable[[Batch, Any], Explained]]:
    """Register the decorated function as the method `name`."""

    def decorate(run: Callable[[Batch, Any], Explained]) -> Callable[[Batch, Any], Explained]:
        METHODS.add(name, Method(name, family, run, settings, passes, reference))
        return run

    return decorate


def list_methods() -> pd.DataFrame:
    """What `attribute` knows, indexed by name: family, settings with defaults, cost an image, source."""
    rows = [
        {
            "name": each.name,
            "family": each.family,
            "settings": list_settings(each.settings),
            "passes": each.passes,
            "reference": each.reference,
        }
        for each in (METHODS[name] for name in METHODS)
    ]
    return pd.DataFrame(rows).set_index("name")
