from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from saliency_lab._common.errors import InputError
from saliency_lab.data import ImageData, Split
from saliency_lab.data.images import stratified_order


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
    share=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_every_prefix_of_the_order_is_stratified(counts: list[int], seed: int, share: float) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    order = stratified_order(labels, seed, "test")
    assert sorted(order.tolist()) == list(range(len(labels)))
    n = round(share * len(labels))
    taken = torch.bincount(labels[order[:n]], minlength=len(counts)).double()
    shares = torch.tensor(counts).double() / len(labels)
    assert ((taken - n * shares).abs() <= (1 + len(counts) * shares) / 2 + 1e-9).all()


def test_a_sample_is_in_range_nested_repeatable_and_holds_the_right_labels(digits: ImageData) -> None:
    large, small = digits.test.sample(50, seed=3), digits.test.sample(20, seed=3)
    x, y = small
    assert x.shape == (20, 1, 28, 28)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert x.min() >= 0
    assert x.max() <= 1
    assert torch.bincount(y).tolist() == [2] * 10
    assert torch.equal(large.x[:20], x)
    assert not torch.equal(digits.test.sample(20, seed=4).x, x)
    every_x, every_y = digits.test.all()
    for image, label in zip(x, y, strict=True):
        row = int((every_x == image).flatten(1).all(1).nonzero()[0])
        assert every_y[row] == label


def test_global_generators_are_not_touched(digits: ImageData) -> None:
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    digits.test.sample(5)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def test_too_many_names_both_numbers(digits: ImageData) -> None:
    with pytest.raises(InputError, match=r"1 … 359.*not 400"):
        digits.test.sample(400)


def test_what_a_split_hands_out_is_a_copy(digits: ImageData) -> None:
    before = digits.test.images.clone()
    digits.test.batch(slice(0, 4)).x.zero_()
    split = Split(torch.rand(4, 1, 2, 2), torch.arange(4))
    kept = split.images.clone()
    split.all().x.zero_()
    assert torch.equal(digits.test.images, before)
    assert torch.equal(split.images, kept)


def test_a_split_is_a_torch_dataset(digits: ImageData) -> None:
    x, y = next(iter(DataLoader(digits.test, batch_size=5)))
    assert torch.equal(x, digits.test.batch(slice(0, 5)).x)
    assert torch.equal(y, digits.test.labels[:5])
    assert len(list(digits.val)) == len(digits.val)


