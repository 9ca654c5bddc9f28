"""A training step compiled (`training.compile`), and in channels_last, over the step as it is.

    python benchmarks/compiled_training.py [--quick] [--only NETWORK] [--json FILE]

Processor time on one thread; ratios are medians over rounds in which the forms take turns. Compilation is
paid once per training and shown apart. The data are noise of CIFAR-10's shape.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import saliency_lab as sl
from saliency_lab._common.memory import freed_memory_kept
from saliency_lab.training import OBJECTIVES, AttackSpec, Step

BATCHES = {"resnet8": 128, "resnet18": 32}
FORMS = {
    "eager": (False, False),
    "channels_last": (False, True),
    "compiled": (True, False),
    "compiled, channels_last": (True, True),
}


class Trained:
    """A network in one form, and the time of its steps."""

    def __init__(self, network: str, rows: int, compiled: bool, channels_last: bool) -> None:
        source = torch.Generator().manual_seed(0)
        self.net = sl.build_model(network, input_shape=(3, 32, 32), seed=0).train()
        self.x = torch.rand(rows, 3, 32, 32, generator=source)
        self.y = torch.randint(0, 10, (rows,), generator=source)
        if channels_last:
            self.net.to(memory_format=torch.channels_last)
            self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.optimiser = torch.optim.SGD(self.net.parameters(), 1e-4)
        self.compiled = compiled

    def step(self, objective: str) -> float:
        inner: Any = self.net.net
        if self.compiled and inner._compiled_call_impl is None:
            inner.compile(dynamic=False)
        began = time.process_time()
        terms: dict[str, Tensor] = OBJECTIVES[objective]().terms(
            Step(
                net=self.net, x=self.x, y=self.y, attack=AttackSpec(eps=8 / 255, steps=7), eps=8 / 255,
                progress=0.5, seed=0,
            )
        )  # fmt: skip
        self.optimiser.zero_grad()
        sum(terms.values()).backward(inputs=list(self.net.parameters()))  # type: ignore[union-attr]
        self.optimiser.step()
        return time.process_time() - began


def measure(network: str, objectives: list[str], rounds: int, rows: int) -> list[dict[str, Any]]:
    trained = {form: Trained(network, rows, *settings) for form, settings in FORMS.items()}
    table = []
    for objective in objectives:
        first: dict[str, float] = {}
        for form, each in trained.items():
            try:
                first[form] = each.step(objective)  # compiles, or warms up
            except RuntimeError as error:  # of compiled passes
                print(f"{network}, {objective}, {form}: {f'{error}'.partition(chr(10))[0]}", flush=True)
        times: dict[str, list[float]] = {form: [] for form in first}
        for _ in range(rounds):
            for form in first:
                times[form].append(trained[form].step(objective))
        eager = times["eager"]
        row: dict[str, Any] = {
            "network": network,
            "objective": objective,
            "images": rows,
            "eager, s": round(statistics.median(eager), 3),
        }
        for form in list(FORMS)[1:]:
            ratios = [a / b for a, b in zip(times[form], eager, strict=True)] if form in times else []
            row[f"{form} / eager"] = round(statistics.median(ratios), 3) if ratios else "fails"
        if "compiled" in times:
            row["compilation, s"] = round(first["compiled"] - statistics.median(times["compiled"]), 1)
        table.append(row)
        print(" | ".join(f"{value}" for value in row.values()), flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="standard training of resnet8 alone")
    parser.add_argument("--only", choices=list(BATCHES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    with freed_memory_kept():
        for network, images in BATCHES.items():
            if options.only not in (None, network) or (options.quick and network != "resnet8"):
                continue
            objectives = ["standard"] if options.quick else ["standard", "sgt", "at", "asgt"]
            rows += measure(
                network, objectives, 2 if options.quick else 5, images // 4 if options.quick else images
            )
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
