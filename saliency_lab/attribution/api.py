"""The public entry point of attribution: check, cut into chunks, compute, put everything back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saliency_lab._common.checks import are_probabilities, check_images, check_seed
from saliency_lab._common.errors import unknown_name
from saliency_lab._common.hashing import TensorBlocks, fingerprint
from saliency_lab._common.inference import (
    check_classifier,
    device_of,
    dtype_of,
    gradients_recorded,
    in_float32,
    pass_rows,
    translate_model_errors,
    undisturbed,
)
from saliency_lab._common.mapped import empty_tensor
from saliency_lab._common.passes import Passes
from saliency_lab._common.progress import progress
from saliency_lab._common.provenance import versions
from saliency_lab._common.registry import given_settings
from saliency_lab._common.samples import Images, read_sample
from saliency_lab._common.seeding import preserved_rng
from saliency_lab._common.settings import Settings, parse_settings
from saliency_lab._common.warn import warn
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.captum_engine import by_captum
from saliency_lab.attribution.catalogue import METHODS, Explained, Method, settings_of_rows
from saliency_lab.attribution.result import Attributions
from saliency_lab.attribution.target import (
    Target,
    TargetSpec,
    describe_target,
    resolve_target,
    target_of_rows,
)
from saliency_lab.models import card_of

AttributionEngine = Literal["fast", "captum"]
"""Which code computes the maps: this package's, or Captum's."""

OwnMethod = Callable[..., Tensor]
"""A user's method: `function(model, x, classes, **settings)` returns maps of the shape of `x`."""


def attribute(
    model: nn.Module,
    x: Images,
    y: Tensor | None = None,
    method: str | OwnMethod = "saliency",
    *,
    target: TargetSpec = "label",
    seed: int = 0,
    engine: AttributionEngine = "fast",
    **settings: Any,
) -> Attributions:
    """Attribute a model's output to the pixels of each image.

    The work is done on the model's device, in chunks; the model is run in eval mode and left
    as it was. A sample's map does not depend on the batch it comes in, and random draws are keyed by
    `seed` and the sample itself.

    Parameters
    ----------
    model : nn.Module
        Maps images to logits (N, K).
    x : Tensor, DataLoader or data set
        Images (N, C, H, W), floating point in [0, 1]; or a pair (images, labels), what `load_images` returns,
        or a loader or data set of torch or Hugging Face, whose labels are used unless `y` is given.
    y : Tensor, optional
        Labels (N,), needed for `target="label"`.
    method : str, callable, or a class or an object of captum.attr
        A name of `list_methods()`; or `function(model, x, classes, **settings)` that returns maps of the
        shape of `x`, which is called on chunks; or a class of Captum, whose settings are the arguments of its
        constructor and of its `attribute`. Maps of Captum with the shape of a layer are summed over channels
        and enlarged to the images, and `settings["note"]` of the result says so.
    target : "label", "prediction", int, Tensor (N,), or a pair of these
        The logit to explain; a pair means the difference of two logits.
    seed : int
        Seeds every random draw; 0 or more.
    engine : {"fast", "captum"}
        "captum" computes the maps of a named method by Captum, as a check; `list_methods()` says for which.
        Sampled methods then draw differently, and agree only as `n` grows.
    **settings
        The method's own; `list_methods()` shows them with their defaults.

    Returns
    -------
    Attributions
        Signed float32 maps of the shape of `x`, on the CPU.

    Raises
    ------
    InputError
        Names an unknown method, setting or class, a bad image, or a model the method cannot treat.

    Warns
    -----
    UserWarning
        If maps are not finite.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    >>> x = torch.rand(5, 1, 4, 4)
    >>> attribute(model, x, method="saliency", target=2).values.shape
    torch.Size([5, 1, 4, 4])
    """
    call = parse_call(method, settings, engine=engine, target=target)
    seed = check_seed(seed)
    x, y, _ = read_sample(x, y)
    return run_call(model, x, y, call, seed)


