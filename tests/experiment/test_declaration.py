from __future__ import annotations

import importlib
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision
from filelock import FileLock
from torch import nn
from typer.testing import CliRunner

import saliency_lab as sl
from saliency_lab._common import registry
from saliency_lab._common.errors import InputError, SaliencyLabError
from saliency_lab.cli.app import app
from saliency_lab.data import ImageData
from saliency_lab.experiment import given, images, planning, trainings
from saliency_lab.experiment.part import WHOLE, Part
from saliency_lab.experiment.planning import plan_declared
from saliency_lab.experiment.run import run_declared
from saliency_lab.experiment.schema import read_declaration, studies_folder
from saliency_lab.experiment.trainings import training_runs
from saliency_lab.models import ModelCard, build_model, load_model, save_model
from saliency_lab.study import Study
from saliency_lab.training import load_recipe, train
from saliency_lab.training.run import run_folder_name

TOML = """
recipes = ["digits/standard", "digits/sgt"]
overrides = { "training.epochs" = 1 }
metrics = ["sparseness", "complexity"]
baseline = "sgt"
compact_maps = true

[data]
name = "digits"
images = 12

[execution]
dtype = "bfloat16"

[models]
mine = ["net-0", "net-1"]

[methods]
saliency = {}
smooth = { method = "smoothgrad", n = 2 }

[attacks.few]
attack = "pgd"
eps = [0.1, "16/255"]
steps = 1

[[claims]]
question = "Are its maps sparser?"
model = "sgt"
over = "standard"
metric = "sparseness"
"""


@pytest.fixture
def declared_file(tmp_path: Path) -> Path:
    for seed in range(2):
        card = ModelCard(architecture="small_cnn", num_classes=10, input_shape=(1, 28, 28))
        save_model(build_model("small_cnn", seed=seed), tmp_path / f"net-{seed}", card)
    path = tmp_path / "first.toml"
    path.write_text(TOML)
    return path


@pytest.mark.long
def test_a_declared_study_is_planned_run_and_then_read(declared_file: Path, tmp_path: Path) -> None:
    first = read_declaration(declared_file)
    store = tmp_path / "store"
    plan = plan_declared(first, store).set_index(["step", "what"])
    assert plan["results"].tolist() == [1, 1, 4, 4, 8, 8, 4]
    assert (plan["missing"] == plan["results"]).all()
    assert (plan.loc[["train", "attribute", "score", "attack"], "seconds"] > 0).all()
    assert not list(store.glob("cells/**/*.safetensors"))
    study, comparison, *_ = run_declared(first, store)
    assert study.models == ["standard", "sgt", "mine"]
    assert (comparison.baseline, set(study.scores["method"])) == ("sgt", {"saliency", "smooth"})
    assert sorted(study.robustness["eps"].unique()) == [0.0, 16 / 255, 0.1]
    assert (plan_declared(first, store)["missing"] == 0).all()
    weights = {path: path.stat().st_mtime_ns for path in store.rglob("model.safetensors")}
    declared_file.write_text(TOML.replace('"complexity"', '"effective_complexity"'))
    changed = read_declaration(declared_file)
    plan = plan_declared(changed, store)
    assert plan.query("missing > 0")["what"].tolist() == ["effective_complexity"]
    with ThreadPoolExecutor(2) as pool:
        again, *_ = run_declared(changed, store, executor=pool)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("model.safetensors")} == weights
    pd.testing.assert_frame_equal(again.robustness, study.robustness)
    declared_file.write_text(TOML.replace('"training.epochs" = 1', '"training.epochs" = 2'))
    plan = plan_declared(read_declaration(declared_file), store)
    assert plan.query("step == 'train'")["missing"].tolist() == [1, 1]


def test_a_checkpoints_folder_may_have_a_colon_as_train_names_them(tmp_path: Path) -> None:
    folder = "runs/digits/standard,model.name=own:Net/seed-0"
    save_model(build_model("small_cnn", seed=0), tmp_path / folder)
    (tmp_path / "own.toml").write_text(TOML.replace('["net-0", "net-1"]', f'"{folder}"'))
    study, data = read_declaration(tmp_path / "own.toml"), sl.load_dataset("digits")
    (net,) = given.finished_models(study, data, torch.device("cpu"), trust=False)[0]["mine"]
    assert net.card.architecture == "small_cnn"  # type: ignore[union-attr]


