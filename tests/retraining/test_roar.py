"""ROAR and KAR on a data set whose evidence is one known block of pixels."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import saliency_lab as sl
from saliency_lab._common.errors import InputError, SaliencyLabError, TrainingError
from saliency_lab.cli.app import app
from saliency_lab.data import ImageData
from saliency_lab.data.images import MappedSplit, Split
from saliency_lab.experiment import retraining as declared_retraining
from saliency_lab.experiment.planning import plan_declared
from saliency_lab.experiment.run import run_declared
from saliency_lab.experiment.schema import read_declaration
from saliency_lab.metrics.catalogue import LERF, MORF
from saliency_lab.retraining import RoarResult, api
from saliency_lab.retraining.replacement import channel_means, pixel_ranks, replace_pixels
from saliency_lab.study.cache.store import FolderStore
from saliency_lab.study.requests import read_methods

SIDE = 6
BLOCK = torch.zeros(1, SIDE, SIDE)
BLOCK[:, 1:3, 1:4] = 1.0  # 6 of 36 pixels
RECIPE = {
    "name": "tiny",
    "data": {"name": "blocks"},
    "optimizer": {"learning_rate": 0.05},
    "training": {"epochs": 4, "batch_size": 32},
    "validation": {"images": 8, "steps": 1},
}


def _split(count: int, seed: int, channels: int = 1) -> Split:
    """Images of noise; the block is bright in class 1."""
    source = torch.Generator().manual_seed(seed)
    images = 0.5 * torch.rand(count, channels, SIDE, SIDE, generator=source)
    labels = torch.arange(count) % 2
    return Split(images + 0.5 * BLOCK * labels[:, None, None, None], labels)


@pytest.fixture(scope="module")
def blocks() -> ImageData:
    return ImageData("blocks", _split(128, 0), _split(20, 1), _split(60, 2), ("dark", "bright"))


@pytest.fixture
def linear() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2))


def truth(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    return BLOCK.expand_as(x).clone()


def around(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    return 1 - BLOCK.expand_as(x)


METHODS = {"truth": truth, "around": around}


@pytest.fixture
def fitted(monkeypatch) -> list[Path]:
    """Replaces training by least squares; the list holds the folder of each network that was fitted."""
    folders: list[Path] = []

    def fit(recipe, data, *, seed, out, model, **device):
        x, y = data.train.all()
        inputs = torch.cat([x.flatten(1), torch.ones(len(x), 1)], 1).double()
        ridge = inputs.T @ inputs + 0.1 * torch.eye(SIDE**2 + 1)
        solution = torch.linalg.solve(ridge, inputs.T @ (2.0 * y - 1).double())
        weights, bias = solution[:-1], solution[-1]
        net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 2))
        with torch.no_grad():
            net[1].weight.copy_(torch.stack([-weights, weights]))
            net[1].bias.copy_(torch.stack([-bias, bias]))
        folders.append(out)
        return net.eval()

    monkeypatch.setattr(api, "train", fit)
    return folders


@pytest.mark.long
def test_roar_and_kar_rank_the_true_map_before_the_control_before_a_wrong_one(blocks, linear, tmp_path):
    given = {"fractions": [0.2, 0.8], "seeds": [0], "model": linear, "out": tmp_path}
    roar = sl.roar(RECIPE, blocks, METHODS, **given)
    kar = sl.roar(RECIPE, blocks, METHODS, order=LERF, **given)
    assert (roar.name, kar.name) == ("ROAR", "KAR")
    table = roar.table().set_index(["method", "fraction"])["accuracy"]
    assert table["truth", 0.0] == table["random", 0.0] > 0.95
    assert table["truth", 0.2] < 0.7, "no network can classify images without the block"
    assert table["around", 0.8] > 0.95, "the block is left"
    assert roar.summary().index.tolist() == ["truth", "random", "around"]
    assert roar.summary().loc["truth", "difference"] < 0 < kar.summary().loc["truth", "difference"]
    assert kar.summary().index.tolist() == ["truth", "random", "around"]
    assert {len(roar.networks()), len(kar.networks())} == {3 * 3}


def test_a_second_call_reads_and_an_interrupted_one_goes_on(blocks, linear, tmp_path, monkeypatch, fitted):
    given = {"fractions": [0.3], "seeds": [0, 1], "model": linear, "out": tmp_path}
    fit = api.train

    def interrupted(*args, **kwargs):
        if len(fitted) == 3:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    monkeypatch.setattr(api, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sl.roar(RECIPE, blocks, {"truth": truth}, **given)
    monkeypatch.setattr(api, "train", fit)
    first = sl.roar(RECIPE, blocks, {"truth": truth}, **given)
    assert len(set(fitted)) == len(fitted) == 2 * 3, "each network is trained once"
    second = sl.roar(RECIPE, blocks, {"truth": truth}, **given)
    assert len(fitted) == 2 * 3
    assert first.table().equals(second.table())
    assert sl.verify(tmp_path).empty
    more = sl.roar(RECIPE, blocks, {"truth": truth}, **given | {"fractions": [0.3, 0.6]})
    assert len(set(fitted)) == 2 * 5, "a further fraction trains its own networks alone"
    assert (more.correct["truth"][:, :2] == first.correct["truth"]).all()
    damaged = next((tmp_path / "roar").rglob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert len(sl.verify(tmp_path)) == 1
    with pytest.warns(UserWarning, match="damaged.*computes it again"):
        again = sl.roar(RECIPE, blocks, {"truth": truth}, **given | {"fractions": [0.3, 0.6]})
    assert again.table().equals(more.table())


def test_networks_that_another_process_trains_come_last(blocks, linear, tmp_path, monkeypatch, fitted):
    given = {"fractions": [0.3, 0.6], "seeds": [0, 1], "model": linear}
    alone = sl.roar(RECIPE, blocks, {"truth": truth}, **given)
    fitted.clear()
    plan = api.make_plan(RECIPE, blocks, {"truth": truth}, order=MORF, absolute=False, **given)
    store = FolderStore(tmp_path / "roar")
    keys = [plan.result(0, None, 0.0).key, plan.result(1, plan.methods["truth"], 0.3).key]
    fit, lock_of_another = api.train, ExitStack()

    def release(*args, **kwargs):
        if len(fitted) == 3:  # the last one that is not locked: seed 1 has five, of which one is
            lock_of_another.close()
        return fit(*args, **kwargs)

    monkeypatch.setattr(api, "train", release)
    for key in keys:
        lock_of_another.enter_context(store.lock(key, wait=False))
    shared = sl.roar(RECIPE, blocks, {"truth": truth}, **given, out=tmp_path)
    assert shared.table().equals(alone.table())
    assert [folder.name[:11] for folder in (fitted[0], fitted[4])] == ["tiny-seed-1", "tiny-seed-0"]
    assert len(set(fitted)) == 2 * 5


@pytest.mark.long
def test_without_a_folder_the_result_is_the_same(blocks, linear, tmp_path):
    given = {"fractions": [0.5], "seeds": [3], "model": linear}
    stored = sl.roar(RECIPE, blocks, "saliency", out=tmp_path, **given)
    assert sl.roar(RECIPE, blocks, "saliency", **given).table().equals(stored.table())
    assert not list((tmp_path / "roar" / "runs").iterdir()), "retrained networks are not kept"
    assert set(stored.correct) == {"saliency", "random"}


@pytest.mark.parametrize("order", [MORF, LERF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_exactly_the_first_pixels_are_replaced_by_the_mean_of_their_channel(order, dtype):
    images = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = (255 * images).to(torch.uint8) if dtype == torch.uint8 else images
    split = Split(images, torch.tensor([0, 1, 0, 1, 0]))
    data = ImageData("rgb", split, split, split, ("a", "b"))

    def columns(model, x, classes):  # ties within a column; the last column is the most important
        return torch.arange(4.0).expand_as(x).clone()

    request = read_methods({"columns": columns})[0]
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    ranks = pixel_ranks(net, data, request, order=order, absolute=False, seed=0)
    changed = replace_pixels(data, ranks, 6 / 16, channel_means(data))
    gone = torch.zeros(4, 4, dtype=torch.bool)
    first, second = (3, 2) if order == MORF else (0, 1)
    gone[:, first], gone[:2, second] = True, True  # ties in the order of the pixels
    expected = images.double().mean((0, 2, 3))
    expected = expected.round().to(dtype) if dtype == torch.uint8 else expected.float()
    for part in (changed.train, changed.val, changed.test):
        assert part.images.dtype == dtype
        assert (part.images[:, :, ~gone] == images[:, :, ~gone]).all()
        assert (part.images[:, :, gone] == expected[None, :, None]).all()
    assert (data.train.images == images).all(), "the data are left as they were"


def test_magnitudes_rank_if_asked_for(blocks, linear):
    request = read_methods({"negative": lambda model, x, classes: -BLOCK.expand_as(x)})[0]
    signed, absolute = (
        pixel_ranks(linear, blocks, request, order=MORF, absolute=each, seed=0)["test"]
        for each in (False, True)
    )
    inside = BLOCK.flatten().bool()
    assert absolute[:, inside].max() == 5
    assert signed[:, inside].min() == 30


def test_maps_explain_predictions_so_that_labels_of_test_images_do_not_show(blocks, linear, fitted):
    seen = []

    def spy(model, x, classes):
        seen.append((classes, model(x).argmax(1)))
        return truth(model, x, classes)

    sl.roar(RECIPE, blocks, {"spy": spy}, fractions=[0.5], seeds=[0], model=linear)
    assert all((classes == predicted).all() for classes, predicted in seen)


@pytest.mark.long
def test_a_network_that_learns_nothing_counts_and_is_reported(blocks, linear):
    given = {"fractions": [0.99], "seeds": [0], "model": linear}
    with pytest.warns(UserWarning, match="of the retrained networks predict one class"):
        result = sl.roar(RECIPE, blocks, {"truth": truth}, overrides={"training.epochs": 1}, **given)
    networks = result.networks().query("collapsed and fraction > 0")
    assert len(networks) and (networks["accuracy"] == 0.5).all()


def test_a_collapsed_network_on_whole_images_is_counted_once(blocks, linear, fitted, monkeypatch):
    fit = api.train

    def constant_on_whole_images(*args, out, **kwargs):
        net = fit(*args, out=out, **kwargs)
        if out.parent.name == "models":
            with torch.no_grad():
                net[1].weight.zero_()
        return net

    monkeypatch.setattr(api, "train", constant_on_whole_images)
    with pytest.warns(UserWarning, match=": 1 of the retrained networks predict one class"):
        result = sl.roar(RECIPE, blocks, METHODS, fractions=[0.1], seeds=[0], model=linear)
    assert all(flags.tolist() == [[True, False]] for flags in result.collapsed.values())


def test_areas_and_intervals_come_from_every_image_and_seed():
    correct = np.zeros((3, 3, 40), dtype=bool)
    correct[:, 0], correct[:, 1, :20], correct[0, 2, :10] = True, True, True
    none = np.zeros((3, 3), dtype=bool)
    control = np.ones_like(correct)
    result = RoarResult(
        "tiny",
        MORF,
        (0.0, 0.5, 1.0),
        (0, 1, 2),
        {"a": correct, "random": control},
        {"a": none, "random": none},
    )
    area = (0.5 * (1 + 0.5) / 2) + 0.5 * (0.5 + 1 / 12) / 2
    row = result.summary().loc["a"]
    assert row["area"] == pytest.approx(area) and row["difference"] == pytest.approx(area - 1)
    assert row["low"] < row["area"] < row["high"]
    assert row["difference_high"] < 0 and row["p"] < 0.05
    by_fraction = result.table().set_index(["method", "fraction"])
    assert by_fraction.loc[("a", 0.5), "difference"] == -0.5
    assert by_fraction.loc[("a", 0.0), "difference"] != by_fraction.loc[("a", 0.0), "difference"]  # NaN
    assert {line.get_label() for line in result.plot().axes[0].lines} == {"a", "random", "_seeds"}
    assert "area, a" in result._repr_html_() and "ROAR" in repr(result)


def _result(accuracies: dict[str, list[list[float]]], images: int = 200) -> RoarResult:
    """Networks with these accuracies by method, seed and fraction, on images of differing difficulty."""
    correct = {
        method: np.arange(images)[None, None, :] < images * np.array(rates)[:, :, None]
        for method, rates in accuracies.items()
    }
    seeds, fractions, _ = correct["random"].shape
    none = {method: np.zeros((seeds, fractions), bool) for method in correct}
    return RoarResult("tiny", MORF, tuple(np.linspace(0, 0.9, fractions)), tuple(range(seeds)), correct, none)


def test_retrained_networks_of_two_kinds_have_no_mean():
    control = [[0.95, 0.93, 0.9], [0.95, 0.92, 0.9], [0.95, 0.93, 0.89]]
    split = [[0.95, 0.9, 0.5], [0.95, 0.1, 0.5], [0.95, 0.9, 0.49]]
    alike = [[0.95, 0.8, 0.5], [0.95, 0.79, 0.5], [0.95, 0.8, 0.49]]
    result = _result({"split": split, "alike": alike, "random": control})
    table = result.table().set_index(["method", "fraction"])
    row = table.loc[("split", 0.45)]
    assert row["seeds_disagree"] and row["seed_means"] == pytest.approx((0.9, 0.1, 0.9))
    unknown = ["accuracy", "low", "high", "difference", "difference_low", "difference_high"]
    assert row[unknown].isna().all()
    assert not table.drop(index=("split", 0.45))["seeds_disagree"].any()
    assert table.drop(index=("split", 0.45))[["accuracy", "low", "high"]].notna().all(axis=None)
    summary = result.summary()
    assert summary.index.tolist() == ["alike", "random", "split"]
    assert summary.loc["split", "seeds_disagree"] and summary.loc["split", ["area", "p", "low"]].isna().all()
    areas = tuple((first + 2 * second + third) / 4 for first, second, third in split)
    assert summary.loc["split", "seed_means"] == pytest.approx(areas)
    assert summary.loc["alike", ["area", "p"]].notna().all() and not summary.loc["alike", "seeds_disagree"]
    (ax,) = result.plot().axes
    (marks,) = (line for line in ax.lines if line.get_label() == "_seeds")
    assert marks.get_xdata().tolist() == pytest.approx([0.45] * 3)
    assert marks.get_ydata().tolist() == pytest.approx([0.9, 0.1, 0.9])
    assert any("open marks: single seeds" in " ".join(text.get_text().split()) for text in ax.texts)
    assert "seeds disagree 0.812, 0.412, 0.810" in result._repr_html_() and "nan" not in result._repr_html_()


def test_tables_of_retraining_are_those_of_a_comparison():
    rates = {"a": [[0.9, 0.6], [0.92, 0.5], [0.91, 0.55]], "random": [[0.9, 0.8], [0.92, 0.7], [0.91, 0.8]]}
    result = _result(rates)
    rows = [
        {"model": method, "seed": seed, "attack": "roar", "eps": eps, "sample": sample, "robust": bool(right)}
        for method, correct in result.correct.items()
        for seed in range(3)
        for eps, own in zip(result.fractions, correct[seed], strict=True)
        for sample, right in enumerate(own)
    ]
    compared = sl.Comparison(pd.DataFrame(), pd.DataFrame(rows), baseline="random").table()
    expected = compared.query("metric == 'robust_accuracy'").set_index("model").loc["a"]
    (row,) = result.table().query("method == 'a' and fraction > 0").to_dict("records")
    for column in ("low", "high", "seed_means", "seeds_disagree", "difference", "difference_low"):
        assert row[column] == expected[column]
    assert row["accuracy"] == expected["mean"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fractions": [0.5, 1.0]}, "above 0 and below 1"),
        ({"fractions": []}, "above 0 and below 1"),
        ({"fractions": "0.5"}, "above 0 and below 1"),
        ({"order": "morf"}, "unknown order"),
        ({"seeds": [0, 0]}, "different whole numbers"),
        ({"seeds": []}, "at least one whole number"),
        ({"seeds": [-1]}, "seed"),
        ({"methods": "salience"}, "did you mean 'saliency'"),
        ({"methods": {"random": "saliency"}}, "is that of the control"),
        ({"overrides": {"seed": 3}}, "seeds="),
        ({"overrides": {"training.epoch": 3}}, "did you mean 'epochs'"),
        ({"device": "gpu"}, "unknown device"),
        ({"data": "digits"}, "ImageData"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(blocks, monkeypatch, changes, message):
    monkeypatch.setattr(api, "train", lambda *a, **k: pytest.fail("a network was trained"))
    given = {"data": blocks, "methods": "saliency"} | changes
    with pytest.raises(InputError, match=message):
        sl.roar(RECIPE, given.pop("data"), given.pop("methods"), **given)


def test_maps_that_are_not_finite_are_an_error(blocks, linear, fitted):
    def broken(model, x, classes):
        return torch.full_like(x, torch.nan)

    with (
        pytest.warns(UserWarning, match="not finite"),
        pytest.raises(SaliencyLabError, match=r"'broken': .* so they rank no pixels"),
    ):
        sl.roar(RECIPE, blocks, {"broken": broken}, fractions=[0.5], seeds=[0], model=linear)


QUICK = {"training.epochs": 1, "training.batch_size": 256, "validation.images": 16, "validation.steps": 1}


@pytest.mark.long
def test_in_the_shell(tmp_path):
    settings = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]
    shown = CliRunner().invoke(
        app,
        [
            "roar",
            "digits/standard",
            "--method",
            "saliency",
            "--fractions",
            "0.5",
            "--seeds",
            "0",
            "--keep",
            "--out",
            str(tmp_path / "out"),
            "--json",
            str(tmp_path / "table.json"),
            *settings,
        ],
    )
    assert shown.exit_code == 0, shown.output
    assert "random" in shown.output and (tmp_path / "out" / "kar-digits-standard.png").stat().st_size > 1000
    assert (tmp_path / "table.json").read_text().count('"saliency"') == 2


STUDY = """
recipes = ["digits/standard"]
seeds = [0]
methods = ["saliency"]
metrics = ["sparseness"]

