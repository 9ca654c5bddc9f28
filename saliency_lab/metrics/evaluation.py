"""The doors: scores of maps, one a sample."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saliency_lab._common.checks import check_images, check_labels
from saliency_lab._common.errors import InputError, SaliencyLabError
from saliency_lab._common.inference import chunk_rows
from saliency_lab._common.progress import progress
from saliency_lab._common.seeding import preserved_rng
from saliency_lab._common.settings import Settings, parse_settings
from saliency_lab.metrics.catalogue import METRICS, Case, Curve, Engine, Metric, Outcome
from saliency_lab.metrics.maps import take_maps, unusable
from saliency_lab.metrics.probe import Probe, require_logits


@dataclass(frozen=True)
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
        The curve behind the scores, for metrics that integrate one.
    """

    values: np.ndarray
    reasons: tuple[str | None, ...]
    metric: str
    engine: Engine
    seed: int
    settings: Mapping[str, Any]
    seconds: float
    curve: Curve | None = None

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
    metric : str
        A name of `list_metrics()`.
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
        For bad images, labels, maps, names or settings.
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
    job = _job(metric, settings, engine)
    return _run(model, x, y, {"": attributions}, [job], seed)[""][0]


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
    metrics : sequence of names, or mapping of name → settings

    Returns
    -------
    dict
        `[method][metric]` → `Scores`, exactly what one `evaluate_detailed` each with the same seed gives.
    """
    if not isinstance(attributions, Mapping) or not attributions:
        raise InputError("attributions must map method names to maps, with one at least")
    wanted = metrics if isinstance(metrics, Mapping) else {name: {} for name in metrics}
    jobs = [_job(name, settings, engine) for name, settings in wanted.items()]
    found = _run(model, x, y, attributions, jobs, seed)
    return {method: dict(zip(wanted, scores, strict=True)) for method, scores in found.items()}


@dataclass(frozen=True)
class _Job:
    metric: Metric
    settings: Settings
    engine: Engine

    def score(self, case: Case) -> Outcome:
        run = self.metric.fast if self.engine == "fast" else self.metric.quantus
        assert run is not None
        return run(case)


def _job(metric: Any, settings: Mapping[str, Any], engine: Engine | None) -> _Job:
    found = METRICS[metric]
    chosen = found.engines[0] if engine is None else engine
    if chosen not in found.engines:
        raise InputError(
            f"metric '{found.name}' has no engine '{chosen}'; it has: {', '.join(found.engines)}"
        )
    return _Job(found, parse_settings(found.settings, settings, of=f"metric '{found.name}'"), chosen)


@dataclass
class _Tally:
    """What accumulates for one method and metric over the blocks."""

    values: list[np.ndarray] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    seconds: float = 0.0


def _run(
    model: nn.Module, x: Tensor, y: Tensor, attributions: Mapping[str, Any], jobs: list[_Job], seed: int
) -> dict[str, list[Scores]]:
    """Score block by block, so that memory does not grow with the number of samples."""
    x = check_images(x).detach()
    y = check_labels(y, len(x))
    maps = {method: take_maps(given, x) for method, given in attributions.items()}
    tallies = {method: [_Tally() for _ in jobs] for method in maps}
    size = chunk_rows(x.shape)
    with preserved_rng():
        for start in progress(range(0, len(x), size), label="score"):
            rows = slice(start, start + size)
            probe = Probe(model, x[rows], y[rows], seed=seed)
            _check_outputs(probe, jobs)
            for index, job in enumerate(jobs):
                for method, values in maps.items():
                    began = time.perf_counter()
                    _score_block(job, probe, values[rows], tallies[method][index])
                    tallies[method][index].seconds += time.perf_counter() - began
    return {
        method: [_scores(job, tally, seed) for job, tally in zip(jobs, tallies[method], strict=True)]
        for method in maps
    }


def _check_outputs(probe: Probe, jobs: list[_Job]) -> None:
    read = [
        getattr(job.settings, "output", None)
        for job in jobs
        if job.metric.forwards(job.settings, probe.pixels)
    ]
    if not read:
        return
    with torch.inference_mode():
        classes = probe.logits(probe.x[:1]).shape[1]
    check_labels(probe.labels, len(probe), classes)
    if "probability" in read:
        require_logits(probe)


def _score_block(job: _Job, probe: Probe, maps: Tensor, tally: _Tally) -> None:
    reasons = unusable(maps, job.metric.needs)
    good = torch.tensor([reason is None for reason in reasons])
    usable = maps.where(good[:, None, None, None], 0.0).to(probe.device)
    outcome, failures = _isolated(job, Case(probe, usable, job.settings))
    values = np.where(good.numpy(), np.asarray(outcome.values, dtype=np.float64), np.nan)
    for reason, failure, value in zip(reasons, failures, values, strict=True):
        tally.reasons.append(reason or failure or (job.metric.undefined if np.isnan(value) else None))
    tally.values.append(values)
    if outcome.curve is not None:
        tally.curves.append(outcome.curve)


def _isolated(job: _Job, case: Case) -> tuple[Outcome, list[str | None]]:
    """Score a block; where Quantus fails, score its samples one by one, so that only a bad one is lost."""
    count = len(case.probe)
    try:
        return job.score(case), [None] * count
    except SaliencyLabError:
        raise
    except Exception as error:
        if job.engine != "quantus":
            raise
        if count == 1:
            return Outcome(np.array([np.nan])), [f"Quantus cannot score it: {type(error).__name__}: {error}"]
    parts = [_isolated(job, _only(case, row)) for row in range(count)]
    values = np.concatenate([part.values for part, _ in parts])
    return Outcome(values), [failure for _, (failure,) in parts]


def _only(case: Case, row: int) -> Case:
    probe = case.probe
    one = slice(row, row + 1)
    alone = Probe(probe.model, probe.images[one], probe.labels[one], seed=probe.seed)
    return replace(case, probe=alone, maps=case.maps[one])


def _scores(job: _Job, tally: _Tally, seed: int) -> Scores:
    curve = None
    if tally.curves:
        at = [part.at for part in tally.curves]
        curve = Curve(
            np.concatenate([part.values for part in tally.curves]),
            at[0] if at[0].ndim == 1 else np.concatenate(at),
        )
    return Scores(
        values=np.concatenate(tally.values),
        reasons=tuple(tally.reasons),
        metric=job.metric.name,
        engine=job.engine,
        seed=seed,
        settings=job.settings.model_dump(),
        seconds=tally.seconds,
        curve=curve,
    )
