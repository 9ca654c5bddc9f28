"""Does the map's sum over removed pixels follow the change of the model's answer?"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saliency_lab._common.errors import InputError
from saliency_lab._common.seeding import sample_uniform
from saliency_lab._common.settings import Settings
from saliency_lab.metrics import quantus_engine as quantus
from saliency_lab.metrics.catalogue import Case, Metric, Outcome, register
from saliency_lab.metrics.maps import pixel_scores
from saliency_lab.metrics.probe import Answers, Baseline, Output, Probe
from saliency_lab.metrics.statistics import pearson


class RandomSubsets(Settings):
    """`runs` random subsets of `subset_size` pixels are removed."""

    runs: int = Field(100, ge=3)
    subset_size: int = Field(224, ge=1)
    baseline: Baseline = "black"
    absolute: bool = False
    output: Output = "probability"


def random_subsets(probe: Probe, runs: int, size: int) -> Tensor:
    """Draw `runs` subsets of `size` pixels for each image: indices (N, runs, size), keyed by (seed, image).

    Raises
    ------
    InputError
        If a subset would not leave a pixel.
    """
    if size >= probe.pixels:
        raise InputError(f"'subset_size' must be below the number of pixels, {probe.pixels}, not {size}")

    def draw() -> Tensor:
        rows = [
            sample_uniform([seed], (runs, probe.pixels))[0].topk(size, dim=1, sorted=False).indices
            for seed in probe.seeds(f"subsets of {size}")
        ]
        return torch.stack(rows).to(probe.device)

    return probe.remember(("subsets", runs, size), draw)


def without_subsets(probe: Probe, runs: int, size: int, baseline: Baseline) -> Answers:
    """Answers (N, runs) with each random subset replaced by the baseline."""

    def build(i: Tensor, j: Tensor) -> Tensor:
        gone = torch.zeros(len(i), probe.pixels, dtype=torch.bool, device=probe.device)
        gone.scatter_(1, random_subsets(probe, runs, size)[i, j], True)
        return torch.where(gone.view(len(i), 1, *probe.x.shape[2:]), probe.fill(baseline)[i], probe.x[i])

    return probe.remember(("without", runs, size, baseline), lambda: probe.ask(runs, build))


def subset_sums(scores: Tensor, subsets: Tensor) -> Tensor:
    """Sums (N, runs) of the pixel scores (N, H·W) over subsets (N, runs, size)."""
    return scores.gather(1, subsets.flatten(1)).view(subsets.shape).sum(2)


def _faithfulness_correlation(case: Case) -> Outcome:
    probe, settings = case.probe, case.settings
    answers = without_subsets(probe, settings.runs, settings.subset_size, settings.baseline)
    drops = probe.clean.read(settings.output) - answers.read(settings.output)
    subsets = random_subsets(probe, settings.runs, settings.subset_size)
    sums = subset_sums(pixel_scores(case.maps, absolute=settings.absolute), subsets)
    return Outcome(pearson(sums, drops).cpu().numpy())


def _faithfulness_correlation_quantus(case: Case) -> Outcome:
    probe, settings = case.probe, case.settings
    with quantus.drawn_subsets(random_subsets(probe, settings.runs, settings.subset_size)):
        scores = quantus.evaluate_batch(
            "FaithfulnessCorrelation",
            quantus.MaskSpace(probe, settings.baseline, settings.output),
            pixel_scores(case.maps, absolute=settings.absolute),
            nr_runs=settings.runs,
            subset_size=settings.subset_size,
            perturb_baseline=0.0,
        )
    return Outcome(np.asarray(scores, dtype=np.float64))


register(
    Metric(
        name="faithfulness_correlation",
        family="faithfulness",
        better="higher",
        range="[-1, 1]",
        reference="Bhatt et al., IJCAI 2020",
        settings=RandomSubsets,
        forwards=lambda s, pixels: s.runs + 1,
        needs="nonzero",
        undefined="the model's answer, or the map's sum, is the same for every subset",
        fast=_faithfulness_correlation,
        quantus=_faithfulness_correlation_quantus,
    )
)
