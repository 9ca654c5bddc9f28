"""Wrong input, generated from the signatures of everything public: each mistake gets a clear message.

One argument of a valid call is replaced at a time by values that are wrong for its kind. A clear message is a
`SaliencyLabError` that names the argument. A public function or a parameter that is not covered fails the test.
"""
# ruff: noqa: E501 - tables of values and of calls

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import functools
import importlib
import inspect
import io
import pkgutil
import re
import signal
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from pydantic import BaseModel
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from typer.main import get_command
from typer.testing import CliRunner

import saliency_lab
import saliency_lab as sl
from saliency_lab._common import registry
from saliency_lab._common.errors import SaliencyLabError
from saliency_lab._common.settings import Settings, parse_settings
from saliency_lab.attacks import robustbench_entry
from saliency_lab.cli.app import app
from saliency_lab.data import Split, data_root, make_mosaics
from saliency_lab.metrics import meta_evaluate
from saliency_lab.models import read_card
from saliency_lab.study.cache.results import Failure
from saliency_lab.study.requests import GridRequests
from saliency_lab.training import parse_override
from saliency_lab.training.recipe import dotted, load_recipe

pytestmark = pytest.mark.slow

SECONDS = 20
"""No wrong input may keep the caller waiting for longer."""


class Odd:
    """An object of no kind that is expected anywhere."""

    def __repr__(self) -> str:
        return "Odd()"


ODD = Odd()
NAN, INF = float("nan"), float("inf")


def _images() -> dict[str, Any]:
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return {
        "integers": (x * 255).byte(),
        "one image": x[0],
        "no image": x[:0],
        "no pixel": x[:, :, :0],
        "NaN": torch.where(x > 0.5, NAN, x),
        "infinite": torch.where(x > 0.5, INF, x),
        "above 1": x * 3,
        "negative": x - 1,
        "meta": x.to("meta"),
        "sparse": x.to_sparse(),
        "complex": x.to(torch.complex64),
        "quantised": torch.quantize_per_tensor(x, 1 / 255, 0, torch.quint8),
        "bool": x > 0.5,
        "array": x.numpy().astype(object),
        "strings": np.array([["a"]]),
    }


NOT_TEXT = [3, 2.5, True, ["a"], {"a": 1}, ODD, b"a", (), torch.zeros(2)]
NOT_NUMBERS = ["x", "", True, [1.0], {"a": 1}, ODD, b"1", 1j, NAN, (), torch.zeros(2)]
NOT_COUNTS = [*NOT_NUMBERS, 2.5, -1, -(10**30), INF, "2"]

