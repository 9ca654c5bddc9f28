"""The doors: scores of maps, one a sample."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saliency_lab._common.checks import check_images, check_labels, check_seed
from saliency_lab._common.errors import InputError, SaliencyLabError
from saliency_lab._common.fingerprints import fingerprint
from saliency_lab._common.html import facts
from saliency_lab._common.inference import chunk_rows, device_of, gradients_recorded, unfit_images_told
from saliency_lab._common.progress import progress
from saliency_lab._common.seeding import preserved_rng
from saliency_lab._common.settings import Settings, as_keywords, parse_settings
from saliency_lab.attribution import Attributions
from saliency_lab.metrics.catalogue import METRICS, Curve, Engine, Metric, MetricInput, MetricOutput
from saliency_lab.metrics.explainer import Explainer
from saliency_lab.metrics.maps import check_maps, take_maps, unusable
from saliency_lab.metrics.probe import Probe, require_logits
from saliency_lab.metrics.quantus_engine import quantus_failure


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Scores of one metric, and where they come from.

    Attributes
    ----------
    values : ndarray
        float64 (N,), in the order of the images, NaN where undefined.
    reasons : tuple of (str or None)
        Why a score is NaN, one a sample; None where it is not.
    metric, engine, seed, settings
        What was computed.
    seconds : float
        Wall time spent; passes shared with an earlier metric or method count there.
    curve : Curve or None
        The curve behind the scores, for metrics that integrate one; NaN for a map that cannot be scored.
    """

    values: np.ndarray
    reasons: tuple[str | None, ...]
    metric: str
    engine: Engine
    seed: int
    settings: Mapping[str, Any]
    seconds: float
    curve: Curve | None = None

    def __repr__(self) -> str:
        return f"Scores({self.metric}: {', '.join(f'{key} {value}' for key, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        return facts(f"scores by {self.metric}", self._facts())

    def _facts(self) -> dict[str, str]:
        defined = self.values[~np.isnan(self.values)]
        told = {"samples": str(len(self.values))}
        if len(defined):
            low, middle, high = np.percentile(defined, (25, 50, 75))
            told |= {
                "mean": f"{defined.mean():.4g}",
                "quartiles": f"{low:.4g}, {middle:.4g}, {high:.4g}",
            }
        if self.undefined:
            told["undefined"] = ", ".join(f"{count} ({reason})" for reason, count in self.undefined.items())
        if self.settings:
            told["settings"] = as_keywords(self.settings)
        return told | {"engine": self.engine, "seed": str(self.seed), "time": f"{self.seconds:.3g} s"}

    @property
    def undefined(self) -> dict[str, int]:
        """How many samples have no score, by reason."""
        return dict(Counter(reason for reason in self.reasons if reason is not None))


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
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
    x, y : Tensor
        Images and the class that each map explains.
    attributions : Attributions, Tensor or ndarray
        Signed maps (N, C, H, W), or (N, 1, H, W) with one value a pixel.
    metric : str, Quantus metric object or callable
        A name of `list_metrics()`; a metric object built with Quantus; or your own
        `f(model, x, y, maps)` that returns one number a sample.
    seed : int
        Of the random draws, which depend on it and on the image alone.
    engine : {"fast", "quantus"}, optional
        The metric's first one by default.
    **settings
        The metric's own.

    Returns
    -------
    ndarray
        float64 (N,), NaN where a score is undefined; `evaluate_detailed` says why.

    Raises
    ------
    InputError
        For bad images, labels, maps, names or settings, or `Attributions` of other images.
    """
    return evaluate_detailed(model, x, y, attributions, metric, seed=seed, engine=engine, **settings).values


def evaluate_detailed(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attributions: Any,
    metric: Any,
    *,
    seed: int = 0,
    engine: Engine | None = None,
    **settings: Any,
) -> Scores:
    """Like `evaluate`, with the reasons of undefined scores, the curve, the settings and the time."""
    job = make_job(metric, settings, engine)
    return run_jobs(model, x, y, {"": attributions}, [job], seed)[""][0]


def evaluate_many(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attributions: Mapping[str, Any],
    metrics: Sequence[Any] | Mapping[str, Mapping[str, Any]],
    *,
    seed: int = 0,
    engine: Engine | None = None,
) -> dict[str, dict[str, Scores]]:
    """Score the maps of several methods by several metrics, and share the passes they have in common.

    Parameters
    ----------
    attributions : mapping
        Method name → maps.
    metrics : name, sequence of names, or mapping of name → settings

    Returns
    -------
    dict
        `[method][metric]` → `Scores`, exactly what one `evaluate_detailed` each with the same seed gives.
    """
    if not isinstance(attributions, Mapping) or not attributions:
        raise InputError("attributions must map method names to maps, with one at least")
    names = [metrics] if isinstance(metrics, str) else metrics
    wanted = names if isinstance(names, Mapping) else {name: {} for name in names}
    jobs = [make_job(name, settings, engine) for name, settings in wanted.items()]
    found = run_jobs(model, x, y, attributions, jobs, seed)
    return {method: dict(zip(wanted, scores, strict=True)) for method, scores in found.items()}


@dataclass(frozen=True)
class Job:
    """A metric with its settings and engine."""

    metric: Metric
    settings: Settings
    engine: Engine

    def score(self, case: MetricInput) -> MetricOutput:
        """Score a block."""
        run = self.metric.fast if self.engine == "fast" else self.metric.quantus
        assert run is not None
        return run(case)


def make_job(metric: Any, settings: Mapping[str, Any], engine: Engine | None) -> Job:
    """Check a metric (a name, a Quantus object or a function), its settings and its engine."""
    found = METRICS.find(metric)
    chosen = found.engines[0] if engine is None else engine
    if chosen not in found.engines:
        raise InputError(
            f"metric '{found.name}' has no engine '{chosen}'; it has: {', '.join(found.engines)}"
        )
    return Job(found, parse_settings(found.settings, settings, of=f"metric '{found.name}'"), chosen)


@dataclass
class _Tally:
    """What accumulates for one method and metric over the blocks."""

    values: list[np.ndarray] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    seconds: float = 0.0


def run_jobs(
    model: nn.Module, x: Tensor, y: Tensor, attributions: Mapping[str, Any], jobs: list[Job], seed: int
) -> dict[str, list[Scores]]:
    """Score each method's maps by each job, block by block, so that memory does not grow with the samples."""
    seed = check_seed(seed)
    with gradients_recorded():
        return _run(
            model, check_images(x).detach().cpu(), check_labels(y, len(x)).cpu(), attributions, jobs, seed
        )


