"""Write the figures that `benchmarks/all.py` collected into the documentation.

    python benchmarks/tables.py FILE [--check]

Replaces what is between the lines `<!-- benchmarks: begin -->` and `<!-- benchmarks: end -->` of
docs/benchmarks.md, and likewise `scale` in docs/scaling.md; `--check` only prints it. A figure that FILE does
not have is "not measured".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
NOT_MEASURED = "not measured"
Figures = Mapping[str, Any]

TITLES = {
    "startup": "Starting",
    "study sgt_cnn": "A study of eight methods and six metrics, `sgt_cnn`",
    "study resnet18": "A study of eight methods and five metrics, `resnet18` at 32×32",
    "photographs": "Photographs, ResNet-50 at 224×224",
    "pgd": "PGD",
    "training compiled": "Training steps, compiled",
    "passes small": "Passes of small networks",
    "passes photographs": "Passes at 224×224",
    "memory": "Memory",
    "large data": "Data larger than memory",
    "parallel": "Threads and processes",
    "stored maps": "Maps stored in fewer bytes",
    "attribution": "Methods over their passes, with Captum and zennit",
    "metrics sgt_cnn": "Metrics, `sgt_cnn`",
    "metrics resnet18": "Metrics, `resnet18` at 32×32",
    "training": "Training steps by objective",
    "study": "What a study adds to its results",
    "gpu": "GPU",
}
SCALE = "scale"


def rows_of(figures: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the tables in the figures of a benchmark, each with its heading."""
    if isinstance(figures, list):
        return [("", figures)]
    plain = {key: value for key, value in figures.items() if not isinstance(value, dict | list)}
    tables = [("", [{"figure": key, "value": value} for key, value in plain.items()])] if plain else []
    for key, value in figures.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            tables.append((key, value))
        elif isinstance(value, dict):
            nested = all(isinstance(each, dict) for each in value.values())
            rows = [
                {"": name} | each if nested else {"": name, "value": each} for name, each in value.items()
            ]
            tables.append((key, rows))
    return tables


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a Markdown table; a column for every key that a row has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(_text(row.get(column)) for column in columns) + " |")
    return "\n".join(lines)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value}"


def _find(figures: Any, part: str | None = None, **given: Any) -> dict[str, Any] | None:
    """Return the first row, of a part if one is named, that has these values."""
    rows = figures.get(part, []) if part is not None else figures
    return next((row for row in rows if all(row.get(key) == value for key, value in given.items())), None)


def _study(network: str) -> Callable[[Figures], str | None]:
    def found(known: Figures) -> str | None:
        row = _find(known[f"study {network}"], "study", network=network)
        if row is None:
            return None
        half = f", in bfloat16 {row['times_faster_bfloat16']} ×" if "times_faster_bfloat16" in row else ""
        return f"{row['times_faster']} ×{half} ({row['samples']} images)"

    return found


def _photographs(known: Figures) -> str | None:
    row = _find(known["photographs"], "metrics", work="all with Quantus")
    return (
        None if row is None else f"{row['peer / ours']} × Quantus, {row['ours / eager']} of the eager passes"
    )


def _road(known: Figures) -> str | None:
    row = _find(known["photographs"], "metrics", work="road")
    return (
        None if row is None else f"{row['ours / eager']} of the eager passes, {row['peer / ours']} × the peer"
    )


def _map(name: str) -> Callable[[Figures], str | None]:
    def found(known: Figures) -> str | None:
        row = _find(known["photographs"], "maps", work=name)
        if row is None:
            return None
        peer = f", {row['peer / ours']} × {row['peer']}" if row["peer"] else ""
        return f"{row['ours / eager']} of the eager passes{peer}"

    return found


def _pgd(known: Figures) -> str | None:
    rows = [row for row in known["pgd"]["speed"] if row["model"].startswith("resnet8")]
    wanted = {"ours": "ours, PGD", "textbook": "textbook", "torchattacks": "torchattacks"}
    found = {
        name: next((row["ratio"] for row in rows if row["what"].startswith(start)), None)
        for name, start in wanted.items()
    }
    return ", ".join(f"{name} {value:.2f}" for name, value in found.items() if value is not None)


def _startup(name: str) -> Callable[[Figures], str | None]:
    def found(known: Figures) -> str | None:
        row = _find(known["startup"], what=name)
        return None if row is None else f"{row['seconds']} s"

    return found


def _memory(start: str) -> Callable[[Figures], str | None]:
    def found(known: Figures) -> str | None:
        rows = [row for row in known["memory"] if row["work"].startswith(start)]
        shown = [f"{row['images']} images: {row['anonymous, MiB']} MiB" for row in rows]
        return "; ".join(shown) or None

    return found


