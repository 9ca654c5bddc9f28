"""The command line as a user meets it: exit codes, messages, files."""

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
import torchvision
from lightning_fabric.utilities.rank_zero import rank_zero_only
from safetensors.torch import load_file
from typer.testing import CliRunner

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab.cli import main
from saliency_lab.cli import train as train_verb
from saliency_lab.cli.app import app
from saliency_lab.cli.options import draw_images, load_models, named_settings
from saliency_lab.cli.output import print_comparison, print_table
from saliency_lab.data import ImageData, Split
from saliency_lab.study import Study
from saliency_lab.training import api

QUICK = [
    *("--set", "training.epochs=1", "--set", "validation.images=16", "--set", "validation.steps=1"),
    *("--set", "training.batch_size=32"),
]


STUDY = """
recipes = ["digits/standard"]
methods = ["saliency"]
metrics = ["sparseness"]
overrides = { "training.epochs" = 1, "validation.images" = 16, "validation.steps" = 1 }
data = { name = "digits", images = 8 }
"""

OWN = """
import torch
import saliency_lab as sl

class Tiny(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(16, 2))

net = Tiny()

def data():
    x = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(60) % 2
    x[:, :, :2] *= y.view(-1, 1, 1, 1)
    pairs = list(zip(x, y.tolist()))
    return sl.ImageData.from_datasets(pairs[:40], pairs[40:], name="own", seed=0)
"""


PETS = """
import torch
import saliency_lab as sl

pairs = [(torch.zeros(3, 224, 224), label) for label in (0, 1, 0, 1)]
DATA = sl.ImageData.from_datasets(pairs, pairs, pairs, name="pets", classes=("cat", "dog"))
"""


def call(*arguments):
    """Run the command in this process; stdout and stderr apart."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for recipe in ("standard", "sgt"):
        result = call("train", f"digits/{recipe}", "--out", folder / recipe, *QUICK)
        assert result.exit_code == 0, result.output
        assert "validation accuracy" in result.stdout
    return folder / "standard", folder / "sgt"


@pytest.mark.parametrize(
    "verb",
    [
        "demo",
        "train",
        "attribute",
        "score",
        "attack",
        "study",
        "reproduce",
        "audit",
        "report",
        "power",
        "list",
        "download",
        "doctor",
    ],
)
def test_every_verb_has_help(verb):
    result = call(verb, "--help")
    assert "bool" not in result.stdout  # flags take no value
    assert result.exit_code == 0
    assert verb in result.stdout


@pytest.mark.parametrize(
    ("verb", "where"),
    [
        ("score", "names of `saliency-lab list zoo`"),
        ("reproduce", "(`saliency-lab list studies`)"),
        ("reproduce", "from train/CLASS and test/CLASS under --data-root"),
    ],
)
def test_the_help_says_where_names_and_images_are(verb, where):
    assert where in " ".join(call(verb, "--help").stdout.replace("│", " ").split())


def test_the_help_knows_every_verb():
    listed = call("--help").stdout
    for command in app.registered_commands:
        assert (command.name or command.callback.__name__) in listed
    assert len(app.registered_commands) == 15


@pytest.mark.parametrize(
    "what", ["datasets", "models", "zoo", "recipes", "studies", "methods", "metrics", "attacks"]
)
def test_list(what):
    result = call("list", what)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 4


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_the_encoding_lacks_is_a_question_mark(encoding):
    done = subprocess.run(
        [sys.executable, "-m", "saliency_lab.cli", "list", "recipes"],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"?" in done.stdout
    assert b"mnist/asgt" in done.stdout


def test_without_a_stream_to_print_to_the_work_is_done_all_the_same(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as after >&-
    print_table(sl.list_zoo())


def test_a_reader_that_left_is_met_before_the_way_out(monkeypatch):
    """There Python itself would print that it could not write, and the exit code would be 120."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["saliency-lab", "download", "digits"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_a_table_too_wide_for_the_terminal_is_printed_as_paragraphs(monkeypatch, capsys):
    table = pd.DataFrame({"what": ["words " * 10], "more": ["[x] " * 9], "share": [0.25]}, index=["row"])
    table.index.name = "name"
    print_table(table)
    wide = capsys.readouterr().out
    assert len([line for line in wide.splitlines() if line.strip()]) == 3  # header, rule, row
    monkeypatch.setattr("saliency_lab.cli.output.WIDTH_OF_FILES", 40)
    print_table(table)
    narrow = capsys.readouterr().out
    assert narrow.startswith("row\n    what: words")
    assert "[x]" in narrow
    assert "share: 0.25" in narrow
    assert max(map(len, narrow.splitlines())) <= 40


