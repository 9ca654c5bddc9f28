"""Cells: one unit of a study's work, named by the content of what it depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

import saliency_lab
from saliency_lab._common.fingerprints import fingerprint
from saliency_lab._common.provenance import versions

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
