"""The entries of a study's store: what a result depends on, what it contains, and where it belongs."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from torch import Tensor

from saliency_lab._common.hashing import fingerprint
from saliency_lab._common.provenance import versions

DEFINITIONS = "0.1.0"
"""The version of this package since which results keep their values.

It is part of every key. A change of a single method, metric or attack raises its own revision instead (see
`study.keys`), so that everything else in a store stays valid.
"""

Kind = Literal["maps", "scores", "attack", "audit", "retraining"]

_PACKAGES: dict[Kind, tuple[str, ...]] = {
    "maps": ("torch", "captum", "numpy", "scikit-image"),
    "scores": ("torch", "quantus", "numpy", "scikit-image"),
    "attack": ("torch", "pyautoattack"),
    "audit": ("torch", "pyautoattack"),
    "retraining": ("torch", "captum", "numpy", "scikit-image"),
}


@dataclass(frozen=True, eq=False)
class Result:
    """Maps, scores, an attack, an audit or a retraining, identified by what it depends on.

    Two results with equal `depends` are the same result on any machine. `key` is the hash of `depends`.
    """

    kind: Kind
    depends: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """The name of the result in a store: 32 hex digits."""
        return fingerprint(self.kind, dict(self.depends))


@dataclass(frozen=True, eq=False)
class Content:
    """The content of a result: tensors by name, and facts that JSON can represent."""

    tensors: Mapping[str, Tensor]
    info: Mapping[str, Any] = field(default_factory=dict)


class Place(NamedTuple):
    """The position of a result in a study's grid.

    `label` names a method, an attack or an audit. `metric` is empty unless the result is a vector of scores.
    """

    kind: Kind
    label: str
    metric: str
    model: str
    seed: int

    @property
    def maps(self) -> Place:
        """The place of the maps that scores belong to."""
        return self._replace(kind="maps", metric="")

    @property
    def what(self) -> str:
        """The label, or the metric and the method that it scores."""
        return f"{self.metric} of {self.label}" if self.metric else self.label


@dataclass(frozen=True, eq=False)
class Failure:
    """Why a result could not be computed.

    The exception itself is available only in the process that raised it.
    """

    error: str
    traceback: str
    exception: BaseException | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception, and release what its frames refer to: images, activations, GPU memory."""
        text = "".join(traceback.format_exception(error))
        traceback.clear_frames(error.__traceback__)
        return cls(f"{type(error).__name__}: {error}", text, error)


def cache_versions(kind: Kind) -> dict[str, str]:
    """Return the versions of the packages that the values of a result depend on."""
    known = versions()
    return {"saliency-lab": DEFINITIONS} | {name: known[name] for name in _PACKAGES[kind]}
