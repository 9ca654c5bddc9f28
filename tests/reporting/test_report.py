"""The page as a file: what is in it, that it needs nothing else, and that its numbers are the study's."""

import base64
import hashlib
import json
import re
import zlib
from collections import Counter
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure
from torch import nn
from typer.testing import CliRunner

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab.cli.app import app
from saliency_lab.comparison.claims import Claim, Purpose
from saliency_lab.models.checkpoint import ModelCard
from saliency_lab.reporting import bundle, explorer, report
from saliency_lab.reporting.provenance import provenance
from saliency_lab.reporting.vector import Drawing
from saliency_lab.study import Study
from saliency_lab.study.cache import store

VOID = {"meta", "link", "input", "br", "img", "wbr"}
NASTY = ["<script>alert(1)</script>", "a & \"b\" 'c'", "modèle_ε → 模型", "</title><b>"]


def unpack(text, shape, dtype):
    """Undo `bundle.pack`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype).reshape(shape)


class Page(HTMLParser):
    """Elements in order as (tag, attributes, text); raises where tags do not nest."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.elements, self._open = [], []
        self.feed(self.text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        element = (tag, dict(attributes), [])
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        assert self._open and self._open[-1][0] == tag, f"</{tag}> closes {self._open[-1][:2]}"
        self._open.pop()

    def handle_data(self, text):
        for element in self._open:
            element[2].append(text)

    def all(self, tag):
        return [(attributes, "".join(text)) for each, attributes, text in self.elements if each == tag]

    @property
    def data(self):
        (found,) = (text for attributes, text in self.all("script") if "id" in attributes)
        return json.loads(found)

    def rows(self, name):
        """Texts of a table's body, row by row."""
        found, inside = [], False
        for tag, attributes, text in self.elements:
            if tag == "table":
                inside = attributes.get("id") == name
            elif inside and tag == "tr":
                found.append([])
            elif inside and tag in ("td", "th") and attributes.get("scope") != "col":
                found[-1].append(" ".join("".join(text).split()))
        return [row for row in found if row]


@pytest.fixture(scope="module")
def page(reported, tmp_path_factory):
    return Page(report(reported, tmp_path_factory.mktemp("page") / "report.html"))


@pytest.mark.long
def test_nothing_outside_the_file_is_referred_to(page):
    for tag, attributes, _ in page.elements:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
                assert value.startswith(("#", "data:")), (tag, name, value)
    style = "".join(text for _, text in page.all("style"))
    assert "@import" not in style and "url(" not in style
    script = page.all("script")[-1][1]
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|import\(|https?:", script)
    names = {
        value for _, attributes, _ in page.elements for value in attributes.values() if "http:" in str(value)
    }
    assert names == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not addresses


def test_the_policy_allows_this_script_and_style_and_no_connection(page):
    (policy,) = (
        a["content"] for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert set(rules) == {"default-src", "style-src", "script-src", "img-src", "base-uri", "form-action"}
    for rule, tag in (("style-src", "style"), ("script-src", "script")):
        text = page.all(tag)[-1][1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert not [a for _, a, _ in page.elements if "style" in a or any(k.startswith("on") for k in a)]


def test_ids_are_unique_and_links_and_labels_meet_them(page):
    ids = Counter(a["id"] for _, a, _ in page.elements if "id" in a)
    assert [name for name, count in ids.items() if count > 1] == []
    for _, attributes, _ in page.elements:
        for name in ("href", "xlink:href", "aria-labelledby", "form"):
            value = attributes.get(name, "")
            if value and not value.startswith("data:"):
                assert value.removeprefix("#") in ids, (name, value)
        for value in attributes.values():
            if str(value).startswith("url(#"):
                assert value[5:-1] in ids


def test_tables_have_captions_and_headings_have_a_scope(page):
    assert len(page.all("caption")) == len(page.all("table")) >= 6
    assert all(text.strip() for _, text in page.all("caption"))
    assert {a.get("scope") for a, _ in page.all("th")} == {"col", "row"}
    assert all(a["aria-sort"] == "none" for a, _ in page.all("th") if a["scope"] == "col")


def test_figures_are_vectors_with_a_name_and_text(page):
    charts = [(a, text) for a, text in page.all("svg") if "chart" in a.get("class", "")]
    assert len(charts) >= 6
    assert all(a["aria-label"] and a["viewbox"] for a, _ in charts)
    robustness = next(text for a, text in charts if a["aria-label"].startswith("Accuracy under"))
    assert "accuracy under attack" in robustness and "plain" in robustness
    rules = "".join(text for _, text in page.all("style"))
    used = {
        name
        for _, a, _ in page.elements
        for name in (a.get("class") or "").split()
        if re.fullmatch(r"s\d+", name)
    }
    assert used and all(f".{name}{{" in rules for name in used)


def test_the_tables_hold_the_comparison(reported, page):
    table = reported.compare().table()
    robust = table[table["metric"].isin(["accuracy", "robust_accuracy"])]
    rows = page.rows("accuracies")
    assert len(rows) == len(robust)
    for row, (_, fact) in zip(rows, robust.iterrows(), strict=True):
        assert row[0] == fact["model"]
        assert row[3] == f"{100 * fact['mean']:.1f} % [{100 * fact['low']:.1f}, {100 * fact['high']:.1f}]"
        assert row[-1] == str(fact["n"])
    scores = table[table["metric"] == "sparseness"]
    found = [row for row in page.rows("scores") if row[1] == "sparseness ↑"]
    assert [row[2] for row in found] == [method.replace("_", " ") for method in scores["method"]]
    for row, (_, fact) in zip(found, scores.iterrows(), strict=True):
        value, low, high = (float(each.strip("[],").replace("−", "-")) for each in row[3].split())
        assert [value, low, high] == pytest.approx(fact[["mean", "low", "high"]].tolist(), abs=6e-3)


def test_maps_of_the_page_are_the_studys_to_half_a_step(reported, page):
    data = page.data
    shape = (len(data["classes"]), *data["shape"][1:])
    assert [(each["model"], each["method"]) for each in data["maps"]] == [
        (model, method) for model in reported.models for method in reported.maps[model]
    ]
    for each in data["maps"]:
        levels = unpack(each["levels"], shape, np.int8).astype(float)
        scale = np.array(each["scale"])[:, None, None]
        truth = reported.read_maps(each["model"], each["method"]).values.sum(1).numpy()
        assert np.all(np.abs(levels * scale / 127 - truth) <= scale * (0.5 / 127 + 1e-6))
    images = unpack(data["images"]["pixels"], shape, np.uint8) / 255
    assert np.abs(images - reported.x[:, 0].numpy()).max() <= 0.5 / 255 + 1e-6


def test_scores_and_attacks_of_the_page_are_the_studys(reported, page):
    data = page.data
    scores = reported.scores
    for metric in data["metrics"]:
        for model, by_method in zip(data["models"], metric["values"], strict=True):
            for method, values in zip(data["methods"], by_method, strict=True):
                rows = scores[
                    (scores[["metric", "model", "method"]] == [metric["name"], model, method]).all(axis=1)
                ]
                assert values == pytest.approx(rows.sort_values("sample")["score"].tolist(), rel=1e-5)
    robust = reported.robustness
    for attack in data["attacks"]:
        for model, bits in zip(data["models"], attack["robust"], strict=True):
            rows = robust[(robust["eps"] == attack["eps"]) & (robust["model"] == model)]
            assert [bit == "1" for bit in bits] == rows["robust"].tolist()
    assert [attack["eps"] for attack in data["attacks"]] == [0.0, 0.05, 0.2]


finite = st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, float("nan"), float("inf")])


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)), elements=finite)
)
def test_a_quantised_map_is_half_a_step_away_at_most(maps):
    found = bundle.quantise(maps)
    levels = unpack(bundle.pack(found.levels), maps.shape, np.int8)
    known = np.isfinite(maps)
    assert ((levels == bundle.UNDEFINED) == ~known).all()
    step = found.scale[:, None, None] / bundle.STEPS
    error = np.abs(levels * step - np.where(known, maps, 0).astype(float))
    assert (error[known] <= (0.5 * step * (1 + 1e-9) + np.zeros_like(maps))[known]).all()
    low, high = bundle.scale_of(np.where(known, maps, 0).astype(float), signed=True)
    assert (found.scale > 0).all() and (high > 0).all() and (low == -high).all()


