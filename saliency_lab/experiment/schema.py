"""The schema of a study in a TOML file: what to train, attribute, score and attack, and its questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import AfterValidator, Field, field_validator

from saliency_lab._common.errors import InputError, unknown_name
from saliency_lab._common.execution import CompileMode, make_execution
from saliency_lab._common.plugins import check_names
from saliency_lab._common.settings import Settings, parse_settings
from saliency_lab._common.toml_files import Table, read_extended
from saliency_lab.comparison.claims import Purpose
from saliency_lab.comparison.measures import ACCURACY, ROBUST
from saliency_lab.retraining.api import FRACTIONS
from saliency_lab.study.requests import GridRequests, Request, read_grid, read_methods
from saliency_lab.study.sample import StudySample
from saliency_lab.training.recipe import DataSource, dotted, recipes_folder

NamedSettings = dict[str, dict[str, Any]]


class SampleSpec(DataSource):
    """The images of a study: so many of a split, stratified, drawn with the study's seed."""

    images: Annotated[int, Field(ge=1)] = 256
    split: Literal["test", "val"] = "test"
    """`val` is for choosing between recipes, which must not look at the test images."""


def _distinct(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is listed twice")
    return seeds


TrainingSeeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_distinct)]


Overrides = Annotated[dict[str, Any], AfterValidator(dotted)]
"""Recipe keys and their values, by dotted keys; a file may give them in tables too."""


class Trained(Settings):
    """A model that the study trains: a recipe, by bundled name or TOML file, and what is changed in it."""

    recipe: str
    seeds: TrainingSeeds | None = None
    """Instead of those of the study."""
    overrides: Overrides = Field(default_factory=dict)
    """In addition to those of the study, such as "objective.fraction" = 0.1."""


class PassSettings(Settings):
    """How passes that only evaluate a model run: the arguments of `sl.execution`."""

    compile: CompileMode = "auto"
    dtype: Literal["bfloat16"] | None = None


class Retraining(Settings):
    """ROAR (table [roar]) or KAR (table [kar]) of the recipes of the study; see `sl.roar`."""

    methods: list[str] | NamedSettings = Field(default_factory=list)
    """By default those of the study; `random` is always added."""
    fractions: list[float] = Field(default_factory=lambda: list(FRACTIONS))
    """Shares of the pixels that are replaced by the mean of their channel."""
    absolute: bool = False
    """Whether pixels are ranked by the magnitude of their attributions."""
    recipes: list[str] = Field(default_factory=list)
    """Names of models among [recipes]; all by default."""


