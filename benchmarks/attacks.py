"""PGD compared with the bare passes it needs, and its strength with pyautoattack's and torchattacks'.

    python benchmarks/attacks.py [--quick] [--only speed|strength] [--json FILE]

Time: ratios are medians over rounds in which the contenders take turns, of CPU time, which other work on
the machine disturbs less than the clock. The floor is as many forward and input-gradient passes as PGD has
steps, in the same chunks, parameters frozen. Strength: robust accuracy on the test digits at the same ε and
number of steps; a positive gap to the strongest other PGD or APGD means that ours is weaker.

torchattacks pins an old `requests`, so it is no dependency: `pip install --no-deps torchattacks` adds it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor, nn

import saliency_lab as sl
from saliency_lab._common.inference import pass_rows, undisturbed
from saliency_lab._common.seeding import preserved_rng
from saliency_lab.attacks.ascent import projected_ascent, random_start

try:
    import torchattacks
except ImportError:
    torchattacks = None

LIBRARY_NORM = {"linf": "Linf", "l2": "L2"}


def train(data: Any, eps: float, epochs: int) -> nn.Module:
    """A small_cnn on digits: plain for ε = 0, else on PGD-5 points with a ramp of ε."""
    model = sl.build_model("small_cnn", seed=0).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    source = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        radius = eps * min(1, (epoch + 1) / 3)
        for rows in torch.randperm(len(data.train), generator=source).split(64):
            x, y = data.train.batch(rows)
            if radius:

                def slope(point: Tensor, y: Tensor = y) -> Tensor:
                    point = point.detach().requires_grad_()
                    return torch.autograd.grad(F.cross_entropy(model(point), y), point)[0]

                start = random_start(x, radius, "linf", torch.rand(x.shape, generator=source))
                x = projected_ascent(
                    x, slope, start=start, eps=radius, step_size=radius / 2, steps=5
                ).detach()
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimiser.step()
    model.zero_grad()
    return model.eval()


def bare_passes(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    with undisturbed(model):
        rows = pass_rows(model, x.shape, backward=True)
        for images, labels in zip(x.split(rows), y.split(rows), strict=True):
            point = images.clone().requires_grad_()
            for _ in range(steps):
                torch.autograd.grad(F.cross_entropy(model(point), labels, reduction="sum"), point)


def textbook_pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, norm: str, seed: int = 0
) -> Tensor:
    """Madry's PGD as it is usually written: 2.5·ε/steps, the last iterate."""
    source = torch.Generator().manual_seed(seed)
    alpha = 2.5 * eps / steps
    with undisturbed(model):
        if norm == "linf":
            point = (x + eps * (2 * torch.rand(x.shape, generator=source) - 1)).clamp(0, 1)
        else:
            noise = torch.randn(x.shape, generator=source)
            length = noise.flatten(1).norm(dim=1) / torch.rand(len(x), generator=source)
            point = (x + eps * noise / length.reshape(-1, 1, 1, 1)).clamp(0, 1)
        for _ in range(steps):
            point.requires_grad_()
            slope = torch.autograd.grad(F.cross_entropy(model(point), y), point)[0]
            if norm == "linf":
                delta = (point.detach() + alpha * slope.sign() - x).clamp(-eps, eps)
            else:
                unit = slope / slope.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, 1, 1, 1)
                delta = point.detach() + alpha * unit - x
                length = delta.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
                delta = delta * (eps / length.clamp_min(1e-12)).clamp_max(1)
            point = (x + delta).clamp(0, 1)
    return point


def cpu_seconds(run: Callable[[], object]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


def ratios(
    floor: Callable[[], object], runs: dict[str, Callable[[], object]], rounds: int
) -> dict[str, float]:
    """Median over rounds of each run's CPU time over the floor's in the same round."""
    floor()
    for run in runs.values():
        run()
    seen: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        base = cpu_seconds(floor)
        for name, run in runs.items():
            seen[name].append(cpu_seconds(run) / base)
    return {name: statistics.median(values) for name, values in seen.items()}


def contenders(case: tuple[nn.Module, Tensor, Tensor], steps: int) -> dict[str, Callable[[], object]]:
    """PGD with an ε so small that nothing breaks: every sample takes every step, as in the bare passes."""
    model, x, y = case
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: sl.attack(model, x, y, eps=1e-5, steps=steps, early_stop=False),
        "ours, L2": lambda: sl.attack(model, x, y, eps=1e-5, steps=steps, early_stop=False, norm="l2"),
    }
    rows = pass_rows(model, x.shape, backward=True)
    chunks = list(zip(x.split(rows), y.split(rows), strict=True))
    runs["textbook code"] = lambda: [textbook_pgd(model, *pair, 1e-5, steps, "linf") for pair in chunks]
    if torchattacks is not None:
        peer = torchattacks.PGD(model, eps=1e-5, alpha=1e-6, steps=steps)
        runs["torchattacks"] = lambda: [peer(*pair) for pair in chunks]
    return runs