def _run(
    model: nn.Module, x: Tensor, y: Tensor, attributions: Mapping[str, Any], jobs: list[Job], seed: int
) -> dict[str, list[Scores]]:
    maps = {method: check_maps(given, x) for method, given in attributions.items()}
    for given in attributions.values():
        _check_classes(given, y)
    _check_origin(attributions.values(), x)
    for job in jobs:
        _check_per_sample(job, len(x))
    tallies = {method: [_Tally() for _ in jobs] for method in maps}
    size = chunk_rows(x.shape, device_of(model))
    blocks = [slice(start, start + size) for start in range(0, len(x), size)]
    by_block = [index for index, job in enumerate(jobs) if not job.metric.whole]
    whole = [index for index, job in enumerate(jobs) if job.metric.whole]
    passes = [(rows, by_block) for rows in blocks if by_block] + [(slice(None), whole)] * bool(whole)
    with preserved_rng():
        _check_outputs(model, x, y, jobs)
        for rows, chosen in progress(passes, label="score"):
            probe = Probe(model, x[rows], y[rows], seed=seed)
            explainers = {
                method: Explainer(given, x, y, seed).rows(rows) for method, given in attributions.items()
            }
            for index in chosen:
                job = replace(jobs[index], settings=_rows_of(jobs[index].settings, rows))
                for method, values in maps.items():
                    began = time.perf_counter()
                    tally = tallies[method][index]
                    _score_block(job, probe, take_maps(values[rows], x[rows]), explainers[method], tally)
                    tally.seconds += time.perf_counter() - began
    return {
        method: [_scores(job, tally, seed) for job, tally in zip(jobs, tallies[method], strict=True)]
        for method in maps
    }


def _check_classes(given: Any, y: Tensor) -> None:
    """Maps that say which class they explain must be scored for that class."""
    if isinstance(given, Attributions) and given.classes.ndim == 1:
        other = int((given.classes.cpu() != y).sum())
        if other:
            raise InputError(
                f"the maps of '{given.method}' explain another class than y for {other} of {len(y)} samples; "
                "pass y=maps.classes, or maps.values to score them for y all the same"
            )


