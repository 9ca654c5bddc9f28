"""Architectures by name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from saliency_lab._common.arguments import check_callable, check_count, check_text, shown
from saliency_lab._common.checks import check_seed
from saliency_lab._common.errors import InputError, unknown_name
from saliency_lab._common.limits import check_memory
from saliency_lab._common.plugins import import_library
from saliency_lab._common.registry import Extension, Registry
from saliency_lab._common.seeding import derive_seed, preserved_rng
from saliency_lab.models.card import ModelCard
from saliency_lab.models.convnets import lenet5, sgt_cnn, small_cnn
from saliency_lab.models.layers import Normalised, Shape
from saliency_lab.models.resnet import resnet8, resnet18, resnet20
from saliency_lab.models.vgg import vgg11_bn

if TYPE_CHECKING:
    import pandas as pd

LIBRARIES = ("torchvision/", "timm/", "imagenet/")
"""How the names of other libraries' networks begin."""

Builder = Callable[[int, Shape], nn.Module]
"""Builds a module from the number of classes and the shape (C, H, W) of an image."""


def custom_model(extension: Extension) -> Builder:
    """Describe a user's module, or function or class that makes one, as a builder.

    A function gets `num_classes` and `input_shape` if it has parameters of these names. A module is copied.
    The module takes images in [0, 1], normalises inside and returns logits, as every model here.

    Raises
    ------
    InputError
        If it is neither, needs other arguments, or returns no module.
    """
    item, name = extension.item, extension.name

    def build(num_classes: int, input_shape: Shape) -> nn.Module:
        if isinstance(item, nn.Module):
            return copy.deepcopy(item)
        if not callable(item):
            raise InputError(f"model '{name}' must be a torch module or make one, not {type(item).__name__}")
        known = {"num_classes": num_classes, "input_shape": input_shape}
        try:
            signature = inspect.signature(item)
            given = {key: value for key, value in known.items() if key in signature.parameters}
            signature.bind(**given)
        except ValueError:  # one that does not tell its parameters
            given = {}
        except TypeError as error:
            raise InputError(
                f"'{name}' cannot be called with num_classes and input_shape alone ({error}); name a "
                "function that gives the other arguments"
            ) from None
        net = item(**given)
        if not isinstance(net, nn.Module):
            raise InputError(f"model '{name}' is not a torch module, but {type(net).__name__}")
        return net

    return build


ARCHITECTURES: Registry[Builder] = Registry("architecture", "model", custom_model)
for _build in (small_cnn, sgt_cnn, lenet5, resnet8, resnet20, resnet18, vgg11_bn):
    ARCHITECTURES.add(_build.__name__, _build)


def is_custom(name: str) -> bool:
    """Return whether a model's name is a user's own: registered, or `module:attribute`."""
    return name not in ARCHITECTURES.built_in and not name.startswith(LIBRARIES)


def own_module(name: str, num_classes: int, input_shape: Shape, seed: int) -> nn.Module:
    """Make the module of a user's own name, whose initial weights `seed` determines."""
    with preserved_rng(derive_seed(seed, "weights", name)):
        return ARCHITECTURES[name](num_classes, input_shape)