class _Pairs:
    """A user's data set, of whatever images and labels."""

    def __init__(self, images: Sequence[Any], labels: Sequence[Any]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.labels[index]


class _Pictures(_Pairs):
    """A user's data set of PIL images."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), self.labels[index]


def test_pil_images_keep_their_pixels_and_channel_order() -> None:
    draws = np.random.default_rng(0)
    arrays = [draws.integers(0, 256, (4, 6, 3), dtype=np.uint8) for _ in range(10)]
    data = ImageData.from_datasets(_Pictures(arrays, [0, 1] * 5), _Pictures(arrays, [0, 1] * 5), name="mine")
    assert data.input_shape == (3, 4, 6)
    assert torch.equal(data.test.images[7], torch.from_numpy(arrays[7].transpose(2, 0, 1).copy()))
    assert "mine" in data._repr_html_()


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("P", 3), ("RGBA", 3), ("CMYK", 3), ("RGB", 3), ("1", 1), ("L", 1), ("I;16", 1)],
)
def test_pil_images_of_any_mode_are_grey_or_rgb(mode: str, channels: int) -> None:
    if mode == "I;16":
        picture, pixel = Image.fromarray(np.full((4, 6), 32896, np.uint16)), (128,)  # 128 · 257
    else:
        picture = Image.new("RGB", (6, 4), (255, 0, 0) if channels == 3 else (255, 255, 255)).convert(mode)
        pixel = (255, 0, 0) if channels == 3 else (255,)
    assert picture.mode == mode
    pairs = _Pairs([picture] * 10, [0, 1] * 5)
    images = ImageData.from_datasets(pairs, pairs).test.images
    assert images.shape == (10, channels, 4, 6)
    assert tuple(images[0, :, 3, 5].tolist()) == pixel


def test_pil_images_without_a_range_and_channels_last_are_refused() -> None:
    deep = _Pairs([Image.fromarray(np.zeros((4, 6), np.int32))] * 4, [0, 1] * 2)
    with pytest.raises(InputError, match="custom, train: image 0 has pixels of 32 bits"):
        ImageData.from_datasets(deep, deep)
    for size in (1, 3, 4):
        last = _Pairs(np.zeros((10, 8, 8, size), np.uint8), [0, 1] * 5)
        with pytest.raises(InputError, match=r"channels last.*transpose\(2, 0, 1\)"):
            ImageData.from_datasets(last, last, name="mine")
    first = _Pairs(np.zeros((10, 2, 8, 8), np.float32), [0, 1] * 5)
    assert ImageData.from_datasets(first, first).input_shape == (2, 8, 8)


@pytest.mark.parametrize("label", ["cat", "1", None, 0.5, float("inf"), float("nan"), torch.eye(2)[0]])
def test_a_label_that_is_no_whole_number_is_named(label: Any) -> None:
    pairs = _Pairs(np.zeros((4, 1, 2, 2), np.uint8), [0, 1, label, 1])
    with pytest.raises(InputError, match="mine, train: the label of item 2 must be a whole number"):
        ImageData.from_datasets(pairs, pairs, name="mine")


@pytest.mark.parametrize(
    "kind", [int, float, bool, np.int64, np.uint8, torch.tensor, lambda k: np.array([k])]
)
def test_whole_labels_of_any_kind_are_taken(kind: Callable[[int], Any]) -> None:
    pairs = _Pairs(np.zeros((20, 1, 2, 2), np.uint8), [kind(k) for k in [0, 1] * 10])
    assert ImageData.from_datasets(pairs, pairs).test.labels.tolist() == [0, 1] * 10


def test_an_error_of_the_users_own_data_set_is_shown_as_it_is() -> None:
    class Broken(_Pairs):
        def __getitem__(self, index: int) -> tuple[Any, Any]:
            raise ValueError("my transform")

    with pytest.raises(ValueError, match="my transform"):
        ImageData.from_datasets(Broken([], [0]), Broken([], [0]))


def test_tensors_stay_what_they_are_and_a_given_validation_set_is_used() -> None:
    images = torch.rand(20, 3, 4, 4)
    pairs = TensorDataset(images, torch.arange(20) % 4)
    data = ImageData.from_datasets(pairs, pairs, pairs, classes=tuple("abcd"))
    assert torch.equal(data.train.all().x, images)
    assert len(data.val) == 20
    assert data.classes == ("a", "b", "c", "d")
    data = ImageData.from_datasets(pairs, pairs, pairs, classes=["a", "b", "a", "d"])
    assert data.classes == ("a (0)", "b", "a (2)", "d")


def test_a_loader_is_read_like_its_data_set_and_what_is_neither_is_named() -> None:
    pairs = TensorDataset(torch.rand(20, 1, 4, 4), torch.arange(20) % 2)
    loaded = ImageData.from_datasets(DataLoader(pairs, batch_size=3), pairs)
    assert loaded.fingerprint == ImageData.from_datasets(pairs, pairs).fingerprint
    with pytest.raises(InputError, match="custom, test: the data set is empty"):
        ImageData.from_datasets(pairs, iter([]))
    with pytest.raises(InputError, match="be iterable, which int is not"):
        ImageData.from_datasets(pairs, 3)
    with pytest.raises(InputError, match="custom, train: items must be pairs"):
        ImageData.from_datasets(TensorDataset(torch.rand(20, 1, 4, 4)), pairs)


@pytest.mark.parametrize("load", [lambda pairs: pairs, lambda pairs: DataLoader(pairs, batch_size=3)])
def test_labels_are_read_the_same_from_a_loader_and_a_data_set(load) -> None:
    x = torch.rand(8, 1, 4, 4)
    column = TensorDataset(x, torch.arange(8)[:, None] % 2)  # as MedMNIST has them
    assert ImageData.from_datasets(load(column), column).test.labels.tolist() == [0, 1] * 4
    shares = TensorDataset(x, 0.9 + torch.arange(8) % 2)
    with pytest.raises(InputError, match="the label of item 0 must be a whole number"):
        ImageData.from_datasets(load(column), load(shares))


def test_the_fingerprint_is_of_the_content() -> None:
    images, labels = torch.rand(20, 1, 4, 4), torch.arange(20) % 2

    def made(images: torch.Tensor, labels: torch.Tensor) -> str:
        pairs = TensorDataset(images, labels)
        return ImageData.from_datasets(pairs, pairs).fingerprint

    changed = images.clone()
    changed[3, 0, 0, 0] += 0.001 * (0.5 - changed[3, 0, 0, 0]).sign()
    assert made(images, labels) == made(images.clone(), labels.clone())
    assert made(images, labels) != made(changed, labels)
    assert made(images, labels) != made(images, 1 - labels)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(4, 1, 2, 2) * 2, torch.arange(4) % 2, r"must lie in \[0, 1\]"),
        (torch.rand(4, 1, 2, 2), torch.tensor([0, 1, -1, 1]), "label 2 is -1"),
        (torch.rand(4, 1, 2, 2), torch.tensor([0, 2, 0, 2]), "class '1' has no training images"),
        (torch.zeros(4, 1, 2, 2, dtype=torch.int32), torch.arange(4) % 2, r"uint8 or floating point.*int32"),
    ],
)
def test_bad_data_sets_are_named(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    pairs = TensorDataset(images, labels)
    with pytest.raises(InputError, match=message):
        ImageData.from_datasets(pairs, pairs, pairs)


def test_a_class_of_which_the_validation_split_takes_all_images_is_named() -> None:
    images, labels = np.zeros((20, 4, 4), np.uint8), [0] * 19 + [1]
    pictures = _Pictures([*images], labels)
    named = "class '1' has 1 image for training, and the validation split takes all of them"
    for seed in range(40):  # until the draw takes the last one
        try:
            ImageData.from_datasets(pictures, pictures, val_fraction=0.5, seed=seed)
        except InputError as error:
            assert named in str(error)
            return
    raise AssertionError("no draw took it")


def test_images_of_two_sizes_are_named() -> None:
    arrays = [np.zeros((4, 4), np.uint8), np.zeros((5, 4), np.uint8)]
    with pytest.raises(InputError, match=r"image 1 has the shape \(1, 5, 4\), image 0"):
        ImageData.from_datasets(_Pictures(arrays, [0, 1]), _Pictures(arrays, [0, 1]))


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_the_validation_fraction_is_a_fraction(fraction: float) -> None:
    pairs = TensorDataset(torch.rand(4, 1, 2, 2), torch.arange(4) % 2)
    with pytest.raises(InputError, match="val_fraction"):
        ImageData.from_datasets(pairs, pairs, val_fraction=fraction)
