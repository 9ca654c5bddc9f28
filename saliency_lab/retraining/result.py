"""The accuracies of retrained networks, and what they say about each method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saliency_lab._common.html import facts
from saliency_lab.comparison.format import one_line, write_mean
from saliency_lab.comparison.measures import ACCURACY, Measure
from saliency_lab.metrics.catalogue import MORF, Better, Order
from saliency_lab.plotting.curves import robustness

CONTROL = "random"
"""The label of the control, which ranks pixels at random."""


@dataclass(frozen=True, eq=False, repr=False)
class RoarResult:
    """Test accuracies of networks that were retrained on images without some of their pixels.

    Parameters
    ----------
    recipe : str
        Name of the recipe.
    order : {"most_relevant_first", "least_relevant_first"}
        Which pixels were replaced: the most important ones (ROAR), or the least important ones (KAR).
    fractions : tuple of float
        Shares of the pixels that were replaced, ascending; the first is 0, which is no replacement.
    seeds : tuple of int
        Training seeds.
    correct : mapping of str to ndarray
        For each method, bool (seeds, fractions, N): whether the network that was retrained for it predicts
        the label of each of the N test images.
    collapsed : mapping of str to ndarray
        For each method, bool (seeds, fractions): whether the network predicts one class for nearly all test
        images.

    Examples
    --------
    >>> correct = np.zeros((2, 2, 4), dtype=bool)
    >>> correct[:, 0] = True
    >>> collapsed = np.zeros((2, 2), dtype=bool)
    >>> result = RoarResult("digits/standard", "most_relevant_first", (0.0, 0.5), (0, 1),
    ...                     {"random": correct}, {"random": collapsed})
    >>> result.table()["accuracy"].tolist()
    [1.0, 0.0]
    """

    recipe: str
    order: Order
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    correct: Mapping[str, np.ndarray]
    collapsed: Mapping[str, np.ndarray]

    @property
    def name(self) -> str:
        """The name of the procedure: "ROAR" or "KAR"."""
        return "ROAR" if self.order == MORF else "KAR"

    def networks(self) -> pd.DataFrame:
        """List the retrained networks.

        Returns
        -------
        DataFrame
            One row per network: `method`, `fraction`, `seed`, its `accuracy` on the test images, and whether
            its training `collapsed` to one class. At fraction 0 the network is the same for all methods.
        """
        rows = [
            {
                "method": method,
                "fraction": fraction,
                "seed": seed,
                "accuracy": correct[s, f].mean(),
                "collapsed": bool(self.collapsed[method][s, f]),
            }
            for method, correct in self.correct.items()
            for f, fraction in enumerate(self.fractions)
            for s, seed in enumerate(self.seeds)
        ]
        return pd.DataFrame(rows)

    def table(self, level: float = 0.95) -> pd.DataFrame:
        """List the accuracies with their intervals, and how far they are from those of the control.

        Parameters
        ----------
        level : float
            Confidence level of the intervals, over test images and training seeds (over images alone with one
            seed).

        Returns
        -------
        DataFrame
            One row per method and fraction: mean `accuracy` with `low` and `high`, NaN where the training
            seeds seem to be of two kinds (`seeds_disagree`), so that only `seed_means` describe them;
            `difference` from the control at the same fraction, `difference_low` and `difference_high` (NaN
            for the control itself, at fraction 0, and where the seeds of either disagree); how many networks
            `collapsed`; and `n`, the number of test images.

        Raises
        ------
        InputError
            If `level` is not in (0, 1).
        """
        measures = [
            self._measure({method: correct[:, f] for method, correct in self.correct.items()})
            for f in range(len(self.fractions))
        ]
        rows = []
        for method, correct in self.correct.items():
            for f, fraction in enumerate(self.fractions):
                rows.append(
                    {
                        "method": method,
                        "fraction": fraction,
                        **_mean("accuracy", measures[f], method, level),
                        **_difference(measures[f], method, level, compared=fraction > 0),
                        "collapsed": int(self.collapsed[method][:, f].sum()),
                        "n": correct.shape[2],
                    }
                )
        return pd.DataFrame(rows)

    def summary(self, level: float = 0.95) -> pd.DataFrame:
        """Compare the methods by the area under their curves of accuracy over the fraction replaced.

        The area is divided by the largest fraction, so it is a mean accuracy. Where the most important pixels
        are replaced (ROAR), a method is better than the control if its area is smaller; where the least
        important ones are (KAR), if it is larger.

        Parameters
        ----------
        level : float
            Confidence level of the intervals, as in `table`.

        Returns
        -------
        DataFrame
            One row per method, indexed by `method`, the best first: `area` with `low` and `high`,
            `seed_means` and `seeds_disagree` as in `table`, the `difference` from the control with
            `difference_low` and `difference_high`, and the p-value of the hypothesis that the difference is
            0, which is not corrected for the number of methods.
        """
        areas = self._measure({method: self._areas(correct) for method, correct in self.correct.items()})
        rows = [
            {
                "method": method,
                **_mean("area", areas, method, level),
                **_difference(areas, method, level),
                "p": np.nan if method == CONTROL else areas.p_value(method, CONTROL),
            }
            for method in self.correct
        ]
        table = pd.DataFrame(rows).set_index("method")
        return table.sort_values("area", ascending=self.order == MORF, kind="stable")

    def plot(self, *, title: str | None = None) -> Figure:
        """Draw test accuracy against the fraction of the pixels that were replaced, one line per method.

        Parameters
        ----------
        title : str, optional
            By default the procedure and the recipe.

        Returns
        -------
        Figure
            Bands are 95 % intervals. Where the training seeds disagree, each has a small mark.
        """
        table = self.table()
        kind = "most" if self.order == MORF else "least"
        seeds = f"{len(self.seeds)} training seeds" if len(self.seeds) > 1 else "1 training seed"
        images = next(iter(self.correct.values())).shape[2]
        note = f"{images} test images, {seeds}; bands: 95 % intervals"
        marks: dict[str, list[tuple[float, float]]] = {}
        for row in table[table["seeds_disagree"]].to_dict("records"):
            marks.setdefault(row["method"], []).extend((row["fraction"], mean) for mean in row["seed_means"])
        return robustness(
            {method: table[table["method"] == method] for method in self.correct},
            seeds=marks,
            along="fraction",
            title=title or f"{self.name}, {self.recipe}",
            xlabel=f"fraction of the pixels replaced, {kind} important first",
            ylabel="accuracy after retraining",
            note=f"{note}; open marks: single seeds" if marks else note,
        )

    def _measure(self, values: Mapping[str, np.ndarray]) -> Measure:
        """Compare the accuracies (seeds, images) of the methods; an area is a mean of accuracies."""
        better: Better = "lower" if self.order == MORF else "higher"
        return Measure(ACCURACY, "", np.nan, better, values, (0.0, 1.0))

    def _areas(self, correct: np.ndarray) -> np.ndarray:
        """Area under the curve of each seed and image, (S, N)."""
        at = np.asarray(self.fractions)
        heights = correct.astype(float)
        steps = (at[1:] - at[:-1])[None, :, None]
        return np.sum((heights[:, 1:] + heights[:, :-1]) / 2 * steps, axis=1) / at[-1]

    def _facts(self) -> dict[str, str]:
        shares = ", ".join(f"{fraction:g}" for fraction in self.fractions)
        return {
            "recipe": self.recipe,
            "methods": ", ".join(self.correct),
            "fractions": shares,
            "seeds": ", ".join(map(str, self.seeds)),
        }

    def __repr__(self) -> str:
        described = "; ".join(f"{key}: {value}" for key, value in self._facts().items())
        return f"RoarResult({self.name}; {described})"

    def _repr_html_(self) -> str:
        rows = {
            f"area, {method}": one_line(write_mean({**row, "mean": row["area"]}, share=False))
            for method, row in self.summary().iterrows()
        }
        return facts(self.name, self._facts() | rows)


def _mean(name: str, measure: Measure, method: str, level: float) -> dict[str, Any]:
    """Columns of a mean."""
    mean, low, high = measure.interval(method, level)
    by_seed = {"seed_means": measure.seed_means(method), "seeds_disagree": measure.seeds_disagree(method)}
    return {name: mean, "low": low, "high": high, **by_seed}


def _difference(measure: Measure, method: str, level: float, *, compared: bool = True) -> dict[str, float]:
    """Columns of the difference from the control; NaN for the control itself, and if none is `compared`."""
    none = method == CONTROL or not compared
    mean, low, high = (np.nan,) * 3 if none else measure.difference(method, CONTROL, level)
    return {"difference": mean, "difference_low": low, "difference_high": high}
