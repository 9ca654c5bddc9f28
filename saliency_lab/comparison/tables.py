"""A comparison as text: a row a measure, a column a model, each cell a mean and its interval."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from saliency_lab._common.html import caption
from saliency_lab.comparison.format import ARROWS, count, count_each, one_line, write_mean
from saliency_lab.comparison.summary import Summary

_DOTS = {"best": "•", "tie": "◦", "": ""}
_FACES = ("bold", "italic")


def as_text(summary: Summary, width: int | None = None) -> str:
    """For a terminal; in so many columns, a measure is a paragraph where its row is too long."""
    head, rows = _grid(summary, lambda text, rank: f"{text} {_DOTS[rank]}".rstrip())
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
    notes = _notes(summary, _DOTS["best"], _DOTS["tie"])
    if width is not None:
        notes = [textwrap.fill(note, width, subsequent_indent="  ") for note in notes]
    longest = max(map(len, lines))
    if width is not None and longest > width:
        rule = "─" * width
        title = textwrap.fill(_title(summary), width)
        return "\n".join([title, rule, *_paragraphs(head, rows, width), rule, *notes])
    rule = "─" * longest
    return "\n".join([_title(summary), rule, lines[0], rule, *lines[1:], rule, *notes])


def _paragraphs(head: list[str], rows: list[list[str]], width: int) -> list[str]:
    """A measure after the other: its name, and a line a model, or more where that is too long."""
    wide = max(map(len, head[2:]))
    lines = []
    for metric, method, *cells in rows:
        lines += textwrap.wrap(f"{metric}  {method}", width)
        for name, cell in zip(head[2:], cells, strict=True):
            if cell:
                line = f"  {name.ljust(wide)}  {cell}"
                lines += textwrap.wrap(line, width, subsequent_indent="      ")
    return lines


def as_markdown(summary: Summary) -> str:
    """A pipe table; the best is bold, what is not significantly different from it italic."""
    head, rows = _grid(summary, markdown_cell)
    return "\n".join(
        [*pipe_table(head, rows), "", _title(summary) + ". " + " ".join(_notes(summary, *_FACES))]
    )


def pipe_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown, whatever is in its cells."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[" ".join(cell.splitlines()).replace("|", "\\|") for cell in line] for line in lines]
    return ["| " + " | ".join(line) + " |" for line in cells]


def as_html(summary: Summary) -> str:
    """A table; the best is bold, what is not significantly different from it italic."""
    marks = {"best": "<b>{}</b>", "tie": "<i>{}</i>", "": "{}"}
    head, rows = _grid(summary, lambda text, rank: marks[rank].format(escape(text)))
    title = caption(_title(summary))
    header = "".join(f'<th style="text-align:left">{escape(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="text-align:left">{cell if i > 1 else escape(cell)}</td>'
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    notes = "".join(f"<div>{escape(line)}</div>" for line in _notes(summary, *_FACES))
    return f"<table>{title}<thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>{notes}"


def as_latex(summary: Summary) -> str:
    """A booktabs table; the best is bold, what is not significantly different from it italic."""
    marks = {"best": "\\textbf{", "tie": "\\textit{"}
    head, rows = _grid(summary, lambda text, rank: f"{marks[rank]}{_tex(text)}}}" if rank else _tex(text))
    body = [" & ".join([_tex(row[0]), _tex(row[1]), *row[2:]]) + r" \\" for row in rows]
    notes = " ".join(_tex(line) for line in (_title(summary) + ".", *_notes(summary, *_FACES)))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
            r"\toprule",
            " & ".join(_tex(cell) for cell in head) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{notes}}}",
            r"\end{table}",
        ]
    )


def _title(summary: Summary) -> str:
    table = summary.table
    images = max(next(iter(measure.values.values())).shape[1] for measure in summary.measures)
    seeds = table["seeds"].astype(int).tolist()
    over = count(images, "image") + (f" and {count_each(seeds, 'seed')}" if max(seeds) > 1 else "")
    models = count(len(summary.models), "model")
    return f"{models} on {over}: mean [{100 * summary.level:g} % interval]"


def markdown_cell(text: str, rank: str) -> str:
    """Set the best in bold, what is not significantly different from it in italics."""
    return {"best": f"**{text}**", "tie": f"*{text}*"}.get(rank, text)


def leading(summary: Summary, line: str, best: str, tie: str) -> str:
    """Say what the marks of the best and of its ties mean; `line` is "row" or "column"."""
    alpha = f"{1 - summary.level:.2g}"
    return (
        f"{best}: the best of its {line}; {tie}: not significantly different from it (paired test of the "
        f"mean at {alpha}, corrected by Holm over the {line})"
    )


def _notes(summary: Summary, best: str, tie: str) -> list[str]:
    alpha = f"{1 - summary.level:.2g}"
    table = summary.table
    notes = []
    if len(summary.models) > 1:
        notes.append(
            f"{leading(summary, 'row', best, tie)}. "
            f"†: significantly different from '{summary.baseline}' (paired test of the mean at {alpha}, "
            "corrected by Holm over all accuracies, and over all scores)."
        )
    notes += explain_cells(table)
    return notes + _verdicts(summary)


def explain_cells(table: pd.DataFrame) -> list[str]:
    """Say what the intervals of `Comparison.table()` are over, and what its unusual cells mean."""
    notes = []
    if table["seeds"].max() > 1:
        notes.append("Intervals and tests are over training seeds and images: they are about the recipe.")
    elif table["seeds"].max() == 1:
        notes.append("One training seed: intervals and tests are about these networks, not about the recipe.")
    if table["seeds_disagree"].any():
        notes.append(
            "Seeds disagree: the training seeds are of two kinds, so that no mean describes them; the value "
            "of each seed is listed."
        )
    if (table["mean"].notna() & table["low"].isna()).any():
        notes.append("A mean without an interval: too few of its values differ from one another.")
    if table["identical"].any():
        notes.append(
            f"Scores that are identical in both models (in {int(table['identical'].sum())} rows) are not "
            "comparisons: they are not tested and not counted."
        )
    if (table["undefined"] > 0).any():
        notes.append("NaN: values that are undefined and left out.")
    return notes


def _verdicts(summary: Summary) -> list[str]:
    """One line an audit: each model's verdict, and its accuracy at the worst over all attacks."""
    if not len(summary.audits):
        return []
    facts = ["attack", "eps", "n", "model", "seed", "verdict", "worst_case"]
    lines = []
    for (attack, eps, n), held in summary.audits[facts].drop_duplicates().groupby(["attack", "eps", "n"]):
        said = [
            f"{model} {_counted(of['verdict'])} ({100 * of['worst_case'].mean():.1f} %)"
            for model, of in held.groupby("model", sort=False)
        ]
        lines.append(
            f"Audit of {attack}, ε = {eps:.4g}, on {n} images (worst case over all its attacks): "
            + ", ".join(said)
            + "."
        )
    return lines


