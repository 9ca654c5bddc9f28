"""The projection and the starts: inside the ball around x and inside [0, 1], whatever comes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saliency_lab.attacks.ascent import Stepper, project, projected_ascent, random_start, steepest

SHAPE = (3, 2, 4, 4)
cases = {
    "seed": st.integers(0, 2**31),
    "eps": st.floats(0, 3, allow_subnormal=False),
    "scale": st.sampled_from([0.0, 1e-6, 0.1, 1.0, 1e6]),
    "norm": st.sampled_from(["linf", "l2"]),
}


def images(seed: int) -> Tensor:
    """Images with many pixels exactly at 0 and at 1."""
    source = torch.Generator().manual_seed(seed)
    return torch.rand(SHAPE, generator=source, dtype=torch.float64).mul(1.5).sub(0.25).clamp(0, 1)


def inside(point: Tensor, x: Tensor, eps: float, norm: str) -> bool:
    delta = (point - x).flatten(1)
    length = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    return bool((length <= eps * (1 + 1e-12) + 1e-15).all() and (point >= 0).all() and (point <= 1).all())


@settings(max_examples=60, deadline=None)
@given(**cases)
def test_projection_stays_in_the_ball_around_x_and_in_the_image_range(seed, eps, scale, norm) -> None:
    x = images(seed)
    source = torch.Generator().manual_seed(seed + 1)
    candidate = x + scale * torch.randn(SHAPE, generator=source, dtype=torch.float64)
    point = project(candidate, x, eps, norm)
    assert inside(point, x, eps, norm)
    assert torch.allclose(project(point, x, eps, norm), point, atol=1e-12)  # projecting twice changes nothing


@settings(max_examples=30, deadline=None)
@given(**cases)
def test_a_point_already_inside_is_left_where_it_is(seed, eps, scale, norm) -> None:
    x = images(seed)
    source = torch.Generator().manual_seed(seed + 1)
    delta = torch.randn(SHAPE, generator=source, dtype=torch.float64)
    length = delta.flatten(1).abs().amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)
    point = (x + 0.9 * eps * delta / length.reshape(-1, 1, 1, 1)).clamp(0, 1)
    assert torch.allclose(project(point, x, eps, norm), point, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(**cases)
def test_every_iterate_of_the_ascent_stays_around_the_original_image(seed, eps, scale, norm) -> None:
    x = images(seed)
    source = torch.Generator().manual_seed(seed + 1)
    visited: list[Tensor] = []

    def gradient(point: Tensor) -> Tensor:
        visited.append(point)
        return scale * torch.randn(SHAPE, generator=source, dtype=torch.float64)

    noise_shape = SHAPE if norm == "linf" else (3, 34)
    draw = torch.rand if norm == "linf" else torch.randn
    noise = draw(noise_shape, generator=source, dtype=torch.float64)
    start = random_start(x, eps, norm, noise)
    last = projected_ascent(x, gradient, start=start, eps=eps, step_size=eps / 2, steps=6, norm=norm)
    assert len(visited) == 6
    assert all(inside(point, x, eps, norm) for point in [*visited, last])


@settings(max_examples=30, deadline=None)
@given(**cases)
def test_the_step_in_place_is_the_projected_steepest_step(seed, eps, scale, norm) -> None:
    x = images(seed)
    source = torch.Generator().manual_seed(seed + 1)
    gradient = scale * torch.randn(SHAPE, generator=source, dtype=torch.float64)
    start = project(x + torch.randn(SHAPE, generator=source, dtype=torch.float64), x, eps, norm)
    lengths = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64) * eps
    moved = start + lengths.reshape(-1, 1, 1, 1) * steepest(gradient, norm)
    point = start.clone().requires_grad_()
    Stepper(x, eps, norm).step_(point, gradient, lengths)
    assert torch.allclose(point.detach(), project(moved, x, eps, norm), atol=1e-12)
    assert inside(point.detach(), x, eps, norm)


def test_one_radius_a_sample() -> None:
    x = images(0)
    eps = torch.tensor([0.0, 0.1, 0.5], dtype=torch.float64)
    point = project(x + 1, x, eps, "linf")
    assert torch.equal(point, torch.minimum(x + eps.reshape(-1, 1, 1, 1), torch.ones(())))


def test_steepest_direction() -> None:
    gradient = torch.tensor([3.0, -4.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    assert steepest(gradient, "linf").flatten().tolist() == [1, -1, 0, 0]
    assert torch.allclose(steepest(gradient, "l2").flatten(), torch.tensor([0.6, -0.8, 0, 0]))
    assert steepest(torch.zeros(1, 1, 2, 2), "l2").abs().sum() == 0
    assert steepest(gradient * 1e-30, "l2").norm() > 0.99  # tiny gradients count too


def test_random_starts_are_uniform_in_the_ball() -> None:
    """In d dimensions the radius of a uniform point of the L2 ball is U^(1/d): mean d/(d+1)."""
    x = torch.full((4000, 1, 2, 2), 0.5)
    source = torch.Generator().manual_seed(0)
    l2 = random_start(x, 0.3, "l2", torch.randn(4000, 6, generator=source)) - x
    assert abs(l2.flatten(1).norm(dim=1).mean().item() / 0.3 - 4 / 5) < 0.01
    linf = random_start(x, 0.3, "linf", torch.rand(4000, 1, 2, 2, generator=source)) - x
    assert abs(linf.abs().mean().item() / 0.3 - 0.5) < 0.01
