"""The photographs that scikit-image and scikit-learn ship, with the classes of ImageNet."""

from __future__ import annotations

from importlib.resources import files

import torch
from torch import Tensor

from saliency_lab._common.errors import DataNotFoundError
from saliency_lab._common.pictures import eight_bit, open_picture, resize_and_crop
from saliency_lab.data.images import Split

SIDE = 224

PHOTOGRAPHS = {
    ("skimage.data", "chelsea.png"): "Egyptian cat",
    ("skimage.data", "coffee.png"): "espresso",
    ("skimage.data", "rocket.jpg"): "missile",
    ("skimage.data", "camera.png"): "tripod",
    ("skimage.data", "motorcycle_left.png"): "moped",
    ("skimage.data", "astronaut.png"): "space shuttle",
    ("sklearn.datasets.images", "china.jpg"): "palace",
}
"""Package and file → the class of ImageNet that names what the photograph shows, or comes closest to it.

The libraries give no labels; these are ours. The cat could as well be called a tabby or a tiger cat, which
are other classes; there is no class for motorcycles, nor for astronauts (behind her stands a model of the
space shuttle).
"""


def read_photographs() -> tuple[Split, Split, tuple[str, ...]]:
    """Return an empty training part, the photographs as test part, and the names of ImageNet's classes.

    Each photograph is resized (bicubic) until it just covers 224×224, and its centre is cut out.

    Raises
    ------
    DataNotFoundError
        If a library does not ship one of the files.
    """
    from torchvision.models import ResNet50_Weights
    from torchvision.transforms.functional import pil_to_tensor

    classes = tuple(ResNet50_Weights.DEFAULT.meta["categories"])
    images: list[Tensor] = []
    for package, name in PHOTOGRAPHS:
        label = f"the photograph '{name}' of {package}"
        try:
            content = (files(package) / name).read_bytes()
        except OSError as error:
            raise DataNotFoundError(f"{label} is missing ({error}); install that library again") from error
        picture = eight_bit(open_picture(content, label), label, "RGB")
        images.append(pil_to_tensor(resize_and_crop(picture, (SIDE, SIDE), None, "bicubic")))
    labels = torch.tensor([classes.index(name) for name in PHOTOGRAPHS.values()])
    none = Split(torch.empty(0, 3, SIDE, SIDE, dtype=torch.uint8), labels[:0])
    return none, Split(torch.stack(images), labels), classes
