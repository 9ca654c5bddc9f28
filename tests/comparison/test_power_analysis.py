from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

import saliency_lab as sl
from saliency_lab._common.errors import InputError


def test_without_a_difference_the_share_detected_is_the_error_rate() -> None:
    for accuracy in (0.85, None):
        table = sl.power(0.0, seeds=3, images=100, accuracy=accuracy, runs=300)
        assert table["detected"].item() <= 0.05 + 1.96 * math.sqrt(0.05 * 0.95 / 300)


def test_with_seeds_alone_power_is_that_of_welchs_test() -> None:
    """Images that all networks find equally difficult cancel, and what is left are the seeds."""
    seeds, difference, spread = 6, 0.4, 0.2
    found = sl.power(
        difference, seeds=seeds, images=400, accuracy=None, seed_spread=spread, correlation=1.0, runs=500
    )
    freedom = 2 * (seeds - 1)
    shift = difference / math.hypot(spread, spread) * math.sqrt(seeds)
    expected = stats.nct.sf(stats.t.isf(0.025, freedom), freedom, shift)
    assert found["detected"].item() == pytest.approx(expected, abs=0.05)


def test_power_grows_with_seeds_images_and_difference_and_falls_with_corrections() -> None:
    table = sl.power([0.02, 0.06], seeds=[3, 8], images=[100, 800], runs=100)
    assert len(table) == 8
    by = table.set_index(["seeds", "images", "difference"])["detected"]
    assert by[8, 800, 0.06] > by[3, 100, 0.02] + 0.3
    corrected = sl.power(0.06, seeds=3, images=800, runs=100, comparisons=50)["detected"].item()
    assert corrected < by[3, 800, 0.06] - 0.2


def test_equivalence_is_reported_with_a_margin() -> None:
    wide, narrow = (
        sl.power(0.0, seeds=5, images=500, margin=margin, runs=60)["equivalent"].item()
        for margin in (0.1, 0.005)
    )
    assert wide > 0.9 and narrow < 0.2


def test_one_seed_is_mcnemars_test() -> None:
    table = sl.power(0.1, seeds=1, images=300, seed_spread=0.0, runs=60)
    assert 0.5 < table["detected"].item() <= 1
    assert np.isfinite(table["half_width"]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "seeds must be"),
        ({"images": 1}, "images must be"),
        ({"difference": 0.3}, "accuracy \\+ difference"),
        ({"accuracy": 85}, "accuracy must be a finite number in"),
        ({"seed_spread": -1}, "seed_spread must"),
        ({"margin": 0}, "margin must"),
        ({"level": 95}, "level must"),
        ({"comparisons": 0}, "comparisons must"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sl.power(**{"difference": 0.04, **settings})  # type: ignore[arg-type]


def test_studies_whose_seeds_disagree_are_counted_as_a_comparison_counts_them() -> None:
    found = sl.power(6.0, seeds=3, images=50, accuracy=None, seed_spread=2.0, runs=100)
    assert 0.2 < found["undecided"].item() < 0.6
    assert found["detected"].item() + found["undecided"].item() <= 1
    assert sl.power(0.04, seeds=3, images=50, runs=20)["undecided"].item() == 0
