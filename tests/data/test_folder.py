from __future__ import annotations

import os
import shutil
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import saliency_lab as sl
from saliency_lab._common.errors import DataNotFoundError, InputError
from saliency_lab.data import decoding, folder, images


def _write(root: Path, *, channels: int = 3, per_class: int = 6) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (root / part / label).mkdir(parents=True)
            for index in range(per_class):
                array = draws.integers(0, 256, (5, 7, channels), dtype=np.uint8).squeeze()
                arrays[f"{part}/{label}/{index}.png"] = array
                Image.fromarray(array).save(root / part / label / f"{index}.png")
    return arrays


def _zip(root: Path, target: Path, pattern: str = "*.png") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(root.rglob(pattern)):
            archive.write(path, path.relative_to(root).as_posix())
    return target


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    return tmp_path / "pets", _write(tmp_path / "pets")


@pytest.mark.parametrize("zipped", [False, True])
def test_pixels_and_labels_are_those_of_the_files(
    pictures: tuple[Path, dict[str, np.ndarray]], zipped: bool
) -> None:
    root, arrays = pictures
    data = sl.load_dataset("image_folder", _zip(root, root.with_suffix(".zip")) if zipped else root)
    assert data.classes == ("cat", "dog")
    assert data.input_shape == (3, 5, 7)
    expected = [arrays[f"test/{label}/{index}.png"] for label in data.classes for index in range(6)]
    assert np.array_equal(data.test.images.permute(0, 2, 3, 1).numpy(), np.stack(expected))
    assert data.test.labels.tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize("zipped", [False, True])
def test_a_validation_part_of_ones_own_is_the_validation_split(
    pictures: tuple[Path, dict[str, np.ndarray]], zipped: bool
) -> None:
    root, arrays = pictures
    given = _zip(root, root.with_suffix(".zip")) if zipped else root
    cut = sl.load_dataset("image_folder", given)
    assert len(cut.train) + len(cut.val) == 12
    for label, value in (("cat", 7), ("dog", 9)):
        (root / "val" / label).mkdir(parents=True)
        Image.fromarray(np.full((5, 7, 3), value, np.uint8)).save(root / "val" / label / "0.png")
    data = sl.load_dataset("image_folder", _zip(root, given) if zipped else root)
    assert data.val.images.flatten(1).unique(dim=1).tolist() == [[7], [9]]
    assert data.val.labels.tolist() == [0, 1]
    expected = [arrays[f"train/{label}/{index}.png"] for label in data.classes for index in range(6)]
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), np.stack(expected))
    assert torch.equal(data.test.images, cut.test.images)
    (root / "val" / "dog" / "0.png").unlink()
    (root / "val" / "dog").rmdir()
    with pytest.raises(InputError, match=r"class 'dog' .* has no images in val"):
        sl.load_dataset("image_folder", _zip(root, given) if zipped else root)


def test_images_are_decoded_once(
    pictures: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = pictures
    first = sl.load_dataset("image_folder", root)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_decode_all", lambda *_: pytest.fail("decoded again"))
        assert sl.load_dataset("image_folder", root).fingerprint == first.fingerprint
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(root / "test" / "cat" / "0.png")
    changed = sl.load_dataset("image_folder", root)
    assert changed.test.images[0].max() == 0


def test_swapped_files_of_equal_size_and_time_are_noticed(tmp_path: Path) -> None:
    """Renaming keeps the size and the time of the last change, but not that of the last change of the file's
    status."""
    if os.name == "nt":
        pytest.skip("Windows keeps no time of the last change of a file's status")
    paths = []
    for part, count in (("train", 4), ("test", 1)):
        for label, value in (("dark", 0), ("light", 255)):
            (tmp_path / "pets" / part / label).mkdir(parents=True)
            paths += [tmp_path / "pets" / part / label / f"{index}.bmp" for index in range(count)]
            for path in paths[-count:]:
                Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)
                os.utime(path, (0, 0))
    first = sl.load_dataset("image_folder", tmp_path / "pets")
    *_, dark, light = paths
    dark.rename(tmp_path / "dark.bmp")
    light.rename(dark)
    (tmp_path / "dark.bmp").rename(light)
    swapped = sl.load_dataset("image_folder", tmp_path / "pets")
    assert first.test.images.flatten(1).amax(1).tolist() == [0, 255]
    assert swapped.test.images.flatten(1).amax(1).tolist() == [255, 0]
    assert swapped.fingerprint != first.fingerprint


