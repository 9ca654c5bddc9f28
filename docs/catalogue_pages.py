"""Write docs/methods/, docs/metrics/ and the tables of docs/attribution.md and docs/metrics.md.

Settings, defaults, cost, engines, families, ranges and references come from the registries that
`sl.list_methods()` and `sl.list_metrics()` read; titles, formulas and advice from docs/catalogue/*.toml.
Run `python docs/catalogue_pages.py` after a change of either; `docs/catalogue_pictures.py` draws
the pictures.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "_extensions"))

from catalogue import grouped, settings, shown, text  # noqa: E402

from saliency_lab._common.settings import Settings  # noqa: E402
from saliency_lab._common.text import number_of  # noqa: E402
from saliency_lab.attribution.catalogue import CAPTUM, METHODS  # noqa: E402
from saliency_lab.metrics.catalogue import METRICS, Metric  # noqa: E402
from saliency_lab.metrics.sizes import settings_at_size  # noqa: E402

NOTES = {
    kind: tomllib.loads((DOCS / "catalogue" / f"{kind}.toml").read_text(encoding="utf-8"))
    for kind in ("methods", "metrics")
}
FAMILIES = {
    "gradient": "Gradients",
    "noise": "Noise tunnels",
    "backpropagation": "Back-propagation with other rules",
    "layer": "One layer",
    "attention": "Attention",
    "perturbation": "Perturbation",
    "control": "Controls",
    "faithfulness": "Faithfulness",
    "complexity": "Complexity",
    "robustness": "Robustness",
    "randomisation": "Randomisation",
    "localisation": "Localisation",
    "axiomatic": "Axioms",
}
"""The heading of each family's section in docs/attribution.md and docs/metrics.md."""

SYMBOLS = {
    "methods": "$f$ is the explained logit, $x$ the image, $b$ the baseline, $s$ the map.",
    "metrics": "$f$ is the output of class $y$, $x_S$ the image with the pixels $S$ replaced by the "
    "baseline, $a$ the scores of the pixels, $\\Phi$ the method that made the map, $M$ the mask.",
}

MORE_SYMBOLS = {
    "A_k": "$A_k$ is channel $k$ of the layer's output, on a grid of $h$ × $w$ positions $u, v$.",
    "\\tilde{A}\\, v_1": "$A$ is the layer's output, $h$ × $w$ positions by $D$ channels.",
    "R^{l}": "$R^l$ is what arrives at layer $l$ on the way back, and $a^l$ what entered its ReLU.",
    "R_i": "$R$ is relevance. $z_{ij}$ is what input $i$ gives to output $j$ of a layer: activation $a_i$ "
    "times weight $w_{ij}$. $\\varepsilon$ is the setting `epsilon`, and the sign that of the sum in front "
    "of it.",
    "p_i \\sum_j": "$p_i$ is an output of the softmax, and $R^{out}$ the relevance that arrives there.",
    "\\widehat{A}_k": "$\\widehat{A}_k$ is $A_k$ enlarged to the image and scaled to [0, 1].",
    "\\beta_j z_j": "$\\beta_j$ is the value of superpixel $j$.",
    "\\Phi(x + ": "$\\Phi$ is the method `base`, and $\\sigma$ the setting `stdev`.",
    "b_{lc}": "$b_{lc}$ is the bias of channel $c$ in layer $l$ (not a baseline), and $z_{lc}$ "
    "that channel's output.",
    "A_l": "$A_l$ is the attention of block $l$.",
    "\\bar{A}_l": "$\\bar{A}_l$ is the attention of block $l$, joined over its heads, and $r$ the setting "
    "`residual`.",
    "x_z": "$x_z$ is $x$ with superpixel $j$ shown where $z_j = 1$, and the baseline elsewhere; $K$ is the "
    "number of superpixels, and $\\pi$ a weight.",
    "p \\in S": "$S$ is the superpixel that contains pixel $p$.",
    "\\pi \\le S": "$\\pi$ is one of $n$ random orders in which superpixels are shown.",
    "K \\setminus S": "$K$ is the set of all superpixels.",
    "a_c(": "$a_c$ is channel $c$ of the layer, and $n$ the number of steps.",
    "a_q": "$a_q$ is the attribution of pixel $q$ by integrated gradients.",
    "\\odot m_k": "$m_k$ is one of $n$ random masks, and $p$ the share of the image that a mask shows.",
    "b_j": "$b_j$ is one of the $B$ images `baselines`.",
    "b \\sim D": "$D$ are the images `baselines`.",
    "S_x * x": "$S_x$ and $S_y$ are the Sobel kernels.",
}
"""What else a formula of a method uses, by a part of that formula."""

