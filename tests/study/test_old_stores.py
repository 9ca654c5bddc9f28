"""Stores that earlier versions wrote are read, and nothing in them is computed again."""

from __future__ import annotations

import json
import zipfile
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from torch import nn

import saliency_lab as sl
from saliency_lab._common import provenance
from saliency_lab.study import Study, compute
from saliency_lab.study.cache import results
from saliency_lab.study.cache.store import read_result

OLD = Path(__file__).parent / "data" / "store_of_5ca3eff.zip"
"""Written by commit 5ca3eff, before `study.json`, weights and tables had digests."""


@pytest.fixture
def old_store(tmp_path: Path) -> Path:
    with zipfile.ZipFile(OLD) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def _network(phase: float) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            steps = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
            parameter.copy_((torch.sin(1.7 * steps + number + phase) / 2).float())
    return net


def _read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    names = ("scores", "robustness", "audits")
    return {name: pd.read_parquet(folder / "tables" / f"{name}.parquet") for name in names}


def test_an_old_store_is_read(old_store: Path) -> None:
    study = Study.load(old_store)
    for name, table in _read_tables(old_store).items():
        pd.testing.assert_frame_equal(getattr(study, name), table)
    assert (study.purpose.title, study.compare().baseline) == ("An older study", "plain")
    assert study.read_maps("plain", "smooth", seed=1).settings["n"] == 3
    assert study.models == ["plain", "other"] and len(study.members) == 3


def test_every_result_of_an_old_store_has_the_key_of_its_content(old_store: Path) -> None:
    keys = set()
    for path in (old_store / "cells").rglob("*.safetensors"):
        result, _ = read_result(path)
        assert result.key == path.stem
        keys.add(result.key)
    assert keys == set(Study.load(old_store).results.values())


def test_nothing_in_an_old_store_is_computed_again(old_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the versions of the packages at the time, every request has the key that it had then."""
    versions = {}
    for path in (old_store / "cells").rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            cell = json.loads(file.metadata()["cell"])
        versions[cell["kind"]] = cell["depends"]["versions"]
    monkeypatch.setattr("saliency_lab.study.keys.cache_versions", versions.__getitem__)
    for name in ("compute_maps", "compute_scores", "compute_attack", "compute_audit"):
        monkeypatch.setattr(compute, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    before = {path: path.stat().st_mtime_ns for path in (old_store / "cells").rglob("*.safetensors")}
    stored = Study.load(old_store)
    networks = {"plain": [_network(0.0), _network(1.0)], "other": _network(2.0)}
    sample = (stored.x, stored.y, stored.sample.masks)
    study = Study(networks, sample, store=old_store, seed=3)
    methods = {
        "saliency": {},
        "smooth": {"method": "smoothgrad", "n": 3},
        "predicted": {"method": "saliency", "target": "prediction"},
    }
    metrics = {
        "sparseness": {},
        "flipping": {"metric": "pixel_flipping", "steps": 4},
        "pointing_game": {},
    }
    study.attribute(methods).score(metrics)
    study.attack("pgd", eps=[0.05, "8/255"], steps=3).attack("fgsm", eps=0.4, norm="l2")
    kept = {place: key for place, key in stored.results.items() if place.kind != "audit"}
    assert {place: key for place, key in study.results.items() if place.kind != "audit"} == kept
    for name, table in _read_tables(old_store).items():
        if name != "audits":
            pd.testing.assert_frame_equal(getattr(study, name), table)
    with pytest.raises(
        pytest.fail.Exception, match="compute_audit was called"
    ):  # the audit was changed since
        study.audit("pgd", eps=0.05, images=3)
    after = {path: path.stat().st_mtime_ns for path in (old_store / "cells").rglob("*.safetensors")}
    assert after == before


def test_files_without_a_digest_are_named(old_store: Path) -> None:
    found = sl.verify(old_store)
    assert set(found["kind"]) == {"table", "weights"}
    study = Study.load(old_store)
    study.write_tables()
    study.write_manifest()
    assert set(sl.verify(old_store)["kind"]) == {"weights"}  # written again when a worker needs them


def test_a_new_version_of_the_package_alone_changes_no_key(monkeypatch) -> None:
    before = results.cache_versions("maps")
    monkeypatch.setattr(sl, "__version__", "99.0.0")
    assert results.cache_versions("maps") == before
    assert before["torch"] == metadata.version("torch")


def test_corruptions_alone_are_computed_again_with_another_scikit_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks = {"contrast": {"eps": 1}, "fgsm": {"eps": 0.1}}
    study = Study({"net": _network(0.0)}, (torch.rand(4, 1, 6, 6), torch.arange(4) % 3), store=tmp_path)
    for attack, settings in attacks.items():
        study.attack(attack, **settings)
    assert (study.plan(attacks=attacks)["missing"] == 0).all()
    another = provenance.versions() | {"scikit-image": "0.0"}
    monkeypatch.setattr("saliency_lab.study.keys.versions", lambda: another)
    missing = study.plan(attacks=attacks).set_index("what")["missing"]
    assert dict(missing) == {"contrast": 1, "fgsm": 0}
