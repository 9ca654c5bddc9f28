"""Draw docs/figures/gallery.jpg: photographs and their maps by many methods, one column per method.

The weights of the network come as an ordinary package, so nothing is downloaded. Run `make gallery`.
"""

from __future__ import annotations

from pathlib import Path

import saliency_lab as sl
from saliency_lab.plotting.maps import grid

METHODS = {
    "saliency": {},
    "input_x_gradient": {},
    "integrated_gradients": {"steps": 24},
    "smoothgrad": {"n": 12},
    "lrp": {},
    "grad_cam": {},
    "layer_cam": {"layer": "net._blocks.10"},
    "occlusion": {"window": 48, "stride": 16},
}
IMAGES = ("Egyptian cat", "espresso", "tripod", "moped")
FIGURE = Path(__file__).parent / "figures" / "gallery.jpg"


def main() -> None:
    """Explain what the network predicts for each photograph, and draw the table."""
    net = sl.load_model("imagenet/efficientnet_lite0")
    data = sl.load_dataset("photos")
    x, y = data.test.all()
    names = [data.classes[label] for label in y]
    x = x[[names.index(name) for name in IMAGES]]
    maps = {
        name: sl.attribute(net, x, method=name, target="prediction", **settings)
        for name, settings in METHODS.items()
    }
    first = maps["saliency"]
    chances = first.probabilities.tolist()
    labels = [f"{name}, {chance:.0%}" for name, chance in zip(first.class_names, chances, strict=True)]
    figure = grid(x, maps, labels=labels, scale="panel", smooth=2.0, cell=1.25)
    figure.savefig(FIGURE, dpi=150, pil_kwargs={"quality": 80, "optimize": True})


if __name__ == "__main__":
    main()
