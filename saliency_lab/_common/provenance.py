"""Where a result comes from: the versions of what computed it, the processor and the threads."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata
from pathlib import Path

import saliency_lab

PACKAGES = (
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
    installed = {"python": platform.python_version(), "saliency-lab": saliency_lab.__version__}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "absent"
    return installed


def machine() -> dict[str, str | int]:
    """Return the processor and the number of threads that torch uses: both can change a result's last digits.

    >>> sorted(machine())
    ['processor', 'threads']
    """
    import torch  # here, so that `import saliency_lab` stays fast

    return {"processor": _processor(), "threads": torch.get_num_threads()}


@cache
def _processor() -> str:
    """Return the name of the processor as the system gives it."""
    try:  # Linux, where `platform` knows the architecture alone
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine() or "unknown"