def test_a_study_of_a_users_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_images.py").write_text(
        "import saliency_lab as sl\n\n\ndef few():\n    return sl.load_dataset('planted')\n"
    )
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own.toml"
    path.write_text(
        'recipes = ["digits/standard"]\nmetrics = ["sparseness", "auc"]\nmethods = ["saliency"]\n'
        'overrides = { "training.epochs" = 1, "data.name" = "own_images:few" }\n'
        'data = { name = "own_images:few", images = 8 }\n'
    )
    study, *_ = run_declared(read_declaration(path, trust=True), tmp_path / "store")
    assert study.x.shape == (8, 1, 24, 24) and len(study.scores) == 16


def test_a_study_builds_on_a_bundled_one(tmp_path: Path) -> None:
    bundled = read_declaration(studies_folder() / "digits.toml")
    for name in ("mine.toml", "digits.toml"):  # also under its name
        (tmp_path / name).write_text('extends = "digits"\nseeds = [7]\n')
        mine = read_declaration(tmp_path / name)
        assert (mine.seeds, mine.claims, mine.folder) == ([7], bundled.claims, tmp_path)
    (tmp_path / "mnist.toml").write_text('recipes = ["digits/at"]\ndata = { name = "digits" }\n')
    (tmp_path / "mine.toml").write_text('extends = "mnist"\n')  # what is next to it goes first
    assert read_declaration(tmp_path / "mine.toml").data.name == "digits"


def test_a_store_knows_what_its_study_asks(declared_file: Path, tmp_path: Path) -> None:
    asked = TOML.replace('recipes = ["digits/standard", "digits/sgt"]', "").replace('"sgt"', '"mine"')
    asked = 'level = 0.5\ntitle = "Asked"\n' + asked.replace('"standard"', '"mine"')
    declared_file.write_text(asked)
    _, comparison, *_ = run_declared(read_declaration(declared_file), tmp_path / "store")
    loaded = Study.load(tmp_path / "store")
    assert (comparison.level, loaded.purpose.title, len(loaded.purpose.claims)) == (0.5, "Asked", 1)
    assert loaded.compare().table().equals(comparison.table())
    loaded.gc()
    assert Study.load(tmp_path / "store").purpose == loaded.purpose
    mine = {"mine": [load_model(tmp_path / f"net-{seed}") for seed in range(2)]}
    again = Study(mine, (loaded.x, loaded.y), store=tmp_path / "store").attribute("saliency")
    again.gc()  # one that does not know the requests leaves that as it is
    assert Study.load(tmp_path / "store").purpose == loaded.purpose


def test_the_data_of_a_study_are_set_in_one_place(declared_file: Path, tmp_path: Path) -> None:
    one = TOML.replace('name = "digits"', 'name = "digits"\nval_fraction = 0.3')
    declared_file.write_text(one)
    runs = training_runs(read_declaration(declared_file), sl.load_dataset("digits"), tmp_path)
    assert {run.recipe.data.val_fraction for run in runs} == {0.3}
    declared_file.write_text(TOML.replace('"training.epochs" = 1', '"data.val_fraction" = 0.3'))
    with pytest.raises(InputError, match=r"set it in the table \[data\]"):
        training_runs(read_declaration(declared_file), sl.load_dataset("digits"), tmp_path)


