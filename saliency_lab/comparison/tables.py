"""A comparison as text: one row per measure, one column per model, each entry a mean and its interval."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from saliency_lab._common.checks import format_epsilon
from saliency_lab._common.html import caption
from saliency_lab._common.text import latex_text, markdown_text, plain_text
from saliency_lab.comparison.format import ARROWS, count, count_each, one_line, write_mean
from saliency_lab.comparison.summary import Summary

_DOTS = {"best": "•", "tie": "◦", "": ""}
_FACES = ("bold", "italic")


def as_text(summary: Summary, width: int | None = None) -> str:
    """Write for a terminal; where a row exceeds `width` columns, each measure is a paragraph."""
    head, rows = _grid(summary, lambda text, rank: f"{text} {_DOTS[rank]}".rstrip(), plain_text)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(text.ljust(wide) for text, wide in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
    notes = [plain_text(note) for note in _notes(summary, _DOTS["best"], _DOTS["tie"])]
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
    """Write one measure after the other: its name, then each model on a line of its own."""
    wide = max(map(len, head[2:]))
    lines = []
    for metric, method, *values in rows:
        lines += textwrap.wrap(f"{metric}  {method}", width)
        for name, value in zip(head[2:], values, strict=True):
            if value:
                line = f"  {name.ljust(wide)}  {value}"
                lines += textwrap.wrap(line, width, subsequent_indent="      ")
    return lines


def as_markdown(summary: Summary) -> str:
    """Write a pipe table; the best is bold, models not significantly different from it are italic."""
    head, rows = _grid(summary, mark_in_markdown, str)
    notes = markdown_text(" ".join(_notes(summary, *_FACES)))
    return "\n".join([*pipe_table(head, rows), "", f"{_title(summary)}. {notes}"])


def pipe_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown, whatever its entries contain."""
    lines = [head, ["---"] * len(head), *rows]
    return [
        "| " + " | ".join(markdown_text(text).replace("|", "\\|") for text in line) + " |" for line in lines
    ]


def as_html(summary: Summary) -> str:
    """Write an HTML table; the best is bold, models not significantly different from it are italic."""
    marks = {"best": "<b>{}</b>", "tie": "<i>{}</i>", "": "{}"}
    head, rows = _grid(summary, lambda text, rank: marks[rank].format(escape(text)), escape)
    title = caption(_title(summary))
    header = "".join(f'<th style="text-align:left">{text}</th>' for text in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="text-align:left">{text}</td>' for text in row) + "</tr>" for row in rows
    )
    notes = "".join(f"<div>{escape(line)}</div>" for line in _notes(summary, *_FACES))
    return f"<table>{title}<thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>{notes}"


def as_latex(summary: Summary, label: str = "tab:comparison") -> str:
    """Write a booktabs table; the best is bold, models not significantly different from it are italic.

    It compiles with pdflatex and the package booktabs alone, whatever signs the names contain.
    """
    marks = {"best": r"\textbf{", "tie": r"\textit{"}
    head, rows = _grid(
        summary,
        lambda text, rank: f"{marks[rank]}{latex_text(text)}}}" if rank else latex_text(text),
        lambda text: latex_text(text.replace("_", " ")),
    )
    body = [" & ".join(row) + r" \\" for row in rows]
    notes = latex_text(" ".join([_title(summary) + ".", *_notes(summary, *_FACES)]).replace("_", " "))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{notes}}}",
            rf"\label{{{label}}}",
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


def mark_in_markdown(text: str, rank: str) -> str:
    """Set the best in bold, and in italics what is not significantly different from it."""
    return {"best": f"**{text}**", "tie": f"*{text}*"}.get(rank, text)


def leading(summary: Summary, line: str, best: str, tie: str) -> str:
    """Explain the marks of the best and of its ties; `line` is "row" or "column"."""
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
        notes.append("NaN: the number of values that are undefined and left out.")
    return notes


def _verdicts(summary: Summary) -> list[str]:
    """Write one line per audit: each model's verdict, and its worst accuracy over all attacks."""
    if not len(summary.audits):
        return []
    columns = ["attack", "eps", "n", "model", "seed", "verdict", "worst_case"]
    audits = summary.audits[columns].drop_duplicates()
    lines = []
    for (attack, _, n), rows in audits.groupby(["attack", "eps", "n"]):
        verdicts = [
            f"{model} {_counted(own['verdict'])} ({100 * own['worst_case'].mean():.1f} %)"
            for model, own in rows.groupby("model", sort=False)
        ]
        radius = format_epsilon(rows["eps"].iloc[0])
        lines.append(
            f"Audit of {attack}, ε = {radius}, on {n} images (worst case over all its attacks): "
            f"{', '.join(verdicts)}."
        )
    return lines


def _counted(verdicts: pd.Series) -> str:
    """Count the verdicts of several seeds.

    >>> _counted(pd.Series(["believe", "doubt", "believe"]))
    '2 × believe, 1 × doubt'
    """
    counts = verdicts.value_counts()
    if len(counts) == 1:
        return str(counts.index[0])
    return ", ".join(f"{count} × {verdict}" for verdict, count in counts.items())


def _grid(
    summary: Summary, mark: Callable[[str, str], str], write: Callable[[str], str]
) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table, for a writer of marked values and one of names."""
    records = iter(summary.table.to_dict("records"))  # in the order of the measures, and of their models
    rows = []
    for measure in summary.measures:
        values = dict.fromkeys(summary.models, "")
        for model in measure.values:
            record = next(records)
            text = estimate_text(record, measure.share) + ("†" if record["differs"] else "")
            values[model] = mark(text, record["rank"])
        metric = f"{measure.metric} {ARROWS[measure.better]}".strip()
        rows.append([write(metric), write(measure.label), *values.values()])
    return [*map(write, ["metric", "method", *summary.models])], rows


def estimate_text(row: Mapping[Any, Any], share: bool) -> str:
    """Write a mean and its interval, to the digits that the interval supports.

    >>> estimate_text({"mean": 0.51234, "low": 0.50111, "high": 0.52999, "undefined": 2}, share=False)
    '0.512 [0.501, 0.530] 2 NaN'
    >>> estimate_text({"mean": 0.9, "low": 0.85, "high": 0.9312, "undefined": 0}, share=True)
    '90.0 % [85.0, 93.1]'
    """
    some = row["undefined"] and not math.isnan(row["mean"])
    return one_line(write_mean(row, share=share)) + (f" {int(row['undefined'])} NaN" if some else "")
