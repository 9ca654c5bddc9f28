"""Does the map stay when the image hardly changes? Metrics of one method share the maps of the neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from saliency_lab._common.calls import check_visible
from saliency_lab._common.errors import InputError
from saliency_lab._common.hashing import fingerprint
from saliency_lab._common.seeding import sample_uniform
from saliency_lab._common.settings import Epsilon
from saliency_lab._common.threads import in_this_thread
from saliency_lab.attribution.similarity import rank_correlation, ssim, top_k_overlap
from saliency_lab.metrics import quantus_engine as quantus
from saliency_lab.metrics.catalogue import MapsMade, Metric, MetricInput, MetricOutput, added_later, register
from saliency_lab.metrics.explainer import Explaining
from saliency_lab.metrics.maps import Needs, pixel_scores
from saliency_lab.metrics.probe import Output, Probe
from saliency_lab.metrics.sizes import Size, SizedSettings, pixels_of

TINY = 1e-6
"""Stands for a zero in the relative changes of Agarwal et al.; in a map, times its largest magnitude."""


class Neighbours(Explaining):
    """`samples` neighbours uniform in the L∞ ball of `radius` > 0, clipped to [0, 1]."""

    samples: int = Field(10, ge=1)
    radius: Epsilon = Field(0.05, gt=0)


class RelativeNeighbours(Neighbours):
    """Only neighbours that the model puts in the image's class count."""

    output: Output = "logit"


class Translations(Explaining, SizedSettings):
    """The image is moved across by up to `max_shift` either way, in steps of `step`, black behind it.

    Both are in pixels, or fractions of the image's shorter side.
    """

    max_shift: Size = "1/7"
    step: Size = Field("1/28", json_schema_extra=added_later(1))

    def at_size(self, height: int, width: int) -> Self:
        """Return the settings in pixels."""
        side = min(height, width)
        lengths = {"max_shift": pixels_of(self.max_shift, side), "step": pixels_of(self.step, side)}
        return self.model_copy(update=lengths)


class Attacked(Explaining):
    """`attacked` (N, C, H, W) holds the images after an attack."""

    attacked: Tensor


class AttackedRanks(Attacked):
    """Pixels are ranked by their scores, or with `absolute` by their magnitudes, as Ghorbani et al. do."""

    absolute: bool = False


class AttackedTopK(AttackedRanks):
    """The top fraction `k` of the pixels is compared."""

    k: float = Field(0.1, gt=0, le=1)


def neighbours(probe: Probe, samples: int, radius: float) -> Tensor:
    """Return neighbours (N, samples, C, H, W) on the CPU, keyed by (seed, image)."""

    def draw() -> Tensor:
        noise = sample_uniform(probe.seeds("neighbours"), (samples, *probe.x.shape[1:])).to(probe.images)
        return (probe.images[:, None] + radius * (2 * noise - 1)).clamp(0, 1)

    return probe.remember(("neighbours", samples, radius), draw)


def neighbour_maps(case: MetricInput) -> Tensor:
    """Maps (N, samples, C, H, W) of the neighbours, float64, on the CPU."""
    settings = case.settings
    points = neighbours(case.probe, settings.samples, settings.radius)
    return case.explainer.remember(
        ("neighbours", settings.samples, settings.radius, settings.explain),
        lambda: case.explainer(case.probe.model, points, settings.explain),
    )


def _lengths(values: Tensor) -> Tensor:
    """Return Euclidean lengths (N, S) of (N, S, ...)."""
    return values.double().flatten(2).norm(dim=2)


def _map_changes(case: MetricInput) -> Tensor:
    """‖map − map of the neighbour‖ (N, S)."""
    return _lengths(case.maps.cpu()[:, None] - neighbour_maps(case))


def _sensitivity(case: MetricInput) -> Tensor:
    """‖map − map of the neighbour‖ / ‖map‖ (N, S)."""
    return _map_changes(case) / _lengths(case.maps.cpu()[:, None])


def _local_lipschitz(case: MetricInput) -> MetricOutput:
    points = neighbours(case.probe, case.settings.samples, case.settings.radius)
    steps = _lengths(case.probe.images.double()[:, None] - points.double())
    return MetricOutput((_map_changes(case) / steps).amax(1).numpy())


