"""Accuracy against the strength of the attack, and the smallest ε that breaks each sample."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from saliency_lab._common.arguments import check_counts
from saliency_lab._common.checks import check_seed, format_epsilon, holds_several, parse_epsilon, parse_radii
from saliency_lab._common.errors import InputError
from saliency_lab._common.html import table
from saliency_lab._common.inference import translate_model_errors
from saliency_lab._common.mapped import take_rows
from saliency_lab._common.passes import predict_many
from saliency_lab._common.proportions import wilson
from saliency_lab._common.samples import Images, read_labelled
from saliency_lab._common.seeding import derive_seed, preserved_rng
from saliency_lab._common.settings import Settings
from saliency_lab._common.text import number_of
from saliency_lab.attacks.api import check_batch, run_attack
from saliency_lab.attacks.ascent import Norm
from saliency_lab.attacks.methods import METHODS, AttackMethod, OwnAttack
from saliency_lab.attacks.sources import Expected


@dataclass(frozen=True, eq=False, repr=False)
class RobustnessCurve:
    """Which samples stay right as the attack grows stronger.

    Attributes
    ----------
    along : "eps" or "steps"
        What grows.
    at : tuple of E numbers
        Its values, ascending: radii in image units, or numbers of steps.
    robust : Tensor (E, N) of bool
        Right on x and not broken at this value or at any smaller one of the curve; ε = 0 and 0 steps
        are clean accuracy.
    method : str
        Name of the attack.
    norm : str
        "linf", "l2", "l1", or "severity" for a corruption.
    settings : dict
        All settings of the attack, defaults included.
    seed : int
        Seed of its random draws.
    seconds : float
        Time that the curve took.
    """

    along: Literal["eps", "steps"]
    at: tuple[float, ...]
    robust: Tensor
    method: str
    norm: Norm
    settings: dict[str, Any]
    seed: int
    seconds: float

    def __repr__(self) -> str:
        pairs = zip(self.at, self.accuracy, strict=True)
        shares = ", ".join(f"{format_epsilon(at)}: {share:.1%}" for at, share in pairs)
        n = self.robust.shape[1]
        return f"RobustnessCurve({self.method}, {self.norm}, n={n}, {self.along} {{{shares}}})"

    def _repr_html_(self) -> str:
        rows = [
            (f"{format_epsilon(row[0])}", f"{row.accuracy:.1%} [{row.low:.1%}, {row.high:.1%}]")
            for row in self.table().itertuples(index=False)
        ]
        caption = f"{self.method} ({self.norm}) on {number_of(self.robust.shape[1], 'image')}"
        return table(caption, ["ε" if self.along == "eps" else "steps", "accuracy [95% interval]"], rows)

    @property
    def accuracy(self) -> list[float]:
        """Robust accuracy at each value."""
        return self.robust.double().mean(1).tolist()

    def table(self, level: float = 0.95) -> pd.DataFrame:
        """Return the curve as a table.

        Parameters
        ----------
        level : float
            Confidence level of Wilson's interval, above 0 and below 1.

        Returns
        -------
        DataFrame
            One row per value: `eps` (or `steps`), `accuracy`, its interval `low` and `high`, and `n`.

        Raises
        ------
        InputError
            If `level` is not in (0, 1).
        """
        n = self.robust.shape[1]
        rows = [
            (at, right / n, *wilson(right, n, level), n)
            for at, right in zip(self.at, self.robust.sum(1).tolist(), strict=True)
        ]
        return pd.DataFrame(rows, columns=[self.along, "accuracy", "low", "high", "n"])

    def to_dict(self) -> dict[str, Any]:
        """Return settings and table, as values that JSON can hold.

        Returns
        -------
        dict
            The settings, and the columns of `table()` under `table`.
        """
        return {
            "method": self.method,
            "norm": self.norm,
            "settings": self.settings,
            "seed": self.seed,
            "seconds": self.seconds,
            "table": self.table().to_dict(orient="list"),
        }


def robustness_curve(
    model: nn.Module,
    x: Images,
    y: Tensor | None = None,
    method: str | OwnAttack = "pgd",
    *,
    eps: Sequence[float | str] = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
    seed: int = 0,
    **settings: Any,
) -> RobustnessCurve:
    """Measure the robust accuracy at each ε.

    A sample broken at a smaller ε stays broken and is not attacked again. For a corruption ε is the severity,
    such as `eps=(0, 1, 2, 3, 4, 5)`, and each severity counts for itself.

    Parameters
    ----------
    model : nn.Module
        As for `attack`.
    x : Tensor, DataLoader or data set
        Images (N, C, H, W) in [0, 1], or what else `attack` takes.
    y : Tensor, optional
        Labels (N,).
    method : str or callable
        A name of `list_attacks()`, or a function as for `attack`.
    eps : sequence of float or str
        Radii in image units, or severities, in any order; text such as "8/255" is accepted.
    seed : int
        Seed of every random draw.
    **settings
        Settings of the attack; `list_attacks()` names them.

    Returns
    -------
    RobustnessCurve
        Which samples are right at each ε, ascending.

    Raises
    ------
    InputError
        As `attack`; also if `eps` is empty or a single radius.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> net = sl.load_model("digits/at")
    >>> x, y = sl.load_dataset("digits").test.sample(16, seed=0)
    >>> curve = sl.robustness_curve(net, x, y, "fgsm", eps=(0, "8/255", 0.1))
    >>> curve.robust.shape
    torch.Size([3, 16])
    """
    if not holds_several(eps):
        raise InputError(
            f"eps must hold several radii, such as (0, 0.1, 0.2), not {eps!r}; for one use attack"
        )
    x, y = read_labelled(x, y)
    radii = parse_radii(eps)
    chosen = METHODS.find(method)
    return curve_at(
        model,
        x,
        y,
        chosen,
        chosen.parse(settings),
        radii,
        seed,
    )


def curve_at(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    method: AttackMethod,
    settings: Settings,
    radii: Sequence[float],
    seed: int,
) -> RobustnessCurve:
    """Do what `robustness_curve` says, with settings and radii already parsed."""
    return _curve(model, x, y, method, "eps", radii, [(radius, settings) for radius in radii], seed)


def steps_curve(
    model: nn.Module,
    x: Images,
    y: Tensor | None = None,
    method: str | OwnAttack = "pgd",
    *,
    eps: float | str,
    steps: Sequence[int] = (0, 1, 2, 5, 10, 20, 50, 100),
    seed: int = 0,
    **settings: Any,
) -> RobustnessCurve:
    """Measure the robust accuracy at each number of steps, to see whether the attack has converged.

    Each number of steps is a separate run with the step size that suits it. A sample broken with fewer steps
    stays broken. A curve that still falls at its end has not converged.

    Parameters
    ----------
    model : nn.Module
        As for `attack`.
    x : Tensor, DataLoader or data set
        Images (N, C, H, W) in [0, 1], or what else `attack` takes.
    y : Tensor, optional
        Labels (N,).
    method : str or callable
        An attack with the setting `steps`.
    eps : float or str
        Radius of the ball in image units; text such as "8/255" is accepted.
    steps : sequence of int
        Numbers of steps, ≥ 0, in any order.
    seed : int
        Seed of every random draw.
    **settings
        Settings of the attack; `list_attacks()` names them.

    Returns
    -------
    RobustnessCurve
        Which samples are right at each number of steps, ascending.

    Raises
    ------
    InputError
        As `attack`; also if `steps` is empty or holds anything but integers ≥ 0, or the method has no steps.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> net = sl.load_model("digits/at")
    >>> x, y = sl.load_dataset("digits").test.sample(16, seed=0)
    >>> curve = sl.steps_curve(net, x, y, "pgd", eps=0.1, steps=(0, 1, 2))
    >>> curve.robust.shape
    torch.Size([3, 16])
    """
    chosen = METHODS.find(method)
    if "steps" not in chosen.settings.model_fields:
        raise InputError(f"attack '{chosen.name}' has no steps; 'pgd' has")
    if chosen.name == "autoattack":
        raise InputError(
            "autoattack is four attacks, one of which has no steps, so a curve over its steps says little; "
            "use 'apgd_ce' or 'apgd_t'"
        )
    counts = sorted(set(check_counts(steps, "steps", least=0)))
    x, y = read_labelled(x, y)
    radius = parse_epsilon(eps)
    strengths = []
    for count in counts:
        parsed = chosen.parse({**settings, "steps": max(count, 1)})
        strengths.append((radius if count else 0.0, parsed))
    return _curve(model, x, y, chosen, "steps", counts, strengths, seed)


def minimal_epsilon(
    model: nn.Module,
    x: Images,
    y: Tensor | None = None,
    method: str = "pgd",
    *,
    largest: float | str | None = None,
    tolerance: float | str = "1/255",
    seed: int = 0,
    **settings: Any,
) -> Tensor:
    """Find the smallest ε at which the attack breaks each sample, by bisection.

    Parameters
    ----------
    model : nn.Module
        As for `attack`.
    x : Tensor, DataLoader or data set
        Images (N, C, H, W) in [0, 1], or what else `attack` takes.
    y : Tensor, optional
        Labels (N,).
    method : str
        An attack that takes one ε per sample, such as "pgd".
    largest : float or str, optional
        The largest ε that is tried, in image units. By default it reaches every image: 1 in L∞, √(C·H·W) in
        L2, C·H·W in L1.
    tolerance : float or str
        Precision of the bisection, above 0, in image units.
    seed : int
        Seed of every random draw.
    **settings
        Settings of the attack; `list_attacks()` names them.

    Returns
    -------
    Tensor
        float64 (N,). An ε at which a point was found, so an upper bound of the true distance, within
        `tolerance` of an ε at which the attack failed. 0 where the model is wrong on x already; inf where the
        attack fails at `largest`.

    Raises
    ------
    InputError
        As `attack`; also if `tolerance` is zero or the method takes a single ε.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> net = sl.load_model("digits/at")
    >>> x, y = sl.load_dataset("digits").test.sample(16, seed=0)
    >>> sl.minimal_epsilon(net, x, y, "fgsm", tolerance=0.1).shape
    torch.Size([16])
    """
    chosen = METHODS.find(method)
    if not chosen.each_eps:
        names = ", ".join(name for name in METHODS if METHODS[name].each_eps)
        raise InputError(
            f"attack '{chosen.name}' takes a single ε for all samples; these take one per sample: {names}"
        )
    parsed = chosen.parse(settings)
    precision = parse_epsilon(tolerance, name="tolerance")
    if precision == 0:
        raise InputError('tolerance must be > 0, such as "1/255"')
    x, y = read_labelled(x, y)
    logits, y = _check_and_predict(model, x, y, getattr(parsed, "samples", 1), check_seed(seed))
    if largest is None:
        high_end = whole_range(x, getattr(parsed, "norm", "linf"))
    else:
        high_end = parse_epsilon(largest, name="largest")
    first = run_attack(model, x, y, chosen, parsed, eps=high_end, seed=seed, clean=logits)
    high = torch.where(first.robust, torch.inf, first.distance.double())
    high[~first.clean_correct] = 0.0
    low = torch.zeros_like(high)
    while len(rows := (high.isfinite() & (high - low > precision)).nonzero().flatten()):
        middle = (low[rows] + high[rows]) / 2
        at = rows.to(x.device)
        tried = run_attack(model, x[at], y[rows], chosen, parsed, eps=middle, seed=seed, clean=logits[rows])
        # a point closer than ε is a better bound than ε; one that rounding put outside is not
        high[rows] = torch.where(tried.robust, high[rows], torch.minimum(middle, tried.distance.double()))
        low[rows] = torch.where(tried.robust, middle, torch.minimum(low[rows], high[rows]))
    return high


def whole_range(x: Tensor, norm: Norm) -> float:
    """Radius of the ball around an image of `x` (N, C, H, W) that holds every image of [0, 1]."""
    pixels = x[0].numel()
    return {"linf": 1.0, "l2": math.sqrt(pixels)}.get(norm, float(pixels))


def _check_and_predict(
    model: nn.Module, x: Tensor, y: Tensor, samples: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Check a batch, and return its logits and labels; a model that is random in eval mode is seeded."""
    with preserved_rng(derive_seed(seed, "attack")), translate_model_errors(model, x):
        logits, y = check_batch(model, x, y, random=samples > 1)
        return (predict_many(Expected(model, samples), x) if samples > 1 else logits), y


