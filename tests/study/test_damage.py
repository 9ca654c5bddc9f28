"""Every stored file is checked: damage is named, never used, and computed again."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import saliency_lab as sl
from saliency_lab._common.errors import InputError, SaliencyLabError
from saliency_lab.cli.app import app
from saliency_lab.study import Study
from saliency_lab.study.cache.results import Place
from saliency_lab.study.running import ExecutorError

MakeStudy = Callable[..., Study]

DAMAGE = ["bit", "cut", "empty", "gone", "another"]
KINDS = {
    "maps": "cells/maps/*/*.safetensors",
    "scores": "cells/scores/*/*.safetensors",
    "attack": "cells/attack/*/*.safetensors",
    "audit": "cells/audit/*/*.safetensors",
    "sample": "samples/*.safetensors",
    "weights": "weights/*.safetensors",
    "table": "tables/*.*",
    "manifest": "study.json",
}


def _run(study: Study) -> Study:
    study.attribute(["saliency", "input_x_gradient"]).score(["sparseness", "complexity"])
    study.attack("fgsm", eps=[0.1]).audit("fgsm", eps=0.1, images=3)
    study.write_tables()
    return study


def _damage(path: Path, how: str, draws: np.random.Generator, other: bytes = b"{}") -> None:
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "bit":
        content[draws.integers(len(content))] ^= 1 << draws.integers(8)
        path.write_bytes(content)
    else:
        path.write_bytes({"cut": bytes(content[: len(content) // 2]), "empty": b"", "another": other}[how])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a study that workers computed, so that their weights are there too."""
    folder = tmp_path_factory.mktemp("finished")
    with ThreadPoolExecutor(1) as pool:
        _run(Study(_networks(), _sample(), store=folder, executor=pool))
    return folder


def _networks() -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {name: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval() for name in ("plain", "other")}


def _sample() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


def _tables(study: Study) -> list[pd.DataFrame]:
    return [study.scores, study.robustness, study.audits.drop(columns="evidence")]


@pytest.mark.long
@pytest.mark.parametrize("how", ["bit", *(pytest.param(how, marks=pytest.mark.slow) for how in DAMAGE[1:])])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named_and_repaired_by_the_next_run(
    finished: Path, tmp_path: Path, kind: str, how: str
) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    assert sl.verify(store).empty
    expected = _tables(Study.load(finished))
    draws = np.random.default_rng([sorted(KINDS).index(kind), DAMAGE.index(how)])
    first, *others = sorted(store.glob(KINDS[kind]))
    _damage(first, how, draws, others[-1].read_bytes() if others else b"{}")
    problems = sl.verify(store)
    assert problems["file"].tolist() == [first.relative_to(store).as_posix()]
    assert problems["kind"].tolist() == [kind]
    with ThreadPoolExecutor(1) as pool, warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        again = _run(Study(_networks(), _sample(), store=store, executor=pool))
        if kind == "weights":  # a worker needs them for what is missing
            again.attribute("edges")
    assert again.failures.empty
    for table, before in zip(_tables(again), expected, strict=True):
        pd.testing.assert_frame_equal(table, before)
    assert torch.equal(
        again.maps["plain"]["saliency"].values, Study.load(finished).maps["plain"]["saliency"].values
    )
    assert sl.verify(store).empty


def test_damaged_weights_are_never_used(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "store")
    expected = Study(_networks(), _sample()).attack("pgd", eps=0.2, steps=2).robustness
    for path in (tmp_path / "store/weights").iterdir():
        content = bytearray(path.read_bytes())
        content[-3] ^= 64  # a weight, many times as large
        path.write_bytes(content)
    with ThreadPoolExecutor(1) as pool:
        study = Study(_networks(), _sample(), store=tmp_path / "store", executor=pool)
        with pytest.warns(UserWarning, match="do not match their digest; it is written again"):
            study.attack("pgd", eps=0.2, steps=2)
    pd.testing.assert_frame_equal(study.robustness, expected)


def test_damaged_maps_are_computed_again_by_the_verb(make_study: MakeStudy, tmp_path: Path) -> None:
    before = make_study(tmp_path).attribute("saliency").maps["plain"]["saliency"].values.clone()
    for path in (tmp_path / "cells/maps").rglob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
    with pytest.warns(
        UserWarning, match=r"the result '.*' is damaged.*; a run on this store computes it again"
    ):
        study = make_study(tmp_path).attribute("saliency")
    assert sl.verify(tmp_path).empty
    assert torch.equal(study.maps["plain"]["saliency"].values, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_damaged_maps_are_computed_again_where_they_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).to(dtype)
    x = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    study = Study({"net": net}, (x, torch.tensor([0, 1, 2, 0])), store=tmp_path).attribute("saliency")
    before = study.maps["net"]["saliency"].values.clone()
    (path,) = (tmp_path / "cells/maps").rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="a run on this store computes it again"):
        assert torch.equal(study.maps["net"]["saliency"].values, before)
    assert sl.verify(tmp_path).empty


