"""Metrics can be used from several threads, on one model; what is serial takes turns."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import quantus
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import saliency_lab as sl
from saliency_lab._common.inference import undisturbed
from saliency_lab._common.seeding import preserved_rng
from saliency_lab._common.threads import SharedState
from saliency_lab.metrics.catalogue import METRICS

CASES = [(name, engine) for name in METRICS for engine in METRICS[name].engines]


def together(calls):
    """Run the calls at once, each in its own thread."""
    start = threading.Barrier(len(calls))

    def run(call):
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(run, call) for call in calls]]


class Dropping(nn.Module):
    """Dropout, so that an answer in train mode would show."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.drop = model, nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(self.drop(x))


@pytest.mark.long
@pytest.mark.parametrize(("name", "engine"), CASES)
def test_scores_from_threads_are_those_of_one_after_the_other(scene, small, name, engine):
    """One model in train mode, whose mode, gradients and the global generators are restored at the end."""
    net, x, y, maps = scene
    model = Dropping(net).train()
    settings = small(name, x)
    seeds = range(4)
    expected = [sl.evaluate(model, x, y, maps, name, engine=engine, seed=seed, **settings) for seed in seeds]
    states = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    filters = list(warnings.filters)
    found = together(
        [
            lambda seed=seed: sl.evaluate(model, x, y, maps, name, engine=engine, seed=seed, **settings)
            for seed in seeds
        ]
    )
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert model.training and model.drop.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (np.random.get_state()[1] == states[0]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[1])
    assert warnings.filters == filters


def test_quantus_objects_take_turns(scene):
    model, x, y, maps = scene
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=6, subset_size=20, disable_warnings=True, return_aggregate=False
    )
    expected = [sl.evaluate(model, x, y, maps, metric, seed=seed) for seed in range(4)]
    found = together([lambda seed=s: sl.evaluate(model, x, y, maps, metric, seed=seed) for s in range(4)])
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_table_says_which_engines_are_serial():
    table = sl.list_metrics()
    assert table.loc["irof", "engines"] == "fast, quantus (serial)"
    assert table.loc["pixel_flipping", "engines"] == "fast, quantus"
    serial = [name for name in table.index if "serial" in table.loc[name, "engines"]]
    assert serial == ["faithfulness_correlation", "irof"]


def test_the_last_thread_restores_what_the_first_one_found():
    """Entered A, B; left A, B: restoring by turns would leave what B found, which A had changed."""
    model, inside, leave = nn.Dropout().train(), threading.Event(), threading.Event()
    state = torch.get_rng_state()

    def first():
        with undisturbed(model), preserved_rng(1):
            inside.set()
            leave.wait(10)

    def second():
        inside.wait(10)
        with undisturbed(model), preserved_rng(2):
            leave.set()
            other.join(10)
            assert not model.training

    other = threading.Thread(target=first)
    other.start()
    second()
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_within_a_thread_blocks_nest():
    box, state = {"value": 0}, SharedState()
    with state.changed(box.copy, lambda: box.update(value=1), box.__setitem__):
        with state.changed(box.copy, lambda: box.update(value=2), box.__setitem__):
            assert box["value"] == 2
        assert box["value"] == 1
    assert box["value"] == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=30))
def test_in_any_order_of_threads_the_change_lasts_while_a_block_is_open(steps):
    """Three threads enter and leave nested blocks; an inner block once undid the change for the outer one."""
    box, state, running = {"training": True}, SharedState(), [0]
    opened: dict[int, list[ExitStack]] = {thread: [] for thread in range(3)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "get_ident", lambda: running[0])

        def leave(thread):
            running[0] = thread
            opened[thread].pop().close()
            assert box["training"] is not any(opened.values())

        for thread, enter in steps:
            running[0] = thread
            if enter:
                block = ExitStack()
                block.enter_context(
                    state.changed(box.copy, lambda: box.update(training=False), box.__setitem__)
                )
                opened[thread].append(block)
                assert box["training"] is False
            elif opened[thread]:
                leave(thread)
        for thread in opened:
            while opened[thread]:
                leave(thread)
    assert box["training"] is True


@pytest.mark.long
@pytest.mark.parametrize("method", ["grad_cam", "ablation_cam"])
def test_hooks_of_one_thread_do_not_reach_another(method):
    """One of them replaces what a layer returns; the scores and maps of the other thread stay the same."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 64, 3)).eval()
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8) % 3
    noise = torch.rand_like(x)

    def calls():
        return [
            *(sl.attribute(net, x, y, name).values for name in ("saliency", "occlusion", method)),
            torch.from_numpy(sl.evaluate(net, x, y, noise, "pixel_flipping")),
        ]

    def again():
        return [sl.attribute(net, x, y, method).values for _ in range(6)]

    expected = calls()
    for _ in range(3):
        *others, found = together([again, again, calls])
        assert all(torch.equal(each, expected[2]) for other in others for each in other)
        for mine, right in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-6)
