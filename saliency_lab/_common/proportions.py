"""Confidence intervals of proportions."""

from __future__ import annotations

from saliency_lab._common.arguments import check_fraction


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the ends of Wilson's score interval of a proportion (JASA 1927).

    Parameters
    ----------
    successes : float
        Number of successes, from 0 to `n`; a mean over several runs need not be a whole number.
    n : int
        Number of trials.
    level : float
        Confidence level, between 0 and 1.

    Raises
    ------
    InputError
        If `level` is not between 0 and 1.

    Examples
    --------
    >>> low, high = wilson(0, 10)
    >>> low, round(high, 3)
    (0.0, 0.278)
    """
    check_fraction(level, "level")
    from statsmodels.stats.proportion import proportion_confint  # here, because importing it takes a second

    low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    return max(0.0, float(low)), min(1.0, float(high))
