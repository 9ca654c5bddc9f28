from __future__ import annotations

import functools
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from torch import nn

import saliency_lab as sl
from saliency_lab._common.errors import InputError, SaliencyLabError
from saliency_lab._common.files import check_tables, write_checked_json
from saliency_lab._common.fingerprints import canonical
from saliency_lab.attribution.packing import PackedMaps
from saliency_lab.study import Study
from saliency_lab.study.cache.results import cache_versions

MakeStudy = Callable[..., Study]


def _finish(study: Study) -> Study:
    study.attribute(["saliency", "input_x_gradient"]).score(["sparseness", "complexity"])
    return study.attack("fgsm", eps=[0.1])


def _as_earlier_versions_wrote_it(folder: Path) -> dict[str, Any]:
    """Return the content of `study.json` without what earlier versions did not write."""
    manifest = json.loads((folder / "study.json").read_text())
    added = ("digest", "missing", "weights", "failed")
    return {key: value for key, value in manifest.items() if key not in added}


def _files(folder: Path) -> list[Path]:
    return sorted((folder / "cells").rglob("[!.]*.safetensors"))


def test_a_study_is_read_back_without_its_models(make_study: MakeStudy, tmp_path: Path) -> None:
    study = _finish(make_study(tmp_path, seeds=2))
    loaded = Study.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.scores, study.scores)
    pd.testing.assert_frame_equal(loaded.robustness, study.robustness)
    assert torch.equal(loaded.maps["other"]["saliency"].values, study.maps["other"]["saliency"].values)
    assert torch.equal(loaded.x, study.x)
    assert repr(loaded) == repr(study)
    assert str(loaded.compare()) == str(study.compare())
    with pytest.raises(InputError, match="plain \\(seed 0\\) without its network"):
        loaded.attribute("saliency")


def test_a_store_that_cannot_be_written_can_be_read(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _finish(make_study(tmp_path))

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    monkeypatch.setattr("tempfile.mkstemp", refused)
    loaded = Study.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.scores, study.scores)
    assert sl.verify(loaded.store.folder).empty
    assert torch.equal(loaded.maps["plain"]["saliency"].values, study.maps["plain"]["saliency"].values)
    with pytest.raises(InputError, match="cannot write to the folder"):
        make_study(tmp_path)


