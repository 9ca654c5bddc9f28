"""The pixels of `tiles` against colours looked up by hand."""

import matplotlib as mpl
import numpy as np
import pytest

from saliency_lab import SaliencyLabError
from saliency_lab.plotting.painting import scale_bar, tiles


def colour(position):
    return np.array(mpl.colormaps["RdBu_r"](position, bytes=True)[:3])


def test_colours_are_those_of_the_scale_and_channels_are_summed():
    values = np.zeros((2, 2, 1, 2))
    values[0, :, 0, 0] = 1, 3  # sums to 4, the largest of all
    values[1, :, 0, 1] = -1, 0
    images = np.full((2, 3, 1, 2), 0.5)
    drawn = tiles(images, {"m": values}, scale="panel", signed=True, clip=100)
    assert np.array_equal(drawn.maps["m"][0, 0], [colour(1.0), colour(0.5)])
    assert np.array_equal(drawn.maps["m"][1, 0], [colour(0.5), colour(0.0)])
    assert drawn.layers.columns["m"].high.tolist() == [4, 1]
    shared = tiles(images, {"m": values}, scale="shared", clip=100)
    assert shared.layers.columns["m"].high.tolist() == [4, 4]
    assert np.abs(shared.maps["m"][1, 0, 1].astype(int) - colour(0.375)).max() <= 2  # −1 of 4
    assert (drawn.images == 128).all() and drawn.images.shape == (2, 1, 2, 3)


def test_a_blend_shows_a_grey_image_where_the_map_is_weak_alone():
    values = np.array([0.0, 1.0]).reshape(1, 1, 1, 2)
    drawn = tiles(np.ones((1, 1, 1, 2)), {"m": values}, blend=1.0, signed=True, clip=100)
    assert drawn.maps["m"][0, 0].tolist() == [[255, 255, 255], colour(1.0).tolist()]
    assert (drawn.images == 255).all()


def test_the_bar_runs_over_the_whole_scale():
    bar = scale_bar()
    ends = [bar[0, place].tolist() for place in (0, 50, 100)]
    assert ends == [colour(at).tolist() for at in (0.0, 0.5, 1.0)]


def test_maps_that_do_not_fit_the_images_are_refused():
    with pytest.raises(SaliencyLabError, match="3 images, and 2 maps"):
        tiles(np.zeros((3, 1, 2, 2)), {"m": np.zeros((2, 1, 2, 2))})