WRONG: dict[str, list[Any]] = {
    "path": [3, 2.5, True, ["a"], {"a": 1}, ODD, b"a", (), torch.zeros(2), "", "a\0b", NAN, 1j],
    "file": [3, 2.5, True, ["a"], {"a": 1}, ODD, b"a", (), "", "a\0b", NAN, Path("/"), "."],
    "device": ["gpu", "", 2.5, ODD, [], {}, True, "cuda:99", "meta", "cpu:x", NAN],
    "name": [*NOT_TEXT, "", "no such", "no:such", "a\0b", "no.such.module:thing"],
    "label": [*NOT_TEXT, ""],
    "choice": [*NOT_TEXT, "", "no such"],
    "count": [0, *NOT_COUNTS],
    "bounded": [0, *NOT_COUNTS, 10**9, 10**30],
    "index": [*NOT_COUNTS],
    "bounded index": [*NOT_COUNTS, 10**9],
    "seed": [*NOT_COUNTS, 2**64],
    "fraction": [0, 1, -0.1, 1.5, INF, -INF, *NOT_NUMBERS],
    "share": [-0.1, 1.5, INF, -INF, *NOT_NUMBERS],
    "number": [INF, -INF, *NOT_NUMBERS],
    "numbers": ["x", True, {"a": 1}, ODD, b"1", 1j, NAN, ["x"], [NAN], [INF], [], torch.zeros(2, 2), [[0.5]]],
    "radius": [-1, "x", "", "1/0", NAN, INF, True, ODD, {}, b"1", 1j, [], [[]], "nan", "-1/255", torch.zeros(2, 2)],
    "radii": [-1, "x", "1/0", NAN, INF, True, ODD, b"1", 1j, [], ["x"], [-1.0], [NAN], [[0.1]], {"a": 1}, [True]],
    "flag": [1, 0, "yes", "", 2.5, [], {}, ODD, b"a", NAN, torch.zeros(2)],
    "mapping": [3, "x", ["a"], ODD, b"a", True, (), {3: 1}, {"": 1}, [("a", 1)], 2.5],
    "callable": [3, "x", ["a"], ODD, True, {}, 2.5, b"a"],
    "model": [3, "x", [], {}, ODD, True, nn.Linear, lambda x: x, torch.zeros(2), nn.ModuleDict(), nn.ModuleList(), b"a"],
    "images": [3, 2.5, "x", "", [], (), {}, ODD, True, b"a", nn.Linear(1, 1), [1, 2, 3], *_images().values()],
    "labels": [
        3, "x", [], {}, ODD, True, b"a", torch.zeros(2), torch.zeros(3, dtype=torch.long), torch.tensor([0, 99]),
        torch.tensor([0, -1]), torch.zeros(2, 3), torch.tensor([True, False]), torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, dtype=torch.long, device="meta"), torch.zeros(2, dtype=torch.long).to_sparse(), ["a", "b"],
    ],
    "maps": [3, "x", [], {}, ODD, True, b"a", *(each for key, each in _images().items() if key not in (
        "above 1", "negative", "NaN", "infinite", "integers", "bool"))],
    "object": [3, "x", [], {}, ODD, True, b"a", 2.5, nn.Linear, torch.zeros(2)],
    "names": [3, 2.5, True, {"a": 1}, ODD, b"a", [3], [""], [ODD], torch.zeros(2)],
    "shape": [3, "x", [], {}, ODD, (1, 8), (1, 8, 8, 8), (0, 8, 8), (1, -8, 8), (1, 2.5, 8), (1, "8", 8), (1, 10**9, 10**9)],
    "side": [0, *NOT_COUNTS, 10**30, (8,), (8, 0), (8, "8"), (8, 8, 8), (10**9, 10**9)],
    "counts": [0, -1, 2.5, "x", True, NAN, INF, [], [0], [-1], [2.5], ["x"], {"a": 1}, ODD, 10**12, b"a"],
    "counts from 0": [-1, 2.5, "x", True, NAN, INF, [], [-1], [2.5], ["x"], {"a": 1}, ODD, b"a"],
    "devices": [0, -1, 2.5, "x", "", True, [1.5], {}, ODD, b"a", 10**30, NAN, ()],
    "compile": [3, 2.5, ["a"], {"a": 1}, ODD, b"a", (), "", "no such"],
    "precision": [3, 2.5, True, ["a"], {"a": 1}, ODD, b"a", (), "", "no such"],
    "shares": ["x", 2.5, -1, True, [], [-0.1], [1.5], [NAN], ["x"], {"a": 1}, ODD, b"a"],
    "seeds": ["x", 2.5, -1, [], [-1], [2.5], ["x"], {"a": 1}, ODD, b"a", [0, 0], [2**64]],
    "spread": [-0.1, INF, *NOT_NUMBERS],
    "photographs": [3, 2.5, ODD, True, {}, [], (), "", "/nowhere", ["/nowhere"], [3], b"a", np.zeros(3), np.zeros((8, 8, 7), np.uint8)],
    "recipe": [3, 2.5, True, ODD, [], "", "no such", "nowhere.toml", b"a", {}, {"data": 3}, {3: 4}, "a\0b"],
    "weights": [3, 2.5, True, ODD, [], "", b"a", "DEFAULT"],
    "pixels": [3, "x", [], {}, ODD, torch.zeros(2).to_sparse(), torch.zeros(2, device="meta")],
    "selection": [3, 2.5, True, ODD, b"a", torch.zeros(2), "", "no such", "no:such", ["no such"], {"a": 1}, [3], [""]],
    "data": [3, "x", [], {}, ODD, b"a", True],
    "override": [3, "x", "", "=", ODD, [], b"a"],
    "models": [3, "x", [], {}, ODD, True, {"": nn.Linear(1, 1)}, {"a": 3}, {"a": []}, {3: 4}, {"a": nn.Linear}, {"a": [3]}],
    "sample": [3, "x", [], {}, ODD, True, torch.zeros(2, 1, 8, 8), (1, 2), (1,), (torch.zeros(2, 1, 8, 8), "x"), b"a"],
    "indices": ["x", 2.5, ODD, {}, NAN, [99], [-99], ["a"], torch.zeros(2), [2.5], torch.tensor([99])],
}  # fmt: skip


@dataclass
class Target:
    """A public callable, the arguments of a valid call, and the kinds that the parameters' names do not say."""

    label: str
    call: Callable[..., Any]
    given: dict[str, Any]
    kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)


KIND_OF = {
    "model": "model", "net": "model", "module": "model", "x": "images", "y": "labels", "eps": "radius", "seed": "seed",
    "level": "fraction", "store": "path", "folder": "path", "path": "path", "out": "path", "root": "path",
    "method": "name", "metric": "name", "attack": "name", "attributions": "maps", "images": "count", "val_fraction": "fraction",
    "baseline": "name", "name": "label", "label": "label", "engine": "choice", "budget": "choice", "target": "choice",
    "trust": "flag", "overrides": "mapping", "width": "number", "n": "count",
    "compile": "compile", "dtype": "precision", "compact_maps": "flag",
}  # fmt: skip
"""The kind of a parameter by its name."""

