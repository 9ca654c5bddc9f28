"""Where a result comes from: versions, and fingerprints of tensors and models."""

from __future__ import annotations

import hashlib
import json
import platform
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGES = (
    "saliency-lab",
    "torch",
    "torchvision",
    "captum",
    "quantus",
    "pyautoattack",
    "numpy",
    "scikit-image",
)


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def fingerprint(*parts: Any) -> str:
    """Hash of values: tensors by dtype, shape and content, the rest by their canonical JSON; 32 hex digits.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if hasattr(part, "detach"):
            array = part.detach().cpu().contiguous().numpy()
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """Hash of a model's architecture (its printed form) and of every parameter and buffer."""
    state: dict[str, Tensor] = model.state_dict()
    return fingerprint(repr(model), list(state), *(tensor.float() for tensor in state.values()))