def speed(data: Any, weak: nn.Module, quick: bool) -> pd.DataFrame:
    count, steps, rounds = (64, 20, 3) if quick else (256, 40, 7)
    x, y = data.test.sample(count, seed=0)
    rgb = torch.rand(2 * count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    resnet = sl.build_model("resnet8", input_shape=(3, 32, 32), num_classes=10, seed=0).eval()
    with torch.no_grad():
        rgb_labels = torch.cat([resnet(chunk).argmax(1) for chunk in rgb.split(64)])
    with torch.no_grad():
        right = weak(x).argmax(1) == y
    rows = []
    cases = {"small_cnn 1×28×28": (weak, x[right], y[right]), "resnet8 3×32×32": (resnet, rgb, rgb_labels)}
    for name, case in cases.items():
        taken = rounds if len(case[1]) <= count else 3  # a round takes a minute
        ratio_of = ratios(lambda c=case: bare_passes(*c, steps), contenders(case, steps), taken)
        rows += [
            {"model": name, "what": f"{who}, PGD-{steps} over the bare passes", "ratio": ratio}
            for who, ratio in ratio_of.items()
        ]
    saving = ratios(
        lambda: sl.attack(weak, x, y, eps=0.2, steps=steps, early_stop=False),
        {"early": lambda: sl.attack(weak, x, y, eps=0.2, steps=steps)},
        rounds,
    )["early"]
    rows.append({"model": "small_cnn 1×28×28", "what": "early stop over none, ε = 0.2", "ratio": saving})
    return pd.DataFrame(rows)


def strength(data: Any, models: dict[str, nn.Module], quick: bool) -> pd.DataFrame:
    x, y = data.test.batch(torch.arange(60 if quick else len(data.test)))
    steps, seeds = (20, 1) if quick else (40, 3)

    def robust_accuracy(model: nn.Module, points: Tensor) -> float:
        with torch.no_grad():
            return (model(points).argmax(1) == y).double().mean().item()

    rows = []
    for name, model in models.items():
        for norm, eps in (("linf", 0.1), ("l2", 1.5)):
            entry: dict[str, Any] = {"model": name, "norm": norm, "eps": eps}
            accuracies: dict[str, list[float]] = {}
            for seed in range(seeds):
                for method in ("pgd", "apgd_ce", "apgd_dlr"):
                    result = sl.attack(model, x, y, method, eps=eps, norm=norm, steps=steps, seed=seed)
                    accuracies.setdefault(method, []).append(result.robust_accuracy)
                points = textbook_pgd(model, x, y, eps, steps, norm, seed)
                accuracies.setdefault("textbook PGD", []).append(robust_accuracy(model, points))
                for loss in ("ce", "dlr"):
                    library = APGDAttack(
                        model,
                        n_iter=steps,
                        norm=LIBRARY_NORM[norm],
                        eps=eps,
                        loss=loss,
                        device="cpu",
                        seed=seed,
                    )
                    with preserved_rng(), undisturbed(model):
                        points = library.perturb(x, y)
                    accuracies.setdefault(f"pyautoattack APGD-{loss.upper()}", []).append(
                        robust_accuracy(model, points)
                    )
                if torchattacks is not None:
                    with preserved_rng(seed):
                        plain = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
                        points = plain(model, eps=eps, alpha=2.5 * eps / steps, steps=steps)(x, y)
                        accuracies.setdefault("torchattacks PGD", []).append(robust_accuracy(model, points))
                        adaptive = torchattacks.APGD(
                            model, norm=LIBRARY_NORM[norm], eps=eps, steps=steps, seed=seed
                        )
                        accuracies.setdefault("torchattacks APGD-CE", []).append(
                            robust_accuracy(model, adaptive(x, y))
                        )
            entry |= {key: statistics.mean(values) for key, values in accuracies.items()}
            rows.append(entry)
    table = pd.DataFrame(rows)
    pgd = [column for column in table if "PGD" in column and not column.endswith("DLR")]
    table["pgd gap (points)"] = 100 * (table["pgd"] - table[pgd].min(axis=1))
    ce = [column for column in pgd if "APGD-CE" in column]
    table["apgd_ce gap (points)"] = 100 * (table["apgd_ce"] - table[ce].min(axis=1))
    table["apgd_dlr gap (points)"] = 100 * (table["apgd_dlr"] - table["pyautoattack APGD-DLR"])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer images, steps, rounds: under a minute")
    parser.add_argument("--only", choices=["speed", "strength"])
    parser.add_argument("--json", type=Path, help="write the tables here as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sl.show_progress(False)
    data = sl.load_dataset("digits")
    models = {"standard": train(data, 0.0, 6)}
    if arguments.only != "speed":
        models["adversarially trained"] = train(data, 0.1, 6 if arguments.quick else 12)
    tables = {}
    if arguments.only in (None, "speed"):
        tables["speed"] = speed(data, models["standard"], arguments.quick)
        print(tables["speed"].to_string(index=False, float_format="%.3f"))
    if arguments.only in (None, "strength"):
        tables["strength"] = strength(data, models, arguments.quick)
        print()
        print(tables["strength"].set_index(["model", "norm"]).T.to_string(float_format="%.4f"))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({name: table.to_dict(orient="records") for name, table in tables.items()}, indent=2)
        )


if __name__ == "__main__":
    main()