SYNONYMS = {
    "net": ["model", "module", "network", "Sequential", "ModuleList"],
    "module": ["model", "module", "network", "Sequential", "ModuleList"],
    "x": ["image", "photograph", "pixel", "tensor", "x must", "x:"],
    "y": ["label", "class", "y must", "y:"],
    "attributions": ["attribution", "map"],
    "eps": ["eps", "radius", "radii"],
    "method": ["method", "attack", "import", "given by"],
    "methods": ["method", "import"],
    "metric": ["metric", "import", "measure"],
    "metrics": ["metric", "import"],
    "model": ["model", "module", "network", "Sequential", "ModuleList", "Linear"],
    "size": ["size", "GB"],
    "image_size": ["image_size", "GB"],
    "surrogates": ["surrogate"],
    "attack": ["attack", "import", "method for"],
    "attacks": ["attack"],
    "audits": ["audit", "attack"],
    "train": ["train", "data set", "label", "class"],
    "val": ["val", "data set"],
    "test": ["test", "data set"],
    "text": ["key=value"],
    "objective.name": ["objective"],
    "other": ["other", "map"],
    "k": ["k must", "share"],
    "models": ["model"],
    "image": ["image"],
    "classes": ["class"],
    "attacked": ["attack"],
    "store": ["store", "folder", "study"],
    "folder": ["folder", "store"],
    "path": ["path", "file", "folder", "checkpoint", "device"],
    "out": ["out", "folder"],
    "root": ["root", "folder", "file"],
    "source": ["source", "file", "folder", "recipe", "image", "photograph", "path"],
    "target": ["target", "class", "label"],
    "sample": ["sample", "image", "label"],
    "data": ["data"],
    "name": ["name", "data set", "architecture", "model", "text", "label"],
}
"""Words, one of which a message must contain, for the arguments that it may call otherwise."""


@dataclass
class Case:
    """One wrong value in an otherwise valid call."""

    label: str
    argument: str
    value: Any
    call: Callable[[], Any]

    def __str__(self) -> str:
        return f"{self.label}({self.argument}={_short(self.value)})"


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor({tuple(value.shape)}, {value.dtype}, {value.layout}, {value.device})"
    return re.sub(r" at 0x\w+", "", " ".join(repr(value).split()))[:70]


class TooSlow(BaseException):
    """A call took longer than `SECONDS`."""


def _stop(*_: object) -> None:
    raise TooSlow


def outcome(case: Case) -> str:
    """Return "clear", or what else came of the wrong value."""
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            case.call()
    except SaliencyLabError as error:
        words = [*SYNONYMS.get(case.argument, [case.argument.rpartition(".")[2]]), f"'{case.argument}'"]
        if case.label in VALID:  # a command: what was typed is quoted
            words += [
                str(case.value)[:100],
                str(case.value).rpartition("/")[0] or case.argument,
                case.argument.strip("-"),
            ]
            words += [case.argument.strip("-").replace("-", "_")]
        named = any(word.casefold() in str(error).casefold() for word in words)
        return "clear" if named else f"unnamed: {error}"
    except TooSlow:
        return "hang"
    except BaseException as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        signal.alarm(0)
        plt.close("all")
    return "accepted"


def _takes_none(parameter: inspect.Parameter) -> bool:
    return (
        parameter.default is None or "None" in str(parameter.annotation) or "Any" in str(parameter.annotation)
    )


def cases_of(target: Target) -> Iterator[Case]:
    """Replace each argument by each value that is wrong for its kind."""
    parameters = inspect.signature(target.call).parameters
    free = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    missing = [name for name in target.given if name not in parameters and not free]
    assert not missing, f"{target.label} has no {missing}"
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            kind = target.kinds.get(name, "settings")
            if kind == "settings":
                wrong = {**target.given, "no_such_setting": 1}
                yield Case(target.label, "no_such_setting", 1, functools.partial(target.call, **wrong))
            continue
        kind = target.kinds.get(name) or KIND_OF.get(name)
        assert kind is not None, f"say which kind of argument '{name}' of {target.label} is"
        if kind == "free":
            continue
        values = list(WRONG[kind])
        if not _takes_none(parameter):
            values.append(None)
        for value in values:
            if parameter.kind is parameter.VAR_POSITIONAL:
                call = functools.partial(target.call, value)
            elif parameter.kind is parameter.POSITIONAL_ONLY:
                raise AssertionError(name)
            else:
                call = functools.partial(target.call, **{**target.given, name: value})
            yield Case(target.label, name, value, call)


CLASSES = 3


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))


def _data() -> sl.ImageData:
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    parts = [Split(x, torch.arange(24) % CLASSES) for _ in range(3)]
    return sl.ImageData("tiny", *parts, ("a", "b", "c"))


def _execute(*, compile: Any = "auto", dtype: Any = None) -> None:
    with sl.execution(compile=compile, dtype=dtype):
        pass


