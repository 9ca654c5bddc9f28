"""What the C library does with memory that a pass on the CPU has freed."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@cache
def keep_memory() -> None:
    """Let glibc's allocator keep the memory of blocks up to 31 MB for the next pass.

    It gives larger blocks than were ever freed back to the system, and fetches them again page by page: up to
    a third of the time of a pass of a small network. Once one of 31 MB was freed, it keeps those below.
    Other allocators take no notice, nor does glibc's where `MALLOC_…` variables set its thresholds.
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")


# malloc.h, and the values that glibc's own adjustment ends at after large blocks
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_AFTERWARDS = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
_NEVER = -1


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let glibc keep freed memory of any size, as a training needs the same blocks again at every step.

    Results do not change. On leaving, free memory goes back to the system, and the thresholds are those
    that glibc's own adjustment ends at (32 and 64 MiB), for good. Nothing happens with another C library,
    nor where the user has tuned the allocator by ``MALLOC_…`` or ``GLIBC_TUNABLES``.
    """
    tuned = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if tuned or platform.libc_ver()[0] != "glibc":
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
