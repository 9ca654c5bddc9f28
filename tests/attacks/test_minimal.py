"""The attacks that look for the nearest point, against closed forms and against other libraries."""

from __future__ import annotations

import pytest
import torch
import torchattacks
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn

import saliency_lab as sl
from saliency_lab._common.seeding import preserved_rng

LARGE = {"l2": 28.0, "l1": 784.0, "linf": 1.0}
"""Radii that hold every image of 28×28 pixels."""


def _nearest(gap: Tensor, normal: Tensor, x: Tensor, norm: str) -> float:
    """Distance of x (P,) to the boundary normal · δ = gap, for L1 and L∞ inside the box [0, 1]."""
    if norm != "l1":
        return float(gap / torch.linalg.vector_norm(normal, ord=2 if norm == "l2" else 1))
    room = torch.where(normal > 0, 1 - x, x)
    order = normal.abs().argsort(descending=True)  # in L1 the steepest pixels move first, as far as they can
    gained, length = 0.0, 0.0
    for i in order.tolist():
        part = min(float(room[i]), (float(gap) - gained) / float(normal[i].abs()))
        gained, length = gained + part * float(normal[i].abs()), length + part
    return length


def test_ead_reaches_the_ends_of_the_range() -> None:
    """The box comes after the shrinkage, as in the paper; before it, no pixel could be 0 or 1."""

    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first = x.flatten(1)[:, :1]
            return torch.cat([0 * first, 100 * (first - 0.998)], 1)

    x = torch.full((1, 1, 4, 4), 0.5)
    found = sl.attack(Bright(), x, torch.tensor([0]), "ead", eps=0.6)
    assert not found.robust.any()
    assert found.adversarial.max() <= 1
    assert float((found.adversarial - x).abs().sum()) < 0.5 + 1e-3


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "norm", "most"),
    [("deepfool", "l2", 1.03), ("deepfool", "linf", 1.03), ("cw", "l2", 1.02), ("ead", "l1", 1.08)],
)
def test_the_distance_to_a_linear_boundary(method, norm, most) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).double()
    x = 0.4 + 0.2 * torch.rand(5, 1, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        net[1].bias += torch.tensor([0.0, 0.0, 0.6, 0.0]) - net(x).mean(0)
        logits = net(x)
    y, weight = logits.argmax(1), net[1].weight.detach()
    exact = [
        min(_nearest(z[t] - z[j], weight[j] - weight[t], image, norm) for j in range(4) if j != t)
        for image, z, t in zip(x.flatten(1), logits, y, strict=True)
    ]
    found = sl.attack(net, x, y, method, norm=norm, eps=1.0 if norm == "linf" else 6.0)
    assert found.success.all()
    ratio = found.distance / torch.tensor(exact)
    assert ratio.min() >= 1 - 1e-6 and ratio.mean() <= most, ratio


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("exponent", [-90, -40, 40])
def test_the_scale_of_the_logits_does_not_matter_to_deepfool(norm, exponent) -> None:
    """By a power of 2 no digit changes: the squares of such gradients are 0 in float32."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.rand(5, 1, 6, 6)
    with torch.no_grad():
        net[3].bias -= net(x).mean(0)
    y = net(x).argmax(1)
    settings = {"norm": norm, "eps": 1.0 if norm == "linf" else 6.0, "steps": 8}
    plain = sl.attack(net, x, y, "deepfool", **settings)
    assert plain.success.any()
    with torch.no_grad():
        net[3].weight *= 2.0**exponent
        net[3].bias *= 2.0**exponent
    assert torch.equal(sl.attack(net, x, y, "deepfool", **settings).adversarial, plain.adversarial)


def _right(name: str, batch: tuple[Tensor, Tensor], count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A bundled network, and the first `count` digits that it gets right."""
    net, (x, y) = sl.load_model(name), batch
    with torch.no_grad():
        rows = (net(x).argmax(1) == y).nonzero()[:count, 0]
    return net, x[rows], y[rows]


def _judge(net: nn.Module, points: Tensor, x: Tensor, y: Tensor, p: float) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        wrong = net(points).argmax(1) != y
    return wrong, torch.linalg.vector_norm((points - x).flatten(1), ord=p, dim=1)


@pytest.mark.long
@pytest.mark.parametrize("name", ["digits/standard", "digits/at"])
def test_deepfool_finds_the_points_of_torchattacks(name, batch) -> None:
    net, x, y = _right(name, batch, 10)
    with preserved_rng():
        wrong, length = _judge(net, torchattacks.DeepFool(net, steps=50)(x, y), x, y, 2)
    found = sl.attack(net, x, y, "deepfool", norm="l2", eps=LARGE["l2"])
    assert found.success.all() and wrong.sum() >= 6
    torch.testing.assert_close(found.distance[wrong], length[wrong], rtol=0.01, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits/standard", "digits/at"])
def test_cw_is_nearer_than_that_of_torchattacks(name, batch) -> None:
    """Which has one constant c for all samples, and no search for it."""
    net, x, y = _right(name, batch, 10)
    found = sl.attack(net, x, y, "cw", norm="l2", eps=LARGE["l2"])
    assert found.success.all()
    for c in (1, 10):
        with preserved_rng():
            points = torchattacks.CW(net, c=c, steps=100, lr=0.05)(x, y)
        wrong, length = _judge(net, points, x, y, 2)
        assert wrong.any() and found.distance[wrong].mean() <= 1.005 * length[wrong].mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits/standard", "digits/at"])
@pytest.mark.parametrize(("method", "norm", "most"), [("cw", "l2", 1.02), ("ead", "l1", 1.1)])
def test_as_near_as_fab(name, method, norm, most, batch) -> None:
    """FAB looks for the nearest point as well, and in L1 is the only peer of EAD that is installed."""
    net, x, y = _right(name, batch, 24)
    net.requires_grad_(False)
    library = FABAttack_PT(
        lambda z: net(z).clone(), norm=norm.upper(), n_iter=50, eps=LARGE[norm], targeted=True,
        n_target_classes=9, seed=0, device="cpu",
    )  # fmt: skip
    with preserved_rng():
        wrong, length = _judge(net, library.perturb(x, y), x, y, 2 if norm == "l2" else 1)
    found = sl.attack(net, x, y, method, norm=norm, eps=LARGE[norm])
    assert found.success.all() and wrong.all()
    assert found.distance.mean() <= most * length.mean()