def _targets(folder: Path) -> list[Target]:
    """Every public function and method, with a valid call of each that costs little."""
    net, data = _net(), _data()
    x, y = data.test.sample(2, 0)
    common = {"model": net, "x": x, "y": y}
    maps = sl.attribute(net, x, y)
    attacked = sl.attack(net, x, y, eps=0.1, steps=1)
    study = sl.Study({"a": net, "b": _net()}, data.test.sample(6, 0), store=folder / "store")
    study.attribute(["saliency", "input_x_gradient"]).score(["sparseness", "complexity"])
    study.attack("pgd", eps=[0.1, 0.2], steps=1)
    comparison = study.compare()
    sl.save_model(sl.build_model("small_cnn"), folder / "saved")
    quick = {"training.epochs": 1, "validation.images": 4, "validation.steps": 1, "training.batch_size": 8}
    selection = "name"
    split, zoo = data.test, folder / "saved"
    mosaics = sl.load_dataset("mosaic").test.select(torch.arange(10))
    pooled = sl.pool_differences({"a": (0.1, 0.0, 0.2), "b": (0.1, 0.0, 0.2)})
    checked = sl.sanity_check(net, x, y, "saliency")
    result = sl.robustness_curve(net, x, y, eps=[0.1], steps=1)
    functions = [
        Target("attack", sl.attack, {**common, "eps": 0.1}, {"target": "labels", "gradients_from": "model"}),
        Target("attack_map", sl.attack_map, {"model": net, "x": x, "eps": 0.1, "steps": 1}, {"goal": "choice"}),
        Target("attribute", sl.attribute, dict(common)),
        Target("audit", sl.audit, {**common, "eps": 0.1}, {"surrogates": "mapping"}),
        Target("build_model", sl.build_model, {"name": "small_cnn"}, {
            "name": "name", "num_classes": "bounded", "input_shape": "shape", "mean": "numbers", "std": "numbers"}),
        Target("corrupt", sl.corrupt, {"x": x, "corruption": "gaussian_noise", "severity": 1}, {
            "corruption": "name", "severity": "bounded"}),
        Target("evaluate", sl.evaluate, {**common, "attributions": maps, "metric": "sparseness"}),
        Target("evaluate_detailed", sl.evaluate_detailed, {**common, "attributions": maps, "metric": "sparseness"}),
        Target("evaluate_many", sl.evaluate_many, {**common, "attributions": {"a": maps}, "metrics": "sparseness"}, {
            "attributions": "mapping", "metrics": selection}),
        Target("meta_evaluate", meta_evaluate, {**common, "attributions": {"a": maps, "b": maps}, "metrics": "sparseness"}, {
            "attributions": "mapping", "metrics": selection, "draws": "bounded"}),
        Target("robustbench_entry", robustbench_entry, {"result": attacked, "dataset": "cifar10"}, {
            "result": "object", "dataset": "label", "info": "free"}),
        Target("execution", _execute, {"compile": False}, {"compile": "compile", "dtype": "precision"}),
        Target("explore", sl.explore, {"study": study}, {"study": "object"}),
        Target("list_datasets", sl.list_datasets, {}),
        Target("list_metrics", sl.list_metrics, {}, {"image_size": "side"}),
        Target("load_dataset", sl.load_dataset, {"name": "digits"}, {
            "name": "name", "download": "flag", "image_size": "side"}),
        Target("load_images", sl.load_images, {"source": np.zeros((8, 8, 3), np.uint8), "size": 8}, {
            "source": "photographs", "size": "side", "labels": "labels"}),
        Target("load_model", sl.load_model, {"path": zoo}, {"device": "device", "weights": "weights"}),
        Target("load_recipe", sl.load_recipe, {"source": "digits/standard"}, {"source": "recipe"}),
        Target("minimal_epsilon", sl.minimal_epsilon, {**common, "steps": 1}, {
            "largest": "radius", "tolerance": "radius"}),
        Target("pool_comparisons", sl.pool_comparisons, {
            "comparisons": {"a": comparison, "b": comparison}, "model": "a", "over": "b", "metric": "accuracy"}, {
            "comparisons": "mapping", "model": "name", "over": "name"}),
        Target("pool_differences", sl.pool_differences, {"differences": {"a": (0.1, 0.0, 0.2), "b": (0.1, 0.0, 0.2)}}, {
            "differences": "mapping", "share": "flag"}),
        Target("power", sl.power, {"runs": 2, "seeds": 2, "images": 10}, {
            "difference": "numbers", "seeds": "counts", "images": "counts", "accuracy": "share",
            "seed_spread": "spread", "correlation": "share", "comparisons": "index", "margin": "spread", "runs": "bounded"}),
        Target("register", sl.register, {"kind": "metric", "name": "mine"}, {
            "kind": "choice", "settings": "object", "better": "choice"}),
        Target("report", sl.report, {"study": study, "path": folder / "report.html"}, {
            "study": "object", "path": "file", "attacked": "object"}),
        Target("robustness_curve", sl.robustness_curve, {**common, "eps": [0.1], "steps": 1}, {"eps": "radii"}),
        Target("roar", sl.roar, {
            "recipe": "digits/standard", "data": data, "methods": "saliency", "fractions": [0.5], "seeds": [0],
            "model": net, "overrides": quick, "device": "cpu"}, {
            "recipe": "recipe", "data": "object", "methods": "selection", "fractions": "shares", "order": "choice",
            "absolute": "flag", "seeds": "seeds", "device": "device"}),
        Target("sanity_check", sl.sanity_check, {**common, "methods": "saliency"}, {
            "methods": selection, "settings": "mapping"}),
        Target("save_model", sl.save_model, {"model": net, "folder": folder / "new"}, {"card": "object"}),
        Target("show_progress", sl.show_progress, {"enabled": False}, {"enabled": "flag"}),
        Target("steps_curve", sl.steps_curve, {**common, "eps": 0.1, "steps": [1]}, {"steps": "counts from 0"}),
        Target("train", sl.train, {"recipe": "digits/standard", "data": data, "model": net, "overrides": quick}, {
            "recipe": "recipe", "data": "object", "accelerator": "choice", "devices": "devices",
            "num_nodes": "bounded", "strategy": "choice"}),
        Target("transfer_attack", sl.transfer_attack, {**common, "source": net, "eps": 0.1, "steps": 1}, {"source": "model"}),
        Target("verify", sl.verify, {"folder": folder / "store"}),
        Target("worst_case", sl.worst_case, {}, {"results": "object"}),
        Target("wrap", sl.wrap, {"module": net}, {
            "mean": "numbers", "std": "numbers", "classes": "names", "size": "side", "processor": "free",
            "cam_layer": "name"}),
    ]  # fmt: skip
    methods = [
        Target("Normalised", sl.Normalised, {"net": net}, {"mean": "numbers", "std": "numbers"}),
        Target("BinaryLogits", sl.BinaryLogits, {"net": net}, {"output": "index"}),
        Target("ImageBatch", sl.ImageBatch, {"x": x, "y": None, "names": ("a", "b")}, {"names": "free"}),
        Target("ImageData", sl.ImageData, {
            "name": "a", "train": split, "val": split, "test": split, "classes": ("a", "b", "c")}, {
            "train": "object", "val": "object", "test": "object", "classes": "names"}),
        Target("ImageData.from_datasets", sl.ImageData.from_datasets, {
            "train": TensorDataset(x, y), "test": TensorDataset(x, y), "val": TensorDataset(x, y)}, {
            "train": "object", "test": "object", "val": "object", "classes": "names"}),
        Target("Split", Split, {"images": split.images, "labels": split.labels}, {"images": "pixels", "labels": "data"}),
        Target("Split.batch", split.batch, {"indices": [0]}, {"indices": "indices"}),
        Target("Split.sample", split.sample, {"n": 2}, {"n": "bounded"}),
        Target("Split.draw", split.draw, {"n": 2}, {"n": "bounded"}),
        Target("Split.select", split.select, {"indices": torch.tensor([0])}, {"indices": "indices"}),
        Target("LocatedSplit.located", mosaics.located, {"n": 2}, {"n": "bounded"}),
        Target("LocatedSplit.select", mosaics.select, {"indices": torch.tensor([0])}, {"indices": "indices"}),
        Target("make_mosaics", make_mosaics, {"data": data}, {"data": "object"}),
        Target("data_root", data_root, {}),
        Target("read_card", read_card, {"path": zoo}),
        Target("parse_override", parse_override, {"text": "a=1"}, {"text": "override"}),
        Target("Attributions.compare", maps.compare, {"other": maps}, {"other": "maps", "k": "fraction"}),
        Target("Attributions.load", sl.Attributions.load, {"path": maps.save(folder / "maps.safetensors")}),
        Target("Attributions.normalise", maps.normalise, {}, {"by": "choice"}),
        Target("Attributions.reduce", maps.reduce, {}, {"channels": "choice", "sign": "choice"}),
        Target("Attributions.save", maps.save, {"path": folder / "other.safetensors"}, {"path": "file"}),
        Target("Attributions.show", maps.show, {"images": x}, {"images": "images"}),
        Target("AttackResult.interval", attacked.interval, {}),
        Target("PooledDifference.plot", pooled.plot, {}, {"title": "label"}),
        Target("SanityCheck.plot", checked.plot, {}, {"measure": "name"}),
        Target("SanityCheck.plot_maps", checked.plot_maps, {}, {"image": "bounded index"}),
        Target("RobustnessCurve.table", result.table, {}),
        Target("Study", sl.Study, {"models": {"a": net}, "sample": (x, y)}, {
            "models": "models", "sample": "sample", "executor": "object"}),
        Target("Study.attack", study.attack, {"eps": 0.1, "steps": 1}, {"eps": "radii"}),
        Target("Study.attribute", study.attribute, {"methods": "saliency"}, {"methods": selection}),
        Target("Study.audit", study.audit, {"eps": 0.1}, {"eps": "radii"}),
        Target("Study.compare", study.compare, {}),
        Target("Study.compute", study.compute, {"requests": GridRequests()}, {"requests": "object"}),
        Target("Study.load", sl.Study.load, {"store": folder / "store"}),
        Target("Study.merge", study.merge, {"store": folder / "store"}),
        Target("Study.note_failure", study.note_failure, {
            "model": "a", "seed": 0, "what": "train", "failure": Failure("a", "b")}, {
            "model": "label", "what": "label", "failure": "object"}),
        Target("Study.plan", study.plan, {"methods": "saliency"}, {
            "methods": "selection", "metrics": "selection", "attacks": "mapping", "audits": "mapping"}),
        Target("Study.read_curves", study.read_curves, {"model": "a", "method": "saliency", "metric": "sparseness"}, {
            "model": "name"}),
        Target("Study.class_name", study.class_name, {"label": 0}, {"label": "index"}),
        Target("Study.read_maps", study.read_maps, {"model": "a", "method": "saliency"}, {"model": "name"}),
        Target("Study.read_predictions", study.read_predictions, {"model": "a"}, {"model": "name"}),
        Target("Study.read_request", study.read_request, {"kind": "maps", "label": "saliency"}, {
            "kind": "free", "label": "free"}),
        Target("Study.save", study.save, {"folder": folder / "copy"}),
        Target("Study.score", study.score, {"metrics": "sparseness"}, {"metrics": selection}),
        Target("Study.write_manifest", study.write_manifest, {}, {"exclusive": "flag"}),
        Target("Study.write_tables", study.write_tables, {}),
        Target("Comparison", sl.Comparison, {
            "scores": study.scores, "robustness": study.robustness, "baseline": "a"}, {
            "scores": "object", "robustness": "object", "better": "mapping", "bounds": "mapping", "audits": "object",
            "seeds": "mapping", "pictures": "free"}),
        Target("Comparison.aggregate", comparison.aggregate, {"metric": "sparseness", "method": "saliency"}),
        Target("Comparison.measure", comparison.measure, {"metric": "sparseness", "method": "saliency"}),
        Target("Comparison.ranking", comparison.ranking, {"metric": "sparseness"}, {"model": "name"}),
        Target("Comparison.to_latex", comparison.to_latex, {}),
    ]  # fmt: skip
    plot, by = comparison.plot, {"metric": "sparseness"}
    plots = [
        Target("plot.curves", plot.curves, {"metric": "sparseness"}),
        Target("plot.dots", plot.dots, by),
        Target("plot.maps", plot.maps, {}, {"models": "names", "normalise": "flag"}),
        Target("plot.profile", plot.profile, {**by, "method": "saliency"}),
        Target("plot.ranking", plot.ranking, by, {"model": "name"}),
        Target("plot.robustness", plot.robustness, {}),
        Target("plot.slopes", plot.slopes, by),
        Target("plot.tradeoff", plot.tradeoff, {"method": "saliency"}, {"x": "name", "y": "name"}),
    ]
    return functions + methods + plots


