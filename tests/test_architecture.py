"""The arrows of docs/architecture.md, compared with the imports of the code."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import saliency_lab

PACKAGE = Path(saliency_lab.__file__).parent
TABLE = Path(__file__).parents[1] / "docs" / "architecture.md"


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str) -> Iterator[str]:
    """Yield the modules of this package that a module imports: anywhere, also in a function or for types."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in names]
        else:
            continue
        yield from (name for name in names if name in MODULES and name not in (module, "saliency_lab"))


def allowed() -> dict[str, set[str]]:
    """Return the packages that each package may import, read from the table of the document."""
    packages: dict[str, set[str]] = {}
    for package, arrows in re.findall(
        r"^\| `(\w+)` \|.*\| ([^|]+) \|$", TABLE.read_text(encoding="utf-8"), re.M
    ):
        above = set(packages) if arrows.startswith("all above") else set()
        packages[package] = above | set(re.findall(r"`(\w+)`", arrows))
    return packages


def cycles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the strongly connected components of more than one node (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components = set()

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            component = frozenset(stack[at:])
            del stack[at:]
            if len(component) > 1:
                components.add(component)

    for node in graph:
        if node not in index:
            visit(node)
    return components


PACKAGES = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_the_table_allows(package: str) -> None:
    may = allowed()[package] | {package}
    for module in MODULES:
        if module.split(".")[1:2] == [package]:
            found = {name.split(".")[1] for name in imports(module)}
            assert found <= may, f"{module} imports more than {sorted(may)}"


def test_the_table_lists_every_package() -> None:
    assert set(PACKAGES) == set(allowed())


def test_there_is_no_cycle_of_modules() -> None:
    graph = {module: set(imports(module)) for module in MODULES if module != "saliency_lab"}
    assert cycles(graph) == set()


def test_a_cycle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert cycles(graph) == {frozenset({"b", "c"})}


@pytest.mark.long
def test_every_warning_is_issued_by_one_function() -> None:
    """It finds the line of the user; a depth that is counted by hand is wrong after the next change."""
    calls = {module for module, path in MODULES.items() if "warnings.warn" in path.read_text("utf-8")}
    assert calls == {"saliency_lab._common.warn"}


def test_each_class_name_exists_once() -> None:
    names = [
        node.name
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_every_public_name_can_be_imported() -> None:
    for name in saliency_lab.__all__:
        assert getattr(saliency_lab, name) is not None
    assert set(saliency_lab.__all__) <= set(dir(saliency_lab))
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        saliency_lab.nope  # noqa: B018