def test_the_command_line_names_damage(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "store")
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "store")])
    assert (result.exit_code, result.output) == (0, "every file is intact\n")
    (tmp_path / "store/study.json").write_text("{")
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "store")])
    assert result.exit_code == 1 and "study.json" in result.output
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "nowhere")])
    assert result.exit_code == 2 and "there is no folder" in result.output


@pytest.mark.long
def test_a_report_leaves_a_result_with_a_damaged_header_out(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "store")
    path = next((tmp_path / "store/cells/scores").rglob("*.safetensors"))
    content = path.read_bytes()
    for old, new in ((b'\\"depends\\"', b'\\"depemds\\"'), (b'\\"model\\"', b'\\"modem\\"')):
        assert old in content
        path.write_bytes(content.replace(old, new))
        with pytest.warns(UserWarning, match="is damaged"):
            study = Study.load(tmp_path / "store")
        sl.report(study, tmp_path / "report.html")
        assert "not in the store" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("age", [-86400.0, -3600.0, 7200.0])
def test_gc_removes_half_written_files_of_any_other_time(
    make_study: MakeStudy, tmp_path: Path, age: float
) -> None:
    study = make_study(tmp_path).attribute("saliency")
    half = next((tmp_path / "cells/maps").iterdir()) / ".half.safetensors"
    half.write_bytes(b"half")
    os.utime(half, (time.time() - age,) * 2)
    assert study.gc() == 4 and not half.exists()


def test_a_partial_run_over_a_damaged_manifest_loses_nothing(make_study: MakeStudy, tmp_path: Path) -> None:
    complete = make_study(tmp_path).attribute("saliency").score("sparseness")
    (tmp_path / "study.json").write_bytes((tmp_path / "study.json").read_bytes()[:200])
    one = {"plain": complete.members[0].net}
    with pytest.warns(UserWarning, match="renamed to 'study.damaged-1.json'"):
        partial = Study(one, (complete.x, complete.y), store=tmp_path).attribute("saliency")
    with pytest.raises(InputError, match="whose results would be deleted"):
        partial.gc()
    again = make_study(tmp_path).attribute("saliency").score("sparseness")
    pd.testing.assert_frame_equal(again.scores, complete.scores)


# --- executors that are lost --------------------------------------------------------------------------


class _Closed(Executor):
    """An executor that takes nothing, as that of a closed client."""

    def submit(self, *args: Any, **settings: Any) -> Future[Any]:
        raise RuntimeError("cannot schedule new futures after shutdown")


