"""Code that a file names is imported only if the user says so; what the user types needs no permission."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner, Result

import saliency_lab as sl
from saliency_lab._common.errors import CheckpointError, InputError, RecipeError
from saliency_lab._common.files import write_checked_json
from saliency_lab._common.plugins import NameFromFile, import_object
from saliency_lab.cli.app import app
from saliency_lab.experiment.schema import read_declaration

CODE = """
from pathlib import Path
import torch
import saliency_lab as sl
from saliency_lab.training import Objective

Path("imported").touch()

class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(784, 10))

class Goal(Objective):
    pass

def data():
    return sl.load_dataset("digits")

def method(model, x, classes):
    return x.clone()

def metric(model, x, y, maps):
    return maps.sum((1, 2, 3))

def attack(model, x, y, eps):
    return x
"""
STUDY = """
recipes = ["digits/standard"]
methods = ["saliency"]
metrics = ["sparseness"]
[data]
name = "digits"
images = 6
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module that leaves a trace when it is imported."""
    (tmp_path / "stranger.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    return tmp_path


def _call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def _imported() -> bool:
    return Path("imported").exists()


def _checkpoint(folder: Path, architecture: str = "custom", **recipe: Any) -> Path:
    table = {"name": "theirs", "data": {"name": "digits"}, **recipe}
    net = sl.build_model("small_cnn") if architecture == "small_cnn" else nn.Sequential(
        nn.Flatten(), nn.Linear(784, 10)
    )  # fmt: skip
    card = sl.ModelCard(architecture=architecture, num_classes=10, input_shape=(1, 28, 28), recipe=table)
    sl.save_model(net, folder, card)
    return folder


STUDIES = {
    "data.name": STUDY.replace('"digits"\n', '"stranger:data"\n'),
    "overrides.model.name": 'overrides = { "model.name" = "stranger:Net" }\n' + STUDY,
    "overrides.objective": 'overrides = { objective = { name = "stranger:Goal" } }\n' + STUDY,
    "recipes.own.overrides.data.name": STUDY.replace(
        'recipes = ["digits/standard"]',
        'recipes = { own = { recipe = "digits/standard", overrides = { "data.name" = "stranger:data" } } }',
    ),
    "models.theirs": 'models = { theirs = ["stranger:Net"] }\n' + STUDY,
    "methods": STUDY.replace('["saliency"]', '["stranger:method"]'),
    "methods.mine.method": STUDY.replace('["saliency"]', '{ mine = { method = "stranger:method" } }'),
    "methods.stranger:method": STUDY.replace('["saliency"]', '{ "stranger:method" = {} }'),
    "methods.smoothgrad.base": STUDY.replace('["saliency"]', '{ smoothgrad = { base = "stranger:method" } }'),
    "metrics": STUDY.replace('["sparseness"]', '["sparseness", "stranger:metric"]'),
    "attacks.mine.attack": STUDY + '[attacks.mine]\nattack = "stranger:attack"\neps = 0.1\n',
    "audits.stranger:attack": STUDY + '[audits."stranger:attack"]\neps = 0.1\n',
}


@pytest.mark.parametrize("key", STUDIES)
def test_a_studys_file_imports_nothing_unless_it_is_trusted(here: Path, key: str) -> None:
    (here / "study.toml").write_text(STUDIES[key])
    for more in ([], ["--plan"]):
        result = _call("study", "study.toml", *more)
        assert result.exit_code == 2
        assert f"'study.toml' names code to import, {key}" in result.stderr
        assert "--trust" in result.stderr
    assert not _imported()
    assert not Path("runs").exists()
    read_declaration(here / "study.toml", trust=True)


def test_the_file_that_is_extended_and_recipes_of_a_study_are_named(here: Path) -> None:
    (here / "below.toml").write_text('extends = "digits/standard"\n[model]\nname = "stranger:Net"\n')
    (here / "recipe.toml").write_text('extends = "below"\n[training]\nepochs = 1\n')
    (here / "study.toml").write_text(STUDY.replace("digits/standard", "recipe.toml"))
    for refused in (
        lambda: sl.load_recipe("recipe.toml"),
        lambda: sl.train(here / "recipe.toml"),
        lambda: sl.load_recipe("recipe.toml", {"training.epochs": 2}),
    ):
        with pytest.raises(
            RecipeError, match=r"below\.toml' names code to import, model\.name = 'stranger:Net'"
        ):
            refused()
    for words in (["train", "recipe.toml"], ["study", "study.toml", "--plan"], ["study", "study.toml"]):
        result = _call(*words)
        assert result.exit_code == 2
        assert "below.toml' names code to import, model.name = 'stranger:Net'" in result.stderr
    assert not _imported()
    assert sl.load_recipe("recipe.toml", trust=True).model.name == "stranger:Net"


def test_what_the_user_types_replaces_what_the_file_names(here: Path) -> None:
    (here / "recipe.toml").write_text('extends = "digits/standard"\n[model]\nname = "stranger:Net"\n')
    assert sl.load_recipe("recipe.toml", {"model.name": "lenet5"}).model.name == "lenet5"
    assert sl.load_recipe("recipe.toml", {"model.name": "mine:Net"}).model.name == "mine:Net"
    (here / "study.toml").write_text(STUDIES["data.name"])
    declared = read_declaration(here / "study.toml", {"data": {"name": "digits"}})
    assert declared.data.name == "digits"
    assert not _imported()


@pytest.mark.parametrize("key", ["architecture", "recipe.model.name", "recipe.data.name"])
@pytest.mark.parametrize("verb", ["attack", "attribute", "score", "audit"])
def test_commands_import_nothing_that_a_card_names(here: Path, key: str, verb: str) -> None:
    if key == "architecture":
        _checkpoint(here / "theirs", "stranger:Net")
    elif key == "recipe.model.name":
        _checkpoint(here / "theirs", model={"name": "stranger:Net"})
    else:
        _checkpoint(here / "theirs", "small_cnn", data={"name": "stranger:data"})
    more = ["--eps", "0.1"] if verb in ("attack", "audit") else []
    result = _call(verb, "theirs", "--images", 4, "--device", "cpu", *more)
    assert result.exit_code == 2
    assert f"'{Path('theirs/model.json')}' names code to import, {key} = 'stranger:" in result.stderr
    assert not _imported()


def test_a_trusted_card_is_used(here: Path) -> None:
    _checkpoint(here / "theirs", "stranger:Net", data={"name": "stranger:data"})
    with pytest.raises(
        CheckpointError, match=r"architecture = 'stranger:Net'.*load_model\(…, model=my_module\)"
    ):
        sl.load_model("theirs")
    (here / "study.toml").write_text(
        STUDY.replace('recipes = ["digits/standard"]', 'models = { a = "theirs" }')
    )
    assert "names code" in _call("study", "study.toml", "--plan").stderr
    assert not _imported()
    assert type(sl.load_model("theirs", trust=True)).__name__ == "Net"
    assert _imported()
    result = _call("attribute", "theirs", "--images", 4, "--rows", 1, "--trust")
    assert result.exit_code == 0, result.output


def test_typed_names_need_no_trust(here: Path) -> None:
    net = sl.build_model("small_cnn")
    x, y = sl.load_dataset("stranger:data").test.sample(2, 0)
    assert sl.attribute(net, x, y, method="stranger:method").values.shape == x.shape
    _checkpoint(here / "plain", "small_cnn", data={"name": "stranger:data"})
    typed = ["--data", "stranger:data", "--method", "stranger:method"]
    result = _call("attribute", "plain", "--images", 4, "--rows", 1, *typed)
    assert result.exit_code == 0, result.output


def test_a_recipe_that_is_taken_from_a_card_still_counts_as_the_files(here: Path) -> None:
    _checkpoint(here / "theirs", "small_cnn", model={"name": "stranger:Net"})
    recipe = sl.load_model("theirs").card.recipe
    with pytest.raises(RecipeError, match=r"model\.json' names code to import, model\.name"):
        sl.train(recipe)
    with pytest.raises(InputError, match=r"model\.json' names code"):
        sl.build_model(recipe["model"]["name"])
    assert not _imported()


def test_a_module_of_ones_own_with_a_strangers_card_is_saved_without_importing(here: Path) -> None:
    """Saving and training ask whether the card's architecture still makes the module."""
    _checkpoint(here / "theirs", "stranger:Net")
    mine = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    loaded = sl.load_model("theirs", model=mine)
    assert loaded.card.architecture == "custom"
    sl.save_model(loaded, here / "again")
    sl.train("digits/standard", model=loaded, overrides={"training.epochs": 1})
    assert not _imported()


