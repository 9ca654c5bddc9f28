import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saliency_lab.training.augmentation import crop_and_flip
from saliency_lab.training.masking import lowest, masked, pixel_saliency


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.integers(1, 9),
    st.floats(0, 1),
    st.sampled_from([2, 50, 10**6]),
)
def test_lowest_marks_exactly_the_first_entries_of_a_stable_sort(seed, n, side, fraction, levels):
    """Few levels make many exact ties, which a stable sort gives to the earlier pixel."""
    draws = torch.Generator().manual_seed(seed)
    scores = torch.randint(-levels, levels, (n, side, side + 1), generator=draws).float()
    chosen = lowest(scores, fraction)
    count = int(np.floor(fraction * side * (side + 1) + 1e-6))
    for row, flat in zip(chosen.flatten(1).numpy(), scores.flatten(1).numpy(), strict=True):
        expected = np.zeros(len(flat), dtype=bool)
        expected[np.argsort(flat, kind="stable")[:count]] = True
        assert np.array_equal(row, expected)
    per_sample = lowest(scores, torch.full((n,), fraction, dtype=torch.float64))
    assert torch.equal(per_sample, chosen)


def test_fraction_of_each_sample_is_its_own():
    scores = torch.arange(16.0).reshape(1, 4, 4).repeat(3, 1, 1)
    chosen = lowest(scores, torch.tensor([0.0, 0.25, 1.0]))
    assert chosen.flatten(1).sum(1).tolist() == [0, 4, 16]
    assert chosen[1].flatten()[:4].all()


@pytest.mark.parametrize(
    ("fraction", "pixels", "count"), [(0.3, 10, 3), (0.7, 10, 7), (0.5, 9, 4), (0.29, 100, 29)]
)
def test_count_is_the_floor_of_the_exact_product(fraction, pixels, count):
    assert int(lowest(torch.rand(1, 1, pixels), fraction).sum()) == count


def test_rankings_differ_where_channels_cancel():
    saliency = torch.tensor([[[[3.0, 0.5]], [[-3.0, 0.5]]]])  # pixel 0: ±3, pixel 1: 0.5 twice
    assert lowest(pixel_saliency(saliency, "signed"), 0.5)[0, 0].tolist() == [True, False]
    assert lowest(pixel_saliency(saliency, "absolute"), 0.5)[0, 0].tolist() == [False, True]


def test_all_channels_of_a_pixel_are_replaced_together_and_the_rest_is_untouched():
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(5, 3, 6, 6, generator=draws) * 0.5 + 0.2
    chosen = lowest(torch.rand(5, 6, 6, generator=draws), 0.4)
    noise = torch.rand(x.shape, generator=draws)
    for fill in ("uniform", "mean", "zero"):
        y = masked(x, chosen, fill, noise)
        changed = y != x
        assert torch.equal(changed.all(1), chosen)
        assert torch.equal(changed.any(1), chosen)
    y = masked(x, chosen, "uniform", noise)
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    assert ((y >= low) & (y <= high)).all()
    assert torch.allclose(masked(x, chosen, "uniform", torch.zeros_like(x))[0, 1][chosen[0]], low[0, 1])
    assert torch.allclose(masked(x, chosen, "mean")[2, 0][chosen[2]], x[2, 0].mean())


def test_crop_and_flip_moves_the_image_by_the_drawn_shift():
    x = torch.rand(2, 3, 8, 8)
    middle = 4.5 / 9  # a shift of exactly 0
    still = crop_and_flip(x, torch.tensor([[middle, middle, 0.9], [middle, middle, 0.1]]))
    assert torch.equal(still[0], x[0])
    assert torch.equal(still[1], x[1].flip(-1))
    moved = crop_and_flip(x, torch.tensor([[0.0, middle, 0.9], [middle, 0.999, 0.9]]))
    assert torch.equal(moved[0, :, 4:], x[0, :, :4])
    assert not moved[0, :, :4].any()
    assert torch.equal(moved[1, :, :, :4], x[1, :, :, 4:])