@pytest.mark.long
def test_the_same_study_gives_the_same_bytes_loaded_or_not(reported, tmp_path):
    first, second, third = (tmp_path / name for name in ("a.html", "b.html", "c.html"))
    report(reported, first)
    report(reported, second)
    report(Study.load(reported.store.folder), third)
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()


def test_predictions_are_stored_with_the_maps_and_shown_without_an_attack(make_reported, tmp_path):
    study = make_reported(eps=(), n=6, store=tmp_path / "store")
    for each in (study, Study.load(tmp_path / "store")):
        data = Page(report(each, tmp_path / "report.html")).data
        for model, found in zip(data["models"], data["predictions"], strict=True):
            net = next(member.net for member in study.members if member.model == model)
            shares, classes = net(study.x).softmax(1).max(1)
            assert found["classes"] == [str(k) for k in classes.tolist()]
            assert found["probabilities"] == pytest.approx(shares.tolist(), abs=1e-4)


class Diverged(nn.Module):
    """A network whose outputs are no numbers for some images, or for all."""

    def __init__(self, some):
        super().__init__()
        self.net, self.some = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), some

    def forward(self, x):
        lost = x.mean((1, 2, 3)) > 0.5 if self.some else torch.ones(len(x), dtype=torch.bool)
        return torch.where(lost[:, None], torch.nan, self.net(x))


