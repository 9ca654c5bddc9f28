"""What `attribute` returns: the maps and where they come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from torch import Tensor

from saliency_lab._common.arguments import check_count, check_number, check_path
from saliency_lab._common.checks import check_dense, check_images
from saliency_lab._common.errors import InputError
from saliency_lab._common.files import atomic_path
from saliency_lab._common.hashing import fingerprint
from saliency_lab._common.html import facts, strip
from saliency_lab._common.ranks import mean_ranks
from saliency_lab._common.samples import Images, read_sample
from saliency_lab._common.settings import as_keywords
from saliency_lab._common.tensor_files import read_tensors, write_tensors
from saliency_lab._common.text import number_of
from saliency_lab.attribution.catalogue import METHODS, settings_of_rows
from saliency_lab.attribution.similarity import rank_correlation, ssim, top_k_overlap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Channels = Literal["sum", "mean", "max", "l2"]
Sign = Literal["signed", "absolute", "positive"]
Normalisation = Literal["max", "percentile", "sum", "rank"]


@dataclass(frozen=True, eq=False)
class Attributions:
    """Maps of N images by one method on one model.

    Parameters
    ----------
    values : Tensor
        (N, C, H, W), float32, signed, on the CPU.
    method : str
        Name of the method.
    settings : mapping
        Every setting, with the defaults, so that `attribute` can be called with them again. In a file a
        tensor becomes its shape and fingerprint.
    target : str
        Which logit the maps explain, such as "label" or "prediction".
    seconds : float
        Wall time of the whole call.
    seed : int
        Seed of the random draws.
    classes : Tensor
        (N,) int64, the class each map explains; (N, 2) for a contrast: the first minus the second.
    total : Tensor or None
        (N,) float64, what the method promises its map sums to, such as f(x) − f(baseline).
    provenance : mapping
        The device, a fingerprint of the images, the versions of the packages.
    processing : tuple of str
        The `reduce` and `normalise` steps that `values` went through.
    own : bool
        Whether the maps are from the user's own function, whose name `method` is.
    function : callable or None
        That function; None in maps that were read from a file.
    class_names : tuple of str
        What each map explains, in words, if the model's card names the classes; empty otherwise.
    probabilities : Tensor or None
        (N,) float32, those of the explained classes where `target` is "prediction".

    Examples
    --------
    >>> import saliency_lab as sl
    >>> net = sl.load_model("digits/at")
    >>> x, y = sl.load_dataset("digits").test.sample(4, seed=0)
    >>> maps = sl.attribute(net, x, y, method="saliency")
    >>> maps.normalise("max").reduce("sum", "absolute").values.shape
    torch.Size([4, 1, 28, 28])
    """

    values: Tensor
    method: str
    settings: Mapping[str, Any]
    target: str
    seconds: float
    seed: int
    classes: Tensor
    total: Tensor | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    processing: tuple[str, ...] = ()
    own: bool = False
    function: Callable[..., Any] | None = None
    class_names: tuple[str, ...] = ()
    probabilities: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.values)

    def __getitem__(self, rows: int | slice | list[int] | np.ndarray | Tensor) -> Attributions:
        """Return the maps of some of the images; an int gives one image's, still (1, C, H, W).

        Settings with one entry per image, such as a baseline (N, C, H, W), are cut to those images too.

        Raises
        ------
        InputError
            If `rows` does not choose images.
        IndexError
            If there is no such image.
        """
        chosen = np.atleast_1d(np.arange(len(self))[rows])
        if chosen.ndim > 1:
            raise InputError(f"maps[…] takes a number, slice, list or mask of images, not {rows!r}")
        which = torch.from_numpy(chosen)
        total = None if self.total is None else self.total[which]
        settings = self.settings
        if self.function is not None:
            settings = settings_of_rows(METHODS.find(self.function), settings, which)
        elif not self.own and self.method in METHODS:
            settings = settings_of_rows(METHODS[self.method], settings, which)
        values, classes = self.values[which], self.classes[which]
        provenance = {key: value for key, value in self.provenance.items() if key != "images"}  # of the whole
        names = tuple(self.class_names[row] for row in chosen) if self.class_names else ()
        return replace(
            self,
            values=values,
            classes=classes,
            total=total,
            settings=settings,
            provenance=provenance,
            class_names=names,
            probabilities=None if self.probabilities is None else self.probabilities[which],
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values.numpy(), dtype=dtype, copy=copy)

    def numpy(self) -> np.ndarray:
        """Return a copy of the values.

        Returns
        -------
        ndarray
            float32 (N, C, H, W).
        """
        return self.values.numpy().copy()

    @property
    def delta(self) -> Tensor | None:
        """Σ map − `total`, (N,) float64, 0 where the promise is kept; Captum calls it convergence delta."""
        if self.total is None or self.processing:
            return None
        return self.values.double().flatten(1).sum(1) - self.total

    @property
    def completeness_error(self) -> Tensor | None:
        """Size of `delta` over size of `total`, (N,) float64; None where the method promises no sum."""
        delta = self.delta
        return None if delta is None or self.total is None else delta.abs() / self.total.abs()

    @property
    def lost_settings(self) -> list[str]:
        """Settings that were tensors, of which a file keeps the fingerprint: they are lost."""
        return _fingerprinted(self.settings)

    def reduce(self, channels: Channels = "sum", sign: Sign = "signed") -> Attributions:
        """Reduce the channels, so that each pixel has one value.

        "absolute" with "max" is Simonyan's saliency map.

        Parameters
        ----------
        channels : {"sum", "mean", "max", "l2"}
            How the channels are reduced; "max" keeps the value of largest magnitude.
        sign : {"signed", "absolute", "positive"}
            What is done with every channel first; "positive" sets negative values to 0.

        Returns
        -------
        Attributions
            With values (N, 1, H, W).

        Raises
        ------
        InputError
            If `channels` or `sign` is another word.
        """
        _one_of("sign", sign, Sign)
        _one_of("channels", channels, Channels)
        values = self.values
        if sign == "absolute":
            values = values.abs()
        elif sign == "positive":
            values = values.clamp_min(0)
        if channels == "sum":
            values = values.sum(1, keepdim=True)
        elif channels == "mean":
            values = values.mean(1, keepdim=True)
        elif channels == "max":
            values = values.gather(1, values.abs().argmax(1, keepdim=True))
        else:
            values = values.norm(dim=1, keepdim=True)
        return self._processed(values, f"reduce({channels}, {sign})")

    def normalise(self, by: Normalisation = "max") -> Attributions:
        """Scale the map of each sample separately; zeros stay 0, NaN stays NaN.

        Parameters
        ----------
        by : {"max", "percentile", "sum", "rank"}
            "max" divides by the largest magnitude; "percentile" by the 99th percentile of the magnitudes, and
            clips to [−1, 1]; "sum" by the sum of magnitudes. With "rank" each value becomes its rank in the
            sample, from 0 (lowest) to 1, where ties have their mean rank.

        Returns
        -------
        Attributions
            With values of the same shape.

        Raises
        ------
        InputError
            If `by` is another word.
        """
        _one_of("by", by, Normalisation)
        rows = self.values.flatten(1)
        if by == "rank":
            scaled = ((mean_ranks(rows) - 1) / max(1, rows.shape[1] - 1)).float()
        else:
            magnitude = rows.abs()
            if by == "max":
                scale = magnitude.amax(1)
            elif by == "sum":
                scale = magnitude.sum(1)
            else:
                scale = torch.from_numpy(np.percentile(magnitude.numpy(), 99, axis=1).astype(np.float32))
                scale = torch.where(scale > 0, scale, magnitude.amax(1))
            scaled = rows / torch.where(scale == 0, torch.ones_like(scale), scale)[:, None]
            if by == "percentile":
                scaled = scaled.clamp(-1, 1)
        return self._processed(scaled.reshape(self.values.shape), f"normalise({by})")

    def compare(self, other: Attributions | Tensor | np.ndarray, k: float = 0.1) -> pd.DataFrame:
        """Measure the similarity to other maps of the same images.

        Parameters
        ----------
        other : Attributions, Tensor or ndarray
            Maps of the same shape.
        k : float
            Share of the values that count for `top_k_overlap`, in (0, 1].

        Returns
        -------
        DataFrame
            One row per sample: `rank_correlation` (Spearman's, of the signed values), `ssim` and
            `top_k_overlap` (of the k·P largest values).

        Raises
        ------
        InputError
            If `k` is not in (0, 1], or the other maps have another type or shape.
        """
        if check_number(k, "k", low=0, high=1) == 0:
            raise InputError("k must be above 0")
        values = other.values if isinstance(other, Attributions) else other
        if not isinstance(values, Tensor | np.ndarray):
            raise InputError(f"other must be Attributions, a tensor or an array, not {type(other).__name__}")
        if isinstance(values, Tensor):
            check_dense(values, "other")
        try:
            theirs = torch.as_tensor(values)
        except TypeError:
            raise InputError(f"other must hold real numbers, not {values.dtype}") from None
        if theirs.is_complex():
            raise InputError(f"other must hold real numbers, not {theirs.dtype}")
        return pd.DataFrame(
            {
                "rank_correlation": rank_correlation(self.values, theirs).numpy(),
                "ssim": ssim(self.values, theirs).numpy(),
                "top_k_overlap": top_k_overlap(self.values, theirs, k).numpy(),
            }
        ).rename_axis("sample")

    def show(self, images: Images = None, *, n: int = 6) -> Figure:
        """Draw the first `n` maps, next to their images if given, with the class that each explains.

        Classes have names if the model's card has them, and the probability that the model gave them if
        `target` was "prediction".

        Parameters
        ----------
        images : Tensor, DataLoader or data set, optional
            The images (N, C, H, W) in [0, 1] that the maps explain.
        n : int
            How many maps are drawn.

        Returns
        -------
        Figure
            One row per image.

        Raises
        ------
        InputError
            If the images are wrong, or are not those of the maps.
        """
        from saliency_lab.plotting.maps import Prediction, grid

        check_count(n, "n")
        if images is not None:
            images = check_images(read_sample(images).x)
        labels = list(self.class_names[:n]) or [str(row.tolist()) for row in self.classes[:n]]
        if self.probabilities is not None:
            chances = self.probabilities[:n].tolist()
            labels = [str(Prediction(*each)) for each in zip(labels, chances, strict=True)]
        shown = None if images is None else images[:n]
        return grid(shown, {self.method: self.values[:n]}, labels=labels)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file whose header holds everything that is not a tensor.

        Parameters
        ----------
        path : str or path
            The file; an older one is replaced.

        Returns
        -------
        Path
            The file that was written.

        Raises
        ------
        InputError
            If the path is a folder.
        """
        path = check_path(path)
        if path.is_dir():
            raise InputError(f"path must be a file, such as '{path / 'maps.safetensors'}', not a folder")
        given = {
            "values": self.values,
            "classes": self.classes,
            "total": self.total,
            "probabilities": self.probabilities,
        }
        tensors = {name: tensor for name, tensor in given.items() if tensor is not None}
        header = {
            "method": self.method,
            "settings": _plain(self.settings),
            "target": self.target,
            "seconds": self.seconds,
            "seed": self.seed,
            "provenance": dict(self.provenance),
            "processing": list(self.processing),
            "own": self.own,
            "class_names": list(self.class_names),
        }
        with atomic_path(path) as temporary:
            write_tensors(temporary, tensors, {"attributions": json.dumps(header)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> Attributions:
        """Read what `save` wrote.

        Parameters
        ----------
        path : str or path
            The file.

        Returns
        -------
        Attributions
            The maps; `function` is None, and settings that were tensors are lost.

        Raises
        ------
        InputError
            If the file is missing, damaged, or something else.
        """
        path = check_path(path)
        try:
            tensors, found = read_tensors(path)
            header: dict[str, Any] = json.loads(found["attributions"])
            header["processing"] = tuple(header["processing"])
            header["class_names"] = tuple(header.get("class_names", ()))
            return cls(**(header | tensors))
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot read attributions from '{path}': {error}") from None
        except (TypeError, KeyError, json.JSONDecodeError):
            raise InputError(f"'{path}' is a safetensors file, but not one of attributions") from None

    def _processed(self, values: Tensor, step: str) -> Attributions:
        return replace(self, values=values, processing=(*self.processing, step))

    def _facts(self) -> dict[str, str]:
        count, channels, height, width = self.values.shape
        facts = {
            "maps": f"{count} × ({channels}, {height}, {width})",
            "method": self.method,
            "settings": as_keywords(_plain(self.settings)) or "none",
            "target": self.target,
            "range": f"{self.values.min():.3g} … {self.values.max():.3g}" if count else "none",
        }
        if count and (error := self.completeness_error) is not None:
            facts["completeness error"] = f"median {error.nanmedian():.2g}, largest {error.max():.2g}"
        if self.processing:
            facts["processing"] = ", ".join(self.processing)
        return facts | {"seed": str(self.seed), "time": f"{self.seconds:.3g} s"}

    def __repr__(self) -> str:
        return f"Attributions({', '.join(f'{key}: {value}' for key, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        from saliency_lab.plotting.painting import tiles

        few = self.values[:_SHOWN]
        drawn = tiles(torch.zeros_like(few), {self.method: few}, scale="panel").maps[self.method]
        first = number_of(len(few), "map")
        alt = f"the first {first}, each on its own scale: red raises the class, blue lowers it"
        return facts("attributions", self._facts()) + strip(drawn.transpose(0, 3, 1, 2) / 255, alt)


_SHOWN = 8  # maps, in Jupyter


def _fingerprinted(settings: Mapping[str, Any]) -> list[str]:
    keys = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            keys += [f"{key}.{inner}" for inner in _fingerprinted(value)]
        elif isinstance(value, str) and value.startswith("tensor ("):  # as `_plain` writes it
            keys.append(key)
    return keys


def _plain(value: Any) -> Any:
    """Return what JSON can hold; a tensor becomes its shape and fingerprint, another object its repr."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {fingerprint(value)[:12]}"
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _one_of(name: str, given: object, choices: Any) -> None:
    if given not in choices.__args__:
        raise InputError(f"{name} must be one of {', '.join(choices.__args__)}, not {given!r}")
