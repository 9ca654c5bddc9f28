"""Ranks, correlations and the largest values of rows: the one implementation that every package uses."""

from __future__ import annotations

import torch
from scipy.stats import rankdata
from torch import Tensor


def mean_ranks(rows: Tensor) -> Tensor:
    """Rank the values of each row from 1; ties get their mean rank.

    Parameters
    ----------
    rows : Tensor
        Shape (N, K).

    Returns
    -------
    Tensor
        float64 (N, K), on the device of `rows`; NaN in a row that holds NaN.

    Examples
    --------
    >>> mean_ranks(torch.tensor([[3.0, 1.0, 3.0]]))
    tensor([[2.5000, 1.0000, 2.5000]], dtype=torch.float64)
    """
    return torch.as_tensor(rankdata(rows.detach().cpu().double().numpy(), axis=1)).to(rows.device)


def descending_ranks(rows: Tensor) -> Tensor:
    """Rank the values of each row from the largest (0) down; ties keep their order.

    Parameters
    ----------
    rows : Tensor
        Shape (N, K).

    Returns
    -------
    Tensor
        int32 (N, K): a permutation of 0 … K − 1 in each row.

    Examples
    --------
    >>> descending_ranks(torch.tensor([[1.0, 3.0, 3.0, 2.0]]))
    tensor([[3, 0, 1, 2]], dtype=torch.int32)
    """
    order = rows.argsort(dim=1, descending=True, stable=True)
    steps = torch.arange(rows.shape[1], dtype=torch.int32, device=rows.device).expand_as(order)
    return torch.empty_like(order, dtype=torch.int32).scatter_(1, order, steps)


def largest(rows: Tensor, fraction: float) -> Tensor:
    """Mark the largest values of each row: `fraction` of them, rounded, and at least one.

    Parameters
    ----------
    rows : Tensor
        Shape (N, K). Of equal values, the earlier ones are marked first.
    fraction : float
        In (0, 1].

    Returns
    -------
    Tensor
        bool (N, K), with the same number of True values in each row.

    Examples
    --------
    >>> largest(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 0.25).tolist()
    [[False, True, False, False]]
    """
    return descending_ranks(rows) < largest_count(rows.shape[1], fraction)


def largest_count(size: int, fraction: float) -> int:
    """Return how many of `size` values `fraction` of them is: rounded, and at least one.

    >>> largest_count(576, 0.1), largest_count(4, 0.01)
    (58, 1)
    """
    return max(1, round(fraction * size))


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Compute Pearson's correlation of the rows of `a` with those of `b`.

    Parameters
    ----------
    a, b : Tensor
        Shape (N, K).

    Returns
    -------
    Tensor
        float64 (N,), in [−1, 1]; NaN where either row is constant or holds NaN. A row that varies by no more
        than the rounding of float64 is constant.

    Examples
    --------
    >>> pearson(torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]), torch.tensor([[2.0, 4.0, 6.0]] * 2))
    tensor([1.0000,    nan], dtype=torch.float64)
    """
    a, b = _centred(a), _centred(b)
    size = a.norm(dim=1) * b.norm(dim=1)
    return ((a * b).sum(1) / size.where(size > 0, torch.nan)).clamp(-1.0, 1.0)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Compute Spearman's rank correlation of the rows of `a` with those of `b`; ties get their mean rank.

    Parameters
    ----------
    a, b : Tensor
        Shape (N, K).

    Returns
    -------
    Tensor
        float64 (N,), in [−1, 1]; NaN where either row is constant or holds NaN.

    Examples
    --------
    >>> round(spearman(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[0.0, 1.0, 2.0]])).item(), 6)
    1.0
    """
    return pearson(mean_ranks(a), mean_ranks(b))


def varies(rows: Tensor) -> Tensor:
    """Say of each row (N, K) whether it varies by more than the rounding of float64; bool (N,).

    >>> varies(torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.2, 0.1]]))
    tensor([False,  True])
    """
    low, high = rows.double().aminmax(dim=1)
    return high - low > 1e-13 * torch.maximum(low.abs(), high.abs())


def _centred(rows: Tensor) -> Tensor:
    """Rows less their mean, exactly zero in a row that does not vary."""
    rows = rows.double()
    return (rows - rows.mean(1, keepdim=True)).where(varies(rows)[:, None], 0.0)
