"""What a pass costs: the model's own passes by number of images, and the form that was measured as fastest.

    python benchmarks/passes.py [--quick] [--only NAME] [--compile] [--json FILE]

Processor time on one thread. Each ratio is the median of paired rounds, in which every variant runs once.
`today` is the model's own pass of `pass_rows` images, `best size` the
fastest of its own passes, `measured` what `sl.execution(compile="auto")` chooses for some minutes of work;
with `--compile`, for a day of work, where it compiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import saliency_lab as sl
from saliency_lab._common.inference import check_classifier, pass_rows, seconds_per_image, undisturbed
from saliency_lab._common.passes import Passes, same_logits

MINUTES, DAY = 90.0, 86_400.0


def own(name: str, shape: tuple[int, ...]) -> Callable[[], tuple[nn.Module, tuple[int, ...]]]:
    return lambda: (sl.build_model(name, input_shape=shape), shape)


def pretrained(name: str) -> Callable[[], tuple[nn.Module, tuple[int, ...]]]:
    return lambda: (getattr(torchvision.models, name)(weights=None), (3, 224, 224))


NETWORKS = {
    "sgt_cnn": own("sgt_cnn", (1, 28, 28)),
    "resnet8": own("resnet8", (3, 32, 32)),
    "resnet18": own("resnet18", (3, 32, 32)),
    "resnet50": pretrained("resnet50"),
    "vit_b_16": pretrained("vit_b_16"),
}


def seconds(run: Callable[[Tensor], object], images: Tensor) -> float:
    """Time a run per image."""
    began = time.process_time()
    run(images)
    return (time.process_time() - began) / len(images)


def backwards(net: Callable[[Tensor], Tensor]) -> Callable[[Tensor], object]:
    """Run forward and back to the input."""

    def run(images: Tensor) -> object:
        points = images.clone().requires_grad_(True)
        return torch.autograd.grad(net(points).amax(1).sum(), points)

    return run


def measure(name: str, direction: str, work: float, rounds: int) -> dict[str, object]:
    torch.manual_seed(0)
    net, shape = NETWORKS[name]()
    net.eval()
    back = direction == "back"
    most = 128 if shape[-1] < 100 else 16
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128) if most / 16 <= size <= most]
    x = torch.rand(max(sizes), *shape)
    check_classifier(net, x)
    usual = pass_rows(net, x.shape, backward=back)
    sizes = sorted({*sizes, usual})
    speed = seconds_per_image(net, x.shape[1:])
    assert speed is not None
    passes = Passes(net, x, backward=back)
    began = time.perf_counter()
    passes.expect(int(work / speed))
    spent = time.perf_counter() - began
    plan = passes.plan
    with undisturbed(net):
        plain = backwards(net) if back else torch.no_grad()(net)
        variants: dict[object, tuple[Callable[[Tensor], object], int]] = {
            size: (plain, size) for size in sizes
        }
        if plan is not None:
            fast = backwards(passes.differentiable()) if back else passes.logits
            variants["measured"] = fast, plan.rows
        table: dict[object, list[float]] = {key: [] for key in variants}
        for turn in range(rounds + 1):
            for key, (run, size) in variants.items():
                took = seconds(run, x[:size])
                if turn:  # the first round warms up
                    table[key].append(took)
        if plan is not None and not back:
            assert same_logits(passes.logits(x), torch.cat([net(part) for part in x.split(usual)]).detach())
    middle = {key: statistics.median(values) for key, values in table.items()}
    best = min(sizes, key=lambda size: middle[size])
    chosen = "measured" if plan is not None else usual

    def ratio(first: object, second: object) -> float:
        return round(statistics.median(a / b for a, b in zip(table[first], table[second], strict=True)), 3)

    return {
        "network": name,
        "direction": direction,
        "today ms": round(1000 * middle[usual], 3),
        "best size": best,
        "best size / today": ratio(best, usual),
        "measured / today": ratio(chosen, usual),
        "measured / best size": ratio(chosen, best),
        "form": "own passes" if plan is None else _form(plan.facts()),
        "seconds of measuring": round(spent, 2),
    }


def _form(facts: dict[str, object]) -> str:
    parts = [f"{facts['rows']} images", str(facts["layout"])]
    return ", ".join([*parts, *(part for part in ("folded", "compiled") if facts[part])])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the small networks, few rounds, under a minute")
    parser.add_argument("--only", choices=list(NETWORKS), action="append", help="this network; repeatable")
    parser.add_argument("--compile", action="store_true", help="also what is chosen for a day of work")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.only or (["sgt_cnn", "resnet8"] if options.quick else list(NETWORKS))
    rounds = 3 if options.quick else 9
    rows = []
    for name in names:
        for direction in ("forward", "back"):
            works = [MINUTES, DAY] if options.compile and direction == "forward" else [MINUTES]
            for work in works:
                row = measure(name, direction, work, rounds)
                rows.append(row)
                if len(rows) == 1:
                    print(" | ".join(row))
                print(" | ".join(str(value) for value in row.values()), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
