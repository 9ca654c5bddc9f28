"""Public entry points: score maps by metrics, one score per sample."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saliency_lab._common.checks import check_images, check_labels, check_seed, refuse_probabilities
from saliency_lab._common.errors import InputError, SaliencyLabError
from saliency_lab._common.hashing import TensorBlocks, fingerprint
from saliency_lab._common.html import facts as html_facts
from saliency_lab._common.inference import (
    HALF,
    check_classifier,
    check_signature,
    chunk_rows,
    device_of,
    gradients_recorded,
    in_float32,
)
from saliency_lab._common.progress import progress
from saliency_lab._common.samples import Images, read_labelled
from saliency_lab._common.seeding import preserved_rng
from saliency_lab._common.selection import read_selection
from saliency_lab._common.settings import Settings, as_keywords
from saliency_lab.attribution import Attributions
from saliency_lab.attribution.packing import PackedMaps
from saliency_lab.metrics.catalogue import METRICS, Curve, Engine, MetricInput, MetricOutput
from saliency_lab.metrics.cost import announce_long_work, predicted_images
from saliency_lab.metrics.explainer import Explainer
from saliency_lab.metrics.job import Job, make_job
from saliency_lab.metrics.maps import check_maps, take_maps, unusable
from saliency_lab.metrics.probe import Probe, passes_of
from saliency_lab.metrics.quantus_engine import quantus_failure
from saliency_lab.metrics.sizes import settings_at_size


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Scores of one metric, and where they come from.

    Attributes
    ----------
    values : ndarray
        float64 (N,), in the order of the images, NaN where undefined.
    reasons : tuple of (str or None)
        Why a score is NaN, one entry per sample; None where it is not.
    metric, engine, seed, settings
        What was computed. Settings are in pixels where they can be given as fractions of the image.
    seconds : float
        Wall time; passes shared with an earlier metric or method count there.
    curve : Curve or None
        The curve behind the scores, for metrics that integrate one; NaN for a map that cannot be scored.
    provenance : mapping
        How the forward passes ran, if that was decided by measurement: `{"passes": {"rows": 8, …}}`.
    """

    values: np.ndarray
    reasons: tuple[str | None, ...]
    metric: str
    engine: Engine
    seed: int
    settings: Mapping[str, Any]
    seconds: float
    curve: Curve | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Scores({self.metric}: {', '.join(f'{key} {value}' for key, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        return html_facts(f"scores by {self.metric}", self._facts())

    def _facts(self) -> dict[str, str]:
        defined = self.values[~np.isnan(self.values)]
        facts = {"samples": str(len(self.values))}
        if len(defined):
            low, middle, high = np.percentile(defined, (25, 50, 75))
            facts |= {
                "mean": f"{defined.mean():.4g}",
                "quartiles": f"{low:.4g}, {middle:.4g}, {high:.4g}",
            }
        if self.undefined:
            facts["undefined"] = ", ".join(f"{count} ({reason})" for reason, count in self.undefined.items())
        if self.settings:
            facts["settings"] = as_keywords(self.settings)
        return facts | {"engine": self.engine, "seed": str(self.seed), "time": f"{self.seconds:.3g} s"}

    @property
    def undefined(self) -> dict[str, int]:
        """How many samples have no score, by reason."""
        return dict(Counter(reason for reason in self.reasons if reason is not None))


def evaluate(
    model: nn.Module,
    x: Images,
    y: Tensor | None,
    attributions: Any,
    metric: Any,
    *,
    seed: int = 0,
    engine: Engine | None = None,
    **settings: Any,
) -> np.ndarray:
    """Score each map by one metric.

    Parameters
    ----------
    model : nn.Module
        Returns logits (N, classes) for images (N, C, H, W) in [0, 1]; left as it was.
    x : Tensor, DataLoader or data set
        Images (N, C, H, W) in [0, 1], or what else `attribute` takes.
    y : Tensor or None
        The class that each map explains; None takes it from the maps, or else from the labels in `x`.
    attributions : Attributions, Tensor or ndarray
        Signed maps (N, C, H, W), or (N, 1, H, W) with one value per pixel.
    metric : str, callable or Quantus metric object
        A name of `list_metrics()`; a function `f(model, x, y, maps, **settings)` that returns one number per
        sample; or a metric object built with Quantus.
    seed : int
        Seed of the random draws, which depend on it and on the image alone.
    engine : {"fast", "quantus"}, optional
        The metric's first one by default.
    **settings
        The settings of the metric.

    Returns
    -------
    ndarray
        float64 (N,), NaN where a score is undefined; `evaluate_detailed` says why.

    Raises
    ------
    InputError
        For bad images, labels, maps, names or settings, or `Attributions` of other images.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    >>> x, y = torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    >>> maps = sl.attribute(net, x, y, "saliency")
    >>> sl.evaluate(net, x, y, maps, "pixel_flipping", steps=6).shape
    (4,)
    """
    return evaluate_detailed(model, x, y, attributions, metric, seed=seed, engine=engine, **settings).values


def evaluate_detailed(
    model: nn.Module,
    x: Images,
    y: Tensor | None,
    attributions: Any,
    metric: Any,
    *,
    seed: int = 0,
    engine: Engine | None = None,
    **settings: Any,
) -> Scores:
    """Score each map by one metric, and say more about the scores than `evaluate` does.

    Parameters
    ----------
    model : nn.Module
        As for `evaluate`.
    x : Tensor, DataLoader or data set
        Images (N, C, H, W) in [0, 1].
    y : Tensor or None
        The class that each map explains, as for `evaluate`.
    attributions : Attributions, Tensor or ndarray
        Signed maps (N, C, H, W), or (N, 1, H, W) with one value per pixel.
    metric : str, callable or Quantus metric object
        As for `evaluate`.
    seed : int
        Seed of the random draws.
    engine : {"fast", "quantus"}, optional
        The metric's first one by default.
    **settings
        The settings of the metric.

    Returns
    -------
    Scores
        The scores with the reasons of undefined ones, the curve, the settings and the time.

    Raises
    ------
    InputError
        As for `evaluate`.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    >>> x, y = torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    >>> scores = sl.evaluate_detailed(net, x, y, torch.zeros_like(x), "sparseness")
    >>> scores.undefined
    {'the map is zero everywhere': 4}
    """
    job = make_job(metric, settings, engine)
    return run_jobs(model, x, y, {"": attributions}, [job], seed)[""][0]


def evaluate_many(
    model: nn.Module,
    x: Images,
    y: Tensor | None,
    attributions: Mapping[str, Any],
    metrics: Any,
    *,
    seed: int = 0,
    engine: Engine | None = None,
) -> dict[str, dict[str, Scores]]:
    """Score the maps of several methods by several metrics, and share the passes they have in common.

    Parameters
    ----------
    model : nn.Module
        As for `evaluate`.
    x : Tensor, DataLoader or data set
        Images (N, C, H, W) in [0, 1].
    y : Tensor or None
        The class that each map explains, as for `evaluate`.
    attributions : mapping
        Method name → maps.
    metrics : str, callable, sequence of these, or mapping
        Metrics as `evaluate` takes them; or label → settings, where a label that is no name of a metric says
        which one it means by the entry `metric`. So one metric can be given with several settings.
    seed : int
        Seed of the random draws.
    engine : {"fast", "quantus"}, optional
        The first one of each metric by default.

    Returns
    -------
    dict
        `[method][label]` → `Scores`, exactly what `evaluate_detailed` with the same seed gives for each.

    Raises
    ------
    InputError
        As for `evaluate`, and if there are no methods or metrics, or two metrics have one label.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    >>> x, y = torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    >>> maps = {"saliency": sl.attribute(net, x, y, "saliency")}
    >>> metrics = {"coarse": {"metric": "pixel_flipping", "steps": 3}, "pixel_flipping": {"steps": 9}}
    >>> scores = sl.evaluate_many(net, x, y, maps, metrics)["saliency"]
    >>> {label: each.settings["steps"] for label, each in scores.items()}
    {'coarse': 3, 'pixel_flipping': 9}
    """
    if not isinstance(attributions, Mapping) or not attributions:
        raise InputError("attributions must map method names to maps, with at least one")
    requests = read_selection(metrics, METRICS)
    jobs = [make_job(metric, settings, engine) for metric, settings in requests.values()]
    scores = run_jobs(model, x, y, attributions, jobs, seed)
    return {method: dict(zip(requests, rows, strict=True)) for method, rows in scores.items()}


class _Tally:
    """Scores of `count` images for one method by one metric, collected over the blocks.

    Arrays are made once: small ones of each block would lie between the memory that the passes free.
    """

    def __init__(self, count: int) -> None:
        self.values = np.empty(count)
        self.reasons: list[str | None] = []
        self.curve: Curve | None = None
        self.seconds = 0.0
        self._curves = 0

    def add(self, values: np.ndarray, reasons: list[str | None], curve: Curve | None) -> None:
        """Add the scores of the next images."""
        rows = slice(len(self.reasons), len(self.reasons) + len(values))
        self.values[rows] = values
        self.reasons += reasons
        if curve is not None:
            known, at = self.curve, curve.at
            if at.ndim == 2:
                at = _put(None if known is None else known.at, rows, at, len(self.values))
            elif known is not None:
                at = known.at
            self.curve = Curve(
                _put(None if known is None else known.values, rows, curve.values, len(self.values)), at
            )
            self._curves += len(values)

    def whole_curve(self) -> Curve | None:
        """Return the curve, if there is one of every image."""
        return self.curve if self._curves == len(self.values) else None


def _put(known: np.ndarray | None, rows: slice, block: np.ndarray, count: int) -> np.ndarray:
    """Write a block into the rows of an array (count, K), as wide as its widest block.

    Rows of fewer steps keep their last value (IROF: fewer segments).
    """
    if known is None:
        known = np.empty((count, block.shape[1]))
    missing = block.shape[1] - known.shape[1]
    if missing > 0:
        known = np.pad(known, ((0, 0), (0, missing)), mode="edge")
    known[rows] = np.pad(block, ((0, 0), (0, max(0, -missing))), mode="edge")
    return known


def run_jobs(
    model: nn.Module, x: Images, y: Tensor | None, attributions: Mapping[str, Any], jobs: list[Job], seed: int
) -> dict[str, list[Scores]]:
    """Score each method's maps by each job, block by block, so that memory does not grow with the samples."""
    x, y = read_labelled(x, explained_classes(attributions.values()) if y is None else y)
    seed, x, y = check_seed(seed), _in_full_precision(check_images(x)), check_labels(y, len(x)).cpu()
    height, width = x.shape[2:]
    jobs = [replace(job, settings=settings_at_size(job.settings, height, width)) for job in jobs]
    with gradients_recorded(), in_float32(model):
        return _run(model, x, y, attributions, jobs, seed)


def _run(
    model: nn.Module, x: Tensor, y: Tensor, attributions: Mapping[str, Any], jobs: list[Job], seed: int
) -> dict[str, list[Scores]]:
    maps = {method: _values(given, x) for method, given in attributions.items()}
    for given in attributions.values():
        _check_classes(given, y)
    _check_origin(attributions.values(), x)
    for job in jobs:
        _check_per_sample(job, len(x))
    tallies = {method: [_Tally(len(x)) for _ in jobs] for method in maps}
    size = chunk_rows(x.shape, device_of(model))
    slices = [slice(start, start + size) for start in range(0, len(x), size)]
    by_block = [index for index, job in enumerate(jobs) if not job.metric.whole]
    whole = [index for index, job in enumerate(jobs) if job.metric.whole]
    blocks = [(rows, by_block) for rows in slices if by_block] + [(slice(None), whole)] * bool(whole)
    with preserved_rng():
        _check_outputs(model, x, y, jobs)
        announce_long_work(model, x, attributions, jobs)
        run = passes_of(model, x)
        networks: dict[str, nn.Module] = {}
        run.expect(predicted_images(x, attributions, jobs))
        explainers = {method: Explainer(given, x, y, seed) for method, given in attributions.items()}
        for rows, chosen in progress(blocks, label="score"):
            probe = Probe(model, x[rows], y[rows], seed=seed, passes=run, networks=networks)
            explaining = {method: explainer.rows(rows) for method, explainer in explainers.items()}
            for index in chosen:
                job = replace(jobs[index], settings=_rows_of(jobs[index].settings, rows))
                for method, values in maps.items():
                    began = time.perf_counter()
                    tally = tallies[method][index]
                    _score_block(job, probe, take_maps(values[rows], x[rows]), explaining[method], tally)
                    tally.seconds += time.perf_counter() - began
    return {
        method: [
            _scores(job, tally, seed, run.facts()) for job, tally in zip(jobs, tallies[method], strict=True)
        ]
        for method in maps
    }


def _in_full_precision(x: Tensor) -> Tensor:
    """Return images on the CPU; those of half precision in float32, so that neighbours and fills are too."""
    return x.detach().cpu().to(torch.promote_types(x.dtype, torch.float32))


def _values(given: Any, x: Tensor) -> Tensor | PackedMaps:
    """Return the maps, which those that a study stores compactly leave packed."""
    values = getattr(given, "values", None)
    return values if isinstance(values, PackedMaps) else check_maps(given, x)


def explained_classes(attributions: Iterable[Any]) -> Tensor | None:
    """Return the class that each map explains, of the first maps that state one each; None if none do."""
    for given in attributions:
        if isinstance(given, Attributions) and given.classes.ndim == 1:
            return given.classes
    return None


def _check_classes(given: Any, y: Tensor) -> None:
    """Refuse maps that say they explain another class than `y`."""
    if isinstance(given, Attributions):
        explained = given.classes if given.classes.ndim == 1 else given.classes[:, 0]  # of a contrast
        other = int((explained.cpu() != y).sum())
        if other:
            classes = "maps.classes" if given.classes.ndim == 1 else "maps.classes[:, 0]"
            raise InputError(
                f"the maps of '{given.method}' explain another class than y for {other} of {len(y)} samples; "
                f"pass y={classes}, or maps.values to score them for y all the same"
            )


def _check_origin(attributions: Iterable[Any], x: Tensor) -> None:
    """Refuse maps that say they are of other images than `x`, whatever the precision."""
    origins = {
        given.provenance["images"]: given.method
        for given in attributions
        if isinstance(given, Attributions) and "images" in given.provenance
    }
    if not origins or origins.keys() == {fingerprint(TensorBlocks.of(x, torch.float32))}:
        return
    # older maps name those of other precisions
    here = {fingerprint(TensorBlocks.of(x, dtype)) for dtype in (torch.float32, torch.float64, *HALF)}
    for images, method in origins.items():
        if images not in here:
            raise InputError(
                f"the maps of '{method}' are of other images than x, or of these in another order (a loader "
                "that shuffles draws a new one each time); pass the images that they were made for, or "
                "maps.values to score them all the same"
            )


def _check_per_sample(job: Job, count: int) -> None:
    """Refuse a setting that is a tensor but does not hold one entry per sample."""
    for key, value in dict(job.settings).items():
        if isinstance(value, Tensor) and (value.ndim == 0 or len(value) != count):
            raise InputError(
                f"metric '{job.metric.name}': '{key}' must hold one entry per sample, {count}, "
                f"not the shape {tuple(value.shape)}"
            )


def _rows_of(settings: Settings, rows: slice) -> Settings:
    own = {key: value[rows] for key, value in dict(settings).items() if isinstance(value, Tensor)}
    return settings.model_copy(update=own)


def _check_outputs(model: nn.Module, x: Tensor, y: Tensor, jobs: list[Job]) -> None:
    """Check on a few images that labels are among the classes, and that outputs are logits where needed."""
    pixels = x.shape[2] * x.shape[3]
    read = {
        getattr(job.settings, "output", None) for job in jobs if job.metric.forwards(job.settings, pixels)
    }
    if not read:
        if any(job.metric.maps for job in jobs):
            check_signature(model)
        return
    logits = check_classifier(model, x[:2])
    check_labels(y, len(y), logits.shape[1])
    if "probability" in read:
        refuse_probabilities(logits, "pass output='logit' to score its outputs as they are")


_INFINITE = "the score is infinite, as the logits of the model may be"


def _score_block(job: Job, probe: Probe, maps: Tensor, explainer: Explainer, tally: _Tally) -> None:
    absolute = getattr(job.settings, "absolute", False)
    reasons = unusable(maps, job.metric.needs, absolute=absolute)
    good = torch.tensor([reason is None for reason in reasons])
    usable = maps.where(good[:, None, None, None], 0.0).to(probe.home)
    if job.metric.maps is not None:
        explainer.compare(probe.model, usable, getattr(job.settings, "explain", None))
    outcome = _isolated(job, MetricInput(probe, usable, job.settings, explainer))
    failures = outcome.failures or [None] * len(probe)
    values = np.asarray(outcome.values, dtype=np.float64)
    own = [_INFINITE if np.isinf(v) else job.metric.undefined if np.isnan(v) else None for v in values]
    reasons = [first or second or third for first, second, third in zip(reasons, failures, own, strict=True)]
    values = np.where(good.numpy() & np.isfinite(values), values, np.nan)
    curve = outcome.curve
    if curve is not None:
        curve = Curve(np.where(good.numpy()[:, None], curve.values, np.nan), curve.at)
    tally.add(values, reasons, curve)


def _isolated(job: Job, case: MetricInput) -> MetricOutput:
    """Score a block; where Quantus fails, score its samples one by one, so that only a bad one is lost."""
    try:
        return job.score(case)
    except SaliencyLabError:
        raise
    except Exception as error:
        if job.engine != "quantus" or job.metric.whole:
            raise
        if len(case.probe) == 1:
            return MetricOutput(np.array([np.nan]), failures=[quantus_failure(error)])
    parts = [_isolated(job, _only(case, row)) for row in range(len(case.probe))]
    return MetricOutput(
        np.concatenate([part.values for part in parts]),
        failures=[part.failures[0] if part.failures else None for part in parts],
    )


def _only(case: MetricInput, row: int) -> MetricInput:
    probe, one = case.probe, slice(row, row + 1)
    alone = Probe(
        probe.model,
        probe.images[one],
        probe.labels[one],
        seed=probe.seed,
        passes=probe.passes,
        networks=probe.networks,
    )
    return MetricInput(alone, case.maps[one], _rows_of(case.settings, one), case.explainer.rows(one))


def _scores(job: Job, tally: _Tally, seed: int, provenance: Mapping[str, Any]) -> Scores:
    return Scores(
        values=tally.values,
        reasons=tuple(tally.reasons),
        metric=job.metric.name,
        engine=job.engine,
        seed=seed,
        settings={key: _plain(value) for key, value in dict(job.settings).items()},
        seconds=tally.seconds,
        curve=tally.whole_curve(),
        provenance=provenance,
    )


def _plain(value: Any) -> Any:
    """Write a setting as text if it is a tensor or a function."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {fingerprint(value)[:12]}"
    return getattr(value, "__name__", repr(value)) if callable(value) else value
