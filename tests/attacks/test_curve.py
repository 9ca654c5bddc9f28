"""Curves: monotone sample by sample, anchored at clean accuracy, no stronger than single attacks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

import saliency_lab as sl
from saliency_lab.attacks import minimal_epsilon, steps_curve


def test_curve_against_single_attacks(case) -> None:
    eps = (0.02, 0, "1/255", 0.05)
    curve = sl.robustness_curve(case.model, case.x, case.y, eps=eps, steps=5, seed=2)
    assert curve.at == (0.0, 1 / 255, 0.02, 0.05)
    assert torch.equal(curve.robust[0], torch.tensor([True] * 5 + [False] * 2))
    assert not (curve.robust[1:] & ~curve.robust[:-1]).any()
    alive = curve.robust[0]
    for row, radius in zip(curve.robust, curve.at, strict=True):
        alive = alive & sl.attack(case.model, case.x, case.y, eps=radius, steps=5, seed=2).robust
        assert torch.equal(row, alive)


def test_table_has_wilson_intervals(case) -> None:
    curve = sl.robustness_curve(case.model, case.x, case.y, eps=(0, 0.01), steps=2)
    table = curve.table()
    assert list(table) == ["eps", "accuracy", "low", "high", "n"]
    expected = binomtest(5, 7).proportion_ci(0.95, method="wilson")
    assert table.loc[0, ["accuracy", "low", "high"]].tolist() == pytest.approx(
        [5 / 7, expected.low, expected.high]
    )
    assert json.loads(json.dumps(curve.to_dict()))["table"]["n"] == [7, 7]


def test_empty_eps_and_typos_are_refused(case) -> None:
    with pytest.raises(sl.SaliencyLabError, match="at least one radius"):
        sl.robustness_curve(case.model, case.x, case.y, eps=())
    with pytest.raises(sl.SaliencyLabError, match="did you mean 'restarts'"):
        sl.robustness_curve(case.model, case.x, case.y, eps=(0.1,), restart=2)


def test_steps_curve(case) -> None:
    curve = steps_curve(case.model, case.x, case.y, eps=0.02, steps=(5, 0, 1))
    assert curve.at == (0, 1, 5) and "steps" in curve.table()
    assert torch.equal(curve.robust[0], torch.tensor([True] * 5 + [False] * 2))
    one = sl.attack(case.model, case.x, case.y, eps=0.02, steps=1)
    five = sl.attack(case.model, case.x, case.y, eps=0.02, steps=5)
    assert torch.equal(curve.robust[1], one.robust)
    assert torch.equal(curve.robust[2], one.robust & five.robust)
    with pytest.raises(sl.SaliencyLabError, match="has no steps"):
        steps_curve(case.model, case.x, case.y, eps=0.1, method="fgsm")


def test_a_function_has_a_steps_curve_if_it_has_steps(case) -> None:
    def nothing(model, x, y, eps, steps=1):
        return x

    def single(model, x, y, eps):
        return x

    curve = steps_curve(case.model, case.x, case.y, nothing, eps=0.02, steps=(0, 2))
    assert curve.method == "nothing" and torch.equal(curve.robust[0], curve.robust[1])
    with pytest.raises(sl.SaliencyLabError, match="attack 'single' has no steps"):
        steps_curve(case.model, case.x, case.y, single, eps=0.02)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_minimal_epsilon_of_a_linear_model_is_the_distance_to_its_boundary(norm) -> None:
    """|z₁ − z₀| over the dual norm of w₁ − w₀, for two classes, far from the limits of the image range."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).double()
    x = 0.5 + 0.01 * torch.randn(6, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        model[1].bias += torch.tensor([0.0, 0.3]) - model(x).mean(0)
        z = model(x)
        y = z.argmax(1)
        y[-1] = 1 - y[-1]
        w = model[1].weight[1] - model[1].weight[0]
    dual = w.abs().sum() if norm == "linf" else w.norm()
    exact = (z[:, 1] - z[:, 0]).abs() / dual
    exact[-1] = 0.0
    found = minimal_epsilon(model, x, y, norm=norm, tolerance=1e-4, steps=20)
    assert (found >= exact - 1e-9).all() and (found <= exact + 1e-3).all()
    far = minimal_epsilon(model, x, y, norm=norm, largest=1e-4)
    assert far.tolist() == [torch.inf] * 5 + [0.0]


def test_minimal_epsilon_breaks_at_its_value_and_bad_settings_are_refused(case) -> None:
    found = minimal_epsilon(case.model, case.x, case.y, steps=5, tolerance=0.001, seed=4)
    assert (found[:5] > 0).all() and (found[:5] < 1).all() and (found[5:] == 0).all()
    alone = minimal_epsilon(case.model, case.x[2:3], case.y[2:3], steps=5, tolerance=0.001, seed=4)
    assert torch.allclose(alone, found[2:3])
    with pytest.raises(sl.SaliencyLabError, match="these take one per sample"):
        minimal_epsilon(case.model, case.x, case.y, "square")
    with pytest.raises(sl.SaliencyLabError, match="tolerance"):
        minimal_epsilon(case.model, case.x, case.y, tolerance=0)


@pytest.mark.parametrize("eps", ["8/255", 0.1, np.float32(0.1), torch.tensor(0.1), None])
def test_a_single_radius_is_no_curve(case, eps) -> None:
    with pytest.raises(sl.SaliencyLabError, match=r"several radii.*for one use attack"):
        sl.robustness_curve(case.model, case.x, case.y, eps=eps)


def test_steps_from_numpy_are_integers_too(case) -> None:
    curve = steps_curve(case.model, case.x, case.y, eps=0.02, steps=np.array([3, 1]))
    assert curve.at == (1, 3) and all(type(count) is int for count in curve.at)
    assert json.loads(json.dumps(curve.to_dict()))["table"]["steps"] == [1, 3]


@pytest.mark.parametrize("steps", [[0.5, 5], [-1], ["5"]])
def test_steps_are_integers(case, steps) -> None:
    with pytest.raises(sl.SaliencyLabError, match="steps must be a whole number of at least 0"):
        steps_curve(case.model, case.x, case.y, eps=0.1, steps=steps)


@pytest.mark.long
def test_the_method_is_the_fourth_argument_everywhere(case) -> None:
    given = (case.model, case.x, case.y, "bim")
    assert sl.attack(*given, eps=0.02, steps=1).method == "bim"
    assert sl.robustness_curve(*given, eps=(0, 0.02), steps=1).method == "bim"
    assert steps_curve(*given, eps=0.02, steps=(0, 1)).method == "bim"
    assert sl.transfer_attack(case.model, *given, eps=0.02, steps=1).method == "bim"
    few = (case.model.float(), case.x[:2].float(), case.y[:2], "noise")
    assert sl.audit(*few, eps=1e-6, draws=1).audited.method == "noise"


def test_steps_may_come_from_a_generator_and_a_level_in_percent_is_refused(case) -> None:
    counts = (0, 1)
    curve = steps_curve(case.model, case.x, case.y, eps=0.02, steps=(count for count in counts))
    assert curve.table()["steps"].tolist() == list(counts)
    with pytest.raises(
        sl.SaliencyLabError, match=r"level must be a number between 0 and 1, such as 0\.95, not 95"
    ):
        curve.table(level=95)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_random_model_neither_depends_on_the_callers_generator_nor_moves_it(samples: int) -> None:
    class Random(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head((x + 0.5 * torch.randn_like(x)).flatten(1))

    torch.manual_seed(0)
    net, x = Random().eval(), torch.rand(60, 1, 8, 8)
    y = net.head(x.flatten(1)).argmax(1)
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        curve = sl.robustness_curve(net, x, y, "fgsm", eps=(0, 0.05), samples=samples)
        distance = minimal_epsilon(net, x[:6], y[:6], "fgsm", tolerance=0.3, samples=samples)
        assert torch.equal(before, torch.get_rng_state())
        results.append((curve.robust, distance))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
