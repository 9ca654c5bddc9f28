"""`roar`, the public entry point: attribute, replace pixels, retrain, and measure the accuracy."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saliency_lab._common.arguments import check_choice, check_counts, check_flag, check_path
from saliency_lab._common.errors import InputError
from saliency_lab._common.fingerprints import model_fingerprint
from saliency_lab._common.inference import check_module, named_device
from saliency_lab._common.passes import predict_classes
from saliency_lab._common.progress import progress
from saliency_lab._common.provenance import machine, versions
from saliency_lab._common.selection import Selection
from saliency_lab._common.warn import warn
from saliency_lab.data import ImageData
from saliency_lab.metrics.catalogue import LERF, MORF, Order
from saliency_lab.retraining.replacement import channel_means, pixel_ranks, replace_pixels
from saliency_lab.retraining.result import CONTROL, RoarResult
from saliency_lab.study.cache.results import Content, Result, cache_versions
from saliency_lab.study.cache.store import FolderStore, LockedError, MemoryStore, Store, read_intact
from saliency_lab.study.keys import method_dependencies
from saliency_lab.study.requests import Request, read_methods
from saliency_lab.training import Recipe, load_recipe, train
from saliency_lab.training.api import fabric_device, load_data, named_module, run_folder
from saliency_lab.training.health import predicts_one_class
from saliency_lab.training.recipe import check_overrides

FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)

STORE = "roar"
"""The folder of the results, inside that of the whole call or study."""


@dataclass(frozen=True, eq=False)
class RoarPlan:
    """What is retrained: a recipe on data without the pixels that each method ranks first."""

    recipe: Recipe
    data: ImageData
    model: nn.Module | None
    architecture: str
    """The name of a built-in architecture, or the fingerprint of a custom network."""
    methods: Mapping[str, Request]
    fractions: tuple[float, ...]
    order: Order
    absolute: bool
    seeds: tuple[int, ...]

    def result(self, seed: int, method: Request | None = None, fraction: float = 0.0) -> Result:
        """Return what the accuracy of one network depends on; without a method, of that on whole images."""
        depends: dict[str, Any] = {
            "recipe": {**self.recipe.portable(), "seed": seed},
            "data": self.data.fingerprint,
            "architecture": self.architecture,
            **self.recipe.own_code(),
            "versions": cache_versions("retraining"),
        }
        if method is not None:
            ranking = {**method_dependencies(method), "order": self.order, "absolute": self.absolute}
            depends |= {"ranking": ranking, "fraction": fraction}
        return Result("retraining", depends)

    def cells(self) -> list[tuple[Request | None, float]]:
        """Return method and fraction of every network of one seed; that on whole images first."""
        retrained = [(method, fraction) for method in self.methods.values() for fraction in self.fractions]
        return [(None, 0.0), *retrained]

    def networks(self) -> list[tuple[int, Request | None, float]]:
        """Return seed, method and fraction of every network."""
        return [(seed, *cell) for seed in self.seeds for cell in self.cells()]


def roar(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    data: ImageData | None = None,
    methods: Selection = ("saliency", "integrated_gradients"),
    *,
    fractions: Sequence[float] = FRACTIONS,
    order: Order = "most_relevant_first",
    absolute: bool = False,
    seeds: Sequence[int] = (0, 1, 2),
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    model: nn.Module | None = None,
    device: str = "auto",
    trust: bool = False,
) -> RoarResult:
    """Remove and retrain (ROAR), or keep and retrain (KAR; Hooker et al., NeurIPS 2019).

    For each seed, a network is trained by the recipe, and each method attributes its predictions on the
    training, validation and test images. In every image the given fraction of the pixels is replaced by the
    mean of the channel over the training images: those of the highest attribution (ROAR), or of the lowest
    (KAR). A new network is trained on the result, from new weights of the same seed, and its accuracy is
    measured on test images that were changed in the same way. Pixels that `random` ranks are the control,
    which is always included.

    Parameters
    ----------
    recipe : str, path, mapping or Recipe
        As for `train`.
    data : ImageData, optional
        The images; by default what the recipe names.
    methods : str, callable, sequence of these, or mapping of str to settings
        As for `Study.attribute`. Unless they set `target`, maps explain the predicted class: a map of the
        label would show the label of a test image by the shape of what is missing.
    fractions : sequence of float
        Shares of the pixels that are replaced, above 0 and below 1.
    order : {"most_relevant_first", "least_relevant_first"}
        Which pixels are replaced first: "most_relevant_first" is ROAR, "least_relevant_first" is KAR.
    absolute : bool
        Whether pixels are ranked by the magnitude of their attributions instead of the signed value.
    seeds : sequence of int
        Training seeds; everything is repeated with each of them.
    out : path, optional
        Folder in which the result of each network is stored. The same call, run again, trains only the
        networks that are missing, and an interrupted training goes on. Several processes may share it.
        Retrained networks themselves are not kept.
    overrides : mapping, optional
        Dotted recipe keys, as for `train`.
    model : nn.Module, optional
        Your own module, as for `train`.
    device : str
        Where networks are trained and run; "auto" is CUDA if there is a GPU, else the CPU.
    trust : bool
        Whether to import code that the file of the recipe names, as for `train`.

    Returns
    -------
    RoarResult
        `summary()` compares each method with the control; `table()` and `plot()` show the accuracies.

    Raises
    ------
    InputError, RecipeError, DataNotFoundError
        If an argument, the recipe or the data is wrong, before anything is trained.
    TrainingError
        If the loss of a training is not finite, or a network collapses on whole images.

    Warns
    -----
    UserWarning
        If retrained networks predict one class for nearly all test images.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> quick = {"training.epochs": 1, "validation.images": 16, "validation.steps": 1}
    >>> result = sl.roar("digits/standard", methods="saliency", fractions=[0.5], seeds=[0], overrides=quick)
    >>> result.summary().index.sort_values().tolist()
    ['random', 'saliency']
    """
    plan = make_plan(
        recipe,
        data,
        methods,
        fractions=fractions,
        order=order,
        absolute=absolute,
        seeds=seeds,
        overrides=overrides,
        model=model,
        trust=trust,
    )
    named_device(device)
    if out is not None:
        out = check_path(out, "out")
        return run_plan(plan, out, FolderStore(out / STORE), device)
    with tempfile.TemporaryDirectory() as folder:
        return run_plan(plan, Path(folder), MemoryStore(), device)


def make_plan(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    data: ImageData | None,
    methods: Selection,
    *,
    fractions: Sequence[float],
    order: Order,
    absolute: bool,
    seeds: Sequence[int],
    overrides: Mapping[str, Any] | None = None,
    model: nn.Module | None = None,
    trust: bool = False,
) -> RoarPlan:
    """Check the arguments of `roar`; nothing is trained.

    Raises
    ------
    InputError
        If one of them is wrong.
    """
    overrides = check_overrides(overrides)
    check_flag(absolute, "absolute")
    if model is not None:
        check_module(model, "model")
    if "seed" in overrides:
        raise InputError("the override 'seed' has no effect; give the training seeds by seeds=…")
    check_choice(order, (MORF, LERF), "order")
    settled = load_recipe(recipe, overrides, trust=trust)
    data = load_data(settled.data) if data is None else data
    if not isinstance(data, ImageData) or not len(data.train):
        raise InputError(
            "data must be a saliency_lab.ImageData with training images, as load_dataset returns it"
        )
    own = model if model is not None else named_module(settled, data, settled.seed)
    return RoarPlan(
        settled,
        data,
        model,
        settled.model.name if own is None else model_fingerprint(own),
        _requests(methods),
        check_fractions(fractions),
        order,
        absolute,
        _check_seeds(seeds),
    )


def _requests(methods: Selection) -> dict[str, Request]:
    """Read the methods, which explain predictions unless they say otherwise, and add the control."""
    requests = {request.label: request for request in read_methods(methods)}
    control = requests.pop(CONTROL, None)
    if control is not None and control.what != CONTROL:
        raise InputError(f"the label '{CONTROL}' is that of the control; give your method another label")
    requests[CONTROL] = control or read_methods(CONTROL)[0]
    return {
        label: replace(request, settings={"target": "prediction", **request.settings})
        for label, request in requests.items()
    }


def check_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    """Return the fractions in ascending order.

    Raises
    ------
    InputError
        If there are none, or one is not a number above 0 and below 1.
    """
    given = list(fractions) if isinstance(fractions, Sequence | np.ndarray) else []
    numbers = [each for each in given if isinstance(each, float | np.floating) and 0 < each < 1]
    if not given or len(numbers) < len(given):
        raise InputError(
            f"fractions must be numbers above 0 and below 1, such as (0.1, 0.5), not {fractions!r}"
        )
    return tuple(sorted({float(each) for each in numbers}))


def _check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    given = check_counts(seeds, "seeds", least=0, most=2**63 - 1)
    if len(set(given)) < len(given):
        raise InputError(f"seeds must be one or more different whole numbers, not {seeds!r}")
    return tuple(given)


def missing_networks(plan: RoarPlan, store: Store) -> int:
    """Return how many networks are still to be trained."""
    keys = {plan.result(*network).key for network in plan.networks()}
    return sum(not store.has("retraining", key) for key in keys)


def run_plan(plan: RoarPlan, folder: Path, store: Store, device: str) -> RoarResult:
    """Train what is missing in `store`, with the training runs in `folder`, and collect the result.

    Networks that other processes train in the store come last.
    """
    found: dict[tuple[int, str | None, float], Content] = {}
    with progress(label="retraining", total=len(plan.networks())) as bar:
        for seed, wait in [(seed, wait) for wait in (False, True) for seed in plan.seeds]:
            run = _SeedRun(plan, seed, folder, store, device)
            for method, fraction in plan.cells():
                network = seed, None if method is None else method.label, fraction
                if network in found:
                    continue
                try:
                    found[network] = run.content(method, fraction, wait=wait)
                except LockedError:
                    if method is None:  # the others depend on this network
                        break
                    continue
                bar.update()
    if count := sum(content.info["collapsed"] for content in found.values()):
        warn(
            f"recipe '{plan.recipe.name}': {count} of the retrained networks predict one class for nearly "
            "all test images; if that is too many, lower optimizer.learning_rate or the fractions",
        )
    shares = (0.0, *plan.fractions)

    def collect(read: Callable[[Content], Any], method: str) -> np.ndarray:
        return np.array(
            [
                [np.asarray(read(found[seed, method if share else None, share])) for share in shares]
                for seed in plan.seeds
            ]
        )

    return RoarResult(
        recipe=plan.recipe.name,
        order=plan.order,
        fractions=shares,
        seeds=plan.seeds,
        correct={
            method: collect(lambda content: content.tensors["correct"], method) for method in plan.methods
        },
        collapsed={
            method: collect(lambda content: content.info["collapsed"], method) for method in plan.methods
        },
    )


class _SeedRun:
    """One training seed; the network and the ranks of a method are made when they are needed."""

    def __init__(self, plan: RoarPlan, seed: int, folder: Path, store: Store, device: str) -> None:
        self.plan, self.seed, self.folder, self.store, self.device = plan, seed, folder, store, device
        self._net: nn.Module | None = None
        self._ranks: tuple[str, dict[str, Tensor]] | None = None

    def content(self, method: Request | None, fraction: float, *, wait: bool) -> Content:
        """Return whether each test image is classified correctly, from the store or by training.

        Raises
        ------
        LockedError
            Unless `wait`, if another process is training the network.
        """
        result = self.plan.result(self.seed, method, fraction)
        if (content := read_intact(self.store, result.kind, result.key)) is not None:
            return content
        with self.store.lock(result.key, wait=wait):
            content = read_intact(self.store, result.kind, result.key)  # of another process
            if content is None:
                content = self._base() if method is None else self._retrain(method, fraction, result.key)
                self.store.write(result, content)
        return content

    def _base(self) -> Content:
        return self._measure(self._trained(), self.plan.data)

    def _trained(self) -> nn.Module:
        """Return the network that is explained, trained on whole images."""
        if self._net is None:
            plan = self.plan
            folder = run_folder(self.folder / "models", plan.recipe, plan.data, self.seed, plan.model)
            self._net = self._train(plan.recipe, plan.data, folder)
        return self._net

    def _retrain(self, method: Request, fraction: float, key: str) -> Content:
        plan = self.plan
        if self._ranks is None or self._ranks[0] != method.label:
            ranks = pixel_ranks(
                self._trained(), plan.data, method, order=plan.order, absolute=plan.absolute, seed=self.seed
            )
            self._ranks = method.label, ranks
        changed = replace_pixels(plan.data, self._ranks[1], fraction, channel_means(plan.data))
        run = self.folder / STORE / "runs" / key
        kept = load_recipe(plan.recipe, {"training.collapse": "keep"})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about single networks
            content = self._measure(self._train(kept, changed, run), changed)
        shutil.rmtree(run, ignore_errors=True)
        return content

    def _train(self, recipe: Recipe, data: ImageData, folder: Path) -> nn.Module:
        net = train(
            recipe,
            data,
            seed=self.seed,
            out=folder,
            model=self.plan.model,
            **fabric_device(self.device),
        )
        return net.to(named_device(self.device))

    def _measure(self, net: nn.Module, data: ImageData) -> Content:
        labels = data.test.labels
        predicted = torch.cat(
            [
                torch.tensor(predict_classes(net, data.test.batch(rows).x).classes)
                for rows in torch.arange(len(labels)).split(4096)
            ]
        )
        correct = predicted == labels
        share = predicted.bincount().max() / len(labels)
        provenance = {"device": str(named_device(self.device)), **machine(), "versions": versions()}
        info = {
            "collapsed": predicts_one_class(float(share), float(correct.double().mean())),
            "provenance": provenance,
        }
        return Content({"correct": correct}, info)