def test_download_says_where_the_files_are():
    assert call("download", "digits").stdout.startswith("built in: ImageData('digits'")


def test_doctor_says_what_is_missing_and_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("saliency_lab.cli.doctor.find_spec", lambda name: None)
    result = call("doctor", "--data-root", tmp_path)
    assert result.exit_code == 0
    words = ("torch", "cpu", "built in", "saliency-lab download mnist", "train/CLASS/*", "'.[distributed]'")
    for word in (*words, "'.[notebook]'", "'.[pretrained]'", "'.[hf]'"):
        assert word in result.stdout


@pytest.mark.long
def test_train_of_several_seeds_makes_a_folder_each(tmp_path):
    result = call("train", "digits/standard", "--seeds", "0,1", "--out", tmp_path, *QUICK)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-0", "seed-1"]


@pytest.mark.long
def test_the_default_folder_tells_changed_recipes_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for changes in ([], ["--set", "attack.eps=8/255", "--set", "seed=3"]):
        result = call("train", "digits/standard", *changes, *QUICK)
        assert result.exit_code == 0, result.output
    quick = "training.batch_size=32,training.epochs=1,validation.images=16,validation.steps=1"
    assert sorted(path.as_posix() for path in Path("runs").glob("*/*/seed-*")) == [
        f"runs/digits/standard,attack.eps=8-255,{quick}/seed-3",
        f"runs/digits/standard,{quick}/seed-0",
    ]


@pytest.mark.long
def test_only_the_first_process_of_a_distributed_run_prints_the_result(models, monkeypatch):
    again = ("train", "digits/standard", "--out", models[0], *QUICK)
    assert "validation accuracy" in call(*again).stdout
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    result = call(*again)
    assert result.exit_code == 0, result.output
    assert not result.stdout


