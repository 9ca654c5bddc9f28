"""Maps with one byte per value: an eight-bit floating-point number, and one scale per map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saliency_lab._common.mapped import empty_tensor

CODE = torch.float8_e4m3fn
"""Four bits of exponent and three of mantissa: values are rounded by at most 1/16 of themselves."""

_ROWS = 64  # maps that are unpacked at a time


@dataclass(frozen=True, eq=False)
class PackedMaps:
    """Maps (N, C, H, W) as codes of one byte per value; rows are unpacked when they are read.

    Values below 2⁻¹⁸ of a map's largest magnitude, about four millionths, become zero. A map that holds NaN
    or infinities is NaN throughout.

    Parameters
    ----------
    codes : Tensor
        float8 (N, C, H, W).
    scales : Tensor
        float32 (N,): what the codes of each map are multiplied by.

    Examples
    --------
    >>> maps = torch.tensor([1.0, -0.3, 0.001, 0.0]).reshape(1, 1, 2, 2)
    >>> packed = PackedMaps.of(maps)
    >>> bool(((packed[:] - maps).abs() <= maps.abs() / 16).all())
    True
    """

    codes: Tensor
    scales: Tensor

    @classmethod
    def of(cls, maps: Tensor) -> PackedMaps:
        """Pack float32 maps (N, C, H, W)."""
        codes, scales = empty_tensor(maps.shape, CODE), torch.ones(len(maps))
        for row, each in enumerate(maps):
            codes[row] = 0
            largest = each.abs().amax()
            if not largest.isfinite():
                scales[row] = torch.nan
            elif largest > 0:
                scales[row] = (largest / torch.finfo(CODE).max).clamp_min(torch.finfo(torch.float32).tiny)
                codes[row] = (each / scales[row]).to(CODE)
        return cls(codes, scales)

    @property
    def shape(self) -> torch.Size:
        """The shape of the maps."""
        return self.codes.shape

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice) -> Tensor:
        """Unpack some of the maps, float32."""
        codes, scales = self.codes[rows], self.scales[rows].reshape(-1, 1, 1, 1)
        maps = empty_tensor(codes.shape)
        for start in range(0, len(maps), _ROWS):
            part = slice(start, start + _ROWS)
            torch.mul(codes[part].float(), scales[part], out=maps[part])
        return maps
