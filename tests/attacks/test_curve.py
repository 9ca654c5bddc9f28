"""Curves: monotone sample by sample, anchored at clean accuracy, no stronger than single attacks."""

from __future__ import annotations

import json

import pytest
import torch
from scipy.stats import binomtest

import saliency_lab as sl


def test_curve_against_single_attacks(case) -> None:
    eps = (0.02, 0, "1/255", 0.05)
    curve = sl.robustness_curve(case.model, case.x, case.y, eps, steps=5, seed=2)
    assert curve.eps == (0.0, 1 / 255, 0.02, 0.05)
    assert torch.equal(curve.robust[0], torch.tensor([True] * 5 + [False] * 2))
    assert not (curve.robust[1:] & ~curve.robust[:-1]).any()
    alive = curve.robust[0]
    for row, radius in zip(curve.robust, curve.eps, strict=True):
        alive = alive & sl.attack(case.model, case.x, case.y, eps=radius, steps=5, seed=2).robust
        assert torch.equal(row, alive)


def test_table_has_wilson_intervals(case) -> None:
    curve = sl.robustness_curve(case.model, case.x, case.y, (0, 0.01), steps=2)
    table = curve.table()
    assert list(table) == ["eps", "accuracy", "low", "high", "n"]
    expected = binomtest(5, 7).proportion_ci(0.95, method="wilson")
    assert table.loc[0, ["accuracy", "low", "high"]].tolist() == pytest.approx(
        [5 / 7, expected.low, expected.high]
    )
    assert json.loads(json.dumps(curve.to_dict()))["table"]["n"] == [7, 7]


def test_empty_eps_and_typos_are_refused(case) -> None:
    with pytest.raises(sl.SaliencyLabError, match="at least one radius"):
        sl.robustness_curve(case.model, case.x, case.y, ())
    with pytest.raises(sl.SaliencyLabError, match="did you mean 'restarts'"):
        sl.robustness_curve(case.model, case.x, case.y, (0.1,), restart=2)