def _curve(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    method: AttackMethod,
    along: Literal["eps", "steps"],
    values: Sequence[float],
    strengths: Sequence[tuple[float, Settings]],
    seed: int,
) -> RobustnessCurve:
    begun = time.perf_counter()
    seed = check_seed(seed)
    shared = strengths[-1][1]  # they differ in their steps at most
    logits, y = _check_and_predict(model, x, y, getattr(shared, "samples", 1), seed)
    clean = alive = logits.argmax(1) == y
    nested = getattr(shared, "norm", "linf") != "severity"  # a smaller ball lies in a larger one
    rows = []
    for radius, settings in strengths:
        alive = alive if nested else clean
        left = alive.nonzero().flatten()
        if radius > 0 and len(left):
            alive = alive.clone()
            alive[left] = run_attack(
                model,
                take_rows(x.detach(), left),
                y[left],
                method,
                settings,
                eps=radius,
                seed=seed,
                clean=logits[left],
            ).robust
        rows.append(alive)
    recorded = shared.model_dump(mode="json")
    norm: Norm = recorded.get("norm", "linf")
    if along == "steps":
        del recorded["steps"]
        recorded["eps"] = max(radius for radius, _ in strengths)
    return RobustnessCurve(
        along=along,
        at=tuple(values),
        robust=torch.stack(rows),
        method=method.name,
        norm=norm,
        settings=recorded,
        seed=seed,
        seconds=time.perf_counter() - begun,
    )
