"""Simulate the statistics: error rates of the marks, coverage of the intervals, power.

python benchmarks/simulations.py [--quick] [--json FILE]

The tables in docs/statistics.md are printed by this command.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import special

import saliency_lab as sl
from saliency_lab.comparison import statistics
from saliency_lab.comparison.measures import Measure

Draws = np.random.Generator
Values = np.ndarray
SEEDS = (2, 3, 5, 10)


def scores(draws: Draws, seeds: int, images: Values, *, shift: float = 0.0, spread: float = 0.5) -> Values:
    """Draw scores (seeds, images) of one recipe, of which the images have a standard deviation of about 1."""
    by_seed = shift + spread * draws.normal(size=(seeds, 1))
    return by_seed + images + 0.3 * draws.normal(size=(seeds, len(images)))


def accuracies(
    draws: Draws, seeds: int, images: Values, *, shift: float = 0.0, spread: float = 0.5
) -> Values:
    """Draw right predictions (seeds, images) at about 80 % accuracy; seeds vary on the logit scale."""
    rates = special.expit(1.4 + shift + spread * draws.normal(size=(seeds, 1)))
    noise = math.sqrt(0.4) * draws.normal(size=(seeds, len(images)))
    return math.sqrt(0.6) * images + noise < special.ndtri(rates)


def family_wise_error(runs: int) -> list[dict[str, object]]:
    """Share of tables with at least one wrong mark, and share of true differences that are marked."""
    kinds: dict[str, tuple[Callable[..., Values], int, float, float]] = {
        "20 scores": (scores, 20, 2.0, 0.5),
        "60 scores": (scores, 60, 2.0, 0.5),
        "20 accuracies": (accuracies, 20, 2.0, 0.5),
        "20 scores, one recipe stable": (scores, 20, 2.0, 0.0),
    }
    rows: list[dict[str, object]] = []
    for name, (draw, size, shift, spread) in kinds.items():
        for seeds in SEEDS:
            draws = np.random.default_rng(seeds)
            wrong, marked = 0, []
            for _ in range(runs):
                p = {0.0: np.empty(size), shift: np.empty(size)}
                for i in range(size):
                    images = draws.normal(size=300)
                    baseline = draw(draws, seeds, images, spread=spread)
                    for true, values in p.items():
                        model = draw(draws, seeds, images, shift=true)
                        measure = Measure(name, "", np.nan, "higher", {"model": model, "baseline": baseline})
                        values[i] = measure.p_value("model", "baseline")
                wrong += bool((statistics.holm(p[0.0]) < 0.05).any())
                marked.append(np.mean(statistics.holm(p[shift]) < 0.05))
            rows.append(
                {
                    "table": name,
                    "seeds": seeds,
                    "tables with a wrong mark": percent(wrong / runs),
                    "true differences marked": percent(float(np.mean(marked))),
                }
            )
    return rows


def coverage_over_images(runs: int) -> list[dict[str, object]]:
    """Coverage of the interval of a mean over images, one seed, at 95 %."""

    def inflated(share: float) -> Callable[[Draws, int], Values]:
        return lambda draws, n: np.where(draws.random(n) < share, draws.exponential(size=n), 0.0)

    populations: dict[str, tuple[Callable[[Draws, int], Values], float]] = {
        "normal": (lambda draws, n: draws.normal(size=n), 0.0),
        "exponential": (lambda draws, n: draws.exponential(size=n), 1.0),
        "log-normal": (lambda draws, n: draws.lognormal(size=n), math.exp(0.5)),
        "zero but for 20 %": (inflated(0.2), 0.2),
        "zero but for 10 %": (inflated(0.1), 0.1),
        "zero but for 5 %": (inflated(0.05), 0.05),
    }
    rows: list[dict[str, object]] = []
    for name, (draw, mean) in populations.items():
        for n in (20, 50, 100, 500):
            draws = np.random.default_rng(n)
            found = [statistics.mean_estimate(draw(draws, n)[None]).interval(0.95) for _ in range(runs)]
            rows.append({"scores": name, "images": n} | covered(found, mean))
    return rows


def coverage_over_seeds(runs: int) -> list[dict[str, object]]:
    """Coverage over seeds and images, at 95 %, of recipes of many kinds."""

    def means(draw: Callable[[Draws, int], Values]) -> Callable[[Draws, int], Values]:
        def values(draws: Draws, seeds: int) -> Values:
            noise = 0.3 * draws.normal(size=(seeds, 200))
            return draw(draws, seeds)[:, None] + draws.normal(size=200) + noise

        return values

    def right(draw: Callable[[Draws, int], Values]) -> Callable[[Draws, int], Values]:
        def values(draws: Draws, seeds: int) -> Values:
            latent = math.sqrt(0.6) * draws.normal(size=500) + math.sqrt(0.4) * draws.normal(
                size=(seeds, 500)
            )
            return latent < special.ndtri(draw(draws, seeds))[:, None]

        return values

    def collapsed(draws: Draws, seeds: int) -> Values:
        return np.where(draws.random(seeds) < 0.2, 0.1, draws.normal(0.95, 0.01, seeds).clip(0, 1))

    recipes: dict[str, tuple[Callable[[Draws, int], Values], float]] = {
        "score, normal seeds": (means(lambda draws, s: draws.normal(size=s) * 0.5), 0.0),
        "score, normal seeds, four times as varied as images": (
            means(lambda draws, s: draws.normal(size=s) * 4),
            0.0,
        ),
        "score, exponential seeds": (means(lambda draws, s: draws.exponential(size=s) * 0.5), 0.5),
        "accuracy near 0.03": (right(lambda draws, s: draws.beta(0.6, 19.4, s)), 0.03),
        "accuracy near 0.5": (right(lambda draws, s: draws.beta(20, 20, s)), 0.5),
        "accuracy near 0.97": (right(lambda draws, s: draws.beta(19.4, 0.6, s)), 0.97),
        "accuracy, one seed in five collapsed": (right(collapsed), 0.2 * 0.1 + 0.8 * 0.95),
    }
    rows: list[dict[str, object]] = []
    for name, (draw, mean) in recipes.items():
        for seeds in SEEDS:
            draws = np.random.default_rng(seeds)
            found = []
            for _ in range(runs):
                measure = Measure(name, "", np.nan, "higher", {"model": draw(draws, seeds)})
                found.append(measure.interval("model", 0.95))
            rows.append({"mean of": name, "seeds": seeds} | covered(found, mean))
    stable, skewed = recipes["score, normal seeds"][0], recipes["score, exponential seeds"][0]
    differences: dict[str, tuple[Callable[[Draws, int], Values], float]] = {
        "two scores, normal seeds": (stable, 0.0),
        "a stable score and an exponential one": (skewed, 0.5),
    }
    for name, (draw, mean) in differences.items():
        for seeds in SEEDS[1:]:
            draws = np.random.default_rng(seeds)
            found = []
            for _ in range(runs):
                other = stable(draws, seeds)
                if draw is skewed:
                    other = means(lambda draws, s: 0.05 * draws.normal(size=s))(draws, seeds)
                found.append(statistics.difference_estimate(draw(draws, seeds), other).interval(0.95))
            rows.append({"mean of": f"difference of {name}", "seeds": seeds} | covered(found, mean))
    return rows


def covered(found: list[statistics.Interval], mean: float) -> dict[str, object]:
    """Share of the intervals that contain the mean, and share of draws that have one."""
    given = [each for each in found if not math.isnan(each.low)]
    hits = np.mean([each.low <= mean <= each.high for each in given]) if given else np.nan
    return {"covered": percent(float(hits)), "no interval": percent(1 - len(given) / len(found))}


def equivalence(runs: int) -> list[dict[str, object]]:
    """How often two recipes are called equivalent within 2 points, at the margin and where they are equal."""
    rows: list[dict[str, object]] = []
    for seeds, images in ((3, 500), (5, 2000), (10, 2000), (10, 10000)):
        shares = [
            sl.power(true, seeds=seeds, images=images, margin=0.02, seed_spread=0.01, runs=runs)
            for true in (0.02, 0.0)
        ]
        at_margin, equal = (float(table["equivalent"].iloc[0]) for table in shares)
        rows.append(
            {"seeds": seeds, "images": images}
            | {"2 points apart": percent(at_margin), "equal": percent(equal)}
        )
    return rows


def detection(runs: int) -> list[dict[str, object]]:
    """How often a difference of accuracies is detected, alone and as one of 20 corrected together."""
    alone = sl.power([0.01, 0.02, 0.04, 0.08], seeds=(2, 3, 5, 10), images=(500, 2000), runs=runs)
    together = sl.power(
        [0.01, 0.02, 0.04, 0.08], seeds=(2, 3, 5, 10), images=(500, 2000), runs=runs, comparisons=20
    )
    rows: list[dict[str, object]] = []
    for (seeds, images), table in alone.groupby(["seeds", "images"]):
        row: dict[str, object] = {"seeds": seeds, "images": images}
        row |= {
            f"{100 * true:.0f} point{'s' * (true > 0.01)}": percent(detected)
            for true, detected in zip(table["difference"], table["detected"], strict=True)
        }
        corrected = together[(together["seeds"] == seeds) & (together["images"] == images)]
        row |= {
            f"{100 * true:.0f} points, one of 20": percent(detected)
            for true, detected in zip(corrected["difference"], corrected["detected"], strict=True)
            if true >= 0.04
        }
        rows.append(row)
    return rows


def percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, with a few runs per row")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    few = options.quick
    tables = {
        "Marks (†) of a table": family_wise_error(4 if few else 400),
        "Coverage over images, one seed": coverage_over_images(50 if few else 2000),
        "Coverage over seeds and images": coverage_over_seeds(50 if few else 2000),
        "Accuracies: differences detected": detection(10 if few else 500),
        "Accuracies: called equivalent within 2 points": equivalence(10 if few else 500),
    }
    for title, rows in tables.items():
        head = list(rows[0])
        print(f"\n{title}\n")
        print(f"| {' | '.join(head)} |\n| {' | '.join('---' for _ in head)} |")
        for row in rows:
            print(f"| {' | '.join(str(row.get(name, '')) for name in head)} |")
    if options.json:
        options.json.write_text(json.dumps(tables, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
