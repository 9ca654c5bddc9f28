"""Estimates of how long scoring takes, shown before long work."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saliency_lab._common.inference import seconds_per_image
from saliency_lab._common.progress import announce
from saliency_lab.attribution import Attributions
from saliency_lab.metrics.job import Job
from saliency_lab.metrics.probe import Probe
from saliency_lab.metrics.randomisation import layer_names

LONG = 60.0
"""Seconds of estimated work from which the estimate is shown."""

PASSES_PER_MAP = 3
"""What a map is assumed to cost that does not say: a forward pass, and a backward pass of twice its cost."""


def announce_long_work(
    model: nn.Module,
    x: Tensor,
    attributions: Mapping[str, Any],
    jobs: Sequence[Job],
) -> None:
    """Show how long the jobs take, if that is more than a minute.

    The passes that checks made were first ones and slow, so if they announce long work, the time is measured
    on more images. The estimate is an upper bound where metrics or methods share predictions, or a removal
    changes nothing.
    """
    if not any(any(_counts(model, x, job)) for job in jobs):
        return
    first_pass = seconds_per_image(model, x.shape[1:]) or _measured(model, x[:1])
    if sum(estimate(model, x, attributions, jobs, first_pass)) < LONG:
        return
    seconds = estimate(model, x, attributions, jobs, _measured(model, x))
    if sum(seconds) < LONG:
        return
    longest = sorted(zip(seconds, (job.metric.name for job in jobs), strict=True), reverse=True)[:3]
    parts = ", ".join(f"{name} {duration(value)}" for value, name in longest)
    announce(
        f"scoring the maps of {len(x)} images takes up to {duration(sum(seconds))} ({parts}); "
        f"list_metrics(image_size={max(x.shape[2:])}) shows what each metric costs"
    )


def estimate(
    model: nn.Module,
    x: Tensor,
    attributions: Mapping[str, Any],
    jobs: Sequence[Job],
    per_image: float,
) -> list[float]:
    """Return the seconds that each job takes, from those of a forward pass per image."""
    per_map = sum(_seconds_per_map(given, per_image) for given in attributions.values())
    rows = []
    for job in jobs:
        forwards, maps = _counts(model, x, job)
        rows.append(len(x) * (len(attributions) * forwards * per_image + maps * per_map))
    return rows


def predicted_images(x: Tensor, attributions: Mapping[str, Any], jobs: Sequence[Job]) -> int:
    """Return how many images the jobs predict, from above: metrics may share predictions."""
    pixels, count = x.shape[2] * x.shape[3], 0
    for job in jobs:
        if job.engine == "fast":
            times = 1 if job.metric.same_for_all_maps else len(attributions)
            count += job.metric.forwards(job.settings, pixels) * times
    return len(x) * count


def _counts(model: nn.Module, x: Tensor, job: Job) -> tuple[int, int]:
    """Return images predicted and maps made per sample."""
    forwards = job.metric.forwards(job.settings, x.shape[2] * x.shape[3])
    if job.metric.maps is None:
        return forwards, 0
    count = job.metric.maps(job.settings)
    return forwards, count.fixed + (count.per_layer * len(layer_names(model)) if count.per_layer else 0)


def _measured(model: nn.Module, x: Tensor) -> float:
    """Seconds per image of a forward pass of the images that fit into one pass."""
    probe = Probe(model, x[:1], torch.zeros(1, dtype=torch.long), seed=0)
    images = x[: probe.chunk].to(probe.device)
    began = time.perf_counter()
    probe.logits(images).cpu()
    return (time.perf_counter() - began) / len(images)


def _seconds_per_map(given: Any, per_image: float) -> float:
    if isinstance(given, Attributions) and given.seconds and len(given.values):
        return given.seconds / len(given.values)
    return PASSES_PER_MAP * per_image


def duration(seconds: float) -> str:
    """Write a duration in the largest unit that fits.

    >>> duration(75), duration(5400), duration(20)
    ('1 min', '1.5 h', '20 s')
    """
    if seconds < LONG:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
