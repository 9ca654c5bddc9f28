"""What a model is and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator
from torch import nn

from saliency_lab._common.errors import InputError
from saliency_lab._common.html import facts
from saliency_lab._common.pictures import Interpolation
from saliency_lab._common.samples import distinct_classes
from saliency_lab._common.settings import ClearErrors

CUSTOM = "custom"
_SHOWN = 20  # classes by name, in Jupyter


class ModelCard(BaseModel, metaclass=ClearErrors):
    """What a model is and where it comes from.

    A card is immutable. `save_model` fills in `mean`, `std`, `sha256`, `versions`, `machine` and `created`.

    Parameters
    ----------
    architecture : str
        A name of `build_model`, or "custom" for a user's own module, whose other fields may stay empty.
    num_classes : int, optional
        Number of logits.
    input_shape : (int, int, int), optional
        Channels, height and width of an image.
    mean, std : tuple of float, optional
        Normalisation inside the model, one value or one per channel, in units of [0, 1].
    classes : tuple of str, optional
        Names of the classes, in the order of the logits. Where several have one name, each gets its number,
        such as "crane (134)", the bird, and "crane (517)", the machine.
    resize : int or (int, int), optional
        How a photograph becomes an image, as in `load_images`: the length in pixels of its shorter side, or
        the height and width to stretch it to, before its centre is cut out. By default it becomes just large
        enough.
    interpolation : str
        Interpolation of that resizing, such as "bilinear" or "bicubic".
    cam_layer : str, optional
        Name of the layer that CAM methods use for images of `input_shape`. It is a record: the methods read
        it from the execution, or from the model's own `cam_layer` if it has one.
    weights : str, optional
        Where pretrained weights come from, such as "IMAGENET1K_V2" or a file.
    recipe : dict, optional
        The training recipe, with its name.
    seed : int, optional
        Training seed.
    data : str, optional
        Fingerprint of the training data.
    code : str
        Fingerprint of a module of the user's own that the recipe names, with these weights: `load_model`
        warns if the code of the module has changed since.
    metrics : dict of str to float
        What was measured, such as "test_clean", the accuracy on test images.
    sha256 : str
        Digest of the weights file.
    versions : dict of str to str
        Versions of the packages.
    machine : dict of str to str or int
        Processor and threads: training on another processor can give other weights.
    created : str
        Date and time.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> sl.load_model("digits/at").card.input_shape
    (1, 28, 28)
    >>> sl.ModelCard(classes=("cat", "dog")).architecture
    'custom'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str = CUSTOM
    num_classes: int | None = None
    input_shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: tuple[str, ...] | None = None
    resize: int | tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    cam_layer: str | None = None
    weights: str | None = None
    recipe: dict[str, Any] | None = None
    seed: int | None = None
    data: str | None = None
    code: str = ""
    metrics: dict[str, float | None] = {}
    sha256: str = ""
    versions: dict[str, str] = {}
    machine: dict[str, str | int] = {}
    created: str = ""

    @field_validator("classes")
    @classmethod
    def _distinct(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if names is None else distinct_classes(names)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> ModelCard:
        """Return a copy with other values of some fields, which are validated.

        Parameters
        ----------
        update : mapping, optional
            Fields and their new values.
        deep : bool
            Whether the values are copied too.

        Returns
        -------
        ModelCard
            The copy.

        Raises
        ------
        InputError
            If there is no such field, or a value does not fit.
        """
        own = super().model_copy(deep=deep)
        return ModelCard(**{**{name: getattr(own, name) for name in own.model_fields_set}, **(update or {})})

    def _repr_html_(self) -> str:
        shape = "" if self.input_shape is None else " × ".join(map(str, self.input_shape))
        measured = [f"{key} {value:.4g}" for key, value in self.metrics.items() if value is not None]
        known = {
            "architecture": self.architecture,
            "recipe": str((self.recipe or {}).get("name") or ""),
            "seed": "" if self.seed is None else str(self.seed),
            "image": shape,
            "classes": self._classes(),
            "CAM layer": self.cam_layer or "",
            "weights": self.weights or "",
            "measured": ", ".join(measured),
            "training data": self.data or "",
            "weights (sha256)": self.sha256,
            "made": ", ".join(part for part in (self.created, _versions_of(self)) if part),
        }
        return facts("model", {name: value for name, value in known.items() if value})

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, self._classes() if name == "classes" and len(value or ()) > _SHOWN else value

    def _classes(self) -> str:
        names = self.classes or ()
        if len(names) > _SHOWN:
            return f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN} more"
        return ", ".join(names) or str(self.num_classes or "")


def _versions_of(card: ModelCard) -> str:
    return ", ".join(
        f"{name} {card.versions[name]}" for name in ("saliency-lab", "torch") if name in card.versions
    )


def card_of(model: nn.Module) -> ModelCard | None:
    """Return the card that `build_model`, `train` or `load_model` put on a model; None for any other."""
    card = getattr(model, "card", None)
    return card if isinstance(card, ModelCard) else None


def check_data(
    card: ModelCard | None, model: str, data: str, input_shape: Sequence[int], classes: Sequence[str]
) -> None:
    """Check that a model's images and classes are those of a data set, as far as its card says.

    Raises
    ------
    InputError
        If the images have another shape (C, H, W), or a label would stand for another class.
    """
    if card and card.input_shape and tuple(card.input_shape) != tuple(input_shape):
        raise InputError(
            f"the model '{model}' takes images of {tuple(card.input_shape)} (C, H, W), and those of '{data}' "
            f"are {tuple(input_shape)}"
        )
    if card and card.classes and not _same_numbers(card.classes, classes):
        raise InputError(
            f"the model '{model}' numbers {len(card.classes)} classes ('{card.classes[0]}', …), and the "
            f"labels of '{data}' {len(classes)} others ('{classes[0]}', …), so a label would stand for "
            "another class; name a data set of the model's classes, or your own with their numbers, as "
            "module:attribute"
        )


def _same_numbers(own: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether labels that number the classes `others` may number those of a model.

    As many classes may have other names, such as those of the folders of ImageNet, unless a name that both
    lists have has another number in each; and numbers are no names.

    >>> _same_numbers(("cat", "dog", "fox"), ("cat", "dog"))
    True
    >>> _same_numbers(("cat", "dog", "fox"), ("dog", "fox"))
    False
    >>> _same_numbers(("cat", "dog"), ("bird", "cat"))
    False
    >>> _same_numbers(("cat", "dog"), ("n02121620", "n02084071"))
    True
    """
    at, there = _numbers(own), _numbers(others)
    moved = any(at[name].isdisjoint(there[name]) for name in at.keys() & there.keys())
    return (
        (len(own) == len(others) and not moved)
        or tuple(own[: len(others)]) == tuple(others)
        or all(name.isdecimal() for name in others)
    )


def _numbers(classes: Sequence[str]) -> dict[str, set[int]]:
    """Return the numbers of each name; in ImageNet, two classes are called crane."""
    numbers: dict[str, set[int]] = {}
    for number, name in enumerate(classes):
        numbers.setdefault(name, set()).add(number)
    return numbers