def _public() -> dict[str, Any]:
    """Every public function and class by name."""
    names = {name: getattr(sl, name) for name in sl.__all__}
    for package in ("attacks", "attribution", "comparison", "data", "metrics", "models", "training"):
        module = importlib.import_module(f"saliency_lab.{package}")
        names |= {name: getattr(module, name) for name in module.__all__}
    return names


WITHOUT_ARGUMENTS = {"card_of", "OBJECTIVES"}
"""What has no arguments to check: an inner function that takes a module, and a registry."""


def test_every_public_function_is_covered(targets: list[Target]) -> None:
    covered = {target.label.partition(".")[0] for target in targets}
    for name, item in _public().items():
        if inspect.isfunction(item) and inspect.signature(item).parameters and name not in WITHOUT_ARGUMENTS:
            assert name in covered, f"add a valid call of {name}"
        if inspect.isclass(item) and name in covered:
            for method, function in inspect.getmembers(item, callable):
                inner = name in ("Study", "Comparison", "Attributions", "Split", "SanityCheck")
                if (
                    inner
                    and not method.startswith("_")
                    and inspect.signature(function).parameters.keys() - {"self"}
                ):
                    assert f"{name}.{method}" in {target.label for target in targets}, f"{name}.{method}"


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    folder = tmp_path_factory.mktemp("wrong")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return _targets(folder)


