"""Data sets whose evidence is located: mosaics and planted patterns."""

from __future__ import annotations

import pytest
import torch

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab.data import ImageData, LocatedSplit, Split, make_mosaics
from saliency_lab.data.planted import PlantedNet, true_map


@pytest.fixture(scope="module")
def mosaic() -> ImageData:
    return sl.load_dataset("mosaic")


def test_target_s_quadrant_holds_a_digit_of_the_label_and_the_others_hold_distractors(
    mosaic: ImageData, digits: ImageData
) -> None:
    assert mosaic.classes == ("0", "1", "2", "3", "4")
    known = {}
    for split in (digits.train, digits.val, digits.test):
        known |= {image.numpy().tobytes(): int(label) for image, label in zip(*vars_of(split), strict=True)}
    for image, label, mask in zip(mosaic.test.images, mosaic.test.labels, mosaic.test.masks, strict=True):
        for rows in (slice(0, 28), slice(28, 56)):
            for columns in (slice(0, 28), slice(28, 56)):
                digit = known[image[:, rows, columns].numpy().tobytes()]
                inside = mask[0, rows, columns]
                assert bool(inside.all()) == bool(inside.any()) == (digit == int(label)) == (digit < 5)


def vars_of(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    return split.images, split.labels


def test_splits_of_a_located_data_set_keep_their_masks(mosaic: ImageData) -> None:
    for split in (mosaic.train, mosaic.val, mosaic.test):
        assert isinstance(split, LocatedSplit)
        assert split.masks.shape == (len(split), 1, 56, 56)
        assert (split.masks.flatten(1).sum(1) == 28 * 28).all()


def test_located_draws_what_sample_draws(mosaic: ImageData) -> None:
    x, y = mosaic.test.sample(7, seed=3)
    located = mosaic.test.located(7, seed=3)
    assert torch.equal(located.x, x)
    assert torch.equal(located.y, y)
    with pytest.raises(InputError, match=r"n must be a whole number in 1 …"):
        mosaic.test.located(0)


def test_mosaics_of_any_data_set() -> None:
    images, labels = torch.rand(40, 3, 5, 7), torch.arange(40) % 4
    split = Split(images, labels)
    data = make_mosaics(ImageData("noise", split, split, split, ("a", "b", "c", "d")), seed=1)
    assert data.input_shape == (3, 10, 14)
    assert data.classes == ("a", "b")
    assert len(data.train) == 20
    few = Split(images, labels % 2)
    with pytest.raises(InputError, match="at least four classes"):
        make_mosaics(ImageData("noise", few, few, few, ("a", "b")))


def test_planted_net_reads_the_pattern_and_nothing_else() -> None:
    data = sl.load_dataset("planted")
    net = PlantedNet()
    x, y, masks = data.test.located(100)
    with torch.no_grad():
        logits = net(x)
        assert (logits.argmax(1) == y).all()
        assert torch.equal(net(torch.where(masks, x, 0.0)), logits)  # the background does not matter
        assert (net(torch.where(masks, 0.0, x)) == 0).all()  # and the pattern is all that does
    assert (masks.flatten(1).sum(1) == 32).all()
    assert torch.equal(true_map(x, y) != 0, masks)


def test_true_map_is_what_each_pixel_s_removal_takes_away() -> None:
    x, y = sl.load_dataset("planted").test.sample(2)
    net, truth = PlantedNet(), true_map(x, y)
    with torch.no_grad():
        full = net(x).gather(1, y[:, None])
        for pixel in range(0, 576, 7):
            gone = x.clone().flatten(1)
            gone[:, pixel] = 0
            drop = full - net(gone.reshape(x.shape)).gather(1, y[:, None])
            torch.testing.assert_close(drop[:, 0], truth.flatten(1)[:, pixel], atol=1e-5, rtol=0)
