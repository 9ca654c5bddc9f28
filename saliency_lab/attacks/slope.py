"""Whether a model's gradient describes the model: a comparison with finite differences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saliency_lab._common.inference import chunk_rows, device_of, run_without_graph, undisturbed
from saliency_lab._common.seeding import generator, preserved_rng
from saliency_lab.attacks.ascent import input_gradient

FINE = (1e-3, 2e-4)
"""Half widths, per pixel, of the differences that the gradient must match."""

_DENSE, _BLOCKS = 8, 8


@dataclass(frozen=True, eq=False)
class SlopeCheck:
    """Gradient and finite differences of the margin at one point per sample, each (N,).

    Attributes
    ----------
    error : Tensor
        ‖measured − predicted‖ / max(‖measured‖, ‖predicted‖) over the directions, at the better of the two
        widths of `FINE`; 0 where both are below the resolution of the logits.
    agreement : Tensor
        Cosine between measured and predicted changes at the width of the ball.
    finite : Tensor of bool
        The logits are finite.
    changed : Tensor of bool
        The logits differ when gradients are recorded, under the same random draws.
    coarse : Tensor of bool
        The logits have the few digits of bfloat16 or float16, in which small differences cannot be seen.
    """

    error: Tensor
    agreement: Tensor
    finite: Tensor
    changed: Tensor
    coarse: Tensor


def check_slope(model: nn.Module, points: Tensor, y: Tensor, *, width: float) -> SlopeCheck:
    """Compare the margin's gradient at `points` (N, C, H, W) with central differences.

    The differences are taken along 8 random sign patterns of the whole image and 8 patterns that each cover
    one block of it, ±h per pixel, at the widths of `FINE` and at `width`. Random models draw the same numbers
    at each pass.
    """
    device = device_of(model)
    with undisturbed(model):
        rows = chunk_rows(points.shape, device)
        parts = [
            _check(model, p.to(device), labels.to(device), width)
            for p, labels in zip(points.split(rows), y.split(rows), strict=True)
        ]
    return SlopeCheck(*(torch.cat(columns).cpu() for columns in zip(*parts, strict=True)))


def _check(model: nn.Module, points: Tensor, y: Tensor, width: float) -> tuple[Tensor, ...]:
    margin_to_range = min(max(*FINE, width), 0.25)
    # shrunk, not clamped: clamping makes ties of a dark background, where max pooling has kinks
    points = margin_to_range + (1 - 2 * margin_to_range) * points
    point = points.detach().clone().requires_grad_()
    with preserved_rng(0):
        logits = model(point)
    with preserved_rng(0):
        plain = run_without_graph(model, points)
    span = (plain.amax(1) - plain.amin(1)).clamp_min(torch.finfo(plain.dtype).tiny)
    changed = ~((logits.detach() - plain).abs().amax(1) <= 1e-3 * span) & plain.isfinite().all(1)
    rival = plain.scatter(1, y[:, None], -torch.inf).argmax(1, keepdim=True)

    def margin(z: Tensor) -> Tensor:
        return (z.gather(1, rival) - z.gather(1, y[:, None])).squeeze(1)

    values = margin(logits)
    slope = input_gradient(values, point)
    directions = _directions(points.shape[1:]).to(points)
    predicted = slope.flatten(1) @ directions.flatten(1).T

    def measured(h: float) -> Tensor:
        columns = []
        for direction in directions:
            ends = []
            for sign in (1, -1):
                with preserved_rng(0):
                    ends.append(margin(run_without_graph(model, (points + sign * h * direction).clamp(0, 1))))
            first, second = (end.cpu().double() for end in ends)
            columns.append((first - second) / (2 * h))
        return torch.stack(columns, 1).nan_to_num(0, 0, 0)

    predicted = predicted.cpu().double()
    unit = _unit(plain)
    resolution = 16 * unit * plain.abs().nan_to_num().amax(1).cpu().double()
    errors = []
    for h in FINE:
        seen = measured(h)
        floor = resolution / h
        size = torch.maximum(seen.norm(dim=1), predicted.norm(dim=1))
        error = ((seen - predicted).norm(dim=1) - floor).clamp_min(0) / size.clamp_min(1e-300)
        errors.append(error.where(size > floor, torch.zeros_like(error)))
    wide = measured(width)
    norms = wide.norm(dim=1) * predicted.norm(dim=1)
    agreement = (wide * predicted).sum(1) / norms.clamp_min(1e-300)
    return (
        torch.stack(errors).amin(0),
        agreement,
        plain.isfinite().all(1),
        changed,
        torch.full((len(points),), unit > torch.finfo(plain.dtype).eps),
    )


def _unit(logits: Tensor) -> float:
    """Relative spacing of the numbers that the logits hold: that of the smallest type which represents them.

    >>> _unit(torch.tensor([[1.0, 3.0]])) == torch.finfo(torch.bfloat16).eps
    True
    """
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(logits.to(dtype).to(logits.dtype), logits):
            return torch.finfo(dtype).eps
    return torch.finfo(logits.dtype).eps


def _directions(shape: torch.Size) -> Tensor:
    """Sign patterns (16, C, H, W): 8 of the whole image, 8 of one block each (0 outside)."""
    source = generator(0, "directions of the slope check")
    signs = torch.randint(0, 2, (_DENSE + _BLOCKS, *shape), generator=source).float() * 2 - 1
    high, wide = shape[-2:]
    for block in range(_BLOCKS):
        row, column = divmod(block, 2)
        top, bottom = row * high // 4, max((row + 1) * high // 4, row * high // 4 + 1)
        left, right = column * wide // 2, max((column + 1) * wide // 2, column * wide // 2 + 1)
        inside = torch.zeros(shape)
        inside[..., top:bottom, left:right] = 1
        signs[_DENSE + block] *= inside
    return signs