def _counted(verdicts: pd.Series) -> str:
    """The verdicts of several seeds.

    >>> _counted(pd.Series(["believe", "doubt", "believe"]))
    '2 × believe, 1 × doubt'
    """
    counts = verdicts.value_counts()
    if len(counts) == 1:
        return str(counts.index[0])
    return ", ".join(f"{count} × {verdict}" for verdict, count in counts.items())


def _grid(summary: Summary, mark: Callable[[str, str], str]) -> tuple[list[str], list[list[str]]]:
    facts = iter(summary.table.to_dict("records"))  # in the order of the measures, and of their models
    rows = []
    for measure in summary.measures:
        cells = dict.fromkeys(summary.models, "")
        for model in measure.values:
            fact = next(facts)
            text = cell_text(fact, measure.share) + ("†" if fact["differs"] else "")
            cells[model] = mark(text, fact["rank"])
        rows.append([f"{measure.metric} {ARROWS[measure.better]}".strip(), measure.label, *cells.values()])
    return ["metric", "method", *summary.models], rows


def cell_text(row: Mapping[Any, Any], share: bool) -> str:
    """Mean [low, high], to the digits that the interval supports.

    >>> cell_text({"mean": 0.51234, "low": 0.50111, "high": 0.52999, "undefined": 2}, share=False)
    '0.512 [0.501, 0.530] 2 NaN'
    >>> cell_text({"mean": 0.9, "low": 0.85, "high": 0.9312, "undefined": 0}, share=True)
    '90.0 % [85.0, 93.1]'
    """
    some = row["undefined"] and not math.isnan(row["mean"])
    return one_line(write_mean(row, share=share)) + (f" {int(row['undefined'])} NaN" if some else "")


_TEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "−": "$-$",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "†": r"$^\dagger$",
    "ε": r"$\varepsilon$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