def test_the_cache_keeps_one_array_of_a_root_and_size(
    pictures: tuple[Path, dict[str, np.ndarray]],
) -> None:
    root, _ = pictures
    for other in ("pets-8x6", "pets[12]"):  # neighbours whose names begin alike, or are patterns
        _write(root.parent / other)
        sl.load_dataset("image_folder", root.parent / other)
    sl.load_dataset("image_folder", _zip(root, root.with_suffix(".zip")))
    sl.load_dataset("image_folder", root, image_size=(8, 6))
    cache = root.parent / ".saliency_lab"
    neighbours = set(cache.iterdir())
    sl.load_dataset("image_folder", root)
    (first,) = set(cache.iterdir()) - neighbours
    for value in (0, 1):
        Image.fromarray(np.full((5, 7, 3), value, np.uint8)).save(root / "test" / "cat" / "7.png")
        assert sl.load_dataset("image_folder", root).test.images[6].max() == value
    (last,) = set(cache.iterdir()) - neighbours
    assert last != first


def test_what_a_killed_process_left_half_written_is_cleared(
    pictures: tuple[Path, dict[str, np.ndarray]],
) -> None:
    root, _ = pictures
    sl.load_dataset("image_folder", root)
    (kept,) = (root.parent / ".saliency_lab").iterdir()
    young, old = (kept.with_name(f".{kept.name}.{age}.safetensors") for age in ("young", "old"))
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    kept.unlink()
    sl.load_dataset("image_folder", root)
    assert set(kept.parent.iterdir()) == {kept, young}


