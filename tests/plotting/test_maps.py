from __future__ import annotations

import io
import time

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import font_manager
from PIL import Image

from saliency_lab._common.errors import InputError
from saliency_lab.attribution.result import Attributions
from saliency_lab.plotting.attacks import attack_path
from saliency_lab.plotting.maps import Prediction, gallery, grid, overlay, steps
from saliency_lab.plotting.painting import layers, tiles
from saliency_lab.plotting.style import PALETTE, looks, save

X = torch.rand(3, 3, 10, 10, generator=torch.Generator().manual_seed(0))
MAPS = {"standard": X - 0.5, "integrated_gradients": 0.1 * (X.flip(3) - 0.5)}


def maps_of(x):
    nothing = torch.zeros(len(x), dtype=torch.int64)
    return Attributions(
        x - 0.5, method="saliency", settings={}, target="label", seconds=0.0, seed=0, classes=nothing
    )


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
    assert sum(ax.get_xlabel() == "✗ dog" for ax in fig.axes) == 1
    assert sum(ax.get_xlabel() == "✗ cat" for ax in fig.axes) == 1
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
    fig = grid(None, {"a": torch.full((1, 1, 4, 4), -2.0), "b": torch.full((1, 1, 4, 4), 1.0)}, signed=True)
    first, second, bar = fig.axes
    low, half = (ax.images[0].get_array()[0, 0] for ax in (first, second))
    scale = mpl.colormaps["RdBu_r"]
    np.testing.assert_allclose(low, scale(0.0)[:3])
    np.testing.assert_allclose(half, scale(0.75)[:3])
    assert bar.get_ylim() == (-2.0, 2.0)
    alone = grid(
        None, {"a": -torch.ones(1, 1, 4, 4), "b": torch.full((1, 1, 4, 4), 0.1)}, scale="panel", signed=True
    )
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
    assert mpl.image.imread(png).shape[0] == pytest.approx(200 * (fig.get_size_inches()[1] + 0.32), abs=1)
    assert b"/FontType 42" in pdf.read_bytes() or b"/Type0" in pdf.read_bytes()
    assert "Findable words" in svg.read_text(encoding="utf-8")
    first = png.read_bytes(), pdf.read_bytes(), svg.read_bytes()
    again = [grid(X, MAPS, title="Findable words") for _ in first]
    assert first == tuple(save(f, path).read_bytes() for f, path in zip(again, (png, pdf, svg), strict=True))
    with pytest.raises(InputError, match=r"png, \.pdf or \.svg"):
        save(fig, tmp_path / "maps.gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps.pdf", "maps.png", "maps.svg"]


def test_jupyter_gets_a_picture():
    picture, size = grid(X, MAPS)._repr_png_()
    assert picture.startswith(b"\x89PNG")
    width, height = Image.open(io.BytesIO(picture)).size  # two pixels for each one of the page
    assert (width, height) == pytest.approx((2 * size["width"], 2 * size["height"]), abs=2)


def test_palette_names_and_font():
    assert looks([]) == {} and looks([str(k) for k in range(13)])["12"].colour == PALETTE[0]
    assert font_manager.findfont("DejaVu Sans", fallback_to_default=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid(X, {}), "no map"),
        (lambda: grid(X, {"a": X[:2]}), "3 images, and 2 maps"),
        (lambda: grid(X, {"a": X, "b": X[:, :, :5]}), "maps 'b' cover"),
        (lambda: grid(X, {"a": X[0]}), "maps 'a' must have the shape"),
        (lambda: grid(X, {"a": X}, labels=["x"]), "labels has 1 entries for 3 rows"),
        (lambda: grid(X, {"a": X}, predictions={"b": [1, 2, 3]}), "not drawn: b"),
        (lambda: grid(X, {"a": X}, scale="figure"), "scale must be one of"),
        (lambda: grid(X, {"a": X}, clip=0), "percentile"),
        (lambda: overlay(X[0], X[0, :, :5]), "must have the size of their images"),
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


