"""What the C library does with freed memory while a network is trained on the CPU."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# malloc.h, and the values that glibc's own adjustment ends at after large blocks
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_DEFAULTS = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
_NEVER = -1


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let glibc keep freed memory for the next step, instead of giving it back and faulting it in again.

    Every step frees its activations, tens of megabytes each, and the next one needs the same again. Results
    do not change, peak memory hardly does (`docs/benchmarks.md`). On leaving, free memory goes back to
    the system and glibc's default thresholds hold. Nothing happens with another C library, nor where the
    user has tuned the allocator by ``MALLOC_…`` or ``GLIBC_TUNABLES``.
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
        for option, value in _DEFAULTS.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)
