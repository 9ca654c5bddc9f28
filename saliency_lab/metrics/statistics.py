"""Correlations of rows, float64, NaN where a row does not vary."""

from __future__ import annotations

import torch
from scipy.stats import rankdata
from torch import Tensor


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's r (N,) of the rows of `a` and `b` (N, K); NaN where either is constant.

    >>> pearson(torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]), torch.tensor([[2.0, 4.0, 6.0]] * 2))
    tensor([1.0000,    nan], dtype=torch.float64)
    """
    a, b = _centred(a), _centred(b)
    size = a.norm(dim=1) * b.norm(dim=1)
    return ((a * b).sum(1) / size.where(size > 0, torch.nan)).clamp(-1.0, 1.0)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's ρ (N,) of the rows, ties given their mean rank; NaN where either is constant."""
    return pearson(mean_ranks(a), mean_ranks(b))


def _centred(rows: Tensor) -> Tensor:
    """Rows less their mean; exactly zero where they vary by no more than the rounding of float64."""
    rows = rows.double()
    low, high = rows.aminmax(dim=1, keepdim=True)
    varies = high - low > 1e-13 * torch.maximum(low.abs(), high.abs())
    return (rows - rows.mean(1, keepdim=True)).where(varies, 0.0)


def mean_ranks(rows: Tensor) -> Tensor:
    """Ranks (N, K) from 1, ties given their mean rank."""
    return torch.as_tensor(rankdata(rows.cpu().numpy(), axis=1)).to(rows.device)