@dataclass(frozen=True, eq=False)
class MethodCall:
    """A method with its settings, engine and target, parsed."""

    method: Method
    settings: Settings
    engine: AttributionEngine = "fast"
    target: TargetSpec = "label"

    @classmethod
    def of(cls, method: str | OwnMethod, keywords: Mapping[str, Any]) -> MethodCall:
        """Return the call whose `keywords` these are, without validating them again."""
        chosen, settings = METHODS.find(method), dict(keywords)
        engine, target = settings.pop("engine", "fast"), settings.pop("target", "label")
        return cls(chosen, chosen.settings.model_construct(**settings), engine, target)

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings that a result records, the engine among them unless it is the usual one."""
        custom = self.method.function is not None
        recorded = given_settings(self.settings) if custom else dict(self.settings)
        return recorded if self.engine == "fast" else recorded | {"engine": self.engine}

    @property
    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of `attribute` with which the call can be made again."""
        usual = isinstance(self.target, str) and self.target == "label"
        return self.recorded if usual else self.recorded | {"target": self.target}

    def of_rows(self, rows: Tensor) -> MethodCall:
        """Return the call for the images at `rows`: what has one entry per image is cut to these."""
        given = {name: getattr(self.settings, name) for name in self.settings.model_fields_set}
        cut = settings_of_rows(self.method, given, rows)
        settings = type(self.settings).model_construct(**cut)
        return replace(self, settings=settings, target=target_of_rows(self.target, rows))

    @property
    def run(self) -> Callable[[Batch, Any], Explained]:
        """The function that computes maps with this engine."""
        return by_captum(self.method) if self.engine == "captum" else self.method.run


def parse_call(
    method: str | OwnMethod,
    settings: Mapping[str, Any],
    *,
    engine: AttributionEngine = "fast",
    target: TargetSpec = "label",
    label: str | None = None,
) -> MethodCall:
    """Parse a method with its settings; `label` names it in error messages.

    Raises
    ------
    InputError
        If there is no such method, setting or engine, or the engine does not have the method.
    """
    chosen = METHODS.find(method)
    parsed = parse_settings(chosen.settings, settings, of=f"method '{label or chosen.name}'")
    if engine not in ("fast", "captum"):
        raise unknown_name("engine", str(engine), ["fast", "captum"])
    if engine == "captum":
        by_captum(chosen)  # refuses a method that Captum does not have
    return MethodCall(chosen, parsed, engine, target)


def run_call(model: nn.Module, x: Tensor, y: Tensor | None, call: MethodCall, seed: int) -> Attributions:
    """Do what `attribute` says, with settings already parsed."""
    started = time.perf_counter()
    chosen, name, parsed, target = call.method, call.method.name, call.settings, call.target
    with (
        gradients_recorded(),
        in_float32(model),
        translate_model_errors(model, x),
        undisturbed(model),
        preserved_rng(seed),
    ):
        x = check_images(x).detach()
        if chosen.family != "control" and are_probabilities(check_classifier(model, x)):
            warn(
                f"{type(model).__name__} returns probabilities, not logits: their gradient, and with it the "
                "map, vanishes where the model is confident; remove its last softmax",
            )
        aim = resolve_target(model, x.to(dtype_of(model)), y, target)
        parsed = _resolved(chosen, parsed, model, x)
        values = empty_tensor(x.shape)
        totals: Tensor | None = None
        broken = 0
        forwards, gradients = Passes(model, x), Passes(model, x, backward=True)
        chunks = _chunks(name, call.run, parsed, seed, forwards, gradients, aim)
        for rows, (maps, total) in chunks:
            values[rows] = maps
            broken += int((~torch.isfinite(values[rows]).flatten(1).all(1)).sum())
            if total is not None:
                totals = torch.empty(len(x), dtype=torch.float64) if totals is None else totals
                totals[rows] = total.cpu().double()
    if broken:
        warn(
            f"{name}: {broken} of {len(x)} maps are not finite; look for NaN or infinity in what "
            f"{type(model).__name__} returns, or in its gradient",
        )
    return Attributions(
        values=values,
        method=name,
        settings=replace(call, settings=parsed).recorded,
        target=describe_target(target),
        seconds=time.perf_counter() - started,
        seed=seed,
        classes=aim.classes if aim.against is None else torch.stack([aim.classes, aim.against], 1),
        total=totals,
        provenance={
            "device": str(device_of(model)),
            "images": fingerprint(TensorBlocks.of(x, torch.float32)),
            "versions": versions(),
            **_facts(forwards, gradients),
        },
        own=chosen.function is not None,
        function=chosen.function,
        class_names=_class_names(model, aim),
        probabilities=aim.probabilities,
    )