def relative(change: Tensor, value: Tensor, zero: Tensor | float = TINY) -> Tensor:
    """Divide `change` by `value`, entry by entry, with `zero` in place of a value of zero."""
    return change / value.where(value != 0, zero)


def _relative_stability(case: MetricInput, changes: Callable[[MetricInput, Tensor], Tensor]) -> MetricOutput:
    """Return the largest ratio of the map's relative change to `changes` (N, S), within the same class."""
    maps = case.maps.cpu()[:, None]
    zero = TINY * maps.abs().amax((1, 2, 3, 4), keepdim=True)  # so that the map's scale does not matter
    above = _lengths(relative(maps - neighbour_maps(case), maps, zero))
    points = neighbours(case.probe, case.settings.samples, case.settings.radius)
    ratio = above / changes(case, points).clamp_min(TINY)
    same = _winners(case, points)[:, 1:] == _winners(case, points)[:, :1]
    return MetricOutput(ratio.where(same, -torch.inf).amax(1).where(same.any(1), torch.nan).numpy())


def _outputs(case: MetricInput, points: Tensor) -> Tensor:
    """Logits (N, 1 + S, K), float64, of the images and their neighbours."""
    probe = case.probe

    def compute() -> Tensor:
        every = torch.cat([probe.images[:, None], points], 1)
        rows = [
            probe.logits(chunk.to(probe.device)).cpu().double()
            for chunk in every.flatten(0, 1).split(probe.chunk)
        ]
        return torch.cat(rows).unflatten(0, every.shape[:2])

    return probe.remember(("neighbour outputs", case.settings.samples, case.settings.radius), compute)


def _winners(case: MetricInput, points: Tensor) -> Tensor:
    return _outputs(case, points).argmax(2)


def _input_change(case: MetricInput, points: Tensor) -> Tensor:
    x = case.probe.images.double()[:, None]
    return _lengths(relative(x - points.double(), x))


def _output_change(case: MetricInput, points: Tensor) -> Tensor:
    out = _outputs(case, points)
    out = out.softmax(2) if case.settings.output == "probability" else out
    return _lengths(out[:, :1] - out[:, 1:])


def _representation_change(case: MetricInput, points: Tensor) -> Tensor:
    def compute() -> Tensor:
        features = _representations(case, points)
        return _lengths(relative(features[:, :1] - features[:, 1:], features[:, :1]))

    settings = case.settings
    return case.probe.remember(("representation change", settings.samples, settings.radius), compute)


def _representations(case: MetricInput, points: Tensor) -> Tensor:
    """Return the input (N, 1 + S, D) of the linear layer that the model runs last."""
    probe = case.probe
    check_visible(probe.model, "relative_representation_stability", "use 'relative_output_stability'")
    linear = [module for module in probe.model.modules() if isinstance(module, nn.Linear)]
    ran: list[nn.Module] = []
    caught: list[Tensor] = []

    def note(layer: nn.Module, _: tuple[Tensor, ...]) -> None:
        ran.append(layer)

    def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0].cpu().double())

    with _hooked(linear, note):
        probe.logits(probe.images[:1].to(probe.device))
    if not ran or ran.count(ran[-1]) > 1:
        found = "which runs several times per image" if ran else "and none runs"
        raise InputError(
            "relative_representation_stability reads the input of the nn.Linear that the model runs last, "
            f"{found}; use relative_output_stability"
        )

    def read(images: Tensor) -> Tensor:
        caught.clear()
        with _hooked([ran[-1]], catch):
            probe.logits(images.to(probe.device))
        return caught[0]

    one, two = read(probe.images[:1]), read(probe.images[[0, -1]])
    # which dimension grows with the images; tokens may come first, or be rows of their own
    grown = [at for at, (few, more) in enumerate(zip(one.shape, two.shape, strict=True)) if more == 2 * few]

    def rows(inputs: Tensor, images: int) -> Tensor:
        return inputs.movedim(grown[0], 0).reshape(images, -1)

    if not grown or (rows(two, 2)[0] - rows(one, 1)[0]).norm() > 1e-3 * one.norm():
        raise InputError(
            "relative_representation_stability reads the input of the nn.Linear that the model runs last, "
            "which does not hold the images one after the other; use relative_output_stability"
        )
    every = torch.cat([probe.images[:, None], points], 1)
    chunks = every.flatten(0, 1).split(probe.chunk)
    return torch.cat([rows(read(chunk), len(chunk)) for chunk in chunks]).unflatten(0, every.shape[:2])


