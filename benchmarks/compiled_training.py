"""A training step compiled (`training.compile`), and in channels_last, over the step as it is.

    python benchmarks/compiled_training.py [--quick] [--only CASE] [--json FILE]

Processor time of whole steps on one thread, augmentation and optimiser included; ratios are medians over
rounds in which the forms take turns. Compilation is paid once per training and shown apart. The data are
noise. The time of the convolutions alone, by themselves in channels_last, is what no form can go below.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saliency_lab._common.execution import execution
from saliency_lab._common.memory import freed_memory_kept
from saliency_lab.data import ImageData, Split
from saliency_lab.training.api import _build, _fabric
from saliency_lab.training.loop import Trainer
from saliency_lab.training.recipe import load_recipe

BF16 = {"training.precision": "bf16-mixed"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet8": ("cifar10", {}),
    "resnet8 bf16": ("cifar10", BF16),
    "resnet18": ("cifar10-resnet18", {"training.batch_size": 32}),
    "sgt_cnn bf16": ("mnist", {"model.name": "sgt_cnn", "training.batch_size": 512, **BF16}),
}
FORMS = {
    "eager": (False, False),
    "channels_last": (False, True),
    "compiled": (True, False),
    "compiled, channels_last": (True, True),
}
PASSES = {"standard": (0, 1), "sgt": (1, 2), "at": (7, 1), "asgt": (8, 3)}
"""Passes of an objective in eval mode, to the image, and in training mode, to the weights."""


def noise_data(task: str) -> ImageData:
    shape = (1, 28, 28) if task == "mnist" else (3, 32, 32)
    source = torch.Generator().manual_seed(0)

    def split() -> Split:
        images = torch.randint(0, 256, (512, *shape), generator=source, dtype=torch.uint8)
        return Split(images, torch.arange(512) % 10)

    return ImageData("noise", split(), split(), split(), tuple("0123456789"))


class Trained:
    """A network in one form, and the time of its steps."""

    def __init__(
        self, case: str, objective: str, compiled: bool, channels_last: bool, rows: int | None
    ) -> None:
        task, settings = CASES[case]
        chosen = {"training.compile": compiled, "training.channels_last": channels_last, "attack.warmup": 0.0}
        size = {} if rows is None else {"training.batch_size": rows}
        recipe = load_recipe(f"{task}/{objective}", settings | chosen | size)
        data = noise_data(task)
        fabric = _fabric("cpu", 1, 1, "auto", recipe.training.precision)
        self.trainer = Trainer(fabric, recipe, data, _build(recipe, data), None)
        self.rows = torch.arange(recipe.training.batch_size)
        self.trainer.net.train()

    def step(self) -> float:
        began = time.process_time()
        self.trainer._step(self.rows)
        return time.process_time() - began


def convolution_seconds(trained: Trained) -> tuple[float, float]:
    """Time the convolutions of a pass by themselves: back to the image, and back to the weights."""
    net = trained.trainer.net
    dtype = torch.bfloat16 if "bf16" in trained.trainer.recipe.training.precision else torch.float32
    calls: list[tuple[nn.Conv2d, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda module, inputs, output: calls.append((module, inputs[0])))
        for module in net.modules()
        if isinstance(module, nn.Conv2d)
    ]
    x, _ = trained.trainer.data.train.batch(trained.rows)
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    totals = [0.0, 0.0]
    for index, (module, given) in enumerate(calls):
        points = given.to(dtype).contiguous(memory_format=torch.channels_last)
        weight = module.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        shape = (module.stride, module.padding, module.dilation)

        def forward(points: Tensor = points, weight: Tensor = weight, module: nn.Conv2d = module) -> Tensor:
            return nn.functional.conv2d(
                points, weight, None, module.stride, module.padding, module.dilation, module.groups
            )

        gradient = torch.ones_like(forward())
        ahead = _seconds(forward)
        for total, (image, weights) in enumerate(((True, False), (index > 0, True))):

            def back(
                mask: tuple[bool, bool, bool] = (image, weights, False),
                g: Tensor = gradient, points: Tensor = points, weight: Tensor = weight,
                shape: Any = shape, groups: int = module.groups,
            ) -> Tensor:  # fmt: skip
                return torch.ops.aten.convolution_backward(
                    g, points, weight, None, *shape, False, (0, 0), groups, mask
                )

            totals[total] += ahead + _seconds(back)
    return totals[0], totals[1]


def _seconds(run: Any) -> float:
    times = []
    for _ in range(4):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return min(times)


def measure(case: str, objectives: list[str], rounds: int, rows: int | None) -> list[dict[str, Any]]:
    table = []
    for objective in objectives:
        with ExitStack() as stack:
            trained = {form: Trained(case, objective, *settings, rows) for form, settings in FORMS.items()}
            first: dict[str, float] = {}
            for form, each in trained.items():
                stack.enter_context(each.trainer._compiled())
                first[form] = each.step()  # compiles, or warms up
            times: dict[str, list[float]] = {form: [] for form in trained}
            for _ in range(rounds):
                for form, each in trained.items():
                    times[form].append(each.step())
        eager = times["eager"]
        row: dict[str, Any] = {
            "network": case,
            "objective": objective,
            "images": len(trained["eager"].rows),
            "eager, s": round(statistics.median(eager), 3),
        }
        for form in list(FORMS)[1:]:
            ratios = [a / b for a, b in zip(times[form], eager, strict=True)]
            row[f"{form} / eager"] = round(statistics.median(ratios), 3)
        image, weights = convolution_seconds(trained["eager"])
        attacks, trainings = PASSES[objective]
        alone = attacks * image + trainings * weights
        row["convolutions / eager"] = round(alone / statistics.median(eager), 3)
        row["compilation, s"] = round(first["compiled"] - statistics.median(times["compiled"]), 1)
        table.append(row)
        print(" | ".join(f"{value}" for value in row.values()), flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="standard training of resnet8 alone")
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    table = []
    with freed_memory_kept(), execution(compile=False):
        for case in CASES:
            if options.only not in (None, case) or (options.quick and case != "resnet8"):
                continue
            objectives = ["standard"] if options.quick else list(PASSES)
            table += measure(case, objectives, 2 if options.quick else 5, 32 if options.quick else None)
    if options.json is not None:
        options.json.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
