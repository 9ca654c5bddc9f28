"""Writers of tables: text for a terminal, Markdown, HTML and LaTeX. They decide the form alone."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from html import escape

from saliency_lab._common.html import caption
from saliency_lab._common.text import latex_text, markdown_text, plain_text, words
from saliency_lab.comparison.content import Entry, Table
from saliency_lab.comparison.format import one_line

_FACES = ("Bold", "italic")
_DOTS = {"best": " •", "tie": " ◦"}


def as_text(table: Table, width: int | None = None) -> str:
    """Write for a terminal; where a row exceeds `width` columns, each row is a paragraph."""
    head, rows = _columns(table, lambda entry: plain_text(entry.line + _DOTS.get(entry.badge, "")))
    head = [plain_text(title) for title in head]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(text.ljust(wide) for text, wide in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
    notes = [plain_text(note) for note in _notes(table, "•", "◦")]
    title = plain_text(table.caption)
    longest = max(map(len, lines))
    rule = "─" * longest
    if width is not None:
        notes = [textwrap.fill(note, width, subsequent_indent="  ") for note in notes]
        if longest > width:
            rule = "─" * width
            paragraphs = _paragraphs(head, rows, len(head) - len(table.columns) + 1, width)
            return "\n".join([textwrap.fill(title, width), rule, *paragraphs, rule, *notes])
    return "\n".join([title, rule, lines[0], rule, *lines[1:], rule, *notes])


def _paragraphs(head: list[str], rows: list[list[str]], names: int, width: int) -> list[str]:
    """Write one row after the other: its names, then each other entry on a line of its own."""
    wide = max(map(len, head[names:]), default=0)
    lines = []
    for row in rows:
        lines += textwrap.wrap("  ".join(row[:names]), width)
        for title, value in zip(head[names:], row[names:], strict=True):
            if value:
                line = f"  {title.ljust(wide)}  {value}"
                lines += textwrap.wrap(line, width, subsequent_indent="      ")
    return lines


def as_markdown(table: Table) -> str:
    """Write a pipe table; in one with a legend, the best is bold and its ties are italic."""
    notes = markdown_text(" ".join(_notes(table, *_FACES)))
    return "\n".join([*markdown_lines(table), "", f"{table.caption}. {notes}".rstrip()])


def markdown_lines(table: Table) -> list[str]:
    """Return the lines of a pipe table alone."""
    marks = {"best": "**{}**", "tie": "*{}*"} if table.legend is not None else {}
    return pipe_table(*_columns(table, lambda entry: marks.get(entry.badge, "{}").format(entry.line)))


def pipe_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown, whatever its entries contain."""
    lines = [head, ["---"] * len(head), *rows]
    return [
        "| " + " | ".join(markdown_text(text).replace("|", "\\|") for text in line) + " |" for line in lines
    ]


def as_html(table: Table) -> str:
    """Write an HTML table; the best is bold and its ties are italic. Intervals are in small type."""
    marks = {"best": "<b>{}</b>", "tie": "<i>{}</i>"}

    def write(entry: Entry) -> str:
        more = f" <small>{escape(one_line(('', entry.more)))}</small>" if entry.more else ""
        return marks.get(entry.badge, "{}").format(escape(one_line((entry.text, ""))) + more)

    head, rows = _columns(table, write)
    header = "".join(f'<th style="text-align:left">{escape(title)}</th>' for title in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="text-align:left">{text}</td>' for text in row) + "</tr>" for row in rows
    )
    notes = "".join(f"<div>{escape(line)}</div>" for line in _notes(table, *_FACES))
    return (
        f"<table>{caption(table.caption)}<thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>{notes}"
    )


_LINE = 69.0
"""Width of a line of LaTeX's class article, in digits of its normal size."""
_SMALL_LINE = 81.0
"""The same in \\footnotesize."""
_SMALLER = 0.94
"""Width of a digit in \\scriptsize, in digits in \\footnotesize."""


