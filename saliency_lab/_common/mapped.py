"""Memory for large tensors that the system may write to disk when memory is short."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LARGE = 64 << 20
"""Bytes from which a tensor is backed by a file."""


def empty_tensor(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor on the CPU whose values are to be written, as `torch.empty` does.

    A large one is mapped to a temporary file without a name, whose space on the disk is reserved first. So
    the system can write its pages out, as it cannot without swap for other memory, and the file is gone with
    the tensor, however the process ends. Where the disk has no room, and on systems other than Linux, it is
    an ordinary tensor.

    The folder is the one that TMPDIR names or, without that variable, /var/tmp, because /tmp is often in
    memory.

    >>> empty_tensor((2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """
    size = prod(shape) * dtype.itemsize
    if size >= LARGE and hasattr(os, "posix_fallocate"):
        with suppress(OSError), tempfile.TemporaryFile(dir=_folder()) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            buffer = np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)
            return torch.from_numpy(buffer).view(dtype).reshape(tuple(shape))
    return torch.empty(tuple(shape), dtype=dtype, device="cpu")


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return `x[rows]` for positions (n,) on the CPU; a large copy is made by `empty_tensor`."""
    if x.device.type != "cpu":
        return x[rows.to(x.device)]
    return torch.index_select(x, 0, rows, out=empty_tensor((len(rows), *x.shape[1:]), x.dtype))


def _folder() -> Path | None:
    """Return the folder of the files; None is that of the `tempfile` module."""
    usual = Path("/var/tmp")
    named = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    return usual if not named and os.access(usual, os.W_OK) else None
