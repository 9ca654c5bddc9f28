from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import saliency_lab as sl
from saliency_lab._common.cores import usable_cores
from saliency_lab._common.errors import InputError, SaliencyLabError
from saliency_lab.study import Study
from saliency_lab.study.cache.store import FolderStore
from saliency_lab.study.processes import LocalProcesses
from saliency_lab.study.workers import assemble, hand_over

MakeStudy = Callable[..., Study]


@pytest.fixture(scope="module", params=["processes", "where it pays", "threads", "dask"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param == "processes":
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield pool
    elif request.param == "where it pays":
        with LocalProcesses(2, least=1e-6) as pool:  # after the first task
            yield pool
    elif request.param == "threads":
        with ThreadPoolExecutor(2) as pool:
            yield pool
    else:
        distributed = pytest.importorskip("distributed")
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0"
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client.get_executor()


def _finish(study: Study) -> Study:
    # all but saliency and sparseness draw at random
    study.attribute({"saliency": {}, "random": {}, "smoothgrad": {"n": 3}})
    study.score({"sparseness": {}, "faithfulness_correlation": {"runs": 5, "subset_size": 9}})
    return study.attack("pgd", eps=[0.05, 0.2], steps=2)


@pytest.mark.long
def test_results_are_the_same_whoever_computes_them(
    make_study: MakeStudy, tmp_path: Path, executor: Executor
) -> None:
    here = _finish(make_study(seeds=2))
    there = make_study(tmp_path, seeds=2)
    there.executor = executor
    _finish(there)
    pd.testing.assert_frame_equal(there.scores, here.scores)
    pd.testing.assert_frame_equal(there.robustness, here.robustness)
    assert torch.equal(there.maps["other"]["random"].values, here.maps["other"]["random"].values)
    assert sl.verify(there.store.folder).empty


def test_a_method_that_raises_in_a_worker_is_recorded(
    make_study: MakeStudy, tmp_path: Path, executor: Executor
) -> None:
    study = make_study(tmp_path)
    study.executor = executor
    with pytest.warns(UserWarning, match=r"2 of 4 results failed"):
        study.attribute(["saliency", "attention_rollout"])  # the networks have no attention
    assert study.failures["what"].tolist() == ["attention_rollout"] * 2
    assert study.failures["traceback"].str.contains("Traceback").all()


def test_dead_workers_are_a_message_and_the_next_run_goes_on(make_study: MakeStudy, tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pid = pool.submit(os.getpid).result()
        study = make_study(tmp_path)
        study.executor = pool
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(
            SaliencyLabError, match=r"the executor did not finish 'saliency'.*run the same again"
        ):
            study.attribute("saliency")
        assert study.failures.empty  # as it was before
    study.executor = None
    study.attribute("saliency").score("sparseness")
    assert study.failures.empty
    assert len(study.scores) == 24


def test_processes_start_when_there_is_enough_work(make_study: MakeStudy, tmp_path: Path) -> None:
    with LocalProcesses(2, least=600.0) as pool:
        study = make_study(tmp_path)
        study.executor = pool
        _finish(study)
        assert not study.scores.empty and not pool.pays(0.0)  # it has not started


def _log(text: str) -> int:
    logging.getLogger("saliency_lab.study").info(text)
    return torch.get_num_threads()


@pytest.mark.long
def test_processes_share_the_threads_and_log_here(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "saliency_lab"), LocalProcesses(2) as pool:
        assert pool.pays(0.0)
        threads = pool.submit(_log, "from a worker").result()
    assert 1 <= threads <= max(1, usable_cores() // 2)
    assert "from a worker" in caplog.messages


def test_an_executor_needs_a_store(tiny_sample: tuple[torch.Tensor, torch.Tensor]) -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match="workers meet in the store"):
        Study({"plain": nn.Identity()}, tiny_sample, executor=pool)


class _WithHiddenBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(36, 3)
        self.register_buffer("scale", torch.tensor(3.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.fc(x.flatten(1))


@pytest.mark.long
def test_a_worker_assembles_the_same_network(tmp_path: Path) -> None:
    net = _WithHiddenBuffer().eval()
    x = torch.rand(2, 1, 6, 6)
    store = FolderStore(tmp_path)
    inputs = hand_over(store, "", "abc", net)
    assert all(tensor.is_meta for tensor in inputs.skeleton.state_dict().values())
    assert torch.equal(assemble(store, inputs)(x), net(x))
    (path,) = (tmp_path / "weights").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"abc\.safetensors' are missing or damaged"):
        assemble(store, inputs)


class Tied(nn.Module):
    """Two convolutions share their weight, and two normalisations their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)
        self.c, self.d = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
        self.b.weight, self.d.running_mean = self.a.weight, self.c.running_mean
        self.head = nn.Linear(1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.d(self.b(self.c(self.a(x)))).mean((2, 3)))


def test_networks_that_share_tensors_are_assembled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x, y = Tied().eval(), torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    with ThreadPoolExecutor(1) as pool:
        study = Study({"tied": net}, (x, y), store=tmp_path, executor=pool).attribute("saliency")
    assert torch.equal(study.maps["tied"]["saliency"].values, sl.attribute(net, x, y, "saliency").values)
