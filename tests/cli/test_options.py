"""Options that all subcommands share: several values, validated settings, JSON, help and version."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

import saliency_lab as sl
from saliency_lab.cli.app import app


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_version_and_short_help_are_shown():
    assert call("--version").stdout == f"saliency-lab {sl.__version__}\n"
    assert call("-h").stdout == call("--help").stdout
    assert call("attack", "-h").stdout == call("attack", "--help").stdout


@pytest.mark.parametrize("what", ["methods", "attacks", "recipes"])
def test_a_list_is_written_as_json(what, tmp_path):
    printed = call("list", what, "--json", "-")
    table = getattr(sl, f"list_{what}")()
    assert [row["name"] for row in json.loads(printed.stdout)] == list(table.index)
    assert call("list", what, "--json", tmp_path / "list.json").exit_code == 0
    assert json.loads((tmp_path / "list.json").read_text()) == json.loads(printed.stdout)


OWN = """
def f(model, x, target):
    return 0 * x


def g(model, x, y, eps):
    return x


saliency = f
"""


@pytest.mark.parametrize(
    "command",
    [
        ("attribute", "--method", "first:f,second:f"),
        ("score", "--method", "saliency,first:saliency", "--metric", "sparseness"),
        ("score", "--method", "saliency", "--metric", "sparseness,first:sparseness"),
        ("attack", "--method", "first:g,second:g", "--eps", "0.1"),
        ("roar", "--method", "saliency,first:saliency"),
    ],
)
def test_two_of_one_name_are_refused(command, tmp_path, monkeypatch):
    """In the file of a study each has a label; on the command line one of them would be lost."""
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    name, *options = command
    subject = ["digits/standard"] if name == "roar" else ["digits/at"]
    refused = call(name, *subject, *options, "--out", tmp_path / "out")
    assert refused.exit_code == 2, refused.output
    assert "would both be listed as" in refused.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_json_has_small_numbers_in_full(tmp_path):
    """Pandas alone writes ten decimals, and 0.0 for less."""
    shared = ("--images", 40, "--out", tmp_path, "--json", "-")
    done = call(
        "score", "digits/at", "digits/standard", "--method", "saliency", "--metric", "infidelity", *shared
    )
    assert done.exit_code == 0, done.output
    written = {row["model"]: row for row in json.loads(done.stdout) if row["metric"] == "infidelity"}
    table = sl.Study.load(tmp_path).compare(baseline="at").table().query("metric == 'infidelity'")
    for row in table.to_dict("records"):
        for key in ("mean", "low", "p"):
            same = written[row["model"]][key]
            assert (pd.isna(row[key]) and same is None) or same == pytest.approx(row[key], rel=1e-12)
    assert 0 < written["standard"]["p"] < 1e-6


@pytest.mark.parametrize("methods", [["--method", "fgsm,noise"], ["--method", "fgsm", "--method", "noise"]])
def test_several_attacks_are_all_run(methods, tmp_path):
    shared = ("attack", "digits/at", "--eps", "0.05,0.1", "--images", 6, "--out", tmp_path)
    done = call(*shared, *methods, "--set", "fgsm.loss=margin", "--json", "-")
    assert done.exit_code == 0, done.output
    robust = pd.DataFrame(json.loads(done.stdout)).query("metric == 'robust_accuracy'")
    assert set(zip(robust["method"], robust["eps"], strict=True)) == {
        (name, eps) for name in ("fgsm", "noise") for eps in (0.05, 0.1)
    }
    assert (tmp_path / "robustness-fgsm.png").exists() and (tmp_path / "robustness-noise.png").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("list", "attacks", "--json", "list.csv"), "--json must end with .json"),
        (("score", "digits/at", "--json", "."), "--json must be a file, such as 'results.json'"),
        (("attack", "digits/at", "--eps", 0.1, "--json", "taken/attack.json"), "cannot write to the folder"),
        (("audit", "digits/at", "--eps", 0.1, "--json", "audit.txt"), "--json must end with .json"),
        (("reproduce", "digits", "--pack", "digits.zip"), "--pack must end with .tar.xz"),
        (("reproduce", "digits", "--page", "taken"), "cannot write to the folder 'taken'"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_computed(
    arguments, named, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file, not a folder")
    done = call(*arguments)
    assert done.exit_code == 2 and named in done.output
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]  # nothing was trained, scored or attacked


def test_more_images_than_there_are_name_the_option_and_the_number(tmp_path):
    done = call("score", "digits/at", "--images", 5000, "--out", tmp_path / "store")
    assert done.exit_code == 2 and "--images is 5,000, and 'digits' has 359 test images" in done.output
    (tmp_path / "many.toml").write_text(
        'models = { at = "digits/at" }\nmethods = ["saliency"]\nmetrics = ["sparseness"]\n'
        'data = { name = "digits", images = 5000 }\n'
    )
    done = call("study", tmp_path / "many.toml", "--plan", "--out", tmp_path / "store")
    assert done.exit_code == 2
    assert "data.images = 5,000, and the test split of 'digits' has 359" in done.output


def test_scores_are_written_as_json(tmp_path):
    shared = ("score", "digits/at", "--images", 4, "--method", "saliency,random", "--metric", "sparseness")
    done = call(*shared, "--out", tmp_path, "--json", "-")
    assert {row["method"] for row in json.loads(done.stdout)} == {"saliency", "random"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("score", "--method", "saliency", "--metric", "sparsness"), "did you mean 'sparseness'"),
        (("score", "--method", "saliency", "--metric", "sparseness", "--set", "sparseness.x=1"), "'x'"),
        (("attribute", "--method", "salency"), "did you mean 'saliency'"),
        (("attribute", "--method", "saliency,smoothgrd"), "did you mean 'smoothgrad'"),
        (("attack", "--eps", "0.1", "--method", "pgd,fgms"), "did you mean 'fgsm'"),
        (("attack", "--eps", "0.1,abc"), "abc"),
        (("attack", "--eps", "0.1", "--set", "pgd.stesp=3"), "did you mean 'steps'"),
    ],
)
def test_a_mistake_is_reported_before_any_work_and_leaves_nothing(arguments, words, tmp_path):
    verb, *rest = arguments
    store = tmp_path / "store"
    refused = call(verb, "digits/at", "--images", 6, "--out", store, *rest)
    assert refused.exit_code == 2 and words in refused.stderr
    assert not store.exists()


def test_a_corrected_command_may_ask_for_other_images(tmp_path):
    shared = ("score", "digits/at", "--method", "saliency", "--out", tmp_path)
    assert call(*shared, "--metric", "sparsness", "--images", 6).exit_code == 2
    assert call(*shared, "--metric", "sparseness", "--images", 4).exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("attack", "digits/at", "--eps", "0.1", "--images", "4", "--images", "6"),
        ("audit", "digits/at", "--eps", "0.1", "--method", "pgd", "--method=fgsm"),
        ("train", "digits/at", "--out", "a", "--out", "b"),
    ],
)
def test_an_option_of_one_value_is_given_once(arguments):
    refused = call(*arguments)
    assert refused.exit_code == 2
    assert "given 2 times and takes one value" in " ".join(refused.output.replace("│", " ").split())
