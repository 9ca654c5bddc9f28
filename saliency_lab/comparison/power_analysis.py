"""How large a difference a study can detect, by simulation before it is run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from scipy import special

from saliency_lab._common.arguments import (
    check_count,
    check_counts,
    check_fraction,
    check_number,
    check_numbers,
)
from saliency_lab._common.checks import check_seed
from saliency_lab._common.errors import InputError
from saliency_lab._common.limits import check_memory
from saliency_lab.comparison.measures import ROBUST, Measure


def power(
    difference: float | Sequence[float] = 0.04,
    *,
    seeds: int | Sequence[int] = (3, 5, 10),
    images: int | Sequence[int] = (500, 2000),
    accuracy: float | None = 0.85,
    seed_spread: float = 0.012,
    correlation: float = 0.6,
    comparisons: int = 1,
    margin: float | None = None,
    level: float = 0.95,
    runs: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Simulate how often a study would find that two models differ by a true difference.

    Each run draws two models with several training seeds on the same images, and applies the test that
    `Comparison` applies. Take `seed_spread` from a pilot study with a few seeds.

    Parameters
    ----------
    difference : float or sequence of float
        True difference of the means; 0.04 is four points of accuracy. With 0, the share detected is the
        error rate of the test.
    seeds, images : int or sequence of int
        Training seeds per model, and images.
    accuracy : float or None
        Accuracy of the worse model, in [0, 1]. None simulates scores with a standard deviation of 1 over the
        images; `difference`, `seed_spread` and `margin` are then in these units.
    seed_spread : float
        Standard deviation of a model's mean over training seeds.
    correlation : float
        Correlation between two networks of how difficult an image is, in [0, 1].
    comparisons : int
        Tests that are corrected together. A test counts where p is below (1 − level) / comparisons, the first
        step of Holm's correction.
    margin : float, optional
        Also report how often the two are found equivalent within ±margin.
    level : float
        Confidence level of the study.
    runs : int
        Simulated studies per row.
    seed : int
        Seed of the simulation.

    Returns
    -------
    DataFrame
        One row per number of seeds and images and difference: `detected`, the share of studies whose test
        finds the difference; `undecided`, the share of studies without a test, because the seeds of a model
        seem to be of two kinds; `half_width`, the mean half-width of the interval, where there is one; and
        with a margin `equivalent`.

    Raises
    ------
    InputError
        If a setting is out of its range.

    Examples
    --------
    >>> table = power(0.1, seeds=3, images=200, runs=20)
    >>> table.columns.tolist()
    ['seeds', 'images', 'difference', 'detected', 'undecided', 'half_width']
    """
    grid = (
        check_counts(seeds, "seeds", most=10_000),
        check_counts(images, "images", least=2, most=10_000_000),
        check_numbers(difference, "difference"),
    )
    check_number(seed_spread, "seed_spread", low=0)
    check_number(correlation, "correlation", low=0, high=1)
    check_count(comparisons, "comparisons")
    check_fraction(level, "level")
    check_count(runs, "runs", most=10_000_000)
    check_seed(seed)
    if accuracy is not None:
        check_number(accuracy, "accuracy", low=0, high=1)
        for each in grid[2]:
            check_number(accuracy + each, "accuracy + difference", low=0, high=1)
    if margin is not None and check_number(margin, "margin", low=0) == 0:
        raise InputError("margin must be above 0")
    check_memory((max(grid[0]), max(grid[1])), 8, "the values of seeds × images")
    draws = np.random.default_rng(seed)
    rows = []
    for count, size, true in product(*grid):
        detected, undecided, widths, equivalent = 0, 0, [], 0
        for _ in range(runs):
            a, b = _draw(draws, count, size, true, accuracy, seed_spread, correlation)
            measure = Measure("score" if accuracy is None else ROBUST, "", 0.0, "higher", {"a": a, "b": b})
            estimate = measure.estimate_difference("a", "b")
            detected += measure.p_value("a", "b") < (1 - level) / comparisons
            _, low, high = estimate.interval(level)
            undecided += math.isnan(low)
            widths.append((high - low) / 2)
            equivalent += margin is not None and estimate.p_equivalence(margin) < 1 - level
        row = {"seeds": count, "images": size, "difference": true, "detected": detected / runs}
        row["undecided"] = undecided / runs
        row["half_width"] = float(np.nanmean(widths)) if undecided < runs else math.nan
        rows.append(row if margin is None else row | {"equivalent": equivalent / runs})
    return pd.DataFrame(rows)


def _draw(
    draws: np.random.Generator,
    seeds: int,
    images: int,
    difference: float,
    accuracy: float | None,
    seed_spread: float,
    correlation: float,
) -> list[np.ndarray]:
    """Draw the values (seeds, images) of two models on the same images."""
    difficulty = np.sqrt(correlation) * draws.normal(size=images)
    models = []
    for shift in (difference, 0.0):
        values = difficulty + np.sqrt(1 - correlation) * draws.normal(size=(seeds, images))
        means = shift + seed_spread * draws.normal(size=(seeds, 1))
        if accuracy is None:
            models.append(values + means)
        else:
            models.append(values < special.ndtri(np.clip(accuracy + means, 0.0, 1.0)))
    return models