class _Cancelling(Executor):
    """An executor that loses what it was given, as one whose scheduler is gone."""

    def submit(self, *args: Any, **settings: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.cancel()  # and nobody calls set_running_or_notify_cancel, for which as_completed would wait
        return future


class _Losing(Executor):
    """An executor that is lost after its first task."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.first = True

    def submit(self, function: Any, *args: Any, **settings: Any) -> Future[Any]:
        if self.first:
            self.first = False
            return self.pool.submit(function, *args, **settings)
        future: Future[Any] = Future()
        future.set_exception(CancelledError("lost dependencies"))
        return future


@pytest.mark.parametrize("executor", [_Closed, _Cancelling])
def test_a_lost_executor_is_a_message(
    make_study: MakeStudy, tmp_path: Path, executor: Callable[[], Executor]
) -> None:
    study = make_study(tmp_path)
    study.executor = executor()
    with pytest.raises(ExecutorError, match=r"the executor did not finish 'saliency'.*run the same again"):
        study.attribute("saliency")
    study.executor = None
    pd.testing.assert_frame_equal(
        study.attribute("saliency").score("sparseness").scores,
        make_study().attribute("saliency").score("sparseness").scores,
    )


def test_what_a_lost_executor_did_not_finish_is_a_failure(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(tmp_path)
    study.executor = _Losing()
    with pytest.warns(UserWarning, match="3 of 4 results failed"):
        study.attribute(["saliency", "input_x_gradient"])
    assert len(study.failures) == 3
    assert study.failures["error"].str.contains("run the same again").all()
    assert study.failures["traceback"].str.contains("CancelledError").all()


@pytest.fixture
def declared_file(tmp_path: Path) -> Iterator[Path]:
    for seed in range(2):
        sl.save_model(sl.build_model("small_cnn", seed=seed), tmp_path / f"net-{seed}")
    path = tmp_path / "study.toml"
    path.write_text(
        'models = { one = "net-0", two = "net-1" }\nmethods = ["saliency", "edges"]\n'
        'metrics = ["sparseness"]\ndata = { name = "digits", images = 6 }\n'
        "attacks = { fgsm = { eps = 0.1 } }\n"
    )
    yield path


@pytest.mark.slow
@pytest.mark.parametrize("executor", [_Closed, _Losing])
def test_on_the_command_line_a_lost_executor_exits_with_1(
    declared_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: Callable[[], Executor]
) -> None:
    arguments = ["study", str(declared_file), "--out", str(tmp_path / "store")]
    with monkeypatch.context() as patch:
        lost = contextlib.nullcontext(executor())
        patch.setattr("saliency_lab.cli.study.open_executor", lambda *_: lost)
        result = CliRunner().invoke(app, [*arguments, "--executor", "processes"])
    assert result.exit_code == 1 and "the executor did not finish" in result.output
    assert CliRunner().invoke(app, arguments).exit_code == 0
    whole = CliRunner().invoke(app, ["study", str(declared_file), "--out", str(tmp_path / "whole")])
    assert whole.exit_code == 0
    for name in ("scores", "robustness"):
        left, right = (tmp_path / store / f"tables/{name}.parquet" for store in ("store", "whole"))
        pd.testing.assert_frame_equal(pd.read_parquet(left), pd.read_parquet(right))


@pytest.mark.parametrize(
    "call",
    [
        lambda study: study.attribute({5: {"method": "saliency"}}),
        lambda study: study.attribute({"": {"method": "saliency"}}),
        lambda study: study.attribute("saliency").score({("a", "b"): "sparseness"}),
        lambda study: study.attack("fgsm", eps=0.1, label=3),
        lambda study: study.audit("fgsm", eps=0.1, label=3),
        lambda study: study.plan(attacks={7: {"attack": "fgsm", "eps": 0.1}}),
    ],
)
def test_labels_that_are_not_text_are_refused_before_the_work(
    make_study: MakeStudy, call: Callable[[Study], object]
) -> None:
    with pytest.raises(InputError, match=r"the label of .* must be text"):
        call(make_study())


def test_a_place_says_what_it_is() -> None:
    assert Place("scores", "saliency", "sparseness", "plain", 0).what == "sparseness of saliency"
    with pytest.raises(SaliencyLabError):
        sl.verify("/nowhere/at/all")


# --- disks that are full, stores that disappear -------------------------------------------------------


FULL_DISK = """
import resource, signal, sys, torch
from torch import nn
import saliency_lab as sl
sl.show_progress(False)
torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
x, y = torch.rand(64, 1, 6, 6), torch.arange(64) % 3
study = sl.Study({"net": net}, (x, y), store=sys.argv[1])
if sys.argv[2] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    study.attribute("saliency")
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, resource.RLIM_INFINITY))
    try:
        study.score("sparseness")
    except sl.SaliencyLabError as error:
        print(error)
        sys.exit(1)
study.attribute("saliency").score("sparseness")
print(study.scores["score"].tolist())
"""


@pytest.mark.slow
def test_a_full_disk_is_a_message_and_the_next_run_goes_on(tmp_path: Path) -> None:
    def run(folder: str, disk: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", FULL_DISK, str(tmp_path / folder), disk]
        return subprocess.run(command, capture_output=True, text=True)

    failed = run("store", "full")
    assert failed.returncode == 1, failed.stderr
    assert "could not be written to" in failed.stdout and "Traceback" not in failed.stderr
    assert sl.verify(tmp_path / "store").empty and not list((tmp_path / "store").rglob(".*.safetensors"))
    again, whole = run("store", "free"), run("whole", "free")
    assert again.returncode == whole.returncode == 0
    assert again.stdout == whole.stdout


@pytest.mark.parametrize("moment", ["between", "during"])
def test_a_store_that_is_removed_while_it_is_used_is_made_again(
    make_study: MakeStudy, tmp_path: Path, moment: str
) -> None:
    store = tmp_path / "store"

    def brightness(model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        if moment == "during":
            shutil.rmtree(store, ignore_errors=True)
        return x.clone()

    study = make_study(store).attribute(["saliency", brightness])
    if moment == "between":
        shutil.rmtree(store)
    study.score("sparseness")
    expected = make_study().attribute(["saliency", brightness]).score("sparseness")
    pd.testing.assert_frame_equal(study.scores, expected.scores)
    if moment == "between":
        pd.testing.assert_frame_equal(Study.load(store).scores, study.scores)
