"""The robustness figure says what its tables say."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import saliency_lab as sl
from saliency_lab.plotting.curves import robustness


def table(*accuracy: float) -> pd.DataFrame:
    values = np.array(accuracy)
    eps = 0.1 * np.arange(len(values))
    return pd.DataFrame(
        {
            "eps": eps,
            "accuracy": values,
            "low": (values - 0.1).clip(0),
            "high": (values + 0.1).clip(0, 1),
            "n": 50,
        }
    )


def test_lines_bands_and_names() -> None:
    before = dict(mpl.rcParams)
    fig = robustness({"standard": table(0.9, 0.3, 0.0), "at": table(0.85, 0.6, 0.0)})
    ax = fig.axes[0]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0.9, 0.3, 0.0], [0.85, 0.6, 0.0]]
    assert len(ax.collections) == 2  # a band a model
    texts = [text.get_text() for text in ax.texts]
    assert "standard  0%" in texts and "at  0%" in texts and any("n = 50" in text for text in texts)
    fig.canvas.draw()
    names = [
        text.get_window_extent()
        for text in ax.texts
        if "%" in text.get_text() and "n =" not in text.get_text()
    ]
    assert not names[0].overlaps(names[1])
    assert dict(mpl.rcParams) == before


def test_bad_tables_are_refused() -> None:
    with pytest.raises(sl.SaliencyLabError, match="at least one"):
        robustness({})
    with pytest.raises(sl.SaliencyLabError, match="lacks the column"):
        robustness({"a": table(1.0).drop(columns="low")})


def test_many_lines_are_told_apart_by_dashes_and_a_legend():
    table = pd.DataFrame({"eps": [0.0, 0.1], "accuracy": [1.0, 0.5], "low": [0.9, 0.4], "high": [1.0, 0.6]})
    few, many = ({f"model {i}": table for i in range(count)} for count in (8, 9))
    assert {line.get_linestyle() for line in robustness(few).axes[0].lines} == {"-"}
    assert not robustness(few).legends
    figure = robustness(many)
    assert [line.get_linestyle() for line in figure.axes[0].lines] == ["-"] * 8 + ["--"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(many)