class Declaration(Purpose):
    """A whole study. Paths are relative to the file."""

    data: SampleSpec
    recipes: dict[str, Trained] = Field(default_factory=dict)
    """Models to train, by name. The file may also have a list of recipes, or name = recipe."""
    seeds: TrainingSeeds = Field(default_factory=lambda: [0])
    """Each recipe is trained with each seed."""
    overrides: Overrides = Field(default_factory=dict)
    """Recipe keys that hold for every recipe, such as "training.epochs" = 5."""
    models: dict[str, str | list[str]] = Field(default_factory=dict)
    """Finished models by name: folders of checkpoints, names of `saliency-lab list zoo`, pretrained networks
    with their weights (torchvision/NAME@DEFAULT), or module:attribute; several are seeds of one."""
    methods: list[str] | NamedSettings = Field(default_factory=list)
    metrics: list[str] | NamedSettings = Field(default_factory=list)
    attacks: NamedSettings = Field(default_factory=dict)
    """Label → `eps` and settings, and `attack` where the label is not the name of one."""
    audits: NamedSettings = Field(default_factory=dict)
    """As `attacks`, with `images` and `budget` too; see `Study.audit`."""
    roar: Retraining | None = None
    """Retrains every recipe on images without their most important pixels, with each of its seeds."""
    kar: Retraining | None = None
    """As `roar`, without their least important pixels."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the choice of images and of every draw."""
    execution: PassSettings | None = None
    """How passes that only evaluate a model run; by default as `sl.execution` says."""
    compact_maps: bool = False
    """Store maps with one byte per value; see `sl.Study`."""
    folder: Path = Path()
    """Of the file itself."""

    @property
    def purpose(self) -> Purpose:
        """Title, text, questions, baseline and level, without what is computed."""
        return Purpose(**{name: getattr(self, name) for name in Purpose.model_fields})

    @property
    def trained_seeds(self) -> dict[str, list[int]]:
        """The training seeds of each model that the study trains."""
        return {
            model: self.seeds if each.seeds is None else each.seeds for model, each in self.recipes.items()
        }

    def requests(self, sample: StudySample) -> GridRequests:
        """Read and validate methods, metrics, attacks and audits, the baseline and the claims.

        They have the study's settings of passes and of stored maps. No network is needed, and
        `training_runs` checks the recipes.

        Raises
        ------
        InputError
            For an unknown name or setting, a study that measures nothing, and a baseline or claim about
            something that the study does not measure.
        """
        requests = read_grid(sample, self.methods, self.metrics, self.attacks, self.audits)
        requests = self._with_settings(requests)
        models = [*self.recipes, *self.models]
        if self.baseline is not None and self.baseline not in models:
            raise unknown_name("baseline:", self.baseline, models)
        measured = [ACCURACY, ROBUST] if requests.attacks else []
        measured += [request.label for request in requests.metrics]
        if not measured:
            raise InputError("the study measures nothing; give metrics (and methods), or attacks")
        if requests.metrics and not requests.methods:
            raise InputError("the study has metrics and no maps to score; give methods too")
        methods = [request.label for request in requests.methods]
        attacks = {request.label: request.eps for request in requests.attacks}
        for claim in self.claims:
            claim.check(models, measured, methods, attacks)
        return requests

    def method_requests(self) -> Sequence[Request]:
        """Read and validate the methods alone, as `requests` does, for which no images are needed."""
        return self._with_settings(GridRequests(read_methods(self.methods) if self.methods else ())).methods

    def _with_settings(self, requests: GridRequests) -> GridRequests:
        passes = None if self.execution is None else make_execution(**dict(self.execution))
        return requests.with_settings(passes, self.compact_maps)

    @field_validator("recipes", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        """A list of recipes goes by their last parts where these differ ("sgt" for "mnist/sgt")."""
        if isinstance(given, list) and all(isinstance(name, str) for name in given):
            if len(set(given)) < len(given):
                raise ValueError(
                    "a recipe is listed twice; give them different names as name = { recipe, overrides }"
                )
            names = [Path(name).stem if name.endswith(".toml") else name for name in given]
            short = [name.rpartition("/")[2] for name in names]
            given = dict(zip(short if len(set(short)) == len(short) else names, given, strict=True))
        if isinstance(given, Mapping):
            return {name: {"recipe": each} if isinstance(each, str) else each for name, each in given.items()}
        return given


def studies_folder() -> Path:
    """Folder of the bundled studies."""
    return recipes_folder() / "studies"


def _bundled() -> dict[str, Path]:
    """Files of the bundled studies by name, in a fixed order."""
    return {path.stem: path for path in sorted(studies_folder().glob("*.toml"), key=lambda path: path.stem)}


def list_studies() -> pd.DataFrame:
    """List the bundled studies, which `saliency-lab reproduce NAME` runs.

    Returns
    -------
    DataFrame
        One row per study, indexed by name: `title`, `data` set, and the numbers of `images`, `models` and
        training `seeds`.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> sl.list_studies().columns.tolist()
    ['title', 'data', 'images', 'models', 'seeds']
    """
    rows = []
    for name, path in _bundled().items():
        declared = read_declaration(path)
        facts = {"title": declared.title, "data": declared.data.name, "images": declared.data.images}
        counts = {"models": len(declared.recipes), "seeds": len(declared.seeds)}
        rows.append({"name": name, **facts, **counts})
    return pd.DataFrame(rows).set_index("name")


def bundled_study(name: str) -> Path:
    """Return the file of a bundled study.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    known = _bundled()
    whole = name.removesuffix("-quick")
    if name not in known and whole in known:
        short = ", ".join(each.removesuffix("-quick") for each in known if each.endswith("-quick"))
        raise InputError(f"the study '{whole}' has no short form; those that have: {short}")
    if name not in known:
        raise unknown_name("study", name, known)
    return known[name]


def read_declaration(
    path: str | Path, changes: Mapping[str, Any] | None = None, *, trust: bool = False
) -> Declaration:
    """Read a study's TOML file, merged over the study that it extends (`extends = "first"`), if any.

    The other study is a file next to it, or a bundled study. [data] and the overrides are merged key by key;
    everything else replaces what the other study says. `changes` is such a table too, merged over the file.
    Code that a file names as `module:attribute` is accepted with `trust` only.

    Raises
    ------
    InputError
        If it cannot be read, has an unknown key or a value out of range, or names code and is not trusted.
    """
    path = Path(path)
    table = _merge(read_extended(path, "study", find=_extended, merge=_merge), dict(changes or {}))
    declared = parse_settings(Declaration, check_names(table, trust=trust), of=f"study '{path}'")
    if not declared.recipes and not declared.models:
        raise InputError(
            f"the study '{path}' names nothing to compare; give recipes = [...] or a table [models]"
        )
    both = declared.recipes.keys() & declared.models.keys()
    if both:
        raise InputError(f"the study '{path}' calls two models '{min(both)}', in [recipes] and in [models]")
    return declared.model_copy(update={"folder": path.parent.resolve()})


def _merge(below: Table, table: Table) -> Table:
    """Merge [data] and overrides key by key; everything else in `table` replaces what is below."""
    merged = {**below, **table}
    for key in ("data", "overrides"):
        lower, upper = below.get(key), table.get(key)
        if isinstance(lower, Mapping) and isinstance(upper, Mapping):
            merged[key] = dotted(lower) | dotted(upper)  # a table of the overrides may be written either way
    return merged


def _extended(path: Path, base: str) -> list[Path]:
    """Return the file that `extends = base` in `path` refers to: one next to it, or a bundled one."""
    name = base.removesuffix(".toml")
    sibling = path.parent / f"{name}.toml"
    if sibling.is_file() and sibling != path:
        return [sibling]
    if name in _bundled() and _bundled()[name].resolve() != path:
        return [_bundled()[name]]
    if sibling == path:
        raise InputError(f"the study '{path}' extends itself")
    known = {each.stem for each in path.parent.glob("*.toml")} | _bundled().keys()
    raise unknown_name(f"study that '{path}' extends:", base, known - {path.stem})
