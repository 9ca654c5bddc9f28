"""Whatever a network computes on another device is what it computes on the CPU, tensor for tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantus
import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import Accelerator
from lightning_fabric.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from typer.testing import CliRunner

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab._common.inference import named_device
from saliency_lab.cli.app import app
from saliency_lab.data import ImageData, LabelledImages
from saliency_lab.experiment.planning import plan_declared
from saliency_lab.experiment.run import run_declared
from saliency_lab.experiment.schema import read_declaration
from saliency_lab.metrics.catalogue import METRICS
from saliency_lab.study.cache.store import FolderStore
from saliency_lab.training import api

Same = Callable[[Callable[[nn.Module], Any]], None]


_OBJECTIVES = [name.removeprefix("digits/") for name in sl.list_recipes().index if name.startswith("digits/")]
_CHEAP = {
    "autoattack": {"steps": 2, "target_classes": 1, "queries": 5},
    "apgd_t": {"steps": 3},
    "fab_t": {"steps": 3},
    "square": {"queries": 20},
    "cw": {"steps": 3, "search_steps": 2},
    "ead": {"steps": 3, "search_steps": 2},
    "spsa": {"steps": 2, "directions": 3},
}


def test_the_pretend_device_refuses_what_a_gpu_refuses(device: torch.device):
    there, here = torch.ones(2, 3).to(device), torch.ones(2, 3)
    assert there.device == device
    for mixture in (
        lambda: there + here,
        lambda: here * there,
        lambda: torch.where(here > 0, there, 0.0),
        lambda: there.scatter(1, torch.zeros(2, 1, dtype=torch.long), 1.0),
        lambda: here[torch.zeros(1, dtype=torch.long, device=device)],
        lambda: torch.cat([there, here]),
        lambda: torch.stack([there.sum(), here.sum()]),
        lambda: here.sum().add_(there.sum()),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixture()
    with pytest.raises(RuntimeError, match="numpy"):  # as TypeError of a GPU
        there.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, generator=torch.Generator(), device=device)


def test_the_pretend_device_works_like_another_one(device: torch.device):
    x = torch.arange(6.0).reshape(2, 3).to(device).requires_grad_()
    (x.square().sum() * 2).backward()
    assert x.grad is not None and x.grad.device == device
    assert torch.equal(x.grad.cpu(), 4 * x.detach().cpu())
    y = x.detach().clone()
    y[:, 0] = 7.0
    y.view(-1)[5].fill_(9.0)
    assert y.cpu().tolist() == [[7.0, 1.0, 2.0], [7.0, 4.0, 9.0]]
    assert (torch.tensor(2.0) * y + torch.tensor(1.0)).device == device
    assert y.sum().item() == 30.0 and y[torch.tensor([1])].device == device


def test_apples_device_has_no_float64(device: torch.device, request: pytest.FixtureRequest):
    if "no float64" not in request.node.name:
        assert torch.ones(1, device=device).double().dtype == torch.float64
        return
    with pytest.raises(TypeError, match="float64"):
        torch.ones(1, device=device).double()


@pytest.mark.long
@pytest.mark.parametrize("method", sl.list_methods().index)
def test_maps(method: str, few: LabelledImages, same: Same):
    same(lambda net: sl.attribute(net, few.x, method, target=few.y).values)


def test_a_sanity_check(few: LabelledImages, same: Same):
    def table(net: nn.Module) -> np.ndarray:
        check = sl.sanity_check(net, few.x[:2], "saliency", target=few.y[:2])
        return check.likeness.select_dtypes("number").to_numpy()

    same(table)


@pytest.mark.long
@pytest.mark.parametrize(
    ("metric", "engine"),
    [(name, engine) for name in METRICS for engine in METRICS[name].engines],
)
def test_scores(metric: str, engine: str, few: LabelledImages, same: Same):
    same(lambda net: _scores(net, few, metric, engine))


def _scores(net: nn.Module, few: LabelledImages, metric: str, engine: Any) -> np.ndarray:
    settings: dict[str, Any] = {}
    if METRICS[metric].family == "localisation":
        settings["masks"] = torch.zeros(4, 1, 28, 28, dtype=torch.bool)
        settings["masks"][:, :, 5:20, 5:20] = True
    if metric.startswith("attack_"):
        settings["attacked"] = (few.x + 0.02).clamp(0, 1)
    maps = sl.attribute(net, few.x, "saliency", target=few.y)
    return sl.evaluate(net, few.x, few.y, maps, metric, engine=engine, **settings)


def test_a_metric_object_of_quantus(few: LabelledImages, same: Same):
    local = quantus.LocalLipschitzEstimate(nr_samples=2, disable_warnings=True, display_progressbar=False)
    same(lambda net: sl.evaluate(net, *few, sl.attribute(net, few.x, "saliency", target=few.y), local))


def test_a_metric_of_ones_own_is_given_what_is_on_the_device(few: LabelledImages, same: Same):
    def share(model: nn.Module, x: Tensor, y: Tensor, maps: Tensor) -> Tensor:
        return (model(x).softmax(1).gather(1, y[:, None])[:, 0] * maps.flatten(1).norm(dim=1)).detach()

    same(lambda net: sl.evaluate(net, *few, sl.attribute(net, few.x, "saliency", target=few.y), share))


@pytest.mark.long
@pytest.mark.parametrize("method", sl.list_attacks().index.drop("saturate"))  # of colours
def test_attacks(method: str, few: LabelledImages, same: Same):
    eps = 2 if sl.list_attacks().loc[method, "access"] == "none" else 0.1
    same(lambda net: sl.attack(net, *few, method, eps=eps, **_CHEAP.get(method, {})).adversarial)


def test_an_attack_of_ones_own_is_given_what_is_on_the_device(few: LabelledImages, same: Same):
    def step(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
        return (x + eps * gradient.sign()).clamp(0, 1)

    same(lambda net: sl.attack(net, *few, step, eps=0.1).adversarial)


def test_attacks_of_other_kinds(few: LabelledImages, same: Same):
    same(lambda net: sl.attack(net, *few, "pgd", eps=1.0, norm="l2", steps=3).adversarial)
    same(lambda net: sl.attack(net, *few, "pgd", eps=0.2, target=(few.y + 1) % 10, steps=3).adversarial)
    same(lambda net: sl.transfer_attack(net, net, *few, "fgsm", eps=0.1).adversarial)
    same(lambda net: sl.attack_map(net, few.x, eps=0.02, steps=2).adversarial)


def test_curves_over_attacks(few: LabelledImages, same: Same):
    same(lambda net: sl.robustness_curve(net, *few, eps=[0.05, 0.2], steps=3).accuracy)
    same(lambda net: sl.steps_curve(net, *few, eps=0.1, steps=[0, 2]).accuracy)
    same(lambda net: sl.minimal_epsilon(net, *few, steps=3, largest=0.3, tolerance=0.05))


@pytest.mark.long
def test_an_audit(few: LabelledImages, trained: nn.Module, device: torch.device):
    nets = trained, copy.deepcopy(trained).to(device)
    here, there = (sl.audit(net, *few, eps=0.1, steps=5).table() for net in nets)
    assert here.equals(there)


def test_a_model_on_two_devices_is_refused(few: LabelledImages, device: torch.device):
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.Linear(20, 10))
    net[1].to(device)
    with pytest.raises(InputError, match=r"Sequential is spread over lazy:0, cpu; move it to one device"):
        sl.attribute(net, few.x, few.y)


def test_another_default_device_is_refused(few: LabelledImages, trained: nn.Module, device: torch.device):
    with device, pytest.raises(InputError, match=r"leave the default alone and move the model: model\.to"):
        sl.attribute(trained, few.x, few.y)


@pytest.mark.parametrize("name", ["xpu", "meta", "cuda:99", "gpu"])
def test_a_device_that_is_not_here_is_refused(name: str):
    with pytest.raises(InputError, match=f"device '{name}'"):
        named_device(name)


def test_a_study(few: LabelledImages, same: Same):
    def table(net: nn.Module) -> np.ndarray:
        study = sl.Study({"net": net}, few)
        study.attribute(["saliency", "integrated_gradients"])
        study.score(["sparseness", "pixel_flipping"])
        study.attack("pgd", eps=[0.1], steps=2)
        return np.concatenate([study.scores["score"], study.robustness["robust"]])

    same(table)


def test_a_store_does_not_ask_where_its_results_were_computed(
    few: LabelledImages, trained: nn.Module, device: torch.device, tmp_path: Path
):
    sl.Study({"net": trained}, few, store=tmp_path).attribute(["saliency"])
    study = sl.Study({"net": copy.deepcopy(trained).to(device)}, few, store=tmp_path)
    assert (study.plan(["saliency"])["missing"] == 0).all()


@pytest.mark.long
def test_verbs_of_the_shell_run_models_on_the_device_named(device: torch.device, tmp_path: Path):
    tables = []
    for where in ("cpu", str(device)):
        out = tmp_path / where.replace(":", "-")
        model = ["digits/standard", "--images", "4", "--device", where, "--out", str(out)]
        for verb in (
            ["score", "--metric", "pixel_flipping", "--method", "saliency"],
            ["attack", "--eps", "0.1", "--set", "pgd.steps=2"],
        ):
            result = CliRunner().invoke(app, [*verb, *model])
            assert result.exit_code == 0, result.output
        assert _devices(out) == {where}
        tables.append(sl.Study.load(out).compare().table())
    assert tables[0].equals(tables[1])


@pytest.mark.long
def test_a_declared_study_trains_and_runs_on_the_device_named(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def fabric(accelerator: str, devices: int | str, *_: object) -> Fabric:
        asked.append((accelerator, devices))
        return Fabric(strategy=SingleDeviceStrategy(device, accelerator=_PretendAccelerator()))

    monkeypatch.setattr(api, "_fabric", fabric)
    path, store = tmp_path / "study.toml", tmp_path / "store"
    path.write_text(
        'recipes = ["digits/standard"]\nmethods = ["saliency"]\nmetrics = ["sparseness"]\n'
        '[models]\nat = "digits/at"\n[data]\nname = "digits"\nimages = 4\n'
        '[overrides]\n"training.epochs" = 1\n"validation.images" = 8\n"validation.steps" = 1\n'
    )
    assert plan_declared(read_declaration(path), store, device=str(device))["missing"].sum() == 5
    run_declared(read_declaration(path), store, device=str(device))
    assert set(asked) == {("lazy", "0,")}
    assert _devices(store) == {str(device)}


def _devices(store: Path) -> set[str]:
    """Where the results in a store were computed."""
    return {content.info["provenance"]["device"] for _, content in FolderStore(store).results()}


class _PretendAccelerator(Accelerator):
    def setup_device(self, device: torch.device) -> None:
        pass

    def teardown(self) -> None:
        pass

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> Any:
        return [devices]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "pretend"


@pytest.mark.long
@pytest.mark.parametrize("objective", _OBJECTIVES)
def test_training(
    objective: str,
    trained: nn.Module,
    digits: ImageData,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
):
    some = replace(digits, train=digits.train.select(torch.arange(64)))
    recipe = sl.load_recipe(
        f"digits/{objective}",
        {"training.epochs": 1, "training.batch_size": 32, "validation.images": 8, "validation.steps": 1},
    )
    expected = sl.train(recipe, some, seed=0, model=trained).state_dict()
    strategy = SingleDeviceStrategy(device, accelerator=_PretendAccelerator())
    monkeypatch.setattr(api, "_fabric", lambda *_: Fabric(strategy=strategy))
    for name, weights in sl.train(recipe, some, seed=0, model=trained).state_dict().items():
        torch.testing.assert_close(weights, expected[name])
