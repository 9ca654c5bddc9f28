"""Data sets by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saliency_lab._common.arguments import check_flag, check_fraction, check_path
from saliency_lab._common.checks import check_seed
from saliency_lab._common.errors import InputError
from saliency_lab._common.registry import Extension, Registry
from saliency_lab.data.digits import read_digits
from saliency_lab.data.folder import read_image_folder
from saliency_lab.data.images import ImageData, Split, split_off_validation
from saliency_lab.data.mosaic import read_mosaics
from saliency_lab.data.photographs import read_photographs
from saliency_lab.data.planted import read_planted
from saliency_lab.data.vision import SOURCES

if TYPE_CHECKING:
    import pandas as pd

Parts = tuple[Split, Split, tuple[str, ...]]
"""Training images, test images, class names."""


@dataclass(frozen=True)
class DatasetEntry:
    """A named data set: how it is read from a root folder, and where its files would be.

    `read` is None for "image_folder", which `read_image_folder` reads, and for a user's own data, which
    `load` returns.
    """

    description: str
    image: str
    classes: str
    read: Callable[[Path, bool], Parts] | None
    files: Callable[[Path], Path] | None
    load: Callable[[dict[str, Any]], ImageData] | None = None


def custom_dataset(extension: Extension) -> DatasetEntry:
    """Describe a user's `ImageData`, or function that returns one, as a data set.

    A function gets those arguments of `load_dataset` that it has parameters for.
    """
    item, name = extension.item, extension.name

    def load(given: dict[str, Any]) -> ImageData:
        taken: set[str] = set()
        if callable(item):
            parameters = inspect.signature(item).parameters
            missing = [
                each.name
                for each in parameters.values()
                if each.default is each.empty
                and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
                and each.name not in given
            ]
            if missing:
                raise InputError(
                    f"data set '{name}' is a function that needs '{missing[0]}'; give it a default, or name "
                    "a function that needs no arguments"
                )
            taken = given.keys() & parameters.keys()
        for key in given:
            if key not in taken:
                raise InputError(f"'{key}' has no effect on your own data set '{name}'; leave it out")
        data = item(**given) if callable(item) else item
        if not isinstance(data, ImageData):
            raise InputError(f"data set '{name}' is not a saliency_lab.ImageData, but {type(data).__name__}")
        return data

    doc = item.__doc__ if inspect.isroutine(item) else None
    description = (doc or "registered by you").strip().partition("\n")[0]
    return DatasetEntry(description, "its own", "its own", None, None, load)


DATASETS: Registry[DatasetEntry] = Registry("data set", "dataset", custom_dataset)
DATASETS.add(
    "digits",
    DatasetEntry(
        "scikit-learn's handwritten digits (8×8), up-sampled; embedded",
        "1×28×28",
        "10",
        lambda root, download: read_digits(),
        None,
    ),
)
DATASETS.add(
    "mosaic",
    DatasetEntry(
        "2×2 mosaics of digits, the evidence in one quadrant; with masks; embedded",
        "1×56×56",
        "5",
        lambda root, download: read_mosaics(*read_digits()),
        None,
    ),
)
for _name, _pattern in (
    ("planted", "a small planted pattern that is the label"),
    ("planted_redundant", "two copies of a small planted pattern, either of which is the label"),
    ("planted_xor", "two small planted patterns whose kinds are the label by XOR"),
):
    DATASETS.add(
        _name,
        DatasetEntry(
            f"noise with {_pattern}; with masks; made on the spot",
            "1×24×24",
            "2" if _name == "planted_xor" else "4",
            lambda root, download, variant=_name: read_planted(variant),  # type: ignore[misc]
            None,
        ),
    )
DATASETS.add(
    "photos",
    DatasetEntry(
        "photographs of scikit-image and scikit-learn with ImageNet's classes; test images only; embedded",
        "3×224×224",
        "1000",
        lambda root, download: read_photographs(),
        None,
    ),
)
for _source in SOURCES:
    DATASETS.add(
        _source.name, DatasetEntry(_source.description, _source.image, "10", _source.read, _source.folder)
    )
_MNIST = next(source for source in SOURCES if source.name == "mnist")
DATASETS.add(
    "mnist_mosaic",
    DatasetEntry(
        "2×2 mosaics of MNIST, the evidence in one quadrant; with masks",
        "1×56×56",
        "5",
        lambda root, download: read_mosaics(*_MNIST.read(root, download)),
        _MNIST.folder,
    ),
)
DATASETS.add(
    "image_folder",
    DatasetEntry(
        "your own files, train/CLASS/* and test/CLASS/*, in a folder or a .zip",
        "any",
        "any",
        None,
        lambda root: root if root.is_file() else root / "train",
    ),
)


def data_root(root: str | Path | None = None) -> Path:
    """Return the folder of the data: the argument, else the variable SALIENCY_LAB_DATA, else "data"."""
    return check_path(root if root is not None else os.environ.get("SALIENCY_LAB_DATA") or "data", "root")


def load_dataset(
    name: str | ImageData | Callable[..., ImageData],
    root: str | Path | None = None,
    *,
    download: bool = False,
    val_fraction: float = 0.1,
    seed: int = 0,
    image_size: int | tuple[int, int] | None = None,
) -> ImageData:
    """Load a data set by name, with a stratified validation split cut from its training part.

    Parameters
    ----------
    name : str, ImageData or callable
        One of `list_datasets()`, `module:attribute`, or an `ImageData` or function of your own. A function
        gets those of the arguments below that are given and that it has parameters for.
    root : str or path, optional
        Folder of the files; by default the variable SALIENCY_LAB_DATA, or else "data". For "image_folder" the
        folder, or .zip file, that holds `train/CLASS/*` and `test/CLASS/*`.
    download : bool
        Fetch the files if they are missing; only then is the network used.
    val_fraction : float
        Share of the training part that becomes the validation split; the test part is never touched. An
        "image_folder" that holds `val/CLASS/*` has its validation split there, and none is cut.
    seed : int
        Chooses the validation images.
    image_size : int or (int, int), optional
        Resize the images of an "image_folder" to this height and width in pixels (bilinear).

    Returns
    -------
    ImageData
        With `train`, `val` and `test` splits and the names of the classes.

    Raises
    ------
    UnknownNameError
        If there is no such data set.
    DataNotFoundError
        If the files are missing or damaged; the message says where they were looked for.

    Examples
    --------
    >>> load_dataset("digits")
    ImageData('digits', train 1294, val 144, test 359 images (1, 28, 28), 10 classes)
    """
    check_flag(download, "download")
    check_fraction(val_fraction, "val_fraction", 0.1)
    check_seed(seed)
    where = data_root(root)
    entry = DATASETS.find(name)
    if entry.load is not None:
        defaults = {"root": None, "download": False, "val_fraction": 0.1, "seed": 0, "image_size": None}
        asked = dict(zip(defaults, (root, download, val_fraction, seed, image_size), strict=True))
        return entry.load({key: value for key, value in asked.items() if value != defaults[key]})
    assert isinstance(name, str)
    if entry.read is None:
        train, val, test, classes = read_image_folder(where, image_size)
        if val is not None:
            return ImageData(name, train, val, test, classes)
    elif image_size is None:
        train, test, classes = entry.read(where, download)
    else:
        raise InputError(f"image_size goes with 'image_folder'; the images of '{name}' are {entry.image}")
    if not len(train):
        return ImageData(name, train, train, test, classes)
    return split_off_validation(name, train, test, classes, val_fraction, seed)


def list_datasets(root: str | Path | None = None) -> pd.DataFrame:
    """List the data sets that `load_dataset` knows, and whether their files were found.

    Parameters
    ----------
    root : str or path, optional
        Folder of the files, as for `load_dataset`.

    Returns
    -------
    DataFrame
        One row per data set, indexed by name: `description`, shape of an `image`, number of `classes`, and
        where the files were `found` (empty if they were not).

    Examples
    --------
    >>> list_datasets().loc["digits", "found"]
    'built in'
    """
    import pandas as pd

    where = data_root(root)
    rows = {}
    for name in DATASETS:
        entry = DATASETS[name]
        files = entry.files(where) if entry.files else None
        rows[name] = {
            "description": entry.description,
            "image": entry.image,
            "classes": entry.classes,
            "found": ("registered" if entry.load else "built in")
            if files is None
            else str(files)
            if files.exists()
            else "",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")
