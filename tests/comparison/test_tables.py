"""The tables of a comparison as text: names are shown and never obeyed, and LaTeX compiles."""

import re
import shutil
import subprocess
import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saliency_lab._common.files import write_table
from saliency_lab._common.text import latex_text, markdown_text, plain_text, words
from saliency_lab.comparison import Comparison

NASTY = [
    "<script>alert(1)</script>",
    "\x1b]0;title\x07\x1b[31mred",
    "two\r\nlines|bar",
    "=cmd|'/c calc'!A1",
    "[click](javascript:alert(1))",
    "σ ≤ 0.1 → <b> & 50 % of $x_1^2$ \\ {#} ~ \u202egnp",
    "стиль 攻击 é ñ ő Å ß",
    "[*] `code` *bold* \"quoted\" 'x'",
]


def comparison(models, metric="masked_input_accuracy", method="integrated_gradients"):
    draws = np.random.default_rng(0)
    scores = pd.DataFrame(
        [[model, "", 0, method, metric, sample, draws.normal()] for model in models for sample in range(8)],
        columns=["model", "recipe", "seed", "method", "metric", "sample", "score"],
    )
    robustness = pd.DataFrame(
        [
            [model, "", 0, "pgd", eps, sample, bool(draws.integers(2))]
            for model in models
            for eps in (0.0, 8 / 255)
            for sample in range(8)
        ],
        columns=["model", "recipe", "seed", "attack", "eps", "sample", "robust"],
    )
    return Comparison(scores, robustness, baseline=models[0])


@pytest.fixture(scope="module")
def nasty():
    return comparison(NASTY, metric="<i>σ|metric", method="`me\nthod`")


def test_markdown_has_no_html_no_links_and_one_line_per_row(nasty):
    markdown = nasty.to_markdown()
    assert not re.search(r"<[A-Za-z/!]", markdown) and "](" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3  # a head, a rule, two accuracies and a score
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {2 + len(NASTY) + 1}


@pytest.mark.parametrize("write", [str, Comparison.to_markdown, Comparison.to_latex])
def test_no_control_character_reaches_the_output(nasty, write):
    bad = [c for c in write(nasty) if unicodedata.category(c) == "Cc" and c != "\n"]
    assert not bad and "\u202e" not in write(nasty)


def test_a_terminal_gets_one_line_per_row(nasty):
    assert len(str(nasty).splitlines()) == len(str(comparison(list("abcdefgh"))).splitlines())


def test_a_spreadsheet_gets_no_formula(nasty, tmp_path):
    write_table(tmp_path / "scores", nasty.scores)
    lines = (tmp_path / "scores.csv").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("'=cmd") for line in lines)
    assert not any(line.lstrip('"').startswith(("=", "+", "-", "@")) for line in lines)
    assert len(lines) == 1 + len(nasty.scores)
    stored = pd.read_parquet(tmp_path / "scores.parquet")
    assert stored["model"].tolist() == nasty.scores["model"].tolist()


def test_a_spreadsheet_keeps_negative_numbers(tmp_path):
    table = pd.DataFrame({"name": ["-x"], "score": [-1.5]})
    write_table(tmp_path / "t", table)
    assert (tmp_path / "t.csv").read_text(encoding="utf-8").splitlines() == ["name,score", "'-x,-1.5"]


def test_epsilon_is_written_as_the_user_wrote_it():
    summary = comparison(["a", "b"])
    for text in (str(summary), summary.to_markdown(), summary.to_html(), summary.to_latex()):
        assert "8/255" in text and "0.0313" not in text


def test_latex_has_a_label_readable_names_and_ascii_alone(nasty):
    latex = comparison(["at", "asgt"]).to_latex()
    assert r"\label{tab:comparison}" in latex and latex.index(r"\caption") < latex.index(r"\label")
    assert "masked input accuracy" in latex and "integrated gradients" in latex
    assert r"\label{tab:mine}" in comparison(["at"]).to_latex(label="tab:mine")
    assert nasty.to_latex().isascii()


@given(st.text(max_size=20))
@settings(max_examples=300, deadline=None)
def test_any_text_is_balanced_ascii_in_latex(text):
    written = latex_text(text)
    assert written.isascii() and "\n" not in written
    bare = re.sub(r"\\[{}$%&#_]|\\[\\\\]", "", written)
    depth = np.cumsum([{"{": 1, "}": -1}.get(c, 0) for c in bare]) if bare else np.zeros(1)
    assert (depth >= 0).all() and depth[-1] == 0 and bare.count("$") % 2 == 0


@given(st.text(max_size=20))
@settings(max_examples=300, deadline=None)
def test_any_text_is_one_harmless_line_of_markdown(text):
    for written in (plain_text(text), markdown_text(text)):
        assert len(written.splitlines()) <= 1
    assert not re.search(r"<[A-Za-z/!?]", markdown_text(text))


def test_latex_compiles(nasty, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed; on Debian: apt-get install texlive-latex-recommended")
    signs = "".join(
        map(chr, [*range(0x20, 0x7F), *range(0xA0, 0x180), *range(0x391, 0x3CA), *range(0x2190, 0x2300)])
    )
    body = [nasty.to_latex(), comparison(["at"]).to_latex(label="tab:2"), latex_text(signs)]
    file = tmp_path / "table.tex"
    file.write_text(
        "\n".join(
            [r"\documentclass{article}\usepackage{booktabs}\begin{document}", *body, r"\end{document}"]
        ),
        encoding="utf-8",
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", file.name],
        cwd=tmp_path, capture_output=True, encoding="latin-1", timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("models", [1, 2, 5, 12])
def test_a_latex_table_fits_the_page(models, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed; on Debian: apt-get install texlive-latex-recommended")
    names = [f"adversarial_{i}" for i in range(models)]
    latex = comparison(names).to_latex()
    assert all(latex.count(words(name)) >= 1 for name in names)
    labels = re.findall(r"\\label{(.*)}", latex)
    assert labels == ["tab:comparison", *(f"tab:comparison-{i}" for i in range(2, len(labels) + 1))]
    assert (len(labels) > 1) == (models > 4) and (r"\footnotesize" in latex) == (models > 1)
    document = [r"\documentclass{article}\usepackage{booktabs}\begin{document}", latex, r"\end{document}"]
    (tmp_path / "table.tex").write_text("\n".join(document))
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"],
        cwd=tmp_path, capture_output=True, encoding="latin-1", timeout=120, check=True,
    )  # fmt: skip
    assert "Overfull" not in done.stdout and "Float too large" not in done.stdout
