"""Does the map's sum over removed pixels follow the change of the model's answer?"""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saliency_lab._common.errors import InputError
from saliency_lab._common.hashing import fingerprint
from saliency_lab._common.ranks import descending_ranks, pearson, spearman
from saliency_lab._common.seeding import sample_uniform
from saliency_lab._common.settings import Settings
from saliency_lab.metrics import quantus_engine as quantus
from saliency_lab.metrics.catalogue import NOT_A_NUMBER, Metric, MetricInput, MetricOutput, register
from saliency_lab.metrics.maps import pixel_scores
from saliency_lab.metrics.probe import Baseline, Output, Probe, ProbePredictions
from saliency_lab.metrics.removal import cuts, patch_count, patches, unit_sums
from saliency_lab.metrics.sizes import Size, SizedSettings, pixels_of

ONE_PATCH = "patches removed one at a time"
"""What `without_units` answers for several metrics."""

UNVARIED = "the model's output, or the map's sum, is the same for everything removed, or not a number"


class RandomSubsets(SizedSettings):
    """`runs` random subsets are removed, each of `subset_size` pixels or that fraction of them."""

    runs: int = Field(100, ge=3)
    subset_size: Size = "2/7"
    baseline: Baseline = "black"
    absolute: bool = False
    output: Output = "probability"

    def at_size(self, height: int, width: int) -> Self:
        """Return the settings in pixels."""
        return self.model_copy(update={"subset_size": pixels_of(self.subset_size, height * width)})


class SensitivityN(Settings):
    """For each fraction of the pixels, `runs` random subsets of that size are removed."""

    fractions: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.1, 0.3, 0.5, 0.7), min_length=1, strict=False
    )
    runs: int = Field(25, ge=3)
    baseline: Baseline = "black"
    absolute: bool = False
    output: Output = "probability"


class Groups(Settings):
    """Pixels are removed in `steps` groups of neighbours in rank, each group alone."""

    steps: int = Field(28, ge=3)
    baseline: Baseline = "black"
    absolute: bool = False
    output: Output = "probability"


class RandomFills(Settings):
    """Each of `steps` groups of neighbours in rank is filled `samples` times with uniform draws."""

    steps: int = Field(28, ge=3)
    samples: int = Field(10, ge=1)
    absolute: bool = True
    output: Output = "probability"


class Patches(SizedSettings):
    """Every patch of each size is removed, each alone; maps explain logits, so logits are read.

    `patch_sizes` are sides in pixels, or fractions of the image's shorter side.
    """

    patch_sizes: tuple[Size, ...] = Field(("1/7",), min_length=1, strict=False)
    baseline: Baseline = "black"
    output: Output = "logit"

    def at_size(self, height: int, width: int) -> Self:
        """Return the settings in pixels."""
        sizes = tuple(pixels_of(size, min(height, width)) for size in self.patch_sizes)
        return self.model_copy(update={"patch_sizes": sizes})


def random_subsets(probe: Probe, runs: int, size: int) -> Tensor:
    """Draw `runs` subsets of `size` pixels for each image: indices (N, runs, size), keyed by (seed, image).

    Raises
    ------
    InputError
        If a subset would not leave a pixel.
    """
    if not 1 <= size < probe.pixels:
        raise InputError(
            f"a subset must hold at least 1 and fewer than all of the {probe.pixels} pixels, not {size}; set "
            "another subset_size (for sensitivity_n, other fractions)"
        )

    def draw() -> Tensor:
        keep = probe.pixels - size
        rows = [
            np.argpartition(sample_uniform([seed], (runs, probe.pixels))[0].numpy(), keep, axis=1)[:, keep:]
            for seed in probe.seeds(f"subsets of {size}")
        ]
        return torch.as_tensor(np.stack(rows)).to(probe.home)

    return probe.remember(("subsets", runs, size), draw)


def without(probe: Probe, subsets: Tensor, baseline: Baseline) -> ProbePredictions:
    """Return predictions (N, runs) with each subset (N, runs, size) replaced by the baseline."""
    subsets = subsets.to(probe.device)

    def build(i: Tensor, j: Tensor) -> Tensor:
        gone = torch.zeros(len(i), probe.pixels, dtype=torch.bool, device=probe.device)
        gone.scatter_(1, subsets[i, j], True)
        return torch.where(gone.view(len(i), 1, *probe.x.shape[2:]), probe.fill(baseline)[i], probe.x[i])

    return probe.ask(subsets.shape[1], build)


