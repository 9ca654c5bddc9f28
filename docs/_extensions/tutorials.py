"""The notebooks as pages: copied into docs/tutorials, which git ignores, before Sphinx looks for sources."""

import filecmp
import shutil
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config


def copy_notebooks(app: Sphinx, config: Config) -> None:
    """Make the folder hold what ../notebooks holds; what is unchanged is not written, so not built again."""
    source, folder = Path(app.srcdir).parent / "notebooks", Path(app.srcdir) / "tutorials"
    folder.mkdir(exist_ok=True)
    notebooks = {path.name: path for path in source.glob("*.ipynb")}
    for copy in folder.glob("*.ipynb"):
        if copy.name not in notebooks:
            copy.unlink()
    for name, path in notebooks.items():
        if not (folder / name).exists() or not filecmp.cmp(path, folder / name, shallow=False):
            shutil.copyfile(path, folder / name)


def link_to_copies(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn links that lead somewhere in the repository into links between pages."""
    source[0] = source[0].replace("../notebooks/", "tutorials/")  # also ../../notebooks/ from a folder below
    if docname.startswith("tutorials/"):
        source[0] = source[0].replace("](../docs/", "](../")


def setup(app: Sphinx) -> dict[str, bool]:
    """Copy once the settings are read; mend links as pages are."""
    app.connect("config-inited", copy_notebooks)
    app.connect("source-read", link_to_copies)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