def test_what_cannot_be_loaded_says_why(make_study: MakeStudy, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no store at"):
        Study.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no readable study\.json"):
        Study.load(tmp_path)
    _finish(make_study(tmp_path))
    (sample,) = (tmp_path / "samples").iterdir()
    sample.write_bytes(sample.read_bytes()[:100])
    with pytest.raises(InputError, match="its images are missing or damaged"):
        Study.load(tmp_path)


def test_a_study_in_memory_can_be_saved(make_study: MakeStudy, tmp_path: Path) -> None:
    study = _finish(make_study())
    assert study.save(tmp_path) is study
    pd.testing.assert_frame_equal(Study.load(tmp_path).scores, study.scores)
    assert sl.verify(study.score("effective_complexity").store.folder).empty


def test_two_machines_are_merged(
    make_net: Callable[[int], nn.Module], tiny_sample: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    one, two = ({name: make_net(i)} for i, name in enumerate(("plain", "other")))
    both = _finish(Study(one | two, tiny_sample))
    _finish(Study(one, tiny_sample, store=tmp_path / "one"))
    _finish(Study(two, tiny_sample, store=tmp_path / "two"))
    merged = Study.load(tmp_path / "one").merge(tmp_path / "two")
    order = ["model", "method", "metric", "sample"]
    pd.testing.assert_frame_equal(
        merged.scores.sort_values(order, ignore_index=True), both.scores.sort_values(order, ignore_index=True)
    )
    shutil.rmtree(tmp_path / "two")
    again = Study.load(tmp_path / "one")
    assert again.models == ["plain", "other"]
    assert torch.equal(again.maps["other"]["saliency"].values, both.maps["other"]["saliency"].values)


def test_to_go_on_after_a_merge_the_study_is_built_with_every_network(
    make_net: Callable[[int], nn.Module], tiny_sample: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    one, two = ({name: make_net(i)} for i, name in enumerate(("plain", "other")))
    _finish(Study(two, tiny_sample, store=tmp_path / "two"))
    study = _finish(Study(one, tiny_sample, store=tmp_path / "one")).merge(tmp_path / "two")
    with pytest.raises(InputError, match=r"other \(seed 0\) without its network.*with every network"):
        study.score("sparseness")
    again = Study(one | two, tiny_sample, store=tmp_path / "one")
    assert again.plan("saliency", "sparseness", {"fgsm": {"eps": 0.1}})["missing"].sum() == 0
    assert _finish(again).results == study.results


def test_two_networks_of_one_name_are_not_joined(
    make_net: Callable[[int], nn.Module], tiny_sample: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    Study({"net": make_net(0)}, tiny_sample, store=tmp_path).attribute("saliency").score("sparseness")
    second = Study({"net": make_net(1)}, tiny_sample, store=tmp_path).attack("fgsm", eps=0.1)
    loaded = Study.load(tmp_path)
    assert loaded.results == second.results
    assert loaded.scores.empty
    pd.testing.assert_frame_equal(loaded.robustness, second.robustness)
    again = Study({"net": make_net(1)}, tiny_sample, store=tmp_path).attribute("saliency")
    assert Study.load(tmp_path).results == {**second.results, **again.results}


def test_two_networks_of_one_name_are_not_merged(
    make_net: Callable[[int], nn.Module], tiny_sample: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    for seed in (0, 1):
        _finish(Study({"net": make_net(seed)}, tiny_sample, store=tmp_path / str(seed)))
    files = _files(tmp_path / "0")
    for study in (Study.load(tmp_path / "0"), Study({"net": make_net(0)}, tiny_sample, store=tmp_path / "0")):
        with pytest.raises(InputError, match=r"'net' \(seed 0\) is one network in this study and another in"):
            study.merge(tmp_path / "1")
    assert _files(tmp_path / "0") == files


def test_merging_keeps_scores_with_their_maps(make_study: MakeStudy, tmp_path: Path) -> None:
    for n in (2, 3):
        study = make_study(tmp_path / str(n)).attribute({"smooth": {"method": "smoothgrad", "n": n}})
        study.score("sparseness" if n == 2 else "complexity")
    merged = Study.load(tmp_path / "2").merge(tmp_path / "3")
    assert set(merged.scores["metric"]) == {"sparseness"}
    assert merged.maps["plain"]["smooth"].settings["n"] == 2


def test_a_store_that_does_not_tell_the_weights_is_read_and_learns_them(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study = _finish(make_study(tmp_path, seeds=2))
    manifest = _as_earlier_versions_wrote_it(tmp_path)
    members = manifest["members"]
    manifest["members"] = [member[:3] for member in members]
    (tmp_path / "study.json").write_text(json.dumps(manifest))
    loaded = Study.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.scores, study.scores)
    loaded.merge(tmp_path)
    assert loaded.results == study.results
    make_study(tmp_path, seeds=2).attribute("saliency")
    assert json.loads((tmp_path / "study.json").read_text())["members"] == members
    assert Study.load(tmp_path).results == study.results


def test_tables_of_removed_results_are_deleted_and_other_files_stay(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    _finish(make_study(tmp_path / "store")).write_tables(tmp_path / "tables")
    assert (tmp_path / "tables" / "robustness.csv").exists()
    (tmp_path / "tables" / "audits.csv").write_text("mine")
    fewer = make_study(tmp_path / "other").attribute("saliency").score("sparseness")
    written = fewer.write_tables(tmp_path / "tables")
    assert written == [tmp_path / "tables" / "scores.parquet"]
    names = {path.name for path in (tmp_path / "tables").iterdir()}
    assert names == {"scores.csv", "scores.parquet", "digests.json", "audits.csv"}
    assert not check_tables(tmp_path / "tables")


def test_merging_leaves_damaged_results_out_and_names_them(make_study: MakeStudy, tmp_path: Path) -> None:
    _finish(make_study(tmp_path / "one"))
    damaged = _files(tmp_path / "one")[3]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    study = make_study(tmp_path / "two")
    with pytest.warns(UserWarning, match=damaged.stem):
        study.merge(tmp_path / "one")
    names = {path.name for path in _files(tmp_path / "two")}
    assert names == {path.name for path in _files(tmp_path / "one")} - {damaged.name}


def test_results_of_other_images_come_along_but_stay_out_of_the_tables(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    first = _finish(make_study(tmp_path / "one"))
    nets = {member.model: member.module for member in first.members}
    other = Study(nets, (first.x[:4], first.y[:4]), store=tmp_path / "two")
    other.attribute("saliency").score("sparseness")
    before = other.scores
    with pytest.warns(UserWarning, match=r"one' contains a study of other images.*nothing of it appears"):
        other.merge(tmp_path / "one")
    pd.testing.assert_frame_equal(other.scores, before)
    assert len(_files(tmp_path / "two")) == len(_files(tmp_path / "one")) + 4


@pytest.mark.parametrize("seed", range(6))
def test_verify_finds_any_changed_byte(make_study: MakeStudy, tmp_path: Path, seed: int) -> None:
    study = make_study(tmp_path).attribute("saliency").score("sparseness")
    assert sl.verify(study.store.folder).empty
    draws = np.random.default_rng(seed)
    path = _files(tmp_path)[draws.integers(4)]
    content = bytearray(path.read_bytes())
    content[draws.integers(len(content))] ^= 1 << draws.integers(8)
    path.write_bytes(content)
    assert sl.verify(study.store.folder)["file"].tolist() == [path.relative_to(tmp_path).as_posix()]


def test_gc_keeps_this_study_and_nothing_else(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(tmp_path).attribute("saliency").score(["sparseness", "complexity"])
    kept = make_study(tmp_path).attribute("saliency").score("sparseness")
    young, old = (_files(tmp_path)[0].with_name(f".{age}.safetensors") for age in ("young", "old"))
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    doomed = len(_files(tmp_path)) - 4
    assert doomed == 2
    assert kept.gc() > 0
    assert len(_files(tmp_path)) == 4
    assert young.exists()
    assert not old.exists()
    assert set(Study.load(tmp_path).scores["metric"]) == {"sparseness"}
    assert len(study.scores) == 2 * 2 * 12
    with pytest.raises(InputError, match="all would be deleted"):
        make_study(tmp_path).gc()
    assert len(_files(tmp_path)) == 4


@pytest.mark.parametrize("change", ["images", "seed"])
def test_a_study_of_other_images_or_another_seed_warns_before_it_replaces_the_list(
    make_study: MakeStudy, tmp_path: Path, change: str
) -> None:
    first = _finish(make_study(store=tmp_path / "store"))
    models = {"plain": first.members[0].module}
    sample = (first.x, first.y) if change == "seed" else (first.x[:-1], first.y[:-1])
    with pytest.warns(UserWarning, match="lists the results of a study of other images, or of another seed"):
        Study(models, sample, store=tmp_path / "store", seed=1 if change == "seed" else 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Study(models, (first.x, first.y), store=tmp_path / "store")


def test_gc_passes_over_what_another_process_deletes_or_finishes(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study(tmp_path).attribute("saliency")
    for name in ("gone.safetensors", ".gone.safetensors"):
        _files(tmp_path)[0].with_name(name).symlink_to("nowhere")
    study.gc()
    assert sum(path.exists() for path in _files(tmp_path)) == 2


@pytest.mark.parametrize(
    "half", [".study.json.x.json", "samples/.a.x.safetensors", "weights/.a.x.safetensors"]
)
def test_gc_clears_what_killed_processes_left(make_study: MakeStudy, tmp_path: Path, half: str) -> None:
    study = make_study(tmp_path).attribute("saliency")
    (tmp_path / half).parent.mkdir(exist_ok=True)
    (tmp_path / half).write_bytes(b"half")
    os.utime(tmp_path / half, (0, 0))
    assert study.gc() == 4
    assert not (tmp_path / half).exists()


@pytest.mark.parametrize("leave", ["gc", "save"])
def test_settings_that_come_back_are_in_the_store_again(
    make_study: MakeStudy, tmp_path: Path, leave: str
) -> None:
    study = make_study(tmp_path / "first").attack("pgd", eps=0.1, steps=1)
    study.attack("pgd", eps=0.1, steps=2)
    store = tmp_path / ("first" if leave == "gc" else "second")
    study.gc() if leave == "gc" else study.save(store)
    study.attack("pgd", eps=0.1, steps=1)
    assert len(Study.load(store).robustness) == len(study.robustness) > 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux lists them")
def test_a_study_keeps_no_file_of_its_scores_mapped(make_study: MakeStudy, tmp_path: Path) -> None:
    study = _finish(make_study(tmp_path))
    loaded = Study.load(tmp_path)
    assert len(loaded.scores) == len(study.scores) > 0
    assert f"{tmp_path}/cells" not in Path("/proc/self/maps").read_text()


def test_a_metric_that_explains_again_gets_the_method_of_the_study(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    """Also from the store, where settings are text, and for the user's own functions."""

    def doubled(model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_()
        chosen = model(x).gather(1, classes[:, None]).sum()
        return 2 * torch.autograd.grad(chosen, x)[0]

    methods = {
        "saliency": {},
        "occlusion": {},
        "doubled": doubled,
    }
    for _ in range(2):
        study = make_study(tmp_path).attribute(methods).score({"max_sensitivity": {}})
        wide = study.scores.query("model == 'plain'").pivot(index="sample", columns="method", values="score")
        np.testing.assert_allclose(wide["doubled"], wide["saliency"], rtol=1e-5)
        assert wide.notna().all().all()


def test_a_users_own_metric_is_scored_and_keyed_by_its_source(make_study: MakeStudy, tmp_path: Path) -> None:
    def largest(model: nn.Module, x: torch.Tensor, y: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(1).amax(1)

    study = make_study(tmp_path).attribute("saliency").score([largest, "sparseness"])
    scores = study.scores.query("model == 'plain' and metric == 'largest'")["score"]
    expected = study.maps["plain"]["saliency"].values.flatten(1).amax(1)
    np.testing.assert_allclose(scores, expected)
    count = len(_files(tmp_path))

    def largest(model: nn.Module, x: torch.Tensor, y: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(1).abs().amax(1)

    study = make_study(tmp_path).attribute("saliency").score(largest)
    assert len(_files(tmp_path)) == count + 2
    assert set(study.scores["metric"]) == {"largest"}


def test_canonical_settings_tell_contents_apart() -> None:
    a, b = torch.zeros(3), torch.ones(3)
    assert canonical({"x": a}) == canonical({"x": a.clone()})
    assert canonical({"x": a}) != canonical({"x": b})
    assert canonical(np.zeros(3)) != canonical(np.ones(3))
    assert canonical({"x": (1, 2)}) == canonical({"x": [1, 2]})
    assert canonical(nn.Linear(2, 2)) != canonical(nn.Linear(2, 2))
    assert canonical(len) != canonical(max)


@pytest.mark.parametrize("damage", ["{", "[1]", '{"images": "0", "seed": 0}'])
def test_a_damaged_manifest_does_not_stop_a_run(make_study: MakeStudy, tmp_path: Path, damage: str) -> None:
    _finish(make_study(tmp_path))
    (tmp_path / "study.json").write_text(damage)
    with pytest.raises(InputError, match=r"it has no readable study\.json; run the study again"):
        Study.load(tmp_path)
    with pytest.warns(UserWarning, match=r"study\.json' is damaged.*renamed to 'study\.damaged-1\.json'"):
        study = _finish(make_study(tmp_path))
    assert (tmp_path / "study.damaged-1.json").read_text() == damage
    pd.testing.assert_frame_equal(Study.load(tmp_path).scores, study.scores)
    with pytest.raises(InputError, match=r"is a damaged study\.json, whose results would be deleted"):
        study.gc()
    (tmp_path / "study.damaged-1.json").unlink()
    assert study.gc() == 0


def test_damaged_images_are_written_again(make_study: MakeStudy, tmp_path: Path) -> None:
    study = _finish(make_study(tmp_path))
    (file,) = (tmp_path / "samples").iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match="its images are missing or damaged"):
        Study.load(tmp_path)
    _finish(make_study(tmp_path))
    pd.testing.assert_frame_equal(Study.load(tmp_path).scores, study.scores)


def test_what_another_version_says_in_the_manifest_does_no_harm(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study = _finish(make_study(tmp_path))
    manifest = json.loads((tmp_path / "study.json").read_text()) | {"more": 1}
    del manifest["digest"]
    write_checked_json(tmp_path / "study.json", manifest)
    pd.testing.assert_frame_equal(Study.load(tmp_path).scores, study.scores)


def _scaled(factor: object) -> Callable[..., torch.Tensor]:
    def scaled(model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return x * factor

    return scaled


class _Scale:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return x * self.factor

    def method(self, model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def _multiply(x: torch.Tensor, *, factor: float = 1.0) -> torch.Tensor:
    return x * factor


@pytest.mark.parametrize(
    "make",
    [
        _scaled,
        _Scale,
        lambda factor: _Scale(factor).method,
        lambda factor: functools.partial(_multiply, factor=factor),
        lambda factor: functools.partial(_Scale(factor), None),
        lambda factor: _scaled(torch.tensor(factor)),
        lambda factor: _scaled(_scaled(factor)),
        lambda factor: [lambda model, x, classes: x * 2, lambda model, x, classes: x * 3][factor == 3],
    ],
)
def test_callables_that_differ_in_what_they_hold_have_different_keys(make: Callable[[float], object]) -> None:
    assert canonical(make(2.0)) == canonical(make(2.0))
    assert canonical(make(2.0)) != canonical(make(3.0))


def test_quantus_objects_are_distinguished_by_their_settings() -> None:
    quantus = pytest.importorskip("quantus")
    few, many = (quantus.Sparseness(abs=each, disable_warnings=True) for each in (True, False))
    assert canonical(few) == canonical(quantus.Sparseness(abs=True, disable_warnings=True))
    assert canonical(few) != canonical(many)


def test_a_function_that_closes_over_itself_has_a_key() -> None:
    def walk(depth: int) -> int:
        return depth and walk(depth - 1)

    assert canonical(walk) == canonical(walk)


def test_lost_maps_are_not_replaced_by_others(make_study: MakeStudy, tmp_path: Path) -> None:
    make_study(tmp_path / "other").attribute({"smoothgrad": {"n": 2}})
    study = make_study(tmp_path / "here").merge(tmp_path / "other")
    shutil.rmtree(tmp_path / "here" / "cells")
    with pytest.raises(SaliencyLabError, match=r"maps by 'smoothgrad' of plain .* are gone"):
        study.read_maps("plain", "smoothgrad")


def test_versions_of_what_makes_a_result_are_known() -> None:
    for kind in ("maps", "scores", "attack"):
        found = cache_versions(kind)
        assert found
        assert "absent" not in found.values()
    assert "pyautoattack" in cache_versions("attack")


def test_models_are_not_compared_under_different_settings(
    make_net: Callable[[int], nn.Module], tiny_sample: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    for name, steps in (("plain", 1), ("other", 2)):
        study = Study({name: make_net(0 if name == "plain" else 1)}, tiny_sample, store=tmp_path)
        study.attack("pgd", eps=0.1 * steps, steps=steps)
        assert study.compare().models == [name]
    with pytest.raises(
        InputError, match="'pgd' was run on 'other' with steps = 2 and on 'plain' with steps = 1"
    ):
        Study.load(tmp_path).compare()
    for name, n in (("plain", 2), ("other", 3)):
        study = Study({name: make_net(0 if name == "plain" else 1)}, tiny_sample, store=tmp_path / name)
        study.attribute({"smoothgrad": {"n": n}}).score("sparseness")
    merged = Study.load(tmp_path / "plain").merge(tmp_path / "other")
    with pytest.raises(
        InputError, match="'smoothgrad' was run on 'plain' with n = 2 and on 'other' with n = 3"
    ):
        merged.compare()


def test_models_attacked_at_other_radii_are_compared_where_both_were(
    make_net: Callable[[int], nn.Module], tiny_sample: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    for name, eps in (("plain", [0.1, 0.2]), ("other", [0.1])):
        study = Study({name: make_net(0 if name == "plain" else 1)}, tiny_sample, store=tmp_path)
        study.attack("pgd", eps=eps, steps=1)
    models = {measure.eps: set(measure.values) for measure in Study.load(tmp_path).compare().measures}
    assert models == {0.0: {"plain", "other"}, 0.1: {"plain", "other"}, 0.2: {"plain"}}


def test_compact_maps_take_a_byte_per_value_and_have_keys_of_their_own(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    sample = (torch.rand(6, 3, 8, 8), torch.arange(6) % 5)
    metrics = {"sparseness": {}, "pixel_flipping": {"steps": 4}, "max_sensitivity": {"samples": 2}}
    plain = sl.Study({"net": net}, sample, store=tmp_path / "plain").attribute("saliency").score(metrics)
    compact = sl.Study({"net": net}, sample, store=tmp_path / "compact", compact_maps=True)
    compact.attribute("saliency").score(metrics)
    exact, rounded = (study.read_maps("net", "saliency").values for study in (plain, compact))
    largest = exact.abs().amax((1, 2, 3), keepdim=True)
    assert ((rounded - exact).abs() <= exact.abs() / 16 + largest * 2**-18).all()
    assert not torch.equal(rounded, exact)
    (file,) = (tmp_path / "compact" / "cells" / "maps").rglob("*.safetensors")
    with safe_open(file, framework="pt") as opened:
        assert opened.get_tensor("values").nbytes == exact.numel()
    keys = [
        {path.stem for path in (tmp_path / each / "cells").rglob("*.safetensors")}
        for each in ("plain", "compact")
    ]
    assert not keys[0] & keys[1]
    direct = sl.evaluate(net, *sample, rounded, "pixel_flipping", steps=4)
    found = compact.scores.query("metric == 'pixel_flipping'").score.to_numpy()
    np.testing.assert_array_equal(found, direct)
    again = sl.Study({"net": net}, sample, store=tmp_path / "compact", compact_maps=True)
    assert again.plan(methods="saliency", metrics=metrics).missing.sum() == 0
    table = {
        name: study.scores.pivot(index="sample", columns="metric", values="score")
        for name, study in {"plain": plain, "compact": compact}.items()
    }
    assert (table["plain"] - table["compact"]).abs().sparseness.max() < 0.02


def test_maps_stored_in_two_ways_are_not_compared(tmp_path, tiny_sample, make_net):
    for name, compact in (("exact", False), ("rounded", True)):
        net = make_net(int(compact))
        study = sl.Study({name: net}, tiny_sample, store=tmp_path / name, compact_maps=compact)
        study.attribute("saliency").score("sparseness")
    study.merge(tmp_path / "exact")
    with pytest.raises(sl.SaliencyLabError, match="on 'rounded' with stored as = 'float8' and on 'exact'"):
        study.compare()


def test_packed_maps_keep_zeros_and_show_what_is_not_finite():
    maps = torch.randn(4, 1, 5, 5) * torch.tensor([1e-30, 1.0, 1e20, 1.0]).reshape(-1, 1, 1, 1)
    maps[1] = 0
    maps[3, 0, 0, 0] = torch.inf
    found = PackedMaps.of(maps)[:]
    assert torch.equal(found[1], maps[1]) and not found[3].isfinite().all()
    for row in (0, 2):
        assert ((found[row] - maps[row]).abs() <= maps[row].abs() / 16 + maps[row].abs().max() * 2**-18).all()
