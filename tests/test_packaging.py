"""A wheel in an environment of its own: the recipes come along, and the command answers quickly."""

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import saliency_lab as sl

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Environment whose only own package is the wheel; what the package depends on is lent by a path file."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env/bin/python"
    installing = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(installing, check=True, capture_output=True)
    (library,) = (folder / "env/lib").glob("python*/site-packages")
    (library / "lent.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "env/bin"


def run(installed, *arguments, cwd):
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return subprocess.run(
        [installed / arguments[0], *arguments[1:]], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_an_installed_wheel_lists_its_recipes(installed, tmp_path):
    where = run(installed, "python", "-c", "import saliency_lab; print(saliency_lab.__file__)", cwd=tmp_path)
    assert str(installed.parent) in where.stdout, where.stderr
    listed = run(installed, "saliency-lab", "list", "recipes", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    names = run(
        installed, "python", "-c", "import saliency_lab as s; print(*s.list_recipes().index)", cwd=tmp_path
    )
    assert names.stdout.split() == list(sl.list_recipes().index)


def test_help_and_import_do_not_load_torch(tmp_path):
    code = (
        "import sys, saliency_lab, saliency_lab.cli.app\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'matplotlib', 'captum', 'quantus'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert loaded.stdout.strip() == "[]", loaded.stderr
