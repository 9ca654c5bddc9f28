"""Similarity of two maps of the same image: one float64 per sample, NaN where it is undefined."""

from __future__ import annotations

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from saliency_lab._common.errors import InputError
from saliency_lab._common.ranks import largest, largest_count, spearman


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Compute Spearman's ρ over all values of each sample, with mean ranks for ties; NaN for a constant map.

    >>> x = torch.rand(2, 1, 4, 4)
    >>> rank_correlation(x, 3 * x + 1).tolist()
    [1.0, 1.0]
    """
    return spearman(*_checked(a, b))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Compute the structural similarity of maps scaled by their largest magnitude; NaN for a map of zeros.

    The range of the values is 2, or 1 where neither map has a negative value, as for magnitudes. Windows have
    7 × 7 pixels, or fewer on smaller maps; a map with a side of 1 or 2 pixels is one window.
    Wang et al., IEEE Transactions on Image Processing, 2004.

    >>> x = torch.rand(2, 3, 8, 8)
    >>> ssim(x, x).tolist()
    [1.0, 1.0]
    """
    _checked(a, b)
    window = min(7, *(size - 1 + size % 2 for size in a.shape[2:]))
    scores = []
    for first, second in zip(a.double().numpy(), b.double().numpy(), strict=True):
        scales = [np.abs(each).max() for each in (first, second)]
        if not all(0 < scale < np.inf for scale in scales):
            scores.append(np.nan)
            continue
        first, second = first / scales[0], second / scales[1]
        span = 1.0 if min(first.min(), second.min()) >= 0 else 2.0
        if window < 3:
            scores.append(
                float(np.mean([_one_window(*pair, span) for pair in zip(first, second, strict=True)]))
            )
            continue
        scores.append(structural_similarity(first, second, data_range=span, channel_axis=0, win_size=window))
    return torch.tensor(scores, dtype=torch.float64)


def _one_window(a: np.ndarray, b: np.ndarray, span: float) -> float:
    """Return the structural similarity of two planes (H, W) that are one window each."""
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    (va, cov), (_, vb) = np.cov(a.ravel(), b.ravel()) if a.size > 1 else np.zeros((2, 2))
    ma, mb = a.mean(), b.mean()
    return float((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))


def top_k_overlap(a: Tensor, b: Tensor, k: float = 0.1) -> Tensor:
    """Compute the share of the k·P largest values of `a` that are among the k·P largest of `b`.

    Ties are broken by position.

    Raises
    ------
    InputError
        If `k` is not a fraction in (0, 1], or the maps differ in shape.

    Examples
    --------
    >>> x = torch.arange(20.0).reshape(1, 1, 4, 5)
    >>> top_k_overlap(x, x, k=0.25).item(), top_k_overlap(x, -x, k=0.25).item()
    (1.0, 0.0)
    """
    if not 0 < k <= 1:
        raise InputError(f"k must be a fraction in (0, 1], not {k}")
    rows = _checked(a, b)
    marks = [largest(each, k) for each in rows]
    overlap = (marks[0] & marks[1]).sum(1).double() / largest_count(rows[0].shape[1], k)
    return overlap.masked_fill(torch.isnan(rows[0] + rows[1]).any(1), torch.nan)


def _checked(a: Tensor, b: Tensor) -> list[Tensor]:
    if a.shape != b.shape or a.ndim != 4:
        raise InputError(
            f"maps to compare must share one shape (N, C, H, W), not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return [each.detach().cpu().double().flatten(1) for each in (a, b)]
