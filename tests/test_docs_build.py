"""The documentation as a site: built without a warning, complete, and readable without a network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import saliency_lab as sl

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.long
pytest.importorskip("sphinx", reason="the documentation is built with: pip install '.[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "docs", str(folder / "html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder / "html"


def test_every_public_name_has_its_place_in_the_reference(site):
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, path: path)
    documented = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    missing = {f"saliency_lab.{name}" for name in sl.__all__} - documented
    assert missing == set(), "give each a line in docs/reference"


def test_every_setting_of_a_method_stands_on_its_page(site):
    from saliency_lab.attribution.catalogue import METHODS

    for name in METHODS:
        page = (site / f"methods/{name}.html").read_text(encoding="utf-8")
        for key in METHODS[name].settings.model_fields:
            assert f">{key}<" in page


def test_every_notebook_is_a_page(site):
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks == {path.stem for path in (site / "tutorials").glob("*.html")}


def test_pages_load_nothing_from_another_host(site):
    loads = re.compile(r"<(?:script|img|iframe|link|source)\b[^>]*?(?:src|href)=\"((?:https?:)?//[^\"]*)\"")
    for page in site.rglob("*.html"):
        assert loads.findall(page.read_text(encoding="utf-8")) == [], page.name
    for style in site.rglob("*.css"):
        found = re.findall(
            r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')]+)", style.read_text(encoding="utf-8")
        )
        assert found == [], style.name


def test_the_citation_names_this_version():
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == sl.__version__
    assert f"{{{sl.__version__}}}" in (ROOT / "docs/citing.md").read_text(encoding="utf-8")


def test_formulas_are_mathml(site):
    page = (site / "statistics.html").read_text(encoding="utf-8")
    assert "<math" in page
    assert "MathJax" not in page
