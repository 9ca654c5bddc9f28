"""Randomisation metrics: does the map change with the weights of the network, or with the class?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from pydantic import Field
from torch import Tensor, nn

from saliency_lab._common.copying import copy_model, named_tensors
from saliency_lab._common.errors import InputError
from saliency_lab._common.passes import weights_digest
from saliency_lab._common.ranks import mean_ranks, pearson
from saliency_lab._common.seeding import derive_seed, sample_normal, sample_uniform
from saliency_lab.attribution.reinitialisation import (
    ChangeCheck,
    check_randomisable,
    is_layer,
    modules_in_order,
    randomise,
)
from saliency_lab.attribution.similarity import ssim
from saliency_lab.metrics.catalogue import MapsMade, Metric, MetricInput, MetricOutput, register
from saliency_lab.metrics.explainer import Explaining
from saliency_lab.metrics.probe import Probe

Order = Literal["top_down", "bottom_up", "independent"]
Similarity = Literal["spearman", "ssim"]


class Randomisation(Explaining):
    """Layers are re-initialised from the output down, from the input up, or one at a time."""

    order: Order = "top_down"
    similarity: Similarity = "spearman"
    absolute: bool = True


class SmoothRandomisation(Randomisation):
    """Maps are averaged over `samples` copies with noise of `noise` times the image's range."""

    samples: int = Field(10, ge=1)
    noise: float = Field(0.1, ge=0)


class Histogram(Explaining):
    """Complexity is the entropy of a histogram of the map in `bins` bins."""

    bins: int = Field(100, ge=2)


class OtherClass(Explaining):
    """The class is drawn among the others, keyed by (seed, image)."""

    similarity: Similarity = "ssim"


def randomised(model: nn.Module, order: Order, seed: int, image: Tensor) -> Iterator[nn.Module]:
    """Yield a copy of the network with one more layer re-initialised each time (`independent`: only one).

    It is the same copy each time. A layer is a module with parameters of its own (a convolution, an
    attention, the owner of a class token); its draw is keyed by (seed, its name). The order is that in which
    the layers run on the image (1, C, H, W). The outputs for it are verified to change, once for the same
    weights, order and seed.

    Raises
    ------
    InputError
        If the network has no such layer, or was traced, scripted or compiled; or if what it returns for the
        image never changes, or is not finite any more.
    """
    check_randomisable(model)
    names = _in_order(model, image)
    if not names:
        raise InputError("the model has no layer with parameters, so there is nothing to randomise")
    network = copy_model(model)
    known, facts = _SEEN_TO_CHANGE.setdefault(model, set()), (weights_digest(model), order, seed)
    check = None if facts in known else ChangeCheck(network, image)
    for name in names[::-1] if order == "top_down" else names:
        module = network.get_submodule(name)
        before = named_tensors(module) if order == "independent" else {}
        before = {key: tensor.detach().clone() for key, tensor in before.items()}
        randomise(module, derive_seed(seed, "randomised", name))
        if check is not None:
            check.update(network, name, [module], cumulative=order != "independent")
        yield network
        now = named_tensors(module)
        with torch.no_grad():
            for key, tensor in before.items():
                now[key].copy_(tensor)
    if check is not None:
        check.finish()
        if not check.unchanged:
            known.add(facts)


_SEEN_TO_CHANGE: WeakKeyDictionary[nn.Module, set[tuple[Any, ...]]] = WeakKeyDictionary()
"""Models whose outputs change with every layer: for which weights, order and seed."""


def layer_names(model: nn.Module) -> list[str]:
    """Return the names of the modules with parameters of their own."""
    return [name for name, module in model.named_modules() if _is_layer(name, module)]


def _in_order(model: nn.Module, image: Tensor) -> list[str]:
    """Return the names of the layers in the order in which they run; others follow their parents."""
    runs = {module: place for place, module in enumerate(modules_in_order(model, image))}

    def place(name: str) -> int:
        module = model.get_submodule(name)
        return runs[module] if module in runs or not name else place(name.rpartition(".")[0])

    return sorted(layer_names(model), key=place)


def _is_layer(name: str, module: nn.Module) -> bool:
    if "parametrizations" in name.split("."):
        return False  # belongs to the module whose weights it computes
    return is_layer(module) or hasattr(module, "reset_parameters")


def _likeness_to_randomised(case: MetricInput, start: Tensor, noisy: Tensor | None) -> MetricOutput:
    """Return the mean similarity (N,) of the map to the maps of the randomised networks."""
    settings = case.settings
    like = likeness_to(start.abs() if settings.absolute else start, settings.similarity)
    rows = []
    for network in randomised(case.probe.model, settings.order, case.probe.seed, case.probe.images[:1]):
        maps = _explained(case, network, noisy)
        rows.append(like(maps.abs() if settings.absolute else maps))
    return MetricOutput(torch.stack(rows).mean(0).numpy())


def likeness_to(first: Tensor, similarity: Similarity) -> Callable[[Tensor], Tensor]:
    """Return a function that returns the similarity (N,) of other maps to `first` (N, C, H, W)."""
    if similarity == "ssim":
        return lambda maps: ssim(first, maps)
    ranks = mean_ranks(first.flatten(1))
    return lambda maps: pearson(ranks, mean_ranks(maps.flatten(1)))


