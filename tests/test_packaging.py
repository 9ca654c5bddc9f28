"""A wheel in an environment of its own: the recipes come along, and the command answers quickly.

And what the package imports is what it says it depends on.
"""

import ast
import json
import os
import re
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import saliency_lab as sl

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.long


def build(kind, folder):
    """Build a distribution into a folder that holds nothing else; return its file."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Environment whose only own package is the wheel; what the package depends on is lent by a path file."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build("wheel", folder)
    venv.create(folder / "env")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "env/bin/python")]
    installing = [*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(installing, check=True, capture_output=True)
    (library,) = (folder / "env/lib").glob("python*/site-packages")
    (library / "lent.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "env/bin"


def run(installed, *arguments, cwd):
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return subprocess.run(
        [installed / arguments[0], *arguments[1:]], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_an_installed_wheel_brings_recipes_studies_and_trained_networks(installed, tmp_path):
    code = (
        "import importlib.metadata, json, pathlib, saliency_lab as sl\n"
        "folder = pathlib.Path(sl.__path__[0])\n"
        "facts = {'folder': str(folder), 'version': importlib.metadata.version('saliency-lab')}\n"
        "facts['suffixes'] = sorted({path.suffix for path in (folder / 'recipes').glob('**/*.*')})\n"
        "lists = {'recipes': sl.list_recipes, 'studies': sl.list_studies, 'zoo': sl.list_zoo}\n"
        "facts |= {name: list(listed().index) for name, listed in lists.items()}\n"
        "facts['trained'] = sl.load_model('digits/at').card.recipe['name']\n"
        "print(json.dumps(facts))"
    )
    done = run(installed, "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["folder"].startswith(str(installed.parent))
    assert (facts["version"], facts["suffixes"]) == (sl.__version__, [".toml"])
    lists = {"recipes": sl.list_recipes, "studies": sl.list_studies, "zoo": sl.list_zoo}
    assert {name: facts[name] for name in lists} == {
        name: list(listed().index) for name, listed in lists.items()
    }
    assert facts["trained"] == "digits/at"


def test_an_installed_wheel_has_the_command(installed, tmp_path):
    listed = run(installed, "saliency-lab", "list", "recipes", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "digits/asgt" in listed.stdout


def test_a_source_distribution_has_the_scripts_that_its_pages_name(tmp_path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    named = re.findall(r"\b(?:benchmarks|recipes)/\w+\.py\b", "".join(p.read_text("utf-8") for p in pages))
    assert named
    assert set(named) <= files


def test_an_installed_wheel_writes_a_report(installed, tmp_path):
    code = (
        "import torch, saliency_lab as sl\n"
        "net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))\n"
        "study = sl.Study({'net': net}, (torch.rand(2, 1, 4, 4), torch.tensor([0, 1])))\n"
        "sl.report(study.attribute('saliency'), 'page.html')"
    )
    done = run(installed, "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "<style>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_help_and_import_do_not_load_torch(tmp_path):
    code = (
        "import sys, saliency_lab, saliency_lab.cli.app\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'matplotlib', 'captum', 'quantus'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert loaded.stdout.strip() == "[]", loaded.stderr


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
USED_BY_PANDAS = {"pyarrow": "to_parquet"}


def declared(requirements):
    """Names of distributions, as packaging tools compare them."""
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(path):
    """Top-level packages that a file imports; what only a type checker reads is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in for_types:
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and id(node) not in for_types:
            modules.append(node.module)
    return {module.partition(".")[0] for module in modules} - {*sys.stdlib_module_names, "saliency_lab"}


def distributions_of(paths):
    """Distribution → the files that import it; a name that several distributions share counts for each."""
    owners = packages_distributions()
    found = {}
    for path in paths:
        for module in imported(path):
            for name in {normal(owner) for owner in owners.get(module, [module])}:
                found.setdefault(name, set()).add(path.name)
    return found


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    files = sorted((ROOT / "saliency_lab").rglob("*.py"))
    found = distributions_of(files)
    needed, extras = declared(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
    optional = declared([*extras["distributed"], *extras["notebook"]])
    optional |= {"torchattacks"}  # its wheel has a module `robustbench` too, which is imported if it is there
    assert {name: files for name, files in found.items() if name not in needed | optional} == {}
    at = {name: found[name] for name in found.keys() & optional}
    handled = {
        "distributed": {"executors.py"},
        "ipython": {"progress.py"},
        "ipywidgets": {"widget.py"},
        "torchattacks": {"robustbench.py"},
    }
    assert at == handled, "an extra is imported where its absence is handled"
    through_pandas = {
        name
        for name, call in USED_BY_PANDAS.items()
        if any(f".{call}" in path.read_text(encoding="utf-8") for path in files)
    }
    assert needed - found.keys() - through_pandas == set()


def test_imports_are_found(tmp_path):
    (tmp_path / "module.py").write_text(
        "import os\nimport numpy.linalg\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import requests\n"
        "def late():\n    from skimage import io\n    import nowhere.at.all\n"
    )
    assert distributions_of([tmp_path / "module.py"]).keys() == {"numpy", "scikit-image", "nowhere"}


def test_every_benchmark_that_the_makefile_runs_has_a_short_form():
    names = re.search(
        r"for name in ([\w ]+); do .*benchmarks/", (ROOT / "Makefile").read_text(encoding="utf-8")
    )
    assert names is not None
    for name in names[1].split():
        source = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
        assert 'add_argument("--quick"' in source and '"--json"' in source, name
