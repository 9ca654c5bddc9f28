"""Photographs of every kind become images for a model."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transform

import saliency_lab as sl
from saliency_lab._common.cores import map_in_order
from saliency_lab._common.errors import DataNotFoundError, InputError, UnknownNameError
from saliency_lab.data import loading

RED = (255, 0, 0)
EXIF_ORIENTATION = 0x0112


def _net(shape: tuple[int, int, int] = (3, 8, 8), **more: Any) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 2))
    net.card = sl.ModelCard(input_shape=shape, num_classes=2, classes=("cat", "dog"), **more)
    return net


def _picture(width: int = 12, height: int = 8, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr", "HSV"])
def test_colours_of_any_mode_become_rgb(mode: str, tmp_path: Path) -> None:
    suffix = {"CMYK": "tif", "YCbCr": "tif", "HSV": None}.get(mode, "png")
    picture = Image.new("RGB", (4, 4), RED).convert(mode)
    given = picture
    if suffix is not None:
        given = tmp_path / f"a.{suffix}"
        picture.save(given)
    x = sl.load_images([given]).x
    assert x.shape == (1, 3, 4, 4)
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.0]), atol=0.01, rtol=0)


@pytest.mark.parametrize("ending", ["pgm", "png", "tif"])
def test_grey_of_16_bits_is_scaled_in_every_format(ending: str, tmp_path: Path) -> None:
    """Pillow reads a PGM file of 16 bits into 32."""
    levels = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a.{ending}")
    x = sl.load_images(tmp_path / f"a.{ending}", model=_net((1, 8, 8))).x
    torch.testing.assert_close(x[0, 0], torch.tensor(levels / 65535).float(), atol=1 / 255, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_every_precision_are_read(dtype: torch.dtype) -> None:
    x = torch.rand(2, 3, 8, 8).to(dtype)
    assert torch.equal(sl.load_images(x).x, x.float())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16"])
def test_grey_becomes_rgb_or_stays_grey_as_the_model_takes_it(mode: str, tmp_path: Path) -> None:
    grey = np.full((8, 8), 255 if mode == "1" else 128, np.uint8)
    if mode == "I;16":
        Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "a.png")
    else:
        Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
    level = grey[0, 0] / 255
    assert torch.allclose(sl.load_images(tmp_path).x, torch.full((1, 3, 8, 8), level))
    assert torch.allclose(sl.load_images(tmp_path, model=_net((1, 8, 8))).x, torch.full((1, 1, 8, 8), level))


def test_a_palette_with_transparency_and_colour_for_a_grey_model(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (4, 4), (*RED, 0)).convert("P")
    picture.save(tmp_path / "a.png", transparency=b"\x00" * 256)
    assert torch.equal(sl.load_images(tmp_path).x[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    grey = sl.load_images(np.full((8, 8, 3), RED, np.uint8), model=_net((1, 8, 8))).x
    in_floats = sl.load_images(np.full((8, 8, 3), RED, np.float32) / 255, model=_net((1, 8, 8))).x
    assert torch.allclose(grey, in_floats, atol=1 / 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    upright = _picture()
    stored = {  # how a camera stores it, as the EXIF standard names the eight cases
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert torch.equal(sl.load_images(tmp_path).x, sl.load_images(upright).x)


def test_broken_exif_data_do_not_matter(tmp_path: Path) -> None:
    _picture().save(tmp_path / "a.jpg", exif=b"Exif\x00\x00broken")
    assert sl.load_images(tmp_path).x.shape == (1, 3, 8, 12)


def test_arrays_of_any_layout_are_the_same_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    x = sl.load_images(pixels).x
    assert torch.equal(x[0], torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    for same in (
        pixels.transpose(2, 0, 1),
        torch.from_numpy(pixels).permute(2, 0, 1),
        (pixels / 255).astype(np.float32),
        pixels.astype(np.uint16) * 257,
        np.dstack([pixels, np.zeros((5, 7), np.uint8)]),
        [Image.fromarray(pixels)],
        pixels[None],
    ):
        torch.testing.assert_close(sl.load_images(same).x, x)
    assert torch.equal(sl.load_images(np.eye(5) > 0).x[0, 0], torch.eye(5))


def test_the_card_decides_on_size_crop_and_interpolation() -> None:
    picture = _picture(40, 30)
    model = _net((3, 16, 16), resize=20, interpolation="bicubic")
    resized = transform.resize(picture, 20, interpolation=InterpolationMode.BICUBIC)
    expected = transform.pil_to_tensor(transform.center_crop(resized, 16)) / 255
    assert torch.equal(sl.load_images(picture, model=model).x[0], expected)
    stretched = sl.load_images(picture, model=_net((3, 16, 8), resize=(16, 8))).x[0]
    assert torch.equal(
        stretched, transform.pil_to_tensor(picture.resize((8, 16), Image.Resampling.BILINEAR)) / 255
    )
    assert sl.load_images(picture, model=model, size=(10, 20)).x.shape == (1, 3, 10, 20)


@pytest.mark.parametrize(("width", "height"), [(40, 30), (30, 40), (7, 50), (1, 1)])
def test_a_size_covers_the_image_without_a_border(width: int, height: int) -> None:
    white = Image.new("RGB", (width, height), (255, 255, 255))
    for size in (16, (16, 9), (9, 16)):
        x = sl.load_images(white, size=size).x
        assert x.shape[2:] == ((size, size) if isinstance(size, int) else size)
        assert x.min() == 1.0
    floats = torch.ones(3, height, width)
    assert torch.allclose(sl.load_images(floats, size=16).x, torch.ones(1, 3, 16, 16))


def test_a_folder_is_read_by_name_with_its_names_and_says_what_it_skips(tmp_path: Path) -> None:
    for index, name in enumerate(("b.JPG", "a.png", "c.jfif", "d.webp")):
        _picture(seed=index).save(tmp_path / name, format={"c.jfif": "JPEG"}.get(name))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "more").mkdir()
    with pytest.warns(UserWarning, match=r"2 entries of '.*' were skipped: 'more/', 'notes.txt'"):
        batch = sl.load_images(tmp_path, labels=["cat", 1, 0, "dog"], model=_net())
    assert batch.names == ("a.png", "b.JPG", "c.jfif", "d.webp")
    assert batch.y.tolist() == [0, 1, 0, 1]
    x, y = batch
    assert torch.equal(batch[[2, 0]].x, x[[2, 0]]) and batch[-1].names == ("d.webp",)
    assert torch.equal(batch[1:3].y, y[1:3])
    assert "a.png, b.JPG, c.jfif and 1 more" in repr(batch) and "d.webp" in batch._repr_html_()
    again = sl.load_images([tmp_path / name for name in batch.names], model=_net())
    assert torch.equal(again.x, x) and again.names == batch.names


def test_images_are_explained_without_a_training_set_or_labels(tmp_path: Path) -> None:
    _picture().save(tmp_path / "a.png")
    model = _net()
    batch = sl.load_images(tmp_path, model=model)
    maps = sl.attribute(model, batch, target="prediction")
    assert len(sl.evaluate(model, batch, None, maps, "sparseness")) == 1
    assert maps.class_names[0] in ("cat", "dog")
    figure = maps.show(batch)
    text = [label.get_text() for ax in figure.axes for label in (ax.yaxis.label,)]
    assert any(
        maps.class_names[0] in each and f"{100 * maps.probabilities[0]:.0f} %" in each for each in text
    )


@pytest.mark.parametrize(
    ("given", "more", "error", "message"),
    [
        ("nowhere/a.png", {}, DataNotFoundError, r"there is no file or folder 'nowhere/a\.png'"),
        ([], {}, InputError, "there are no images to load"),
        ([3], {}, InputError, "image 0 must be a file's path, a PIL image, or an array"),
        ([None], {}, InputError, "image 0 must be .* not NoneType"),
        (np.zeros((5, 5, 2)), {}, InputError, r"not float64 \(5, 5, 2\)"),
        (np.zeros((4, 4), np.int64), {}, InputError, r"not int64 \(4, 4\)"),
        (np.full((4, 4), 200.0), {}, InputError, "divide by 255"),
        (np.full((4, 4), np.nan), {}, InputError, r"must lie in \[0, 1\]"),
        (
            [np.zeros((4, 4)), np.zeros((5, 4))],
            {},
            InputError,
            r"image 1 has the shape .* pass model=… or size=",
        ),
        (np.zeros((4, 4)), {"size": 0}, InputError, "size must be one positive number"),
        (np.zeros((4, 4)), {"size": (3, "4")}, InputError, "size must be one positive number"),
        (np.zeros((4, 4)), {"size": 10**6}, InputError, "need 12,000 GB of memory.*SALIENCY_LAB_MAX_GB"),
        (np.zeros((4, 4)), {"model": nn.Linear(2, 2)}, InputError, r"no card .* saliency_lab\.wrap"),
        (np.zeros((4, 4)), {"labels": [0, 1]}, InputError, r"labels must have the shape \(1,\)"),
        (np.zeros((4, 4)), {"labels": ["cat"]}, InputError, "model=… whose card has class names"),
        (np.zeros((4, 4)), {"labels": ["cta"], "model": _net()}, UnknownNameError, "did you mean 'cat'"),
        (np.zeros((4, 4)), {"labels": [2], "model": _net()}, InputError, "labels must be in 0 … 1"),
    ],
)
def test_wrong_input_is_named(given: Any, more: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sl.load_images(given, **more)


def test_a_folder_without_images_names_one_inside(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    with pytest.raises(DataNotFoundError, match=r"holds no images; name one of the folders inside, .*cats'"):
        sl.load_images(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX's")
def test_pipes_devices_and_loops_are_refused_before_they_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    for name, message in (
        ("pipe", "is a named pipe"),
        ("zero", "is a device, not a regular file"),
        ("loop", "cannot be read"),
        ("gone", "cannot be read"),
    ):
        with pytest.raises((InputError, DataNotFoundError), match=rf"{name}\.png' {message}"):
            sl.load_images([tmp_path / f"{name}.png"])
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(InputError, match="not a regular file"):
            sl.load_images(path)


def test_a_large_file_or_picture_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(2 * 10**9)
    with pytest.raises(InputError, match=r"sparse\.png' takes 2 GB, more than the 0\.5 GB"):
        sl.load_images([tmp_path / "sparse.png"])
    _picture(100, 100).save(tmp_path / "wide.png")
    monkeypatch.setenv("SALIENCY_LAB_MAX_GB", str(32 * 25_000 / 1e9))
    with pytest.raises(InputError, match=r"wide\.png' takes|wide\.png', decoded, takes"):
        sl.load_images([tmp_path / "wide.png"])
    monkeypatch.setenv("SALIENCY_LAB_MAX_GB", "1")
    assert len(sl.load_images([tmp_path / "wide.png"])) == 1
    for wrong in ("much", "-1", "inf"):
        monkeypatch.setenv("SALIENCY_LAB_MAX_GB", wrong)
        with pytest.raises(InputError, match=f"must be a positive number, not '{wrong}'"):
            sl.load_images([tmp_path / "wide.png"])


def test_messages_name_the_file_and_no_buffer(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    for name in ("text.png", "cut.jpg"):
        with pytest.raises(DataNotFoundError, match=rf"{name}' is damaged") as caught:
            sl.load_images([tmp_path / name])
        assert "BytesIO" not in str(caught.value)


def test_the_photographs_are_test_images_with_the_classes_of_imagenet() -> None:
    data = sl.load_dataset("photos")
    assert len(data.classes) == 1000 and len(data.train) == len(data.val) == 0
    x, y = data.test.sample(len(data.test))
    assert x.shape[1:] == data.input_shape == (3, 224, 224)
    assert {data.classes[k] for k in y} >= {"Egyptian cat", "espresso", "missile"}
    assert "test images" in data._repr_html_() and "photos" in sl.list_datasets().index
    with pytest.raises(InputError, match="'photos' has no training images"):
        sl.train("cifar10/standard", data)
    with pytest.raises(InputError, match="image_size goes with 'image_folder'"):
        sl.load_dataset("photos", image_size=32)


def test_files_are_in_order_and_the_first_damaged_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "usable_cores", lambda: 3)
    for index in range(10):
        Image.new("RGB", (4, 4), (20 * index, 0, 0)).save(tmp_path / f"{index}.png")
    assert (sl.load_images(tmp_path).x[:, 0, 0, 0] * 255).round().tolist() == [20.0 * i for i in range(10)]
    for damaged in ("8", "5"):
        (tmp_path / f"{damaged}.png").write_bytes(b"no image")
        with pytest.raises(DataNotFoundError, match=rf"{damaged}\.png' is damaged"):
            sl.load_images(tmp_path)


def test_work_in_order_stops_at_an_error_and_when_nobody_wants_more() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise ValueError
        return item

    results = map_in_order(work, itertools.count(), threads=2, ahead=2)
    assert [next(results) for _ in range(2)] == [0, 1]
    results.close()
    assert max(begun) <= 4
    results = map_in_order(work, range(100), threads=2, ahead=2)
    with pytest.raises(ValueError):
        list(results)
    assert max(begun) <= 5
