"""Decide the verdicts of the pages again from their printed differences and intervals.

python docs/results/reassess.py

The stored results of these pages no longer exist. What their own tables allow is done here: p follows from
each printed difference and interval, and all differences of a page are corrected together by Holm. Means,
intervals, bold and italic marks and figures stay as they were drawn. Running it again changes nothing.
"""

# ruff: noqa: E501 - the prose of pages

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
from scipy import stats

from saliency_lab.comparison.claims import NOT_DIFFERENT, SECONDARY, Answered
from saliency_lab.comparison.format import p_value
from saliency_lab.comparison.measures import SHARES
from saliency_lab.comparison.statistics import holm
from saliency_lab.comparison.writers import pipe_table
from saliency_lab.metrics.catalogue import METRICS

FOLDER = Path(__file__).parent
ONE_SEED = {"cifar10-resnet20", "mnist-defaults"}
HEAD = ["models", "measure", "verdict", "mean", "mean of the other", "difference", "p", "p corrected"]
ROW = re.compile(
    r"^\| (?P<model>.+?) − (?P<over>.+?) \| (?P<measure>[^|]+) \| (?P<verdict>[^|]+) \| (?P<mean>[^|]+) \| "
    r"(?P<mean_over>[^|]+) \| (?P<printed>(?P<difference>\S+?)(?: points)? \[(?P<low>\S+), (?P<high>\S+)\]) \|"
)
NOTE = (
    "> **Drawn before the statistics were corrected, and not redrawn: the stored results no longer exist.** "
    "Verdicts and p-values of the questions were computed from the printed differences and intervals "
    "([how](README.md)), and are corrected together. Means, intervals, bold and italic marks and figures are as "
    "they were drawn: intervals of accuracies are not on the arcsine scale, and seeds that disagree are averaged."
)
DECIDED = "Differences tested together:"


def number(text: str) -> float:
    """Read a printed number."""
    return float(text.replace("−", "-").replace("+", ""))


def read(page: Path) -> pd.DataFrame:
    """Every printed difference of a page, with p from its interval and the corrected p."""
    freedom = float("inf") if page.stem in ONE_SEED else 4.0
    rows = []
    for at, line in enumerate(page.read_text(encoding="utf-8").splitlines()):
        match = ROW.match(line)
        if match is None:
            continue
        row: dict[str, object] = {"line": at, **match.groupdict()}
        mean, low, high = (number(match[key]) for key in ("difference", "low", "high"))
        half = mean - low if mean > 0 else high - mean
        if low == high:
            row["p"] = float("nan")  # identical scores, which are no comparison
        else:
            quantile = stats.t.isf(0.025, freedom)
            row["p"] = 2 * stats.t.sf(abs(mean) / half * quantile, freedom) if half > 0 else float("nan")
        rows.append(row)
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    table["pair"] = [" ".join(sorted(pair)) for pair in zip(table["model"], table["over"], strict=True)]
    family = table.drop_duplicates(["pair", "measure"])
    corrected = dict(zip(zip(family["pair"], family["measure"], strict=True), holm(family["p"]), strict=True))
    table["p_corrected"] = [corrected[key] for key in zip(table["pair"], table["measure"], strict=True)]
    table["verdict"] = [
        "identical"
        if pd.isna(row["p"])
        else (_direction(row) if row["p_corrected"] < 0.05 else NOT_DIFFERENT)
        for row in table.to_dict("records")
    ]
    return table


def _direction(row: dict[str, str]) -> str:
    metric = row["measure"].partition(" (")[0].replace(" ", "_")
    higher = metric in SHARES or METRICS[metric].better == "higher"
    return "better" if (number(row["difference"]) > 0) == higher else "worse"


def answered(rows: pd.DataFrame) -> list[str]:
    """The bullet points of one question."""
    table = pd.DataFrame({"endpoint": SECONDARY, "model": rows["model"], "over": rows["over"]})
    named = rows["measure"].str.extract(
        r"^(?P<metric>[^(]+?)(?: \((?P<method>[^,)]+)(?:, ε = (?P<eps>[^)]+))?\))?$"
    )
    table["metric"] = named["metric"].str.replace(" ", "_")
    table["method"] = named["method"].fillna("")
    table["eps"] = named["eps"].astype(float)
    table["verdict"] = rows["verdict"]
    return [
        f"- {each.model} against {each.over}: "
        + "; ".join(f"**{verdict}** by {measures}" for verdict, measures in each.verdicts.items())
        + "."
        for each in Answered("", table).answers
    ]


def rewrite(page: Path) -> pd.DataFrame:
    """Write a page's verdicts, p-values and note; return its differences."""
    table = read(page)
    lines = page.read_text(encoding="utf-8").splitlines()
    if not table.empty:
        written = table.set_index("line")
        for at, row in written.iterrows():
            cells = [f"{row['model']} − {row['over']}", row["measure"], row["verdict"], row["mean"]]
            cells += [row["mean_over"], row["printed"], p_value(row["p"]), p_value(row["p_corrected"])]
            lines[at] = pipe_table(cells, [])[0]
        tables: list[list[int]] = []
        for at in table["line"]:
            if tables and tables[-1][-1] == at - 1:
                tables[-1].append(at)
            else:
                tables.append([at])
        for block in reversed(tables):
            lines[block[0] - 2 : block[0]] = pipe_table(HEAD, [])
            first = max(at for at in range(block[0]) if lines[at].startswith("### "))
            bullets = [at for at in range(first, block[0]) if lines[at].startswith("- ")]
            kept = [lines[at] for at in bullets if lines[at].startswith("- Not measured")]
            lines[bullets[0] : bullets[-1] + 1] = answered(written.loc[block].reset_index(drop=True)) + kept
        tests = table.drop_duplicates(["pair", "measure"])["p"].notna().sum()
        text = (
            f"{DECIDED} {tests} (no primary endpoint was declared). Better and worse: p, corrected by Holm over "
            "these, is below 5 %. Intervals are at 95 % and not corrected. Not significantly different does not "
            "mean equal."
        )
        for at, line in enumerate(lines):
            if line.startswith(("Better and worse: the interval", DECIDED)):
                lines[at] = text
    for at, line in enumerate(lines):
        if line.startswith("Bold: the best of its column; italic:"):
            lines[at] = (
                "Bold: the best of its column; italic: not significantly different from it by the former test "
                "(paired over images, Holm over the column), or as the interval of the difference contains 0."
            )
    lines = [line for line in lines if not line.startswith("> **Drawn before")]
    lines[1:1] = ["", NOTE]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
    page.write_text(text.rstrip() + "\n", encoding="utf-8")
    return table


def main() -> None:
    """Rewrite every page whose results are not packed."""
    for page in sorted(FOLDER.glob("*.md")):
        if page.stem in ("README", "pooled") or page.with_suffix(".tar.xz").exists():
            continue
        table = rewrite(page)
        if not table.empty:
            unique = table.drop_duplicates(["pair", "measure"])
            print(
                f"{page.stem}: {(unique['p_corrected'] < 0.05).sum()} of {unique['p'].notna().sum()} differences"
            )


if __name__ == "__main__":
    main()