# --- settings, recipe keys -------------------------------------------------------------------------------

UNLIKE: list[Any] = [ODD, NAN, INF, b"a", 1j, 10**30, -(10**30), [ODD], {"a": ODD}, object]
"""What no setting takes."""


def _wrong_for(annotation: Any) -> list[Any]:
    """Return values that a setting of this type does not take."""
    options = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else ()
    )
    plain = list(options or (annotation,))
    wrong = [value for value in UNLIKE if not (value is object and "Callable" in str(annotation))]
    if any(each is Any or each is dict or "Any" in str(each) for each in plain) and "Callable" not in str(
        annotation
    ):
        return [each for each in (ODD, b"a") if "dict" in str(annotation)]
    if plain == [int]:
        wrong += [2.5, "x", "", True, None, [], (), {}, "2"]
    elif plain == [float]:
        wrong = [each for each in wrong if not isinstance(each, int)]
        wrong += ["x", "", True, None, [], (), {}, [1.0], "1/0"]
    elif plain == [bool]:
        wrong += [1, 0, "yes", "", None, [], (), {}, 2.5]
    elif plain == [str]:
        wrong += [3, 2.5, True, None, [], (), {}, ["a"]]
    elif all(typing.get_origin(each) is typing.Literal for each in plain):
        wrong += ["no such", "", 3, None, True, [], (), {}, 2.5]
    return wrong