@contextmanager
def _hooked(
    layers: Sequence[nn.Module], hook: Callable[[nn.Module, tuple[Tensor, ...]], None]
) -> Iterator[None]:
    """Call `hook` before each of the layers runs."""
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(in_this_thread(hook)))
        yield


def _quantus_neighbours(name: str, case: MetricInput, **settings: object) -> MetricOutput:
    """Return Quantus's metric on the same neighbours and their maps."""
    space = quantus.Neighbourhood(
        case.probe,
        neighbours(case.probe, case.settings.samples, case.settings.radius),
        neighbour_maps(case),
    )
    return MetricOutput(
        quantus.evaluate_neighbours(
            name,
            space,
            case.maps,
            nr_samples=case.settings.samples,
            return_nan_when_prediction_changes=False,
            **settings,
        )
    )


def _continuity(case: MetricInput) -> MetricOutput:
    images = case.probe.images
    if case.settings.step > case.settings.max_shift:
        raise InputError(
            f"step is {case.settings.step} pixels and max_shift {case.settings.max_shift}, so there is no "
            "translation; make step smaller"
        )
    sizes = range(case.settings.step, case.settings.max_shift + 1, case.settings.step)
    shifts = [shift for size in sizes for shift in (-size, size)]
    moved = torch.stack([_shifted(images, shift) for shift in shifts], 1)
    maps = case.explainer(case.probe.model, moved, case.settings.explain)
    own = case.maps.cpu()[:, None]
    change = (own - maps).abs().flatten(2).sum(2) / own.abs().flatten(2).amax(2)
    steps = _lengths(images.double()[:, None] - moved.double())
    ratio = (change / steps).where(steps > 0, -torch.inf)
    return MetricOutput(ratio.amax(1).where((steps > 0).any(1), torch.nan).numpy())


def _shifted(images: Tensor, shift: int) -> Tensor:
    """Return images moved across by `shift` pixels, black behind them."""
    width = images.shape[3]
    size = min(abs(shift), width)
    out = torch.zeros_like(images)
    if shift > 0:
        out[..., size:] = images[..., : width - size]
    else:
        out[..., : width - size] = images[..., size:]
    return out


def _under_attack(case: MetricInput, compare: Callable[[Tensor, Tensor], Tensor]) -> MetricOutput:
    attacked = case.settings.attacked.cpu()
    shape = case.probe.images.shape
    if attacked.shape != shape:
        raise InputError(
            f"'attacked' must have the images' shape {tuple(shape)}, not {tuple(attacked.shape)}"
        )
    maps = case.explainer.remember(
        ("attacked", fingerprint(attacked), case.settings.explain),
        lambda: case.explainer(case.probe.model, attacked, case.settings.explain),
    )
    return MetricOutput(compare(case.maps.cpu(), maps).numpy())


def _by_pixel(case: MetricInput, compare: Callable[[Tensor, Tensor], Tensor]) -> MetricOutput:
    """Compare the pixel scores of the two maps by `compare`, as maps (N, 1, H, W)."""

    def scores(maps: Tensor) -> Tensor:
        size = (1, *maps.shape[2:])
        return pixel_scores(maps, absolute=case.settings.absolute).unflatten(1, size)

    return _under_attack(case, lambda a, b: compare(scores(a), scores(b)))


def _top_k(given: Tensor, attacked: Tensor, k: float) -> Tensor:
    """Return the overlap of the k·P largest values; NaN where those of the attacked map do not vary."""
    rows = attacked.flatten(1)
    return top_k_overlap(given, attacked, k).masked_fill((rows == rows[:, :1]).all(1), torch.nan)


