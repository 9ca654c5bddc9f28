from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import font_manager

from saliency_lab._common.errors import InputError
from saliency_lab.plotting.maps import gallery, grid, overlay
from saliency_lab.plotting.style import PALETTE, looks, save

X = torch.rand(3, 3, 10, 10, generator=torch.Generator().manual_seed(0))
MAPS = {"standard": X - 0.5, "integrated_gradients": 0.1 * (X.flip(3) - 0.5)}


def _extents(fig):
    fig.draw_without_rendering()
    renderer = fig.canvas.get_renderer()
    return [
        artist.get_window_extent(renderer)
        for artist in fig.findobj(mpl.text.Text)
        if artist.get_text().strip()
    ]


def _assert_nothing_cropped(fig):
    boxes = _extents(fig)
    width, height = fig.canvas.get_width_height()
    for box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1


@pytest.mark.parametrize(
    "options", [{}, {"scale": "panel", "signed": False, "blend": 0.5, "title": "A title"}]
)
def test_grid_draws_every_panel_and_crops_nothing(options):
    predictions = {"standard": ["cat", "dog", "cat"]}
    fig = grid(X, MAPS, labels=["cat", "cat", "aeroplane"], predictions=predictions, **options)
    assert all(ax.images or ax.get_label() == "<colorbar>" for ax in fig.axes)
    assert len(fig.axes) == 3 * 3 + 1
    assert sum(ax.get_xlabel() == "taken for dog" for ax in fig.axes) == 1
    assert sum(ax.get_xlabel() == "taken for cat" for ax in fig.axes) == 1
    _assert_nothing_cropped(fig)


@pytest.mark.parametrize(("count", "columns"), [(2, 6), (7, 4), (1, 1)])
def test_gallery_has_no_empty_panel_and_crops_nothing(count, columns):
    maps = {f"integrated_gradients_{k}": X[:1] - 0.1 * k for k in range(count)}
    fig = gallery(X[0], maps, columns=columns, signed=False, blend=0.5, title="A title")
    assert len(fig.axes) == count + 2 and all(ax.images for ax in fig.axes[:-1])
    _assert_nothing_cropped(fig)


def test_a_single_row_crops_nothing():
    _assert_nothing_cropped(grid(X[:1], {"a": X[:1]}, labels=["a long class name"], scale="panel"))


def test_shared_scale_is_one_and_centred_at_zero():
    fig = grid(None, {"a": torch.full((1, 1, 4, 4), -2.0), "b": torch.full((1, 1, 4, 4), 1.0)})
    first, second, bar = fig.axes
    low, half = (ax.images[0].get_array()[0, 0] for ax in (first, second))
    scale = mpl.colormaps["RdBu_r"]
    np.testing.assert_allclose(low, scale(0.0)[:3])
    np.testing.assert_allclose(half, scale(0.75)[:3])
    assert bar.get_ylim() == (-2.0, 2.0)
    alone = grid(None, {"a": -torch.ones(1, 1, 4, 4), "b": torch.full((1, 1, 4, 4), 0.1)}, scale="panel")
    np.testing.assert_allclose(alone.axes[1].images[0].get_array()[0, 0], scale(1.0)[:3])


def test_overlay_keeps_the_strongest_colour_and_takes_an_axes():
    values = torch.zeros(1, 4, 4)
    values[0, 1, 2] = -3.0
    fig = overlay(values, torch.ones(1, 4, 4), blend=1.0, clip=100)
    painted = fig.axes[0].images[0].get_array()
    np.testing.assert_allclose(painted[1, 2], mpl.colormaps["RdBu_r"](0.0)[:3])
    np.testing.assert_allclose(painted[0, 0], 1.0)
    mine = mpl.figure.Figure().subplots()
    assert overlay(values, ax=mine) is mine.figure and mine.images


def test_zero_and_nan_maps_are_drawn():
    values = torch.zeros(2, 1, 4, 4)
    values[1] = torch.nan
    fig = grid(None, {"a": values}, scale="panel")
    assert np.isfinite(fig.axes[0].images[0].get_array()).all()
    np.testing.assert_allclose(fig.axes[1].images[0].get_array()[0, 0], [0xBF / 255] * 3)


