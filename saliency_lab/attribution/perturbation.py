"""Methods that only look at the score: parts of the image are hidden and the score is read again."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import EllipsisType
from typing import Annotated, Any, Literal, Self, TypeAlias

import torch
import torch.nn.functional as F
from captum._utils.models.linear_model import SkLearnLasso, SkLearnLinearRegression
from captum.attr import KernelShap, Lime
from captum.attr._core.lime import get_exp_kernel_similarity_function
from pydantic import Field, model_validator
from torch import Tensor

from saliency_lab._common.errors import InputError
from saliency_lab._common.inference import float64_device
from saliency_lab._common.seeding import generator, preserved_rng
from saliency_lab._common.settings import Settings
from saliency_lab._common.warn import warn
from saliency_lab.attribution.baseline import Baseline, resolve_baseline
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.catalogue import Added, Explained, method
from saliency_lab.attribution.segments import Segments, find_segments

_BLOCK = 64  # masks of RISE made at a time
_MOST_SEGMENTS = 12  # of exact Shapley values: 4,096 coalitions


def scores_without(batch: Batch, base: Tensor, hidden: Tensor, *, of: int | None = None) -> Tensor:
    """Scores (k, n) with parts of each image replaced by its baseline; `hidden` is bool (k, n or 1, H, W).

    They are part of `of` scores per image.
    """
    rows = []
    for group in batch.draws(len(hidden), backward=False, of=of):
        mask = hidden[group.start : group.stop, :, None]
        points = torch.where(mask, base, batch.x)
        rows.append(batch.at(points.flatten(0, 1)).score(points.flatten(0, 1)).reshape(len(group), -1))
    return torch.cat(rows)


class OcclusionSettings(Settings):
    """A square `window` moved by `stride` pixels and filled with the `baseline`.

    By default the window is an eighth of the image's shorter side (at least 1) and the stride half of it. The
    stride is at most the window, so that every pixel is hidden by some window.
    """

    window: int | None = Field(None, ge=1)
    stride: int | None = Field(None, ge=1)
    baseline: Baseline = "zero"


@method(
    "occlusion",
    family="perturbation",
    passes="1 + number of windows forward",
    reference="Zeiler & Fergus, ECCV 2014",
    settings=OcclusionSettings,
)
def occlusion(batch: Batch, settings: OcclusionSettings) -> Explained:
    """Return the fall of the score with a window hidden, mean over the windows that cover the pixel."""
    base, (height, width) = resolve_baseline(settings.baseline, batch), batch.x.shape[2:]
    window, stride = window_and_stride(settings, batch.x)
    corners = [
        (top, left) for top in _starts(height, window, stride) for left in _starts(width, window, stride)
    ]
    full = batch.score(batch.x)
    fall, cover = torch.zeros_like(batch.x[:, 0]), torch.zeros(height, width).to(batch.x)
    for group in batch.draws(len(corners), backward=False):
        spans = [_square(*corners[k], window) for k in group]
        points = batch.x.expand(len(group), *batch.x.shape).clone()
        for row, span in zip(points, spans, strict=True):
            row[span] = base[span]
        flat = points.flatten(0, 1)
        drops = full - batch.at(flat).score(flat).reshape(len(group), -1)
        for drop, span in zip(drops, spans, strict=True):
            fall[span] += drop[:, None, None]
            cover[span] += 1
    return (fall / cover)[:, None].expand_as(batch.x).clone(), None


def window_and_stride(settings: OcclusionSettings, x: Tensor) -> tuple[int, int]:
    """Return the window and stride of occlusion for images (n, C, H, W), in pixels.

    Raises
    ------
    InputError
        If the stride is larger than the window.
    """
    window = settings.window or max(1, min(x.shape[2:]) // 8)
    stride = settings.stride or max(1, window // 2)
    if stride > window:
        raise InputError(
            f"occlusion: a stride of {stride} with a window of {window} leaves pixels that no window hides; "
            f"use a stride of at most {window}"
        )
    return window, stride


def _square(top: int, left: int, size: int) -> tuple[EllipsisType, slice, slice]:
    return ..., slice(top, top + size), slice(left, left + size)


def _starts(size: int, window: int, stride: int) -> range:
    """Return where windows begin, so that the last one reaches the edge (and may be cut by it)."""
    return range(0, max(1, size - window + stride), stride)


class SegmentSettings(Settings):
    """Superpixels (`segments`) are replaced by the `baseline`."""

    segments: Segments = 50
    baseline: Baseline = "zero"


@method(
    "feature_ablation",
    family="perturbation",
    passes="1 + number of superpixels forward",
    reference="Captum's FeatureAblation",
    settings=SegmentSettings,
)
def feature_ablation(batch: Batch, settings: SegmentSettings) -> Explained:
    """Return the fall of the score with a superpixel hidden; every pixel of it gets that value."""
    segments, base = find_segments(settings.segments, batch), resolve_baseline(settings.baseline, batch)
    count = int(segments.max()) + 1
    full = batch.score(batch.x)
    falls = []
    for group in batch.draws(count, backward=False):
        numbers = torch.arange(group.start, group.stop, device=segments.device)
        without = scores_without(batch, base, segments == numbers.reshape(-1, 1, 1, 1), of=count)
        falls.append(full - without)
    return _painted(torch.cat(falls).T, segments, batch.x), None


class ShapleySettings(SegmentSettings):
    """`n` random orders in which the superpixels are put back onto the baseline."""

    n: int = Field(25, ge=1)


@method(
    "shapley_value_sampling",
    family="perturbation",
    passes="n × number of superpixels forward",
    reference="Castro et al., Computers & Operations Research 2009",
    settings=ShapleySettings,
)
def shapley_value_sampling(batch: Batch, settings: ShapleySettings) -> Explained:
    """Return the mean rise of the score as a superpixel joins those before it, at each of its pixels."""
    segments, base = find_segments(settings.segments, batch), resolve_baseline(settings.baseline, batch)
    counts = segments.flatten(1).amax(1) + 1
    most, empty = int(counts.max()), batch.score(base)
    values = torch.zeros(len(batch.x), most).to(batch.x)
    sources = [torch.Generator().manual_seed(seed) for seed in batch.seeds("orders")]
    for _ in range(settings.n):
        orders = torch.full((len(batch.x), most), most, dtype=torch.int64)
        for row, count, source in zip(orders, counts.tolist(), sources, strict=True):
            row[:count] = torch.randperm(count, generator=source)
        orders = orders.to(segments.device)
        place = torch.full((len(batch.x), most + 1), most, dtype=torch.int64).to(segments.device)
        place.scatter_(1, orders, torch.arange(most, device=segments.device).expand_as(orders))
        joins = place.gather(1, segments.flatten(1)).reshape(segments.shape)  # when each pixel comes back
        before = empty
        for group in batch.draws(most, backward=False, of=settings.n * most):
            steps = torch.arange(group.start, group.stop, device=segments.device).reshape(-1, 1, 1, 1)
            reached = scores_without(batch, base, joins > steps, of=settings.n * most)
            rises = reached - torch.cat([before[None], reached[:-1]])
            joining = orders[:, group.start : group.stop]
            present = joining < most  # an image may have fewer superpixels than the chunk's largest count
            values.scatter_add_(1, joining.clamp_max(most - 1), rises.T * present)
            before = reached[-1]
    return _painted(values / settings.n, segments, batch.x), None


def _painted(values: Tensor, segments: Tensor, x: Tensor) -> Tensor:
    """Return values (n, K) of superpixels at their pixels, the same in every channel."""
    flat = values.gather(1, segments.flatten(1)).reshape(segments.shape)
    return flat[:, None].expand_as(x).clone()


class ExactShapleySettings(SegmentSettings):
    """At most 12 superpixels (`segments`); the hidden ones are replaced by the `baseline`."""

    segments: Segments = 8


@method(
    "shapley_values",
    family="perturbation",
    passes="2 ^ number of superpixels forward",
    reference="Shapley, 1953; Lundberg & Lee, NeurIPS 2017",
    settings=ExactShapleySettings,
)
def shapley_values(batch: Batch, settings: ExactShapleySettings) -> Explained:
    """Return exact Shapley values of at most 12 superpixels, from all coalitions of them.

    Raises
    ------
    InputError
        If an image has more superpixels.
    """
    segments, base = find_segments(settings.segments, batch), resolve_baseline(settings.baseline, batch)
    count = int(segments.max()) + 1
    if count > _MOST_SEGMENTS:
        raise InputError(
            f"shapley_values asks the model for every set of superpixels, 2 ^ {count} of them; use segments "
            f"of at most {_MOST_SEGMENTS}, or 'kernel_shap' or 'shapley_value_sampling'"
        )
    numbers = torch.arange(2**count)
    kept = (numbers[:, None] >> torch.arange(count)) & 1  # (2 ^ K, K): superpixel i is in coalition number s
    rows = []
    for group in batch.draws(len(kept), backward=False):
        hidden = ~kept[group.start : group.stop].bool().to(segments.device)
        rows.append(scores_without(batch, base, hidden[:, segments], of=len(kept)))
    scores = torch.cat(rows).to(float64_device(batch.x.device), torch.float64)
    size = kept.sum(1)
    weights = torch.tensor(
        [1 / (count * math.comb(count - 1, each)) for each in range(count)], dtype=torch.float64
    )
    values = torch.empty(len(batch.x), count, dtype=torch.float64, device=scores.device)
    for i in range(count):
        without = numbers[kept[:, i] == 0]
        rise = scores[without + 2**i] - scores[without]
        values[:, i] = (weights[size[without]][:, None].to(rise) * rise).sum(0)
    return _painted(values.to(batch.x), segments, batch.x), None


Kernel: TypeAlias = Callable[[Tensor], float]
"""A weight ≥ 0 of a sample, from the superpixels that it keeps, a bool tensor (K,)."""


class KernelShapSettings(SegmentSettings):
    """`n` coalitions of superpixels, drawn from the Shapley kernel.

    With a function `kernel`, coalitions are drawn uniformly and weighted by it instead; it gets which
    superpixels are kept, a bool tensor (K,), and returns a weight ≥ 0.
    """

    n: int = Field(200, ge=2)
    kernel: Annotated[Kernel | None, Added()] = None


@method(
    "kernel_shap",
    family="perturbation",
    passes="n forward",
    reference="Lundberg & Lee, NeurIPS 2017",
    settings=KernelShapSettings,
)
def kernel_shap(batch: Batch, settings: KernelShapSettings) -> Explained:
    """Return Shapley values of superpixels by Captum's weighted regression, at each of their pixels."""
    return _by_surrogate(batch, settings, kernel_shap_of(settings)), None


