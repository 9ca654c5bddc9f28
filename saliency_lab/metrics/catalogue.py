"""The metrics: what is known of each (meaning, settings, cost, engines), and the table of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from saliency_lab._common.arguments import check_count
from saliency_lab._common.registry import Registry
from saliency_lab._common.settings import Settings, list_settings
from saliency_lab.metrics.explainer import Explainer
from saliency_lab.metrics.maps import Needs
from saliency_lab.metrics.probe import Probe
from saliency_lab.metrics.sizes import settings_at_size

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
    """One number per sample and step: `values` (N, K) at the positions `at` (K,) or (N, K)."""

    values: np.ndarray
    at: np.ndarray

    def __repr__(self) -> str:
        samples, steps = self.values.shape
        return f"Curve({samples} samples, {steps} steps)"


@dataclass(frozen=True)
class MetricOutput:
    """Scores of a block: float64 (N,), the curve behind them, and why a sample failed."""

    values: np.ndarray
    curve: Curve | None = None
    failures: Sequence[str | None] | None = None


@dataclass(frozen=True)
class MetricInput:
    """A block to score: the probe, the maps (N, C, H, W), the settings, and how maps are made again.

    `maps` are float64, at the probe's home; a map that cannot be scored is zeros there and its score is
    discarded.
    """

    probe: Probe
    maps: Tensor
    settings: Any
    explainer: Explainer


Score = Callable[[MetricInput], MetricOutput]

Order = Literal["most_relevant_first", "least_relevant_first"]
"""The order of a perturbation curve: MoRF or LeRF in the literature."""

MORF: Order = "most_relevant_first"
LERF: Order = "least_relevant_first"


def added_later(before: Any) -> dict[str, Any]:
    """Mark a setting that a metric did not always have, as `json_schema_extra` of its field.

    At the value that computes what was computed before, the setting is no part of the key of stored scores.
    """
    return {"before": before}


@dataclass(frozen=True)
class MapsMade:
    """How many maps a metric makes per sample: a fixed number, and so many for each layer of the network."""

    fixed: int = 0
    per_layer: int = 0

    def __str__(self) -> str:
        layers = (
            "" if not self.per_layer else "layers" if self.per_layer == 1 else f"{self.per_layer} × layers"
        )
        return " + ".join(part for part in (layers, str(self.fixed or "")) if part) or "0"


@dataclass(frozen=True)
class Metric:
    """A metric, and what a user must know to read its scores."""

    name: str
    family: Family
    better: Better
    range: str
    reference: str
    settings: type[Settings]
    forwards: Callable[[Any, int], int]
    """Images predicted per sample, from (settings in pixels, H·W), if every removal changes the image."""
    needs: Needs
    undefined: str
    """Why a usable map's score is NaN."""
    fast: Score | None = None
    quantus: Score | None = None
    maps: Callable[[Any], MapsMade] | None = None
    """Maps made per sample, from the settings, for metrics that make maps again."""
    shares: str = ""
    """Which predictions it shares with other metrics, so that they are scored together; empty for none."""
    same_for_all_maps: bool = False
    """Whether what is predicted does not depend on the map, so that all methods share it."""
    revision: int = 0
    """Counts changes of the definition under the same settings: scores stored before are computed again."""
    serial: tuple[Engine, ...] = ()
    """Engines that let one thread in at a time, because they patch Quantus or draw from global generators."""
    whole: bool = False
    """Whether samples are compared with each other, so that scores depend on the others of the call."""

    def direction(self, settings: Settings) -> Better:
        """Return which scores are better under these settings: removing in the other order reverses it."""
        other: dict[Better, Better] = {"higher": "lower", "lower": "higher", "neither": "neither"}
        return other[self.better] if getattr(settings, "order", MORF) == LERF else self.better

    @property
    def bounds(self) -> tuple[float, float]:
        """Ends of the range; infinite where one depends on the images, is unknown, or does not exist."""
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
        """The engines that compute it, the default first."""
        return [name for name in ("fast", "quantus") if getattr(self, name) is not None]


_ELSEWHERE = {
    "aopc": '"region_perturbation"',
    "morf": '"pixel_flipping"',
    "lerf": '"pixel_flipping" with order="least_relevant_first"',
    "modelparameterrandomisationtest": '"mprt"',
    "modelparameterrandomisation": '"mprt"',
    "lipschitz": '"local_lipschitz_estimate"',
    "sensitivity": '"max_sensitivity" or "avg_sensitivity" (of the map), or "sensitivity_n" (of the output)',
    "gini": '"sparseness"',
    "entropy": '"complexity"',
    "ris": '"relative_input_stability"',
    "ros": '"relative_output_stability"',
    "rrs": '"relative_representation_stability"',
    "ebpg": '"energy_pointing_game"',
    "dropinconfidence": '"average_drop"',
    "roar": "sl.roar(recipe), which trains networks again",
}
"""Names in Quantus, pytorch-grad-cam and the papers, and what to write here."""

METRICS: Registry[Metric] = Registry("metric", "metric", elsewhere=_ELSEWHERE)

NOT_A_NUMBER = "the model's output is not a number"
"""Why a score that is computed from the model's outputs is NaN."""


def register(metric: Metric) -> None:
    """Add a metric to the table under its name."""
    METRICS.add(metric.name, metric)


def stored_settings(settings: Settings, height: int, width: int) -> dict[str, Any]:
    """Return the settings that stored scores depend on, in pixels for images of this size.

    Settings of `added_later` are left out where they compute what was computed before they existed.
    """
    fields = type(settings).model_fields
    sized = dict(settings_at_size(settings, height, width))
    marks = {name: getattr(fields.get(name), "json_schema_extra", None) or {} for name in sized}
    return {name: value for name, value in sized.items() if marks[name] != {"before": value}}


def list_metrics(image_size: int = 28) -> pd.DataFrame:
    """List the metrics.

    Parameters
    ----------
    image_size : int
        Side of the images in pixels, for the cost.

    Returns
    -------
    DataFrame
        Indexed by name. Columns: `family`; `better`, which values are (higher, lower, neither); `range`;
        `forwards` and `maps`, images predicted and maps made per sample at the default settings, where
        `forwards` is an upper bound: the model is not asked where a removal changes nothing; `engines`, the
        default first, and whether threads take turns in one (serial); `settings`, with their defaults, of
        which fractions are of the image; `reference`.

    Raises
    ------
    InputError
        If `image_size` is no positive integer.

    Examples
    --------
    >>> list_metrics().loc["sparseness", ["family", "better", "range"]].tolist()
    ['complexity', 'higher', '[0, 1]']
    >>> int(list_metrics(image_size=224).loc["infidelity", "forwards"])
    50
    """
    import pandas as pd

    image_size = check_count(image_size, "image_size", most=100_000)
    rows = []
    for name in METRICS:
        metric = METRICS[name]
        defaults = settings_at_size(metric.settings.model_construct(), image_size, image_size)
        rows.append(
            {
                "name": name,
                "family": metric.family,
                "better": metric.better,
                "range": metric.range,
                "forwards": metric.forwards(defaults, image_size**2),
                "maps": str(metric.maps(defaults) if metric.maps else MapsMade()),
                "engines": ", ".join(f"{e} (serial)" if e in metric.serial else e for e in metric.engines),
                "settings": list_settings(metric.settings),
                "reference": metric.reference,
            }
        )
    return pd.DataFrame(rows).set_index("name")
