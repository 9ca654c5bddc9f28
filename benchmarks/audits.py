"""How often the audit is wrong: false belief on broken defences, false alarm on honest networks.

    python -m benchmarks.audits [--quick] [--json FILE] [--images 50 100] [--norms linf l2] [--root DIR]
                               [--docs FILE]

Every network of `benchmarks/defences.py` is audited. The table shows, for each, the accuracy that PGD
reports, the worst case of the audit, and the accuracy that an adaptive attack reaches (gradients of the
undefended network, points judged on the defended one). Rates come with exact (Clopper-Pearson) 95 %
intervals. With `--docs`, the tables replace what stands between the two marks of that page. Networks that
are done are kept in `--json`, and are not audited again.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from scipy.stats import beta
from torch import Tensor, nn

import saliency_lab as sl

sys.path.insert(0, str(Path(__file__).parents[1]))  # where it is run by its path
from benchmarks.defences import BROKEN, honest_networks

RADII = {"mnist": {"linf": 0.1, "l2": 1.5}, "digits": {"linf": 0.05, "l2": 0.7}}
CAUSE = 0.05  # a refusal has a cause if other attacks lower the accuracy by this much
START, END = "<!-- audits: begin -->", "<!-- audits: end -->"


def adaptive(model: nn.Module, inner: nn.Module, x: Tensor, y: Tensor, **ball: Any) -> float:
    """Accuracy under gradients of the undefended network, with points judged on the defended one."""
    runs = [
        sl.attack(model, x, y, gradients_from=inner, loss=loss, **ball).robust for loss in ("margin", "ce")
    ]
    runs.append(sl.transfer_attack(model, inner, x, y, loss="margin", **ball).robust)
    return torch.stack(runs).all(0).double().mean().item()


def examine(model: nn.Module, inner: nn.Module | None, x: Tensor, y: Tensor, **ball: Any) -> dict[str, Any]:
    """Audit one network and run the adaptive attack; for an honest network that is AutoAttack."""
    begun = time.process_time()
    report = sl.audit(model, x, y, **ball)
    seconds = time.process_time() - begun
    if inner is None:
        lowest = report.worst_case
    else:
        draws = 8 if report["determinism"].numbers["random"] else 1
        lowest = adaptive(model, inner, x, y, samples=draws, **ball)
    return {
        "verdict": report.verdict,
        "reported": report.robust_accuracy,
        "worst_case": report.worst_case,
        "adaptive": lowest,
        "seconds": seconds,
    }


def exact(count: int, n: int) -> str:
    """Share with its Clopper-Pearson 95 % interval."""
    low = 0.0 if count == 0 else beta.ppf(0.025, count, n - count + 1)
    high = 1.0 if count == n else beta.ppf(0.975, count + 1, n - count)
    return f"{count} of {n} = {count / n:.0%} [{low:.0%}, {high:.0%}]"


def write_tables(results: dict[str, dict[str, Any]], data: str) -> str:
    """Rates, the excess of the worst case over the adaptive attack, and the networks, as Markdown."""
    rows = [{**dict(zip(("kind", "name", "norm", "images"), key.split("|"), strict=True)), **each}
            for key, each in results.items()]  # fmt: skip
    settings = sorted({(r["norm"], int(r["images"])) for r in rows})
    lines = [
        "| norm | images | broken and believed | honest and not believed "
        "| honest, not believed, and without cause | median audit of an honest network |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for norm, images in settings:
        here = [r for r in rows if (r["norm"], int(r["images"])) == (norm, images)]
        broken, honest = ([r for r in here if r["kind"] == kind] for kind in ("broken", "honest"))
        if not (broken and honest):
            continue
        believed = sum(r["verdict"] == "believe" for r in broken)
        refused = [r for r in honest if r["verdict"] != "believe"]
        wrongly = sum(r["reported"] - r["worst_case"] < CAUSE for r in refused)
        typical = statistics.median(r["seconds"] for r in honest)
        lines.append(
            f"| {norm}, ε = {RADII[data][norm]} | {images} | {exact(believed, len(broken))} | "
            f"{exact(len(refused), len(honest))} | {exact(wrongly, len(honest))} | {typical:.1f} s |"
        )
    lines += ["", excess(rows), "", refusals(rows)]

    def size(setting: tuple[str, int]) -> tuple[int, int]:
        return sum((r["norm"], int(r["images"])) == setting for r in rows), setting[1]

    norm, images = max(settings, key=size)
    lines += [
        f"\n<details>\n<summary>Each network at {norm}, {images} images</summary>\n",
        "| network | verdict | reported | worst case | adaptive attack |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['kind']}: {r['name']} | {r['verdict']} | {r['reported']:.0%} | {r['worst_case']:.0%} | "
        + (f"{r['adaptive']:.0%} |" if r["kind"] == "broken" else "– |")
        for r in rows
        if (r["norm"], int(r["images"])) == (norm, images)
    ]
    return "\n".join([*lines, "", "</details>"])


def excess(rows: list[dict[str, Any]]) -> str:
    """Say by how much the worst case of an audit lies above the adaptive attack."""
    broken = [r for r in rows if r["kind"] == "broken"]
    above: dict[str, list[float]] = {}
    for r in broken:
        if r["worst_case"] - r["adaptive"] > 0.025:
            above.setdefault(r["name"], []).append(100 * (r["worst_case"] - r["adaptive"]))
    listed = "; ".join(f"{name} (by {max(points):.0f} points at most)" for name, points in above.items())
    near = len(broken) - sum(map(len, above.values()))
    share = f"{near} of {len(broken)}" if listed else f"all {len(broken)}"
    return (
        f"In {share} audits of broken defences the worst case is at most 2 points above the accuracy that\n"
        f"the adaptive attack leaves.{f' The others: {listed}.' if listed else ''}"
    )


def refusals(rows: list[dict[str, Any]]) -> str:
    """List the honest networks that were not believed, and by how much the reported number was too high."""
    listed: dict[str, list[str]] = {}
    for r in rows:
        if r["kind"] == "honest" and r["verdict"] != "believe":
            points = 100 * (r["reported"] - r["worst_case"])
            listed.setdefault(r["name"], []).append(f"{points:.0f} ({r['norm']}, {r['images']} images)")
    lines = [
        "| honest network that was refused | points by which the reported number was too high |",
        "| --- | --- |",
    ]
    return "\n".join(lines + [f"| {name} | {', '.join(points)} |" for name, points in listed.items()])


def write_page(path: Path, tables: str) -> None:
    """Put the tables between the two marks of a page."""
    page = path.read_text(encoding="utf-8")
    fresh = f"{START}\n\n{tables}\n\n{END}"
    path.write_text(re.sub(f"{START}.*{END}", lambda _: fresh, page, flags=re.S), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[50, 100])
    parser.add_argument("--norms", nargs="+", default=["linf", "l2"])
    parser.add_argument("--kinds", nargs="+", choices=["honest", "broken"], default=["honest", "broken"])
    parser.add_argument("--data", choices=list(RADII), default="mnist")
    parser.add_argument("--root", default="data")
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where audits are kept, and continued from")
    parser.add_argument("--quick", action="store_true", help="a few networks on 20 digits, under a minute")
    given = parser.parse_args()
    if given.quick:
        given.data, given.images, given.norms = "digits", [20], ["linf"]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = (
        sl.load_dataset(given.data, root=given.root) if given.data == "mnist" else sl.load_dataset("digits")
    )
    zoo = {
        f"{given.data}/{name}": sl.load_model(f"{given.data}/{name}")
        for name in ("standard", "at", "asgt", "sgt")
    }
    base = zoo[f"{given.data}/standard"]
    builders = honest_networks(data, zoo) if "honest" in given.kinds else {}
    honest = {name: functools.cache(make) for name, make in builders.items()}  # trained when first needed
    broken = BROKEN
    if given.quick:
        honest, broken = dict(list(honest.items())[:2]), dict(list(BROKEN.items())[:3])
    results = json.loads(given.json.read_text()) if given.json is not None and given.json.is_file() else {}
    for images in given.images:
        x, y = data.test.sample(images, seed=0)
        for norm in given.norms:
            ball = {"eps": RADII[given.data][norm], "norm": norm}
            networks = [("honest", name, make, None) for name, make in honest.items()]
            if "broken" in given.kinds:
                defended = {name: functools.partial(make, base) for name, make in broken.items()}
                networks += [("broken", name, make, base) for name, make in defended.items()]
            for kind, name, build, inner in networks:
                key = f"{kind}|{name}|{norm}|{images}"
                if key not in results:
                    results[key] = examine(build().eval(), inner, x, y, **ball)
                    if given.json is not None:
                        given.json.write_text(json.dumps(results, indent=1))
                    print(key, results[key], flush=True)
    tables = write_tables(results, given.data)
    print(tables)
    if given.docs:
        write_page(given.docs, tables)


if __name__ == "__main__":
    main()
