"""The directives `catalogue` and `package`: registries and packages as pages, from the code's docstrings.

On GitHub they show as small blocks that say what stands here.
"""

import importlib
import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from math import isnan
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from docutils import nodes
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from typer.cli import get_docs_for_click
from typer.main import get_command

import saliency_lab as sl
from saliency_lab._common.checks import parse_epsilon
from saliency_lab.attacks.methods import METHODS as ATTACKS
from saliency_lab.attacks.saliency import MapAttackSettings
from saliency_lab.cli.app import app as command_line
from saliency_lab.comparison.claims import Claim, Endpoint
from saliency_lab.experiment.schema import Declaration, Retraining, SampleSpec, Trained
from saliency_lab.models import ModelCard
from saliency_lab.training import OBJECTIVES, Recipe

WORDS = {
    "Tensor": "tensor",
    "Path": "path",
    "str": "text",
    "bool": "true or false",
    "int": "whole number",
    "float": "number",
}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def bounds(metadata: Iterable[Any]) -> str:
    """Say a field's limits: `≥ 0, < 1`."""
    limits = [(sign, getattr(each, name, None)) for each in metadata for name, sign in BOUNDS.items()]
    return ", ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)


def kind(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Say in Markdown what a field takes."""
    metadata = list(metadata)
    if any(getattr(each, "func", None) is parse_epsilon for each in metadata):
        return 'number ≥ 0, or text such as `"8/255"`'
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(inner[0], inner[1:])
    if origin in (Union, types.UnionType):
        return " or ".join(kind(each) for each in inner)
    if origin is Literal:
        return ", ".join(f"`{each!r}`" for each in inner).replace("'", '"')
    if origin is list:
        return f"list of {kind(inner[0])}"
    if origin is dict or annotation is dict:
        return "table"
    if origin is tuple:
        return f"numbers {kind(inner[0]).partition(' ')[2]}".strip()
    if annotation in (None, types.NoneType):
        return "none"
    name = getattr(annotation, "__name__", str(annotation))
    return f"{WORDS.get(name, f'`{name}`')} {bounds(metadata)}".strip()


def meaning(model: type[BaseModel], key: str) -> str:
    """Find the text below a field in the source, in the class or the nearest base that has it."""
    for each in model.__mro__:
        if each.__module__.startswith("saliency_lab"):
            documented = ModuleAnalyzer.for_module(each.__module__).find_attr_docs()
            if (each.__qualname__, key) in documented:
                return " ".join(documented[each.__qualname__, key]).strip()
    return ""


def shown(field: FieldInfo) -> str:
    """Say a field's default."""
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "none"
    return f"`{value!r}`".replace("'", '"')


def settings(model: type[BaseModel], fields: Iterable[str] | None = None) -> Iterator[str]:
    """Tabulate the fields of a settings model: key, what it takes, default, meaning."""
    keys = list(model.model_fields if fields is None else fields)
    if not keys:
        return
    meanings = {key: meaning(model, key).replace("|", "\\|") for key in keys}
    explained = any(meanings.values())
    yield "| setting | takes | default |" + (" meaning |" if explained else "")
    yield "| --- | --- | --- |" + (" --- |" if explained else "")
    for key in keys:
        field = model.model_fields[key]
        row = f"| `{key}` | {kind(field.annotation, field.metadata)} | {shown(field)} |"
        yield row + (f" {meanings[key]} |" if explained else "")
    yield ""


def text(thing: Any) -> str:
    """Return a thing's docstring, unless it merely inherits one."""
    return inspect.cleandoc(thing.__doc__ or "")


def attacks() -> Iterator[str]:
    """Attacks on the prediction."""
    for name in ATTACKS:
        attack = ATTACKS[name]
        sees = {"gradient": "gradients", "logits": "logits only", "none": "nothing of the model"}[
            attack.access
        ]
        yield f"## `{name}`\n\n{text(attack.run)}\n"
        yield f"Sees {sees}. {'Takes' if attack.targeted else 'Takes no'} target class.\n"
        yield f"{text(attack.settings)}\n"
        yield from settings(attack.settings)


def map_attack() -> Iterator[str]:
    """Settings of the attack on the map."""
    yield f"{text(MapAttackSettings)}\n"
    yield from settings(MapAttackSettings)


def study_file() -> Iterator[str]:
    """Tables and keys of a study's TOML file."""
    yield from settings(Declaration, [key for key in Declaration.model_fields if key != "folder"])
    tables = {
        "[data]": SampleSpec,
        "[recipes.NAME]": Trained,
        "[roar]": Retraining,
        "[[claims]]": Claim,
        "[claims.primary]": Endpoint,
    }
    for title, model in tables.items():
        yield f"### `{title}`\n\n{text(model)}\n"
        yield from settings(model)


def zoo() -> Iterator[str]:
    """Trained networks that come with the package."""
    yield "| name | architecture | accuracy | under PGD-40 | at ε |\n| --- | --- | --- | --- | --- |"
    for name, row in sl.list_zoo().iterrows():
        accuracy = f"{row.test_clean:.1%} | {row.test_pgd40:.1%}"
        yield f"| `{name}` | `{row.architecture}` | {accuracy} | {row.eps:g} |"
    yield ""


def card() -> Iterator[str]:
    """Fields of a model's card."""
    yield from settings(ModelCard)


def objectives() -> Iterator[str]:
    """Training objectives."""
    for name in OBJECTIVES:
        objective = OBJECTIVES[name]
        yield f"### `{name}`\n\n{text(objective)}\n"
        yield from settings(objective)


def recipe() -> Iterator[str]:
    """Tables and keys of a recipe."""
    kinds = {key: field.annotation for key, field in Recipe.model_fields.items() if key != "objective"}
    tables = {
        key: each for key, each in kinds.items() if inspect.isclass(each) and issubclass(each, BaseModel)
    }
    yield from settings(Recipe, [key for key in kinds if key not in tables])
    for key, model in tables.items():
        yield f"### `[{key}]`\n\n{text(model)}\n"
        yield from settings(model)


def recipes() -> Iterator[str]:
    """Bundled recipes: tasks and objectives."""
    table = sl.list_recipes()
    yield "| task | data | architecture | ε | epochs |\n| --- | --- | --- | --- | --- |"
    for task, rows in table.groupby(table.index.str.rpartition("/").get_level_values(0), sort=False):
        row = rows.iloc[0]
        yield f"| `{task}` | `{row.data}` | `{row.model}` | {row.eps:.3g} | {row.epochs} |"
    yield "\n| objective | what it is |\n| --- | --- |"
    first = table.index[0].rpartition("/")[0]
    for name, description in table.loc[table.index.str.startswith(f"{first}/"), "description"].items():
        yield f"| `{name.rpartition('/')[2]}` | {description} |"
    yield ""


def datasets() -> Iterator[str]:
    """Data sets by name."""
    yield "| name | what it is | image | classes |\n| --- | --- | --- | --- |"
    for name, row in sl.list_datasets().iterrows():
        yield f"| `{name}` | {row.description} | {row.image} | {row.classes} |"
    yield ""


def models() -> Iterator[str]:
    """Architectures by name."""
    yield "| name | what it is | parameters, 10 classes of 28×28 |\n| --- | --- | --- |"
    for name, row in sl.list_models().iterrows():
        count = "" if isnan(row.parameters) else f"{row.parameters:,.0f}"
        yield f"| `{name}` | {row.description} | {count} |"
    yield ""


def cli() -> Iterator[str]:
    """Verbs of the command line, as typer documents them."""
    command = get_command(command_line)
    page = get_docs_for_click(obj=command, ctx=typer.Context(command), name="saliency-lab")
    yield page.partition("\n")[2]  # the page has a title


CATALOGUES: dict[str, Callable[[], Iterator[str]]] = {
    each.__name__: each
    for each in (
        attacks,
        map_attack,
        objectives,
        recipe,
        recipes,
        datasets,
        models,
        zoo,
        card,
        study_file,
        cli,
    )
}


def grouped(names: Iterable[str], key: Callable[[str], str]) -> Iterator[tuple[str, list[str]]]:
    """Gather names by a key, both in the order of their first appearance."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    yield from groups.items()


def public(package: str) -> Iterator[str]:
    """List the public names of a package, functions first, by their shortest import path."""
    top = [name for name, home in sl._PACKAGES.items() if home == package]
    module = importlib.import_module(f"saliency_lab.{package}")
    below = [name for name in getattr(module, "__all__", []) if name not in top and name.upper() != name]
    named = {f"saliency_lab.{name}": getattr(module, name) for name in top}
    named |= {f"saliency_lab.{package}.{name}": getattr(module, name) for name in below}
    yield "```{eval-rst}"
    for name, thing in sorted(named.items(), key=lambda pair: inspect.isclass(pair[1])):
        yield f".. auto{'class' if inspect.isclass(thing) else 'function'}:: {name}"
        if inspect.isclass(thing) and issubclass(thing, (BaseModel, tuple)) and not inspect.isabstract(thing):
            yield "   :no-members:"  # fields, which a catalogue tells
        elif inspect.isclass(thing) and thing.__base__.__module__.startswith("saliency_lab.study"):
            yield "   :inherited-members:"
    yield "```"


class Package(SphinxDirective):
    """The public names of one package with their docstrings."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse the directives that autodoc answers."""
        return self.parse_text_to_nodes("\n".join(public(self.arguments[0])))


class Catalogue(SphinxDirective):
    """The text of one catalogue, parsed as part of the page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse what the catalogue says."""
        make = CATALOGUES[self.arguments[0]]
        return self.parse_text_to_nodes("\n".join(make()), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive. What it shows is in the code, so its pages are read anew on every build."""
    app.add_directive("catalogue", Catalogue)
    app.add_directive("package", Package)
    app.connect(
        "env-get-outdated",
        lambda app, env, added, changed, removed: sorted(
            name for name in env.found_docs if name.startswith("reference/")
        ),
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