def _decoding(known: Figures) -> str | None:
    found = known["large data"]
    one, every = (found.get(f"milliseconds per image, {cores}") for cores in ("one core", "all cores"))
    return None if one is None or every is None else f"{every} ms per image, on one core {one} ms"


def _compiled(known: Figures) -> str | None:
    rows = [row for row in known["training compiled"] if row["objective"] == "at"]
    shown = [
        f"{row['network']} {row['compiled, channels_last / eager']} (convolutions alone "
        f"{row['convolutions / eager']})"
        for row in rows
        if "convolutions / eager" in row
    ]
    return ", ".join(shown) or None


TARGETS: list[tuple[str, str, Callable[[Figures], str | None]]] = [
    ("study of 8 methods × 6 metrics on sgt_cnn, relative to Quantus", "≥ 12 ×", _study("sgt_cnn")),
    ("the same on resnet18 at 32×32", "≥ 10 ×", _study("resnet18")),
    ("photographs, ResNet-50 at 224: metrics, relative to Quantus", "≥ 6 ×, ≤ 0.6 of eager", _photographs),
    ("ROAD there, with pytorch-grad-cam", "≥ 2 ×", _road),
    ("occlusion on ResNet-50 at 224", "≤ 0.6 of eager", _map("occlusion")),
    ("RISE there", "≤ 0.6 of eager", _map("rise")),
    ("Score-CAM there", "≤ 0.6 of eager", _map("score_cam")),
    ("PGD-40 on resnet8, over the bare passes", "≤ 0.8", _pgd),
    ("`import saliency_lab`", "0.10 s", _startup("import saliency_lab")),
    ("`saliency-lab --help`", "≤ 0.4 s", _startup("saliency-lab --help")),
    (
        "memory: integrated gradients, 200 steps, at 224",
        "constant, ≤ 2.5 GB",
        _memory("integrated gradients, 200"),
    ),
    ("memory: a study of photographs", "constant, ≤ 2.5 GB", _memory("study")),
    ("memory: the same, images in a mapped file", "constant, ≤ 2.5 GB", _memory("the same study")),
    ("decoding photographs at 224, on all cores", "faster than on one core", _decoding),
    ("adversarial training step, compiled over eager", "≤ 0.6", _compiled),
]


def targets(known: Figures) -> str:
    """Return the table of the targets."""
    rows = []
    for work, goal, find in TARGETS:
        try:
            value = find(known)
        except KeyError:
            value = None
        rows.append({"work": work, "goal": goal, "measured": value or NOT_MEASURED})
    return table(rows)


def page(collected: Mapping[str, Any]) -> str:
    """Return everything but how cost grows."""
    entries = collected["benchmarks"]
    known = {name: entry["figures"] for name, entry in entries.items() if "figures" in entry}
    machine = collected["machine"]
    parts = [
        f"{machine['processor']} with {machine['cores']} cores ({machine['instructions']}), torch "
        f"{machine['torch']}, Python {machine['python']}; one thread unless a table says otherwise."
        + (" These are the short forms of the benchmarks, to try them." if collected["quick"] else ""),
        targets(known),
    ]
    for name in filter(known.__contains__, TITLES):
        parts.append(f"### {TITLES[name]}")
        parts.append(f"`{name}` of `benchmarks/all.py`, {entries[name]['date']}.")
        for heading, rows in rows_of(known[name]):
            parts.append((f"{heading}:\n\n" if heading else "") + table(rows))
    if absent := [title for name, title in TITLES.items() if name not in known]:
        parts.append(f"{NOT_MEASURED.capitalize()} in this run: {'; '.join(absent)}.")
    return "\n\n".join(parts)


def growth(collected: Mapping[str, Any]) -> str:
    """Return how cost grows: sizes, seconds and exponents."""
    entry = collected["benchmarks"].get(SCALE, {})
    if "figures" not in entry:
        return f"{NOT_MEASURED.capitalize()}."
    return f"`benchmarks/scale.py`, {entry['date']}.\n\n" + table(entry["figures"])


def replace_part(path: Path, name: str, text: str) -> None:
    """Put text between the two lines that mark a part of a page."""
    content = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = content.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{path} has no lines '{begin}' and '{end}'")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="what benchmarks/all.py wrote")
    parser.add_argument("--check", action="store_true", help="print the tables, and change no page")
    options = parser.parse_args()
    collected = json.loads(options.file.read_text(encoding="utf-8"))
    if options.check:
        print(page(collected), growth(collected), sep="\n\n")
        return
    replace_part(DOCS / "benchmarks.md", "benchmarks", page(collected))
    replace_part(DOCS / "scaling.md", SCALE, growth(collected))


if __name__ == "__main__":
    main()
