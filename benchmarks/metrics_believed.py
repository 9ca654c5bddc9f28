"""Which metrics to believe: rankings on planted patterns, and the meta-evaluation, as a Markdown table.

    python benchmarks/metrics_believed.py [--quick] [--json FILE]

The means are those of the data set `planted`. The columns "planted", "redundant" and "xor" say whether mean
scores rank truth > gradient > random > inverted truth on the data set of that name; complexity is not asked.
"map" and "model" are MetaQuantus's mean of four criteria (resists minor, reacts to disruptive perturbation)
on digits; 1 is best. Metrics that make maps again are left out: a map that was perturbed is of no method.
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
from saliency_lab.data.planted import PLANTED
from saliency_lab.metrics.catalogue import METRICS
from saliency_lab.metrics.meta import meta_evaluate

ROWS: dict[str, dict[str, Any]] = {
    name: {"metric": name}
    for name in METRICS
    if METRICS[name].family in ("faithfulness", "axiomatic", "complexity") and METRICS[name].maps is None
}
ROWS["infidelity, larger patches"] = {"metric": "infidelity", "patch_sizes": ("1/3", "1/2")}
ROWS["non_sensitivity, probabilities"] = {"metric": "non_sensitivity", "output": "probability"}
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


def planted_maps(x: Tensor, y: Tensor, net: nn.Module, truth: Tensor) -> dict[str, Tensor]:
    """The truth, the gradient, noise of the truth's length, and the inverted truth."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noise *= (truth.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1))[:, None, None, None]
    return {
        "truth": truth,
        "gradient": sl.attribute(net, x, y, method="saliency").values,
        "random": noise,
        "inverted": -truth,
    }


def rankings(variant: str, count: int) -> dict[str, list[float]]:
    """Mean scores of truth, gradient, random and inverted truth by each metric."""
    x, y = sl.load_dataset(variant).test.sample(count)
    net = PLANTED[variant].net().eval()
    maps = planted_maps(x, y, net, PLANTED[variant].true_map(x, y))
    found = sl.evaluate_many(net, x, y, maps, ROWS)
    return {row: [mean(found[each][row].values) for each in maps] for row in ROWS}


def mean(scores: np.ndarray) -> float:
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")


def verdict(row: str, means: list[float]) -> str:
    metric = METRICS[ROWS[row]["metric"]]
    if metric.family == "complexity":
        return "not asked"
    signed = [value if metric.better == "higher" else -value for value in means]
    return "passes" if all(a > b for a, b in itertools.pairwise(signed)) else "fails"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples and draws: under a minute")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    sl.show_progress(False)
    torch.set_num_threads(1)
    model = trained()
    x, y = sl.load_dataset("digits").test.sample(12 if arguments.quick else 48, seed=0)
    maps = {method: sl.attribute(model, x, y, method=method) for method in METHODS}
    meta = meta_evaluate(model, x, y, maps, ROWS, draws=1 if arguments.quick else 3)
    means = {variant: rankings(variant, 16 if arguments.quick else 64) for variant in PLANTED}
    print("| metric | truth | gradient | random | inverted | planted | redundant | xor | map | model |")
    print("| --- " * 10 + "|")
    rows: list[dict[str, Any]] = []
    for name in ROWS:
        row = {"metric": name, "means": {variant: means[variant][name] for variant in PLANTED}}
        row |= {variant: verdict(name, means[variant][name]) for variant in PLANTED}
        row |= meta.loc[name, ["map", "model"]].to_dict()
        rows.append(row)
        cells = [f"{value:.3g}" for value in means["planted"][name]] + [row[variant] for variant in PLANTED]
        print(f"| {name} | {' | '.join(cells)} | {row['map']:.2f} | {row['model']:.2f} |", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
