"""Numbers as a reader wants them: as many digits as the interval supports, and a true minus sign."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from saliency_lab._common.checks import format_epsilon
from saliency_lab._common.text import number_of
from saliency_lab.comparison.statistics import Interval

SPACE = "\N{NO-BREAK SPACE}"
"""Between a number and its unit, where no line may end."""

ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
"""Which values of a metric are better, as a sign next to its name."""


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """Write a number with `digits` decimals; one that is rounded to 0 keeps its sign if it is `signed`.

    >>> number(-0.1234, 2), number(0.5, 1, signed=True), number(-0.001, 2), number(-0.001, 2, signed=True)
    ('−0.12', '+0.5', '0.00', '−0.00')
    """
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0 and (value == 0 or not signed):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def short(value: float, *, signed: bool = False) -> str:
    """Write a number in four digits.

    >>> short(0.031372549), short(-2.0), short(0.5, signed=True), short(float("nan"))
    ('0.03137', '−2', '+0.5', 'undefined')
    """
    if math.isnan(value):
        return "undefined"
    return (f"{value:+.4g}" if signed and value else f"{value:.4g}").replace("-", "−")


def estimate(interval: Interval, *, share: bool, signed: bool = False) -> tuple[str, str]:
    r"""Write the mean and its interval; shares in percent, their differences in percentage points.

    >>> estimate(Interval(0.51234, 0.50111, 0.52999), share=False)
    ('0.512', '[0.501,\xa00.530]')
    >>> estimate(Interval(0.25, 0.2, 0.3012), share=True, signed=True)
    ('+25.0\xa0points', '[+20.0,\xa0+30.1]')
    >>> estimate(Interval(-0.0021, -0.0037, -0.0004), share=True, signed=True)
    ('−0.21\xa0points', '[−0.37,\xa0−0.04]')
    >>> estimate(Interval(2e6, -1e6, 5e6), share=False, signed=True)
    ('+2e+06', '[−1e+06,\xa0+5e+06]')
    >>> estimate(Interval(0.3, float("nan"), float("nan")), share=False, signed=True)
    ('+0.3', '')
    >>> estimate(Interval(float("nan"), float("nan"), float("nan")), share=False)
    ('undefined', '')
    """
    mean, low, high = interval
    if math.isnan(mean):
        return "undefined", ""
    if share:
        unit = f"{SPACE}points" if signed else f"{SPACE}%"
        mean, low, high = 100 * mean, 100 * low, 100 * high
        digits = _side_of_zero(low, high, 1) if signed else 1
        text = number(mean, digits, signed=signed) + unit
        if math.isnan(high - low):
            return text, ""
        ends = [number(end, digits, signed=signed) for end in (low, high)]
        return text, f"[{f',{SPACE}'.join(ends)}]"
    width = high - low
    if math.isnan(width):
        return short(mean, signed=signed), ""
    large = max(abs(low), abs(high)) >= 1e5 or width < 1e-6
    if large or not math.isfinite(width):
        ends = [short(end, signed=signed) for end in (low, high)]
        return short(mean, signed=signed), f"[{f',{SPACE}'.join(ends)}]"
    digits = min(max(1 - math.floor(math.log10(width)), 0), 6)
    digits = _side_of_zero(low, high, digits) if signed else digits
    ends = [number(end, digits, signed=signed) for end in (low, high)]
    return number(mean, digits, signed=signed), f"[{f',{SPACE}'.join(ends)}]"


def _side_of_zero(low: float, high: float, digits: int) -> int:
    """Return as many digits as show on which side of 0 both ends of an interval lie, up to 6.

    >>> _side_of_zero(-0.31, -0.0042, 1)
    3
    """
    ends = [end for end in (low, high) if end != 0 and not math.isnan(end)]
    while digits < 6 and any(round(end, digits) == 0 for end in ends):
        digits += 1
    return digits


def write_value(value: float, *, share: bool) -> str:
    r"""Write a number that stands without its interval.

    >>> write_value(0.51234, share=False), write_value(0.00020412, share=False), write_value(0.25, share=True)
    ('0.512', '0.0002041', '25.0\xa0%')
    """
    if share:
        return estimate(Interval(value, value, value), share=True)[0]
    return number(value, 3) if value == 0 or 0.1 <= abs(value) < 1e5 else short(value)


def write_mean(row: Mapping[Any, Any], *, share: bool) -> tuple[str, str]:
    r"""Write the mean of a row of `Comparison.table()`, and its interval.

    Where the training seeds disagree, each seed's mean is written instead.

    >>> row = {"mean": 0.9, "low": 0.8, "high": 1.0, "seeds_disagree": False, "seed_means": (0.9,)}
    >>> write_mean(row, share=True)
    ('90.0\xa0%', '[80.0,\xa0100.0]')
    >>> write_mean(row | {"seeds_disagree": True, "seed_means": (0.98, 0.1)}, share=True)
    ('seeds disagree', '98.0\xa0%, 10.0\xa0%')
    """
    if row.get("seeds_disagree"):
        return "seeds disagree", ", ".join(write_value(mean, share=share) for mean in row["seed_means"])
    return estimate(Interval(row["mean"], row["low"], row["high"]), share=share)


def write_difference(row: Mapping[Any, Any], *, share: bool) -> tuple[str, str]:
    """Write the difference in a row of `Comparison.table()`, and its interval."""
    if row.get("identical"):
        return "identical", ""
    difference = Interval(row["difference"], row["difference_low"], row["difference_high"])
    return estimate(difference, share=share, signed=True)


def write_compared(row: Mapping[Any, Any], key: str, *, share: bool) -> str:
    """Write one of the two means of a difference, with as many digits as the difference's interval supports.

    >>> row = {"mean": 0.09788, "difference": -0.05, "difference_low": -0.083, "difference_high": -0.016}
    >>> write_compared(row, "mean", share=False)
    '0.098'
    """
    half = (row["difference_high"] - row["difference_low"]) / 2
    return estimate(Interval(row[key], row[key] - half, row[key] + half), share=share)[0]


def one_line(written: tuple[str, str]) -> str:
    r"""Write an estimate in one line, with spaces where any line may end.

    >>> one_line(("25.0\xa0%", "[20.0,\xa030.1]")), one_line(("undefined", ""))
    ('25.0 % [20.0, 30.1]', 'undefined')
    """
    return " ".join(filter(None, written)).replace(SPACE, " ")


def radius(eps: float) -> str:
    r"""Write ε.

    >>> radius(0.1), radius(8 / 255)
    ('ε\xa0=\xa00.1', 'ε\xa0=\xa08/255')
    """
    return f"ε{SPACE}={SPACE}{format_epsilon(eps)}"


def p_value(p: float) -> str:
    """Write a p-value.

    >>> p_value(0.00001), p_value(0.0312), p_value(1.0), p_value(0.0496)
    ('< 0.001', '0.031', '1', '0.0496')
    """
    if math.isnan(p):
        return ""
    if 0.0495 <= p < 0.05:  # three digits would say 0.05 of a significant difference
        return f"{math.floor(10_000 * p) / 10_000:.4f}"
    return "< 0.001" if p < 0.001 else f"{p:.3f}".rstrip("0").rstrip(".")


def p_equation(p: float) -> str:
    """Write a p-value as an equation.

    >>> p_equation(0.00001), p_equation(0.0312)
    ('p < 0.001', 'p = 0.031')
    """
    return f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"


def count_each(numbers: Collection[int], noun: str) -> str:
    """Write how many of a thing each of several has.

    >>> count_each([3, 3], "seed"), count_each([1, 3], "seed")
    ('3 seeds each', 'up to 3 seeds')
    """
    most = number_of(max(numbers), noun)
    return f"{most} each" if min(numbers) == max(numbers) else f"up to {most}"


def listing(words: list[str]) -> str:
    """Write a list as a sentence has it.

    >>> listing(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