HWC = X.permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid(X[..., :5], MAPS), "maps 'standard' have 10 × 10 pixels and the images 10 × 5"),
        (lambda: grid(HWC, {"a": X}), "channels of .* seem to come last"),
        (lambda: grid(X, {"a": HWC}), "channels of .* seem to come last"),
        (lambda: grid(255 * X, MAPS), "divide 8-bit images by 255"),
        (lambda: grid(4 * X - 2, MAPS), "undo the normalisation"),
        (lambda: grid(X.where(X > 0.1, torch.nan), MAPS), "contain NaN"),
        (lambda: gallery(X[0, :, :5], {"a": X[0]}), "must have the size of their images"),
        (lambda: gallery(255 * X[0], {"a": X[0]}), "divide 8-bit images by 255"),
        (lambda: overlay(X[0], 255 * X[0]), "divide 8-bit images by 255"),
        (lambda: overlay(X[0], X[0] - 0.5), "swap the two, if the first is the image: overlay takes the map"),
        (lambda: overlay(X[:1], maps_of(X[:1])), "map first and then the image, .* is an Attributions; swap"),
        (lambda: grid(MAPS, X), "maps must be a mapping, such as {'saliency': maps}, not Tensor"),
        (lambda: grid(X, maps_of(X)), "maps must be a mapping, .* not Attributions"),
        (lambda: gallery(X[0], X), "maps must be a mapping, .* not Tensor"),
        (lambda: steps({"saliency": X}, ["1", "2"]), "titles names 2 steps, and there are maps of 3"),
        (lambda: overlay(X[0], HWC[0]), "channels of .* seem to come last"),
        (lambda: tiles(X, {"a": X[..., :5]}), "must have the size of their images"),
        (lambda: grid(X, MAPS, smooth=-1), "smooth"),
        (lambda: attack_path(X, 255 * X, labels="abc", before="abc", after="abc"), "divide 8-bit"),
        (lambda: attack_path(X, X, labels="ab", before="abc", after="abc"), "labels has 2 entries for 3"),
        (
            lambda: attack_path(X, X, labels="abc", before="abc", after="abc", maps=(X, X[..., :5])),
            "must have the size of their images",
        ),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_an_adversarial_image_may_leave_the_range_by_a_rounding_error():
    assert grid((X + 1e-6).clip(max=1 + 1e-6), MAPS).axes


def test_maps_of_unlike_sizes_get_a_scale_each():
    apart = {"a": X - 0.5, "b": 1000 * (X - 0.5)}
    for maps, expected in (
        (apart, "panel"),
        (MAPS, "shared"),
        ({"a": X - 0.5, "b": 5 * (X - 0.5)}, "shared"),
    ):
        assert layers(maps).scale == expected
    both = grid(X, apart)
    assert np.array_equal(both.axes[1].images[0].get_array(), both.axes[2].images[0].get_array())
    alike = {"a": Named(X - 0.5, "saliency"), "b": Named(X - 0.5, "saliency")}
    assert layers(alike).scale == "shared"
    assert layers(alike | {"b": Named(X - 0.5, "rise")}).scale == "panel"
    assert layers(apart, scale="shared").scale == "shared"


class Named:
    """Maps that know their method, as `Attributions` do."""

    def __init__(self, values, method):
        self.values, self.method = values, method


def test_maps_without_a_sign_have_a_sequential_scale_from_their_lowest_value():
    rise = 0.4 + 0.2 * X[:, :1]
    column = layers({"rise": rise}).columns["rise"]
    assert not column.signed and (column.low > 0.4).all() and (column.high < 0.6).all()
    painted = tiles(X, {"rise": rise}, clip=100).maps["rise"].reshape(-1, 3)
    assert len(np.unique(painted, axis=0)) > 100  # more than one shade of red
    cam = (X[:, :1] - 0.5).clip(min=0)
    assert (layers({"cam": cam}).columns["cam"].low == 0).all()
    assert layers({"signed": X - 0.5}).columns["signed"].signed
    assert layers({"zero": 0 * X}).columns["zero"].signed
    # where one model's maps have a sign, those of the same method on another have it too
    same = {"a": Named(X - 0.5, "gradient"), "b": Named(X, "gradient")}
    assert all(each.signed for each in layers(same).columns.values())
    assert len(grid(X, {"rise": rise, "signed": X - 0.5}).axes) == 3 * 3 + 2  # a colour bar for each kind


def test_photographs_are_overlaid_and_small_images_are_not():
    small, large = torch.full((1, 3, 64, 64), 1.0), torch.full((1, 3, 65, 64), 1.0)
    white = np.array(mpl.colormaps["RdBu_r"](0.5)[:3])
    for image, blend in ((small, 0.0), (large, 0.7)):
        values = torch.zeros(1, 1, *image.shape[2:])
        values[..., 0, 0] = -1.0
        painted = grid(0 * image, {"a": values}, clip=100).axes[1].images[0].get_array()
        np.testing.assert_allclose(painted[5, 5], (1 - blend) * white + blend * 0.3)  # black shows as 0.3
    alone = grid(0 * large, {"a": values}, blend=0.0, clip=100).axes[1].images[0].get_array()
    np.testing.assert_allclose(alone[5, 5], white)


