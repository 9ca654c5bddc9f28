"""What the documents promise: their Python runs, their commands are taken, their links lead somewhere."""

import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path

import matplotlib as mpl
import pytest
import typer
from typer.main import get_command

import saliency_lab as sl
from saliency_lab._common import registry
from saliency_lab.cli.app import app
from saliency_lab.experiment.schema import read_declaration

ROOT = Path(__file__).parents[1]
DOCS = [
    path
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if not {"_build", "tutorials"} & set(path.relative_to(ROOT / "docs").parts)
]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *DOCS]
SHORT = {
    "training.epochs": 1,
    "validation.images": 16,
    "validation.steps": 1,
    "attack.steps": 1,
}
FILE = re.compile(r"# ([\w-]+\.(?:py|toml))\n")


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    """(language, text, line) of every Python and TOML block of a page."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(python|toml)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield found[1], found[2], text.count("\n", 0, found.start(2))


def run(page):
    """Execute a page's Python in one namespace; a block that begins with a file's name becomes that file.

    A recipe or a study in such a block must be a valid one.
    """
    names = {"__name__": "__main__"}
    for language, text, line in blocks(page):
        if named := FILE.match(text):
            Path(named[1]).write_text(text, encoding="utf-8")
            if language == "toml":
                is_study = {"recipes", "claims"} & tomllib.loads(text).keys()
                (read_declaration if is_study else sl.load_recipe)(Path(named[1]), trust=True)
        elif language == "python":
            exec(compile("\n" * line + text, str(page), "exec"), names)
    return names


@pytest.fixture
def short(tmp_path, monkeypatch):
    """Work in an empty folder, train for one epoch and draw ten images at most."""
    train, sample, audit = sl.train, sl.data.Split.sample, sl.Study.audit

    def briefly(*given, overrides=None, **named):
        return train(*given, overrides={**(overrides or {}), **SHORT}, **named)

    monkeypatch.setattr(sl, "train", briefly)
    monkeypatch.setattr(sl.data.Split, "sample", lambda self, n, seed=0: sample(self, min(n, 10), seed))
    monkeypatch.setattr(
        sl.Study, "audit", lambda self, *given, images=None, **named: audit(self, *given, **named)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {kind: dict(found) for kind, found in registry._registered.items()}
    monkeypatch.setattr(registry, "_registered", names)
    known = set(sys.modules)
    with mpl.rc_context({"backend": "agg"}):
        yield tmp_path
    for name in set(sys.modules) - known:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == tmp_path:
            del sys.modules[name]  # another page may have a file of the same name


@pytest.mark.long
def test_the_ten_lines_of_the_readme_run_as_printed(short):
    """As printed, but for one epoch of training instead of thirty, and ten images."""
    ((_, block, _),) = blocks(ROOT / "README.md")
    comparison = run(ROOT / "README.md")["comparison"]
    assert len(block.strip().splitlines()) == 11
    assert set(comparison.table()["model"]) == {"standard", "sgt", "at", "asgt"}
    assert (short / "runs/first").is_dir()


def test_the_readme_names_every_method_and_no_other():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("## What is in it")[1].split("\n##")[0]
    named = {
        family: set(re.findall(r"`(\w+)`", row))
        for family, row in re.findall(r"^\| \[([\w ]+)\]\S+ \| (.*)", table, re.MULTILINE)
    }
    families = ("Gradients", "Propagation rules", "Class activation maps", "Transformers", "Perturbation")
    assert set.union(*(named[family] for family in (*families, "Controls"))) == set(sl.list_methods().index)
    assert named["Faithfulness"] | named["Other metrics"] <= set(sl.list_metrics().index)
    assert named["Attacks"] <= set(sl.list_attacks().index)
    assert {f"digits/{name}" for name in named["Training recipes"]} <= set(sl.list_recipes().index)


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in DOCS if any(blocks(page))], ids=name_of)
def test_examples_run(page, short):
    run(page)


@pytest.fixture(scope="module")
def script():
    """The script that writes the pages of methods and metrics."""
    pytest.importorskip("sphinx", reason="the pages are made with: pip install '.[docs]'")
    spec = importlib.util.spec_from_file_location("catalogue_pages", ROOT / "docs/catalogue_pages.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_pages_of_methods_and_metrics_are_up_to_date(script):
    """What `python docs/catalogue_pages.py` would write is what is there, and each page has a picture."""
    stale = [str(path) for path, text in script.pages().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run python docs/catalogue_pages.py"
    for kind, listed in (("methods", sl.list_methods()), ("metrics", sl.list_metrics())):
        assert {path.stem for path in (ROOT / "docs" / kind).glob("*.md")} == {*listed.index, "index"}
        assert {path.stem for path in (ROOT / "docs/figures" / kind).iterdir()} == set(listed.index)
        assert set(script.NOTES[kind]) == set(listed.index)


def test_what_pages_of_metrics_say_about_known_evidence_is_in_the_table(script):
    table = script.known_evidence()
    assert len(table) > 20
    for name, verdicts in table.items():
        note = script.NOTES["metrics"][name]
        text = f"{note['prefer']} {note['misleads']}"
        failed = [test for test, verdict in verdicts.items() if verdict == "fails"]
        assert ("passes all three tests" in text) <= (failed == []), name
        assert ("fails all three tests" in text) == (len(failed) == 3), name
        named = re.search(r"fails the tests? ((?:`\w+`(?: and )?)+)", text)
        assert re.findall(r"`(\w+)`", named[1] if named else "") == (failed if len(failed) < 3 else []), name


@pytest.mark.parametrize(
    ("searched", "page"),
    [
        ("integrated gradients", "docs/methods/integrated_gradients.md"),
        ("Grad-CAM++", "docs/methods/grad_cam_plus_plus.md"),
        ("own model", "docs/howto/model.md"),
        ("pretrained", "docs/howto/photographs.md"),
    ],
)
def test_the_title_of_the_right_page_has_what_is_searched(searched, page):
    """Sphinx's search puts pages first whose title has the words."""
    titles = {name_of(each): each.read_text(encoding="utf-8").partition("\n")[0][2:].lower() for each in DOCS}
    words = searched.lower().split()
    having = [name for name, title in titles.items() if all(word in title for word in words)]
    having.sort(key=lambda name: (not titles[name].startswith(searched.lower()), len(titles[name])))
    assert having[0] == page


def commands(page):
    """Every `saliency-lab …` line of a page's blocks, continued lines joined, pipes and comments cut off."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?:    |\$ )?(?:.*; do )?saliency-lab +([^|;\n]*)", text, re.MULTILINE):
        yield shlex.split(re.sub(r"\$\{?\w+\}?", "thing", line), comments=True)


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))], ids=name_of)
def test_commands_are_taken(page):
    """Verbs and options exist and take such values; nothing is run."""
    command = get_command(app)
    context = typer.Context(command)
    for verb, *rest in commands(page):
        if verb.startswith("-"):
            continue
        known = command.get_command(context, verb)
        assert known is not None, f"{name_of(page)}: saliency-lab {verb}"
        known.make_context(verb, rest)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(((?!../../actions/)[^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
