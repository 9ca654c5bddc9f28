"""Accuracy against the strength of the attack."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from saliency_lab._common.checks import parse_epsilon
from saliency_lab._common.errors import InputError
from saliency_lab._common.settings import parse_settings
from saliency_lab.attacks.ascent import Norm
from saliency_lab.attacks.door import METHODS, run
from saliency_lab.attacks.result import wilson


@dataclass(frozen=True, eq=False, repr=False)
class RobustnessCurve:
    """Which samples stay right as ε grows.

    Attributes
    ----------
    eps : tuple of E floats
        Ascending radii in image units.
    robust : Tensor (E, N) of bool
        Right on x and not broken at this ε or at any smaller one of the curve; ε = 0 is clean accuracy.
    """

    eps: tuple[float, ...]
    robust: Tensor
    method: str
    norm: Norm
    settings: dict[str, Any]
    seed: int
    seconds: float

    def __repr__(self) -> str:
        shares = ", ".join(
            f"{eps:.4g}: {share:.1%}" for eps, share in zip(self.eps, self.accuracy, strict=True)
        )
        return f"RobustnessCurve({self.method}, {self.norm}, n={self.robust.shape[1]}, {{{shares}}})"

    @property
    def accuracy(self) -> list[float]:
        """Robust accuracy at each ε."""
        return self.robust.double().mean(1).tolist()

    def table(self, level: float = 0.95) -> pd.DataFrame:
        """One row an ε: eps, accuracy, low, high (the Wilson interval), n."""
        n = self.robust.shape[1]
        rows = [
            (eps, right / n, *wilson(right, n, level), n)
            for eps, right in zip(self.eps, self.robust.sum(1).tolist(), strict=True)
        ]
        return pd.DataFrame(rows, columns=["eps", "accuracy", "low", "high", "n"])

    def to_dict(self) -> dict[str, Any]:
        """Settings and table, as values that JSON can hold."""
        return {
            "method": self.method,
            "norm": self.norm,
            "settings": self.settings,
            "seed": self.seed,
            "seconds": self.seconds,
            "table": self.table().to_dict(orient="list"),
        }


def robustness_curve(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Sequence[float | str] = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
    method: str = "pgd",
    *,
    seed: int = 0,
    **settings: Any,
) -> RobustnessCurve:
    """Robust accuracy at each ε; a sample broken at a smaller ε stays broken and is not attacked again.

    Parameters are those of `attack`, with a sequence of ε (sorted here).

    Raises
    ------
    InputError
        As `attack`; also if `eps` is empty.
    """
    begun = time.perf_counter()
    parsed = parse_settings(METHODS[method].settings, settings, of=method)
    radii = sorted({parse_epsilon(value) for value in eps})
    if not radii:
        raise InputError("eps must hold at least one radius, such as (0, 0.1, 0.2)")
    first = run(model, x, y, method, parsed, eps=radii[0], seed=seed)
    alive = first.robust if radii[0] > 0 else first.clean_correct
    rows = [alive]
    for radius in radii[1:]:
        alive = alive.clone()
        left = alive.nonzero().flatten()
        if len(left):
            at = left.to(x.device)
            alive[left] = run(model, x[at], y.to(x.device)[at], method, parsed, eps=radius, seed=seed).robust
        rows.append(alive)
    return RobustnessCurve(
        eps=tuple(radii),
        robust=torch.stack(rows),
        method=method,
        norm=first.norm,
        settings=first.settings,
        seed=seed,
        seconds=time.perf_counter() - begun,
    )
