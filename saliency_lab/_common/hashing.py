"""A hash of tensors and of values that JSON can hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ROWS = 512  # that are converted at a time


@dataclass(frozen=True)
class TensorBlocks:
    """A tensor that is hashed block by block, so that it need not be in memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Iterable[Tensor]
    """Its rows, some at a time and in order."""

    @classmethod
    def of(cls, tensor: Tensor, dtype: torch.dtype) -> TensorBlocks:
        """Return a tensor (N, ...) in another precision, of which no copy is made at once."""
        return cls(dtype, tuple(tensor.shape), (rows.to(dtype) for rows in tensor.split(_ROWS)))


def fingerprint(*parts: Any) -> str:
    """Hash tensors by dtype, shape and content, and other values by their canonical JSON.

    Returns
    -------
    str
        32 hexadecimal digits (BLAKE2b).

    Examples
    --------
    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            part = TensorBlocks(part.dtype, tuple(part.shape), [part])
        if isinstance(part, TensorBlocks):
            digest.update(f"{str(part.dtype).removeprefix('torch.')}{part.shape}".encode())
            for block in part.blocks:
                values = block.detach().cpu().contiguous().reshape(-1)
                digest.update(values.view(torch.uint8).numpy().data)
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()
