"""The arrows of docs/architecture.md, held against the imports of the code."""

import ast
import re
from pathlib import Path

import pytest

import saliency_lab

PACKAGE = Path(saliency_lab.__file__).parent
TABLE = Path(__file__).parents[1] / "docs" / "architecture.md"


def allowed():
    """Room → rooms it may import, read from the table of the document."""
    rooms = {}
    for room, arrows in re.findall(
        r"^\| `(\w+)` \|.*\| ([^|]+) \|$", TABLE.read_text(encoding="utf-8"), re.M
    ):
        above = set(rooms) if arrows.startswith("all above") else set()
        rooms[room] = above | set(re.findall(r"`(\w+)`", arrows))
    return rooms


def imported_rooms(path):
    """Rooms that a file imports at run time; what only a type checker reads is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("saliency_lab."):
            yield node.module.split(".")[1]
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("saliency_lab."))


ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_table_says(room):
    may = allowed()[room] | {room}
    for path in (PACKAGE / room).rglob("*.py"):
        assert set(imported_rooms(path)) <= may, (
            f"{path.relative_to(PACKAGE)} imports more than {sorted(may)}"
        )


def test_the_table_lists_every_room():
    assert set(ROOMS) == set(allowed())


def test_every_public_name_can_be_imported():
    for name in saliency_lab.__all__:
        assert getattr(saliency_lab, name) is not None
    assert set(saliency_lab.__all__) <= set(dir(saliency_lab))
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        saliency_lab.nope  # noqa: B018