@pytest.mark.parametrize("some", [True, False])
def test_a_network_that_diverged_predicts_nothing(tmp_path, some):
    x, y = torch.rand(9, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    diverged = Diverged(some).eval()
    study = Study({"plain": diverged.net, "diverged": diverged}, (x, y))
    study.attribute("saliency").score("sparseness")
    found = Page(report(study, tmp_path / "report.html")).data
    lost = (x.mean((1, 2, 3)) > 0.5).tolist() if some else [True] * 9
    sound, broken = (each["probabilities"] for each in found["predictions"])
    assert [share is None for share in broken] == lost and None not in sound
    labels = [ax.get_xlabel() for ax in study.compare().plot.maps(n=9).axes]
    assert labels.count("undefined") == sum(lost)
    assert sum(label.startswith(("✓", "✗")) for label in labels) == 18 - sum(lost)


def test_classes_of_one_name_are_told_apart(tmp_path):
    class Last(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * 1e-3 + torch.tensor([0.0, 0.0, 1.0])

    model = sl.wrap(Last(), classes=("crane", "dog", "crane"))
    x = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 2, 0, 2])
    study = Study({"last": model}, (x, y), store=tmp_path / "store").attribute("saliency").score("sparseness")
    for each in (study, Study.load(tmp_path / "store")):
        page = Page(report(each, tmp_path / "report.html"))
        (predicted,) = page.data["predictions"]
        right = [a == b for a, b in zip(predicted["classes"], page.data["classes"], strict=True)]
        assert right == (y == 2).tolist()
        assert page.data["names"] == ["crane (0)", "crane (2)", "dog"]
        assert "6 images of 3 classes" in page.text
    marks = [ax.get_xlabel()[0] for ax in study.compare().plot.maps(n=6).axes if ax.get_xlabel()]
    assert marks == ["✓" if label == 2 else "✗" for label in y.tolist()]


