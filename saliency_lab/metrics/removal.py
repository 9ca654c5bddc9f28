"""Predictions as units (pixels, patches, segments) are removed in the order of the map."""

from __future__ import annotations

import torch
from torch import Tensor

from saliency_lab._common.hashing import fingerprint
from saliency_lab.metrics.catalogue import Curve, MetricOutput
from saliency_lab.metrics.probe import Baseline, Probe, ProbePredictions


def cuts(units: int, steps: int) -> Tensor:
    """Return how many units are gone after each of `steps` equal parts, from 0 to all, int32 (steps + 1,).

    >>> cuts(10, 4)
    tensor([ 0,  2,  5,  8, 10], dtype=torch.int32)
    """
    return torch.linspace(0, units, min(steps, units) + 1, dtype=torch.float64).round().to(torch.int32)


def removal(
    probe: Probe, ranks: Tensor, cut: Tensor, baseline: Baseline, *, insert: bool = False
) -> ProbePredictions:
    """Return predictions (N, K) with the pixels of rank below cut k replaced by the baseline.

    `ranks` (N, H·W) and `cut` (K,), or (N, K) with one row per sample, are int32; cuts rise from 0. With
    `insert`, the pixels of rank at or above the cut are replaced instead: the image is rebuilt from the
    baseline. The untouched image and the bare baseline, in which such curves begin and end, are predicted
    once for all maps; a cut that changes nothing (black pixels made black) has the prediction before it.
    """
    ranks, cut = ranks.to(probe.device), cut.to(probe.device).expand(len(probe), -1)

    def build(i: Tensor, j: Tensor) -> Tensor:
        gone = ranks[i] < cut[i, j + 1, None]
        if insert:
            gone = ~gone
        return torch.where(gone.view(len(i), 1, *probe.x.shape[2:]), probe.fill(baseline)[i], probe.x[i])

    def ask() -> ProbePredictions:
        ends = [probe.clean, probe.empty(baseline)]
        first, last = ends[::-1] if insert else ends
        complete = bool((cut[:, -1] > ranks.amax(1)).all())
        inner = cut.shape[1] - 1 - complete
        if not inner:
            return ProbePredictions.join([first] + [last] * complete)
        source = _latest_change(ranks, cut, probe.touched(baseline))[:, 1 : inner + 1] - 1
        between = probe.ask(inner, build, source=source, base=first)
        return ProbePredictions.join([first, between] + [last] * complete)

    return probe.remember(("removal", fingerprint(ranks, cut), baseline, insert), ask)


def _latest_change(ranks: Tensor, cut: Tensor, touched: Tensor) -> Tensor:
    """Return, for each cut (N, K), the last one up to it that removes a touched pixel; 0 if none does."""
    step = torch.searchsorted(cut.contiguous(), ranks, right=True)  # the first cut that removes the pixel
    changes = torch.zeros(len(cut), cut.shape[1] + 1, dtype=torch.long, device=cut.device)
    changes.scatter_(1, step.where(touched, 0), step.where(touched, 0))
    return changes[:, :-1].cummax(1).values


def patches(shape: torch.Size, size: int) -> Tensor:
    """Return which patch of `size`×`size` each pixel is in, int64 (H·W,), row by row.

    Where `size` does not divide the image, the outer patches are cut off by half the rest on each side.

    >>> patches(torch.Size([3, 4]), 2).reshape(3, 4)
    tensor([[0, 0, 1, 1],
            [0, 0, 1, 1],
            [2, 2, 3, 3]])
    """
    height, width = shape[-2:]
    down, across = ((torch.arange(n) + (-n % size) // 2) // size for n in (height, width))
    return (down[:, None] * (int(across[-1]) + 1) + across).flatten()


def patch_count(pixels: int, size: int) -> int:
    """Return how many patches of `size`×`size` a square image of so many pixels has.

    >>> patch_count(28 * 28, 4), patch_count(28 * 28, 5)
    (49, 36)
    """
    return (-(-round(pixels**0.5) // size)) ** 2


def unit_sums(scores: Tensor, units: Tensor) -> Tensor:
    """Return the sum (N, U) of the pixel scores (N, H·W) over each unit; `units` is (H·W,) or (N, H·W)."""
    units = units.to(scores.device).expand_as(scores)
    sums = torch.zeros(len(scores), int(units.max()) + 1, dtype=scores.dtype, device=scores.device)
    return sums.scatter_add_(1, units, scores)


def area(values: Tensor, at: Tensor) -> Tensor:
    """Return the trapezoid area (N,) under curves (N, K) over `at`, divided by the range of `at`."""
    at = at.expand_as(values)
    return torch.trapezoid(values, at, dim=1) / (at[:, -1] - at[:, 0])


def outcome(values: Tensor, curve: Tensor, at: Tensor) -> MetricOutput:
    """Pack scores (N,) and the curve behind them."""
    return MetricOutput(values.cpu().numpy(), Curve(curve.cpu().numpy(), at.cpu().numpy()))
