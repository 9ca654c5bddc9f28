"""The pictures of attacks and audits show what they are given."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

import saliency_lab as sl
from saliency_lab.plotting.attacks import attack_path, audit_table
from saliency_lab.plotting.maps import Prediction


@pytest.mark.parametrize("channels", [1, 3])
def test_attack_path(channels) -> None:
    before = dict(mpl.rcParams)
    x = torch.full((2, channels, 4, 4), 0.5)
    moved = x + 0.02
    moved[1] = x[1] - 0.04
    maps = (torch.randn(2, channels, 4, 4), 3 * torch.ones(2, channels, 4, 4))
    fig = attack_path(x, moved, labels=["cat", "dog"], before=["cat", "dog"], after=["dog", "dog"], maps=maps)
    axes = np.array(fig.axes).reshape(2, 5)
    shown = axes[0, 1].images[0].get_array()
    assert np.allclose(shown, 0.75) and np.allclose(axes[1, 1].images[0].get_array(), 0, atol=1e-6)
    assert axes[0, 1].get_title() == "perturbation ×12.5"  # the largest, 0.04, reaches black
    assert axes[0, 2].get_xlabel() == "predicted dog" and axes[0, 0].get_ylabel() == "cat"
    assert axes[0, 3].images[0].get_clim() == axes[0, 4].images[0].get_clim()
    assert axes[0, 4].images[0].get_clim()[1] == pytest.approx(
        max(3 * channels, maps[0].sum(1)[0].abs().max())
    )
    wrong, right = axes[0, 2].xaxis.label.get_color(), axes[1, 2].xaxis.label.get_color()
    assert wrong != right
    same = attack_path(x, x, labels="ab", before="ab", after="ab", magnify=10)
    assert len(same.axes) == 6 and np.allclose(same.axes[1].images[0].get_array(), 0.5)
    assert dict(mpl.rcParams) == before
    with pytest.raises(sl.SaliencyLabError, match="adversarial"):
        attack_path(x, moved[:1], labels="ab", before="ab", after="ab")


def test_a_prediction_that_is_undefined_is_not_wrong() -> None:
    x = torch.full((3, 1, 4, 4), 0.5)
    after = [Prediction("cat", float("nan")), Prediction("cat", 0.4), Prediction("dog", 1.0)]
    fig = attack_path(x, x, labels=["cat"] * 3, before=["cat"] * 3, after=after)
    below = [ax.xaxis.label for ax in np.array(fig.axes).reshape(3, 3)[:, 2]]
    assert [each.get_text() for each in below] == [
        "predicted undefined", "predicted cat, 40 %", "predicted dog, 100 %"
    ]  # fmt: skip
    ink, same, alert = (each.get_color() for each in below)
    assert ink == same != alert


def test_audit_table_marks_each_check() -> None:
    table = pd.DataFrame(
        {"verdict": ["pass", "warn", "fail", "skipped"], "evidence": ["fine", "hm", "bad " * 60, "absent"]},
        index=pd.Index(list("abcd"), name="check"),
    )
    fig = audit_table(table, title="do not believe")
    texts = [text.get_text() for text in fig.axes[0].texts]
    assert [text for text in texts if text in "✓!✗–"] == ["✓", "!", "✗", "–"]
    assert fig.axes[0].get_title(loc="left") == "do not believe"
    fig.canvas.draw()
    boxes = [text.get_window_extent() for text in fig.axes[0].texts]
    assert all(fig.bbox.x0 <= box.x0 and box.x1 <= fig.bbox.x1 for box in boxes)
    assert all(fig.bbox.y0 <= box.y0 and box.y1 <= fig.bbox.y1 for box in boxes)
    with pytest.raises(sl.SaliencyLabError, match="unknown verdict 'great'"):
        audit_table(table.assign(verdict="great"))
    with pytest.raises(sl.SaliencyLabError, match="lacks evidence"):
        audit_table(table.drop(columns="evidence"))