def test_attacked_images_are_on_the_page_when_asked_for(reported, tmp_path):
    page = Page(report(reported, tmp_path / "attacked.html", attacked=("pgd", "0.2")))
    attacked = page.data["attacked"]
    assert (attacked["name"], attacked["eps"]) == ("pgd, ε = 0.2", 0.2)
    for index, model in enumerate(reported.models):
        net = reported.members[index].net
        x = sl.attack(net, reported.x, reported.y, "pgd", eps=0.2, steps=2, seed=reported.seed).adversarial
        pixels = unpack(attacked["images"][index]["pixels"], (15, 6, 6), np.uint8)
        assert np.abs(pixels / 255 - x[:, 0].numpy()).max() <= 0.5 / 255 + 1e-6
        shares = net(x).softmax(1).detach()
        predictions = attacked["predictions"][index]
        assert predictions["classes"] == [str(k) for k in shares.argmax(1).tolist()]
        np.testing.assert_allclose(predictions["probabilities"], shares.amax(1), atol=5e-5)
        entry = next(m for m in attacked["maps"] if (m["model"], m["method"]) == (model, "saliency"))
        levels = unpack(entry["levels"], (15, 6, 6), np.int8)
        maps = sl.attribute(net, x, reported.y, "saliency").values.sum(1).numpy()
        step = np.abs(maps).max((1, 2), keepdims=True) / bundle.STEPS
        assert (np.abs(levels * step - maps) <= 0.51 * step).all()
    assert Page(report(reported, tmp_path / "plain.html")).data["attacked"] is None


def test_what_attacked_cannot_be_is_named(reported, tmp_path):
    for wrong in ("pgd", ("pgd", 0.3), ("fgsm", 0.2), ("pgd", 0.0)):
        with pytest.raises(InputError, match=r'one of \("pgd", "0.05"\), \("pgd", "0.2"\), not'):
            report(reported, tmp_path / "page.html", attacked=wrong)
    with pytest.raises(InputError, match="loaded without them"):
        report(Study.load(reported.store.folder), tmp_path / "page.html", attacked=("pgd", 0.2))
    assert not (tmp_path / "page.html").exists()


def test_nothing_is_left_changed(reported, tmp_path):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), dict(mpl.rcParams))  # noqa: NPY002
    values = reported.read_maps("plain", "saliency").values.clone()
    report(reported, tmp_path / "report.html")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert dict(mpl.rcParams) == before[2]
    assert torch.equal(reported.read_maps("plain", "saliency").values, values)


def test_a_page_is_never_called_something_else(reported, tmp_path):
    for name in ("report.pdf", "report"):
        with pytest.raises(InputError, match=r"path must end with \.html or \.htm, .* not 'report"):
            report(reported, tmp_path / name)
    with pytest.raises(InputError, match=r"path must be a file, such as '.*html', not a folder"):
        report(reported, tmp_path)
    assert not list(tmp_path.iterdir())


def test_names_are_text_wherever_they_stand(make_reported, tmp_path):
    def raises(model, x, classes):
        raise RuntimeError("<img src=x onerror=alert(2)>")

    with pytest.warns(UserWarning, match="results failed"):
        study = make_reported(
            NASTY, n=6, methods={NASTY[0]: "saliency", "<i>bad": raises}, metrics={NASTY[1]: "sparseness"}
        )
    page = Page(report(study, tmp_path / "report.html"))
    assert len(page.all("script")) == 2 and len(page.all("title")) > 1
    assert not page.all("img") and not page.all("b") and not page.all("i")
    assert [" ".join(text.split()) for a, text in page.all("h2") if a.get("class") == "name"] == [
        f"{NASTY[0]} baseline",
        *NASTY[1:],
    ]
    assert {row[0] for row in page.rows("accuracies")} == set(NASTY)
    assert page.data["models"] == NASTY
    assert page.data["methods"] == [NASTY[0]]
    problems = page.rows("problems")
    assert [row[0] for row in problems] == ["<i>bad", f"{NASTY[1]} of <i>bad"]
    assert all("RuntimeError: <img src=x onerror=alert(2)>" in row[2] for row in problems)
    assert all(name in problems[0][1] for name in NASTY)
    assert "8 results of this study are missing." in page.text


