"""Options that several subcommands share, and the study they describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from saliency_lab._common.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from saliency_lab.data import LabelledImages
    from saliency_lab.models import ModelCard
    from saliency_lab.study import Study
    from saliency_lab.study.requests import GridRequests

Number = TypeVar("Number", int, float)

Checkpoints = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL",
        help="Folders of trained models, as `train` leaves them; names of `saliency-lab list zoo`; or "
        "pretrained networks: torchvision/NAME@DEFAULT, timm/NAME@DEFAULT or hf/NAME@DEFAULT (downloaded "
        "once). NAME@FILE loads a state dict instead; images are normalised and resized as for NAME@DEFAULT. "
        "For another normalisation, use `sl.wrap` in Python.",
        show_default=False,
    ),
]
RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A bundled recipe (`saliency-lab list recipes`) or a TOML file.",
        show_default=False,
    ),
]
DataName = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Data set, or your own module:attribute; by default what the models were trained on. Images of "
        "image_folder are resized to what the models take.",
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", help="Folder of the data files; by default $SALIENCY_LAB_DATA, then ./data."),
]
Images = Annotated[int, typer.Option("--images", min=1, help="How many test images, stratified by class.")]
IMAGES = 100
"""The default of all subcommands, so that what they leave in one folder is about the same images."""
Device = Annotated[
    str,
    typer.Option(
        "--device", help="Where the models run: cpu, cuda, cuda:1, mps; auto is cuda if it is here, else cpu."
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the choice of images and of every draw.")]
Store = Annotated[
    Path, typer.Option("--out", help="Folder of the results; what is there already is not computed again.")
]
Methods = Annotated[
    list[str],
    typer.Option(
        "--method",
        metavar="A,B",
        help="Attribution methods (`saliency-lab list methods`, or module:attribute); repeatable.",
    ),
]
NamedSettings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="NAME.KEY=VALUE",
        help="A setting of a method, metric or attack of this command, such as smoothgrad.n=50 or "
        "pgd.steps=20; repeatable.",
    ),
]


Json = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="Write the table to this file as JSON too; with -, print JSON alone."
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Import code that a model's card, a study or a recipe names as module:attribute, which runs it; "
        "what you type yourself needs no --trust.",
    ),
]


Compile = Annotated[
    str | None,
    typer.Option(
        "--compile",
        metavar="auto|true|false",
        help="Whether passes may run in a faster form of the model: auto where it pays; with false, results "
        "are repeatable to the last bit.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="bfloat16 runs passes that only evaluate a model in lower precision; scores change slightly.",
    ),
]


def pass_settings(compile: str | None, dtype: str | None) -> dict[str, Any]:
    """Return the arguments of `execution` for the options `--compile` and `--dtype` that were given.

    >>> pass_settings("false", None)
    {'compile': False}
    """
    from saliency_lab._common.execution import make_execution

    given: dict[str, Any] = {}
    if compile is not None:
        given["compile"] = {"true": True, "false": False}.get(compile.lower(), compile)
    if dtype is not None:
        given["dtype"] = make_execution(dtype=dtype).dtype
    make_execution(**given)
    return given


def several(values: Sequence[str]) -> list[str]:
    """Read an option of several values, which may be repeated, hold commas, or both.

    >>> several(["pgd,fgsm", "square"])
    ['pgd', 'fgsm', 'square']
    """
    parts = [part.strip() for value in values for part in value.split(",")]
    return list(dict.fromkeys(filter(None, parts)))


def numbers(option: str, text: str, kind: type[Number]) -> list[Number]:
    """Read an option of numbers between commas.

    >>> numbers("--seeds", "0,1,2", int)
    [0, 1, 2]
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        example = "whole numbers such as 0,1,2" if kind is int else "numbers such as 0.1,0.5"
        raise InputError(f"{option} must be {example}, not '{text}'") from None


def key_values(pairs: Sequence[str]) -> dict[str, Any]:
    """Read repeated `key=value` options; values are TOML, or else plain text."""
    from saliency_lab.training import parse_override

    return dict(parse_override(pair) for pair in pairs)