def as_latex(table: Table, label: str) -> str:
    """Write a booktabs table; the best is bold and its ties are italic.

    A table that is wider than a page of the class article is set in small type, each interval below its mean;
    if that is not enough, its columns are divided among several tables, labelled LABEL, LABEL-2, ….

    It compiles with pdflatex and the package booktabs alone, whatever signs the names contain.
    """
    notes = [f"{table.caption}.", *_notes(table, *_FACES)]
    head, lines = _columns(table, lambda entry: entry.line)
    if sum(map(_width, zip(head, *lines, strict=True))) + 2.4 * len(head) <= _LINE:
        head, rows = _columns(table, lambda entry: _in_latex(entry, entry.line))
        body = [" & ".join(row) + r" \\" for row in rows]
        return _latex(
            [_latex_name(title) for title in head], len(head) - len(table.columns) + 1, body, notes, label
        )
    titles = [column.title for column in table.columns]
    widths = [
        max(
            _width([title, *(entry.text for entry in column)]),
            _SMALLER * _width(each.more for each in column),
        )
        + 1.4
        for title, column in zip(titles, zip(*table.rows, strict=True), strict=True)
    ]
    blocks: list[list[int]] = [[]]
    for position in range(1, len(titles)):
        if blocks[-1] and sum(widths[i] for i in (0, *blocks[-1], position)) > _SMALL_LINE:
            blocks.append([])
        blocks[-1].append(position)
    written = []
    for number, block in enumerate(blocks, 1):
        body = []
        for row in table.rows:
            shown = [row[position] for position in (0, *block)]
            body.append(" & ".join(_in_latex(entry, entry.text) for entry in shown) + r" \\")
            mores = [rf"\scriptsize {_latex_name(entry.more)}" if entry.more else "" for entry in shown]
            body.append(" & ".join(mores) + r" \\[1pt]")
        continued = notes if number == 1 else [f"{table.caption}, continued."]
        own = label if number == 1 else f"{label}-{number}"
        columns = [_latex_name(titles[position]) for position in (0, *block)]
        written.append(_latex(columns, 1, body, continued, own, small=True))
    return "\n\n".join(written)


def _latex(
    head: list[str], names: int, body: list[str], notes: list[str], label: str, *, small: bool = False
) -> str:
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            *([r"\footnotesize", r"\setlength{\tabcolsep}{3pt}"] if small else []),
            rf"\begin{{tabular}}{{{'l' * names}{'r' * (len(head) - names)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{_latex_name(' '.join(notes))}}}",
            rf"\label{{{label}}}",
            r"\end{table}",
        ]
    )


def _in_latex(entry: Entry, text: str) -> str:
    marks = {"best": r"\textbf{", "tie": r"\textit{"}
    written = _latex_name(text)
    return f"{marks[entry.badge]}{written}}}" if entry.badge in marks else written


def _latex_name(text: str) -> str:
    return latex_text(words(one_line((text, ""))))


def _width(texts: Iterable[str]) -> float:
    """Return the width of the widest of some texts, in digits."""
    return max(sum(0.5 if character in " .,;:[]()|iljt" else 1.0 for character in text) for text in texts)


def _notes(table: Table, best: str, tie: str) -> list[str]:
    return [*([table.legend.explain(best, tie)] if table.legend is not None else []), *table.notes]


def _columns(table: Table, write: Callable[[Entry], str]) -> tuple[list[str], list[list[str]]]:
    """Return titles and entries; what a column has as `more` gets a column of its own if it has a title."""
    head: list[str] = []
    for column in table.columns:
        head += [column.title, column.more] if column.more else [column.title]
    rows = []
    for row in table.rows:
        line: list[str] = []
        for column, entry in zip(table.columns, row, strict=True):
            split = [Entry(entry.text), Entry(entry.more)] if column.more else [entry]
            line += [write(each) for each in split]
        rows.append(line)
    return head, rows