def _facts(forwards: Passes, gradients: Passes) -> dict[str, Any]:
    """Return how passes ran, where that was decided by measurement."""
    plans = {"forward": forwards.plan, "gradient": gradients.plan}
    facts = {name: plan.facts() for name, plan in plans.items() if plan is not None}
    return {"passes": facts} if facts else {}


def _class_names(model: nn.Module, aim: Target) -> tuple[str, ...]:
    """Return what each map explains, by the class names of the model's card; empty if it has none."""
    card = card_of(model)
    names = () if card is None else card.classes or ()
    if aim.highest >= len(names):
        return ()
    chosen = [names[row] for row in aim.classes.tolist()]
    if aim.against is None:
        return tuple(chosen)
    against = [names[row] for row in aim.against.tolist()]
    return tuple(f"{first} − {second}" for first, second in zip(chosen, against, strict=True))


@dataclass(frozen=True)
class Originals:
    """The images (m, C, H, W) that points are compared with: point i with image `of[i]`.

    Draws at a point are keyed by its original. Settings with one entry per image are those of the place
    `places[of[i]]` in the images that they were given for.
    """

    images: Tensor
    of: Tensor
    places: Tensor


def attribute_points(
    model: nn.Module,
    points: Tensor,
    classes: Tensor,
    originals: Originals,
    method: str | OwnMethod,
    *,
    seed: int,
    settings: Mapping[str, Any],
) -> Tensor:
    """Return maps of points (n, C, H, W), on the CPU, by the function Φ that made their originals' maps.

    A sampled method draws for a point what it drew for the original, so that Φ at two points differs by what
    the points do to it, not by the draws. A custom method's maps keep the type that it returns.
    """
    given = dict(settings)
    engine = given.pop("engine", "fast")
    call = parse_call(method, given, engine=engine)
    with (
        gradients_recorded(),
        in_float32(model),
        translate_model_errors(model, points),
        undisturbed(model),
        preserved_rng(seed),
    ):
        aim = Target(classes.cpu().clone(), None, int(classes.max()))
        points = points.detach()
        parsed = _resolved(call.method, call.settings, model, points)
        forwards, gradients = Passes(model, points), Passes(model, points, backward=True)
        chunks = _chunks(call.method.name, call.run, parsed, seed, forwards, gradients, aim, originals)
        parts = [maps for _, (maps, _) in chunks]
    maps = torch.cat([part.cpu() for part in parts])
    return maps.float() if call.method.function is None else maps


def _resolved(method: Method, parsed: Any, model: nn.Module, x: Tensor) -> Any:
    """Return the settings with those that only a run of the model tells, such as a layer."""
    if method.resolve is None:
        return parsed
    return method.resolve(model, x[:1].to(device_of(model), dtype_of(model)), parsed)


def _chunks(
    name: str,
    run: Callable[[Batch, Any], Explained],
    parsed: Any,
    seed: int,
    forwards: Passes,
    gradients: Passes,
    aim: Target,
    originals: Originals | None = None,
) -> Iterator[tuple[slice, Explained]]:
    """Yield what the method finds for the images of the passes, chunk by chunk."""
    model, x = forwards.model, forwards.x
    device, dtype = device_of(model), dtype_of(model)
    precise = torch.promote_types(dtype, torch.float32)  # keys do not depend on the model's type
    size = pass_rows(model, x.shape, backward=True)
    with progress(label=name, total=len(x)) as bar:
        for start in range(0, len(x), size):
            rows = slice(start, min(start + size, len(x)))
            exact = x[rows].to(device, precise, copy=True)
            keys, index = exact, torch.arange(len(x))[rows]
            if originals is not None:
                of = originals.of[rows]
                keys, index = originals.images[of].to(device, precise), originals.places[of]
            classes = aim.rows(start, rows.stop, device)
            with torch.no_grad():
                batch = Batch(
                    model,
                    exact.to(dtype),
                    keys,
                    exact,
                    classes,
                    index,
                    seed,
                    forwards,
                    gradients,
                    total=len(x),
                )
                explained = run(batch, parsed)
            yield rows, explained
            bar.update(len(exact))
