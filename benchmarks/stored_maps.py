"""What `Study(..., compact_maps=True)` changes: the size of stored maps, and every score of them.

    python benchmarks/stored_maps.py [--quick] [--json FILE]

The maps of a trained network for digits are scored as they are, and as a study stores them with one byte per
value. For each metric, over images and methods: the correlation of the two scores, the median and the
largest difference in units of the standard deviation of the score, and how far the mean moves in that unit.
`of noise` is the median difference that another seed of the metric's own draws makes.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import saliency_lab as sl
from saliency_lab.attribution.packing import PackedMaps

METHODS = {"saliency": {}, "integrated_gradients": {"steps": 16}, "grad_cam": {}}
LEFT_OUT = {"mprt", "smooth_mprt"}
"""They take a map per layer and image, and compare ranks as `efficient_mprt`'s relatives do."""


def scores(net: Any, x: Any, y: Any, maps: Any, metric: str, seed: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sl.evaluate(net, x, y, maps, metric, seed=seed)


def compare(exact: np.ndarray, rounded: np.ndarray, other: np.ndarray) -> dict[str, Any] | None:
    """Relate two vectors of scores; None where hardly any is defined, or all are equal."""
    good = np.isfinite(exact) & np.isfinite(rounded) & np.isfinite(other)
    exact, rounded, other = exact[good], rounded[good], other[good]
    if len(exact) < 3 or exact.std() == 0 or rounded.std() == 0:
        return None
    spread = exact.std()
    change = np.abs(rounded - exact) / spread
    return {
        "scores": len(exact),
        "correlation": round(float(np.corrcoef(exact, rounded)[0, 1]), 4),
        "median change": round(float(np.median(change)), 4),
        "largest change": round(float(change.max()), 3),
        "mean moves by": round(float((rounded.mean() - exact.mean()) / spread), 4),
        "of noise": round(float(np.median(np.abs(other - exact)) / spread), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="six images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    sl.show_progress(False)
    torch.set_num_threads(1)
    net = sl.load_model("digits/at")
    x, y = sl.load_dataset("digits").test.sample(6 if options.quick else 48, seed=0)
    maps = {name: sl.attribute(net, x, y, name, **given) for name, given in METHODS.items()}
    packed = {
        name: sl.Attributions(**{**vars(each), "values": PackedMaps.of(each.values)[:]})
        for name, each in maps.items()
    }
    rows = []
    for metric in sl.list_metrics().index:
        if metric in LEFT_OUT:
            continue
        try:
            found = [
                np.concatenate([scores(net, x, y, given[name], metric, seed) for name in METHODS])
                for given, seed in ((maps, 0), (packed, 0), (maps, 1))
            ]
        except sl.SaliencyLabError:
            continue  # needs masks, or attacked images
        compared = compare(*found)
        if compared is not None:
            rows.append({"metric": metric, **compared})
            print(" | ".join(str(value) for value in rows[-1].values()), flush=True)
    photograph = torch.randn(1, 3, 224, 224)
    codes = PackedMaps.of(photograph)
    sizes = {
        "bytes of a map of 3×224×224": photograph.nbytes,
        "bytes of it with compact_maps": codes.codes.nbytes + codes.scales.nbytes,
    }
    print(sizes)
    if options.json is not None:
        options.json.write_text(json.dumps(sizes | {"scores": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
