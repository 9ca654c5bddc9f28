"""MNIST, Fashion-MNIST and CIFAR-10 from torchvision's files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

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
                f"Fetch it with load_dataset('{self.name}', download=True), or name the folder that holds "
                f"'{self.subfolder}' with root=… or the environment variable SALIENCY_LAB_DATA."
            )
        constructor = getattr(datasets, self.constructor)
        try:
            parts = [constructor(str(root), train=part, download=download) for part in (True, False)]
        except Exception as error:  # torchvision raises whatever it met
            raise DataNotFoundError(
                f"data set '{self.name}' in '{folder}' is incomplete or damaged: "
                f"{_damage(folder) or str(error).splitlines()[0]}. "
                f"Delete that folder and fetch it again with load_dataset('{self.name}', download=True)."
            ) from error
        train, test = (
            Split(
                torch.as_tensor(part.data)
                .reshape(len(part), *part.data.shape[1:3], -1)
                .permute(0, 3, 1, 2)
                .contiguous(),
                torch.as_tensor(part.targets, dtype=torch.int64),
            )
            for part in parts
        )
        return (
            train,
            test,
            tuple(
                str(name).split(" - ")[0] if self.name == "mnist" else str(name) for name in parts[0].classes
            ),
        )


def _damage(folder: Path) -> str:
    """Name the IDX file that is missing or not as long as its header says; "" if none."""
    if not (folder / "raw").is_dir():
        return ""
    for name in _IDX:
        path = folder / "raw" / name
        if not path.is_file():
            return f"the file '{path}' is missing"
        header = path.read_bytes()[: 4 * 4]
        sizes = [
            int.from_bytes(header[4 * (i + 1) : 4 * (i + 2)], "big")
            for i in range(header[3] if len(header) > 3 else 0)
        ]
        expected = 4 * (len(sizes) + 1) + math.prod(sizes)
        if path.stat().st_size != expected or not sizes:
            return f"the file '{path}' holds {path.stat().st_size:,} bytes where its header says {expected:,}"
    return ""


SOURCES = (
    Source("mnist", "MNIST", "MNIST", "handwritten digits (LeCun et al., 1998)", "1×28×28"),
    Source(
        "fashion_mnist", "FashionMNIST", "FashionMNIST", "articles of clothing (Xiao et al., 2017)", "1×28×28"
    ),
    Source("cifar10", "CIFAR10", "cifar-10-batches-py", "natural images (Krizhevsky, 2009)", "3×32×32"),
)
