"""Text for readers: counted nouns, names in words, and names that users chose, as each format shows them."""

from __future__ import annotations

import re
import unicodedata

_BREAKS = re.compile(r"[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]+")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def number_of(number: int, noun: str) -> str:
    """Write a number of things.

    >>> number_of(1, "image"), number_of(2000, "class")
    ('1 image', '2,000 classes')
    """
    plural = f"{noun}{'es' if noun.endswith('s') else 's'}"
    return f"{number:,} {noun if number == 1 else plural}"


def words(name: str) -> str:
    """Write a name's underscores as spaces.

    >>> words("pixel_flipping")
    'pixel flipping'
    """
    return name.replace("_", " ")


def plain_text(text: str) -> str:
    r"""Return text on one line: line breaks become spaces, and control characters are replaced.

    Control characters could move a terminal's cursor, change its colours, or reverse the order of letters.

    >>> plain_text("two\nlines"), plain_text("\x1b[31mred")
    ('two lines', '�[31mred')
    """
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", _BREAKS.sub(" ", text))


def markdown_text(text: str) -> str:
    r"""Return text on one line that Markdown does not take for HTML or a link.

    >>> markdown_text("<script>"), markdown_text("p < 0.05"), markdown_text("[x](http://y)")
    ('&lt;script>', 'p < 0.05', '[x]\\(http://y)')
    """
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", plain_text(text))
    text = re.sub(r"&(?=#?\w+;)(?!lt;)", "&amp;", text)
    return text.replace("](", "]\\(")


def spreadsheet_text(text: str) -> str:
    """Return text that a spreadsheet does not take for a formula: one that begins like it gets an apostrophe.

    >>> spreadsheet_text("=cmd()"), spreadsheet_text("at")
    ("'=cmd()", 'at')
    """
    text = plain_text(text)
    return f"'{text}" if text.lstrip()[:1] in {"=", "+", "-", "@"} else text


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "|": r"\textbar{}", '"': "''", "`": "{}`{}", "\xa0": "~", "\u202f": "~",
    "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "÷": r"$\div$", "·": r"$\cdot$", "•": r"$\bullet$",
    "◦": r"$\circ$", "°": r"$^\circ$", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "§": r"\S{}", "¶": r"\P{}",
    "≤": r"$\leq$", "≥": r"$\geq$", "≠": r"$\neq$", "≈": r"$\approx$", "≡": r"$\equiv$", "∼": r"$\sim$",
    "∝": r"$\propto$", "∞": r"$\infty$", "∂": r"$\partial$", "∇": r"$\nabla$", "∑": r"$\sum$",
    "∏": r"$\prod$", "∫": r"$\int$", "√": r"$\surd$", "∈": r"$\in$", "∉": r"$\notin$", "∪": r"$\cup$",
    "∩": r"$\cap$", "⊂": r"$\subset$", "⊆": r"$\subseteq$", "∅": r"$\emptyset$", "∀": r"$\forall$",
    "∃": r"$\exists$", "¬": r"$\neg$", "∧": r"$\wedge$", "∨": r"$\vee$", "⊙": r"$\odot$", "⊕": r"$\oplus$",
    "⊗": r"$\otimes$", "∘": r"$\circ$", "∗": r"$\ast$", "⋅": r"$\cdot$", "‖": r"$\|$", "∥": r"$\|$",
    "⟨": r"$\langle$", "⟩": r"$\rangle$", "→": r"$\rightarrow$", "←": r"$\leftarrow$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "↔": r"$\leftrightarrow$", "⇒": r"$\Rightarrow$", "⇐": r"$\Leftarrow$",
    "⇔": r"$\Leftrightarrow$", "↦": r"$\mapsto$", "…": r"\ldots{}", "–": "--", "—": "---", "‘": "`",
    "’": "'", "“": "``", "”": "''", "„": ",,", "«": r"$\ll$", "»": r"$\gg$", "¡": "!`", "¿": "?`",
    "µ": r"$\mu$", "ℓ": r"$\ell$", "ℝ": "R", "ℕ": "N", "ℤ": "Z", "∆": r"$\Delta$", "Ω": r"$\Omega$",
    "✓": r"$\surd$", "✗": r"$\times$", "©": r"\copyright{}", "£": r"\pounds{}", "ß": r"\ss{}",
    "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}",
    "Ł": r"\L{}", "å": r"\aa{}", "Å": r"\AA{}", "ı": r"\i{}", "★": r"$\star$", "⁄": "/", "∙": r"$\bullet$",
}  # fmt: skip
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c", "\u0323": "d", "\u0331": "b",
}  # fmt: skip
_LATIN_CAPITALS = {
    "ALPHA": "A", "BETA": "B", "EPSILON": "E", "ZETA": "Z", "ETA": "H", "IOTA": "I", "KAPPA": "K", "MU": "M",
    "NU": "N", "OMICRON": "O", "RHO": "P", "TAU": "T", "CHI": "X",
}  # fmt: skip


def latex_text(text: str) -> str:
    r"""Return text for pdflatex, which knows no character beyond ASCII that is not converted here.

    Characters without a LaTeX name, such as Chinese ones, are written as their code point.

    >>> latex_text("σ ≤ 5 % & x_1"), latex_text("é → 中")
    ('$\\sigma$ $\\leq$ 5 \\% \\& x\\_1', "\\'{e} $\\rightarrow$ \\texttt{U+4E2D}")
    """
    text = "".join(
        _latex_character(character) for character in unicodedata.normalize("NFC", plain_text(text))
    )
    return f"{{}}{text}" if text[:1] in {"[", "*"} else text  # which would be an argument of \\ before it


def _latex_character(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    if character.isascii():
        return character
    name = unicodedata.name(character, "")
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (FINAL SIGMA|\w+)", name)
    if greek:
        return _greek(*greek.groups())
    script = re.fullmatch(r"<(super|sub)> (\w+)", unicodedata.decomposition(character))
    if script:
        inner = _latex_character(chr(int(script[2], 16))).strip("$")
        return f"${'^' if script[1] == 'super' else '_'}{{{inner}}}$"
    if name.startswith("GREEK") and unicodedata.decomposition(character):
        base, *marks = list(unicodedata.normalize("NFD", character))
        letter = _latex_character(base).strip("$")
        return rf"$\acute{{{letter}}}$" if marks == ["\u0301"] else f"${letter}$"
    base, *marks = list(unicodedata.normalize("NFD", character))
    if marks and base.isascii() and all(mark in _ACCENTS for mark in marks):
        for mark in marks:
            base = f"\\{_ACCENTS[mark]}{{{base}}}"
        return base
    simple = unicodedata.normalize("NFKC", character)
    if simple != character:
        return "".join(map(_latex_character, simple))
    return rf"\texttt{{U+{ord(character):04X}}}"


def _greek(case: str, name: str) -> str:
    """Write a Greek letter; those that look like Latin ones have no command."""
    name = {"FINAL SIGMA": "VARSIGMA", "LAMDA": "LAMBDA"}.get(name, name)
    if case == "CAPITAL":
        latin = _LATIN_CAPITALS.get(name)
        return f"${latin}$" if latin else rf"$\{name.capitalize()}$"
    if name == "OMICRON":
        return "$o$"
    return r"$\varepsilon$" if name == "EPSILON" else rf"$\{name.lower()}$"