def test_a_name_that_no_xml_may_hold_is_drawn_without_it():
    figure = Figure()
    figure.suptitle("\x1b[31mred\0")
    assert "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}" in Drawing().draw(figure, "a title")


@pytest.mark.long
@pytest.mark.parametrize(
    ("asked", "absent"),
    [
        ({"eps": ()}, ["accuracies"]),
        ({"metrics": ()}, ["scores"]),
        ({"methods": (), "metrics": ()}, ["scores", "explorer"]),
        ({"metrics": (), "eps": ()}, ["scores", "accuracies", "glance"]),
        ({"models": ("alone",)}, []),
        ({"channels": 3}, []),
        ({"channels": 2, "seeds": 2}, []),
    ],
    ids=["no attacks", "no scores", "no maps", "maps alone", "one model", "RGB", "seeds"],
)
def test_a_part_that_is_missing_from_the_study_is_missing_from_the_page(
    make_reported, tmp_path, asked, absent
):
    study = make_reported(**{"n": 6, **asked})
    page = Page(report(study, tmp_path / "report.html"))
    ids = {a["id"] for _, a, _ in page.elements if "id" in a}
    parts = {"accuracies", "scores", "explorer", "glance", "members", "provenance", "audit", "summary"}
    assert parts - ids == set(absent)
    if "explorer" in ids:
        depth = 3 if asked.get("channels") == 3 else 1
        shape = (6, 6, 6, 3)[: 3 if depth == 1 else 4]
        images = unpack(page.data["images"]["pixels"], shape, np.uint8)
        expected = study.x.permute(0, 2, 3, 1).numpy() if depth == 3 else study.x.mean(1).numpy()
        assert np.abs(images / 255 - expected).max() <= 0.5 / 255 + 1e-6


@pytest.mark.long
def test_seeds_are_named_where_they_matter(make_reported, tmp_path):
    study = make_reported(seeds=2, n=6)
    page = Page(report(study, tmp_path / "report.html"))
    assert [row[:2] for row in page.rows("members")] == [
        ["plain", "0"],
        ["plain", "1"],
        ["other", "0"],
        ["other", "1"],
    ]
    assert "Intervals and tests are over training seeds and images" in page.text
    first = study.read_maps("other", "saliency", seed=0).values.sum(1).numpy()
    found = next(m for m in page.data["maps"] if (m["model"], m["method"]) == ("other", "saliency"))
    levels = unpack(found["levels"], first.shape, np.int8)
    assert (
        np.abs(levels * np.array(found["scale"])[:, None, None] / 127 - first).max()
        < 0.01 * np.abs(first).max()
    )


@pytest.mark.long
def test_a_page_stays_small_and_says_what_it_left_out(make_reported, tmp_path, monkeypatch):
    """Four models, six methods, 64 images whose maps are noise, which nothing can compress."""

    def noise(model, x, classes):
        return torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 0.5

    methods = {f"noise {i}": noise for i in range(6)}
    models = [f"model {i}" for i in range(4)]
    small = make_reported(models, n=64, side=32, methods=methods, metrics=(), eps=())
    path = report(small, tmp_path / "small.html")
    assert len(Page(path).data["classes"]) == 64 and path.stat().st_size < 15e6
    large = make_reported(models, n=64, side=96, methods=methods, metrics=(), eps=())
    path = report(large, tmp_path / "large.html")
    shown = len(Page(path).data["classes"])
    text = " ".join(path.read_text().split())
    assert shown == 64 and path.stat().st_size < 12e6
    assert "maps are averaged over blocks of 2 × 2 pixels" in text
    monkeypatch.setattr(explorer, "BUDGET", 300_000)
    path = report(large, tmp_path / "larger.html")
    shown = len(Page(path).data["classes"])
    assert 5 < shown < 64 and path.stat().st_size < 0.8e6
    assert (
        f"The first {shown} of the study's 64 images (64 would make the page too large)" in path.read_text()
    )


