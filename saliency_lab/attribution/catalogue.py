"""The methods by name: what each is, its settings, and the function that computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import pandas as pd
from torch import Tensor

from saliency_lab._common.registry import Registry
from saliency_lab._common.settings import Settings
from saliency_lab.attribution.task import Task

Explained: TypeAlias = tuple[Tensor, Tensor | None]
"""Maps (n, C, H, W), and the scores (n,) they ought to sum to (None where the method promises no sum)."""


@dataclass(frozen=True)
class Method:
    """One way to attribute.

    `run(task, settings)` returns `Explained`; `passes` says in words what it costs an image.
    """

    name: str
    family: str
    run: Callable[[Task, Any], Explained]
    settings: type[Settings]
    passes: str
    reference: str


METHODS: Registry[Method] = Registry("method")


class NoSettings(Settings):
    """The method has none."""


def method(
    name: str, *, family: str, passes: str, reference: str, settings: type[Settings] = NoSettings
) -> Callable[[Callable[[Task, Any], Explained]], Callable[[Task, Any], Explained]]:
    """Register the decorated function as the method `name`."""

    def decorate(run: Callable[[Task, Any], Explained]) -> Callable[[Task, Any], Explained]:
        METHODS.add(name, Method(name, family, run, settings, passes, reference))
        return run

    return decorate


def list_methods() -> pd.DataFrame:
    """What `attribute` knows, indexed by name: family, settings with defaults, cost an image, source."""
    rows = [
        {
            "name": each.name,
            "family": each.family,
            "settings": ", ".join(
                key if field.is_required() else f"{key}={field.get_default(call_default_factory=True)!r}"
                for key, field in each.settings.model_fields.items()
            ),
            "passes": each.passes,
            "reference": each.reference,
        }
        for each in (METHODS[name] for name in METHODS)
    ]
    return pd.DataFrame(rows).set_index("name")
