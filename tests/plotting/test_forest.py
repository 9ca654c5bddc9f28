"""A forest plot writes the numbers of the table that it belongs to."""

from __future__ import annotations

import re

import numpy as np
import pytest

import saliency_lab as sl
from saliency_lab.plotting.forest import forest

SMALL = {"mnist": (-0.0021, -0.0037, -0.0004), "svhn": (-0.0031, -0.0077, 0.0004)}
LARGE = {"mnist": (-0.06, -0.10, -0.02), "svhn": (-0.03, -0.06, 0.0)}
SCORES = {"mnist": (0.00021, 0.0001, 0.00032), "svhn": (0.0004, -0.0001, 0.0009)}


@pytest.mark.parametrize(("differences", "share"), [(SMALL, True), (LARGE, True), (SCORES, False)])
def test_every_row_has_the_numbers_of_the_table(differences, share) -> None:
    pooled = sl.pool_differences(differences, share=share)
    (ax,) = pooled.plot().axes
    written = {text.xy[1]: text.get_text() for text in ax.texts if hasattr(text, "xy")}
    for row, line in enumerate(str(pooled).splitlines()[: len(pooled.table)]):
        name = ax.get_yticklabels()[row].get_text()
        assert re.fullmatch(rf"{name} +{re.escape(written[row])}(  p .*)?", line)
        ends = re.search(r"\[(.*), (.*)\]", written[row].replace("−", "-")).groups()
        for end, value in zip(ends, pooled.table.loc[name, ["low", "high"]], strict=True):
            assert np.sign(float(end)) == np.sign(value)


def test_the_names_of_the_rows_are_those_of_the_texts() -> None:
    rows = {"one": (0.1, 0.0, 0.2), "two": (0.3, 0.2, 0.4)}
    (ax,) = forest({"one": rows["one"]}, {"two": rows["two"]}, texts={"two": "second", "one": "first"}).axes
    assert [text.get_text() for text in ax.texts] == ["first", "second"]
