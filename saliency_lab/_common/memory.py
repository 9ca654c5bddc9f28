"""Keep freed memory for the next pass on the CPU, where the C library would give it back to the system.

This changes settings of the process, so one variable turns it off: `SALIENCY_LAB_KEEP_MEMORY=0`.
`benchmarks/allocator.py` measures what it saves.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


def may_tune_allocator() -> bool:
    """Return whether the C library is glibc and no environment variable asks to leave its allocator alone."""
    if os.environ.get("SALIENCY_LAB_KEEP_MEMORY", "1") in {"0", "false", "no"}:
        return False
    tuned = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    return not tuned and platform.libc_ver()[0] == "glibc"


@cache
def raise_mmap_threshold() -> None:
    """Make glibc keep freed blocks of up to 31 MB for the next pass, for the rest of the process.

    By default glibc returns blocks that are larger than any freed before to the system and fetches them
    again page by page, which takes up to a third of a pass of a small network. glibc raises its own threshold
    when a block of 31 MB is freed, so this allocates and frees one.
    """
    if may_tune_allocator():
        torch.empty(31 << 20, dtype=torch.uint8, device="cpu")


# From malloc.h, with the values at which glibc's own adjustment ends after large blocks were freed.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_AFTERWARDS = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
_NEVER = -1


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Make glibc keep freed memory of any size inside: a training needs the same blocks at every step.

    No result changes. On leaving, free memory is returned to the system, and the thresholds are set to the
    values at which glibc's own adjustment ends (32 and 64 MiB), for the rest of the process.
    """
    if not may_tune_allocator():
        yield
        return
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        for option, value in _AFTERWARDS.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)
