"""Methods ranked within each image: Friedman, Nemenyi; and whether metrics agree about the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from saliency_lab._common.errors import InputError
from saliency_lab.comparison.format import p_equation
from saliency_lab.comparison.statistics import places


@dataclass(frozen=True, eq=False)
class Ranking:
    """Treatments (such as methods) ranked within each block (image); rank 1 is the best.

    Attributes
    ----------
    ranks : Series
        Mean rank by name, the best first.
    n : int
        Blocks ranked: those where every treatment has a value.
    p : float
        Friedman's test that all are alike (JASA 1937).
    critical_difference : float
        Nemenyi's: mean ranks farther apart than this differ at `alpha`, whichever pair is compared.
    pairs : DataFrame
        Nemenyi's p-value of each pair.
    alpha : float
        Level of the test in `critical_difference`.
    """

    ranks: pd.Series
    n: int
    p: float
    critical_difference: float
    pairs: pd.DataFrame
    alpha: float

    def __str__(self) -> str:
        lines = [
            f"{name:<{max(map(len, self.ranks.index))}}  {rank:.2f}" for name, rank in self.ranks.items()
        ]
        return "\n".join(
            [
                f"mean ranks over {self.n} images (1 is the best); Friedman {p_equation(self.p)}",
                *lines,
                f"ranks farther apart than {self.critical_difference:.2f} differ at {self.alpha:g} (Nemenyi)",
            ]
        )

    __repr__ = __str__


def rank(values: Mapping[str, np.ndarray], *, higher: bool, alpha: float = 0.05) -> Ranking:
    """Rank treatments, each with one value per block (N,), and test the mean ranks.

    Ties share their rank; values of a block that differ by rounding alone are ties.

    Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006.

    Raises
    ------
    InputError
        If there are fewer than three treatments or two complete blocks.
    """
    names = list(values)
    table = np.stack([values[name] for name in names], axis=1)
    table = table[~np.isnan(table).any(axis=1)]
    n, k = table.shape
    if k < 3 or n < 2:
        raise InputError(f"ranks need three methods and two images with a score for each, not {k} and {n}")
    ranks = stats.rankdata(places(-table.T if higher else table.T), axis=0).T
    mean = pd.Series(ranks.mean(axis=0), index=names)
    alike = bool((ranks == ranks[:, :1]).all())
    p = 1.0 if alike else float(stats.friedmanchisquare(*ranks.T).pvalue)
    unit = np.sqrt(k * (k + 1) / (6 * n)) / np.sqrt(2)  # of the studentised range
    apart = np.abs(mean.to_numpy()[:, None] - mean.to_numpy()) / unit
    pairs = pd.DataFrame(stats.studentized_range.sf(apart, k, np.inf), index=names, columns=names)
    critical = float(stats.studentized_range.isf(alpha, k, np.inf) * unit)
    order = mean.sort_values(kind="stable").index
    return Ranking(mean[order], n, p, critical, pairs.loc[order, order], alpha)


def agreement(scores: Sequence[Mapping[str, Mapping[str, np.ndarray]]]) -> pd.DataFrame:
    """Do metrics agree about which method is better? Mean rank correlation, metric × metric.

    Parameters
    ----------
    scores
        One mapping per model: metric → method → values (N,), higher meaning better; failed results may be
        missing.

    Returns
    -------
    DataFrame
        Spearman's correlation between the ranks that two metrics give the methods of one image, averaged
        over images and models. An image counts for a pair of metrics if both rank every method and neither
        ranks all alike; NaN where there is none.

    Raises
    ------
    InputError
        If there are fewer than three methods.
    """
    metrics = list(dict.fromkeys(metric for model in scores for metric in model))
    methods = list(dict.fromkeys(name for model in scores for scored in model.values() for name in scored))
    if len(methods) < 3:
        raise InputError(f"agreement about methods needs three of them, not {len(methods)}")
    total, count = (np.zeros((len(metrics), len(metrics))) for _ in range(2))
    for model in scores:
        images = len(next(iter(next(iter(model.values())).values())))
        unknown = np.full(images, np.nan)
        values = np.array(
            [[model.get(metric, {}).get(name, unknown) for name in methods] for metric in metrics]
        )
        levels = [places(of_metric) for of_metric in values]
        ranks = stats.rankdata(levels, axis=1)  # NaN in an image makes its ranks NaN
        ranks -= ranks.mean(axis=1, keepdims=True)
        length = np.linalg.norm(ranks, axis=1, keepdims=True)
        unit = np.divide(ranks, length, out=np.full_like(ranks, np.nan), where=length > 0)
        known = ~np.isnan(unit).any(axis=1)
        unit = np.where(known[:, None], unit, 0.0)
        total += np.einsum("amn,bmn->ab", unit, unit)
        count += known.astype(float) @ known.T
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return pd.DataFrame(mean, index=metrics, columns=metrics)