def test_timing_a_run_leaves_the_callers_logging_as_it_was(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(planning, "train", lambda *_, **__: seen.append(logging.root.manager.disable))
    try:
        for before in (logging.WARNING, logging.NOTSET):
            logging.disable(before)
            planning._training_seconds(load_recipe("digits/standard"), digits, "cpu")
            assert logging.root.manager.disable == before
    finally:
        logging.disable(logging.NOTSET)
    assert seen == [logging.WARNING] * 3 + [logging.INFO] * 3


def test_timing_a_run_does_not_warn_that_it_collapsed(
    digits: ImageData, recwarn: pytest.WarningsRecorder
) -> None:
    changes = {"optimizer.name": "sgd", "optimizer.learning_rate": 1e-9, "training.collapse": "keep"}
    recipe = load_recipe("digits/standard", changes)
    assert planning._training_seconds(recipe, digits, "cpu") > 0
    assert not recwarn.list


def test_looking_at_the_plan_creates_nothing(declared_file: Path, tmp_path: Path) -> None:
    plan_declared(read_declaration(declared_file), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_what_the_file_no_longer_declares_is_no_longer_listed(declared_file: Path, tmp_path: Path) -> None:
    models = TOML.replace('recipes = ["digits/standard", "digits/sgt"]', "").split("[[claims]]")[0]
    models = models.replace('baseline = "sgt"', "").replace('["net-0", "net-1"]', '"net-0"\nother = "net-1"')
    declared_file.write_text(models)
    run_declared(read_declaration(declared_file), tmp_path / "store")
    assert Study.load(tmp_path / "store").models == ["mine", "other"]
    declared_file.write_text(models.replace('other = "net-1"', "").replace('"complexity"', ""))
    run_declared(read_declaration(declared_file), tmp_path / "store")
    loaded = Study.load(tmp_path / "store")
    assert loaded.models == ["mine"] and set(loaded.scores["metric"]) == {"sparseness"}
    declared_file.write_text(models)
    plan = plan_declared(read_declaration(declared_file), tmp_path / "store")
    assert (plan["missing"] == 0).all()  # the cells are still there


def test_an_address_without_dask_is_refused(declared_file: Path) -> None:
    arguments = ["study", str(declared_file), "--address", "tcp://127.0.0.1:1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "add --executor dask" in result.output


def test_on_the_command_line(declared_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared_file.write_text(
        TOML.replace('recipes = ["digits/standard", "digits/sgt"]', "")
        .replace('"sgt"', '"mine"')
        .replace('"standard"', '"mine"')
    )
    store = str(tmp_path / "store")

    def call(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["study", str(declared_file), "--out", store, *options])
        return result.exit_code, result.output

    code, text = call("--plan")
    assert code == 0
    assert "14 of 14 are missing" in text  # two nets: two methods, two metrics of each, one attack
    code, text = call()
    assert code == 0
    assert "sparseness ↑" in text
    assert "scores.parquet" in text
    assert "0 of" in call("--plan")[1]
    assert call("--verify") == (0, "every file is intact\n")
    broken = next(Path(store).glob("cells/scores/*/*.safetensors"))
    broken.write_bytes(b"")
    code, text = call("--verify")
    assert code == 1
    assert broken.stem in text
    again = declared_file.with_name("my own.toml")
    shutil.copy(declared_file, again)
    options = ["--out", store, "--page", f"{tmp_path / 'page'}", "--only", "mine", "--trust"]
    assert CliRunner().invoke(app, ["study", str(again), *options]).exit_code == 0
    printed = "    saliency-lab study 'my own.toml' --page DIR --only mine --trust\n"
    assert printed in (tmp_path / "page" / "my own.md").read_text(encoding="utf-8")
    code, text = call("--executor", "nobody")
    assert code == 2
    plain = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    monkeypatch.setattr(given, "load_model", lambda *_, **__: plain)
    declared_file.write_text(
        declared_file.read_text().replace("saliency = {}", "saliency = {}\ngrad_cam = {}")
    )
    code, text = call()
    assert code == 1
    assert "grad_cam" in text


@pytest.mark.parametrize("line", ["recipes = 5", 'data = "digits"', "attacks = 1"])
def test_what_should_be_a_table_is_called_so(tmp_path: Path, line: str) -> None:
    (tmp_path / "wrong.toml").write_text(
        f"{line}\n" + ("" if "data" in line else 'data = { name = "digits" }\n')
    )
    key = line.partition(" ")[0]
    with pytest.raises(InputError, match=f"'{key}': Input should be a table of names and values .given: "):
        read_declaration(tmp_path / "wrong.toml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("recipes =", "recipe ="), "did you mean 'recipes'"),
        (("images = 12", "images = 0"), "greater than or equal to 1"),
        (('name = "digits"', 'nam = "digits"'), "did you mean 'name'"),
        (("[models]", "[models"), "is not valid TOML"),
        (('"digits/sgt"', '"digits/sgtt"'), "did you mean 'digits/sgt'"),
        (('baseline = "sgt"', 'baseline = "sgd"'), "did you mean 'sgt'"),
        (("net-1", "net-9"), "no checkpoint at"),
        (("smoothgrad", "smothgrad"), "did you mean 'smoothgrad'"),
        (('eps = [0.1, "16/255"]', ""), "attack 'few' needs ε, such as"),
        (("steps = 1", 'label = "x"'), "attack 'few' has its label already"),
        (("mine = [", "sgt = ["), "calls two models 'sgt'"),
        (('"digits/sgt"]', '"digits/standard"]'), "listed twice"),
        (('over = "standard"', 'over = "standrad"'), "did you mean 'standard'"),
        (('metric = "sparseness"', 'metric = "sparsenes"'), "did you mean 'sparseness'"),
        (('over = "standard"', 'over = "standard"\nlevel = 0.9'), "'level'; write 'level' on its own, above"),
        (('over = "standard"', 'ovr = "standard"'), r"table \[\[claims\]\]: 'ovr'; did you mean 'over'"),
    ],
)
def test_mistakes_in_the_file_are_named(
    declared_file: Path, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    declared_file.write_text(TOML.replace(*change))
    for use in (plan_declared, run_declared):
        with pytest.raises(SaliencyLabError, match=message):
            use(read_declaration(declared_file), tmp_path / "store")
    assert not list((tmp_path / "store").glob("models/*"))  # nothing was trained first


def test_recipes_of_one_name_are_distinguished_and_a_study_may_extend_another(tmp_path: Path) -> None:
    (tmp_path / "first.toml").write_text(
        """
        seeds = [0, 1]
        overrides = { "training.epochs" = 2 }
        data = { name = "digits", images = 12 }
        [recipes]
        sgt = "digits/sgt"
        tenth = { recipe = "digits/sgt", seeds = [3], overrides = { "objective.fraction" = 0.1 } }
        """
    )
    (tmp_path / "quick.toml").write_text(
        """
        extends = "first"
        overrides = { "training.batch_size" = 32 }
        data = { images = 6 }
        """
    )
    runs = training_runs(read_declaration(tmp_path / "quick.toml"), sl.load_dataset("digits"), tmp_path)
    assert [(run.model, run.seed, run.recipe.objective.fraction) for run in runs] == [
        ("sgt", 0, 0.5), ("sgt", 1, 0.5), ("tenth", 3, 0.1)
    ]  # fmt: skip
    assert {(run.recipe.training.epochs, run.recipe.training.batch_size) for run in runs} == {(2, 32)}
    assert len({run.folder for run in runs}) == 3
    assert read_declaration(tmp_path / "quick.toml").data.images == 6


def test_a_run_that_collapses_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(
        """
        metrics = ["sparseness"]
        methods = ["saliency"]
        data = { name = "digits", images = 6 }
        [recipes]
        sound = { recipe = "digits/standard", overrides = { "training.epochs" = 1 } }
        wild = { recipe = "digits/standard", overrides = { "optimizer.learning_rate" = 1e9 } }
        """
    )
    with pytest.warns(UserWarning, match="wild .* could not be trained"):
        study, comparison, *_ = run_declared(read_declaration(path), tmp_path / "store")
    assert study.models == ["sound"] == comparison.models
    assert study.failures[["model", "seed", "what"]].to_numpy().tolist() == [["wild", 0, "training"]]


CHANGING = """
methods = ["saliency"]
metrics = ["sparseness"]
data = { name = "digits", images = 6 }
overrides = { "validation.images" = 16, "validation.steps" = 1, "training.epochs" = 1 }
seeds = [0, 1]
[recipes]
sound = "digits/standard"
tuned = { recipe = "digits/standard", overrides = { "optimizer.learning_rate" = 0.003 } }
[models]
given = ["digits/at"]
"""


def listed(store: Path) -> list[tuple[str, int]]:
    """The networks of a stored study that have scores."""
    networks = Study.load(store).scores[["model", "seed"]].drop_duplicates()
    return [*networks.itertuples(index=False, name=None)]


def test_results_of_a_recipe_that_changed_are_not_listed(tmp_path: Path) -> None:
    path, store = tmp_path / "study.toml", tmp_path / "store"

    def run(text: str, part: Part = WHOLE) -> Study:
        path.write_text(text)
        return run_declared(read_declaration(path), store, part=part)[0]

    run(CHANGING)
    both = [("sound", 0), ("sound", 1), ("tuned", 0), ("tuned", 1), ("given", 0)]
    assert listed(store) == both
    failing = CHANGING.replace("0.003", "1e9")
    with pytest.warns(UserWarning, match="tuned .seed 1. could not be trained"):
        run(failing, Part(seeds=(1,)))
    assert set(listed(store)) == {("sound", 0), ("sound", 1), ("given", 0)}  # tuned, seed 0, is another now
    loaded = Study.load(store)
    assert loaded.failures[["model", "seed", "what"]].to_numpy().tolist() == [["tuned", 1, "training"]]
    page = sl.report(loaded, tmp_path / "report.html").read_text()
    assert "tuned (seed 1)" in page and "TrainingError" in page
    assert Study.load(store).save(tmp_path / "copy").failures["model"].tolist() == ["tuned"]
    run(CHANGING.replace('["digits/at"]', '["digits/sgt"]'), Part(("tuned",)))
    assert set(listed(store)) == set(both) - {("given", 0)}
    assert Study.load(store).failures.empty
    run(CHANGING.replace("seeds = [0, 1]", "seeds = [1]"), Part(("sound",)))
    assert set(listed(store)) == {("sound", 1), ("tuned", 1)}  # no longer declared
    with pytest.warns(UserWarning, match="could not be trained"):
        run(failing)
    assert set(listed(store)) == {("sound", 0), ("sound", 1), ("given", 0)}
    assert set(Study.load(store).failures["seed"]) == {0, 1}
    run(CHANGING)
    assert listed(store) == both and Study.load(store).failures.empty


def test_networks_that_another_process_trains_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = tmp_path / "study.toml", tmp_path / "store"
    path.write_text(
        """
        recipes = ["digits/standard"]
        overrides = { "training.epochs" = 1, "validation.images" = 16, "validation.steps" = 1 }
        seeds = [0, 1]
        methods = ["saliency"]
        metrics = ["sparseness"]
        data = { name = "digits", images = 6 }
        """
    )
    study = read_declaration(path)
    first, second = training_runs(study, sl.load_dataset("digits"), store)
    first.folder.parent.mkdir(parents=True)
    elsewhere = FileLock(first.folder.with_name(f"{first.folder.name}.lock"))
    trained = []

    def train_one(recipe, data, *, seed, out, **given):
        net = train(recipe, data, seed=seed, out=out, **given)
        trained.append(seed)
        if seed == 1:  # the other process finishes its network only now
            train(recipe, data, seed=0, out=first.folder)
            elsewhere.release()
        return net

    monkeypatch.setattr(trainings, "train", train_one)
    elsewhere.acquire()
    result, _, runs, _ = run_declared(study, store)
    assert trained == [1, 0], "the network that is locked comes last"
    assert [run.seed for run in runs] == [member.seed for member in result.members] == [0, 1]
    assert result.failures.empty and first.finished and second.finished


def test_a_checkpoint_of_an_own_architecture_is_loaded_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    overrides = {"training.epochs": 1, "model.name": "own_net:make"}
    trained = train("digits/standard", overrides=overrides, out=tmp_path / "net")
    (tmp_path / "study.toml").write_text(
        """
        models = { mine = "net" }
        methods = ["saliency"]
        metrics = ["sparseness"]
        data = { name = "digits", images = 6 }
        """
    )
    study, *_ = run_declared(read_declaration(tmp_path / "study.toml"), tmp_path / "store", trust=True)
    assert torch.equal(study.members[0].net(study.x), trained(study.x))


OWN = """
from torch import nn

KINDS = {"relu": nn.ReLU, "tanh": nn.Tanh}
kind = "relu"

def make(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), KINDS[kind](), nn.Linear(8, num_classes))
"""
OWN_STUDY = """
recipes = { mine = "digits/standard" }
methods = ["saliency"]
metrics = ["sparseness"]
data = { name = "digits", images = 6 }
[overrides]
model.name = "own_kinds:make"
training.epochs = 1
validation = { images = 16, steps = 1 }
[roar]
fractions = [0.5]
"""


@pytest.fixture
def own_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A module with a network whose code the returned function changes; the study `study.toml` trains it."""
    (tmp_path / "own_kinds.py").write_text(OWN)
    (tmp_path / "study.toml").write_text(OWN_STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_kinds", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("own_kinds")
    return lambda kind: monkeypatch.setattr(module, "kind", kind)


@pytest.mark.long
def test_a_network_whose_code_changed_is_trained_again(
    own_kinds: Callable[[str], None], tmp_path: Path
) -> None:
    study = read_declaration(tmp_path / "study.toml", trust=True)
    store = tmp_path / "store"
    for kind in ("relu", "tanh"):
        own_kinds(kind)
        plan = plan_declared(study, store, trust=True).set_index("step")["missing"]
        assert plan["train"] == 1 and plan["roar"] == 3
        result, *_ = run_declared(study, store, trust=True)
        assert kind in str(result.members[0].net).lower()
        assert (plan_declared(study, store, trust=True)["missing"] == 0).all()
    own_kinds("relu")
    assert (plan_declared(study, store, trust=True)["missing"] == 0).all()  # its network is still there
    # earlier versions did not count the code of the network in the name of its folder
    (first,) = training_runs(study, sl.load_dataset("digits"), store, trust=True)
    earlier = store / "models" / run_folder_name(first.recipe, 0, sl.load_dataset("digits").fingerprint)
    first.folder.rename(earlier)
    assert (plan_declared(study, store, trust=True)["missing"] == 0).all()
    own_kinds("tanh")
    assert (plan_declared(study, store, trust=True)["missing"] == 0).all()


def test_a_checkpoint_whose_code_changed_is_loaded_with_a_warning(
    own_kinds: Callable[[str], None], tmp_path: Path
) -> None:
    quick = {"training.epochs": 1, "validation.images": 16, "validation.steps": 1, "seed": 3}
    sl.register("model", "of_kind")(lambda: importlib.import_module("own_kinds").make(10))
    try:
        for name in ("own_kinds:make", "of_kind"):
            own_kinds("relu")
            folder = tmp_path / name.partition(":")[0]
            train("digits/standard", overrides={**quick, "model.name": name}, out=folder)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                sl.load_model(folder, trust=True)
            own_kinds("tanh")
            with pytest.warns(UserWarning, match="the code of the module that .* names has changed since"):
                sl.load_model(folder, trust=True)
            card = json.loads((folder / "model.json").read_text())
            del card["code"], card["digest"]  # as earlier versions wrote it
            (folder / "model.json").write_text(json.dumps(card))
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                sl.load_model(folder, trust=True)
    finally:
        registry._registered["model"].pop("of_kind")


def test_a_network_by_name_has_the_same_weights_each_time(
    own_kinds: Callable[[str], None], tmp_path: Path
) -> None:
    path = tmp_path / "named.toml"
    path.write_text(
        'models = { mine = "own_kinds:make" }\nmethods = ["saliency"]\nmetrics = ["sparseness"]\n'
        'data = { name = "digits", images = 6 }\n'
    )
    state = torch.get_rng_state()
    first, *_ = run_declared(read_declaration(path, trust=True), tmp_path / "store", trust=True)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    again, *_ = run_declared(read_declaration(path, trust=True), tmp_path / "store", trust=True)
    assert again.results == first.results
    assert len(list((tmp_path / "store").glob("cells/maps/*/*"))) == 1
    path.write_text(f"seed = 1\n{path.read_text()}")
    other, *_ = run_declared(read_declaration(path, trust=True), tmp_path / "store", trust=True)
    assert other.results != first.results


@pytest.mark.parametrize("lower", range(3))
@pytest.mark.parametrize("upper", range(3))
def test_overrides_are_merged_key_by_key_however_they_are_written(
    tmp_path: Path, lower: int, upper: int
) -> None:
    def written(epochs: int, more: str, value: int, how: int) -> str:
        return (
            f'"training.epochs" = {epochs}\n"training.{more}" = {value}\n',
            f"training = {{ epochs = {epochs}, {more} = {value} }}\n",
            f'training = {{ epochs = {epochs} }}\n"training.{more}" = {value}\n',
        )[how]

    (tmp_path / "low.toml").write_text(
        'recipes = ["digits/standard"]\n[data]\nname = "digits"\n[overrides]\n'
        + written(3, "batch_size", 32, lower)
    )
    (tmp_path / "high.toml").write_text(
        'extends = "low"\n[overrides]\n"training.select" = "clean"\n' + written(7, "patience", 2, upper)
    )
    (tmp_path / "top.toml").write_text('extends = "high"\n[overrides.training]\nema_decay = 0.5\n')
    (run,) = training_runs(read_declaration(tmp_path / "top.toml"), sl.load_dataset("digits"), tmp_path)
    spec = run.recipe.training
    assert (spec.epochs, spec.batch_size, spec.patience, spec.select, spec.ema_decay) == (
        7,
        32,
        2,
        "clean",
        0.5,
    )


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(TOML, encoding="utf-8-sig")
    (tmp_path / "plain.toml").write_text(TOML, encoding="utf-8")
    read, plain = (read_declaration(tmp_path / f"{name}.toml") for name in ("study", "plain"))
    assert read.recipes == plain.recipes


def test_a_file_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the study"):
        read_declaration(tmp_path / "none.toml")
    (tmp_path / "empty.toml").write_text('[data]\nname = "digits"\n')
    with pytest.raises(InputError, match="names nothing to compare"):
        read_declaration(tmp_path / "empty.toml")


def test_a_plan_counts_what_is_there_and_computes_nothing(
    make_study: Callable[..., Study], tmp_path: Path
) -> None:
    study = make_study(tmp_path, seeds=2).attribute("saliency").score("sparseness")
    cells = sorted(tmp_path.rglob("*.safetensors"))
    plan = study.plan(["saliency", "edges"], {"sparseness": {}}, {"fgsm": {"eps": 0.1}})
    assert plan[["what", "results", "missing"]].to_numpy().tolist() == [
        ["saliency", 4, 0], ["edges", 4, 4], ["sparseness", 8, 4], ["fgsm", 4, 4]
    ]  # fmt: skip
    assert sorted(tmp_path.rglob("*.safetensors")) == cells
    assert repr(study).count("edges") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "own"', "extends itself"),
        ('extends = "other"', "extends itself"),
        ('extends = "sub/first"', "unknown study that .*sub/first"),
        ('extends = "digit"', "did you mean 'digits'"),
        ('extends = "base"\ndata = "digits"', "'data'"),
        ('extends = "base"\nseeds = [0, 0]', "a seed is listed twice"),
        ('extends = "base"\nmodels = { twice = ["net", "net"] }', "lists a checkpoint twice"),
        ('extends = "base"\nmetrics = []', "the study measures nothing"),
        ('extends = "base"\nrecipes = ["mnist/sgt"]', "is for the data set 'mnist'.*'digits'"),
        ('extends = "base"\naudits = { pgd = { eps = 0 } }', "an audit needs eps > 0"),
        ('extends = "base"\n[[claims]]\nquestion = "?"\nmodel = "standard"\nover = "standard"\n'
         'metric = "sparseness"\nmethod = "salincy"', "did you mean 'saliency'"),
        ('extends = "base"\nattacks = { pgd = { eps = 0.1 } }\n[[claims]]\nquestion = "?"\n'
         'model = "standard"\nover = "standard"\nmetric = "robust_accuracy"\neps = 0.5',
         "is not attacked at; there are: 0.1"),
    ],
)  # fmt: skip
def test_what_a_study_could_only_find_out_after_hours_is_refused_first(
    tmp_path: Path, text: str, message: str
) -> None:
    base = 'recipes = ["digits/standard"]\nmethods = ["saliency"]\nmetrics = ["sparseness"]\n'
    (tmp_path / "base.toml").write_text(base + 'data = { name = "digits", images = 6 }\n')
    (tmp_path / "other.toml").write_text('extends = "own"')
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(SaliencyLabError, match=message):
        run_declared(read_declaration(tmp_path / "own.toml"), tmp_path / "store")
    assert not list((tmp_path / "store").glob("models/*"))


def test_a_study_may_name_networks_that_come_with_the_package(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(
        """
        models = { robust = "digits/at" }
        methods = ["saliency"]
        metrics = ["sparseness"]
        data = { name = "digits", images = 6 }
        """
    )
    study, *_ = run_declared(read_declaration(tmp_path / "study.toml"), tmp_path / "store")
    assert study.members[0].recipe == "digits/at"


def test_a_study_may_name_pretrained_networks_and_their_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torchvision.models.squeezenet1_1()
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    (tmp_path / "study.toml").write_text(
        """
        models = { mine = "torchvision/squeezenet1_1@mine.pth" }
        methods = ["saliency"]
        metrics = ["sparseness"]
        data = { name = "photos", images = 2 }
        """
    )
    study, *_ = run_declared(read_declaration(tmp_path / "study.toml"), tmp_path / "store")
    own = sl.wrap(net.eval(), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    torch.testing.assert_close(study.members[0].net(study.x), own(study.x))


@pytest.mark.parametrize(
    ("source", "data", "message"),
    [
        ("torchvision/squeezenet1_1", "photos", "torchvision/squeezenet1_1@DEFAULT"),
        ("torchvision/squeezenet1_1@", "photos", "torchvision/squeezenet1_1@FILE"),
        ("torchvision/squeezenet1_1@nowhere.pth", "photos", "nowhere.pth"),
        ("digits/at", "planted", "takes images of"),
        ("twenty", "photos", "numbers 20 classes"),
        ("moved", "photos", "a label would stand for another class"),
    ],
)
def test_networks_of_other_images_classes_or_weights_are_refused(
    tmp_path: Path, source: str, data: str, message: str
) -> None:
    net = build_model("resnet8", num_classes=20, input_shape=(3, 224, 224))
    classes = tuple(f"kind {k}" for k in range(20))
    save_model(net, tmp_path / "twenty", card=net.card.model_copy(update={"classes": classes}))
    thousand = build_model("resnet8", num_classes=1000, input_shape=(3, 224, 224))
    names = tuple(reversed(sl.load_dataset("photos").classes))
    save_model(thousand, tmp_path / "moved", card=thousand.card.model_copy(update={"classes": names}))
    (tmp_path / "study.toml").write_text(
        f'models = {{ mine = "{source}" }}\nmethods = ["saliency"]\nmetrics = ["sparseness"]\n'
        f'data = {{ name = "{data}", images = 2 }}\n'
    )
    with pytest.raises(SaliencyLabError, match=message):
        run_declared(read_declaration(tmp_path / "study.toml"), tmp_path / "store")


def test_a_tilde_in_a_study_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", f"{tmp_path / 'home'}")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine.toml").write_text('extends = "digits/standard"\n[training]\nepochs = 3\n')
    study = tmp_path / "study.toml"
    study.write_text('recipes = { mine = "~/mine.toml" }\n[data]\nname = "digits"\nroot = "~/data"\n')
    read = read_declaration(study)
    assert training_runs(read, sl.load_dataset("digits"), tmp_path)[0].recipe.training.epochs == 3
    asked: list[str | None] = []
    monkeypatch.setattr(images, "load_data", lambda spec: asked.append(spec.root))
    images.load_declared_data(read)
    assert asked == [f"{tmp_path / 'home' / 'data'}"]
