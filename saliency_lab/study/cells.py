"""Cells: one unit of a study's work, named by the content of what it depends on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

import saliency_lab
from saliency_lab._common.provenance import fingerprint, model_fingerprint, versions

Kind = Literal["maps", "scores", "attack"]

_PACKAGES: dict[Kind, tuple[str, ...]] = {
    "maps": ("torch", "captum"),
    "scores": ("torch", "quantus", "numpy", "scikit-image"),
    "attack": ("torch",),
}


@dataclass(frozen=True, eq=False)
class Cell:
    """A set of maps, a vector of scores or an attack, by what it depends on.

    Two cells with equal `depends` are the same cell, on any machine: `key` is its hash.
    """

    kind: Kind
    depends: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """32 hex digits."""
        return fingerprint(self.kind, dict(self.depends))


@dataclass(frozen=True, eq=False)
class Content:
    """What a cell holds: tensors by name, and facts that JSON can hold."""

    tensors: Mapping[str, Tensor]
    info: Mapping[str, Any] = field(default_factory=dict)


def matters(kind: Kind) -> dict[str, str]:
    """Versions of what the values of a cell depend on."""
    known = versions()
    return {"saliency-lab": saliency_lab.__version__} | {name: known[name] for name in _PACKAGES[kind]}


def canonical(value: Any) -> Any:
    """Reduce settings to what JSON can hold, with tensors, arrays and functions by their content.

    A function counts by its source text, not by what it closes over.

    >>> canonical({"sigma": np.float32(0.5), "sizes": (1, 2), "baseline": torch.zeros(2)})
    {'sigma': 0.5, 'sizes': [1, 2], 'baseline': 'tensor ...'}
    """
    if isinstance(value, BaseModel):
        return {name: canonical(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(name): canonical(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [canonical(each) for each in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, Tensor):
        return f"tensor {fingerprint(value)}"
    if isinstance(value, np.ndarray):
        return f"array {fingerprint(torch.from_numpy(np.ascontiguousarray(value)))}"
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, nn.Module):
        return f"model {model_fingerprint(value)}"
    if callable(value):
        return f"function {source_fingerprint(value)}"
    return value


def source_fingerprint(function: Callable[..., Any]) -> str:
    """Hash of a function's qualified name and source text (of its code, where there is no source)."""
    name = f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        text = code.co_code.hex() if code is not None else repr(type(function))
    return fingerprint(name, text)