def _explained(case: MetricInput, network: nn.Module, noisy: Tensor | None) -> Tensor:
    """Maps (N, C, H, W) of the images, or means over noisy copies (N, S, C, H, W) of them."""
    if noisy is None:
        return case.explainer(network, case.probe.images, case.settings.explain)
    return case.explainer(network, noisy, case.settings.explain).mean(1)


def _mprt(case: MetricInput) -> MetricOutput:
    return _likeness_to_randomised(case, case.maps.cpu(), None)


def _smooth_mprt(case: MetricInput) -> MetricOutput:
    noisy = noisy_copies(case.probe, case.settings.samples, case.settings.noise)
    return _likeness_to_randomised(case, _explained(case, case.probe.model, noisy), noisy)


def noisy_copies(probe: Probe, samples: int, noise: float) -> Tensor:
    """Return copies (N, samples, C, H, W) with Gaussian noise, clipped to [0, 1], keyed by (seed, image)."""

    def draw() -> Tensor:
        x = probe.images[:, None]
        span = x.amax((1, 2, 3, 4), keepdim=True) - x.amin((1, 2, 3, 4), keepdim=True)
        draws = sample_normal(probe.seeds("noisy copies"), (samples, *x.shape[2:])).to(x)
        return (x + noise * span * draws).clamp(0, 1)

    return probe.remember(("noisy copies", samples, noise), draw)


def histogram_entropy(maps: Tensor, bins: int) -> Tensor:
    """Return the entropy (N,) in nats of each map's histogram between its own smallest and largest value.

    NaN for a map that is constant or not finite, which has no such histogram.
    """
    rows = []
    for values in maps.cpu().double().flatten(1):
        if not torch.isfinite(values).all() or (values == values[0]).all():
            rows.append(torch.tensor(torch.nan, dtype=torch.float64))
            continue
        counts = torch.histogram(values, bins).hist
        rows.append(torch.special.entr(counts / counts.sum()).sum())
    return torch.stack(rows)


def _fully_randomised(probe: Probe) -> nn.Module:
    """Return the network with all layers re-initialised, which is made once per call."""
    if "fully randomised" not in probe.networks:
        *_, network = randomised(probe.model, "top_down", probe.seed, probe.images[:1])
        probe.networks["fully randomised"] = network
    return probe.networks["fully randomised"]


def _efficient_mprt(case: MetricInput) -> MetricOutput:
    network = _fully_randomised(case.probe)
    before = histogram_entropy(case.maps, case.settings.bins)
    after = histogram_entropy(_explained(case, network, None), case.settings.bins)
    return MetricOutput(((after - before) / before).numpy())


def _random_logit(case: MetricInput) -> MetricOutput:
    probe = case.probe
    count = probe.logits(probe.x[:1]).shape[1]
    draws = sample_uniform(probe.seeds("other class"), (1,))[:, 0]
    classes = case.explainer.classes
    if classes.ndim != 1:
        raise InputError("random_logit needs maps that explain one class per sample, not a contrast of two")
    other = (classes + 1 + (draws * (count - 1)).long().clamp_max(count - 2)) % count
    maps = case.explainer(probe.model, probe.images, case.settings.explain, classes=other)
    return MetricOutput(likeness_to(case.maps.cpu(), case.settings.similarity)(maps).numpy())


CONSTANT = "a map of a randomised network is constant, zero or not finite"
register(
    Metric(
        name="mprt",
        family="randomisation",
        better="lower",
        range="[-1, 1]",
        reference="Adebayo et al., NeurIPS 2018",
        settings=Randomisation,
        forwards=lambda s, pixels: 0,
        needs="varying",
        undefined=CONSTANT,
        fast=_mprt,
        revision=2,  # 1: the order of layers is that in which they run; 2: magnitudes range over 0 to 1
        maps=lambda s: MapsMade(per_layer=1),
    )
)
register(
    Metric(
        name="smooth_mprt",
        family="randomisation",
        better="lower",
        range="[-1, 1]",
        reference="Hedström et al., arXiv:2401.06465, 2024",
        settings=SmoothRandomisation,
        forwards=lambda s, pixels: 0,
        needs="varying",
        undefined=CONSTANT,
        fast=_smooth_mprt,
        revision=2,
        maps=lambda s: MapsMade(fixed=s.samples, per_layer=s.samples),
    )
)
register(
    Metric(
        name="efficient_mprt",
        family="randomisation",
        better="higher",
        range="(-inf, inf)",
        reference="Hedström et al., arXiv:2401.06465, 2024",
        settings=Histogram,
        forwards=lambda s, pixels: 0,
        needs="varying",
        undefined=CONSTANT,
        fast=_efficient_mprt,
        maps=lambda s: MapsMade(1),
    )
)
register(
    Metric(
        name="random_logit",
        family="randomisation",
        better="lower",
        range="[-1, 1]",
        reference="Sixt et al., ICML 2020",
        settings=OtherClass,
        forwards=lambda s, pixels: 0,
        needs="varying",
        undefined="the map of the other class is constant, zero or not finite",
        fast=_random_logit,
        revision=1,
        maps=lambda s: MapsMade(1),
    )
)
