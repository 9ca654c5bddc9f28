"""The page of a declared study: its numbers are the study's, its answers those of the claims."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import saliency_lab as sl
from saliency_lab._common.files import write_table
from saliency_lab.cli.app import app
from saliency_lab.experiment import list_studies
from saliency_lab.experiment.run import run_declared
from saliency_lab.experiment.schema import bundled_study, read_declaration
from saliency_lab.experiment.trainings import training_runs
from saliency_lab.models import read_card
from saliency_lab.study import Study
from saliency_lab.study.sample import read_sample
from saliency_lab.training import list_recipes, load_recipe

TOML = """
title = "Small | study"
methods = ["saliency"]
metrics = ["sparseness", "masked_input_accuracy"]
overrides = { "training.epochs" = 1, "validation.images" = 16, "validation.steps" = 1 }
data = { name = "digits", images = 20 }
attacks = { pgd = { eps = [0.02, 0.1], steps = 2 } }
audits = { pgd = { eps = 0.02, images = 8, steps = 2 } }

[recipes]
standard = "digits/standard"
sgt = "digits/sgt"
wild = { recipe = "digits/standard", overrides = { "optimizer.learning_rate" = 1e9 } }

[models]
given = ["digits/standard"]

[[claims]]
question = "Is SGT more robust?"
model = "sgt"
over = "standard"
metric = ["robust_accuracy", "sparseness"]
eps = 0.02
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "small.toml").write_text(TOML)
    arguments = ["study", str(folder / "small.toml"), "--out", str(folder / "store"), "--page", str(folder)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output  # one run collapses
    return folder


def test_tables_and_figures_that_a_study_no_longer_has_are_deleted(tmp_path: Path) -> None:
    study, store, page = tmp_path / "few.toml", tmp_path / "store", tmp_path / "page"
    few = """
models = { at = "digits/at", sgt = "digits/sgt" }
methods = ["saliency", "random"]
metrics = ["sparseness"]
data = { name = "digits", images = 10 }
"""
    attacked = "[attacks.fgsm]\neps = 0.1\n[audits.fgsm]\neps = 0.1\nimages = 4\n"

    def run(text: str) -> set[str]:
        study.write_text(text)
        done = CliRunner().invoke(app, ["study", f"{study}", "--out", f"{store}", "--page", f"{page}"])
        assert done.exit_code == 0, done.output
        assert sl.verify(store).empty
        shown = set(re.findall(r"\]\((few-.*)\)", (page / "few.md").read_text(encoding="utf-8")))
        assert {path.name for path in page.glob("few-*")} - {"few-mine.svg", "few-more-maps.png"} == shown
        return shown

    whole = run(few + attacked)
    assert "few-robustness-fgsm.svg" in whole
    write_table(store / "tables" / "retraining", pd.DataFrame({"procedure": ["ROAR"]}))
    (store / "tables" / "audits.md").write_text("mine")
    for name in ("few-mine.svg", "few-more-maps.png"):  # the user's, and of another study's page
        (page / name).write_text("other")
    less = run(few.replace("images = 10", "images = 12"))
    assert less < whole and "few-robustness-fgsm.svg" not in less
    kept = {"scores.csv", "scores.parquet", "digests.json", "audits.md"}
    assert {path.name for path in (store / "tables").iterdir()} == kept
    assert (page / "few-mine.svg").exists() and (page / "few-more-maps.png").exists()
    assert run(few.replace("images = 10", "images = 12") + attacked) == whole


@pytest.mark.long
def test_the_page_holds_the_numbers_of_the_study(written: Path) -> None:
    page = (written / "small.md").read_text(encoding="utf-8")
    study = Study.load(written / "store")
    robust = study.robustness.query("model == 'sgt' and eps == 0.02")["robust"].mean()
    row = next(line for line in page.splitlines() if line.startswith("| sgt | ") and "%" in line)
    assert f"{100 * robust:.1f} %" in row
    score = study.scores.query("model == 'sgt' and metric == 'sparseness'")["score"].mean()
    shown = next(line for line in page.split("### sparseness")[1].splitlines() if line.startswith("| sgt"))
    mean = float(re.findall(r"\d+\.\d+", shown)[0])
    assert mean == pytest.approx(score, abs=0.01)
    assert "### 1. Is SGT more robust?" in page
    assert page.count("| sgt − standard |") == 2  # two measures of one ε
    assert "| training | wild (seed 0) | TrainingError" in page
    assert "May these be believed?" in page
    card = read_card("digits/standard")
    assert f"| given | digits/standard | small_cnn | 0 | `{card.sha256[:12]}` |" in page
    assert page.startswith("# Small | study\n")
    assert "| sgt | objective.name = sgt, objective.weight = 1.0" in page
    assert "| metric | masked_input_accuracy | steps = 28, baseline = black, absolute = False" in page
    assert "| attack | pgd | eps = [0, 0.02" in page
    assert "no surrogate model was given" not in page  # the study's other networks are surrogates


@pytest.mark.long
def test_its_figures_are_there_and_writing_it_again_changes_nothing(written: Path) -> None:
    page = (written / "small.md").read_text(encoding="utf-8")
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    assert {"small-robustness-pgd.svg", "small-masking.svg", "small-maps.png"} <= set(named)
    before = {name: (written / name).read_bytes() for name in [*named, "small.md"]}
    arguments = ["study", str(written / "small.toml"), "--out", str(written / "store")]
    CliRunner().invoke(app, [*arguments, "--page", str(written)])
    assert {name: (written / name).read_bytes() for name in before} == before


def test_figures_of_labels_in_other_letters_are_files_of_their_own(tmp_path: Path) -> None:
    attacks = "\n".join(
        f'[attacks."{label}"]\nattack = "fgsm"\neps = [{eps}]'
        for label, eps in (("стиль", 0.1), ("攻击", 0.3))
    )
    file = tmp_path / "two.toml"
    file.write_text(
        f'data = {{ name = "digits", images = 10 }}\nmodels = {{ at = "digits/at" }}\n{attacks}\n',
        encoding="utf-8",
    )
    result = CliRunner().invoke(
        app, ["study", str(file), "--out", str(tmp_path / "store"), "--page", str(tmp_path / "page")]
    )
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page/two.md").read_text(encoding="utf-8")
    named = re.findall(r"!\[Accuracy under [^\]]+\]\(([^)]+)\)", page)
    assert len(set(named)) == 2
    first, second = ((tmp_path / "page" / name).read_bytes() for name in named)
    assert first != second


def test_marks_and_unusual_entries_are_explained_where_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "scored.toml"
    for models in ('at = "digits/at"', 'at = "digits/at"\nsgt = "digits/sgt"'):
        file.write_text(
            'methods = ["saliency", "constant"]\nmetrics = ["complexity"]\n'
            f'data = {{ name = "digits", images = 6 }}\n[models]\n{models}\n'
        )
        result = CliRunner().invoke(
            app, ["study", str(file), "--out", str(tmp_path / "store"), "--page", str(tmp_path)]
        )
        assert result.exit_code == 0, result.output
        page = (tmp_path / "scored.md").read_text(encoding="utf-8")
        table = page.split("### complexity")[1].split("##")[0]
        assert "A mean without an interval: too few of its values differ" in table
        assert page.count("Bold: the best") == table.count("Bold: the best") == int("sgt" in models)


@pytest.mark.parametrize("name", list_studies().index)
def test_a_bundled_study_is_valid(name: str, tmp_path: Path) -> None:
    declared = read_declaration(bundled_study(name))
    runs = training_runs(declared, sl.load_dataset("digits"), tmp_path)
    assert len({run.folder for run in runs}) == len(runs)
    images = declared.data.images
    x, y, masks = (
        torch.zeros(images, 1, 8, 8),
        torch.zeros(images, dtype=torch.long),
        torch.ones(images, 1, 8, 8),
    )
    requests = declared.requests(read_sample((x, y, masks)))
    assert requests.metrics or requests.attacks
    for run in runs:
        bundled = load_recipe(declared.recipes[run.model].recipe)
        assert run.recipe.data == bundled.data


def test_a_study_that_extends_a_bundled_one_is_planned_and_an_unknown_one_named(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(
        'extends = "digits"\nrecipes = ["digits/standard"]\nbaseline = "standard"\nseeds = [0]\n'
        'methods = ["saliency"]\nmetrics = ["sparseness"]\nattacks = {}\naudits = {}\nclaims = []\n'
        "data = { images = 8 }\n"
    )
    arguments = ["study", str(tmp_path / "small.toml"), "--plan", "--out", str(tmp_path / "store")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "of work for one process" in result.output
    assert "warning" not in result.output  # that untrained networks are alike, for one
    result = CliRunner().invoke(app, ["reproduce", "digit"])
    assert result.exit_code == 2
    assert "did you mean 'digits'?" in result.output


def test_the_validation_split_is_not_the_test_split(tmp_path: Path) -> None:
    path = tmp_path / "val.toml"
    shown = {}
    for split in ("test", "val"):
        path.write_text(
            f"""
            methods = ["saliency"]
            metrics = ["sparseness"]
            overrides = {{ "training.epochs" = 1, "validation.images" = 16, "validation.steps" = 1 }}
            recipes = ["digits/standard"]
            data = {{ name = "digits", images = 12, split = "{split}" }}
            """
        )
        shown[split] = run_declared(read_declaration(path), tmp_path / "store")[0].x
    assert not any((image == shown["test"]).flatten(1).all(1).any() for image in shown["val"])


ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in sorted((ROOT / "docs/results").glob("*.md"))
    if page.name not in ("README.md", "pooled.md")  # of no single study
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_of_the_documentation_is_of_its_study_as_it_is(page: Path, tmp_path: Path) -> None:
    declared = read_declaration(bundled_study(page.stem))
    text = page.read_text(encoding="utf-8")
    trained = text.split("## What was trained")[1].split("\n<details>")[0]
    rows = [line.split(" | ") for line in trained.splitlines() if line.startswith("| ")][2:]
    written = [(row[0].removeprefix("| "), int(row[3]), int(row[4])) for row in rows]
    lacking = re.search(r"There are no results here of (.+), which the study also declares", text)
    named = re.findall(r"(\w+)(?: \(seeds? ([\d, ]+)\))?(?:, |$)", lacking.group(1)) if lacking else []
    absent = {model: [int(seed) for seed in seeds.split(", ") if seed] for model, seeds in named}
    runs = [
        run
        for run in training_runs(declared, sl.load_dataset("digits"), tmp_path)
        if run.model not in absent or (absent[run.model] and run.seed not in absent[run.model])
    ]
    assert written == [(run.model, run.seed, run.recipe.training.epochs) for run in runs]
    asked = re.findall(r"^### \d+\. (.+)$", text, re.MULTILINE)
    assert asked == [claim.question for claim in declared.claims]
    assert declared.about.strip() in text


def _table(file: str, head: str) -> list[list[str]]:
    """The rows of a Markdown table that begins with `head`, its own head first."""
    text = (ROOT / file).read_text(encoding="utf-8")
    lines = text[text.index(head) :].split("\n\n")[0].splitlines()
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]
    return [rows[0], *rows[2:]]


def test_the_table_of_the_recipes_is_that_of_their_page() -> None:
    page = "docs/results/mnist-recipes.md"
    trained = _table(page, "| model | recipe | network")
    at = trained[0].index("s/epoch")
    expected = [
        [*row, str(min(int(run[at]) for run in trained[1:] if run[0] == row[0]))]
        for row in _table(page, "| model | unattacked")[1:]
    ]
    assert _table("docs/training.md", "| recipe | unattacked")[1:] == expected
    known = {name.removeprefix("mnist/") for name in list_recipes().index if name.startswith("mnist/")}
    assert {row[0] for row in expected} == known


def test_links_of_the_pages_are_links() -> None:
    for page in (ROOT / "docs/results").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert "]\\(" not in text  # escaped
        defined = set(re.findall(r"^\[([^\]]+)\]: ", text, re.MULTILINE))
        assert (
            page.name != "pooled.md" or set(re.findall(r"^\| \[([^\]]+)\] \|", text, re.MULTILINE)) <= defined
        )
