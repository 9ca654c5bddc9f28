"""Projected gradient ascent: the step, the projection and the random start of every iterative attack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from saliency_lab._common.errors import InputError

BallNorm = Literal["linf", "l2", "l1"]
Norm = BallNorm | Literal["severity"]
"""Of the ball; corruptions have a severity in its place."""


def check_radius(eps: float, norm: Norm) -> float:
    """Return ε, or refuse an L∞ radius beyond the image range and a severity that does not exist.

    >>> check_radius(8, "linf")
    Traceback (most recent call last):
    ...
    saliency_lab._common.errors.InputError: eps is in image units, [0, 1]; did you mean "8/255"?
    """
    if norm == "linf" and eps > 1:
        raise InputError(f'eps is in image units, [0, 1]; did you mean "{eps:g}/255"?')
    if norm == "severity" and eps not in range(6):
        raise InputError(f"the eps of a corruption is its severity, 1 to 5 (0: none), not {eps:g}")
    return eps


def input_gradient(values: Tensor, point: Tensor) -> Tensor:
    """Gradient of each sample's value (N,) at its point (N, C, H, W); 0 where it is NaN or there is none."""
    slope = torch.autograd.grad(values.sum(), point, allow_unused=True)[0] if values.requires_grad else None
    if slope is None:
        return torch.zeros_like(point)
    return slope if slope.sum().isfinite() else slope.nan_to_num()


def _per_sample(eps: float | Tensor, x: Tensor) -> Tensor:
    """ε as a tensor that broadcasts over (N, C, H, W)."""
    return torch.as_tensor(eps, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)


def _l2(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def norm_of(delta: Tensor, norm: Norm) -> Tensor:
    """Length (N,) of each sample's `delta` (N, C, H, W) in the norm; of a corruption, in L2."""
    flat = delta.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    return flat.norm(dim=1, p=1 if norm == "l1" else 2)


def project(candidate: Tensor, x: Tensor, eps: float | Tensor, norm: Norm) -> Tensor:
    """Project onto the ε-ball around the *original* `x`, then onto [0, 1].

    Clipping to [0, 1] moves every pixel towards `x`, which lies in [0, 1], so the result stays in
    the ball. `eps` is one radius, or one per sample (N,).
    """
    radius = _per_sample(eps, x)
    delta = candidate - x
    if norm == "linf":
        delta = torch.clamp(delta, -radius, radius)
    elif norm == "l1":
        delta = _onto_l1_ball(delta, radius)
    else:
        delta = delta * (radius / _l2(delta).clamp_min(1e-12)).clamp_max(1.0)
    return (x + delta).clamp(0.0, 1.0)


def _onto_l1_ball(delta: Tensor, radius: Tensor) -> Tensor:
    """Nearest point of the L1 ball: shrink every coordinate by one threshold (Duchi et al., ICML 2008)."""
    size = delta.flatten(1).abs()
    limit = radius.reshape(-1, 1).expand(len(size), 1)
    ordered = size.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - limit
    rank = torch.arange(1, size.shape[1] + 1, device=size.device, dtype=size.dtype)
    last = (ordered * rank > excess).sum(1, keepdim=True).clamp_min(1)
    threshold = (excess.gather(1, last - 1) / last).clamp_min(0)
    return delta.sign() * (size - threshold).clamp_min(0).reshape(delta.shape)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """Direction of steepest ascent: the sign (L∞), or the gradient over its length (L2); 0 where it is 0."""
    if norm == "linf":
        return gradient.sign()
    return gradient / _l2(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)


def to_grid(points: Tensor, x: Tensor, eps: float | Tensor, norm: Norm) -> Tensor:
    """Round each pixel to a multiple of 1/255 inside the ball around `x` (N, C, H, W).

    Each goes to the nearest multiple inside the ball; L1 and L2 round the perturbation towards zero. A pixel
    with no multiple of 1/255 inside the ball keeps the value of `x`.
    """
    radius = _per_sample(eps, x).double()
    exact, centre = points.double() * 255, x.double() * 255
    if norm == "linf":
        low, high = centre - radius * 255 - _GRID_SLACK, centre + radius * 255 + _GRID_SLACK
        grid = exact.round()
        grid = torch.where(grid > high, grid - 1, grid)
        grid = torch.where(grid < low, grid + 1, grid)
        inside = (grid >= low) & (grid <= high)
    else:
        grid = torch.where(exact > centre, (exact + _GRID_SLACK).floor(), (exact - _GRID_SLACK).ceil())
        inside = (grid - centre).abs() <= (exact - centre).abs() + _GRID_SLACK
    return torch.where(inside, grid / 255, x.double()).to(points.dtype).clamp(0, 1)


_GRID_SLACK = 1e-4  # of a level: float32 does not hold k/255 exactly


class Stepper:
    """`project(point + length · steepest(gradient))` around one `x`, in place."""

    def __init__(self, x: Tensor, eps: float | Tensor, norm: Norm) -> None:
        self.x, self.norm = x, norm
        self._radius = _per_sample(eps, x)
        if norm == "linf":
            self._low = (x - self._radius).clamp_(min=0.0)
            self._high = (x + self._radius).clamp_(max=1.0)
        self._buffer = torch.empty_like(x)

    @torch.no_grad()
    def step_(self, point: Tensor, gradient: Tensor, length: float | Tensor) -> None:
        """Move `point` by one step; `length` is one, or one per sample (N,)."""
        stride = _per_sample(length, self.x)
        if self.norm == "linf":
            point.addcmul_(torch.sign(gradient, out=self._buffer), stride)
            torch.clamp(point, self._low, self._high, out=point)
            return
        length_of = _l2(gradient).clamp_min_(torch.finfo(gradient.dtype).tiny)
        point.addcmul_(torch.div(gradient, length_of, out=self._buffer), stride)
        delta = torch.sub(point, self.x, out=self._buffer)
        shrink = (self._radius / _l2(delta).clamp_min(1e-12)).clamp_max_(1.0)
        torch.addcmul(self.x, delta, shrink, out=point).clamp_(0.0, 1.0)


def random_start(x: Tensor, eps: float | Tensor, norm: Norm, noise: Tensor) -> Tensor:
    """Return a point uniform in the ε-ball, then clipped to [0, 1].

    L∞: `noise` is uniform on [0, 1), of the shape of `x`. L2: it is standard normal, (N, C·H·W + 2);
    the first d coordinates of a uniform point on the sphere in d + 2 dimensions are uniform in the d-ball.
    """
    radius = _per_sample(eps, x)
    noise = noise.to(x)
    if norm == "linf":
        return project(x + radius * (2 * noise - 1), x, eps, norm)
    inside = (noise / noise.norm(dim=1, keepdim=True))[:, :-2].reshape(x.shape)
    return project(x + radius * inside, x, eps, norm)


def projected_ascent(
    x: Tensor,
    gradient: Callable[[Tensor], Tensor],
    *,
    start: Tensor,
    eps: float | Tensor,
    step_size: float | Tensor,
    steps: int,
    norm: Norm = "linf",
) -> Tensor:
    """Climb `steps` times from `start`: step along the steepest direction, project onto the ball and [0, 1].

    `gradient(point)` returns the gradient (N, C, H, W) of the loss to raise. Memory does not grow
    with `steps`. Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.
    """
    point = start
    stride = _per_sample(step_size, x)
    for _ in range(steps):
        point = project(point + stride * steepest(gradient(point), norm), x, eps, norm)
    return point