Explainer: TypeAlias = Callable[[Callable[[Tensor], Tensor]], Lime]
"""Makes Captum's object for a function that returns scores."""


def kernel_shap_of(settings: KernelShapSettings) -> Explainer:
    """Return what makes Captum's object for these settings."""
    if settings.kernel is None:
        return KernelShap
    similarity = _weighted_by(settings.kernel)
    return lambda score: Lime(score, SkLearnLinearRegression(), similarity, _keep_half)


def _weighted_by(kernel: Kernel) -> Callable[..., float]:
    """Return a kernel as Captum calls it."""

    def similarity(image: Tensor, sample: Tensor, kept: Tensor, **kwargs: Any) -> float:
        weight = float(kernel(kept[0] > 0))
        if not 0 <= weight < float("inf"):
            raise InputError(f"the kernel must return a weight ≥ 0, not {weight}")
        return weight

    return similarity


def _keep_half(image: Tensor, **kwargs: Any) -> Tensor:
    """Draw which superpixels are kept, as Captum does, but whatever torch's default type is."""
    chances = torch.full((1, kwargs["num_interp_features"]), 0.5, dtype=torch.float32)
    return torch.bernoulli(chances).to(image.device).long()


class LimeSettings(SegmentSettings):
    """`n` random sets of superpixels; `alpha` is the weight of the lasso's penalty, in units of the score.

    Samples are weighted by `kernel`: exp(−d²/2w²) of the `cosine` or `euclidean` distance d between image and
    sample, with w = `kernel_width`; or a function of which superpixels are kept, a bool tensor (K,).
    """

    n: int = Field(200, ge=2)
    alpha: float = Field(0.01, ge=0)
    kernel: Annotated[Literal["cosine", "euclidean"] | Kernel, Added()] = "cosine"
    kernel_width: Annotated[float, Added()] = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        if callable(self.kernel) and self.kernel_width != type(self).model_fields["kernel_width"].default:
            raise ValueError(
                f"kernel_width={self.kernel_width:g} belongs to the kernels 'cosine' and 'euclidean', and "
                "the kernel is a function; leave it out"
            )
        return self