def _settings() -> Iterator[type[BaseModel]]:
    """Every settings model of the package."""
    for module in pkgutil.walk_packages(saliency_lab.__path__, "saliency_lab."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)
    waiting = [Settings]
    while waiting:
        model = waiting.pop()
        waiting += model.__subclasses__()
        stored = "study.cache" in model.__module__  # read from files that have a digest
        if (
            model.__module__.startswith("saliency_lab.")
            and not stored
            and model.model_fields
            and not inspect.isabstract(model)
        ):
            yield model


def _setting_cases() -> Iterator[Case]:
    for model in [*dict.fromkeys(_settings()), sl.ModelCard]:
        label = model.__name__
        for name, field in model.model_fields.items():
            wrong = _wrong_for(field.annotation)
            wrong += [10**9] if field.annotation is int and name != "seed" else []
            if "float" in str(field.annotation):
                wrong = [each for each in wrong if not isinstance(each, int) or isinstance(each, bool)]
            if model is sl.ModelCard:  # it is read from JSON, which has fewer types
                wrong = (
                    [ODD, 1j, [ODD], {"a": ODD}, object] if "Any" not in str(field.annotation) else [ODD, 1j]
                )
            for value in wrong:
                yield Case(
                    label, name, value, functools.partial(parse_settings, model, {name: value}, of=label)
                )
                if all(not each.is_required() for each in model.model_fields.values()):
                    yield Case(f"{label} called", name, value, functools.partial(model, **{name: value}))


def _recipe_cases() -> Iterator[Case]:
    recipe = dotted(load_recipe("digits/asgt").model_dump())
    for key, default in recipe.items():
        kind = type(default) if default is not None else None
        wrong = [ODD, b"a", 1j, [ODD], NAN, INF]
        wrong += [10**30] if kind is int else []
        wrong += {int: ["x", 2.5, True, None, []], float: ["x", True, None, []], str: [3, True, None, []],
                  bool: [1, "yes", None, []]}.get(kind, [])  # fmt: skip
        for value in wrong:
            yield Case("load_recipe", key, value, functools.partial(load_recipe, "digits/asgt", {key: value}))
        unknown = f"{key}x"
        yield Case("load_recipe", unknown, 1, functools.partial(load_recipe, "digits/asgt", {unknown: 1}))


# --- commands --------------------------------------------------------------------------------------------

WORDS: dict[str, list[str]] = {
    "integer": ["x", "", "2.5", "-1", "nan", "inf", "1e3", "0x1", "1" * 5000],
    "float": ["x", "", "nan", "1,2", "1/0", "1" * 5000],
    "choice": ["nosuch", "", "3"],
    "text": ["no_such_module:thing", "no such", "[1,", "\u202e", "../.."],
    "path": ["/proc/no/such/folder", "1" * 5000],
}
"""Words that are wrong for an option of this kind."""

VALID: dict[str, list[str]] = {
    "attack": ["saved", "--data", "digits", "--eps", "0.1", "--images", "2", "--out", "o"],
    "attribute": ["saved", "--data", "digits", "--images", "2", "--out", "o"],
    "score": ["saved", "--data", "digits", "--metric", "sparseness", "--images", "2", "--out", "o"],
    "audit": ["saved", "--data", "digits", "--eps", "0.1", "--images", "2"],
    "train": ["digits/standard", "--set", "training.epochs=1", "--out", "t"],
    "study": ["study.toml", "--out", "o", "--plan"],
    "reproduce": ["digits", "--out", "o", "--plan"],
    "report": ["store"],
    "verify": ["store"],
    "list": ["methods"],
    "roar": ["digits/standard", "--set", "training.epochs=1", "--out", "r"],
    "download": ["digits"],
    "doctor": [],
    "power": ["--runs", "1", "--seeds", "2", "--images", "10"],
    "demo": [],
}
"""A valid call of each command."""

