"""Time of a training step by objective, as a multiple of a standard step of the same network and batch.

    python benchmarks/training.py [--quick] [--only PART] [--json FILE]

Each round takes one step of every objective in turn, on one thread, in processor time; a figure is the median
over the rounds of the ratio within the round, so that a machine that slows down slows both. Compared with
ours: saliency-guided training as a loop over samples, the way public code does it; a saliency that shares no
forward pass; a batch from memory (RGB: cropped and flipped). As in `train`, freed memory is kept. What that
changes, and peak memory, are measured in fresh processes, several in turn for each time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F

import saliency_lab as sl
from saliency_lab._common.memory import freed_memory_kept
from saliency_lab.data import Split
from saliency_lab.training import OBJECTIVES, AttackSpec, Step
from saliency_lab.training.augmentation import crop_and_flip

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
    "sgt_cnn": (256, (1, 28, 28)),
    "small_cnn": (256, (1, 28, 28)),
    "resnet18": (64, (3, 32, 32)),
}
MEMORY = "memory"
LOOP, PASS, BATCH = "sgt, a loop over samples", "a bare pass to a saliency", "a batch from memory"
GIVEN_BACK = "memory given back"
FRESH = {  # objective, network, PGD steps, whether freed memory is kept, processes
    "at, small_cnn, PGD-1": ("at", "small_cnn", 1, True, 1),
    "at, small_cnn, PGD-7": ("at", "small_cnn", 7, True, 1),
    "at, small_cnn, PGD-40": ("at", "small_cnn", 40, True, 1),
    "standard, sgt_cnn": ("standard", "sgt_cnn", 7, True, 3),
    f"standard, sgt_cnn, {GIVEN_BACK}": ("standard", "sgt_cnn", 7, False, 3),
    "asgt, sgt_cnn, PGD-7": ("asgt", "sgt_cnn", 7, True, 3),
    f"asgt, sgt_cnn, PGD-7, {GIVEN_BACK}": ("asgt", "sgt_cnn", 7, False, 3),
}


def make(case: str) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor, torch.optim.Optimizer]:
    rows, shape = CASES[case]
    draws = torch.Generator().manual_seed(0)
    net = sl.build_model(case, input_shape=shape).train()
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


def bare_saliency(net, x, y) -> None:
    """One forward and one backward to the input, in eval mode."""
    point = x.clone().requires_grad_()
    net.eval()
    torch.autograd.grad(net(point).gather(1, y[:, None]).sum(), point)
    net.train()


def loading(case: str) -> Callable[[], object]:
    """A random batch of 8-bit images in memory, as the loop takes it."""
    rows, shape = CASES[case]
    images = Split(torch.randint(0, 256, (10_000, *shape), dtype=torch.uint8), torch.zeros(10_000).long())
    order, draws = torch.randperm(10_000), torch.rand(rows, 3)
    if shape[0] == 1:
        return lambda: images.batch(order[:rows])
    return lambda: crop_and_flip(images.batch(order[:rows]).x, draws)


def seconds(job: Callable[[], object]) -> float:
    started = time.process_time()
    job()
    return time.process_time() - started


def ratios(taken: dict[str, list[float]], floor: str) -> dict[str, float]:
    return {
        name: statistics.median(t / base for t, base in zip(times, taken[floor], strict=True))
        for name, times in taken.items()
    }


def measure(case: str, rounds: int, quick: bool) -> dict[str, float]:
    net, x, y, optimiser = make(case)
    jobs = {
        name: lambda o=objective, s=settings: our_step(o, s, net, x, y, optimiser)
        for name, (objective, settings) in OURS.items()
    }
    jobs[PASS] = lambda: bare_saliency(net, x, y)
    jobs[BATCH] = loading(case)
    if not quick or case == "small_cnn":
        jobs[LOOP] = lambda: loop_step(net, x, y, optimiser)
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    with freed_memory_kept():
        jobs["standard"]()  # warms up
        for _ in range(rounds):
            for name, job in jobs.items():
                taken[name].append(seconds(job))
    return {"standard step, seconds": statistics.median(taken["standard"])} | ratios(taken, "standard")


def in_fresh_process(objective: str, case: str, steps: int, kept: bool, queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    net, x, y, optimiser = make(case)
    with freed_memory_kept() if kept else nullcontext():
        taken = [seconds(lambda: our_step(objective, {}, net, x, y, optimiser, steps)) for _ in range(5)]
    status = Path("/proc/self/status").read_text()  # ru_maxrss would tell of the parent too
    queue.put((statistics.median(taken), int(status.split("VmHWM:")[1].split()[0]) / 1024))


def memory() -> dict[str, dict[str, float]]:
    spawn = multiprocessing.get_context("spawn")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in FRESH}
    for turn in range(max(processes for *_, processes in FRESH.values())):
        for name, (*settings, processes) in FRESH.items():
            if turn < processes:
                queue = spawn.Queue()
                process = spawn.Process(target=in_fresh_process, args=(*settings, queue))
                process.start()
                found[name].append(queue.get())
                process.join()
    return {
        name: {
            "seconds a step": statistics.median(taken for taken, _ in rows),
            "peak, MiB": max(mib for _, mib in rows),
        }
        for name, rows in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="few rounds, no resnet18, no memory; under a minute"
    )
    parser.add_argument("--only", choices=[*CASES, MEMORY], help="measure this part alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, dict] = {}
    for case, (rows, shape) in CASES.items():
        if arguments.only not in (None, case) or (arguments.quick and case == "resnet18"):
            continue
        rounds = 2 if case == "resnet18" else 3 if arguments.quick else 9
        figures[case] = measure(case, rounds, arguments.quick)
        print(f"\n{case}, {rows} × {'×'.join(map(str, shape))}")
        for name, value in figures[case].items():
            print(f"  {name:34s} {value:8.3f}" + ("" if "seconds" in name else " ×"))
    wanted = arguments.only == MEMORY or not (arguments.only or arguments.quick)
    if wanted and Path("/proc/self/status").exists():
        figures[MEMORY] = memory()
        print(f"\n{'fresh processes':42s} seconds a step  peak, MiB")
        for name, row in figures[MEMORY].items():
            print(f"  {name:40s} {row['seconds a step']:14.3f} {row['peak, MiB']:10.0f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
