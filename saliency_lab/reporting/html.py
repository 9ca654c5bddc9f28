"""The page: what is in it, and the one file it becomes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

import saliency_lab
from saliency_lab._common.errors import InputError
from saliency_lab._common.files import atomic_path
from saliency_lab.comparison import Comparison
from saliency_lab.comparison.claims import answer, describe_tests
from saliency_lab.comparison.format import SPACE, count, count_each, listing
from saliency_lab.reporting import tables, verdicts
from saliency_lab.reporting.answers import differences
from saliency_lab.reporting.audits import Audited, overview, read_audits
from saliency_lab.reporting.explorer import explorer
from saliency_lab.reporting.figures import figures
from saliency_lab.reporting.provenance import provenance
from saliency_lab.reporting.vector import Drawing
from saliency_lab.study import Study

NAMED = 4
"""Models that the title names."""

SCRIPTS = ("theme.js", "tables.js", "explorer.js")


def report(
    study: Study,
    path: str | Path,
    *,
    baseline: str | None = None,
    level: float | None = None,
    images: int = 64,
) -> Path:
    """Write a study as one HTML file that needs nothing else: no network, no server, no models.

    The same study gives the same bytes.

    Parameters
    ----------
    study : Study
        With maps, scores or attacks; a loaded one will do.
    path
        The file; an older one is replaced when the new one is complete.
    baseline, level
        As for `Study.compare`.
    images : int
        The explorer holds the first so many; fewer where their maps would take more than 10 MB.

    Raises
    ------
    InputError
        If nothing has been attributed, scored or attacked, or `baseline`, `level` or `images` is wrong.
    """
    if images < 1:
        raise InputError(f"images must be at least 1, not {images}")
    html = _render(study, baseline, level, images)
    path = Path(path)
    with atomic_path(path) as beside:
        beside.write_text(html, encoding="utf-8")
    return path


def _render(study: Study, baseline: str | None, level: float | None, images: int) -> str:
    comparison = None
    if len(study.scores) or len(study.robustness):
        comparison = study.compare(baseline, level=level)
    better = {m.metric: m.better for m in comparison.measures} if comparison else {}
    found = explorer(study, better, images)
    audits = read_audits(study.audits, study.models)
    if comparison is None and found is None and not audits:
        raise InputError(
            "there is nothing to report yet; call study.attribute, study.score or study.attack first"
        )
    drawing = Drawing()
    questions = answer(study.purpose.claims, comparison)
    context: dict[str, Any] = {
        "title": study.purpose.title or _title(study.models),
        "about": _paragraphs(study.purpose.about),
        "lede": _lede(study),
        "audits": audits,
        "overview": overview(audits),
        "comparison": comparison,
        "questions": [(each, differences(each, number)) for number, each in enumerate(questions, start=1)],
        "tests": describe_tests(questions, comparison.level) if comparison else "",
        "provenance": provenance(study, found.missing if found else []),
        "explorer": found.data if found else None,
        "shown": found.shown if found else 0,
        "wanted": min(images, len(study.x)),
        "total": len(study.x),
        "version": saliency_lab.__version__,
    }
    if comparison is not None:
        context |= _compared(comparison, audits, drawing)
    style = _asset("style.css") + "\n" + drawing.rules + "\n"
    script = "\n".join(_asset(name) for name in SCRIPTS)
    context |= {
        "style": Markup(style),
        "script": Markup(script),
        "policy": _policy(style, script),
        "data": _embedded(context["explorer"]),
    }
    environment = Environment(
        loader=PackageLoader("saliency_lab.reporting", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(context)


def _compared(comparison: Comparison, audits: list[Audited], drawing: Drawing) -> dict[str, Any]:
    """What the page says of a comparison."""
    facts = comparison.table()
    direction = {m.metric: m.better for m in comparison.measures}
    facts["better"] = facts["metric"].map(direction)
    pictures = figures(comparison, drawing)
    return {
        "verdicts": verdicts.verdicts(comparison, facts, audits),
        "caution": verdicts.caution(facts),
        "undefined": verdicts.undefined(facts),
        "glance": tables.glance(comparison, facts),
        "accuracies": tables.accuracies(comparison, facts),
        "scores": tables.scores(comparison, facts),
        "figures": pictures,
        "level": f"{100 * comparison.level:g}{SPACE}%",
        "alpha": f"{1 - comparison.level:.2g}",
    }


def _title(models: list[str]) -> str:
    several = len(models) > NAMED + 1
    return listing([*models[:NAMED], f"{len(models) - NAMED} more"]) if several else listing(models)


def _paragraphs(text: str) -> list[Markup]:
    """Paragraphs of plain text; what stands between backticks is code."""
    kept = [each.strip() for each in text.split("\n\n") if each.strip()]
    return [Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(each)))) for each in kept]


def _lede(study: Study) -> str:
    labels: dict[str, dict[str, None]] = {}
    for place in study.cells:
        labels.setdefault(place.kind, {})[place.metric or place.label] = None
    seeds = [sum(each.model == name for each in study.members) for name in study.models]
    nouns = {"maps": "attribution method", "scores": "metric", "attack": "attack"}
    parts = [
        count(len(study.models), "model")
        + (f" of {count_each(seeds, 'training seed')}" if max(seeds) > 1 else ""),
        *(count(len(labels[kind]), noun) for kind, noun in nouns.items() if kind in labels),
    ]
    images = f"{count(len(study.x), 'image')} of {count(len(set(study.labels)), 'class')}"
    return f"{listing(parts)}, on the same {images}."


def _asset(name: str) -> str:
    return (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Return what a browser may do for this page: run its own script and style, show embedded pictures."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _embedded(data: dict[str, Any] | None) -> Markup:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
