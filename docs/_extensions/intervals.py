"""In tables, a mean and its interval, such as 98.7 % [97.1, 100.0], may stand in a line each."""

import re

from docutils import nodes
from sphinx.application import Sphinx


def keep_together(app: Sphinx, document: nodes.document) -> None:
    """Make the other spaces of such cells non-breaking."""
    for entry in document.findall(nodes.entry):
        for text in list(entry.findall(nodes.Text)):
            if re.fullmatch(r"[^\[\]]*\d(?: %)? \[[^\[\], ]+, [^\[\], ]+\]", text):
                kept = re.sub(r" (?!\[)", "\N{NO-BREAK SPACE}", text)
                text.parent.replace(text, nodes.Text(kept))


def setup(app: Sphinx) -> dict[str, bool]:
    """Change every page as it is read."""
    app.connect("doctree-read", keep_together)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