def _subset_correlation(case: MetricInput, runs: int, size: int) -> Tensor:
    """Return Pearson's r (N,) of sums and drops over random subsets of one size."""
    probe, settings = case.probe, case.settings
    subsets = random_subsets(probe, runs, size)
    answers = probe.remember(
        ("without", runs, size, settings.baseline), lambda: without(probe, subsets, settings.baseline)
    )
    drops = probe.clean.read(settings.output) - answers.read(settings.output)
    scores = pixel_scores(case.maps, absolute=settings.absolute)
    sums = scores.gather(1, subsets.flatten(1)).view(subsets.shape).sum(2)
    return pearson(sums, drops)


def _faithfulness_correlation(case: MetricInput) -> MetricOutput:
    return MetricOutput(
        _subset_correlation(case, case.settings.runs, case.settings.subset_size).cpu().numpy()
    )


def _faithfulness_correlation_quantus(case: MetricInput) -> MetricOutput:
    probe, settings = case.probe, case.settings
    scores = pixel_scores(case.maps, absolute=settings.absolute)
    subsets = random_subsets(probe, settings.runs, settings.subset_size)
    space = quantus.SumSpace(
        probe, settings.baseline, settings.output, scores, quantus.similarity("pearson"), subsets=subsets
    )
    scored = quantus.evaluate_batch(
        "FaithfulnessCorrelation",
        space,
        scores,
        nr_runs=settings.runs,
        subset_size=settings.subset_size,
        perturb_func=space.remove,
        similarity_func=space.correlate,
        draws=True,  # subsets, in place of which `space` removes others
    )
    return MetricOutput(np.asarray(scored, dtype=np.float64))


def _sensitivity_n(case: MetricInput) -> MetricOutput:
    sizes = [round(fraction * case.probe.pixels) for fraction in case.settings.fractions]
    rows = [_subset_correlation(case, case.settings.runs, size) for size in sizes]
    return MetricOutput(torch.stack(rows).mean(0).cpu().numpy())


def _groups(case: MetricInput, absolute: bool) -> tuple[Tensor, Tensor]:
    """Return the group (N, H·W) that each pixel is in, and the sum of the scores in each (N, K)."""
    scores = pixel_scores(case.maps, absolute=absolute)
    cut = cuts(case.probe.pixels, case.settings.steps).to(case.probe.home)
    group = torch.bucketize(descending_ranks(scores), cut, right=True) - 1
    return group, unit_sums(scores, group)


def _faithfulness_estimate(case: MetricInput) -> MetricOutput:
    probe, settings = case.probe, case.settings
    group, sums = _groups(case, settings.absolute)
    drops = probe.clean.read(settings.output) - _alone(probe, group, settings.baseline).read(settings.output)
    return MetricOutput(pearson(sums, drops).cpu().numpy())


def _faithfulness_estimate_quantus(case: MetricInput) -> MetricOutput:
    probe, settings = case.probe, case.settings
    scores = pixel_scores(case.maps, absolute=settings.absolute)
    space = quantus.SumSpace(probe, settings.baseline, settings.output, scores, quantus.similarity("pearson"))
    scored = quantus.evaluate_batch(
        "FaithfulnessEstimate",
        space,
        quantus.in_order(descending_ranks(scores)),
        features_in_step=quantus.equal_steps(probe.pixels, settings.steps),
        perturb_func=space.remove,
        similarity_func=space.correlate,
    )
    return MetricOutput(np.asarray(scored, dtype=np.float64))


def random_fills(probe: Probe, samples: int) -> Tensor:
    """Return uniform images (N, samples, C, H, W), keyed by (seed, image)."""
    return probe.remember(
        ("fills", samples),
        lambda: sample_uniform(probe.seeds("fills"), (samples, *probe.x.shape[1:])).to(probe.x),
    )


