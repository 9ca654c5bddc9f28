"""Types in signatures lead to the public name of the same thing: `result.Attributions` to `Attributions`."""

import pydoc

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def public_name(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, contents: nodes.TextElement
) -> nodes.Node | None:
    """Resolve a name of this package by its last part; one that exists but is not public is plain text."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("saliency_lab."):
        return None
    name = target.rpartition(".")[2]
    objects = env.domains.python_domain.objects
    found = {full for full in objects if full.rpartition(".")[2] == name and objects[full].objtype == "class"}
    if len(found) != 1:
        return contents if pydoc.locate(target) is not None else None
    (full,) = found
    uri = app.builder.get_relative_uri(node["refdoc"], objects[full].docname)
    link = nodes.reference("", "", contents, internal=True, reftitle=full)
    link["refuri"] = f"{uri}#{objects[full].node_id}"
    return link


def setup(app: Sphinx) -> dict[str, bool]:
    """Ask for references that Sphinx did not resolve."""
    app.connect("missing-reference", public_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
