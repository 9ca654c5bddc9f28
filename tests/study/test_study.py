from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from torch import nn

import saliency_lab as sl
from saliency_lab._common.errors import InputError, SaliencyLabError, UnknownNameError
from saliency_lab._common.fingerprints import canonical, model_fingerprint
from saliency_lab._common.hashing import fingerprint
from saliency_lab.attacks.checklist import run_audit
from saliency_lab.metrics import api as evaluation
from saliency_lab.study import Study, compute, keys, running
from saliency_lab.study.cache import store
from saliency_lab.study.cache.results import Content, cache_versions
from saliency_lab.study.requests import Request, read_grid

METHODS = ["saliency", "input_x_gradient"]
METRICS = {"sparseness": {}, "pixel_flipping": {"steps": 4}}
MakeStudy = Callable[..., Study]


def _run(study: Study) -> Study:
    return study.attribute(METHODS).score(METRICS).attack("pgd", eps=[0.05, 0.2], steps=3)


def _result_files(folder: Path) -> dict[str, int]:
    found = (folder / "cells").rglob("[!.]*.safetensors")  # without what a killed process left half written
    return {path.name: path.stat().st_mtime_ns for path in found}


@pytest.fixture
def nothing_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compute_maps", "compute_scores", "compute_attack"):
        monkeypatch.setattr(compute, name, lambda *_, name=name: pytest.fail(f"{name} was called"))


def test_results_are_those_of_the_public_functions(make_study: MakeStudy) -> None:
    study = _run(make_study(seeds=2))
    x, y = study.x, study.y
    net = study.members[1].module
    maps = sl.attribute(net, x, y, "input_x_gradient")
    assert torch.equal(study.read_maps("plain", "input_x_gradient", seed=1).values, maps.values)
    rows = study.scores.query("model == 'plain' and seed == 1 and method == 'input_x_gradient'")
    expected = sl.evaluate(net, x, y, maps, "pixel_flipping", steps=4)
    np.testing.assert_array_equal(rows.query("metric == 'pixel_flipping'")["score"], expected)
    robust = study.robustness.query("model == 'plain' and seed == 1 and eps == 0.2")["robust"]
    curve = sl.robustness_curve(net, x, y, "pgd", eps=[0, 0.05, 0.2], steps=3)
    assert robust.tolist() == curve.robust[-1].tolist()
    clean = study.robustness.query("model == 'plain' and seed == 1 and eps == 0")["robust"]
    assert clean.tolist() == (net(x).argmax(1) == y).tolist()