def test_the_card_of_a_built_in_architecture_never_imports(here: Path) -> None:
    _checkpoint(here / "theirs", "small_cnn", model={"name": "stranger:Net"})
    sl.load_model("theirs", trust=True)
    assert _call("attribute", "theirs", "--images", 4, "--rows", 1, "--trust").exit_code == 0
    assert not _imported()


def test_reading_a_store_imports_nothing(here: Path, make_store: Callable[[Path], None]) -> None:
    make_store(here / "store")
    manifest = here / "store" / "study.json"
    text = manifest.read_text()
    for name in ("metric", "attack", "method"):
        text = text.replace(
            {"metric": '"sparseness"', "attack": '"pgd"', "method": '"saliency"'}[name], f'"stranger:{name}"'
        )
    fields = json.loads(text)
    del fields["digest"]
    write_checked_json(manifest, fields)
    study = sl.Study.load("store")
    study.compare().table()
    sl.report(study, "report.html")
    sl.verify("store")
    assert not _imported()


@pytest.fixture
def make_store() -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        data = sl.load_dataset("digits")
        nets = {name: sl.build_model("small_cnn", seed=seed) for seed, name in enumerate(("a", "b"))}
        study = sl.Study(nets, data.test.sample(4, 0), store=folder)
        study.attribute("saliency").score("sparseness").attack("pgd", eps=0.1, steps=1)

    return make


def test_marks_survive_copies_and_the_folder_comes_last(here: Path) -> None:
    import copy
    import pickle

    name = NameFromFile("stranger:Net", Path("x.toml"))
    for each in (copy.deepcopy(name), pickle.loads(pickle.dumps(name))):
        assert (each, each.file) == (name, name.file)
        with pytest.raises(InputError, match=r"x\.toml"):
            import_object(each)
    assert not _imported()
    import_object("stranger:Net")
    assert sys.path.index(str(here)) == len(sys.path) - 1  # a file here never replaces a library
