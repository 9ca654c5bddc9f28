"""Recipes: validated TOML files, which share parts through `extends`."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field, field_serializer, field_validator, model_validator

from saliency_lab._common.arguments import check_flag, check_mapping, check_path, check_text
from saliency_lab._common.errors import InputError, RecipeError, unknown_name
from saliency_lab._common.fingerprints import canonical
from saliency_lab._common.hashing import fingerprint
from saliency_lab._common.html import facts
from saliency_lab._common.plugins import check_names
from saliency_lab._common.settings import Settings, parse_settings
from saliency_lab._common.text import plain_text
from saliency_lab._common.toml_files import merge_tables, read_extended
from saliency_lab.training.objectives import OBJECTIVES, Objective, Standard
from saliency_lab.training.schedules import Schedule
from saliency_lab.training.step import AttackSpec

Side = Annotated[int, Field(ge=1)]


class DataSource(Settings):
    """The data set: a built-in or registered name, or `module:attribute`."""

    name: str
    root: str | None = None
    """Folder of the files; None is $SALIENCY_LAB_DATA, then ./data."""
    image_size: Side | Annotated[tuple[Side, Side], Field(strict=False)] | None = None
    """Side, or (height, width), to which the images of `image_folder` are resized; None leaves them."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1


class DataSpec(DataSource):
    """The data set, and the augmentation of its batches."""

    augmentation: Literal["none", "crop_flip"] = "none"
    """`crop_flip` shifts each image by up to 4 pixels, filling with zeros, and mirrors half of the images."""


class ModelSpec(Settings):
    """The architecture: a built-in or registered name, or `module:attribute`."""

    name: str = "small_cnn"


class OptimizerSpec(Settings):
    """The optimiser and its learning rate over time."""

    name: Literal["adam", "adamw", "sgd", "adadelta"] = "adam"
    """`adadelta` is the optimiser of the SGT authors' MNIST script, with learning rate 1 (Zeiler 2012)."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """The momentum of `sgd`; the others ignore it."""
    schedule: Schedule = "constant"


class TrainingSpec(Settings):
    """The training loop."""

    epochs: Annotated[int, Field(ge=1)] = 5
    batch_size: Annotated[int, Field(ge=1)] = 128
    """The number of images per step over all processes; an incomplete last batch is left out."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    channels_last: bool = False
    compile: bool = False
    """Compile the passes of training by torch's inductor, which takes up to a few minutes at the start;
    attacks and saliencies run in a copy with folded batch normalisation, validation in the model as it is.
    Losses differ by rounding from those without it."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """If above 0, an exponential moving average of the weights is validated and kept.

    Early on the decay is smaller, (1 + t) / (10 + t) after t steps, so that the first steps are forgotten.
    """
    select: Literal["last", "clean", "robust"] = "last"
    """Keep the last epoch, or the best one by clean or robust validation accuracy."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many epochs without a better `select` accuracy."""
    collapse: Literal["refuse", "keep"] = "refuse"
    """What becomes of a model that predicts one class for nearly all validation images: `refuse` ends the
    training with an error; `keep` trains to the end and keeps the model with a warning, for a comparison
    that must not leave out failed runs."""

    @model_validator(mode="after")
    def _patience_needs_a_criterion(self) -> TrainingSpec:
        if self.patience is not None and self.select == "last":
            raise ValueError('\'patience\' needs select = "clean" or "robust"')
        return self


class ValidationSpec(Settings):
    """The validation after each epoch: clean accuracy, and accuracy under PGD at `attack.eps`."""

    images: Annotated[int, Field(ge=1)] = 1000
    """The largest number of validation images, stratified by class."""
    steps: Annotated[int, Field(ge=1)] = 10


_ADDED = {"training": ("collapse", "compile")}
"""Recipe keys that the first release did not have, by table."""


