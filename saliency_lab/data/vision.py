"""MNIST, Fashion-MNIST and CIFAR-10 from torchvision's files."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saliency_lab._common.errors import DataNotFoundError
from saliency_lab.data.images import Split

_IDX = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


@dataclass(frozen=True)
class Source:
    """One of torchvision's data sets: its class there and the folder its files are in."""

    name: str
    constructor: str
    subfolder: str
    description: str
    image: str

    def folder(self, root: Path) -> Path:
        """Return the folder of the files under a data root."""
        return root / self.subfolder

    def read(self, root: Path, download: bool) -> tuple[Split, Split, tuple[str, ...]]:
        """Read both parts into memory; fetch them first if `download` and they are missing."""
        from torchvision import datasets

        folder = self.folder(root)
        if not folder.is_dir() and not download:
            raise DataNotFoundError(
                f"data set '{self.name}' was looked for in '{folder}', which does not exist. "
                f"Fetch it with load_dataset('{self.name}', download=True), on the command line with "
                f"`saliency-lab download {self.name}`, or name the folder that holds "
                f"'{self.subfolder}' with root=… or the environment variable SALIENCY_LAB_DATA."
            )
        constructor = getattr(datasets, self.constructor)
        try:
            parts = [constructor(str(root), train=part, download=download) for part in (True, False)]
        except Exception as error:  # torchvision raises whatever it met
            reason = " ".join(str(error).split()) or type(error).__name__
            # it fetches unless all files of MNIST's kind exist, or those of CIFAR-10 are whole
            if download and not all((folder / "raw" / name).is_file() for name in _IDX):
                where = folder / "raw" if (folder / "raw").is_dir() else folder
                with contextlib.suppress(OSError):  # torchvision made them; where not empty they stay
                    where.rmdir()
                    folder.rmdir()
                raise DataNotFoundError(
                    f"data set '{self.name}' could not be fetched: {reason}. "
                    f"Try again later, or copy its files, unpacked, to '{where}' by hand."
                ) from error
            raise DataNotFoundError(
                f"data set '{self.name}' in '{folder}' is incomplete or damaged: "
                f"{_damage(folder) or reason}. "
                f"Delete that folder and fetch it again with load_dataset('{self.name}', download=True), or "
                f"`saliency-lab download {self.name}`."
            ) from error
        train, test = (Split(_as_uint8(part.data), torch.as_tensor(part.targets).long()) for part in parts)
        classes = (name.split(" - ")[0] for name in parts[0].classes)  # MNIST's are "0 - zero" …
        return train, test, tuple(classes)


def _as_uint8(data: Tensor | np.ndarray) -> Tensor:
    """(N, C, H, W) from torchvision's (N, H, W) or (N, H, W, C)."""
    images = torch.as_tensor(data)
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def _damage(folder: Path) -> str:
    """Name the IDX file that is missing or not as long as its header says; "" if there is none."""
    if not (folder / "raw").is_dir():
        return ""
    for name in _IDX:
        path = folder / "raw" / name
        if not path.is_file():
            return f"the file '{path}' is missing"
        with path.open("rb") as file:
            dimensions = (file.read(4) or b"\0")[-1]
            header = file.read(4 * dimensions)
        sizes = [int.from_bytes(header[at : at + 4], "big") for at in range(0, 4 * dimensions, 4)]
        expected, got = 4 + 4 * dimensions + math.prod(sizes), path.stat().st_size
        if got != expected or not sizes:
            return f"the file '{path}' holds {got:,} bytes where its header says {expected:,}"
    return ""


SOURCES = (
    Source("mnist", "MNIST", "MNIST", "handwritten digits (LeCun et al., 1998)", "1×28×28"),
    Source(
        "fashion_mnist", "FashionMNIST", "FashionMNIST", "articles of clothing (Xiao et al., 2017)", "1×28×28"
    ),
    Source("cifar10", "CIFAR10", "cifar-10-batches-py", "natural images (Krizhevsky, 2009)", "3×32×32"),
)