def _monotonicity_correlation(case: MetricInput) -> MetricOutput:
    probe, settings = case.probe, case.settings
    group, sums = _groups(case, settings.absolute)
    fills, there = random_fills(probe, settings.samples), group.to(probe.device)

    def build(i: Tensor, j: Tensor) -> Tensor:
        gone = there[i] == (j // settings.samples)[:, None]
        fill = fills[i, j % settings.samples]
        return torch.where(gone.view(len(i), 1, *probe.x.shape[2:]), fill, probe.x[i])

    answers = probe.ask(sums.shape[1] * settings.samples, build).read(settings.output)
    changes = (answers - probe.clean.read(settings.output)).square()
    return MetricOutput(spearman(sums, changes.unflatten(1, (-1, settings.samples)).mean(2)).cpu().numpy())


def _monotonicity_correlation_quantus(case: MetricInput) -> MetricOutput:
    probe, settings = case.probe, case.settings
    scores = pixel_scores(case.maps, absolute=settings.absolute)
    space = quantus.SumSpace(
        probe,
        "black",
        settings.output,
        scores,
        quantus.similarity("spearman"),
        fills=random_fills(probe, settings.samples),
    )
    scored = quantus.evaluate_batch(
        "MonotonicityCorrelation",
        space,
        quantus.in_order(descending_ranks(scores)),
        eps=0.0,
        nr_samples=settings.samples,
        features_in_step=quantus.equal_steps(probe.pixels, settings.steps),
        perturb_func=space.fill,
        similarity_func=space.correlate,
    )
    return MetricOutput(np.asarray(scored, dtype=np.float64))


def _infidelity(case: MetricInput) -> MetricOutput:
    probe, settings = case.probe, case.settings
    taken = (probe.x - probe.fill(settings.baseline)).to(probe.home)
    changed = (case.maps * taken).sum(1).flatten(1)  # Σ over channels of map × perturbation
    parts = []
    for size in settings.patch_sizes:
        units = patches(probe.x.shape, size).to(probe.home)
        drops = probe.clean.read(settings.output) - without_units(probe, units, settings.baseline).read(
            settings.output
        )
        parts.append((unit_sums(changed, units) - drops).square().mean(1))
    return MetricOutput(torch.stack(parts).mean(0).cpu().numpy())


def without_units(probe: Probe, units: Tensor, baseline: Baseline) -> ProbePredictions:
    """Predict (N, U) with each unit of `units` (H·W,) alone replaced by the baseline, and remember it."""
    return probe.remember(
        ("units", fingerprint(units), baseline),
        lambda: _alone(probe, units.expand(len(probe), -1), baseline),
    )


def _alone(probe: Probe, units: Tensor, baseline: Baseline) -> ProbePredictions:
    """Return predictions (N, U) with each unit of `units` (N, H·W) alone replaced by the baseline.

    Where that changes nothing (black pixels made black), the answer is the one on the image itself.
    """
    fill, units = probe.fill(baseline), units.to(probe.device)

    def build(i: Tensor, j: Tensor) -> Tensor:
        gone = units[i] == j[:, None]
        return torch.where(gone.view(len(i), 1, *probe.x.shape[2:]), fill[i], probe.x[i])

    changes = unit_sums(probe.touched(baseline).int(), units)
    source = torch.arange(changes.shape[1], device=probe.device).where(changes > 0, -1)
    return probe.ask(changes.shape[1], build, source=source, base=probe.clean)


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
        undefined=UNVARIED,
        fast=_faithfulness_correlation,
        revision=1,  # probabilities were rounded to float32, which decided small drops
        same_for_all_maps=True,
        quantus=_faithfulness_correlation_quantus,
        serial=("quantus",),
    )
)
register(
    Metric(
        name="faithfulness_estimate",
        family="faithfulness",
        better="higher",
        range="[-1, 1]",
        reference="Alvarez-Melis and Jaakkola, NeurIPS 2018",
        settings=Groups,
        forwards=lambda s, pixels: len(cuts(pixels, s.steps)),
        needs="ranking",
        undefined=UNVARIED,
        fast=_faithfulness_estimate,
        revision=1,  # probabilities were rounded to float32, which decided small drops
        quantus=_faithfulness_estimate_quantus,
    )
)
register(
    Metric(
        name="sensitivity_n",
        family="faithfulness",
        better="higher",
        range="[-1, 1]",
        reference="Ancona et al., ICLR 2018",
        settings=SensitivityN,
        forwards=lambda s, pixels: s.runs * len(s.fractions) + 1,
        needs="nonzero",
        undefined=UNVARIED,
        fast=_sensitivity_n,
        revision=1,  # probabilities were rounded to float32, which decided small drops
        same_for_all_maps=True,
    )
)
register(
    Metric(
        name="monotonicity_correlation",
        family="faithfulness",
        better="higher",
        range="[-1, 1]",
        reference="Nguyen and Rodríguez Martínez, arXiv:2007.07584, 2020",
        settings=RandomFills,
        forwards=lambda s, pixels: (len(cuts(pixels, s.steps)) - 1) * s.samples + 1,
        needs="ranking",
        undefined=UNVARIED,
        fast=_monotonicity_correlation,
        revision=1,  # probabilities were rounded to float32, which decided small drops
        quantus=_monotonicity_correlation_quantus,
    )
)
register(
    Metric(
        name="infidelity",
        family="faithfulness",
        better="lower",
        range="[0, inf)",
        reference="Yeh et al., NeurIPS 2019",
        shares=ONE_PATCH,
        settings=Patches,
        forwards=lambda s, pixels: sum(patch_count(pixels, size) for size in s.patch_sizes) + 1,
        needs="finite",
        undefined=NOT_A_NUMBER,
        fast=_infidelity,
        same_for_all_maps=True,
    )
)
