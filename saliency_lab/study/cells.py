"""Cells: one unit of a study's work, named by the content of what it depends on."""

from __future__ import annotations

import functools
import inspect
import types
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

Kind = Literal["maps", "scores", "attack", "audit"]

_PACKAGES: dict[Kind, tuple[str, ...]] = {
    "maps": ("torch", "captum", "numpy", "scikit-image"),
    "scores": ("torch", "quantus", "numpy", "scikit-image"),
    "attack": ("torch", "pyautoattack"),
    "audit": ("torch", "pyautoattack"),
}


@dataclass(frozen=True, eq=False)
class Cell:
    """A set of maps, a vector of scores, an attack or an audit, by what it depends on.

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

    A function counts by its source text, its defaults and the values it closes over, another callable by its
    class and its attributes; globals that they use do not count.

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
        return f"function {fingerprint(_described(value, ()))}"
    return value


_EMPTY = types.CellType()


def _described(value: Callable[..., Any], seen: tuple[int, ...]) -> Any:
    """What a callable does, as far as it can be seen: its text, and what it holds."""
    if id(value) in seen:  # a function that closes over itself
        return "itself"

    def held(each: Any) -> Any:
        if isinstance(each, Mapping):
            return {str(name): held(inner) for name, inner in each.items()}
        if isinstance(each, list | tuple):
            return [held(inner) for inner in each]
        if callable(each) and not isinstance(each, nn.Module):
            return _described(each, (*seen, id(value)))
        plain = canonical(each)
        return plain if isinstance(plain, str | int | float | list | None) else str(type(each))

    if isinstance(value, functools.partial):
        return ["partial", held(value.func), held(value.args), held(value.keywords)]
    if inspect.ismethod(value):
        return [_text(value.__func__), type(value.__self__).__qualname__, held(_attributes(value.__self__))]
    if inspect.isfunction(value):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
        return [_text(value), held(cells), held(value.__defaults__), held(value.__kwdefaults__)]
    if inspect.isclass(value) or inspect.isbuiltin(value):
        return _text(value)
    return [_text(type(value)), held(_attributes(value))]


def _attributes(value: object) -> dict[str, Any]:
    return dict(getattr(value, "__dict__", {}))


def _text(value: Any) -> str:
    """Qualified name and source text, and the code where that text may hold more than this function."""
    code = getattr(value, "__code__", None)
    try:
        text = inspect.getsource(value if code is None else code)  # of the wrapper, not of what it wraps
    except (OSError, TypeError):
        text = ""
    if code is not None and (not text or code.co_name == "<lambda>"):
        constants = [each for each in code.co_consts if isinstance(each, int | float | str)]
        text += f" {code.co_code.hex()} {code.co_names} {constants}"
    return f"{value.__module__}.{value.__qualname__} {text}"
