"""The critical-difference diagram: where its labels and lines are."""

import itertools
import re

import numpy as np
import pytest

from saliency_lab.plotting.ranks import critical_difference


def segments(ax):
    """Ends of all lines, in pixels."""
    for line in ax.lines:
        points = ax.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]))
        yield from itertools.pairwise(points)
    for collection in ax.collections:
        for path in collection.get_paths():
            points = ax.transData.transform(path.vertices)
            yield from itertools.pairwise(points)


def meets(box, first, second):
    """Whether a horizontal or vertical segment meets a box."""
    (x0, y0), (x1, y1) = np.minimum(first, second), np.maximum(first, second)
    return x0 <= box.x1 and x1 >= box.x0 and y0 <= box.y1 and y1 >= box.y0


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 3, 7, 16])
@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("critical", [0.3, 2.0, 20.0])
def test_no_label_touches_a_line(count, spread, critical):
    middle = (count + 1) / 2
    ranks = {f"integrated gradients {i}": middle + spread * (i + 1 - middle) for i in range(count)}
    fig = critical_difference(ranks, critical, title="pixel flipping", note="500 images")
    for _ in range(3):
        fig.draw_without_rendering()
    (ax,) = fig.axes
    texts = [text for text in [*ax.texts, ax._left_title] if text.get_text()]
    boxes = [text.get_window_extent().padded(2) for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert text.get_text() == re.sub(r"\s+", " ", text.get_text()).strip()  # an SVG drops other spaces
        assert not any(meets(box, *ends) for ends in segments(ax)), text.get_text()
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box.x0 >= 0 and box.x1 <= fig.bbox.x1 for box in boxes)