@method(
    "lime",
    family="perturbation",
    passes="n forward",
    reference="Ribeiro et al., KDD 2016",
    settings=LimeSettings,
)
def lime(batch: Batch, settings: LimeSettings) -> Explained:
    """Return the coefficients of Captum's local lasso over superpixels, at each of their pixels."""
    maps = _by_surrogate(batch, settings, lime_of(settings))
    if not maps.flatten(1).any(1).all():
        warn(
            f"lime: at alpha={settings.alpha:g} the lasso's penalty leaves a map of zeros, as where hiding "
            "superpixels hardly moves the score; lower alpha",
        )
    return maps, None


def lime_of(settings: LimeSettings) -> Explainer:
    """Return what makes Captum's object for these settings."""
    if callable(settings.kernel):
        similarity = _weighted_by(settings.kernel)
    else:
        similarity = get_exp_kernel_similarity_function(settings.kernel, settings.kernel_width)
    return lambda score: Lime(score, SkLearnLasso(alpha=settings.alpha), similarity, _keep_half)


def _by_surrogate(batch: Batch, settings: KernelShapSettings | LimeSettings, explainer: Explainer) -> Tensor:
    """Fit Captum's surrogate models image by image, as it draws from global generators."""
    segments, base = find_segments(settings.segments, batch), resolve_baseline(settings.baseline, batch)
    maps = []
    batch.forwards.expect(settings.n * batch.total)
    for row, seed in enumerate(batch.seeds("coalitions")):
        one, here = batch.only(row), segments[row : row + 1]
        if int(here.max()) == 0:  # one superpixel: nothing to compare, and Captum's sampling fails
            value = one.score(one.x) - one.score(base[row : row + 1])
            maps.append(value.reshape(1, 1, 1, 1).expand_as(one.x))
            continue
        failed: list[Tensor] = []
        explained = explainer(partial(_finite_score, one, failed))
        with preserved_rng(seed, exclusive=True):
            values = explained.attribute(
                one.x,
                baselines=base[row : row + 1],
                feature_mask=here[:, None].expand_as(one.x),
                n_samples=settings.n,
                perturbations_per_eval=batch.rows(backward=False),
            )
        maps.append(torch.full_like(values, torch.nan) if failed else values)
    return torch.cat(maps)