MORE_METRIC_SYMBOLS = {
    "z_k(": "$z_k$ is the logit of class $k$.",
    "\\mathrm{impute}": "$T$ are the `percentages`, and $S(t)$ is the share $t$ of the highest pixels.",
    "\\leftarrow x": "$b_{S \\leftarrow x}$ is $b$ with the pixels $S$ of $x$.",
    "\\widehat{P}": "$\\widehat{P}$ is the probability, scaled to 0 for the blur and 1 for the image.",
    "\\theta_{": "$H$ is the entropy of the histogram of a map, $\\theta$ are the weights, and "
    "$\\theta_{\\mathrm{random}}$ re-initialised ones.",
    "a_g": "$P$ are patches of pixels, $a_g$ the score of patch $g$, $x_g$ the image without it, and "
    "$\\varepsilon$ the setting `eps`.",
    "d_{\\max}": "$d$ is the distance of two maps, $d_{\\max}$ the largest one, $\\tau$ the setting "
    "`threshold`, and $\\hat{y}$ the predicted class.",
    "T(\\Phi_j)": "$\\hat{y}$ is the predicted class.",
    "\\max_q a_q": "$\\varepsilon$ is the setting `eps`.",
    "T_k(": "$T_k$ are the $k$ pixels with the highest scores.",
}
"""The same for the formulas of metrics."""


def more_symbols(kind: str, formula: str) -> str:
    """Return the sentences on what a formula uses beside the symbols of all methods or metrics."""
    symbols = MORE_SYMBOLS if kind == "methods" else MORE_METRIC_SYMBOLS
    found = [words for part, words in symbols.items() if part in formula]
    return "".join(f" {words}" for words in found)


def code(names: list[str]) -> str:
    """Write names as code, separated by commas."""
    return ", ".join(f"`{name}`" for name in names)


def anchor(heading: str) -> str:
    """Return the anchor that GitHub and Sphinx give a heading."""
    return heading.lower().replace(" ", "-")


def links(names: list[str]) -> str:
    """Link to the pages of methods and metrics, seen from one of these pages."""
    kinds = {name: kind for kind, notes in NOTES.items() for name in notes}
    return " · ".join(f"[{NOTES[kinds[name]][name]['title']}](../{kinds[name]}/{name}.md)" for name in names)


def docstring(thing: object) -> str:
    """Return a docstring without its sections."""
    return re.split(r"\n\n\w+\n-{4,}\n", text(thing))[0]


def known_evidence() -> dict[str, dict[str, str]]:
    """Read from docs/metrics.md which metrics pass the tests on data whose evidence is known."""
    written = (DOCS / "metrics.md").read_text(encoding="utf-8")
    verdict = r" (passes|fails) \|"
    row = re.compile(rf"^\| (\w+) \|(?: [^|]+ \|){{4}}{verdict * 3}", re.MULTILINE)
    tests = ("planted", "planted_redundant", "planted_xor")
    return {name: dict(zip(tests, verdicts, strict=True)) for name, *verdicts in row.findall(written)}


def method_facts(name: str) -> Iterator[tuple[str, str]]:
    """Name and value of what the registry says about a method."""
    method = METHODS[name]
    yield "cost per image", method.passes
    yield "engines", code(["fast", *(["captum"] if name in CAPTUM else [])])
    yield "source", method.reference