def test_smoothing_is_a_gaussian_filter_and_the_title_mentions_it():
    values = torch.zeros(1, 1, 11, 11)
    values[..., 5, 5] = 1.0
    plane = layers({"a": values}, smooth=1.0).columns["a"].planes[0]
    assert plane.sum() == pytest.approx(1.0) and plane[5, 6] / plane[5, 5] == pytest.approx(
        np.exp(-0.5), rel=1e-3
    )
    assert grid(None, {"a": values}, smooth=1.5, title="Maps")._suptitle.get_text().split() == (
        ["Maps,", "maps", "smoothed,", "σ", "=", "1.5", "pixels"]
    )
    assert overlay(values[0], smooth=2).axes[0].get_title() == "maps smoothed, σ = 2 pixels"


def test_predictions_with_probabilities_are_always_shown():
    rows = [Prediction("cat", 0.414), Prediction("dog", 0.999), Prediction("cat", 0.5)]
    fig = grid(X, MAPS, labels=["cat", "cat", "cat"], predictions={"image": rows})
    assert [ax.get_xlabel() for ax in fig.axes[:9:3]] == ["✓ cat, 41 %", "✗ dog, 100 %", "✓ cat, 50 %"]
    assert len({ax.xaxis.label.get_color() for ax in fig.axes[:9:3]}) == 2
    unlabelled = grid(X, MAPS, predictions={"image": rows})
    assert unlabelled.axes[0].get_xlabel() == "cat, 41 %"
    _assert_nothing_cropped(fig)


@pytest.mark.long
def test_two_hundred_panels_are_laid_out_at_once(tmp_path):
    values = np.random.default_rng(0).normal(size=(40, 1, 8, 8))
    started = time.process_time()
    save(grid(values.clip(0, 1), dict.fromkeys("abcd", values), labels=range(40)), tmp_path / "many.png")
    assert time.process_time() - started < 6  # 2 seconds here; the layout engine took 11


@pytest.mark.long
@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_saved_figures_do_not_depend_on_the_callers_settings(tmp_path, kind):
    path = tmp_path / f"maps.{kind}"
    plain = save(grid(X, MAPS, title="A title"), path).read_bytes()
    settings = {
        "savefig.bbox": "tight", "savefig.facecolor": "black", "savefig.dpi": 37, "figure.dpi": 50,
        "savefig.transparent": True, "font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path",
        "savefig.pad_inches": 3.0, "pdf.compression": 0, "text.color": "green",
    }  # fmt: skip
    with mpl.rc_context(settings):
        before = dict(mpl.rcParams)
        assert save(grid(X, MAPS, title="A title"), path).read_bytes() == plain
        fig = grid(X, MAPS, title="A title")
        fig.savefig(path, dpi=200)
        assert dict(mpl.rcParams) == before
    with mpl.rc_context({"savefig.bbox": "tight"}):
        assert fig._repr_png_() == grid(X, MAPS, title="A title")._repr_png_()


def test_one_sample_with_its_first_dimension_can_be_drawn_over_its_image() -> None:
    one, whole = (
        overlay(values, image).axes[0].images[0] for values, image in ((X[0], X[0]), (X[:1], X[:1]))
    )
    np.testing.assert_array_equal(one.get_array(), whole.get_array())
    with pytest.raises(InputError, match="shape"):
        overlay(X[:2], X[:2])


@pytest.mark.parametrize("share", [float("nan"), float("inf")])
def test_a_prediction_that_is_undefined_has_no_mark(share):
    rows = [Prediction("cat", share), Prediction("dog", share), Prediction("cat", 0.414)]
    fig = grid(X, {"standard": MAPS["standard"]}, labels=["cat"] * 3, predictions={"standard": rows})
    below = [ax.xaxis.label for ax in fig.axes if ax.get_xlabel()]
    assert [each.get_text() for each in below] == ["undefined", "undefined", "✓ cat, 41 %"]
    assert len({each.get_color() for each in below}) == 1


@pytest.mark.parametrize(
    ("low", "high"), [(0.5, 0.503), (0.99, 1.0), (12.0, 12.0004), (1000.0, 1003.0), (0.2, 0.9), (0.0, 3e-7)]
)
def test_the_ends_of_a_colour_bar_are_written_apart(low, high):
    values = torch.linspace(low, high, 100, dtype=torch.float64).reshape(1, 1, 10, 10)
    bar = grid(None, {"rise": values}, scale="shared", clip=100).axes[-1]
    ends = [float(label.get_text().replace("−", "-")) for label in bar.get_yticklabels()]
    np.testing.assert_allclose(ends, bar.get_ylim(), atol=0.5 * (high - low))
    assert ends[1] - ends[0] >= 0.5 * (high - low)


def test_the_ends_of_a_colour_bar_with_a_sign_have_two_digits():
    bar = grid(None, {"a": 0.01234 * (X - 0.5) / (X - 0.5).abs().max()}, scale="shared", signed=True).axes[-1]
    low, middle, high = (label.get_text() for label in bar.get_yticklabels())
    assert low == f"−{high}" and middle == "0" and len(high.lstrip("0.")) <= 2