@pytest.mark.long
def test_a_changed_recipe_is_another_model_and_a_seed_is_not(models, tmp_path):
    changed = ["--set", "objective.fraction=0.1"]
    for name, options in {"changed": changed, "seed": ["--seed", 1]}.items():
        result = call("train", "digits/sgt", "--out", tmp_path / name, *options, *QUICK)
        assert result.exit_code == 0, result.output
    loaded = load_models([*models, tmp_path / "seed", tmp_path / "changed"], "cpu")
    assert {name: [net.card.seed for net in nets] for name, nets in loaded.items()} == {
        "standard": [0],
        "sgt (objective.fraction=0.5)": [0, 1],
        "sgt (objective.fraction=0.1)": [0],
    }
    out = tmp_path / "study"
    result = call("attribute", models[1], tmp_path / "changed", "--images", 4, "--rows", 1, "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (out / "maps").glob("*-saliency.safetensors")) == [
        "sgt_objective.fraction=0.1-saliency.safetensors",
        "sgt_objective.fraction=0.5-saliency.safetensors",
    ]
    result = call("attribute", models[1], tmp_path / "seed", "--images", 4, "--rows", 1, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    written = sorted((tmp_path / "maps").glob("*.safetensors"))
    assert [path.name for path in written] == [
        "sgt-seed-0-saliency.safetensors",
        "sgt-seed-1-saliency.safetensors",
    ]
    first, second = (load_file(path)["values"] for path in written)
    assert not torch.equal(first, second)


@pytest.mark.long
def test_attribute_writes_maps_and_a_picture(models, tmp_path):
    result = call(
        *("attribute", *models, "--method", "saliency", "--method", "integrated_gradients", "--images", 8),
        *("--set", "integrated_gradients.steps=4", "--out", tmp_path),
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "maps/sgt-integrated_gradients.safetensors").exists()
    assert (tmp_path / "maps-saliency.png").stat().st_size > 10_000


def test_maps_of_models_of_like_names_do_not_replace_each_other(tmp_path):
    for seed, name in enumerate(("net 1", "net_1", "Net_1")):
        net = sl.build_model("small_cnn", num_classes=10, input_shape=(1, 28, 28), seed=seed)
        sl.save_model(net, tmp_path / name)
    folders = [tmp_path / name for name in ("net 1", "net_1", "Net_1")]
    out = tmp_path / "study"
    result = call("attribute", *folders, "--data", "digits", "--images", 10, "--rows", 1, "--out", out)
    assert result.exit_code == 0, result.output
    assert len({path.name.casefold() for path in (out / "maps").iterdir()}) == 3


def test_score_prints_a_table_and_writes_tidy_ones(models, tmp_path):
    result = call(
        "score", *models, "--method", "saliency", "--metric", "sparseness", "--images", 8, "--out", tmp_path
    )
    assert result.exit_code == 0, result.output
    assert "sparseness" in result.stdout
    table = pd.read_parquet(tmp_path / "tables/scores.parquet")
    assert len(table) == 2 * 8
    assert set(table.model) == {"standard", "sgt"}
    assert len(pd.read_csv(tmp_path / "tables/scores.csv")) == len(table)


def test_what_verbs_leave_in_one_folder_is_about_the_same_images(models, tmp_path):
    score = ("score", models[0], "--method", "saliency", "--metric", "sparseness", "--out", tmp_path)
    attack = ("attack", models[0], "--eps", 0.1, "--set", "pgd.steps=1", "--out", tmp_path)
    for done in (call(*score, "--images", 8), call(*attack, "--images", 8)):
        assert done.exit_code == 0, done.output
    for options in (("--images", 9), ("--images", 8, "--seed", 1)):
        refused = call(*attack, *options)
        assert refused.exit_code == 2
        assert "holds a study of other images" in refused.stderr and "--out" in refused.stderr
    study = Study.load(tmp_path)
    assert len(study.scores) == 8 and len(study.robustness) == 2 * 8


def test_attack_takes_pixels_and_draws_a_picture(models, tmp_path):
    result = call(
        *("attack", *models, "--eps", "8/255", "--eps", 0.1, "--images", 8, "--set", "pgd.steps=2"),
        *("--out", tmp_path, "--json", tmp_path / "attack.json"),
    )
    assert result.exit_code == 0, result.output
    assert "robust_accuracy" in result.stdout
    rows = json.loads((tmp_path / "attack.json").read_text())
    assert len(rows) == 2 * 3
    assert {row["model"] for row in rows} == {"standard", "sgt"}
    assert set(pd.read_parquet(tmp_path / "tables/robustness.parquet").eps.round(4)) == {0, 0.0314, 0.1}
    assert (tmp_path / "robustness-pgd.png").exists()


@pytest.mark.long
def test_audit_says_whether_to_believe_and_writes_json(models, tmp_path):
    result = call(
        *("audit", *models, "--eps", "0.05", "--images", 8, "--set", "pgd.steps=5"),
        *("--json", tmp_path / "audit.json"),
    )
    assert result.exit_code == 0, result.output
    verdicts = json.loads((tmp_path / "audit.json").read_text())
    assert set(verdicts) == {"standard", "sgt"}
    for name, verdict in verdicts.items():
        assert f"{name}: {verdict['verdict']}" in result.stdout


@pytest.mark.long
def test_audit_of_several_seeds_is_one_each(models, tmp_path):
    assert call("train", "digits/standard", "--seed", 1, "--out", tmp_path / "one", *QUICK).exit_code == 0
    result = call(
        *("audit", models[0], tmp_path / "one", "--eps", 0.5, "--images", 4, "--method", "fgsm"),
        *("--set", "fgsm.norm=l2"),
    )
    assert result.exit_code == 0, result.output
    for seed in (0, 1):
        assert f"standard (seed {seed}): " in result.stdout
    assert "fgsm at ε = 0.5 (l2) reports" in result.stdout


def test_tables_hold_what_earlier_runs_left_in_the_folder(models, tmp_path):
    score = ("score", models[0], "--method", "saliency", "--images", 8, "--out", tmp_path)
    attack = ("attack", models[0], "--images", 8, "--out", tmp_path)
    for metric in ("sparseness", "complexity"):
        assert call(*score, "--metric", metric).exit_code == 0
    for method, eps in (("fgsm", 0.1), ("noise", 0)):  # 0: there is nothing to draw
        done = call(*attack, "--method", method, "--eps", eps)
        assert done.exit_code == 0, done.output
    assert set(pd.read_parquet(tmp_path / "tables/scores.parquet").metric) == {"sparseness", "complexity"}
    assert set(pd.read_parquet(tmp_path / "tables/robustness.parquet").attack) == {"fgsm", "noise"}
    unlike = call(
        "attack", models[1], *attack[2:], "--method", "fgsm", "--eps", 0.1, "--set", "fgsm.loss=margin"
    )
    assert unlike.exit_code == 2 and "cannot be compared" in unlike.stderr


def test_a_comparison_too_wide_for_the_terminal_has_a_paragraph_a_measure(
    models, tmp_path, monkeypatch, capsys
):
    study = Study(load_models(models, "cpu"), sl.load_dataset("digits").test.sample(8))
    comparison = study.attribute("saliency").score(["sparseness", "complexity"]).compare()
    print_comparison(comparison)
    whole = capsys.readouterr().out
    assert whole == f"{comparison}\n" and max(map(len, whole.splitlines())) > 100
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    numbers = [word for word in whole.split() if word.startswith("0.")]
    for width in (50, 30):
        monkeypatch.setenv("COLUMNS", str(width))
        print_comparison(comparison)
        narrow = capsys.readouterr().out
        assert max(map(len, narrow.splitlines())) <= width
        assert numbers and set(numbers) <= set(narrow.split())


@pytest.mark.long
def test_study_plans_computes_and_verifies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first.toml").write_text(STUDY)
    planned = call("study", "first.toml", "--plan")
    assert planned.exit_code == 0, planned.output
    assert "3 of 3 are missing in 'runs/first'" in planned.stdout
    done = call("study", "first.toml")
    assert done.exit_code == 0, done.output
    assert "sparseness" in done.stdout
    assert "0 of 3 are missing" in call("study", "first.toml", "--plan").stdout
    assert "every file is intact" in call("study", "first.toml", "--verify").stdout
    cell = next(
        path for path in (tmp_path / "runs/first").rglob("*.safetensors") if "models" not in path.parts
    )
    cell.write_bytes(b"damaged")
    assert call("study", "first.toml", "--verify").exit_code == 1


@pytest.mark.long
@pytest.mark.parametrize("model", ["own_of_cli:Tiny", "own_of_cli:net"])
def test_a_users_own_model_and_data_are_found_again(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_of_cli", raising=False)
    (tmp_path / "own_of_cli.py").write_text(OWN)
    own = ["--set", f"model.name={model}", "--set", "data.name=own_of_cli:data"]
    fast = ["--set", "training.batch_size=8", "--set", "optimizer.learning_rate=0.05"]
    trained = call("train", "digits/standard", *own, "--out", "run", *QUICK, *fast)
    assert trained.exit_code == 0, trained.output
    attack = ("attack", "run", "--eps", 0.1, "--images", 8, "--set", "pgd.steps=2", "--json", "a.json")
    refused = call(*attack)
    assert refused.exit_code == 2
    assert f"'{Path('run/model.json')}' names code to import, recipe.model.name = '{model}'" in refused.stderr
    result = call(*attack, "--trust")
    assert result.exit_code == 0, result.output
    clean = next(row for row in json.loads(Path("a.json").read_text()) if row["metric"] == "accuracy")
    monkeypatch.delitem(sys.modules, "own_of_cli")
    import own_of_cli

    x, y = own_of_cli.data().test.sample(8, 0)
    weights = load_file("run/model.safetensors")
    logits = x.flatten(1) @ weights["1.weight"].T + weights["1.bias"]
    assert clean["mean"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
    overridden = call("attribute", "run", "--data", "mnist", "--data-root", tmp_path, "--trust")
    assert overridden.exit_code == 2
    assert "mnist" in overridden.stderr


def inverted(digits, name):
    def turned(split):
        return Split(255 - split.images, split.labels)

    return ImageData(name, turned(digits.train), turned(digits.val), turned(digits.test), digits.classes)


OWN_DIGITS = """
import saliency_lab as sl
from saliency_lab.data import Split

def data():
    digits = sl.load_dataset("digits")
    parts = [Split(255 - part.images, part.labels) for part in (digits.train, digits.val, digits.test)]
    return sl.ImageData("inverted", *parts, digits.classes)
"""


@pytest.mark.long
def test_a_model_is_not_scored_on_other_images_than_it_was_trained_on(digits, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_digits_of_cli.py").write_text(OWN_DIGITS)
    quick = {"training.epochs": 4, "validation.images": 16, "validation.steps": 1}
    mine = inverted(digits, "inverted")
    net = sl.train("digits/standard", mine, out="mine", overrides=quick)
    assert net.card.recipe["data"]["name"] == "inverted"
    attack = ("attack", "mine", "--eps", 0.1, "--images", 40, "--set", "pgd.steps=1", "--json", "a.json")
    refused = call(*attack)
    assert refused.exit_code == 2
    assert "'inverted', which is no data set known by name" in refused.stderr
    assert call(*attack, "--data", "own_digits_of_cli:data").exit_code == 0
    clean = next(row for row in json.loads(Path("a.json").read_text()) if row["metric"] == "accuracy")
    x, y = mine.test.sample(40, 0)
    assert clean["mean"] == pytest.approx((net(x).argmax(1) == y).double().mean().item())
    assert clean["mean"] > 0.5
    # also under the name of a bundled one, and as the second model
    sl.train(
        "digits/standard", inverted(digits, "digits"), out="alike", overrides=quick | {"attack.eps": 0.2}
    )
    for several in (["alike"], [models[0], "alike"]):
        refused = call("attack", *several, "--eps", 0.1, "--images", 8)
        assert refused.exit_code == 2
        assert "was trained on other images than 'digits' holds here" in refused.stderr
    named = ("--data", "digits", "--images", 8, "--set", "pgd.steps=1", "--out", "named")
    assert call("attack", "alike", "--eps", 0.1, *named).exit_code == 0


def test_a_network_of_the_zoo_finds_its_data_where_they_are_rounded_otherwise(digits, monkeypatch):
    loaded = load_models([Path("digits/at")], "cpu")
    assert draw_images(loaded, None, None, 8, 0).x.equal(digits.test.sample(8, 0).x)
    images = digits.test.images.clone()
    images[0, 0, 0, 0] ^= 1
    other = ImageData("digits", digits.train, digits.val, Split(images, digits.test.labels), digits.classes)
    monkeypatch.setattr(api, "load_data", lambda spec: other)
    assert len(draw_images(loaded, None, None, 8, 0).x) == 8
    with pytest.raises(InputError, match="model 'asgt' was trained on other images than 'digits' holds"):
        draw_images(loaded | load_models([Path("mnist/asgt")], "cpu"), None, None, 8, 0)


@pytest.mark.long
def test_an_image_folder_is_found_at_another_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draws = np.random.default_rng(0)
    for part, kind, n in itertools.product(("train", "test"), ("dark", "bright"), range(20)):
        folder = tmp_path / "pets" / part / kind
        folder.mkdir(parents=True, exist_ok=True)
        level = 128 * (kind == "bright")
        pixels = (draws.integers(0, 128, (12 + n % 3, 12)) + level).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{n}.png")
    own = ["--set", "data.name=image_folder", "--set", "data.image_size=12", "--data-root", "pets"]
    trained = call("train", "digits/standard", *own, "--out", "run", *QUICK)
    assert trained.exit_code == 0, trained.output
    small = ["--set", "training.batch_size=4"]
    other = [*own[:3], "data.image_size=[9, 12]", *own[4:]]
    assert call("train", "digits/standard", *other, "--out", "wide", *QUICK, *small).exit_code == 0
    assert load_models([Path("wide")], "cpu")["standard"][0].card.input_shape == (1, 9, 12)
    data = sl.load_dataset("image_folder", "pets", image_size=(9, 12))
    changes = {"training.epochs": 1, "training.batch_size": 4, "seed": 1}
    sl.train("digits/standard", data, out="python", overrides=changes)
    look = ("--eps", 0.1, "--images", 8, "--set", "pgd.steps=1", "--data-root", "pets")
    assert call("attack", "wide", "python", *look, "--out", "pair").exit_code == 0
    shutil.copytree("pets", "moved")
    pick = ("attack", "run", "--eps", 0.1, "--images", 8, "--set", "pgd.steps=1", "--data-root", "moved")
    assert call(*pick).exit_code == 0
    PIL.Image.fromarray(np.zeros((12, 12), np.uint8)).save("moved/test/dark/more.png")
    assert "other images than 'image_folder' holds here" in call(*pick).stderr
    assert (
        call(*pick, "--data", "image_folder", "--out", "other").exit_code == 0
    )  # at the size it was trained on


def test_a_study_of_another_data_set_than_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.toml").write_text(STUDY.replace('"digits', '"mnist'))
    result = call("study", "study.toml", "--data", "digits", "--plan")
    assert result.exit_code == 0, result.output
    assert "as if they broke no image" in result.stdout


def test_two_runs_of_one_seed_are_not_two_seeds(models, tmp_path):
    copied = tmp_path / "copy"
    net = sl.load_model(models[0])
    with torch.no_grad():
        next(net.parameters()).add_(1e-6)  # another device rounds otherwise
    sl.save_model(net, copied, net.card)
    with pytest.raises(InputError, match=r"'.*copy' and '.*standard' are both seed 0 of 'digits/standard'"):
        load_models([models[0], copied], "cpu")


def test_the_name_of_a_run_with_many_changes_fits_a_file_system():
    many = {f"objective.key{number}": f"value{number}é" for number in range(20)}
    names = [train_verb._folder_name("digits/sgt", many | {"attack.eps": eps}) for eps in (0.1, 0.2)]
    assert len(set(names)) == 2
    for name in names:
        (last,) = Path(name).parts[1:]
        assert Path(name).parts[0] == "digits"
        assert len(last.encode()) <= 255
        assert last.startswith("sgt,attack.eps=0.")
    few = {"attack.eps": 0.1, "training.epochs": "9" * 200}
    assert (
        train_verb._folder_name("digits/sgt", few) == f"digits/sgt,attack.eps=0.1,training.epochs={'9' * 200}"
    )


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = call("train", "digits/standard", "--out", tmp_path / "run", *QUICK)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line == f"error: '{tmp_path / 'run/recipe.json'}': No space left on device"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "mnist/agst"], ["unknown recipe 'mnist/agst'", "did you mean 'mnist/asgt'"]),
        (["train", "digits/at", "--set", "attack.epss=1"], ["'epss'", "did you mean 'eps'"]),
        (["train", "digits/at", "--set", "attack.eps=-1"], ["attack.eps", "-1"]),
        (["train", "digits/at", "--set", "nonsense"], ["key=value"]),
        (["train", "digits/at", "--seeds", "0,x"], ["--seeds", "0,x"]),
        (["train", "digits/at", "--devices", "two"], ["--devices", "two"]),
        (["train", "digits/at", "--accelerator", "foo"], ["accelerator 'foo'"]),
        (["train", "digits/at", "--strategy", "foo"], ["strategy 'foo'"]),
        pytest.param(
            ["train", "digits/at", "--accelerator", "cuda"],
            ["accelerator 'cuda'"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU"),
        ),
        (["train", "mnist/at", "--data-root", "/nowhere"], ["/nowhere", "download"]),
        (["train", "digits/at", "--out", "/proc/nowhere"], ["/proc/nowhere", "cannot write"]),
        (["attack", "/nowhere/model", "--eps", "0.1"], ["/nowhere/model", "no checkpoint"]),
        (["attack", "MODEL", "MODEL", "--eps", "0.1"], ["same weights", "once"]),
        (["attack", "MODEL", "--eps", "0.1", "--data", "nowhere_at_all:DATA"], ["nowhere_at_all"]),
        (["attack", "MODEL", "--eps", "8/0"], ["eps", "8/0"]),
        (["attack", "MODEL", "--eps", "0.1", "--method", "pdg"], ["'pdg'", "did you mean 'pgd'"]),
        (["attack", "MODEL", "--eps", "0.1", "--set", "fgsm.steps=1"], ["'fgsm'"]),
        (["attack", "MODEL", "--eps", "0.1", "--set", "pgd.eps=0.2"], ["pgd.eps", "--eps"]),
        (["audit", "MODEL", "--eps", "0.1", "--set", "pgd.seed=1"], ["setting of attack 'pgd'", "'seed'"]),
        (["score", "MODEL", "--metric", "pixelflipping"], ["did you mean 'pixel_flipping'"]),
        (["score", "MODEL", "--device", "gpu"], ["unknown device 'gpu'", "cuda:1"]),
        (["audit", "MODEL", "--eps", "0.1", "--device", "cuda:99"], ["no device 'cuda:99' here"]),
        (["study", "STUDY", "--device", "cuda:99"], ["no device 'cuda:99' here"]),
        (["score", "MODEL", "--images", "100000"], ["100,000", "359"]),
        (["attribute", "MODEL", "--method", "salency"], ["did you mean 'saliency'"]),
        (["attribute", "MODEL", "--set", "steps=3"], ["NAME.steps"]),
        (["attribute", "MODEL", "--data", "planted", "--images", "4"], ["takes images of", "'planted'"]),
        (["study", "nowhere.toml"], ["nowhere.toml", "No such file"]),
        (["study", "STUDY", "--executor", "slurm"], ["--executor", "auto", "slurm"]),
        (["study", "STUDY", "--executor", "serial", "--workers", "2"], ["--workers", "--executor"]),
        (["score", "torchvision/resnet50"], ["torchvision/resnet50@DEFAULT", "resnet50@FILE", "state dict"]),
        (["attribute", "torchvision/resnet50@V7"], ["weights='V7' is neither one of DEFAULT, IMAGENET1K_V1"]),
        (["attack", "MODEL@DEFAULT", "--eps", "0.1"], ["@DEFAULT", "no checkpoint"]),
        (["score", "imagenet/efficientnet_lite0", "--data", "pets:DATA"], ["1000 classes", "2 others"]),
        (["download", "minst"], ["did you mean 'mnist'"]),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_2(models, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / "pets.py").write_text(PETS)
    stand_for = {"MODEL": models[0], "MODEL@DEFAULT": f"{models[0]}@DEFAULT", "STUDY": "study.toml"}
    result = call(*[stand_for.get(argument, argument) for argument in arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in result.stderr


def test_collapse_is_an_error_and_no_model_is_left(tmp_path):
    result = call(
        *(
            "train",
            "digits/at",
            "--out",
            tmp_path,
            "--set",
            "training.epochs=2",
            "--set",
            "attack.warmup=0.0",
        ),
        *("--set", "attack.eps=1.0", "--set", "attack.steps=2", "--set", "validation.steps=1"),
    )
    assert result.exit_code == 2
    assert "collapsed to a constant; set attack.warmup" in result.stderr
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_the_run_goes_on(tmp_path):
    command = [
        *(
            sys.executable,
            "-m",
            "saliency_lab.cli",
            "train",
            "digits/standard",
            "--out",
            str(tmp_path / "run"),
        ),
        *("--set", "training.epochs=40"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in the background
    )
    until = time.monotonic() + 60
    while not (tmp_path / "run/state.pt").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "interrupted; run the same command again to continue" in output
    assert not (tmp_path / "run/model.safetensors").exists()
    again = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert any("continues with epoch" in line for line in again.stderr)
    finally:
        again.kill()
        again.communicate()


POOL = """
import os, time
from saliency_lab.cli.executors import open_executor

if __name__ == "__main__":
    with open_executor("processes", 2, None, "cpu") as pool:
        pool.submit(os.getpid).result()
        print("at work", flush=True)
        time.sleep(600)
"""


@pytest.mark.long
def test_workers_end_with_a_process_that_was_killed(tmp_path):
    (tmp_path / "pool.py").write_text(POOL)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "pool.py"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == "at work\n"
        process.kill()
        assert process.communicate(timeout=60)[0] == ""  # the workers hold the other end of the pipe
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_ctrl_c_stops_the_training_of_other_processes_too(tmp_path):
    text = STUDY.replace('epochs" = 1', 'epochs" = 400')
    (tmp_path / "study.toml").write_text(f"seeds = [0, 1, 2, 3, 4, 5]{text}")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "saliency_lab.cli", "study", "study.toml"),
            *("--executor", "processes", "--workers", "2"),
        ],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 100
    while len(list(tmp_path.glob("runs/study/models/*/state.pt"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, output = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "interrupted; run the same command again to continue" in output and "Traceback" not in output
    assert len(list(tmp_path.glob("runs/study/models/*/"))) == 2
    assert not list(tmp_path.glob("runs/study/models/*/model.json"))


def test_a_tilde_in_a_path_is_the_home_folder(tmp_path, monkeypatch):
    """Also where the shell does not expand it, as after `--out=`."""
    monkeypatch.setenv("HOME", f"{tmp_path}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").mkdir()
    assert CliRunner().invoke(app, ["verify", "~/store"]).exit_code == 0
    missing = CliRunner().invoke(app, ["report", "~/missing", "--out=~/page.html"])
    assert missing.exit_code == 2 and f"{tmp_path}/missing" in missing.output
    packed = CliRunner().invoke(app, ["reproduce", "digits", "--from=~/missing.tar.xz", "--page=~/page"])
    assert packed.exit_code == 2 and f"{tmp_path}/missing.tar.xz" in packed.output.replace("\n", "")
    assert not (tmp_path / "~").exists()


@pytest.mark.long
def test_a_pretrained_network_gets_its_weights_behind_an_at_sign(tmp_path):
    files = [tmp_path / "first.pth", tmp_path / "second.pth"]
    for seed, path in enumerate(files):
        torch.manual_seed(seed)
        torch.save(torchvision.models.get_model("squeezenet1_1").state_dict(), path)
    models = [f"torchvision/squeezenet1_1@{path}" for path in files]
    result = call("attribute", *models, "--data", "photos", "--images", 2, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = sorted((tmp_path / "out/maps").glob("*.safetensors"))
    assert [path.name.partition("weights")[0] for path in found] == ["squeezenet1_1_"] * 2
    sample = sl.load_dataset("photos").test.sample(2, seed=0)
    for path, weights in zip(found, files, strict=True):
        expected = sl.attribute(sl.load_model("torchvision/squeezenet1_1", weights=weights), sample)
        torch.testing.assert_close(sl.Attributions.load(path).values, expected.values)
    result = call("attribute", models[0], models[0], "--data", "photos", "--out", tmp_path / "out")
    assert result.exit_code == 2 and "name each checkpoint once" in result.stderr


@pytest.mark.long
@pytest.mark.parametrize("methods", ["attention_rollout,saliency", "saliency,attention_rollout"])
def test_a_method_that_is_refused_costs_the_others_nothing(methods, tmp_path):
    result = call("attribute", "digits/standard", "--method", methods, "--images", "2", "--out", tmp_path)
    assert result.exit_code != 0 and (tmp_path / "maps-saliency.png").exists()
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["standard-saliency.safetensors"]


def test_settings_are_for_what_the_command_runs(tmp_path):
    command = ("attribute", "digits/at", "--images", 10, "--out", tmp_path / "maps")
    for name in ("mine:scaled", "scaled"):
        assert named_settings([f"{name}.k=2"], ["mine:scaled"]) == {"scaled": {"k": 2}}
    refused = call(*command, "--set", "smoothgrad.n=3")
    assert refused.exit_code != 0
    assert "--set smoothgrad.n=…: this command runs saliency, and not 'smoothgrad'" in refused.stderr
    tensor = call(*command, "--method", "gradient_shap")
    assert "can only be given in Python, as baselines=…" in tensor.stderr