def _check_origin(attributions: Iterable[Any], x: Tensor) -> None:
    """Maps that say which images they are of must be scored on those; in whatever precision."""
    told = {
        given.provenance["images"]: given.method
        for given in attributions
        if isinstance(given, Attributions) and "images" in given.provenance
    }
    if not told or told.keys() == {fingerprint(x.float())}:
        return
    # older maps name those of other precisions
    here = {fingerprint(x.to(dtype)) for dtype in (torch.float32, x.dtype, torch.float64)}
    for images, method in told.items():
        if images not in here:
            raise InputError(
                f"the maps of '{method}' are of other images than x, or of these in another order (a loader "
                "that shuffles draws a new one each time); pass the images that they were made for, or "
                "maps.values to score them all the same"
            )


def _check_per_sample(job: Job, count: int) -> None:
    """Settings that are tensors hold one entry a sample."""
    for key, value in dict(job.settings).items():
        if isinstance(value, Tensor) and (value.ndim == 0 or len(value) != count):
            raise InputError(
                f"metric '{job.metric.name}': '{key}' must hold one entry a sample, {count}, "
                f"not the shape {tuple(value.shape)}"
            )


def _rows_of(settings: Settings, rows: slice) -> Settings:
    own = {key: value[rows] for key, value in dict(settings).items() if isinstance(value, Tensor)}
    return settings.model_copy(update=own)


def _check_outputs(model: nn.Module, x: Tensor, y: Tensor, jobs: list[Job]) -> None:
    """Look at a few outputs: labels must be among the classes, and outputs be logits where that matters."""
    pixels = x.shape[2] * x.shape[3]
    read = {
        getattr(job.settings, "output", None) for job in jobs if job.metric.forwards(job.settings, pixels)
    }
    if not read:
        return
    few = Probe(model, x[:4], y[:4], seed=0)
    with unfit_images_told(model, x):
        logits = few.logits(few.x)
    check_labels(y, len(y), logits.shape[1])
    if "probability" in read:
        require_logits(logits)


def _score_block(job: Job, probe: Probe, maps: Tensor, explainer: Explainer, tally: _Tally) -> None:
    absolute = getattr(job.settings, "absolute", False)
    reasons = unusable(maps, job.metric.needs, absolute=absolute)
    good = torch.tensor([reason is None for reason in reasons])
    usable = maps.where(good[:, None, None, None], 0.0).to(probe.home)
    outcome = _isolated(job, MetricInput(probe, usable, job.settings, explainer))
    failures = outcome.failures or [None] * len(probe)
    values = np.where(good.numpy(), np.asarray(outcome.values, dtype=np.float64), np.nan)
    for reason, failure, value in zip(reasons, failures, values, strict=True):
        tally.reasons.append(reason or failure or (job.metric.undefined if np.isnan(value) else None))
    tally.values.append(values)
    if outcome.curve is not None:
        curve = np.where(good.numpy()[:, None], outcome.curve.values, np.nan)
        tally.curves.append(Curve(curve, outcome.curve.at))


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
    alone = Probe(probe.model, probe.images[one], probe.labels[one], seed=probe.seed)
    return MetricInput(alone, case.maps[one], _rows_of(case.settings, one), case.explainer.rows(one))


def _scores(job: Job, tally: _Tally, seed: int) -> Scores:
    return Scores(
        values=np.concatenate(tally.values),
        reasons=tuple(tally.reasons),
        metric=job.metric.name,
        engine=job.engine,
        seed=seed,
        settings={key: _plain(value) for key, value in dict(job.settings).items()},
        seconds=tally.seconds,
        curve=_joined(tally.curves) if len(tally.curves) == len(tally.values) else None,
    )


def _joined(curves: list[Curve]) -> Curve | None:
    """The curves of all blocks; those of fewer steps keep their last value (IROF: fewer segments)."""
    if not curves:
        return None
    longest = max(curve.values.shape[1] for curve in curves)
    padded = [np.pad(c.values, ((0, 0), (0, longest - c.values.shape[1])), mode="edge") for c in curves]
    at = curves[0].at
    if at.ndim == 2:
        rows = [np.pad(c.at, ((0, 0), (0, longest - c.at.shape[1])), mode="edge") for c in curves]
        at = np.concatenate(rows)
    return Curve(np.concatenate(padded), at)


def _plain(value: Any) -> Any:
    """A setting as text where it is a tensor or a function."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {fingerprint(value)[:12]}"
    return getattr(value, "__name__", repr(value)) if callable(value) else value