def named_settings(pairs: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give each name its settings from `NAME.KEY=VALUE` options; `module:f` goes by the name `f`."""
    named = {label_of(name): name for name in names}
    for name in names:
        label = label_of(name)
        if named[label] != name:
            raise InputError(
                f"'{name}' and '{named[label]}' would both be listed as '{label}'; name one of them here, or "
                "give each a label of its own in the file of a study"
            )
    settings: dict[str, dict[str, Any]] = {label: {} for label in named}
    for key, value in key_values(pairs).items():
        given, dot, setting = key.partition(".")
        if not dot:
            raise InputError(f"--set {key}=… names no method, metric or attack; write NAME.{key}=…")
        name = label_of(given)
        if name not in settings:
            known = ", ".join(settings) or "nothing"
            raise InputError(f"--set {key}=…: this command runs {known}, and not '{given}'")
        settings[name][setting] = value
    return settings


def label_of(name: str) -> str:
    """Return the name under which results of `module:attribute` are listed; other names stay.

    >>> label_of("my_methods:centred"), label_of("saliency")
    ('centred', 'saliency')
    """
    return name.rpartition(":")[2]


def requests_of(kind: str, names: Sequence[str], settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return label → settings, as `Study.attribute` and `Study.score` take them."""
    return {label_of(name): {kind: name, **settings[label_of(name)]} for name in names}


def attack_settings(pairs: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give each attack its settings from `NAME.KEY=VALUE` options; the radius has an option of its own."""
    given = named_settings(pairs, names)
    for label, settings in given.items():
        if "eps" in settings:
            raise InputError(f"--set {label}.eps=… is no setting of the attack; give the radius by --eps")
    return {name: given[label_of(name)] for name in names}


def open_study(
    checkpoints: Sequence[str | Path],
    data: str | None,
    root: Path | None,
    images: int,
    seed: int,
    store: Path,
    device: str,
    *,
    trust: bool = False,
    methods: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> tuple[Study, GridRequests]:
    """Return a study of these models and test images in the folder `store`, and what is asked of it.

    Methods and metrics are read first, so that a mistake in one of them leaves nothing behind.

    Raises
    ------
    InputError
        If a method or metric is unknown or has a wrong setting, or the folder holds a study of other images,
        whose list of results this one would replace.
    """
    from saliency_lab.study import Study
    from saliency_lab.study.cache.store import FolderStore
    from saliency_lab.study.requests import read_grid
    from saliency_lab.study.sample import read_sample

    models = load_models(checkpoints, device, trust=trust)
    sample = read_sample(draw_images(models, data, root, images, seed, trust=trust))
    requests = read_grid(sample, methods or {}, metrics or {})
    manifest = FolderStore(store).read_manifest()
    if manifest is not None and (manifest.images, manifest.seed) != (sample.images, seed):
        raise InputError(
            f"'{store}' holds a study of other images, or of another seed; name another folder with "
            "--out, or ask for the same images (--images, --seed, --data)"
        )
    return Study(models, sample, store=store, seed=seed), requests


def load_models(
    checkpoints: Sequence[str | Path], device: str, *, trust: bool = False
) -> dict[str, list[nn.Module]]:
    """Load checkpoints by the recipe they were trained by: several seeds of one recipe are one model.

    The name is the recipe's last part ("asgt" for "mnist/asgt") where that is unique. Where recipes of
    one name differ, the keys in which they do follow: "sgt (objective.fraction=0.1)"; so do the data, where
    one recipe saw different images. A checkpoint without a recipe goes by its folder, and a pretrained
    network by its name. Code that a card names is imported with `trust` only.

    Raises
    ------
    InputError
        If a model is named twice, a pretrained network comes without weights, or two runs have one seed.
    """
    from saliency_lab._common.hashing import fingerprint
    from saliency_lab._common.inference import named_device
    from saliency_lab.models import ModelCard, card_of, load_model
    from saliency_lab.models.pretrained import split_weights

    there = named_device(device)
    seen: dict[str, str | Path] = {}
    recipes: dict[str, dict[str, Any]] = {}
    runs: dict[tuple[str, int | None], str | Path] = {}
    groups: dict[str, list[nn.Module]] = {}
    for path in checkpoints:
        source, weights = split_weights(path)
        model = load_model(source, there, weights=weights, trust=trust)
        card = card_of(model) or ModelCard()
        identity = card.sha256 or str(path)
        if identity in seen:
            raise InputError(
                f"'{path}' holds the same weights as '{seen[identity]}'; name each checkpoint once"
            )
        seen[identity] = path
        named = {"name": Path(source).as_posix()} | ({} if weights is None else {"weights": weights})
        recipe = {**named, **(card.recipe or {}), "description": "", "seed": None}
        recipe["name"] = str(recipe["name"])
        recipe["data"] = {**_data_of(card), "fingerprint": (card.data or "")[:8]}
        key = fingerprint(recipe)
        recipes[key] = recipe
        twin = runs.setdefault((key, card.seed), path)
        if twin is not path and card.seed is not None:
            raise InputError(
                f"'{path}' and '{twin}' are both seed {card.seed} of '{recipe['name']}', and each must be "
                "another seed; name one of them"
            )
        groups.setdefault(key, []).append(model)
    names = _names(list(recipes.values()))
    return dict(zip(names, groups.values(), strict=True))


def _data_of(card: ModelCard | None) -> Mapping[str, Any]:
    """Return the table [data] of the recipe on a card; empty if there is none."""
    table = (card.recipe or {}).get("data") if card is not None else None
    return table if isinstance(table, Mapping) else {}


def _names(recipes: list[dict[str, Any]]) -> list[str]:
    """Short names, all different, for recipes that are all different."""
    from saliency_lab.training.recipe import dotted

    short = {recipe["name"]: recipe["name"].rpartition("/")[2] for recipe in recipes}
    unique = len(set(short.values())) == len(short)
    names = []
    for recipe in recipes:
        name, own = recipe["name"], dotted(recipe)
        others = [dotted(other) for other in recipes if other["name"] == name]
        differing = [
            f"{key}={own[key]}" for key in sorted(own) if any(other.get(key) != own[key] for other in others)
        ]
        names.append((short[name] if unique else name) + (f" ({', '.join(differing)})" if differing else ""))
    return names


def draw_images(
    models: dict[str, list[nn.Module]],
    data: str | None,
    root: Path | None,
    images: int,
    seed: int,
    *,
    trust: bool = False,
) -> LabelledImages:
    """Draw test images of the named data set, or of the one that all models were trained on.

    Raises
    ------
    InputError
        If no data set is named, and a model was trained on other images than those found by its recipe, or
        its card names code and is not trusted; or the images have another shape than a model takes.
    """
    from saliency_lab._common.plugins import check_names
    from saliency_lab._common.settings import parse_settings
    from saliency_lab.data.catalogue import DATASETS
    from saliency_lab.models import card_of, read_card
    from saliency_lab.models.card import check_data
    from saliency_lab.models.checkpoint import zoo_names
    from saliency_lab.training.api import load_data
    from saliency_lab.training.recipe import DataSpec

    cards = {name: [card_of(net) for net in nets] for name, nets in models.items()}
    first = next(iter(cards.values()))[0]
    table = dict(_data_of(first))
    if data is not None:
        table = {**(table if table.get("name") == data else {}), "name": data}
    if "name" not in table:
        raise InputError("the model does not say what it was trained on; name it with --data")
    table = check_names(table, trust=trust, key="recipe.data")
    if data is None and ":" not in table["name"] and table["name"] not in DATASETS:
        raise InputError(
            f"the model '{next(iter(models))}' was trained on '{table['name']}', which is no data set known "
            "by name; say where its images are found, with --data module:attribute"
        )
    where: dict[str, Any] = {"root": None if root is None else str(root)}
    if table["name"] == "image_folder" and not table.get("image_size") and first and first.input_shape:
        where["image_size"] = first.input_shape[1:]
    loaded = load_data(parse_settings(DataSpec, table | where, of="data"))
    if data is None:
        zoo = [read_card(name) for name in zoo_names()]  # made of the data sets of that name
        same = {card.data for card in zoo if _data_of(card).get("name") == table["name"]}
        for name, each in cards.items():
            if any(card and card.data not in (None, loaded.fingerprint, *same) for card in each):
                raise InputError(
                    f"the model '{name}' was trained on other images than '{table['name']}' holds here; say "
                    f"which to look at: --data {table['name']}, or your own with --data module:attribute"
                )
    for name, each in cards.items():
        for card in each:
            check_data(card, name, loaded.name, loaded.input_shape, loaded.classes)
    if images > len(loaded.test):
        raise InputError(f"--images is {images:,}, and '{loaded.name}' has {len(loaded.test):,} test images")
    return loaded.test.sample(images, seed)