def test_without_a_place_for_the_cache_the_images_are_read_all_the_same(
    pictures: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, arrays = pictures
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    root.parent.chmod(0o555)
    try:
        with pytest.warns(UserWarning, match="could not be kept in .*XDG_CACHE_HOME"):
            data = sl.load_dataset("image_folder", root)
    finally:
        root.parent.chmod(0o755)
    assert np.array_equal(data.test.images[0].permute(1, 2, 0).numpy(), arrays["test/cat/0.png"])


def test_a_user_without_a_home_reads_the_images_too(
    pictures: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    root, _ = pictures
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    root.parent.chmod(0o555)
    try:
        with pytest.warns(UserWarning) if os.geteuid() else nullcontext():  # root writes there all the same
            assert len(sl.load_dataset("image_folder", root).test) == 12
    finally:
        root.parent.chmod(0o755)


def test_a_cache_cut_short_is_decoded_again(pictures: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, _ = pictures
    first = sl.load_dataset("image_folder", root)
    (cache,) = (root.parent / ".saliency_lab").glob("pets-*.safetensors")
    cache.write_bytes(cache.read_bytes()[:100])
    assert sl.load_dataset("image_folder", root).fingerprint == first.fingerprint
    assert cache.stat().st_size > 100


def test_a_place_that_cannot_be_written_moves_the_cache(
    pictures: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = pictures
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root.parent.chmod(0o555)
    try:
        sl.load_dataset("image_folder", root)
    finally:
        root.parent.chmod(0o755)
    assert not (root.parent / ".saliency_lab").exists()
    assert len(list((tmp_path / "cache" / "saliency_lab").iterdir())) == 1


def test_grey_files_have_one_channel_and_one_coloured_file_makes_all_rgb(tmp_path: Path) -> None:
    arrays = _write(tmp_path / "grey", channels=1)
    data = sl.load_dataset("image_folder", tmp_path / "grey")
    assert data.input_shape == (1, 5, 7)
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(tmp_path / "grey" / "test" / "dog" / "5.png")
    data = sl.load_dataset("image_folder", tmp_path / "grey")
    grey = torch.from_numpy(arrays["test/cat/0.png"])
    assert torch.equal(data.test.images[0], grey.expand(3, 5, 7))


@pytest.mark.parametrize(("suffix", "dtype"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2")])
def test_grey_of_sixteen_bits_is_scaled(tmp_path: Path, suffix: str, dtype: str) -> None:
    _write(tmp_path / "deep", channels=1)
    ramp = np.linspace(0, 65535, 35).round().astype(np.uint16).reshape(5, 7)
    (tmp_path / "deep" / "test" / "cat" / "0.png").unlink()
    Image.fromarray(ramp.astype(dtype)).save(tmp_path / "deep" / "test" / "cat" / f"0.{suffix}")
    data = sl.load_dataset("image_folder", tmp_path / "deep")
    assert data.input_shape == (1, 5, 7)
    half = np.abs(data.test.images[0, 0].double().numpy() / 255 - ramp / 65535).max() * 255
    assert half <= 0.5


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_32_bits_are_refused_by_name(tmp_path: Path, dtype: type) -> None:
    _write(tmp_path / "deep", channels=1)
    Image.fromarray(np.zeros((5, 7), dtype)).save(tmp_path / "deep" / "train" / "dog" / "x.tif")
    with pytest.raises(InputError, match=r"train/dog/x.tif' .* has pixels of 32 bits"):
        sl.load_dataset("image_folder", tmp_path / "deep")


def test_another_size_is_an_error_that_names_the_file_unless_a_size_is_given(
    pictures: tuple[Path, dict[str, np.ndarray]],
) -> None:
    root, _ = pictures
    Image.fromarray(np.zeros((9, 7, 3), np.uint8)).save(root / "train" / "dog" / "3.png")
    with pytest.raises(InputError, match=r"train/dog/3.png' .* is 9×7, the first one 5×7.*image_size"):
        sl.load_dataset("image_folder", root)
    assert sl.load_dataset("image_folder", root, image_size=(8, 6)).input_shape == (3, 8, 6)
    for size in (0, "16", (8, "6"), (8, 6, 3)):
        with pytest.raises(InputError, match="image_size must be"):
            sl.load_dataset("image_folder", root, image_size=size)


def test_a_damaged_image_is_named(pictures: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, _ = pictures
    path = root / "train" / "cat" / "2.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataNotFoundError, match=r"train/cat/2.png' .* is damaged"):
        sl.load_dataset("image_folder", root)
    path.write_bytes(b"no image at all")
    with pytest.raises(DataNotFoundError, match=r"train/cat/2.png' .* is damaged"):
        sl.load_dataset("image_folder", root)


def test_an_image_that_pillow_refuses_is_named(
    pictures: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = pictures
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # twice that is taken for a bomb
    with pytest.raises(InputError, match=r"train/cat/0.png' .* has too many pixels .*MAX_IMAGE_PIXELS"):
        sl.load_dataset("image_folder", root)


def test_an_encrypted_zip_is_named(pictures: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, _ = pictures
    path = _zip(root, root.with_suffix(".zip"))
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = data.find(signature)
        while at != -1:
            data[at + flags] |= 1
            at = data.find(signature, at + 1)
    path.write_bytes(data)
    with pytest.raises(DataNotFoundError, match=r"train/cat/0.png' .* encrypted"):
        sl.load_dataset("image_folder", path)


@pytest.mark.parametrize("zipped", [False, True])
def test_hidden_files_and_folders_are_passed_over(
    pictures: tuple[Path, dict[str, np.ndarray]], zipped: bool
) -> None:
    root, _ = pictures
    before = sl.load_dataset("image_folder", root)
    (root / "train" / "cat" / "._0.png").write_bytes(b"\0\5\x16\7, as macOS writes it")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "train" / ".ipynb_checkpoints" / "0.png").write_bytes((root / "train/cat/0.png").read_bytes())
    given = _zip(root, root.with_suffix(".zip")) if zipped else root
    assert sl.load_dataset("image_folder", given).fingerprint == before.fingerprint


def test_a_folder_and_its_zip_are_the_same_data(pictures: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, _ = pictures
    for part in ("train", "test"):
        (root / part / "dog").rename(root / part / "cat-tail")  # "-" sorts before "/"
    unzipped = sl.load_dataset("image_folder", root)
    zipped = sl.load_dataset("image_folder", _zip(root, root.with_suffix(".zip")))
    assert zipped.fingerprint == unzipped.fingerprint


def test_the_list_finds_a_folder_and_its_zip(pictures: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, _ = pictures
    archive = _zip(root, root.with_suffix(".zip"))
    for given, found in ((root, root / "train"), (archive, archive), (root / "train", "")):
        assert sl.list_datasets(given).loc["image_folder", "found"] == str(found)


def test_empty_classes_and_wrong_layouts_are_named(
    pictures: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    root, _ = pictures
    (root / "train" / "eel").mkdir()
    with pytest.raises(InputError, match="class 'eel' is empty"):
        sl.load_dataset("image_folder", root)
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(root / "train" / "eel" / "0.png")
    with pytest.raises(InputError, match=r"class 'eel' .* has no images in test"):
        sl.load_dataset("image_folder", root)
    with pytest.raises(DataNotFoundError, match="holds no images under train/CLASS"):
        sl.load_dataset("image_folder", root / "train")
    with pytest.raises(DataNotFoundError, match="does not exist"):
        sl.load_dataset("image_folder", tmp_path / "nowhere")


def test_a_zip_cut_in_half_is_named(pictures: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, _ = pictures
    path = _zip(root, root.with_suffix(".zip"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataNotFoundError, match=r"pets.zip' is damaged or is no zip"):
        sl.load_dataset("image_folder", path)


def test_valid_and_validation_are_the_validation_split_and_jfif_is_jpeg(
    pictures: tuple[Path, dict[str, np.ndarray]],
) -> None:
    root, _ = pictures
    for name in ("valid", "validation"):
        shutil.rmtree(root / "val", ignore_errors=True)
        for label in ("cat", "dog"):
            (root / name / label).mkdir(parents=True)
            picture = Image.fromarray(np.full((5, 7, 3), 9, np.uint8))
            picture.save(root / name / label / "0.jfif", format="JPEG")
        for given in (root, _zip(root, root.with_suffix(".zip"), "*.*")):
            data = sl.load_dataset("image_folder", given)
            assert len(data.val) == 2 and data.val.images.unique().tolist() == [9]
        (root / name).rename(root / "val")
    (root / "valid").mkdir()
    shutil.copytree(root / "val" / "cat", root / "valid" / "cat")
    with pytest.raises(InputError, match="holds val/ and valid/, which are both the validation split"):
        sl.load_dataset("image_folder", root)


@pytest.mark.parametrize("zipped", [False, True])
def test_what_is_skipped_is_counted_and_named(
    pictures: tuple[Path, dict[str, np.ndarray]], zipped: bool
) -> None:
    root, _ = pictures
    before = sl.load_dataset("image_folder", root)
    (root / "train" / "cat" / "more").mkdir()
    for index in range(2):
        Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(root / "train" / "cat" / "more" / f"{index}.png")
    (root / "train" / "cat" / "notes.txt").write_text("about cats")
    (root / "test" / "readme.md").write_text("about all")
    given = _zip(root, root.with_suffix(".zip"), "*.*") if zipped else root
    with pytest.warns(
        UserWarning, match=r"3 entries of '.*' were skipped: .*not from folders inside"
    ) as caught:
        assert sl.load_dataset("image_folder", given).fingerprint == before.fingerprint
    message = str(caught[0].message)
    assert all(
        f"'{name}'" in message for name in ("train/cat/more/", "train/cat/notes.txt", "test/readme.md")
    )


@pytest.mark.parametrize("above", ["pets/", "./", "./pets/"])
def test_a_zip_with_one_folder_at_its_top_is_read(
    pictures: tuple[Path, dict[str, np.ndarray]], above: str
) -> None:
    root, _ = pictures
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.png")):
            info = zipfile.ZipInfo(f"{above}{file.relative_to(root).as_posix()}")  # `write` removes "./"
            archive.writestr(info, file.read_bytes())
        if above == "pets/":
            archive.writestr("__MACOSX/pets/train/cat/._0.png", b"as macOS writes it")
    assert (
        sl.load_dataset("image_folder", path).fingerprint == sl.load_dataset("image_folder", root).fingerprint
    )


def test_a_folder_one_level_too_high_names_the_right_one(
    pictures: tuple[Path, dict[str, np.ndarray]],
) -> None:
    root, _ = pictures
    with pytest.raises(DataNotFoundError, match=rf"there is one of this layout in '{root}'"):
        sl.load_dataset("image_folder", root.parent)


def test_the_exif_orientation_is_applied(pictures: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, arrays = pictures
    name = "test/cat/0.png"
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(arrays[name][::-1, ::-1]).save(root / name, exif=exif)
    data = sl.load_dataset("image_folder", root)
    assert np.array_equal(data.test.images[0].permute(1, 2, 0).numpy(), arrays[name])


def test_a_changed_bit_in_the_cache_is_noticed(pictures: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, _ = pictures
    first = sl.load_dataset("image_folder", root)
    (cache,) = (root.parent / ".saliency_lab").iterdir()
    content = bytearray(cache.read_bytes())
    content[-5] ^= 1
    cache.write_bytes(content)
    assert sl.load_dataset("image_folder", root).fingerprint == first.fingerprint


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX's")
@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "gone", "folder"])
def test_what_is_no_regular_file_is_refused_before_it_is_read(
    pictures: tuple[Path, dict[str, np.ndarray]], kind: str
) -> None:
    root, _ = pictures
    path = root / "train" / "cat" / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path, "gone": root / "nothing"}[kind])
    if kind == "folder":
        with pytest.warns(UserWarning, match=r"1 entry of .* was skipped: 'train/cat/a\.png/'"):
            sl.load_dataset("image_folder", root)
        return
    with pytest.raises((InputError, DataNotFoundError), match=r"the image 'train/cat/a\.png' of"):
        sl.load_dataset("image_folder", root)
    with pytest.raises(InputError, match="neither a folder nor a regular file"):
        sl.load_dataset("image_folder", "/dev/zero")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(
    pictures: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = pictures
    path = _zip(root, root.with_suffix(".zip"))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/cat/bomb.png", bytes(2 * 10**6))
    monkeypatch.setenv("SALIENCY_LAB_MAX_GB", "0.03")
    with pytest.raises(
        InputError, match=r"bomb\.png' of .* takes 0\.002 GB, more than .*SALIENCY_LAB_MAX_GB"
    ):
        sl.load_dataset("image_folder", path)


def test_a_size_that_does_not_fit_into_memory_is_refused(
    pictures: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = pictures
    with pytest.raises(InputError, match=r"24 images of .* need 72,000 GB of memory, more than the 16 GB"):
        sl.load_dataset("image_folder", root, image_size=10**6)
    monkeypatch.setenv("SALIENCY_LAB_MAX_GB", "1e-5")
    with pytest.raises(InputError, match="SALIENCY_LAB_MAX_GB"):
        sl.load_dataset("image_folder", root, image_size=100)


def test_an_interrupted_call_is_continued(
    pictures: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = pictures
    expected = sl.load_dataset("image_folder", root, image_size=(6, 4)).fingerprint
    (cache,) = (root.parent / ".saliency_lab").iterdir()
    content = cache.read_bytes()
    cache.unlink()
    monkeypatch.setattr(decoding, "_BLOCK", 5)
    monkeypatch.setattr(decoding, "_TOGETHER", 1)
    decoded: list[str] = []
    decode = decoding.Decoder.__call__

    def interrupted(self: decoding.Decoder, name: str) -> np.ndarray:
        decoded.append(name)
        if name == "train/cat/5.png":
            raise KeyboardInterrupt
        return decode(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(decoding.Decoder, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sl.load_dataset("image_folder", root, image_size=(6, 4))
    (partial,) = cache.parent.glob(".*.partial")
    done = (partial.stat().st_size - len(content) % (6 * 4 * 3)) // (6 * 4 * 3)
    assert not cache.exists() and done >= 15
    before = set(decoded)
    decoded.clear()
    monkeypatch.setattr(
        decoding.Decoder, "__call__", lambda self, name: decoded.append(name) or decode(self, name)
    )
    assert sl.load_dataset("image_folder", root, image_size=(6, 4)).fingerprint == expected
    again = before & set(decoded) - {"train/cat/0.png"}  # which tells the shape
    assert len(again) <= len(before) - done // 5 * 5 and not partial.exists()
    assert cache.read_bytes() == content


@pytest.mark.parametrize("together", [1, 3, 8])
def test_images_are_written_in_order_whatever_is_decoded_together(
    pictures: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    root, _ = pictures
    expected = sl.load_dataset("image_folder", root, image_size=(6, 4)).fingerprint
    (cache,) = (root.parent / ".saliency_lab").iterdir()
    content = cache.read_bytes()
    (header,) = np.frombuffer(content[:8], np.uint64) + 8
    monkeypatch.setattr(decoding, "_TOGETHER", together)
    monkeypatch.setattr(decoding, "_BLOCK", 5)
    images = (len(content) - int(header)) // (6 * 4 * 3)
    for done in (0, 4, 5, images - 1, images):
        cache.unlink()
        digest = content[: int(header)].split(b'"digest":"')[1][:32]
        begun = content[: int(header)].replace(digest, b"0" * 32) + content[int(header) :]
        partial = cache.with_name(f".{cache.name}.partial")
        partial.write_bytes(begun[: int(header) + done * 6 * 4 * 3 + 7])
        assert sl.load_dataset("image_folder", root, image_size=(6, 4)).fingerprint == expected
        assert cache.read_bytes() == content and not partial.exists()


def test_a_full_disk_leaves_the_images_in_memory(
    pictures: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, arrays = pictures

    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoding, "_flush", full)
    with pytest.warns(UserWarning, match="could not be kept in .*No space left"):
        data = sl.load_dataset("image_folder", root)
    assert np.array_equal(data.test.images[0].permute(1, 2, 0).numpy(), arrays["test/cat/0.png"])


def test_images_that_stay_in_their_file_are_the_same_data(
    pictures: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = pictures
    plain = sl.load_dataset("image_folder", root, image_size=8, val_fraction=0.5)
    monkeypatch.setattr(folder, "IN_MEMORY", 0)
    monkeypatch.setattr(images, "_BLOCK", 3)
    mapped = sl.load_dataset("image_folder", root, image_size=8, val_fraction=0.5)
    assert isinstance(mapped.train, images.MappedSplit) and repr(mapped) == repr(plain)
    assert mapped.fingerprint == plain.fingerprint
    assert mapped.train.images.data_ptr() == mapped.val.images.data_ptr()  # neither is a copy
    for part in ("train", "val", "test"):
        one, other = getattr(mapped, part), getattr(plain, part)
        assert len(one) == len(other)
        tensors = [(*split.all(), *split.sample(5, 1), *split[2]) for split in (one, other)]
        for a, b in zip(*tensors, strict=True):
            assert torch.equal(a, b)
        chosen = torch.tensor([3, 0])
        assert torch.equal(one.select(chosen).all().x, other.select(chosen).all().x)
        assert torch.equal(torch.cat(list(one.blocks())), other.images)
    quick = {"training.epochs": 1, "training.batch_size": 4, "training.collapse": "keep"}
    quick |= {"validation.images": 4, "validation.steps": 1}
    recipe = {"data": {"name": "image_folder"}}
    nets = [sl.train(recipe, data, overrides=quick) for data in (plain, mapped)]
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)