def _finite_score(batch: Batch, failed: list[Tensor], points: Tensor) -> Tensor:
    """Return scores to fit a model to; those that are not finite are put into `failed`, and are 0."""
    scores = batch.at(points).score(points)
    if not scores.isfinite().all():
        failed.append(scores)
    return scores.nan_to_num(0, 0, 0)


class RiseSettings(Settings):
    """`n` masks: `cells` × `cells` switched on with `probability`, enlarged and shifted at random."""

    n: int = Field(1000, ge=1)
    cells: int = Field(7, ge=1)
    probability: float = Field(0.5, gt=0, lt=1)
    baseline: Baseline = "zero"


@method(
    "rise",
    family="perturbation",
    passes="n forward",
    reference="Petsiuk et al., BMVC 2018",
    settings=RiseSettings,
)
def rise(batch: Batch, settings: RiseSettings) -> Explained:
    """Return the mean of random masks weighted by the class's softmax probability under each.

    The masks depend on the seed and the image's size only, so that all images see the same ones.
    Every channel holds the same value.
    """
    base = resolve_baseline(settings.baseline, batch)
    total = torch.zeros_like(batch.x[:, 0])
    for start in range(0, settings.n, _BLOCK):
        masks = _masks(batch, settings, start).to(batch.x)
        for group in batch.draws(len(masks), backward=False, of=settings.n):
            shown = masks[group.start : group.stop, None, None]
            points = torch.lerp(base, batch.x, shown).flatten(0, 1)
            chances = batch.at(points).chance(points).reshape(len(group), -1)
            total += torch.einsum("kn,khw->nhw", chances, shown[:, 0, 0])
    return (total / (settings.n * settings.probability))[:, None].expand_as(batch.x).clone(), None


def _masks(batch: Batch, settings: RiseSettings, start: int) -> Tensor:
    """Return masks `start` … of one block, (k, H, W) in [0, 1]."""
    count = min(_BLOCK, settings.n - start)
    height, width = batch.x.shape[2:]
    source = generator(batch.seed, "rise", start, height, width)
    grid = (count, 1, settings.cells, settings.cells)
    on = torch.rand(grid, generator=source, dtype=torch.float32) < settings.probability
    cell = [-(-size // settings.cells) for size in (height, width)]
    size = [(settings.cells + 1) * each for each in cell]
    large = F.interpolate(on.to(torch.float32), size=size, mode="bilinear", align_corners=False)[:, 0]
    tops, lefts = (torch.randint(0, each, (count,), generator=source).tolist() for each in cell)
    return torch.stack(
        [
            mask[top : top + height, left : left + width]
            for mask, top, left in zip(large, tops, lefts, strict=True)
        ]
    )
