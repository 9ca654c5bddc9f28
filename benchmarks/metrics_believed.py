"""Which metrics to believe: rankings on planted patterns, and the meta-evaluation, as a Markdown table.

    python benchmarks/metrics_believed.py [--quick] [--json FILE]

"planted": mean scores rank truth > gradient > random > inverted truth; asked of faithfulness alone. "map" and
"model": MetaQuantus's mean of four criteria (resists minor, reacts to disruptive perturbation), on digits; 1
is best.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import saliency_lab as sl
from saliency_lab.data.planted import PlantedNet, true_map
from saliency_lab.metrics.catalogue import METRICS
from saliency_lab.metrics.meta import meta_evaluate

PLANTED = {"faithfulness_correlation": {"subset_size": 100}, "irof": {"segments": 60}}
FAMILIES = ("faithfulness", "complexity")
METHODS = ["saliency", "input_x_gradient", "integrated_gradients"]


def trained() -> nn.Module:
    """A small_cnn trained on digits by a plain loop."""
    data = sl.load_dataset("digits")
    model = sl.build_model("small_cnn", seed=0).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(10):
        for rows in torch.randperm(len(data.train), generator=order).split(64):
            x, y = data.train.batch(rows)
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
    return model.eval()


def planted_maps(x: Tensor, y: Tensor, net: nn.Module) -> dict[str, Tensor]:
    truth = true_map(x, y)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noise *= (truth.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1))[:, None, None, None]
    return {
        "truth": truth,
        "gradient": sl.attribute(net, x, y, method="saliency").values,
        "random": noise,
        "inverted": -truth,
    }


def ranking(name: str, count: int) -> list[float]:
    """Mean score of truth, gradient, random and inverted truth."""
    x, y = sl.load_dataset("planted").test.sample(count)
    net = PlantedNet().eval()
    maps = planted_maps(x, y, net)
    rows = [sl.evaluate(net, x, y, each, name, **PLANTED.get(name, {})) for each in maps.values()]
    return [float(np.nanmean(row)) if np.isfinite(row).any() else float("nan") for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples and draws: under a minute")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    sl.show_progress(False)
    torch.set_num_threads(1)
    names = [name for name in METRICS if METRICS[name].family in FAMILIES]
    model = trained()
    x, y = sl.load_dataset("digits").test.sample(12 if arguments.quick else 48, seed=0)
    maps = {method: sl.attribute(model, x, y, method=method) for method in METHODS}
    meta = meta_evaluate(model, x, y, maps, {name: {} for name in names}, draws=1 if arguments.quick else 3)
    print("| metric | truth | gradient | random | inverted | planted | map | model |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rows: list[dict[str, Any]] = []
    for name in names:
        means = ranking(name, 16 if arguments.quick else 64)
        signed = [value if METRICS[name].better == "higher" else -value for value in means]
        passes = all(a > b for a, b in itertools.pairwise(signed))
        verdict = ("passes" if passes else "fails") if METRICS[name].family == "faithfulness" else "not asked"
        row = {"metric": name, "means": means, "planted": verdict} | meta.loc[
            name, ["map", "model"]
        ].to_dict()
        rows.append(row)
        cells = [f"{value:.3g}" for value in means] + [verdict]
        print(f"| {name} | {' | '.join(cells)} | {row['map']:.2f} | {row['model']:.2f} |", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