@pytest.mark.long
def test_the_explorer_holds_as_many_images_as_asked_and_one_at_least(reported, tmp_path, monkeypatch):
    page = Page(report(reported, tmp_path / "report.html", images=5))
    assert len(page.data["classes"]) == 5 and page.data["total"] == 15
    assert "The first 5 of the study's 15 images, with" in " ".join(page.text.split())
    monkeypatch.setattr(explorer, "BUDGET", 1)
    page = Page(report(reported, tmp_path / "report.html"))
    assert len(page.data["classes"]) == 1


def test_verdicts_say_what_differs_and_by_how_much(make_reported, tmp_path):
    """One network that is always right and one that never is, on 40 images: (40 ± 1.96·√(42 − 40²/42))/42."""
    x, y = (
        torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)),
        torch.zeros(40, dtype=torch.long),
    )

    def constant(favourite):
        layer = torch.nn.Linear(16, 2)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(torch.eye(2)[favourite])
        return torch.nn.Sequential(torch.nn.Flatten(), layer)

    study = Study({"wrong": constant(1), "right": constant(0)}, (x, y)).attack("pgd", eps=[0.1, 0.2], steps=1)
    page = Page(report(study, tmp_path / "report.html"))
    shown = " ".join(text for _, text in page.all("article"))
    assert (
        "Accuracy 100.0 %, higher than wrong by 100.0 points; 100.0 % under pgd at ε = 0.2, higher than "
        "wrong by 100.0 points." in " ".join(shown.replace("\xa0", " ").split())
    )
    assert [row[5] for row in page.rows("accuracies")[1::2]] == ["+100.0 points [+86.0, +100.0]"] * 3
    page = Page(report(study, tmp_path / "report.html", baseline="right"))
    assert "lower than right by 100.0 points" in " ".join(text for _, text in page.all("article")).replace(
        "\xa0", " "
    )


def test_a_difference_that_the_seeds_do_not_bear_out_is_none(tmp_path):
    """Far above the baseline with one seed and near it with two: a test over images would find more."""

    def net(score):
        layer = torch.nn.Linear(16, 2)
        with torch.no_grad():
            layer.bias[0] = score
        return torch.nn.Sequential(torch.nn.Flatten(), layer)

    def score(model, x, y, maps):
        return 0.01 * x.mean((1, 2, 3)) + model[1].bias[0].item()

    x, y = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 2
    nets = {
        "zero": [net(each) for each in (0.01, 0.0, -0.01)],
        "wild": [net(each) for each in (4.0, -1.0, 1.0)],
        "sure": [net(each) for each in (5.0, 5.1, 5.2)],
    }
    study = Study(nets, (x, y)).attribute("saliency").score({"score": score})
    table = study.compare().table().set_index("model")
    assert (table.loc[["wild", "sure"], "p_rank"] < 0.001).all() and table.loc["wild", "difference_low"] < 0
    assert table.loc["sure", "p_holm"] < 0.001 and table.loc["wild", "p_holm"] > 0.1
    page = Page(report(study, tmp_path / "report.html"))
    shown = [" ".join(text.split()) for _, text in page.all("article")]
    assert "Of 1 map score, all not significantly different." in shown[1]
    assert "Of 1 map score, all different." in shown[2]
    (row,) = page.rows("glance")
    assert ["†" in entry for entry in row[1:]] == [False, False, True]


