from __future__ import annotations

import os
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import saliency_lab as sl
from saliency_lab._common.errors import DataNotFoundError, InputError, UnknownNameError
from saliency_lab.data import ImageData, data_root

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _idx(array: np.ndarray) -> bytes:
    """The IDX format as its authors describe it: two zero bytes, type, dimensions, sizes, values."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def tiny_mnist(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    draws = np.random.default_rng(0)
    arrays = []
    for count in (60, 20):
        arrays += [
            draws.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            (np.arange(count) % 10).astype(np.uint8),
        ]
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, array in zip(NAMES, arrays, strict=True):
        (raw / name).write_bytes(_idx(array))
    return tmp_path, arrays


def test_digits_are_scikit_learns_and_their_test_part_never_moves(digits: ImageData) -> None:
    other = sl.load_dataset("digits", seed=1)
    assert torch.equal(digits.test.images, other.test.images)
    assert not torch.equal(digits.val.images, other.val.images)
    assert len(digits.train) + len(digits.val) + len(digits.test) == 1797
    _, labels = load_digits(return_X_y=True)
    every = torch.cat([digits.train.labels, digits.val.labels, digits.test.labels])
    assert torch.bincount(every).tolist() == np.bincount(labels).tolist()
    # a bilinear up-sampling by 3.5 keeps the mean brightness
    mean = torch.cat([s.all().x.flatten(1).mean(1) for s in (digits.train, digits.val, digits.test)]).mean()
    assert abs(mean.item() - load_digits().data.mean() / 16) < 0.01


def test_no_image_is_in_two_splits(digits: ImageData) -> None:
    keys = [{image.numpy().tobytes() for image in s.images} for s in (digits.train, digits.val, digits.test)]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]
    assert not keys[1] & keys[2]


def test_mnist_files_are_read_as_they_are(tiny_mnist: tuple[Path, list[np.ndarray]]) -> None:
    root, arrays = tiny_mnist
    data = sl.load_dataset("mnist", root)
    assert torch.equal(data.test.images[:, 0], torch.from_numpy(arrays[2]))
    assert torch.equal(data.test.labels, torch.from_numpy(arrays[3]).long())
    assert len(data.val) == 6
    assert data.classes == tuple("0123456789")


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_idx_file_is_named(tiny_mnist: tuple[Path, list[np.ndarray]], name: str) -> None:
    root, _ = tiny_mnist
    path = root / "MNIST" / "raw" / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataNotFoundError, match=f"{name}' holds .* where its header says") as caught:
        sl.load_dataset("mnist", root)
    assert "download=True" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_an_idx_file_without_a_header_is_named(tiny_mnist: tuple[Path, list[np.ndarray]], size: int) -> None:
    root, _ = tiny_mnist
    path = root / "MNIST" / "raw" / NAMES[0]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataNotFoundError, match=NAMES[0]):
        sl.load_dataset("mnist", root)


def test_a_missing_idx_file_is_named(tiny_mnist: tuple[Path, list[np.ndarray]]) -> None:
    root, _ = tiny_mnist
    (root / "MNIST" / "raw" / NAMES[3]).unlink()
    with pytest.raises(DataNotFoundError, match=f"{NAMES[3]}' is missing"):
        sl.load_dataset("mnist", root)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_a_missing_folder_says_where_and_how(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=str(tmp_path)) as caught:
        sl.load_dataset(name, tmp_path)
    assert "download=True" in str(caught.value)
    assert "SALIENCY_LAB_DATA" in str(caught.value)


def test_a_damaged_cifar_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"not a pickle")
    with pytest.raises(DataNotFoundError, match="incomplete or damaged"):
        sl.load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_what_cannot_be_fetched_says_why_and_where_it_belongs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(
        DataNotFoundError, match=r"could not be fetched: .*Name or service not known"
    ) as caught:
        sl.load_dataset(name, tmp_path, download=True)
    message = str(caught.value)
    assert "\n" not in message
    assert f"to '{tmp_path}" in message and "by hand" in message
    assert sl.list_datasets(tmp_path).loc[name, "found"] == ""
    assert "damaged" not in message and "download=True" not in message


def test_damaged_files_are_not_called_unfetched(tiny_mnist: tuple[Path, list[np.ndarray]]) -> None:
    root, _ = tiny_mnist
    path = root / "MNIST" / "raw" / NAMES[0]
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataNotFoundError, match=r"where its header says .* Delete that folder"):
        sl.load_dataset("mnist", root, download=True)


def test_damage_that_torchvision_misses_is_named(tiny_mnist: tuple[Path, list[np.ndarray]]) -> None:
    """A type that IDX has not, in a file of the right length: a bare AssertionError."""
    root, _ = tiny_mnist
    path = root / "MNIST" / "raw" / NAMES[1]
    path.write_bytes(b"\0\0\7" + path.read_bytes()[3:])
    with pytest.raises(DataNotFoundError, match=r"damaged: \w*Error\. Delete that folder"):
        sl.load_dataset("mnist", root)


def test_the_root_is_argument_then_variable_then_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALIENCY_LAB_DATA", "/somewhere")
    assert data_root("here") == Path("here")
    assert data_root() == Path("/somewhere")
    monkeypatch.delenv("SALIENCY_LAB_DATA")
    assert data_root() == Path("data")


def test_unknown_names_and_misplaced_sizes() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'fashion_mnist'"):
        sl.load_dataset("fashion-mnist")
    with pytest.raises(InputError, match="image_size goes with 'image_folder'"):
        sl.load_dataset("digits", image_size=32)


def test_the_list_says_what_is_there(tiny_mnist: tuple[Path, list[np.ndarray]]) -> None:
    table = sl.list_datasets(tiny_mnist[0])
    assert table.loc["digits", "found"] == "built in"
    assert table.loc["mnist", "found"] == str(tiny_mnist[0] / "MNIST")
    assert table.loc["cifar10", "found"] == ""


@pytest.mark.skipif(
    not (Path(os.environ.get("SALIENCY_LAB_DATA", "-")) / "MNIST").is_dir(),
    reason="needs MNIST in $SALIENCY_LAB_DATA",
)
def test_real_mnist() -> None:
    data = sl.load_dataset("mnist")
    assert (len(data.train), len(data.val), len(data.test)) == (54000, 6000, 10000)
    assert torch.bincount(data.test.labels).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
