"""Augmentation of a batch by tensor operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PAD = 4
"""The largest shift of an image, in pixels."""


def crop_and_flip(x: Tensor, draws: Tensor) -> Tensor:
    """Shift each image by up to `PAD` pixels in both directions, filling with zeros, and mirror half of them.

    `x` is (N, C, H, W); `draws` is uniform on [0, 1), (N, 3): shift down, shift right, mirror.
    """
    height, width = x.shape[2:]
    shifts = (draws[:, :2] * (2 * PAD + 1)).long()
    mirrored = draws[:, 2:] < 0.5
    rows = shifts[:, :1] + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(len(x), -1)
    columns = shifts[:, 1:] + torch.where(mirrored, columns.flip(1), columns)
    samples = torch.arange(len(x), device=x.device)[:, None, None]
    padded = F.pad(x, (PAD, PAD, PAD, PAD))
    return padded[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
