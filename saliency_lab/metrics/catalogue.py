"""What a metric is: its name, meaning, settings, cost and engines; and the table of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from saliency_lab._common.registry import Registry
from saliency_lab._common.settings import Settings, list_settings
from saliency_lab.metrics.explainer import Explainer
from saliency_lab.metrics.maps import Needs
from saliency_lab.metrics.probe import Probe

if TYPE_CHECKING:
    import pandas as pd

Engine = Literal["fast", "quantus"]
Better = Literal["higher", "lower", "neither"]
Family = Literal[
    "faithfulness", "complexity", "robustness", "randomisation", "localisation", "axiomatic", "own"
]
"""The families of Quantus, and `own` for a user's metric."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One number a sample and step: `values` (N, K) at the positions `at` (K,) or (N, K)."""

    values: np.ndarray
    at: np.ndarray

    def __repr__(self) -> str:
        samples, steps = self.values.shape
        return f"Curve({samples} samples, {steps} steps)"


@dataclass(frozen=True)
class MetricOutput:
    """What an engine returns for a block: float64 (N,), the curve behind it, and why a sample failed."""

    values: np.ndarray
    curve: Curve | None = None
    failures: Sequence[str | None] | None = None


@dataclass(frozen=True)
class MetricInput:
    """What an engine is given: the probe, the maps (N, C, H, W), the settings, and how maps are made again.

    `maps` are float64, at the probe's home; a map that cannot be scored is zeros there and its score is
    discarded.
    """

    probe: Probe
    maps: Tensor
    settings: Any
    explainer: Explainer


Score = Callable[[MetricInput], MetricOutput]


@dataclass(frozen=True)
class Metric:
    """A metric and what a user must know to read it."""

    name: str
    family: Family
    better: Better
    range: str
    reference: str
    settings: type[Settings]
    forwards: Callable[[Any, int], int]
    """Images predicted a sample, from (settings, pixels), if every removal changes the image."""
    needs: Needs
    undefined: str
    """Why a usable map's score is NaN."""
    fast: Score | None = None
    quantus: Score | None = None
    maps: Callable[[Any], str] | None = None
    """Maps made a sample, in words, from the settings, for metrics that explain again."""
    shares: str = ""
    """What it asks that other metrics ask too, so that they are best scored together; empty for nothing."""
    serial: tuple[Engine, ...] = ()
    """Engines that let one thread in at a time, because they patch Quantus or draw from global generators."""
    whole: bool = False
    """A sample is compared with the others of the call, so its score depends on them by definition."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Ends of the range as numbers; infinite where it depends on the images, is unknown or has no end."""
        ends = []
        low, _, high = self.range[1:-1].partition(",")
        for text, none in ((low, -math.inf), (high, math.inf)):
            try:
                ends.append(float(text))
            except ValueError:
                ends.append(none)
        return ends[0], ends[1]

    @property
    def engines(self) -> list[Engine]:
        """Engines that compute it, the default first."""
        return [name for name in ("fast", "quantus") if getattr(self, name) is not None]


METRICS: Registry[Metric] = Registry("metric", "metric")

NOT_A_NUMBER = "the model's answer is not a number"
"""Why a score of answers is NaN."""


def register(metric: Metric) -> None:
    """Add a metric to the table under its name."""
    METRICS.add(metric.name, metric)


def list_metrics() -> pd.DataFrame:
    """Table of the metrics, indexed by name.

    Columns: `family`; `better`, which values are (higher, lower, neither); `range`; `forwards` and `maps`,
    images predicted and maps made a sample at the default settings for 28×28 pixels; `engines`, the default
    first; `settings`, with their defaults; `reference`. Larger images may take more `forwards`; where a
    removal changes nothing of an image the model is not asked, and they are fewer.

    >>> list_metrics().loc["sparseness", ["family", "better", "range"]].tolist()
    ['complexity', 'higher', '[0, 1]']
    """
    import pandas as pd

    rows = []
    for name in METRICS:
        metric = METRICS[name]
        defaults = metric.settings.model_construct()
        rows.append(
            {
                "name": name,
                "family": metric.family,
                "better": metric.better,
                "range": metric.range,
                "forwards": metric.forwards(defaults, 28 * 28),
                "maps": metric.maps(defaults) if metric.maps else "0",
                "engines": ", ".join(f"{e} (serial)" if e in metric.serial else e for e in metric.engines),
                "settings": list_settings(metric.settings),
                "reference": metric.reference,
            }
        )
    return pd.DataFrame(rows).set_index("name")