NOT_REFUSED = {
    ("study", "--page"), ("reproduce", "--page"), ("study", "--address"), ("reproduce", "--address"),
    ("study", "--workers"), ("reproduce", "--workers"), ("study", "--executor"), ("reproduce", "--executor"),
    ("*", "--from"), ("*", "--pack"), ("doctor", "--data-root"), ("power", "STUDY"), ("*", "--data-root"), ("study", "--out"), ("reproduce", "--out"),
}  # fmt: skip
"""Options that these valid calls do not use: --plan writes no page, and embedded data need no folder."""


def _invoke(words: list[str]) -> None:
    """Run a command in this process; raise what it printed as a `SaliencyLabError` if it refused its input."""
    result = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code == 2:
        raise SaliencyLabError(re.sub(r"[\s│╭╮╰╯─]+", " ", result.output))
    if result.exit_code:
        raise RuntimeError(f"exit code {result.exit_code}: {result.output[:200]}")


def _kind_of(option: Any) -> str:
    """Return the kind of words that an option takes, from its Python type."""
    named = str(option)
    if isinstance(option, type) and issubclass(option, enum.Enum):
        return "choice"
    return next(
        (kind for word, kind in (("Path", "path"), ("int", "integer"), ("float", "float")) if word in named),
        "text",
    )


def _command_cases() -> Iterator[Case]:
    commands = get_command(app).commands
    assert commands.keys() == VALID.keys(), commands.keys() ^ VALID.keys()
    for verb, command in commands.items():
        unknown = [verb, *VALID[verb], "--no-such-option", "1"]
        yield Case(verb, "--no-such-option", "1", functools.partial(_invoke, unknown))
        if verb in ("demo", "roar"):  # they train
            continue
        hints = typing.get_type_hints(inspect.unwrap(command.callback))
        for parameter in command.params:
            name, kind = parameter.opts[0], _kind_of(hints[parameter.name])
            if {(verb, name), ("*", name)} & NOT_REFUSED:
                continue
            if parameter.param_type_name != "argument" and parameter.is_flag:
                yield Case(verb, name, "=1", functools.partial(_invoke, [verb, *VALID[verb], f"{name}=1"]))
                continue
            for word in WORDS[kind]:
                given = list(VALID[verb])
                if parameter.param_type_name == "argument":
                    given[:1] = [word]
                else:
                    at = given.index(name) if name in given else len(given)
                    given[at : at + 2] = [name, word]
                yield Case(verb, name, word, functools.partial(_invoke, [verb, *given]))


# --- the tests -------------------------------------------------------------------------------------------

ACCEPTED = {
    ("ImageBatch", "y"): "labels are checked against classes where a model is known",
    ("Attributions.compare", "k"): "1 is the whole map",
    ("pool_comparisons", "method"): "the accuracy belongs to no method, which tables write as ''",
}
"""What a list of wrong values holds although it is right for one argument."""


def _check(cases: Iterable[Case]) -> int:
    """Try every case; fail if too many messages are not clear, or a value is accepted or takes too long."""
    counts: collections.Counter[str] = collections.Counter()
    unclear = []
    for case in cases:
        result = outcome(case)
        if result == "accepted" and (case.label, case.argument) in ACCEPTED:
            continue
        counts[result.partition(":")[0]] += 1
        if result != "clear":
            unclear.append(f"{case} -> {result}")
    total = sum(counts.values())
    print(f"{counts['clear']} of {total} clear")
    listed = "\n".join(unclear[:100])
    assert not counts["hang"] and not counts["accepted"], listed
    assert counts["clear"] >= 0.99 * total, f"{counts}\n{listed}"
    return total


@pytest.fixture(autouse=True)
def _unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder, and forget what was registered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        registry, "_registered", {kind: dict(each) for kind, each in registry._registered.items()}
    )
    shown = warnings.showwarning
    yield
    warnings.showwarning = shown
    sl.show_progress(False)


def test_wrong_arguments_of_functions(targets: list[Target]) -> None:
    assert _check(case for target in targets for case in cases_of(target)) >= 4_000


def test_wrong_settings() -> None:
    assert _check(_setting_cases()) >= 5_000


def test_wrong_recipe_keys() -> None:
    assert _check(_recipe_cases()) >= 300


def test_wrong_options_of_commands(tmp_path: Path) -> None:
    sl.save_model(sl.build_model("small_cnn"), tmp_path / "saved")
    study = sl.Study({"a": _net()}, _data().test.sample(4, 0), store=tmp_path / "store")
    study.attribute("saliency").score("sparseness")
    (tmp_path / "study.toml").write_text(
        'recipes = ["digits/standard"]\nmethods = ["saliency"]\nmetrics = ["sparseness"]\n'
        'data = { name = "digits", images = 4 }\n'
    )
    assert _check(_command_cases()) >= 200