def test_networks_at_chance_are_named(tmp_path):
    first, last = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with torch.no_grad():
        for net in (first, last):
            net[1].weight.zero_()
        first[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
        last[1].bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
    x = torch.rand(10, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    read = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    with torch.no_grad():  # right for all images, by the least squares through ten points in 36 dimensions
        found = torch.linalg.lstsq(x.flatten(1), nn.functional.one_hot(y, 3).float()).solution
        read[1].weight.copy_(found.T)
        read[1].bias.zero_()
    study = Study({"one class": [first, last], "right": read}, (x, y)).attack("fgsm", eps=0.01)
    page = Page(report(study, tmp_path / "report.html"))
    named = "one class (seed 0) and one class (seed 1) classify no more images correctly than"
    assert named in page.text and "would (40.0%)" in page.text
    assert "right (seed 0) classif" not in page.text

    same = Study({"one class": first}, (x[:4], y[:4])).attack("fgsm", eps=0.01)
    assert "no more images correctly" not in Page(report(same, tmp_path / "same.html")).text


def test_undefined_scores_are_counted(make_reported, tmp_path):
    def half(model, x, y, maps):
        return [float("nan") if i % 2 else float(i) for i in range(len(x))]

    study = make_reported(n=10, metrics={"half": half}, eps=())
    page = Page(report(study, tmp_path / "report.html"))
    assert "30 of 60 map scores (50.0%) are undefined and left out: half (30)." in page.text
    assert [row[-1] for row in page.rows("scores")] == ["5"] * 6


def test_the_audit_is_shown_next_to_the_attack(reported, page):
    audits = reported.audits.groupby("model", sort=False).first()
    sentences = [
        " ".join(text.split()).replace("\xa0", " ") for a, text in page.all("p") if a.get("class") == "audit"
    ]
    assert len(sentences) == 2
    for model, facts in audits.iterrows():
        sentence = (
            f"audit: {facts['verdict']} pgd at ε = 0.05 reports "
            f"{100 * facts['robust_accuracy']:.1f} % robust; the worst case over all attacks is "
            f"{100 * facts['worst_case']:.1f} %, on 4 images."
        )
        assert sentence in sentences, (model, sentences)
    shares = audits[["robust_accuracy", "worst_case"]].to_numpy()
    assert [row[4:6] for row in page.rows("audits")] == [
        [f"{100 * each:.1f} %" for each in row] for row in shares
    ]
    checks = reported.audits[reported.audits["model"] == "plain"]
    assert [row[0] for row in page.rows("audit-0")] == checks["check"].tolist()
    assert [row[2] for row in page.rows("audit-0")] == [" ".join(text.split()) for text in checks["evidence"]]


def test_every_result_has_its_key_and_settings(reported, page):
    rows = page.rows("results")
    assert [row[-1] for row in rows] == list(reported.results.values())
    settings = next(row[4] for row in rows if row[0] == "attack")
    assert "steps = 2" in settings and "eps = [0, 0.05, 0.2]" in settings


def test_where_numbers_come_from_is_read_from_the_headers(reported, monkeypatch):
    monkeypatch.setattr(store, "read_result", lambda path: pytest.fail(f"{path} was read"))
    found = provenance(reported, reported.models, [])
    assert [row[-1].text for row in found.results.rows] == list(reported.results.values())
    assert all(row[6].text == "cpu" for row in found.results.rows)


def test_a_lost_result_is_named(reported, tmp_path):
    study = Study.load(Study.load(reported.store.folder).save(tmp_path / "copy").store.folder)
    key = next(key for place, key in study.results.items() if (place.kind, place.label) == ("maps", "edges"))
    study.store.path("maps", key).unlink()
    page = Page(report(study, tmp_path / "report.html"))
    (row,) = page.rows("problems")
    assert row[:2] == ["edges", "plain (seed 0)"] and "not in the store" in row[2]
    assert ("plain", "edges") not in [(m["model"], m["method"]) for m in page.data["maps"]]


def test_a_result_with_a_flipped_bit_is_named(reported, tmp_path):
    copied = Study.load(Study.load(reported.store.folder).save(tmp_path / "copy").store.folder)
    place, key = next((place, key) for place, key in copied.results.items() if place.kind == "attack")
    path = copied.store.path("attack", key)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged.*computes it again"):
        study = Study.load(copied.store.folder)
    assert study.lost == [place]
    page = Page(report(study, tmp_path / "report.html"))
    (row,) = page.rows("problems")
    assert row[:2] == ["pgd", f"{place.model} (seed 0)"] and "is damaged" in row[2]


def test_what_cannot_be_reported_is_named(reported, tmp_path):
    x, y = torch.rand(2, 1, 6, 6), torch.tensor([0, 1])
    empty = Study({"a": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2))}, (x, y))
    with pytest.raises(sl.SaliencyLabError, match="nothing to report yet"):
        report(empty, tmp_path / "report.html")
    with pytest.raises(sl.SaliencyLabError, match="images must be a whole number of at least 1"):
        report(reported, tmp_path / "report.html", images=0)
    with pytest.raises(sl.SaliencyLabError, match="did you mean 'plain'"):
        report(reported, tmp_path / "report.html", baseline="plane")
    assert not (tmp_path / "report.html").exists()