def interval(metric: Metric) -> str:
    """Write a metric's range with the signs of mathematics."""
    return metric.range.replace("inf", "∞").replace("-", "−")


def metric_cost(metric: Metric) -> str:
    """Say what a score costs at two sizes of images, with the default settings."""
    at = {size: settings_at_size(metric.settings.model_construct(), size, size) for size in (28, 224)}
    small, large = (metric.forwards(at[size], size * size) for size in at)
    parts = [number_of(small, "image") + " predicted"] if large else []
    if small != large:
        parts[0] += f" at 28×28, {large} at 224×224"
    if metric.maps:
        parts.append(f"maps made again: {metric.maps(at[28])}")
    return "; ".join(parts) or "no pass through the model"


def metric_facts(name: str) -> Iterator[tuple[str, str]]:
    """Name and value of what the registry says about a metric."""
    metric = METRICS[name]
    better = {"higher": "higher is better", "lower": "lower is better", "neither": "neither is better"}
    yield "direction", better[metric.better]
    yield "range", interval(metric)
    yield "cost per image", metric_cost(metric)
    yield "engines", code(list(metric.engines))
    yield "compared with Quantus 0.6", NOTES["metrics"][name]["quantus"]
    if metric.undefined:
        yield "no score (NaN)", f"where {metric.undefined.rstrip('.')}"
    if verdicts := known_evidence().get(name):
        tests = ", ".join(f"{verdict} `{test}`" for test, verdict in verdicts.items())
        yield "[tests with known evidence](../metrics.md#which-to-believe)", tests
    yield "source", metric.reference


GIVEN = {"baselines": "training_images", "masks": "masks", "attacked": "result.adversarial"}
"""What the example of a page passes for a setting without a default."""


def required(settings: type[Settings]) -> str:
    """Write the settings that a call must give."""
    names = [name for name, field in settings.model_fields.items() if field.is_required()]
    return "".join(f", {name}={GIVEN[name]}" for name in names)


def page(kind: str, name: str) -> str:
    """Write the page of a method or a metric."""
    note = NOTES[kind][name]
    if kind == "methods":
        thing, facts, ending = METHODS[name], method_facts(name), "jpg"
        call = f'maps = sl.attribute(model, x, y, "{name}"{required(thing.settings)})'
        opening = docstring(METHODS[name].run)
        overview, reference = "attribution.md", "all methods"
    else:
        thing, facts, ending = METRICS[name], metric_facts(name), "png"
        call = f'scores = sl.evaluate(model, x, y, maps, "{name}"{required(thing.settings)})'
        opening = f"{note['short'][0].upper()}{note['short'][1:]}."
        overview, reference = "metrics.md", "all metrics"
    heading = FAMILIES[thing.family]
    lines = [
        f"# {note['title']}: `{name}`",
        "",
        f"    {call}",
        "",
        opening,
        "",
        f"![{note['title']}](../figures/{kind}/{name}.{ending})",
        "",
        f"*{CAPTIONS[kind]}*",
        "",
        "## Formula",
        "",
        f"$${note['formula']}$$",
        "",
        SYMBOLS[kind] + more_symbols(kind, note["formula"]),
        "",
        "## Facts",
        "",
        "| | |",
        "| --- | --- |",
        f"| family | [{heading.lower()}](../{overview}#{anchor(heading)}) |",
        *(f"| {key} | {value} |" for key, value in facts),
        "",
        "## Settings",
        "",
    ]
    if thing.settings.model_fields:
        lines += [docstring(thing.settings), "", *settings(thing.settings)]
    else:
        lines += ["None.", ""]
    lines += [
        "## When to use it",
        "",
        note["prefer"],
        "",
        "## When it misleads",
        "",
        note["misleads"],
        "",
        "## See also",
        "",
        f"{links(note['related'])} · [{reference}](../{overview})",
    ]
    return "\n".join(lines) + "\n"