class Recipe(Settings):
    """Everything that determines a training run, except the hardware."""

    name: str = "unnamed"
    description: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    data: DataSpec
    model: ModelSpec = ModelSpec()
    objective: Objective = Standard()
    attack: AttackSpec = AttackSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    training: TrainingSpec = TrainingSpec()
    validation: ValidationSpec = ValidationSpec()

    @field_validator("name")
    @classmethod
    def _name_of_a_folder(cls, value: str) -> str:
        """Refuse a name that would lead out of the folder `runs`, where `train` of the shell puts it."""
        parts = value.replace("\\", "/").split("/")
        if {"", ".", ".."} & set(parts) or PureWindowsPath(value).drive or plain_text(value) != value:
            raise InputError(
                f"must be a plain name, such as 'mine/asgt', as a folder is named after it, not {value!r}"
            )
        return value

    @field_validator("objective", mode="before")
    @classmethod
    def _named_objective(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        given = dict(value)
        name = given.pop("name", None)
        if name is None:
            raise InputError(f"give the objective's name, one of {', '.join(OBJECTIVES)}")
        kind = OBJECTIVES.find(name)
        return parse_settings(kind, given, of=f"objective '{kind.name}'")

    def portable(self) -> dict[str, Any]:
        """Return everything that determines the run as JSON values: all but the folder of the data.

        A key that the first release did not have is left out at its default, which is what that release did.
        So runs of that release are recognised.
        """
        table = self.model_dump(mode="json", exclude={"data": {"root"}})
        for part, keys in _ADDED.items():
            defaults = type(getattr(self, part)).model_fields
            for key in keys:
                if getattr(getattr(self, part), key) == defaults[key].default:
                    del table[part][key]
        return table

    def own_code(self) -> dict[str, str]:
        """Return the fingerprint of an objective that is not built in, whose code decides the run as well."""
        kind = type(self.objective)
        if OBJECTIVES.built_in.get(kind.name) is kind:
            return {}
        return {"objective": fingerprint(canonical(kind))}

    def _repr_html_(self) -> str:
        rows = {"name": self.name, "description": self.description, "seed": str(self.seed)}
        for part, table in self.model_dump().items():
            if isinstance(table, Mapping):
                rows[part] = ", ".join(f"{key} = {value!r}" for key, value in table.items())
        return facts("recipe", rows)

    @field_serializer("objective")
    def _dump_objective(self, value: Objective) -> dict[str, Any]:
        return {"name": value.name, **value.model_dump()}


def recipes_folder() -> Path:
    """Return the folder of the bundled recipes: in the installed package, or next to it in a checkout."""
    packaged = Path(str(resources.files("saliency_lab"))) / "recipes"
    return packaged if packaged.is_dir() else packaged.parent.parent / "recipes"


def _parts(kind: Literal["tasks", "objectives"]) -> dict[str, Path]:
    return {
        path.stem: path
        for path in sorted((recipes_folder() / kind).glob("*.toml"), key=lambda path: path.stem)
    }


def _bundled() -> dict[str, tuple[Path, Path]]:
    """Return the two files of each recipe TASK/OBJECTIVE; the keys of the task take precedence."""
    return {
        f"{task}/{objective}": (below, above)
        for task, above in _parts("tasks").items()
        for objective, below in _parts("objectives").items()
    }


def list_recipes() -> pd.DataFrame:
    """List the bundled recipes.

    Returns
    -------
    DataFrame
        Description, data set, architecture, ε and epochs, indexed by name.

    Examples
    --------
    >>> list_recipes().loc["mnist/asgt", "model"]
    'small_cnn'
    """
    rows = []
    for name in _bundled():
        recipe = load_recipe(name)
        rows.append(
            {
                "name": name,
                "description": recipe.description,
                "data": recipe.data.name,
                "model": recipe.model.name,
                "eps": recipe.attack.eps,
                "epochs": recipe.training.epochs,
            }
        )
    return pd.DataFrame(rows).set_index("name")


def load_recipe(
    source: str | Path | Mapping[str, Any] | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    trust: bool = False,
) -> Recipe:
    """Read and validate a recipe.

    Parameters
    ----------
    source : str, path, mapping or Recipe
        A bundled name ("mnist/asgt"), the path of a TOML file, a whole recipe as a mapping, or a Recipe.
    overrides : mapping, optional
        Dotted keys and their values, such as ``{"attack.eps": "8/255"}``.
    trust : bool
        Whether to import code that a file names as `module:attribute`, which runs it.

    Returns
    -------
    Recipe
        Everything that determines a training run, validated and immutable.

    Raises
    ------
    RecipeError
        If a file is missing or no TOML, a key is unknown, or a value has a wrong type or is out of range;
        or if a file names code and is not trusted.

    Examples
    --------
    >>> load_recipe("mnist/asgt", {"attack.eps": "8/255"}).objective.name
    'asgt'
    """
    check_flag(trust, "trust")
    changes = check_overrides(overrides)
    if not isinstance(source, Recipe | Mapping):
        try:
            source = check_path(source, "recipe")
        except InputError as error:
            raise RecipeError(f"{error}; list_recipes() names the bundled recipes") from None
        if source.suffix != ".toml" and source.as_posix() not in _bundled():
            raise unknown_name("recipe", source.as_posix(), _bundled())
    try:
        table, where = _table(source, changes)
        return parse_settings(Recipe, check_names(table, trust=trust), of=where)
    except InputError as error:
        raise RecipeError(str(error)) from None


def _table(
    source: Path | Mapping[str, Any] | Recipe, changes: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Return the whole table of a recipe, and what messages call it."""
    if isinstance(source, Recipe):
        table, where = source.model_dump(), f"recipe '{source.name}'"
        if not any(key.split(".")[0] == "objective" for key in changes):
            table["objective"] = source.objective  # its class may have no name
    elif isinstance(source, Mapping):
        table, where = check_mapping(source, "recipe", '{"data": {"name": "mnist"}}'), "recipe"
    elif (name := source.as_posix()) in _bundled():
        below, above = _bundled()[name]
        table, where = _merge(_read(below), _read(above)), f"recipe '{name}'"
        table["name"] = name
    else:
        table, where = _read(source), f"recipe '{source}'"
        table.setdefault("name", source.stem)
    return _merge(table, nested(changes)), where


def _read(path: Path) -> dict[str, Any]:
    """Read a TOML file and merge it with the files that it extends.

    These are files next to it, a bundled recipe ("mnist/asgt") or a part of one ("tasks/mnist"). A file that
    extends a user's file does not inherit its name and description.
    """
    return read_extended(path, "recipe", find=_extended, merge=_merge, inherit=_without_name)


def _without_name(path: Path, table: dict[str, Any]) -> dict[str, Any]:
    if path.resolve().is_relative_to(recipes_folder().resolve()):
        return table
    return {key: value for key, value in table.items() if key not in ("name", "description")}


def _extended(path: Path, base: str) -> tuple[Path, ...]:
    """Return the files that `extends = base` in `path` refers to."""
    sibling = path.parent / f"{base.removesuffix('.toml')}.toml"
    part = recipes_folder() / f"{base}.toml"
    if sibling.is_file():
        return (sibling,)
    if part.is_file():
        return (part,)
    if base in _bundled():
        return _bundled()[base]
    parts = [f"{kind}/{name}" for kind in ("tasks", "objectives") for name in _parts(kind)]
    near = difflib.get_close_matches(base, [*_bundled(), *parts], n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'?" if near else "list_recipes() names the bundled ones"
    raise InputError(f"there is no recipe file '{sibling}', which '{path}' extends; {hint}")


def _merge(below: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """Merge tables key by key. If the objective changes, none of the keys of the lower objective remain."""
    lower, upper = below.get("objective"), table.get("objective")
    if isinstance(lower, Mapping) and isinstance(upper, Mapping):
        name = lower.get("name")
        if upper.get("name", name) != name:
            below = {key: value for key, value in below.items() if key != "objective"}
    return merge_tables(below, table)


def check_overrides(overrides: object) -> dict[str, Any]:
    """Return a copy of the overrides as a dictionary; empty for None."""
    if overrides is None:
        return {}
    try:
        return check_mapping(overrides, "overrides", '{"attack.eps": "8/255"}')
    except InputError as error:
        raise RecipeError(str(error)) from None


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested tables, independently of their order."""
    tables: dict[str, Any] = {}
    for key, value in overrides.items():
        *heads, last = key.split(".")
        table = tables
        for head in heads:
            table = table.setdefault(head, {})
            if not isinstance(table, dict):
                raise RecipeError(f"'{head}' is set to {table!r}, so '{key}' cannot be set too")
        old = table.get(last)
        if isinstance(old, dict) and not isinstance(value, Mapping):
            raise RecipeError(
                f"'{key}' is set to {value!r}, so its key '{next(iter(old))}' cannot be set too"
            )
        table[last] = (
            {**(old if isinstance(old, dict) else {}), **value} if isinstance(value, Mapping) else value
        )
    return tables


def dotted(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested tables into dotted keys.

    >>> dotted({"seed": 0, "attack": {"eps": 0.1}})
    {'seed': 0, 'attack.eps': 0.1}
    """
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key=value` of the command line; the value is TOML or plain text.

    >>> parse_override("attack.eps=8/255"), parse_override("training.epochs=3")
    (('attack.eps', '8/255'), ('training.epochs', 3))
    """
    key, equals, value = check_text(text, "key=value").partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"'{text}' is not key=value, such as attack.eps=8/255")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise RecipeError(f"the value of '{key.strip()}' cannot be read: {error}") from None
