"""The same difference from several studies, combined: fixed and random effects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import special
from statsmodels.stats.meta_analysis import combine_effects

from saliency_lab._common.arguments import (
    check_choice,
    check_flag,
    check_fraction,
    check_instance,
    check_mapping,
    check_numbers,
    check_text,
    shown,
)
from saliency_lab._common.errors import InputError
from saliency_lab.comparison.comparison import Comparison
from saliency_lab.comparison.format import estimate, one_line, p_equation
from saliency_lab.comparison.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FIXED, RANDOM = POOLED = "fixed effect", "random effects"
"""Names of the pooled rows."""


@dataclass(frozen=True, eq=False)
class PooledDifference:
    """One difference in several studies, such as architectures or data sets, and what they say together.

    Attributes
    ----------
    table : DataFrame
        One row per study, then "fixed effect" and "random effects": `difference`, `low`, `high`, `p` (of a
        study where it is known), `weight_fixed` and `weight_random`.
    heterogeneity : float
        I², the share of the variance between studies that is not due to chance, in [0, 1].
    p_heterogeneity : float
        p-value of Cochran's Q, that the studies share one difference.
    tau : float
        Standard deviation of the true differences between studies (Paule–Mandel), in the measure's units.
    level : float
        Confidence level of the intervals.
    share : bool
        Whether the measure is an accuracy, so that differences are in percentage points.
    """

    table: pd.DataFrame
    heterogeneity: float
    p_heterogeneity: float
    tau: float
    level: float
    share: bool

    def __str__(self) -> str:
        width = max(len(str(name)) for name in self.table.index)
        lines = [
            f"{name:<{width}}  {self._written(row)}"
            + ("" if math.isnan(row["p"]) else f"  {p_equation(row['p'])}")
            for name, row in self.table.iterrows()
        ]
        return "\n".join(
            [
                *lines,
                f"heterogeneity: I² = {100 * self.heterogeneity:.0f} %, {p_equation(self.p_heterogeneity)}",
            ]
        )

    __repr__ = __str__

    def _written(self, row: pd.Series) -> str:
        """Write the difference and the interval of a row."""
        return one_line(estimate(_interval(row), share=self.share, signed=True))

    def plot(self, *, title: str | None = None) -> Figure:
        """Draw a forest plot: each study's difference with its interval, and the pooled ones below.

        Parameters
        ----------
        title : str, optional
            Title of the figure.

        Returns
        -------
        Figure
            One row per study, then the fixed and random effects.

        Raises
        ------
        InputError
            If the title is no text.
        """
        from saliency_lab.plotting.forest import forest

        if title is not None:
            check_text(title, "title")

        rows = {str(name): _interval(row) for name, row in self.table.iterrows()}
        return forest(
            {name: row for name, row in rows.items() if name not in POOLED},
            {name: rows[name] for name in POOLED},
            texts={str(name): self._written(row) for name, row in self.table.iterrows()},
            xlabel="difference in accuracy" if self.share else "difference",
            percent=self.share,
            title=title,
            note=f"{100 * self.level:g} % intervals; I² = {100 * self.heterogeneity:.0f} %",
        )


def pool_comparisons(
    comparisons: Mapping[str, Comparison],
    model: str,
    over: str,
    metric: str,
    *,
    method: str | None = None,
    eps: float | str | Mapping[str, float | str] | None = None,
) -> PooledDifference:
    """Combine the difference of two models over several comparisons, such as architectures or data sets.

    Parameters
    ----------
    comparisons : mapping of str to Comparison
        By the name of the study.
    model, over : str
        The difference is `model` less `over`; each comparison must have both.
    metric : str
        A metric, "accuracy" or "robust_accuracy".
    method : str, optional
        Method of the maps, or the attack; the first by default.
    eps : float, str or mapping of study to those, optional
        The ε of "robust_accuracy"; the largest by default. Data sets may each have their own.

    Returns
    -------
    PooledDifference
        The difference of each study, and the fixed and random effects, with intervals and p-values.

    Raises
    ------
    InputError
        If a comparison lacks a model or the measure, or a difference has no interval.

    Examples
    --------
    >>> import numpy as np
    >>> from saliency_lab import Comparison
    >>> def compare(seed):
    ...     scores = pd.DataFrame(
    ...         {
    ...             "model": ["standard"] * 20 + ["at"] * 20,
    ...             "seed": 0,
    ...             "metric": "sparseness",
    ...             "method": "saliency",
    ...             "sample": [*range(20), *range(20)],
    ...             "score": np.random.default_rng(seed).random(40),
    ...         }
    ...     )
    ...     return Comparison(scores, pd.DataFrame(columns=["model"]), baseline="standard")
    >>> pooled = pool_comparisons({"mnist": compare(0), "svhn": compare(1)}, "at", "standard", "sparseness")
    >>> pooled.table.index.tolist()
    ['mnist', 'svhn', 'fixed effect', 'random effects']
    """
    given = check_mapping(comparisons, "comparisons", '{"mnist": study.compare()}')
    for name, comparison in given.items():
        check_instance(comparison, Comparison, f"comparisons, that of '{name}',", "a saliency_lab.Comparison")
        for role, each in (("model", model), ("over", over)):
            check_choice(each, comparison.models, f"{role} of '{name}'")
    intervals, p, levels, shares = {}, {}, set(), set()
    for name, comparison in given.items():
        if isinstance(eps, Mapping) and name not in eps:
            raise InputError(f"eps has no radius for the study '{name}'")
        measure = comparison.measure(metric, method, eps[name] if isinstance(eps, Mapping) else eps)
        for each in (model, over):
            if each not in measure.values:
                raise InputError(f"the study '{name}' has no {metric} of '{each}'")
        intervals[name] = measure.difference(model, over, comparison.level)
        if math.isnan(intervals[name].high - intervals[name].low):
            split = [each for each in (model, over) if measure.seeds_disagree(each)]
            reason = f", because the training seeds of '{split[0]}' disagree" if split else ""
            raise InputError(
                f"the study '{name}' has no interval of this difference{reason}; leave the study out"
            )
        p[name] = measure.p_value(model, over)
        levels.add(comparison.level)
        shares.add(measure.share)
    if len(levels) != 1:
        raise InputError(f"pooled studies must have one confidence level, not {len(levels)}")
    pooled = pool_differences(intervals, level=levels.pop(), share=shares.pop())
    pooled.table.loc[list(p), "p"] = list(p.values())
    return pooled


def pool_differences(
    differences: Mapping[str, tuple[float, float, float]], *, level: float = 0.95, share: bool = False
) -> PooledDifference:
    """Combine differences with their confidence intervals, such as those printed by several studies.

    A study's standard error is its interval's half-width over the normal quantile. Intervals from few
    training seeds are wider than the normal ones, so this errs towards less weight and wider intervals. The
    random effects have Paule and Mandel's variance between studies, and Hartung and Knapp's intervals, which
    suit few studies, where these are the wider ones.

    Parameters
    ----------
    differences : mapping of str to (difference, low, high)
        By the name of the study.
    level : float
        Confidence level of these intervals, and of the pooled ones.
    share : bool
        Whether the differences are of accuracies.

    Returns
    -------
    PooledDifference
        The difference of each study, and the fixed and random effects, with intervals and p-values.

    Raises
    ------
    InputError
        If there are fewer than two studies, or one has no interval.

    Examples
    --------
    >>> pooled = pool_differences({"a": (-0.06, -0.10, -0.02), "b": (-0.03, -0.06, 0.0)}, share=True)
    >>> round(float(pooled.table.loc["fixed effect", "difference"]), 4)
    -0.0408
    """
    check_fraction(level, "level")
    check_flag(share, "share")
    differences = check_mapping(differences, "differences", '{"mnist": (-0.06, -0.10, -0.02)}')
    if len(differences) < 2:
        raise InputError(f"pooling needs the differences of at least two studies, not {len(differences)}")
    for name, each in differences.items():
        if len(check_numbers(each, f"differences, that of '{name}',")) != 3:
            raise InputError(
                f"differences, that of '{name}', must be (difference, low, high), not {shown(each)}"
            )
        if not each[1] <= each[0] <= each[2]:
            raise InputError(
                f"differences, that of '{name}', must lie within its interval (difference, low, high): "
                f"{shown(each)}"
            )
        if name in (FIXED, RANDOM):
            raise InputError(f"a study cannot be named '{name}', as a row of the result is; rename it")
    table = pd.DataFrame(differences, index=["difference", "low", "high"]).T
    width = (table["high"] - table["low"]).to_numpy(float)
    if not (np.isfinite(width) & (width > 0)).all():
        broken = table.index[~(np.isfinite(width) & (width > 0))][0]
        raise InputError(f"the difference of '{broken}' has no interval, so it cannot be pooled")
    quantile = -float(special.ndtri((1 - level) / 2))
    errors = width / (2 * quantile)
    effects = table["difference"].to_numpy(float)
    with np.errstate(divide="ignore"):  # in its I², which is not used
        combined = combine_effects(
            effects, errors**2, method_re="iterated", row_names=list(table.index), use_t=False
        )
    table["p"] = np.nan
    table["weight_fixed"] = combined.weights_fe / combined.weights_fe.sum()
    table["weight_random"] = combined.weights_re / combined.weights_re.sum()
    freedom = len(table) - 1
    student = -float(special.stdtrit(freedom, (1 - level) / 2))
    fixed, random = float(combined.mean_effect_fe), float(combined.mean_effect_re)
    fixed_error, random_error = (
        float(combined.sd_eff_w_fe),
        max(float(combined.sd_eff_w_re_hksj), float(combined.sd_eff_w_re)),
    )
    table.loc[FIXED, ["difference", "low", "high", "p"]] = [
        fixed, fixed - quantile * fixed_error, fixed + quantile * fixed_error,
        2 * float(special.ndtr(-abs(fixed) / fixed_error)),
    ]  # fmt: skip
    table.loc[RANDOM, ["difference", "low", "high", "p"]] = [
        random, random - student * random_error, random + student * random_error,
        2 * float(special.stdtr(freedom, -abs(random) / random_error)),
    ]  # fmt: skip
    q = float(((effects - fixed) ** 2 / errors**2).sum())  # Cochran's; that of statsmodels cancels
    return PooledDifference(
        table,
        1 - freedom / q if q > freedom else 0.0,
        float(special.chdtrc(freedom, q)),
        float(np.sqrt(max(combined.tau2, 0.0))),
        level,
        share,
    )


def _interval(row: pd.Series) -> Interval:
    return Interval(float(row["difference"]), float(row["low"]), float(row["high"]))