def test_rcparams_and_inputs_are_left_alone():
    before, kept = dict(mpl.rcParams), X.clone()
    with mpl.rc_context({"axes.facecolor": "black"}):
        fig = grid(X, MAPS)
    assert dict(mpl.rcParams) == before and torch.equal(X, kept)
    assert mpl.colors.to_hex(fig.axes[0].get_facecolor()) == "#ffffff"


def test_save(tmp_path):
    kinds = ("png", "pdf", "svg")
    png, pdf, svg = (save(grid(X, MAPS, title="Findable words"), tmp_path / f"maps.{kind}") for kind in kinds)
    fig = grid(X, MAPS)
    assert mpl.image.imread(png).shape[0] == pytest.approx(200 * (fig.get_size_inches()[1] + 0.35), abs=1)
    assert b"/FontType 42" in pdf.read_bytes() or b"/Type0" in pdf.read_bytes()
    assert "Findable words" in svg.read_text(encoding="utf-8")
    first = png.read_bytes(), pdf.read_bytes(), svg.read_bytes()
    again = [grid(X, MAPS, title="Findable words") for _ in first]
    assert first == tuple(save(f, path).read_bytes() for f, path in zip(again, (png, pdf, svg), strict=True))
    with pytest.raises(InputError, match=r"png, \.pdf or \.svg"):
        save(fig, tmp_path / "maps.gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps.pdf", "maps.png", "maps.svg"]


def test_jupyter_gets_a_picture():
    assert grid(X, MAPS)._repr_png_().startswith(b"\x89PNG")


def test_palette_names_and_font():
    assert looks([]) == {} and looks([str(k) for k in range(9)])["8"].colour == PALETTE[0]
    assert font_manager.findfont("DejaVu Sans", fallback_to_default=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid(X, {}), "no map"),
        (lambda: grid(X, {"a": X[:2]}), "3 images and 2 maps"),
        (lambda: grid(X, {"a": X, "b": X[:, :, :5]}), "maps 'b' cover"),
        (lambda: grid(X, {"a": X[0]}), "maps 'a' must have the shape"),
        (lambda: grid(X, {"a": X}, labels=["x"]), "labels has 1 entries for 3 rows"),
        (lambda: grid(X, {"a": X}, predictions={"b": [1, 2, 3]}), "not drawn: b"),
        (lambda: grid(X, {"a": X}, scale="figure"), "scale must be one of"),
        (lambda: grid(X, {"a": X}, clip=0), "percentile"),
        (lambda: overlay(X[0], X[0, :, :5]), "the image is"),
        (lambda: gallery(X[0], {"a": X}), "a gallery shows one image"),
        (lambda: gallery(X[0], {}), "no map"),
        (lambda: gallery(X[0], {"a": X[0]}, columns=0), "columns must be at least 1"),
        (lambda: gallery(X, {"a": X[0]}), "the image must have the shape"),
        (lambda: overlay(X[0], X[0], blend=2), "blend"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_long_title_stays_inside_a_narrow_figure():
    figure = grid(np.zeros((1, 1, 4, 4)), {"a": np.ones((1, 1, 4, 4))}, title="many words " * 8)
    figure.draw_without_rendering()
    extent = figure._suptitle.get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= figure.bbox.x1


def test_long_labels_are_not_cut_off_when_saved(tmp_path):
    """Ink at the left border of the picture would be a label that goes on beyond it."""
    labels = ["automobile", "frog", "cat", "horse"]
    figure = grid(np.zeros((4, 1, 8, 8)), {"a": np.ones((4, 1, 8, 8))}, labels=labels)
    save(figure, tmp_path / "maps.png")
    picture = mpl.image.imread(tmp_path / "maps.png")[..., :3]
    assert (picture[:, 0] == 1).all()
    assert (picture[:, -1] == 1).all()
