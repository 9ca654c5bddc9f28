from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from saliency_lab.study import Study


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
