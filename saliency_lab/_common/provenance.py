"""The versions of the packages that a result was computed with."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

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
