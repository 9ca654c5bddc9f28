"""A metric with its settings and its engine, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saliency_lab._common.errors import InputError
from saliency_lab._common.settings import Settings, parse_settings
from saliency_lab.metrics.catalogue import METRICS, Better, Engine, Metric, MetricInput, MetricOutput


@dataclass(frozen=True)
class Job:
    """A metric with its settings and engine."""

    metric: Metric
    settings: Settings
    engine: Engine

    @classmethod
    def of(cls, metric: Any, settings: Mapping[str, Any], engine: Engine) -> Job:
        """Return the job of a metric with settings that are validated already."""
        chosen = METRICS.find(metric)
        return cls(chosen, chosen.settings.model_construct(**settings), engine)

    @property
    def better(self) -> Better:
        """Which scores are better under these settings."""
        return self.metric.direction(self.settings)

    def score(self, case: MetricInput) -> MetricOutput:
        """Score a block."""
        run = self.metric.fast if self.engine == "fast" else self.metric.quantus
        assert run is not None
        return run(case)


def make_job(metric: Any, settings: Mapping[str, Any], engine: Engine | None) -> Job:
    """Check a metric (a name, a Quantus object or a function), its settings and its engine."""
    entry = METRICS.find(metric)
    chosen = entry.engines[0] if engine is None else engine
    if chosen not in entry.engines:
        raise InputError(
            f"metric '{entry.name}' has no engine '{chosen}'; it has: {', '.join(entry.engines)}"
        )
    return Job(
        entry,
        parse_settings(entry.settings, settings, of=f"metric '{entry.name}'"),
        chosen,
    )
