"""A study declared in a TOML file: what is trained, looked at, attributed, scored, attacked and compared."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field
from torch import nn

from saliency_lab._common.errors import InputError, unknown_name
from saliency_lab._common.plugins import import_object
from saliency_lab._common.provenance import fingerprint
from saliency_lab._common.settings import Settings, parse_settings
from saliency_lab.data import ImageData, load_dataset
from saliency_lab.models import build_model, load_model
from saliency_lab.study.comparison import Comparison
from saliency_lab.study.planning import Scout
from saliency_lab.study.study import Study
from saliency_lab.study.task import ALONE
from saliency_lab.study.work import read_attacks
from saliency_lab.training import Recipe, load_recipe, train

NamedSettings = dict[str, dict[str, Any]]


class SampleSpec(Settings):
    """Which images: `images` of the test split, stratified, chosen by the study's seed."""

    name: str
    root: str | None = None
    images: Annotated[int, Field(ge=1)] = 256


class Declaration(Settings):
    """A whole study. Paths are relative to the file."""

    data: SampleSpec
    recipes: list[str] = Field(default_factory=list)
    """Recipes to train, by bundled name or TOML file; a model goes by its recipe's last part if unique."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: [0], min_length=1)
    """Each recipe is trained with each."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Recipe keys that hold for every recipe, such as "training.epochs" = 5."""
    models: dict[str, str | list[str]] = Field(default_factory=dict)
    """Finished models by name: folders of checkpoints, or module:attribute; several are seeds of one."""
    methods: list[str] | NamedSettings = Field(default_factory=list)
    metrics: list[str] | NamedSettings = Field(default_factory=list)
    attacks: NamedSettings = Field(default_factory=dict)
    """Each with its `eps` and settings; `attack` says which, where the label is no name."""
    baseline: str | None = None
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the choice of images and of every draw."""
    folder: Path = Path()
    """Of the file itself."""


def read_declaration(path: str | Path) -> Declaration:
    """Read a study's TOML file.

    Raises
    ------
    InputError
        If it cannot be read, or holds an unknown key or a value out of range.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the study '{path}' ({error.strerror}); name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the study '{path}' is no TOML: {error}") from error
    declared = parse_settings(Declaration, table, of=f"study '{path}'")
    if not declared.recipes and not declared.models:
        raise InputError(
            f"the study '{path}' names nothing to compare; give recipes = [...] or a table [models]"
        )
    return declared.model_copy(update={"folder": path.parent.resolve()})


def run_declared(
    declared: Declaration, store: str | Path, *, executor: Executor | None = None
) -> tuple[Study, Comparison]:
    """Train what is missing, compute what is missing, compare; everything is kept in `store`."""
    store = Path(store).resolve()  # a worker may have another working folder
    data = _data(declared)
    sample = data.test.sample(declared.data.images, declared.seed)
    stand_ins = Study(_models(declared, data, store, stand_in=True), sample, seed=declared.seed)
    _verbs(Scout(stand_ins), declared)  # a mistake in the file is told before anything is trained
    if executor is not None:
        jobs = [
            executor.submit(_train, recipe, data.fingerprint, declared, seed, store)
            for recipe in _recipes(declared)
            for seed in declared.seeds
        ]
        for job in jobs:
            job.result()
    models = _models(declared, data, store, stand_in=False)
    study = Study(models, sample, store=store, seed=declared.seed, executor=executor)
    _verbs(study, declared)
    return study, study.compare(declared.baseline, level=declared.level)


def _verbs(study: Study, declared: Declaration) -> None:
    if declared.baseline is not None and declared.baseline not in study.models:
        raise unknown_name("baseline:", declared.baseline, study.models)
    if declared.methods:
        study.attribute(declared.methods)
    if declared.metrics:
        study.score(declared.metrics)
    for attack in read_attacks(declared.attacks):
        study.attack(attack.what, label=attack.label, **attack.settings)


def plan_declared(declared: Declaration, store: str | Path) -> pd.DataFrame:
    """What there is to do, without doing it: see `Study.plan`; models that are to be trained come first.

    Their time is not estimated, and their cells count as missing.
    """
    data = _data(declared)
    rows = [
        {
            "step": "train",
            "what": f"{recipe.name}, seed {seed}",
            "cells": 1,
            "missing": int(not _finished(_run_folder(recipe, data.fingerprint, seed, Path(store)))),
        }
        for recipe in _recipes(declared)
        for seed in declared.seeds
    ]
    models = _models(declared, data, Path(store), stand_in=True)
    sample = data.test.sample(declared.data.images, declared.seed)
    study = Study(models, sample, store=store, seed=declared.seed)
    _verbs(Scout(study), declared)
    steps = study.plan(declared.methods, declared.metrics, declared.attacks)
    return pd.concat([pd.DataFrame(rows), steps], ignore_index=True)[list(steps.columns)]


def _data(declared: Declaration) -> ImageData:
    root = declared.data.root
    return load_dataset(declared.data.name, None if root is None else declared.folder / root)


def _recipes(declared: Declaration) -> list[Recipe]:
    def source(name: str) -> str | Path:
        return declared.folder / name if name.endswith(".toml") else name

    return [load_recipe(source(name), declared.overrides) for name in declared.recipes]


def _run_folder(recipe: Recipe, data: str, seed: int, store: Path) -> Path:
    """Folder of a training run, named by the content of what decides it."""
    key = fingerprint({**recipe.portable(), "seed": seed}, data)
    return store / "models" / f"{recipe.name.replace('/', '-')}-seed-{seed}-{key[:12]}"


def _finished(folder: Path) -> bool:
    return (folder / "model.json").exists()


def _train(recipe: Recipe, data: str, declared: Declaration, seed: int, store: Path) -> None:
    """Train one network in a worker, which reads the data itself."""
    with ALONE:
        found = _data(declared)
        if found.fingerprint != data:
            raise InputError(f"a worker found other files of '{declared.data.name}'; all must see the same")
        train(recipe, found, seed=seed, out=_run_folder(recipe, data, seed, store))


def _models(
    declared: Declaration, data: ImageData, store: Path, *, stand_in: bool
) -> Mapping[str, list[nn.Module]]:
    """Every network by name; with `stand_in`, an untrained one takes the place of one still to be trained."""
    models: dict[str, list[nn.Module]] = {}
    recipes = _recipes(declared)
    short = [recipe.name.rpartition("/")[2] for recipe in recipes]
    names = short if len(set(short)) == len(short) else [recipe.name for recipe in recipes]
    for label, recipe in zip(names, recipes, strict=True):
        nets = models.setdefault(label, [])
        for seed in declared.seeds:
            out = _run_folder(recipe, data.fingerprint, seed, store)
            if stand_in and not _finished(out):
                shape, count = data.input_shape, len(data.classes)
                own = ":" in recipe.model.name
                name = "small_cnn" if own else recipe.model.name
                nets.append(build_model(name, num_classes=count, input_shape=shape, seed=seed))
            else:
                nets.append(train(recipe, data, seed=seed, out=out))
    for name, sources in declared.models.items():
        listed = [sources] if isinstance(sources, str) else sources
        models[name] = [_load(source, declared.folder) for source in listed]
    return models


def _load(source: str, folder: Path) -> nn.Module:
    if ":" not in source:
        return load_model(folder / source)
    found = import_object(source)
    net = found if isinstance(found, nn.Module) else found()
    if not isinstance(net, nn.Module):
        raise InputError(f"model '{source}' is not a torch module, but {type(net).__name__}")
    return net
