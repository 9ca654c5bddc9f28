"""What the documents promise: the README's Python runs as printed, examples run, links lead somewhere."""

import re
from pathlib import Path

import pytest

import saliency_lab as sl

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SHORT = {
    "training.epochs": 1,
    "validation.images": 16,
    "validation.steps": 1,
    "attack.steps": 1,
}


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_the_ten_lines_of_the_readme_run_as_printed(tmp_path, monkeypatch):
    """As printed, but for one epoch of training instead of thirty, and ten images."""
    (block,) = python_blocks(ROOT / "README.md")
    train, sample = sl.train, sl.data.Split.sample
    monkeypatch.setattr(sl, "train", lambda *given, **named: train(*given, overrides=SHORT, **named))
    monkeypatch.setattr(sl.data.Split, "sample", lambda self, n, seed=0: sample(self, min(n, 10), seed))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block, names)
    assert len(block.strip().splitlines()) == 11
    assert set(names["comparison"].table()["model"]) == {"standard", "sgt", "at", "asgt"}
    assert (tmp_path / "runs/first").is_dir()


def test_the_example_of_an_objective_trains(tmp_path, monkeypatch):
    (block,) = [b for b in python_blocks(ROOT / "docs/training.md") if "class LogitSqueezing" in b]
    (tmp_path / "my_objectives.py").write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = SHORT | {"objective.name": "my_objectives:LogitSqueezing", "objective.weight": 0.1}
    model = sl.train("digits/standard", overrides=changes)
    assert model.card.recipe["objective"] == {"name": "my_objectives:LogitSqueezing", "weight": 0.1}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