def test_a_study_does_not_hash_its_images_to_score(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study().attribute(METHODS)
    monkeypatch.setattr(evaluation, "fingerprint", lambda value: pytest.fail("hashed"))
    assert study.score("sparseness").scores["score"].notna().all()


def test_tables_are_tidy(make_study: MakeStudy) -> None:
    study = _run(make_study(seeds=2))
    assert len(study.scores) == 2 * 2 * 2 * 2 * 12
    assert not study.scores.duplicated(["model", "seed", "method", "metric", "sample"]).any()
    assert len(study.robustness) == 2 * 2 * 3 * 12
    assert not study.robustness.duplicated(["model", "seed", "attack", "eps", "sample"]).any()
    assert study.failures.empty


def test_memory_and_folder_give_the_same(make_study: MakeStudy, tmp_path: Path) -> None:
    in_memory, in_folder = _run(make_study()), _run(make_study(tmp_path))
    pd.testing.assert_frame_equal(in_memory.scores, in_folder.scores)
    pd.testing.assert_frame_equal(in_memory.robustness, in_folder.robustness)


def test_a_second_run_computes_nothing(
    make_study: MakeStudy, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = _run(make_study(tmp_path))
    before = _result_files(tmp_path)
    request.getfixturevalue("nothing_computed")
    second = _run(make_study(tmp_path))
    pd.testing.assert_frame_equal(first.scores, second.scores)
    pd.testing.assert_frame_equal(first.robustness, second.robustness)
    assert torch.equal(first.maps["plain"]["saliency"].values, second.maps["plain"]["saliency"].values)
    assert _result_files(tmp_path) == before


def test_a_changed_setting_computes_its_own_results_and_no_others(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    _run(make_study(tmp_path))
    before = _result_files(tmp_path)
    study = make_study(tmp_path).attribute(METHODS)
    study.score({"sparseness": {}, "pixel_flipping": {"steps": 6}})
    after = _result_files(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 4  # two models, two methods


@pytest.mark.parametrize("change", ["weights", "images", "labels", "seed"])
def test_whatever_a_result_depends_on_makes_another_result(
    make_study: MakeStudy, tmp_path: Path, change: str
) -> None:
    make_study(tmp_path).attribute("saliency")
    study = make_study(tmp_path, seed=int(change == "seed"))
    if change == "weights":
        with torch.no_grad():
            study.members[0].module[3].bias[0] += 1e-3
    elif change == "images":
        study = Study({"plain": study.members[0].module}, (study.x.flip(0), study.y), store=tmp_path)
    elif change == "labels":
        study = Study({"plain": study.members[0].module}, (study.x, study.y.flip(0)), store=tmp_path)
    count = len(_result_files(tmp_path))
    study.attribute("saliency")
    assert len(_result_files(tmp_path)) > count


def test_explicit_defaults_are_the_same_result(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(tmp_path).attribute({"smoothgrad": {}})
    defaults = study.maps["plain"]["smoothgrad"].settings
    count = len(_result_files(tmp_path))
    make_study(tmp_path).attribute({"smoothgrad": {"n": defaults["n"]}})
    assert len(_result_files(tmp_path)) == count


def test_a_request_is_hashed_once_and_its_results_have_the_keys_of_before(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def total(model: nn.Module, x: torch.Tensor, y: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(1).sum(1)

    study = make_study(seeds=2).attribute(METHODS)
    masks = study.x > 0.5
    hashed = []
    monkeypatch.setattr(keys, "canonical", lambda value: hashed.append(value) or canonical(value))
    study.score({"total": {"metric": total}, "game": {"metric": "pointing_game", "masks": masks}})
    assert len(hashed) == len(METHODS) + 3  # settings of each; of one metric its code too
    maps = study.results["maps", "saliency", "", "other", 1]  # type: ignore[index]
    depends = {
        "model": model_fingerprint(study.members[-1].net),
        "images": study.sample.images,
        "maps": maps,
        "engine": "fast",
        "seed": 0,
        "versions": cache_versions("scores"),
    }
    settings = {"masks": f"tensor {fingerprint(masks)}", "absolute": False}
    game = fingerprint("scores", {**depends, "metric": "pointing_game", "settings": settings})
    assert study.results["scores", "saliency", "game", "other", 1] == game  # type: ignore[index]
    own = fingerprint("scores", {**depends, "metric": canonical(total), "settings": {}})
    assert study.results["scores", "saliency", "total", "other", 1] == own  # type: ignore[index]


def test_one_method_with_two_settings_under_two_labels(make_study: MakeStudy) -> None:
    study = make_study()
    study.attribute({"few": {"method": "smoothgrad", "n": 2}, "many": {"method": "smoothgrad", "n": 4}})
    study.score("sparseness").attack("pgd", eps=0.1, steps=1).attack("pgd", label="pgd-3", eps=0.1, steps=3)
    assert set(study.scores["method"]) == {"few", "many"}
    assert set(study.robustness["attack"]) == {"pgd", "pgd-3"}
    assert study.maps["plain"]["many"].settings["n"] == 4


def test_a_users_own_function_is_a_method(make_study: MakeStudy, tmp_path: Path) -> None:
    def brightness(model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return x.clone()

    study = make_study(tmp_path).attribute(["saliency", brightness]).score("sparseness")
    assert torch.equal(study.maps["plain"]["brightness"].values, study.x)
    assert set(study.scores["method"]) == {"saliency", "brightness"}


def test_a_result_that_raises_is_recorded_and_the_rest_goes_on(make_study: MakeStudy, tmp_path: Path) -> None:
    broken = True

    def fragile(model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        if broken:
            raise RuntimeError("the moon was full")
        return x.clone()

    study = make_study(tmp_path)
    with pytest.warns(UserWarning, match=r"2 of 4 results failed.*the moon was full"):
        study.attribute([fragile, "saliency"])
    failures = study.failures
    assert failures["what"].tolist() == ["fragile"] * 2
    assert failures["traceback"].str.contains("in fragile").all()
    with pytest.warns(UserWarning, match="2 of 4 results failed"):
        study.score("sparseness")
    assert set(study.scores["method"]) == {"saliency"}
    assert set(study.failures["what"]) == {"fragile", "sparseness of fragile"}
    broken = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study.attribute([fragile, "saliency"]).score("sparseness")
    assert study.failures.empty
    assert set(study.scores["method"]) == {"saliency", "fragile"}


def test_a_second_run_over_a_failing_result_goes_on_too(make_study: MakeStudy, tmp_path: Path) -> None:
    def hopeless(model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")

    for _ in range(2):
        study = make_study(tmp_path)
        with pytest.warns(UserWarning, match="2 of 4 results failed"):
            study.attribute(["saliency", hopeless])
        with pytest.warns(UserWarning, match="2 of 4 results failed"):
            study.score("sparseness")
        assert set(study.scores["method"]) == {"saliency"}


def test_settings_with_one_entry_per_image_are_planned(
    make_net: Callable[[int], nn.Module],
) -> None:
    x, y = torch.rand(20, 1, 6, 6), torch.arange(20) % 3
    masks = torch.zeros(20, 1, 6, 6, dtype=torch.bool)
    masks[..., :3] = True
    study = Study({"plain": make_net(0)}, (x, y))
    methods = {"saliency": {"target": y}, "contrast": {"method": "saliency", "target": (y, 1)}}
    plan = study.plan(methods, {"pointing_game": {"masks": masks}})
    assert plan["missing"].tolist() == [1, 1, 2]
    assert (plan["seconds"] > 0).all()


def test_metrics_that_ask_the_same_share_their_passes(make_study: MakeStudy) -> None:
    def passes(metrics: dict[str, dict[str, int]]) -> int:
        study = make_study()
        count = 0

        def note(*_: object) -> None:
            nonlocal count
            count += 1

        study.members[0].module.register_forward_hook(note)
        study.attribute(METHODS)
        before = count
        study.score(metrics)
        return count - before

    alone = passes({"pixel_flipping": {"steps": 4}})
    assert passes({"pixel_flipping": {"steps": 4}, "deletion": {"steps": 4}}) < 1.6 * alone


def test_one_metric_with_two_settings_and_a_failing_one_next_to_it(make_study: MakeStudy) -> None:
    study = make_study().attribute(METHODS)
    metrics = {
        "few": {"metric": "pixel_flipping", "steps": 3},
        "many": {"metric": "pixel_flipping", "steps": 9},
        "bad": {"metric": "deletion", "steps": 5, "engine": "fast"},
        "worse": {"metric": "max_sensitivity", "explain": lambda model, x, classes: 1 / 0},
        "good": {"metric": "avg_sensitivity", "samples": 2},
    }
    with pytest.warns(UserWarning, match="4 of 20 results failed.*ZeroDivisionError"):
        study.score(metrics)
    assert set(study.scores["metric"]) == set(metrics) - {"worse"}
    for label, steps in (("few", 3), ("many", 9)):
        found = study.scores.query(f"model == 'plain' and method == 'saliency' and metric == '{label}'")
        net, maps = study.members[0].module, study.maps["plain"]["saliency"]
        expected = sl.evaluate(net, study.x, study.y, maps, "pixel_flipping", steps=steps)
        np.testing.assert_array_equal(found["score"], expected)


def test_maps_of_the_predicted_class_are_scored_for_it(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(tmp_path)
    predicted = {"method": "saliency", "target": "prediction"}
    study.attribute({"saliency": {}, "predicted": predicted}).score({"pixel_flipping": {"steps": 4}})
    net = study.members[0].module
    maps = study.maps["plain"]["predicted"]
    assert torch.equal(maps.classes, net(study.x).argmax(1))
    assert not torch.equal(maps.classes, study.y)
    found = study.scores.query("model == 'plain' and method == 'predicted'")["score"]
    expected = sl.evaluate(net, study.x, maps.classes, maps, "pixel_flipping", steps=4)
    np.testing.assert_array_equal(found, expected)


def test_a_custom_function_is_run_again_by_metrics_that_need_it(make_study: MakeStudy) -> None:
    def doubled(model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return 2 * x

    study = make_study().attribute([doubled, "saliency"])
    study.score({"max_sensitivity": {"samples": 2}, "avg_sensitivity": {"samples": 2}, "sparseness": {}})
    maps, net = study.maps["plain"]["doubled"], study.members[0].module
    settings = {"samples": 2, "explain": lambda model, x, classes: 2 * x}
    expected = sl.evaluate(net, study.x, study.y, maps, "max_sensitivity", **settings)
    rows = study.scores.query("model == 'plain' and method == 'doubled' and metric == 'max_sensitivity'")
    np.testing.assert_array_equal(rows["score"], expected)
    assert len(study.scores) == 2 * 2 * 3 * 12


def test_maps_of_a_model_are_a_mapping(make_study: MakeStudy) -> None:
    maps = make_study().attribute("saliency").maps["plain"]
    assert "saliency" in maps
    assert "occlusion" not in maps
    assert maps.get("occlusion") is None
    with pytest.raises(KeyError, match="did you mean 'saliency'"):
        maps["salience"]


def test_a_failure_holds_nothing_of_what_failed(make_study: MakeStudy) -> None:
    """A GPU's memory, which the next result needs, among it."""
    alive: list[weakref.ref[torch.Tensor]] = []

    def greedy(model: nn.Module, x: torch.Tensor, y: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        assert not any(each() is not None for each in alive)
        large = x.clone()
        alive.append(weakref.ref(large))
        raise MemoryError(f"{len(large)} images")

    study = make_study().attribute(["saliency", "input"]).score("sparseness")
    with pytest.warns(UserWarning, match="12 images"):
        study.score(["complexity", greedy])
    assert set(study.failures["error"]) == {"MemoryError: 12 images"}
    assert len(alive) > 4 and not any(each() is not None for each in alive)


def test_if_everything_fails_the_error_is_raised(make_study: MakeStudy) -> None:
    def hopeless(model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        make_study().attribute(hopeless)


def test_what_could_not_be_computed_at_all_leaves_the_study_as_it_was(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study(tmp_path).attribute({"maps": {"method": "saliency"}}).score("sparseness")
    before = study.results
    for verb in (
        lambda: study.attribute("attention_rollout"),  # the networks have no attention
        lambda: study.attribute({"maps": {"method": "attention_rollout"}}),  # in place of what is there
    ):
        with pytest.raises(InputError, match="attention"):
            verb()
        assert study.results == before and study.failures.empty
        assert Study.load(tmp_path).results == before
    study.score("complexity")
    assert set(study.scores["metric"]) == {"sparseness", "complexity"}
    with pytest.raises(SaliencyLabError):
        study.score({"complexity": {"metric": "sparseness", "nonsense": 1}})
    assert study.compare().measure("complexity").better == "lower"
    with pytest.warns(UserWarning, match="2 of 4 results failed"):
        study.attribute(["saliency", "attention_rollout"])
    with pytest.raises(InputError, match="attention"):
        study.attribute("attention_rollout")
    assert len(study.failures) == 2


def test_eps_in_another_norm_shows_in_the_tables(make_study: MakeStudy) -> None:
    study = make_study().attack("fgsm", eps=0.1).attack("fgsm", eps=0.5, norm="l2")
    assert set(study.robustness["attack"]) == {"fgsm", "fgsm_l2"}
    study.audit("fgsm", eps=0.5, norm="l2", images=4)
    assert set(study.audits["attack"]) == {"fgsm_l2"}


def test_attacks_are_planned_as_if_no_image_gave_way(make_study: MakeStudy) -> None:
    """An untrained network breaks at the first step, and the trained one takes hours."""
    withstood = []

    def look(model: nn.Module, x: torch.Tensor, y: torch.Tensor, eps: float) -> torch.Tensor:
        withstood.append(bool((model(1 - x).argmax(1) == y).all()) and model.mark == "a user's own")
        return x

    study = make_study()
    for member in study.members:
        member.net.train()
        member.net.mark = "a user's own"  # type: ignore[assignment]
    plan = study.plan(attacks={"look": {"attack": look, "eps": 0.1}})
    assert withstood and all(withstood)
    assert all(member.net.training for member in study.members)
    assert plan["seconds"].item() > 0


def test_ctrl_c_goes_through_and_what_was_finished_stays(make_study: MakeStudy, tmp_path: Path) -> None:
    def interrupted(model: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_study(tmp_path).attribute(["saliency", interrupted])
    assert len(_result_files(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "moved"])
def test_a_damaged_result_is_named_and_computed_again(
    make_study: MakeStudy, tmp_path: Path, damage: str
) -> None:
    first = _run(make_study(tmp_path))
    scores, maps = first.scores, first.maps["plain"]["saliency"].values.clone()
    draws = np.random.default_rng(0)
    for kind in ("maps", "scores", "attack"):
        files = sorted((tmp_path / "cells" / kind).rglob("*.safetensors"))
        content = bytearray(files[0].read_bytes())
        if damage == "moved":
            files[0].write_bytes(files[1].read_bytes())
        elif damage == "bit":
            content[draws.integers(8, len(content))] ^= 4
            files[0].write_bytes(content)
        else:
            files[0].write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    with pytest.warns(UserWarning, match=r"the result '.*' is (damaged|not under its own name)"):
        second = _run(make_study(tmp_path))
        for model in second.models:
            for method in METHODS:
                second.maps[model][method]
    pd.testing.assert_frame_equal(second.scores, scores)
    assert torch.equal(second.maps["plain"]["saliency"].values, maps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _run(make_study(tmp_path))


def test_models_are_left_as_they_were(make_study: MakeStudy) -> None:
    study = make_study()
    for member in study.members:
        member.module.train()
    before = torch.get_rng_state()
    _run(study).compare().table()
    assert all(member.module.training for member in study.members)
    assert all(p.requires_grad and p.grad is None for m in study.members for p in m.module.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_that_changed_after_attribute_are_noticed(make_study: MakeStudy) -> None:
    study = make_study().attribute("saliency")
    with torch.no_grad():
        study.members[0].module[3].bias += 1
    with pytest.raises(InputError, match=r"the weights of plain .* changed since"):
        study.score("sparseness")


@pytest.mark.parametrize("verb", ["attribute", "attack", "audit"])
def test_results_of_weights_that_no_longer_exist_are_removed(
    make_study: MakeStudy, tmp_path: Path, verb: str
) -> None:
    study = _run(make_study(tmp_path)).audit("fgsm", eps=0.1)
    kept = study.scores.query("model == 'other'")
    with torch.no_grad():
        study.members[0].module[3].bias += torch.tensor([9.0, 0, 0])
    if verb == "attribute":
        study.attribute("saliency")
    else:
        getattr(study, verb)("fgsm", eps=0.1)
    pd.testing.assert_frame_equal(study.scores, kept.reset_index(drop=True))
    stored = {place[:2] for place in study.results if place.model == "plain"}
    expected = {"attribute": ("maps", "saliency"), "attack": ("attack", "fgsm")}
    assert stored == {expected.get(verb, ("audit", "audit of fgsm, ε = 0.1"))}
    assert Study.load(tmp_path).results == study.results
    if verb != "attribute":
        with pytest.raises(InputError, match=r"the weights of plain .* changed since"):
            study.score("sparseness")
        with pytest.raises(
            SaliencyLabError, match=r"no maps by 'saliency' of plain .*; call study\.attribute"
        ):
            study.read_maps("plain", "saliency")
    assert study.attribute(METHODS).score(METRICS).scores["model"].value_counts().nunique() == 1


def test_maps_by_other_settings_take_no_old_scores_along(make_study: MakeStudy, tmp_path: Path) -> None:
    def smooth(n: int) -> Study:
        return study.attribute({"smooth": {"method": "smoothgrad", "n": n}, "saliency": {}})

    study = make_study(tmp_path)
    before = smooth(2).score("sparseness").scores
    assert set(smooth(3).scores["method"]) == {"saliency"}
    loaded = Study.load(tmp_path)
    assert loaded.results == study.results
    assert set(loaded.scores["method"]) == {"saliency"}
    other = study.score("sparseness").scores.query("method == 'smooth'")["score"]
    assert not np.allclose(other, before.query("method == 'smooth'")["score"])
    assert set(smooth(2).scores["method"]) == {"saliency"}
    order = ["model", "method", "sample"]
    pd.testing.assert_frame_equal(
        study.score("sparseness").scores.sort_values(order, ignore_index=True),
        before.sort_values(order, ignore_index=True),
    )


def test_an_unknown_method_among_known_ones_changes_nothing(make_study: MakeStudy) -> None:
    study = make_study().attribute("saliency")
    before = study.results
    with pytest.raises(UnknownNameError):
        study.attribute({"saliency": {"target": "prediction"}, "salency": {}})
    assert study.results == before


def test_a_loop_over_eps_is_one_call(make_study: MakeStudy, tmp_path: Path) -> None:
    together = make_study().attack("pgd", eps=[0.05, 0.1, 0.2], steps=3)
    study = make_study(tmp_path)
    for eps in (0.2, 0.05, 0.1):
        study.attack("pgd", eps=eps, steps=3)
    pd.testing.assert_frame_equal(study.robustness, together.robustness)
    pd.testing.assert_frame_equal(Study.load(tmp_path).robustness, together.robustness)
    plan = study.plan(attacks={"pgd": {"eps": 0.05, "steps": 3}})
    assert plan["missing"].tolist() == [0]
    study.attack("pgd", eps=0.1, steps=4)
    assert set(study.robustness["eps"]) == {0.0, 0.1}


def test_a_network_under_two_names_is_noticed(
    make_net: Callable[[int], nn.Module], tiny_sample: tuple[torch.Tensor, torch.Tensor]
) -> None:
    with pytest.warns(UserWarning, match=r"b \(seed 1\) and a \(seed 0\) are the same network"):
        Study({"a": make_net(0), "b": [make_net(1), make_net(0)]}, tiny_sample)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Study({"a": make_net(0), "b": make_net(1)}, tiny_sample)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_and_networks_of_other_precision(
    make_net: Callable[[int], nn.Module], tiny_sample: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype
) -> None:
    net, (x, y) = make_net(0).to(dtype), tiny_sample
    x = x.to(dtype)
    study = Study({"net": net}, (x, y)).attribute("saliency").score("sparseness")
    exact = torch.float32 if dtype is torch.bfloat16 else dtype  # half precision is run in float32
    leaf = x.to(exact).requires_grad_()
    copy.deepcopy(net).to(exact)(leaf).gather(1, y[:, None]).sum().backward()
    torch.testing.assert_close(study.maps["net"]["saliency"].values, leaf.grad.float(), rtol=1e-5, atol=1e-6)


def test_images_that_take_gradients_are_looked_at_alone(
    make_net: Callable[[int], nn.Module], tiny_sample: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    x, y = tiny_sample
    given = x.clone().requires_grad_()
    study = _run(Study({"net": make_net(0)}, (given, y), store=tmp_path))
    pd.testing.assert_frame_equal(study.scores, _run(Study({"net": make_net(0)}, (x, y))).scores)
    assert not study.x.requires_grad
    assert given.requires_grad
    assert given.grad is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.attribute("salency"), "did you mean 'saliency'"),
        (lambda s: s.attribute({"smoothgrad": {"stdv": 3}}), "did you mean 'stdev'"),
        (lambda s: s.attribute([]), "name at least one method"),
        (lambda s: s.attribute(5), "methods must be a name"),
        (lambda s: s.attribute({"saliency": 5}), "'saliency' must map to its settings"),
        (lambda s: s.attribute([lambda m, x, c: x, lambda m, x, c: -x]), "two different methods are called"),
        (lambda s: s.plan(attacks={"pgd": {"steps": 3}}), r"attack 'pgd' needs ε, such as eps = \[0.1"),
        (lambda s: s.score("sparseness"), "no maps to score yet"),
        (lambda s: s.attribute("saliency").score("sparsness"), "did you mean 'sparseness'"),
        (lambda s: s.attack(["pgd", "fgsm"], eps=0.1), "attack must be one name"),
        (lambda s: s.plan(attacks="pgd"), "attacks must be a mapping of labels to settings"),
        (lambda s: s.plan(audits="pgd"), "audits must be a mapping of labels to settings"),
        (lambda s: s.plan(audits={"pgd": {"steps": 3}}), "audit 'pgd' needs ε, such as eps = 0.2"),
        (lambda s: s.plan(attacks={"pgd": {"eps": 0.1, "images": 3}}), "unknown setting .* 'images'"),
        (
            lambda s: s.plan(audits={"pgd": {"eps": 0.1, "images": 99}}),
            "images must be a whole number in 1 … ",
        ),
        (lambda s: s.audit(eps=0.1, budget="large"), "budget of the audit of pgd: 'large'"),
        (
            lambda s: s.attribute({"saliency": {}}).score({"sparseness": {"engine": "slow"}}),
            "no engine 'slow'",
        ),
        (lambda s: s.audit(eps=0.1, images=2.5), "images must be a whole number in 1 … "),
        (lambda s: s.attack("pdg", eps=0.1), "did you mean 'pgd'"),
        (lambda s: s.attack("pgd", eps=[]), "at least one radius"),
        (lambda s: s.attack("pgd", eps=-1), "eps must be"),
        (lambda s: s.compare(), "nothing to compare yet"),
        (lambda s: s.write_tables(), "this study is in memory"),
        (lambda s: s.read_maps("plain", "saliency"), "unknown method of this study"),
        (lambda s: s.attribute("saliency").read_maps("palin", "saliency"), "did you mean 'plain'"),
    ],
)
def test_mistakes_are_named(make_study: MakeStudy, call: Callable[[Study], object], message: str) -> None:
    with pytest.raises(SaliencyLabError, match=message):
        call(make_study())


def test_bad_models_and_samples_are_named(tiny_sample: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(InputError, match="models must map names"):
        Study({}, tiny_sample)
    with pytest.raises(InputError, match=r"model 'plain' must be an nn\.Module"):
        Study({"plain": "resnet"}, tiny_sample)  # type: ignore[dict-item]
    with pytest.raises(InputError, match=r"model 'plain' must be an nn\.Module .* not <function"):
        Study({"plain": lambda x: x}, tiny_sample)  # type: ignore[dict-item]
    with pytest.raises(InputError, match="a model's name must be text, such as '0'"):
        Study({0: nn.Identity()}, tiny_sample)  # type: ignore[dict-item]
    with pytest.raises(InputError, match="sample must be images and labels"):
        Study({"plain": nn.Identity()}, 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="sample must be images and labels"):
        Study({"plain": nn.Identity()}, tiny_sample[0])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="labels must have the shape"):
        Study({"plain": nn.Identity()}, (tiny_sample[0], tiny_sample[1][:3]))


def test_an_unknown_name_is_noticed_before_anything_is_computed(
    make_study: MakeStudy, nothing_computed: None
) -> None:
    with pytest.raises(UnknownNameError):
        make_study().attribute(["saliency", "no_such_method"])


@pytest.mark.parametrize(
    ("ask", "noun"),
    [
        (lambda study, mine: study.attribute(mine), "method"),
        (lambda study, mine: study.attribute("saliency").score(mine), "metric"),
        (lambda study, mine: study.compute(read_grid(study.sample, attacks=mine)), "attack"),
        (lambda study, mine: study.compute(read_grid(study.sample, audits=mine)), "attack"),
        (lambda study, mine: sl.sanity_check(study.members[0].module, study.x, study.y, mine), "method"),
        (
            lambda study, mine: sl.evaluate_many(
                study.members[0].module, study.x, study.y, {"random": torch.rand_like(study.x)}, mine
            ),
            "metric",
        ),
    ],
)
def test_a_label_that_stands_for_nothing_is_told_what_to_add(
    make_study: MakeStudy, ask: Callable[[Study, Any], object], noun: str
) -> None:
    with pytest.raises(
        UnknownNameError, match=f"unknown {noun} 'first'.*if it is a label, add {noun} = \"NAME\""
    ):
        ask(make_study(), {"first": {"eps": 0.1}})


def test_a_full_disk_loses_nothing_and_says_what_to_do(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path).attribute("saliency")
    before = _result_files(tmp_path)

    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"some of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_tensors", full)
        with pytest.raises(SaliencyLabError, match=r"No space left.*Make room, then run the same again"):
            study.score("sparseness")
    assert _result_files(tmp_path) == before
    assert not list(tmp_path.rglob(".*.safetensors"))
    assert len(study.score("sparseness").scores) == 24


def test_a_store_that_may_not_be_written_is_named(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path).attribute("saliency")

    def denied(self: FileLock, *args: object, **settings: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", denied)
    for call in (study.gc, study.write_manifest):
        with pytest.raises(SaliencyLabError, match=r"Permission denied.*save the study to another folder"):
            call()


SCRIPT = """
import sys, time, torch
from torch import nn
import saliency_lab as sl
from saliency_lab.study import compute as work
sl.show_progress(False)
torch.set_num_threads(1)

def slow(function):
    def wrapper(*args):
        time.sleep(0.05)
        found = function(*args)
        print("computed", len(found) if isinstance(found, dict) else 1, flush=True)
        return found
    return wrapper

for name in ("compute_maps", "compute_scores", "compute_attack"):
    setattr(work, name, slow(getattr(work, name)))
torch.manual_seed(0)
nets = {f"net{i}": nn.Sequential(nn.Flatten(), nn.Linear(36, 3)) for i in range(3)}
x, y = torch.rand(6, 1, 6, 6), torch.arange(6) % 3
study = sl.Study(nets, (x, y), store=sys.argv[1])
print("ready", flush=True)
study.attribute(["saliency", "input_x_gradient"]).score(["sparseness", "complexity"])
study.attack("fgsm", eps=[0.1])
print("scores", float(study.scores["score"].sum()), len(study.scores), int(study.robustness["robust"].sum()))
"""
RESULTS = 3 * 2 + 3 * 2 * 2 + 3


def _start(store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(store)], stdout=subprocess.PIPE, text=True)


def _computed(output: str) -> int:
    return sum(int(line.split()[1]) for line in output.splitlines() if line.startswith("computed"))


@pytest.mark.slow
def test_sigkill_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    draws = np.random.default_rng()
    total, kept = 0, {}
    for _ in range(2):
        process = _start(tmp_path)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(draws.uniform(0.02, 0.6))
        process.kill()
        total += _computed(process.communicate()[0])
        files = _result_files(tmp_path)
        assert {name: files[name] for name in kept} == kept
        kept = files
    output = _start(tmp_path).communicate()[0]
    files = _result_files(tmp_path)
    assert {name: files[name] for name in kept} == kept
    assert len(files) == RESULTS
    assert (
        RESULTS <= total + _computed(output) <= RESULTS + 2 * 2
    )  # at most the results in progress are repeated
    assert sl.verify(tmp_path).empty


@pytest.mark.slow
def test_two_processes_compute_each_result_once(tmp_path: Path) -> None:
    both = [_start(tmp_path) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(map(_computed, outputs)) == RESULTS
    assert len(_result_files(tmp_path)) == RESULTS
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]


def test_an_audit_is_a_result_and_says_what_sl_audit_says(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(tmp_path).audit("pgd", eps=[0.05, "0.1"], images=6, steps=4)
    table = study.audits
    assert set(table["eps"]) == {0.05, 0.1}
    assert set(table["n"]) == {6}
    member = study.members[0]
    direct = sl.audit(
        member.net, study.x[:6], study.y[:6], eps=0.1, method="pgd", seed=study.seed, steps=4,
        surrogates={str(each): each.net for each in study.members[1:]},
    )  # fmt: skip
    assert len(study.members) > 1 and direct["transfer"].verdict != "skipped"
    own = table[(table["model"] == member.model) & (table["eps"] == 0.1)]
    assert own["check"].tolist() == [check.name for check in direct.checks]
    assert own["check_verdict"].tolist() == [check.verdict for check in direct.checks]
    assert own["evidence"].tolist() == [check.evidence for check in direct.checks]
    assert set(own["verdict"]) == {direct.verdict}
    assert set(own["worst_case"]) == {direct.worst_case}

    again = make_study(tmp_path)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.safetensors")}
    again.audit("pgd", eps=[0.05, 0.1], images=6, steps=4)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").rglob("*.safetensors")} == written
    pd.testing.assert_frame_equal(again.audits, table)
    pd.testing.assert_frame_equal(Study.load(tmp_path).audits, table)

    study.attack("pgd", eps=0.1, steps=4)
    assert "Audit of pgd, ε = 0.1, on 6 images" in str(study.compare())
    with pytest.raises(InputError, match=r"images must be a whole number in 1 … 12, .* not 13"):
        study.audit("pgd", eps=0.1, images=13)


def test_an_audit_depends_on_the_networks_that_it_transfers_from(
    make_net: Callable[[int], nn.Module],
    tiny_sample: tuple[torch.Tensor, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nets = [make_net(seed) for seed in range(4)]
    more = nn.Sequential(nn.Flatten(), nn.Linear(tiny_sample[0][0].numel(), 7))
    given: list[list[str]] = []

    def audit(*arguments: Any, surrogates: Any, **settings: Any) -> Any:
        given.append(list(surrogates))
        return run_audit(*arguments, surrogates=surrogates, **settings)

    monkeypatch.setattr(compute, "run_audit", audit)

    def key(models: Any) -> str:
        study = Study(models, tiny_sample).audit("fgsm", eps=0.1, images=2)
        return study.results[next(place for place in study.results if place.kind == "audit")]

    alone = key({"a": nets[0]})
    pair = key({"a": nets[0], "b": nets[1]})
    assert given == [[], ["b (seed 0)"], ["a (seed 0)"]]
    assert len({alone, pair, key({"a": nets[0], "b": nets[2]}), key({"a": nets[:2]})}) == 4
    assert given[-4:-2] == [["b (seed 0)"], ["a (seed 0)"]] and given[-2:] == [["a (seed 1)"], ["a (seed 0)"]]
    assert key({"a": nets[0], "b": nets[1:3]}) == pair  # one network of each model
    given.clear()
    key({"a": nets[0], "others": more})
    assert given == [[], []]  # of another number of classes


def test_radii_that_agree_to_four_digits_are_audits_of_their_own(
    make_net: Callable[[int], nn.Module], tiny_sample: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    def study() -> Study:
        return Study({"plain": make_net(0)}, tiny_sample, store=tmp_path)

    table = study().audit("fgsm", eps="8/255", images=2).audits
    manifest = tmp_path / "study.json"
    older = json.loads(manifest.read_text().replace(str(8 / 255), "0.03137"))  # as versions before wrote it
    assert older != json.loads(manifest.read_text())
    for key in ("digest", "missing", "failed", "weights"):
        del older[key]
    manifest.write_text(json.dumps(older))
    pd.testing.assert_frame_equal(Study.load(tmp_path).audits, table)
    again = study().audit("fgsm", eps="8/255", images=2)
    pd.testing.assert_frame_equal(Study.load(tmp_path).audits, table)
    again.audit("fgsm", eps=["8/255", 0.03137], images=2)
    for stored in (again.audits, Study.load(tmp_path).audits):
        assert set(stored["eps"]) == {8 / 255, 0.03137} and set(stored["attack"]) == {"fgsm"}


def test_an_audit_without_settings_is_of_the_attack_that_was_run(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("compute_audit", "compute_attack"):  # only the keys matter here
        monkeypatch.setattr(compute, name, lambda *_: Content({"robust": torch.zeros(0)}, {"eps": []}))

    def audits(study: Study) -> set[str]:
        return {key for place, key in study.results.items() if place.kind == "audit"}

    default = audits(make_study().audit("pgd", eps=0.2))
    weak = audits(make_study().audit("pgd", eps=0.2, steps=10))
    assert default.isdisjoint(weak)
    attacked = make_study().attack("pgd", eps=[0.1, 0.2], steps=10)
    assert audits(attacked.audit("pgd", eps=0.2)) == weak
    assert audits(attacked.audit("pgd", eps=0.2, steps=40)) == default
    assert audits(make_study().attack("fgsm", eps=0.2, label="pgd").audit("pgd", eps=0.2)) == default
    far = make_study().attack("pgd", eps=0.2, norm="l2", steps=10)
    assert audits(far.audit("pgd", eps=0.2)) == default  # "pgd_l2" is another label
    assert audits(far.audit("pgd", eps=0.2, norm="l2")) - default == audits(
        make_study().audit("pgd", eps=0.2, norm="l2", steps=10)
    )


@pytest.mark.long
def test_an_audit_in_a_later_run_is_of_the_attack_in_the_store(
    make_study: MakeStudy, tiny_sample: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    def own(model: nn.Module, x: torch.Tensor, y: torch.Tensor, eps: float) -> torch.Tensor:
        return x

    made = make_study(tmp_path).attack("pgd", eps=0.1, steps=1, norm="l2").attack(own, eps=0.1)
    first = made.audit("pgd", eps=0.1, norm="l2", images=2).audits
    assert made.audits["attack"].unique().tolist() == ["pgd_l2"]
    later = make_study(tmp_path)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.safetensors")}
    pd.testing.assert_frame_equal(later.audit("pgd", eps=0.1, norm="l2", images=2).audits, first)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").rglob("*.safetensors")} == written
    x, y = tiny_sample  # of other images, the attack in the store does not count
    others = Study({"plain": later.members[0].net}, (x.flip(0), y), store=tmp_path)
    found = others.audit("pgd", eps=0.1, norm="l2", images=2)
    (key,) = [key for place, key in found.results.items() if place.kind == "audit"]
    result, _ = found.store.describe("audit", key)
    assert result.depends["settings"]["steps"] != 1


def test_a_plan_times_the_attack_that_is_audited(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def audit(net: nn.Module, sample: object, request: Request, *_: object) -> Content:
        seen.append(dict(request.settings))
        return Content({}, {})

    monkeypatch.setattr(compute, "compute_audit", audit)
    make_study().plan(attacks={"pgd": {"eps": 0.1, "steps": 1}}, audits={"pgd": {"eps": 0.1}})
    assert seen and all(settings["steps"] == 1 for settings in seen)


@pytest.mark.parametrize("kept", ["memory", "folder", "loaded"])
def test_curves_are_read_where_they_are_kept(make_study: MakeStudy, tmp_path: Path, kept: str) -> None:
    study = make_study(None if kept == "memory" else tmp_path, seeds=2)
    study.attribute("saliency").score(METRICS)
    stored = Study.load(tmp_path) if kept == "loaded" else study
    curves, at = stored.read_curves("plain", "saliency", "pixel_flipping")
    for row, member in zip(curves, study.members[:2], strict=True):
        maps = sl.attribute(member.net, study.x, study.y, "saliency")
        direct = sl.evaluate_detailed(member.net, study.x, study.y, maps, "pixel_flipping", steps=4)
        np.testing.assert_array_equal(row, direct.curve.values)
        np.testing.assert_array_equal(at, direct.curve.at)
    assert stored.read_curves("plain", "saliency", "sparseness") is None
    for wrong in (("plane", "saliency", "pixel_flipping"), ("plain", "saliency", "pixelflipping")):
        with pytest.raises(UnknownNameError, match="did you mean"):
            stored.read_curves(*wrong)


def test_long_work_is_estimated_after_its_first_task(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sl.show_progress(True)
    try:
        make_study().attribute(METHODS)
        assert "tasks are left" not in capsys.readouterr().err
        monkeypatch.setattr(running, "LONG", 1e-9)
        study = make_study().attribute(METHODS)
        left = len(METHODS) * len(study.members) - 1
        assert f"study, attribute: {left} tasks are left, which take" in capsys.readouterr().err
        study.attribute(METHODS)  # nothing is missing
        assert "tasks are left" not in capsys.readouterr().err
    finally:
        sl.show_progress(False)


def test_a_baseline_without_results_is_replaced_with_a_warning() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("broken")

    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    study = Study({"broken": Broken(), "net": net}, (torch.rand(6, 1, 4, 4), torch.arange(6) % 3))
    study.attribute("saliency").score("sparseness")
    with pytest.warns(UserWarning, match="the baseline 'broken' has no results, .* compared with 'net'"):
        assert study.compare().baseline == "net"
    with pytest.raises(InputError, match="unknown baseline"):
        study.compare("broken")


def test_a_call_that_fails_raises_its_own_error_first() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    study = Study({"net": net}, (torch.rand(3, 1, 8, 8), torch.arange(3)))
    with pytest.warns(UserWarning, match="1 of 2 results failed"):
        study.attribute(["attention_rollout", "saliency"])
    with pytest.raises(InputError, match="must return one number per sample"):
        study.score(lambda model, x, y, maps: 3.0)
