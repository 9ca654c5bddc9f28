"""The HTML writer: one file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

import saliency_lab
from saliency_lab._common.arguments import (
    check_choice,
    check_count,
    check_fraction,
    check_instance,
)
from saliency_lab._common.checks import format_epsilon, parse_epsilon, same_epsilon
from saliency_lab._common.errors import InputError
from saliency_lab._common.files import atomic_path, output_file
from saliency_lab.explorer.panels import StudyAttack
from saliency_lab.plotting.style import looks
from saliency_lab.reporting.document import read_document
from saliency_lab.reporting.explorer import explorer
from saliency_lab.reporting.figures import FigureSpec
from saliency_lab.reporting.vector import Drawing, Marker
from saliency_lab.study import Study

SCRIPTS = ("theme.js", "tables.js", "explorer.js")


def report(
    study: Study,
    path: str | Path,
    *,
    baseline: str | None = None,
    level: float | None = None,
    images: int = 64,
    attacked: tuple[str, float | str] | None = None,
) -> Path:
    """Write a report on a study as one HTML file that needs nothing else: no network, no server.

    The same study gives the same bytes.

    Parameters
    ----------
    study : Study
        With maps, scores or attacks; it may be loaded.
    path : str or path
        The file, which ends with .html; an older one is replaced when the new one is complete.
    baseline : str, optional
        The model that the others are compared with, as for `Study.compare`.
    level : float, optional
        Level of the confidence intervals, in (0, 1), as for `Study.compare`.
    images : int
        The number of images in the explorer, the first ones; fewer where the page would be too large.
    attacked : (str, float or str), optional
        An attack of the study and one of its ε > 0, such as ("pgd", "8/255"). The explorer then also shows
        the images as this attack changes them, with each model's predictions and maps for them. They are
        computed on the networks, so the study needs these.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    InputError
        If nothing has been attributed, scored or attacked; `path`, `baseline`, `level`, `images` or
        `attacked` is wrong; or `attacked` is given and the networks are not loaded.
    SaliencyLabError
        If `attacked` names an attack that is a function that this process does not have.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> import saliency_lab as sl
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> study = sl.Study({"plain": net}, (torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sl.report(study.attribute("saliency"), f"{folder}/report.html").name
    'report.html'
    """
    check_instance(study, Study, "study", "a saliency_lab.Study")
    images = check_count(images, "images")
    path = output_file(path, ".html", ".htm")
    if baseline is not None:
        check_choice(baseline, study.models, "baseline")
    if level is not None:
        check_fraction(level, "level")
    html = _render(study, baseline, level, images, _attack_of(study, attacked))
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def _attack_of(study: Study, attacked: tuple[str, float | str] | None) -> StudyAttack | None:
    """Return the attack of the study that is asked for.

    Raises
    ------
    InputError
        If the study has no such attack at this ε, no maps, or no networks.
    """
    if attacked is None:
        return None
    rows = study.robustness[["attack", "eps"]].drop_duplicates()
    known = [StudyAttack(label, eps) for label, eps in rows.itertuples(index=False) if eps > 0]
    label, eps = attacked if isinstance(attacked, tuple | list) and len(attacked) == 2 else (attacked, None)
    radius = math.nan if eps is None else parse_epsilon(eps)
    attack = next((each for each in known if each.label == label and same_epsilon(each.eps, radius)), None)
    if attack is None:
        listed = ", ".join(f'("{each.label}", "{format_epsilon(each.eps)}")' for each in known)
        raise InputError(
            f"attacked must be an attack of this study and its ε, one of {listed or 'none'}, not "
            f"{attacked!r}; study.attack adds others"
        )
    if any(member.module is None for member in study.members):
        raise InputError(
            "attacked images are computed on the networks, and this study was loaded without them; build it "
            "with them: sl.Study(models, sample, store=…)"
        )
    return attack


def _render(
    study: Study, baseline: str | None, level: float | None, images: int, attacked: StudyAttack | None
) -> str:
    comparison = None
    if len(study.scores) or len(study.robustness):
        comparison = study.compare(baseline, level=level)
    better = {m.metric: m.better for m in comparison.measures} if comparison else {}
    content = explorer(study, better, images, attacked)
    document = read_document(study, comparison, unread=content.missing if content else None)
    if comparison is None and content is None and not document.audits:
        raise InputError(
            "there is nothing to report yet; call study.attribute, study.score or study.attack first"
        )
    drawing = Drawing()
    pictures = [_draw(drawing, spec) for spec in document.figures if spec.section != "maps"]
    style = _asset("style.css") + "\n" + drawing.rules + "\n"
    script = "\n".join(_asset(name) for name in SCRIPTS)
    context: dict[str, Any] = {
        "document": document,
        "about": _paragraphs(document.about),
        "looks": [Marker(look) for look in looks(document.models).values()],
        "pictures": pictures,
        "explorer": content,
        "wanted": min(images, len(study.x)),
        "total": len(study.x),
        "version": saliency_lab.__version__,
        "style": Markup(style),
        "script": Markup(script),
        "policy": _policy(style, script),
        "data": _embedded(content.data if content else None),
    }
    environment = Environment(
        loader=PackageLoader("saliency_lab.reporting", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template("page.html").render(context)


def _breakable(name: str) -> Markup:
    """Return a name that may break after an underscore."""
    return Markup(str(escape(name)).replace("_", "_<wbr>"))


@dataclass(frozen=True)
class Picture:
    """A figure on the page: the `<svg>`, or why it could not be drawn."""

    section: str
    caption: str
    svg: str
    problem: str = ""


def _draw(drawing: Drawing, spec: FigureSpec) -> Picture:
    try:
        svg = drawing.draw(spec.draw(), spec.caption, recolour=spec.recolour)
    except ValueError as error:  # such as a measure that is undefined for every image
        return Picture(spec.section, spec.caption, "", str(error))
    return Picture(spec.section, spec.caption, svg)


def _paragraphs(text: str) -> list[Markup]:
    """Return the paragraphs of plain text; what stands between backticks is code."""
    kept = [each.strip() for each in text.split("\n\n") if each.strip()]
    return [Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(each)))) for each in kept]


def _asset(name: str) -> str:
    return (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Return what a browser may do for this page: run its own script and style, show embedded images."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _embedded(data: dict[str, Any] | None) -> Markup:
    """Return JSON that cannot end the element that contains it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
