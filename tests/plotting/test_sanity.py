"""The figure of a sanity check has the intervals that it says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from scipy import stats

from saliency_lab.plotting.sanity import cascade


def table(samples: int, steps: int = 3) -> pd.DataFrame:
    draws = np.random.default_rng(samples)
    return pd.DataFrame(
        {"method": method, "step": step, "layer": f"layer {step}", "rank_correlation": draws.normal(0.4, 0.1)}
        for method in ("saliency", "lrp")
        for step in range(steps)
        for _ in range(samples)
    )


def bands(ax: Axes) -> list[dict[float, tuple[float, float]]]:
    """Ends of each band by step."""
    found = []
    for band in ax.collections:
        corners = [path.vertices for path in band.get_paths()]
        x, y = np.concatenate(corners).T if corners else np.empty((2, 0))
        found.append({step: (y[x == step].min(), y[x == step].max()) for step in np.unique(x)})
    return found


@pytest.mark.parametrize("samples", [2, 3, 8, 50])
def test_the_band_is_students_interval(samples: int) -> None:
    scores = table(samples)
    scores.loc[1, "rank_correlation"] = np.nan if samples > 3 else scores.loc[1, "rank_correlation"]
    for method, band in zip(("saliency", "lrp"), bands(cascade(scores).axes[0]), strict=True):
        for step in range(3):
            chosen = (scores.method == method) & (scores.step == step)
            values = scores[chosen]["rank_correlation"].dropna().to_numpy()
            expected = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
            np.testing.assert_allclose(band[step], expected)


def test_one_sample_has_a_line_and_no_band() -> None:
    ax = cascade(table(1)).axes[0]
    assert bands(ax) == [{}, {}]
    assert all(np.isfinite(line.get_ydata()).all() for line in ax.lines)
