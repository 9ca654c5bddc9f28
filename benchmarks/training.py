"""Time of a training step by objective, as a multiple of a standard step of the same network and batch.

    python benchmarks/training.py [--quick] [--json FILE]

Each round takes one step of every objective in turn, on one thread, in processor time; a figure is the median
over the rounds of the ratio within the round, so that a machine that slows down slows both. Beside ours:
saliency-guided training as a loop over samples, the way public code does it. Peak memory is that of a fresh
process for each number of PGD steps.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import saliency_lab as sl
from saliency_lab.training import OBJECTIVES, AttackSpec, Step

OURS = {
    "standard": ("standard", {}),
    "sgt": ("sgt", {}),
    "at, PGD-7": ("at", {}),
    "at, PGD-7, clean term": ("at", {"clean_weight": 1.0}),
    "asgt, PGD-7": ("asgt", {}),
    "asgt, PGD-7, saliency reused": ("asgt", {"saliency": "reuse"}),
    "trades, PGD-7": ("trades", {}),
}
CASES = {
    "sgt_cnn, 256 × 1×28×28": ("sgt_cnn", 256, (1, 28, 28)),
    "small_cnn, 256 × 1×28×28": ("small_cnn", 256, (1, 28, 28)),
    "resnet18, 64 × 3×32×32": ("resnet18", 64, (3, 32, 32)),
}
LOOP = "sgt, a loop over samples"


def make(case: str) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor, torch.optim.Optimizer]:
    name, rows, shape = CASES[case]
    draws = torch.Generator().manual_seed(0)
    net = sl.build_model(name, input_shape=shape).train()
    x = torch.rand(rows, *shape, generator=draws)
    y = torch.randint(0, 10, (rows,), generator=draws)
    return net, x, y, torch.optim.SGD(net.parameters(), 1e-4)


def our_step(objective: str, settings: dict, net, x, y, optimiser, steps: int = 7) -> None:
    spec = AttackSpec(eps=0.1, steps=steps)
    terms = OBJECTIVES[objective](**settings).terms(
        Step(net=net, x=x, y=y, attack=spec, eps=0.1, progress=0.5, seed=0)
    )
    optimiser.zero_grad()
    sum(terms.values()).backward(inputs=list(net.parameters()))
    optimiser.step()


def loop_step(net, x, y, optimiser) -> None:
    """Saliency and mask sample by sample, then the two batched forwards."""
    hidden = []
    for image, label in zip(x, y, strict=True):
        point = image[None].clone().requires_grad_()
        (saliency,) = torch.autograd.grad(net(point)[0, label], point)
        order = saliency[0].mean(0).flatten().argsort()[: saliency[0, 0].numel() // 2]
        changed = image.clone().flatten(1)
        for channel in changed:
            channel[order] = torch.empty(len(order)).uniform_(channel.min().item(), channel.max().item())
        hidden.append(changed.view_as(image))
    clean, masked = net(x), net(torch.stack(hidden))
    divergence = F.kl_div(masked.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="batchmean")
    optimiser.zero_grad()
    (F.cross_entropy(clean, y) + divergence).backward()
    optimiser.step()


def measure(case: str, rounds: int, quick: bool) -> dict[str, float]:
    net, x, y, optimiser = make(case)
    jobs = {
        name: lambda o=objective, s=settings: our_step(o, s, net, x, y, optimiser)
        for name, (objective, settings) in OURS.items()
    }
    if not quick or "small" in case:
        jobs[LOOP] = lambda: loop_step(net, x, y, optimiser)
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(rounds + 1):
        for name, job in jobs.items():
            started = time.process_time()
            job()
            if round_:  # the first warms up
                taken[name].append(time.process_time() - started)
    floor = taken["standard"]
    ratios = {
        name: statistics.median(t / base for t, base in zip(times, floor, strict=True))
        for name, times in taken.items()
    }
    return {"standard step, seconds": statistics.median(floor)} | ratios


def peak_memory(steps: int, queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    net, x, y, optimiser = make("small_cnn, 256 × 1×28×28")
    for _ in range(3):
        our_step("at", {}, net, x, y, optimiser, steps=steps)
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds; under a minute on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, dict[str, float]] = {}
    for case in CASES:
        if arguments.quick and "resnet18" in case:
            continue
        figures[case] = measure(case, 3 if arguments.quick or "resnet18" in case else 9, arguments.quick)
        print(f"\n{case}")
        for name, value in figures[case].items():
            print(f"  {name:34s} {value:8.3f}" + ("" if "seconds" in name else " ×"))
    spawn = multiprocessing.get_context("spawn")
    print("\npeak memory of at, small_cnn, MiB")
    figures["peak memory, MiB"] = {}
    for steps in (1, 7, 40):
        queue = spawn.Queue()
        process = spawn.Process(target=peak_memory, args=(steps, queue))
        process.start()
        figures["peak memory, MiB"][f"PGD-{steps}"] = queue.get()
        process.join()
        print(f"  PGD-{steps:<3d} {figures['peak memory, MiB'][f'PGD-{steps}']:8.0f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
