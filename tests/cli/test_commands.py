"""The command line as a user meets it: exit codes, messages, files."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from typer.testing import CliRunner

from saliency_lab.cli.app import app

QUICK = [
    *("--set", "training.epochs=1", "--set", "validation.images=16", "--set", "validation.steps=1"),
    *("--set", "training.batch_size=32"),
]


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
    "verb", ["demo", "train", "attribute", "score", "attack", "audit", "list", "download", "doctor"]
)
def test_every_verb_has_help(verb):
    result = call(verb, "--help")
    assert result.exit_code == 0
    assert verb in result.stdout


@pytest.mark.parametrize("what", ["datasets", "models", "recipes", "methods", "metrics", "attacks"])
def test_list(what):
    result = call("list", what)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 4


def test_doctor_says_what_is_missing_and_how_to_get_it(tmp_path):
    result = call("doctor", "--data-root", tmp_path)
    assert result.exit_code == 0
    for word in ("torch", "cpu", "built in", "saliency-lab download", "mnist"):
        assert word in result.stdout


def test_train_of_several_seeds_makes_a_folder_each(tmp_path):
    result = call("train", "digits/standard", "--seeds", "0,1", "--out", tmp_path, *QUICK)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-0", "seed-1"]


def test_attribute_writes_maps_and_a_picture(models, tmp_path):
    result = call(
        *("attribute", *models, "--method", "saliency", "--method", "integrated_gradients", "--images", 8),
        *("--set", "integrated_gradients.steps=4", "--out", tmp_path),
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "maps/sgt-integrated_gradients.safetensors").exists()
    assert (tmp_path / "maps-saliency.png").stat().st_size > 10_000


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "mnist/agst"], ["unknown recipe 'mnist/agst'", "did you mean 'mnist/asgt'"]),
        (["train", "digits/at", "--set", "attack.epss=1"], ["'epss'", "did you mean 'eps'"]),
        (["train", "digits/at", "--set", "attack.eps=-1"], ["attack.eps", "-1"]),
        (["train", "digits/at", "--set", "nonsense"], ["key=value"]),
        (["train", "digits/at", "--seeds", "0,x"], ["--seeds", "0,x"]),
        (["train", "digits/at", "--devices", "two"], ["--devices", "two"]),
        (["train", "mnist/at", "--data-root", "/nowhere"], ["/nowhere", "download"]),
        (["train", "digits/at", "--out", "/proc/nowhere"], ["/proc/nowhere", "cannot write"]),
        (["attack", "/nowhere/model", "--eps", "0.1"], ["/nowhere/model", "no checkpoint"]),
        (["attack", "MODEL", "--eps", "8/0"], ["eps", "8/0"]),
        (["attack", "MODEL", "--eps", "0.1", "--method", "pdg"], ["'pdg'", "did you mean 'pgd'"]),
        (["attack", "MODEL", "--eps", "0.1", "--set", "fgsm.steps=1"], ["'fgsm'"]),
        (["score", "MODEL", "--metric", "pixelflipping"], ["did you mean 'pixel_flipping'"]),
        (["score", "MODEL", "--images", "100000"], ["100000", "359"]),
        (["attribute", "MODEL", "--method", "salency"], ["did you mean 'saliency'"]),
        (["attribute", "MODEL", "--set", "steps=3"], ["NAME.steps"]),
        (["download", "minst"], ["did you mean 'mnist'"]),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_2(models, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = call(*[models[0] if argument == "MODEL" else argument for argument in arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in result.stderr


def test_collapse_is_said_and_no_model_is_left(tmp_path):
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
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    until = time.monotonic() + 60
    while not (tmp_path / "run/state.pt").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "interrupted; the same command again goes on" in told
    assert not (tmp_path / "run/model.safetensors").exists()
    again = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr
    assert "goes on at epoch" in again.stderr
