"""What the tests of all packages share: digits in memory and a small network that reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import saliency_lab as sl
from saliency_lab.data import ImageData, LabelledImages
from saliency_lab.study import Study


@pytest.fixture(scope="session", autouse=True)
def _quiet_and_single_threaded() -> None:
    torch.set_num_threads(1)
    sl.show_progress(False)


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return sl.load_dataset("digits")


@pytest.fixture(scope="session")
def digits_sample(digits: ImageData) -> LabelledImages:
    """Eight test images of eight classes; not to be written to."""
    return digits.test.sample(8, seed=0)


@pytest.fixture(scope="session")
def trained(digits: ImageData) -> nn.Module:
    """A small_cnn trained on digits by a plain loop (over 90 % right); treat as read-only."""
    model = sl.build_model("small_cnn", seed=0).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(6):
        for rows in torch.randperm(len(digits.train), generator=order).split(64):
            x, y = digits.train.batch(rows)
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
    return model.eval().requires_grad_(True)


@pytest.fixture
def tiny_sample() -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.rand(12, 1, 6, 6, generator=draws), torch.arange(12) % 3


@pytest.fixture
def make_net() -> Callable[[int], nn.Module]:
    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).eval()

    return make


@pytest.fixture
def make_study(
    tiny_sample: tuple[torch.Tensor, torch.Tensor], make_net: Callable[[int], nn.Module]
) -> Callable[..., Study]:
    def make(store: Path | None = None, seeds: int = 1, seed: int = 0) -> Study:
        nets = {
            name: [make_net(10 * i + j) for j in range(seeds)] for i, name in enumerate(("plain", "other"))
        }
        return Study(nets, tiny_sample, store=store, seed=seed)

    return make
