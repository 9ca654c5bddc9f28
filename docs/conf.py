"""How the documentation is built: `make docs`. Pages are Markdown that also reads well on GitHub."""

import logging
import re
import sys
from pathlib import Path

import saliency_lab

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "saliency_lab"
author = "The saliency_lab developers"
copyright = "The saliency_lab developers; BSD-3-Clause"
version = release = saliency_lab.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinx_copybutton",
    "catalogue",
    "cross_references",
    "intervals",
    "mathml",
    "tutorials",
]
exclude_patterns = ["_build", "_extensions"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!saliency_lab\.).*")]  # other libraries' names: no inventory is fetched

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks are committed with their output
nb_ipywidgets_js = {}  # the widgets' scripts come from another host

smartquotes = False  # quotes and dashes in commands and code are copied
default_role = "literal"  # `name` in a docstring is code
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "exclude-members": "model_config"}
autodoc_type_aliases = {
    name: name for name in ("Engine", "Estimate", "HasTable", "Norm", "OwnAttack", "OwnMethod", "TargetSpec")
}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
numpydoc_show_class_members = False

html_theme = "furo"
html_title = f"saliency_lab {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_search_scorer = str(Path(__file__).parent / "_static" / "search.js")
html_show_sourcelink = False
html_copy_source = False


def readable(app, what, name, thing, options, signature, returns):
    """Leave out how to make what nobody makes by hand; write a type's alias by its name."""
    if signature is None:
        return None
    if what == "class" and "Parameters\n" not in (thing.__doc__ or ""):
        return "", None
    return re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature), returns


def setup(app):
    """Repair signatures; let a folder of pages be empty (the warning has no type to suppress it by)."""
    logging.getLogger("sphinx.sphinx.directives.other").addFilter(
        lambda record: getattr(record, "subtype", "") != "empty_glob"
    )
    app.connect("autodoc-process-signature", readable)