def test_classes_are_named_in_a_loaded_study_too(make_reported, tmp_path):
    nets = {"a": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3))}
    nets["a"].card = ModelCard(classes=("cat", "dog", "<owl>"))
    x, y = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 1, 2])
    Study(nets, (x, y), store=tmp_path / "store").attribute("saliency")
    page = Page(report(Study.load(tmp_path / "store"), tmp_path / "report.html"))
    assert page.data["classes"] == ["<owl>", "cat", "dog", "<owl>"]


def test_a_class_beyond_the_names_of_the_card_is_shown_by_its_number(tmp_path):
    nets = {"a": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3))}
    nets["a"].card = ModelCard(classes=("cat", "dog"))
    x, y = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 1, 2])
    study = Study(nets, (x, y)).attribute("saliency")
    assert study.labels == ["2", "cat", "dog", "2"]
    assert Page(report(study, tmp_path / "report.html")).data["classes"] == study.labels


@pytest.mark.long
def test_the_command_writes_the_page(reported, tmp_path):
    out = tmp_path / "page.html"
    done = CliRunner().invoke(
        app, ["report", str(reported.store.folder), "--out", str(out), "--baseline", "other"]
    )
    assert done.exit_code == 0 and done.stdout.strip() == str(out)
    assert "Differences are against <strong>other</strong>" in " ".join(out.read_text().split())
    done = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")])
    assert done.exit_code == 2


@pytest.mark.long
def test_the_questions_of_a_study_are_answered_on_its_page(make_reported, tmp_path):
    study = make_reported(store=tmp_path / "store", eps=(0.2,))
    claims = [
        Claim(question="Sparser <maps>?", model="other", over="plain", metric="sparseness", method="edges"),
        Claim(question="Gone?", model="other", over="plain", metric="complexity"),
    ]
    study.purpose = Purpose(
        title="A title of its own",
        about="What it <asks>.\n\nAnd `more`.",
        claims=claims,
        baseline="other",
        level=0.9,
    )
    study.write_manifest(exclusive=True)
    page = Page(report(Study.load(tmp_path / "store"), tmp_path / "report.html"))
    assert [text for _, text in page.all("h1")] == ["A title of its own"]
    assert [text for kind, text in page.all("p") if kind.get("class") == "lede"][:2] == [
        "What it <asks>.",
        "And more.",
    ]
    assert "more" in [text for _, text in page.all("code")]
    assert "Differences are against other" in " ".join(page.all("main")[0][1].split())
    shown = {attributes.get("aria-label"): " ".join(text.split()) for attributes, text in page.all("article")}
    # edges do not depend on the model, so there is nothing to compare
    assert "other against plain: identical by sparseness (edges)." in shown["Sparser <maps>?"]
    assert "No answer: nothing that was measured" in shown["Gone?"]
    (row,) = page.rows("question-1")
    assert row[:3] == ["other − plain", "sparseness (edges)", "identical"] and row[3] == row[4]
    assert "Differences tested together" not in page.text


def test_a_study_without_questions_has_no_section_for_them(page):
    assert not any(attributes.get("id") == "questions" for _, attributes, _ in page.elements)