[data]
name = "digits"
images = 8

[overrides]
"training.epochs" = 1
"training.batch_size" = 256
"validation.images" = 16
"validation.steps" = 1

[roar]
fractions = [0.5]
"""


@pytest.mark.long
def test_in_a_study_file(tmp_path: Path):
    path, store = tmp_path / "first.toml", tmp_path / "store"
    path.write_text(STUDY, encoding="utf-8")
    declared = read_declaration(path)
    plan = plan_declared(declared, store).set_index("step")
    assert plan.loc["roar", ["results", "missing"]].tolist() == [3, 3] and plan.loc["roar", "seconds"] > 0
    shown = CliRunner().invoke(
        app, ["study", str(path), "--out", str(store), "--page", str(tmp_path / "page")]
    )
    assert shown.exit_code == 0, shown.output
    page = (tmp_path / "page" / "first.md").read_text(encoding="utf-8")
    assert "## Retraining" in page and "![ROAR of standard](first-roar-standard.svg)" in page
    assert (tmp_path / "page" / "first-roar-standard.svg").exists()
    assert (store / "tables" / "retraining.csv").exists()
    assert plan_declared(declared, store)["missing"].sum() == 0
    study, *_, retrained = run_declared(declared, store)
    result = retrained["roar", "standard"]
    assert set(result.correct) == {"saliency", "random"} and result.seeds == (0,)
    study.gc()
    assert plan_declared(declared, store)["missing"].sum() == 0, "gc leaves the retrained networks"
    assert len(list((store / "models").glob("*/model.json"))) == 1, "the study's network is the one explained"


@pytest.mark.long
def test_a_failure_is_on_the_page_and_in_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object):
        raise TrainingError("the loss is not finite")

    monkeypatch.setattr(declared_retraining, "run_plan", fail)
    (tmp_path / "first.toml").write_text(STUDY, encoding="utf-8")
    command = [
        "study",
        str(tmp_path / "first.toml"),
        "--out",
        str(tmp_path / "store"),
        "--page",
        str(tmp_path),
    ]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 1 and "[roar] of standard is left out: the loss is not finite" in shown.output
    missing = (tmp_path / "first.md").read_text(encoding="utf-8").split("## What is missing")[1]
    assert "roar" in missing and "the loss is not finite" in missing


def test_a_study_file_is_checked_before_anything_is_trained(tmp_path: Path):
    path = tmp_path / "first.toml"
    path.write_text(STUDY + 'recipes = ["sgt"]\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"recipe in \[roar\]: 'sgt'"):
        run_declared(read_declaration(path), tmp_path / "store")
    path.write_text(STUDY.replace("[0.5]", "[5]"), encoding="utf-8")
    with pytest.raises(InputError, match="above 0 and below 1"):
        run_declared(read_declaration(path), tmp_path / "store")


def test_images_of_a_mapped_file_are_replaced_as_those_in_memory(blocks: ImageData) -> None:
    """A split of a mapped file holds all images of the file, and the rows that are its own."""
    parts = [getattr(blocks, part) for part in ("train", "val", "test")]
    stored, start, mapped = torch.cat([part.images for part in parts]), 0, []
    for part in parts:
        mapped.append(MappedSplit(stored, part.labels, torch.arange(start, start := start + len(part))))
    there = ImageData("blocks", *mapped, blocks.classes)
    torch.testing.assert_close(channel_means(there), channel_means(blocks), rtol=0, atol=1e-7)
    fill = channel_means(blocks)
    ranks = {
        part: torch.arange(SIDE**2).expand(len(getattr(blocks, part)), -1)
        for part in ("train", "val", "test")
    }
    ours, theirs = (replace_pixels(data, ranks, 0.3, fill) for data in (there, blocks))
    for part in ranks:
        assert torch.equal(getattr(ours, part).images, getattr(theirs, part).images)
