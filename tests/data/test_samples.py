"""Every public function reads images from whatever form a user has them in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab._common.samples import read_sample
from saliency_lab.data import ImageBatch

X = (torch.arange(8 * 3 * 6 * 6).reshape(8, 3, 6, 6) * 37 % 256).to(torch.uint8)
Y = torch.arange(8) % 3


def _pictures() -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in X]


def _hugging_face(column: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {column: _pictures(), "label": Y.tolist()},
        features=datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(3)}),
    )


class _Streamed(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter((image.float() / 255, int(label)) for image, label in zip(X, Y, strict=True))


class _Dicts(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": X[index] / 255, "labels": int(Y[index])}


FORMS: dict[str, Callable[[], Any]] = {
    "pair": lambda: (X / 255, Y),
    "list": lambda: [X / 255, Y],
    "batch": lambda: ImageBatch(X / 255, Y, tuple("abcdefgh")),
    "tensor data set": lambda: TensorDataset(X / 255, Y),
    "8-bit data set": lambda: TensorDataset(X, Y),
    "data set of dicts": _Dicts,
    "streamed data set": _Streamed,
    "loader": lambda: DataLoader(TensorDataset(X / 255, Y), batch_size=3),
    "loader of dicts": lambda: DataLoader(_Dicts(), batch_size=3),
    "loader of a stream": lambda: DataLoader(_Streamed(), batch_size=3),
    "hugging face": lambda: _hugging_face("image"),
    "hugging face, tensors": lambda: _hugging_face("img").with_format("torch"),
    "hugging face, streamed": lambda: _hugging_face("img").to_iterable_dataset(),
}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()


@pytest.mark.parametrize("form", FORMS)
def test_images_and_labels_are_the_same_in_every_form(form: str) -> None:
    x, y, masks = read_sample(FORMS[form]())
    torch.testing.assert_close(x, X / 255)
    assert x.dtype == torch.float32
    assert torch.equal(torch.as_tensor(y), Y)
    assert masks is None


@pytest.mark.parametrize("form", ["pair", "batch", "tensor data set", "loader", "hugging face"])
def test_every_entry_point_takes_it(form: str, net: nn.Module) -> None:
    given, x = FORMS[form](), X / 255
    maps = sl.attribute(net, x, Y, "saliency")
    assert torch.equal(sl.attribute(net, given, method="saliency").values, maps.values)
    assert np.array_equal(
        sl.evaluate(net, given, None, maps, "sparseness"), sl.evaluate(net, x, Y, maps, "sparseness")
    )
    for run in (
        lambda *images: sl.attack(net, *images, eps=0.1, steps=2).robust,
        lambda *images: sl.robustness_curve(net, *images, eps=(0, 0.1), steps=2).robust,
        lambda *images: sl.steps_curve(net, *images, eps=0.1, steps=(0, 2)).robust,
        lambda *images: sl.minimal_epsilon(net, *images, method="fgsm"),
        lambda *images: sl.transfer_attack(net, net, *images, eps=0.1, steps=2).robust,
        lambda *images: sl.Study({"net": net}, images if len(images) > 1 else images[0]).y,
    ):
        assert torch.equal(run(given), run(x, Y))
    assert torch.equal(
        sl.attack_map(net, given, eps=0.1, steps=2).adversarial,
        sl.attack_map(net, x, eps=0.1, steps=2).adversarial,
    )
    few = given[:2] if isinstance(given, ImageBatch) else (x[:2], Y[:2])
    sl.sanity_check(net, few, methods=["saliency"])
    sl.audit(net, few, eps=0.1, steps=2)


def test_labels_that_are_given_replace_those_of_the_data(net: nn.Module) -> None:
    other = (Y + 1) % 3
    loader = DataLoader(TensorDataset(X / 255, Y), batch_size=4)
    assert torch.equal(sl.attribute(net, loader, other).classes, other)
    assert torch.equal(sl.attribute(net, loader, target="prediction").classes, net(X / 255).argmax(1))


def test_scores_without_labels_are_of_the_class_that_the_maps_explain(net: nn.Module) -> None:
    x = X / 255
    maps = sl.attribute(net, x, target="prediction")
    ours = sl.evaluate(net, x, None, maps, "pixel_flipping")
    assert np.array_equal(ours, sl.evaluate(net, x, maps.classes, maps, "pixel_flipping"))
    assert np.array_equal(ours, sl.evaluate(net, (x, Y), None, maps, "pixel_flipping"))
    with pytest.raises(InputError, match="labels are needed"):
        sl.evaluate(net, x, None, maps.values, "pixel_flipping")


def test_a_shuffling_loader_gives_one_order_and_leaves_the_generators_alone(net: nn.Module) -> None:
    loader = DataLoader(TensorDataset(X / 255, Y), batch_size=3, shuffle=True)
    before = torch.get_rng_state()
    maps = sl.attribute(net, loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(sl.evaluate(net, loader, None, maps, "sparseness")) == 8


def test_masks_are_read_for_a_study(net: nn.Module) -> None:
    masks = torch.zeros(8, 1, 6, 6)
    masks[:, :, :3] = 1
    pairs = TensorDataset(X / 255, Y, masks)
    for given in ((X / 255, Y, masks), pairs, DataLoader(pairs, batch_size=3)):
        assert torch.equal(sl.Study({"net": net}, given).sample.masks, masks.bool())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "photos/",
            "must be a torch tensor, not str; read files and PIL images with saliency_lab.load_images",
        ),
        (_pictures(), "not list; read files and PIL images with saliency_lab.load_images"),
        ({"train": 1}, r"not dict; choose one part of it, such as data\['test'\]"),
        (TensorDataset(X[:0] / 255, Y[:0]), "the data set is empty"),
        (DataLoader(TensorDataset(X[:0], Y[:0])), "the loader has no batches"),
        (TensorDataset(X, Y.float() / 2), "the label of item 1 must be a whole number"),
        (DataLoader(TensorDataset(X.flatten(1), Y)), r"images of batch 0 must be a tensor \(N, C, H, W\)"),
        (TensorDataset(X * 2.0, Y), r"images must lie in \[0, 1\].*saliency_lab\.wrap"),
        (
            datasets.Dataset.from_dict({"text": ["a"], "label": [0]}),
            "no column that can be the image among text, label",
        ),
    ],
)
def test_what_holds_no_images_is_named(given: Any, message: str, net: nn.Module) -> None:
    with pytest.raises(InputError, match=message):
        sl.attribute(net, given, method="saliency")


def test_images_without_labels_are_refused_where_labels_are_needed(net: nn.Module) -> None:
    for given in (X / 255, TensorDataset(X), DataLoader(TensorDataset(X), batch_size=2)):
        with pytest.raises(InputError, match="label"):
            sl.attack(net, given, eps=0.1)
        with pytest.raises(InputError, match="label"):
            sl.Study({"net": net}, given)
    assert len(sl.attribute(net, DataLoader(TensorDataset(X), batch_size=2), target="prediction")) == 8


def test_an_endless_or_huge_data_set_is_stopped(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(IterableDataset):
        def __iter__(self) -> Iterator[Tensor]:
            while True:
                yield torch.zeros(3, 6, 6)

    monkeypatch.setenv("SALIENCY_LAB_MAX_GB", "1e-5")
    large = TensorDataset(torch.zeros(1000, 3, 6, 6))
    for given in (Endless(), DataLoader(Endless(), batch_size=4), large, DataLoader(large, batch_size=4)):
        with pytest.raises(InputError, match=r"memory, more than the 1e-05 GB allowed.*SALIENCY_LAB_MAX_GB"):
            sl.attribute(net, given, target=0)