CAPTIONS = {
    "methods": "Drawn by `python docs/catalogue_pictures.py`; the picture names the network.",
    "metrics": "Scores of the maps of four methods: each dot is one test image, with the mean and its 95 % "
    "interval. A curve is the mean over the images, in the colour of its method. "
    "Drawn by `python docs/catalogue_pictures.py`.",
}


def defaults(name: str) -> str:
    """Name the settings of a metric whose defaults a paper must report."""
    fields = METRICS[name].settings.model_fields
    usual = {"baseline": "black", "output": "probability", "absolute": False, "order": "most_relevant_first"}
    parts = [
        f"`{key}` {shown(field).strip('`')}"
        for key, field in fields.items()
        if not (field.is_required() or field.default is None or usual.get(key) == field.default)
    ]
    return f"; {', '.join(parts)}" if parts else ""


def method_table(family: str) -> Iterator[str]:
    """Tabulate the methods of a family."""
    yield "| method | map | cost per image | source |"
    yield "| --- | --- | --- | --- |"
    for name in dict(grouped(METHODS, lambda name: METHODS[name].family))[family]:
        note, method = NOTES["methods"][name], METHODS[name]
        yield f"| [`{name}`](methods/{name}.md) | {note['short']} | {method.passes} | {method.reference} |"


def metric_table(family: str) -> Iterator[str]:
    """Tabulate the metrics of a family."""
    yield "| metric | definition | better | range | source | compared with Quantus |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name in dict(grouped(METRICS, lambda name: METRICS[name].family))[family]:
        note, metric = NOTES["metrics"][name], METRICS[name]
        row = [
            f"[`{name}`](metrics/{name}.md)",
            note["short"] + defaults(name),
            metric.better,
            interval(metric),
            metric.reference,
            note["quantus"],
        ]
        yield f"| {' | '.join(row)} |"


def index(kind: str) -> str:
    """Write the page that lists all pages of a kind."""
    registry = METHODS if kind == "methods" else METRICS
    what, overview = ("method", "attribution.md") if kind == "methods" else ("metric", "metrics.md")
    title = "Attribution methods, one page each" if kind == "methods" else "Metrics, one page each"
    chapter = "which-method-to-use" if kind == "methods" else "which-to-believe"
    lines = [
        f"# {title}",
        "",
        f"Each page has a picture, the formula, the cost, the settings, and when the {what} misleads.",
        f"[The overview](../{overview}) compares them and says what all have in common; [which to use]"
        f"(../{overview}#{chapter}) helps to choose.",
        "",
    ]
    families = dict(grouped(registry, lambda name: registry[name].family))
    for family, names in families.items():
        lines += [f"## {FAMILIES[family]}", ""]
        lines += [f"- [{NOTES[kind][name]['title']}]({name}.md): `{name}`" for name in names]
        lines.append("")
    lines += [
        "```{toctree}",
        ":hidden:",
        "",
        *(name for names in families.values() for name in names),
        "```",
        "",
    ]
    return "\n".join(lines)


def with_tables(overview: str, table: object) -> str:
    """Return an overview page with its tables written anew, between the comments that mark them."""
    written = (DOCS / overview).read_text(encoding="utf-8")

    def replace(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n\n" + "\n".join(table(found[1])) + "\n\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", replace, written, flags=re.DOTALL)


def pages() -> dict[Path, str]:
    """Return the text of every page that is made here."""
    made = {
        DOCS / kind / f"{name}.md": page(kind, name)
        for kind, registry in (("methods", METHODS), ("metrics", METRICS))
        for name in registry
    }
    made |= {DOCS / kind / "index.md": index(kind) for kind in NOTES}
    made[DOCS / "attribution.md"] = with_tables("attribution.md", method_table)
    made[DOCS / "metrics.md"] = with_tables("metrics.md", metric_table)
    return made


def main() -> None:
    """Write the pages, and remove those of methods and metrics that no longer exist."""
    made = pages()
    for kind in NOTES:
        (DOCS / kind).mkdir(exist_ok=True)
        for old in set((DOCS / kind).glob("*.md")) - set(made):
            old.unlink()
    for path, content in made.items():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