def build_model(
    name: str,
    *,
    num_classes: int = 10,
    input_shape: Sequence[int] = (1, 28, 28),
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build an untrained model of images in [0, 1] that returns logits; its `card` says what was built.

    Parameters
    ----------
    name : str
        One of `list_models()`; "torchvision/NAME" or "timm/NAME" for any classifier of these libraries, with
        random weights (`load_model` has pretrained ones); or `module:attribute` for a module of your own, or
        a function or class that makes one.
    num_classes : int
        Number of logits, ≥ 2.
    input_shape : (int, int, int)
        Channels, height and width of an image.
    mean, std : float or sequence of float, optional
        Normalisation inside the model, one value or one per channel; by default 0 and 1, which change
        nothing.
    seed : int
        Determines the initial weights; the global generators are left alone.

    Returns
    -------
    nn.Module
        The model in eval mode, which returns logits (N, num_classes).

    Raises
    ------
    UnknownNameError
        If there is no such architecture.
    InputError
        If the images are too small for the architecture, or a value is out of range.

    Examples
    --------
    >>> model = build_model("small_cnn", num_classes=10, input_shape=(1, 28, 28))
    >>> sum(p.numel() for p in model.parameters())
    166406
    """
    if isinstance(name, str):
        check_text(name, "name")
    else:
        check_callable(name, "name", "the name of an architecture, or a module or function of your own")
    num_classes = check_count(num_classes, "num_classes", least=2, most=2**31 - 1)
    sizes = (
        list(input_shape) if isinstance(input_shape, Sequence) and not isinstance(input_shape, str) else []
    )
    if len(sizes) != 3:
        raise InputError(
            f"input_shape must be (channels, height, width), such as (1, 28, 28), not {shown(input_shape)}"
        )
    channels, height, width = (check_count(size, "input_shape, each side,") for size in sizes)
    check_seed(seed)
    check_memory((channels, height, width), 4, f"images of the input_shape {channels}×{height}×{width}")
    with preserved_rng(derive_seed(seed, "weights", name)):
        try:
            if isinstance(name, str) and name.startswith(LIBRARIES):
                net = _LIBRARY_MODELS[name.partition("/")[0]](
                    name.partition("/")[2], num_classes, (channels, height, width)
                )
                with torch.no_grad():
                    net.eval()(torch.zeros(1, channels, height, width))
            else:
                build = ARCHITECTURES.find(name)
                if isinstance(name, str) and name in ARCHITECTURES.built_in:
                    _check_weights(build, num_classes, (channels, height, width))
                net = build(num_classes, (channels, height, width))
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"architecture '{name}' does not take images of {channels}×{height}×{width}: {error}"
            ) from error
    card = ModelCard(architecture=name, num_classes=num_classes, input_shape=(channels, height, width))
    if is_custom(name):
        if mean is not None or std is not None:
            raise InputError(f"the model '{name}' is your own and normalises inside; leave mean and std out")
        net.card = card  # type: ignore[assignment]
        return net.eval()
    model = Normalised(net, 0.0 if mean is None else mean, 1.0 if std is None else std)
    for label, values in (("mean", model.mean), ("std", model.std)):
        if len(values) not in (1, channels):
            raise InputError(f"{label} must be one value, or {channels}, one per channel; got {len(values)}")
    model.card = card  # type: ignore[assignment]
    return model.eval()


_SMALL = 10**5
"""Up to so many classes and pixels, a built-in architecture is small."""


def _check_weights(build: Builder, num_classes: int, input_shape: Shape) -> None:
    """Refuse a built-in architecture whose weights would take too much memory."""
    if max(num_classes, input_shape[1] * input_shape[2]) <= _SMALL:
        return
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build(num_classes, input_shape).parameters())
    check_memory((count,), 4, f"the weights for {num_classes:,} classes (num_classes) and this input_shape")


def _torchvision_model(name: str, num_classes: int, input_shape: Shape) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision model", name, known)
    single_output = (
        {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    )
    return models.get_model(name, weights=None, num_classes=num_classes, **single_output)


def _timm_model(name: str, num_classes: int, input_shape: Shape) -> nn.Module:
    timm = import_library("timm", "pretrained")
    config = timm.models.get_pretrained_cfg(name.partition(".")[0])
    if config is None:
        raise unknown_name("timm model", name, timm.list_models())
    channels, *size = input_shape
    # transformers are built for one size of image
    more = (
        {"img_size": tuple(size)} if config.fixed_input_size and tuple(size) != config.input_size[1:] else {}
    )
    net: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=channels, **more)
    return net


def imagenet_model(name: str, num_classes: int, input_shape: Shape) -> nn.Module:
    """Build the network of "imagenet/NAME" with random weights."""
    if name != "efficientnet_lite0":
        raise unknown_name("pretrained model", f"imagenet/{name}", ["imagenet/efficientnet_lite0"])
    package = import_library("efficientnet_lite_pytorch", "pretrained")
    net: nn.Module = package.EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)
    return net


_LIBRARY_MODELS: dict[str, Callable[[str, int, Shape], nn.Module]] = {
    "torchvision": _torchvision_model,
    "timm": _timm_model,
    "imagenet": imagenet_model,
}


def list_models() -> pd.DataFrame:
    """List the architectures that `build_model` knows.

    Returns
    -------
    DataFrame
        One row per architecture, indexed by name: `description`, and the number of `parameters` for ten
        classes and images of 28 × 28 pixels, where it is known.

    Examples
    --------
    >>> int(list_models().loc["small_cnn", "parameters"])
    166406
    """
    import pandas as pd

    rows = {}
    for name, build in ARCHITECTURES.built_in.items():
        model = build_model(name)
        rows[name] = {
            "description": (build.__doc__ or "").split("\n")[0],
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
    for name, extension in ARCHITECTURES.extensions().items():
        doc = extension.item.__doc__ if callable(extension.item) else None
        rows[name] = {"description": (doc or "registered by you").strip().split("\n")[0], "parameters": None}
    for library in ("torchvision", "timm"):
        rows[f"{library}/NAME"] = {
            "description": f"any classifier of {library}, untrained",
            "parameters": None,
        }
    return pd.DataFrame.from_dict(rows, orient="index").astype({"parameters": "Int64"}).rename_axis("name")
