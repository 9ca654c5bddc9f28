from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from saliency_lab.cli.app import app
from saliency_lab.cli.power import _differences, _fewest_seeds
from saliency_lab.experiment.schema import read_declaration

STUDY = """
seeds = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
recipes = ["digits/at", "digits/asgt", "digits/asgt_random"]

[data]
name = "digits"
images = 120

[attacks.pgd]
eps = [0.1, 0.2]
steps = 40
restarts = 5

[[claims]]
question = "Does tuned ASGT gain over tuned AT?"
model = ["asgt", "asgt_random"]
over = "at"
metric = ["accuracy", "robust_accuracy"]

[claims.primary]
model = "asgt"
over = "at"
metric = "robust_accuracy"
method = "pgd"
eps = 0.2
margin = 0.02
"""


def _call(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["power", *arguments])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_a_study_with_a_primary_endpoint_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "decisive.toml"
    path.write_text(STUDY, encoding="utf-8")
    declared = read_declaration(path)
    assert declared.purpose.claims[0].primary is not None
    assert declared.purpose.claims[0].primary.margin == 0.02
    primary, secondary = _differences(declared)
    assert (len(primary), len(secondary)) == (1, 5)  # 2 pairs × (accuracy, two ε), one of them primary
    output = _call(str(path), "--runs", "3", "--difference", "2")
    first, second = output.split("5 corrected together")
    assert "primary endpoint, equivalent within 2 points" in first and " 10 120 2 points" in first
    assert "equivalent" not in second  # secondary differences are not tested for equivalence


def test_without_a_study_the_grid_is_printed() -> None:
    output = _call("--seeds", "3,5", "--images", "100", "--difference", "4,8", "--runs", "3")
    assert output.count("points") >= 8 and " 5 100 8 points" in output


def test_numbers_that_are_none_are_refused() -> None:
    result = CliRunner().invoke(app, ["power", "--seeds", "three"])
    assert result.exit_code == 2
    assert "--seeds must be whole numbers such as 0,1,2" in result.output


def test_a_share_in_place_of_a_percentage_is_refused() -> None:
    done = CliRunner().invoke(app, ["power", "--accuracy", "0.85"])
    assert done.exit_code == 2 and "--accuracy is in percent: 85, not 0.85" in done.output


def test_the_fewest_seeds_of_the_models_count(tmp_path: Path) -> None:
    recipes = STUDY.replace(
        'recipes = ["digits/at", "digits/asgt", "digits/asgt_random"]',
        'recipes = { at = "digits/at", asgt = "digits/asgt", '
        'asgt_random = { recipe = "digits/asgt_random", seeds = [0, 1, 2] } }',
    )
    path = tmp_path / "unequal.toml"
    path.write_text(recipes, encoding="utf-8")
    primary, secondary = _differences(declared := read_declaration(path))
    fewest = [_fewest_seeds(declared, [pair for *_, pair in each]) for each in (primary, secondary)]
    assert fewest == ["10", "3"]


def test_without_claims_the_accuracies_are_the_family(tmp_path: Path) -> None:
    table = STUDY.split("[[claims]]")[0].replace(
        "[data]", 'metrics = ["sparseness"]\nmethods = ["saliency", "lrp"]\n\n[data]'
    )
    path = tmp_path / "grid.toml"
    path.write_text(table, encoding="utf-8")
    primary, family = _differences(read_declaration(path))
    assert not primary and len(family) == 2 * 3  # two models against the first; accuracy and two ε
    path.write_text(table.replace("[attacks.pgd]", "[audits.pgd]"), encoding="utf-8")
    assert len(_differences(read_declaration(path))[1]) == 2 * 2


def test_a_study_whose_power_cannot_be_simulated_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    table = STUDY.split("[[claims]]")[0]
    scores = table.split("[attacks")[0].replace("[data]", 'metrics = ["road"]\nmethods = ["lrp"]\n\n[data]')
    alone = table.replace('"digits/at", "digits/asgt", "digits/asgt_random"', '"digits/at"')
    for text, message in (
        (table.replace("eps = [0.1, 0.2]", ""), "attack 'pgd' needs ε, such as eps ="),
        (alone, "this study compares nothing"),
        (scores, "this study compares scores of maps alone"),
    ):
        path.write_text(text, encoding="utf-8")
        done = CliRunner().invoke(app, ["power", str(path), "--runs", "3"])
        assert done.exit_code == 2 and message in " ".join(done.output.split())
    path.write_text(scores, encoding="utf-8")
    assert "2 corrected together" in _call(str(path), "--comparisons", "2", "--runs", "3")