def _register_neighbours(
    name: str,
    reference: str,
    fast: Callable[[MetricInput], MetricOutput],
    in_quantus: Callable[[MetricInput], MetricOutput] | None = None,
    *,
    settings: type[Neighbours] = Neighbours,
    revision: int = 0,
) -> None:
    register(
        Metric(
            name=name,
            shares="maps of neighbours",
            family="robustness",
            better="lower",
            range="[0, inf)",
            reference=reference,
            settings=settings,
            forwards=lambda s, pixels: s.samples + 1 if settings is RelativeNeighbours else 0,
            needs="nonzero",
            undefined="a neighbour's map is not finite, or no neighbour is put in the image's class",
            fast=fast,
            quantus=in_quantus,
            maps=lambda s: MapsMade(s.samples),
            revision=revision,
        )
    )


_register_neighbours(
    "max_sensitivity",
    "Yeh et al., NeurIPS 2019",
    lambda case: MetricOutput(_sensitivity(case).amax(1).numpy()),
    lambda case: _quantus_neighbours("MaxSensitivity", case, lower_bound=0.2, upper_bound=None),
)
_register_neighbours(
    "avg_sensitivity",
    "Yeh et al., NeurIPS 2019",
    lambda case: MetricOutput(_sensitivity(case).mean(1).numpy()),
    lambda case: _quantus_neighbours("AvgSensitivity", case, lower_bound=0.2, upper_bound=None),
)
_register_neighbours(
    "local_lipschitz_estimate",
    "Alvarez-Melis and Jaakkola, NeurIPS 2018",
    _local_lipschitz,
    lambda case: _quantus_neighbours("LocalLipschitzEstimate", case, perturb_mean=0.0, perturb_std=0.1),
)


def _register_relative(
    name: str, changes: Callable[[MetricInput, Tensor], Tensor], revision: int = 1
) -> None:
    _register_neighbours(
        name,
        "Agarwal et al., arXiv:2203.06877, 2022",
        lambda case: _relative_stability(case, changes),
        settings=RelativeNeighbours,
        revision=revision,  # 1: a zero of the map once counted as 1e-6 whatever the map's scale
    )


_register_relative("relative_input_stability", _input_change)
_register_relative("relative_output_stability", _output_change)
_register_relative(
    "relative_representation_stability",
    _representation_change,
    revision=3,  # 2: the layer is the one that runs last; 3: its input may have tokens first
)
register(
    Metric(
        name="continuity",
        family="robustness",
        better="lower",
        range="[0, inf)",
        reference="Montavon et al., Digital Signal Processing 2018",
        settings=Translations,
        forwards=lambda s, pixels: 0,
        needs="nonzero",
        undefined="no translation changes the image, or the map of one is not finite",
        fast=_continuity,
        maps=lambda s: MapsMade(2 * (s.max_shift // s.step)),
    )
)


def _register_attacked(
    name: str,
    settings: type[Attacked],
    fast: Callable[[MetricInput], MetricOutput],
    *,
    range_: str = "[-1, 1]",
    needs: Needs = "ranking",
    revision: int = 0,
) -> None:
    register(
        Metric(
            name=name,
            revision=revision,
            shares="maps of attacked images",
            family="robustness",
            better="higher",
            range=range_,
            reference="Ghorbani et al., AAAI 2019",
            settings=settings,
            forwards=lambda s, pixels: 0,
            needs=needs,
            undefined="the map of the attacked image is constant, zero or not finite",
            fast=fast,
            maps=lambda s: MapsMade(1),
        )
    )


_register_attacked("attack_rank_correlation", AttackedRanks, lambda case: _by_pixel(case, rank_correlation))
_register_attacked(
    "attack_ssim",
    Attacked,
    lambda case: _under_attack(case, ssim),
    needs="varying",
    revision=1,  # maps without negative values were compared as if their values ranged over −1 to 1
)
_register_attacked(
    "attack_top_k",
    AttackedTopK,
    lambda case: _by_pixel(case, lambda a, b: _top_k(a, b, case.settings.k)),
    range_="[0, 1]",
    revision=1,  # a constant map of the attacked image once had the overlap of its first pixels
)
