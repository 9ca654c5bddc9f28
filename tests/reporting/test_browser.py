"""The page in a real browser: it asks the network nothing, and all of it works by mouse and keyboard."""

import json

import pytest
import torch
from torch import nn

import saliency_lab as sl
from saliency_lab.reporting import report


@pytest.fixture(scope="module")
def path(reported, tmp_path_factory):
    return report(reported, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def page(browser, path):
    return browser.open(path)


def column(page, table, index):
    rows = f"[...document.querySelectorAll('#{table} tbody tr:not([hidden])')]"
    values = page.run(f"{rows}.map(row => row.cells[{index}].dataset.value)")
    return [float(value) for value in values]


def pixels(page, selector="#cards .tile canvas"):
    return page.run(f"document.querySelector('{selector}').toDataURL()")


def shown(page):
    return page.run(
        "[...document.querySelectorAll('#cards h3 .more')].map(e => Number(e.textContent.slice(1)))"
    )


@pytest.mark.long
def test_nothing_but_the_file_is_asked_for_and_nothing_is_complained_of(page, path):
    page.click("#scores thead th:nth-child(4) button")
    page.click("#theme")
    page.click("#cards .tile")
    page.choose("#blend", "40")
    asked = [e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}
    messages = [e for e in page.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    messages += [e for e in page.events if e["method"] == "Runtime.consoleAPICalled"]
    assert messages == []


def test_the_policy_stops_what_the_page_does_not_hold(page):
    refused = "fetch('https://example.org').then(() => 'sent', () => 'refused')"
    assert page.run(refused) == "refused"
    assert (
        page.run(
            "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
            "document.body.append(s); return window.ran ?? 'refused'; })()"
        )
        == "refused"
    )


def test_a_heading_sorts_by_mouse_and_by_keyboard(page):
    heading = "#scores thead th:nth-child(4)"
    before = column(page, "scores", 3)
    order = f"document.querySelector('{heading}').getAttribute('aria-sort')"
    page.click(f"{heading} button")
    assert column(page, "scores", 3) == sorted(before) != before
    assert page.run(order) == "ascending"
    page.run(f"document.querySelector('{heading} button').focus()")
    page.press("Enter", 13)
    assert column(page, "scores", 3) == sorted(before, reverse=True)
    assert page.run(order) == "descending"
    page.press("Enter", 13)
    assert column(page, "scores", 3) == before
    assert page.run(order) == "none"


def test_filters_leave_the_rows_that_fit_and_say_how_many(page):
    form = "[data-grid=scores] form"
    page.choose(f"{form} select[data-column='2']", "edges")
    page.choose(f"{form} select[data-column='0']", "other")
    rows = page.run("[...document.querySelectorAll('#scores tbody tr:not([hidden])')].map(r => r.innerText)")
    assert len(rows) == 3 and all("edges" in row and "other" in row for row in rows)
    assert page.run(f"document.querySelector('{form} output').textContent") == "3 of 18 rows"


def test_only_what_differs_is_left(reported, page):
    page.click("[data-grid=scores] [data-differs]")
    table = reported.compare().table()
    apart = (table["difference_low"] > 0) | (table["difference_high"] < 0)
    differ = table[~table["metric"].isin(["accuracy", "robust_accuracy"]) & (table["p_holm"] < 0.05) & apart]
    assert 0 < len(column(page, "scores", 3)) == len(differ) < 18


def test_blend_goes_from_the_map_to_the_image(page):
    image = pixels(page, "#cards .original canvas")
    first = pixels(page)
    page.choose("#blend", "50")
    half = pixels(page)
    page.choose("#blend", "100")
    assert pixels(page) == image
    assert len({first, half, image}) == 3
    page.choose("#blend", "0")
    assert pixels(page) == first


def test_a_tile_has_the_colours_of_the_map(reported, page):
    """Against the colour map itself, applied to the study's map."""
    import matplotlib as mpl
    import numpy as np

    drawn = page.run(
        "(() => { const c = document.querySelector('#cards .tile canvas');"
        "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; })()"
    )
    values = reported.read_maps("plain", "saliency").values[0].sum(0).numpy()
    limit = np.percentile(np.abs(values), 99.5)
    expected = mpl.colormaps["RdBu_r"](np.clip(values / limit, -1, 1) / 2 + 0.5)[..., :3]
    assert np.abs(np.reshape(drawn, (6, 6, 4))[..., :3] / 255 - expected).max() < 0.04  # two of 256 colours


def test_scales_and_values_change_the_maps_and_the_legend(page):
    own = pixels(page)
    page.choose("#scale", "all")
    shared = pixels(page)
    assert page.run("document.getElementById('bar-low').textContent").startswith("−")
    page.choose("#values", "magnitude")
    assert len({own, shared, pixels(page)}) == 3
    assert page.run("document.getElementById('bar-low').textContent") == "0"


def test_images_are_filtered_by_class_and_by_what_the_attack_changed(reported, page):
    page.choose("#class", "1")
    assert shown(page) == [i for i, label in enumerate(reported.labels) if label == "1"]
    page.click("#reset")
    assert shown(page) == list(range(12)) and page.run("document.getElementById('class').value") == ""
    robust = reported.robustness.pivot_table(
        index="sample", columns=["model", "eps"], values="robust", aggfunc="first"
    )
    robust = robust.astype(bool)
    changed = {model: robust[model, 0.0] & ~robust[model, 0.2] for model in reported.models}
    page.choose("#attack", "2")
    page.choose("#outcome", "changed")
    assert shown(page) == [i for i in range(15) if changed["plain"][i] or changed["other"][i]][:12]
    page.click("#controls [name=model][value='1']")
    assert shown(page) == [i for i in range(15) if changed["plain"][i]]
    page.choose("#outcome", "wrong")
    assert shown(page) == [i for i in range(15) if not robust["plain", 0.0][i]]


def test_attacked_images_their_predictions_and_maps_are_shown_on_request(reported, browser, tmp_path):
    page = browser.open(report(reported, tmp_path / "attacked.html", attacked=("pgd", 0.2)))
    net = reported.members[0].net
    right = int((net(reported.x).argmax(1) == reported.y).nonzero()[0])  # an attack leaves the others alone
    page.run("document.getElementById('picker').open = true")
    page.click(f".thumbs button:nth-child({right + 1})")
    before, original = pixels(page), pixels(page, "#cards .original canvas")
    page.choose("#shown", "attacked")
    heads = "[...document.querySelector('#cards table').querySelectorAll('tbody th')].map(e => e.textContent)"
    assert page.run(heads) == ["attacked image", "saliency", "input x gradient"]
    assert pixels(page, "#cards .original canvas") == original != pixels(page, "#cards td .tile canvas")
    assert pixels(page, "#cards button.tile canvas") != before
    one = reported.x[[right]], reported.y[[right]]
    x = sl.attack(net, *one, "pgd", eps=0.2, steps=2, seed=reported.seed).adversarial
    share, label = net(x).softmax(1).max(1)
    mark = "✓" if label == reported.y[right] else "✗"
    states = page.run("[...document.querySelectorAll('#cards thead .state')].map(e => e.textContent)")
    assert states[1] == f"→ {mark} {label.item()}, {100 * share.item():.0f} %"
    page.click("#cards button.tile")
    assert "attacked by pgd, ε = 0.2" in page.run("document.getElementById('zoom-title').textContent")
    page.press("Escape", 27)
    page.choose("#shown", "original")
    assert pixels(page) == before


def test_a_metric_sorts_the_images_best_or_worst_first(reported, page):
    for value in ("1", "2"):
        page.run(
            f"(() => {{ const box = document.querySelector('[name=method][value=\"{value}\"]');"
            "if (box.checked) box.click(); })()"
        )
    page.click("#controls [name=model][value='1']")
    page.choose("#metric", "1")
    scores = reported.scores
    rows = scores[
        (scores[["model", "method", "metric"]] == ["plain", "saliency", "pixel_flipping"]).all(axis=1)
    ]
    order = rows.sort_values("score", kind="stable")["sample"].tolist()  # lower is better
    assert shown(page) == order[:12]
    mean = page.run("document.querySelector('#cards .mean').textContent")
    assert float(mean.removeprefix("mean ")) == pytest.approx(rows["score"].min(), rel=5e-3)
    page.choose("#order", "worst")
    assert shown(page)[0] == order[-1]


def test_picked_images_alone_are_shown_and_more_on_demand(page):
    assert len(shown(page)) == 12
    page.click("#further")
    assert shown(page) == list(range(15))
    assert page.run("document.getElementById('further').hidden")
    page.run("document.getElementById('picker').open = true")
    for number in (3, 8):
        page.click(f".thumbs button:nth-child({number + 1})")
    assert shown(page) == [3, 8]
    assert page.run("document.getElementById('status').textContent") == "2 of 15 images"
    pressed = "[...document.querySelectorAll('.thumbs [aria-pressed=true]')].map(e => e.ariaLabel)"
    assert page.run(pressed) == ["Image 3, class 0", "Image 8, class 2"]


def test_models_and_methods_are_chosen(page):
    page.click("#controls [name=model][value='0']")
    page.click("#controls [name=method][value='1']")
    first = "document.querySelector('#cards table')"
    heads = page.run(f"[...{first}.querySelectorAll('thead th')].map(e => e.firstChild.textContent)")
    heads += page.run(f"[...{first}.querySelectorAll('tbody th')].map(e => e.textContent)")
    assert heads == ["other", "saliency"]


def test_a_tile_opens_large_and_escape_closes_it(page):
    page.click("#cards .tile")
    assert page.run("document.getElementById('zoom').open")
    assert "saliency on plain: image 0" in page.run("document.getElementById('zoom').innerText")
    page.press("Escape", 27)
    page.settle()
    assert not page.run("document.getElementById('zoom').open")
    assert page.run("document.activeElement.className") == "tile"


def test_the_large_map_goes_from_image_to_image_and_tells_its_values(reported, page):
    page.choose("#class", "1")
    page.click("#cards .tile")
    title = "document.getElementById('zoom-title').textContent"
    assert page.run("document.getElementById('previous').disabled")
    page.press("ArrowRight", 39)
    page.settle()
    assert page.run(title) == "saliency on plain: image 4, class 1"
    x, y, side = page.run(
        "(() => { const b = document.querySelector('.zoomed canvas:last-child').getBoundingClientRect();"
        "return [b.x, b.y, b.width]; })()"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 2.5 * side / 6, y=y + 4.5 * side / 6)
    page.settle()
    place, value = page.run("document.getElementById('readout').textContent").split(": ")
    values = reported.read_maps("plain", "saliency").values[4].sum(0)
    assert place == "row 4, column 2"
    assert abs(float(value.replace("−", "-")) - values[4, 2]) <= 0.51 / 127 * values.abs().max()
    page.press("ArrowLeft", 37)
    page.settle()
    assert page.run(title) == "saliency on plain: image 1, class 1"


@pytest.mark.long
def test_the_theme_is_the_systems_until_it_is_chosen(browser, path):
    ground = "getComputedStyle(document.body).backgroundColor"
    page = browser.open(path)
    page.run("localStorage.clear()")
    page.open(path)
    light = page.run(ground)
    dark = page.open(path, dark=True).run(ground)
    assert light == "rgb(255, 255, 255)" and dark != light
    assert page.run("document.getElementById('theme').ariaLabel") == "Light theme"
    page.click("#theme")
    assert page.run(ground) == light
    assert page.open(path, dark=True).run(ground) == light  # remembered
    page.run("localStorage.clear()")


@pytest.mark.long
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_page_is_wider_than_its_window(browser, path, width):
    page = browser.open(path, width=width)
    page.run("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


def test_long_names_of_many_models_do_not_overlap(make_reported, browser, tmp_path):
    names = [f"a_recipe_of_a_long_name_{k}" for k in range(4)]
    study = make_reported(names, n=4, methods=("saliency",), metrics=("sparseness",), eps=(0.1,))
    page = browser.open(report(study, tmp_path / "long.html"), width=1000)
    for heading in ("#cards thead th", "#glance thead th", ".card .name"):
        edges = page.run(
            f"[...document.querySelectorAll('{heading}')].slice(0, 5).map(e => {{"
            "const all = document.createRange(); all.selectNodeContents(e);"
            "return [all.getBoundingClientRect(), e.getBoundingClientRect()]; })"
            ".filter(([text]) => text.width).map(([text, box]) => text.right - box.right)"
        )
        assert edges and max(edges) <= 1, heading


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(browser, path, dark):
    """The contrast of WCAG 2 AA: 4.5, and 3 for large text and the data's colours."""
    page = browser.open(path, dark=dark)
    names = ["ink", "muted", "accent", "good", "doubt", "bad"]
    found = page.run(
        "(() => { const probe = document.createElement('i'); document.body.append(probe);"
        "const rgb = (name) => { probe.style.color = `var(--${name})`;"
        "return getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number); };"
        f"return Object.fromEntries({json.dumps([*names, 'paper', 'raised'])}.map(n => [n, rgb(n)])); }})()"
    )

    def luminance(rgb):
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ground in ("paper", "raised"):
        for name in names:
            low, high = sorted(luminance(found[each]) for each in (name, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)


def test_every_control_has_a_name(page):
    page.run("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    closed = page.call("Accessibility.getFullAXTree")["nodes"]
    page.click("#cards .tile")
    assert page.run("document.getElementById('zoom').open")
    opened = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {
        "button",
        "checkbox",
        "combobox",
        "slider",
        "link",
        "image",
        "table",
        "dialog",
        "searchbox",
        "img",
    }
    nameless = [
        node["role"]["value"]
        for node in [*closed, *opened]
        if not node.get("ignored")
        and node["role"]["value"] in roles
        and not node.get("name", {}).get("value", "").strip()
    ]
    assert nameless == []
    assert {"button", "checkbox", "slider"} <= {node["role"]["value"] for node in closed}


def test_the_keyboard_reaches_the_content_first_and_shows_where_it_is(page):
    page.press("Tab", 9)
    assert page.run("document.activeElement.className") == "skip"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.press("Enter", 13)
    page.settle()
    assert page.run("location.hash") == "#main"


def test_what_scrolls_is_a_stop_of_the_keyboard_and_the_rest_is_none(browser, path):
    seen = "[...document.querySelectorAll('.scroll[role=region]')].filter(e => e.checkVisibility())"
    stops = f"{seen}.map(e => [e.scrollWidth > e.clientWidth, e.tabIndex])"
    for width in (1280, 360):
        page = browser.open(path, width=width)
        page.settle()
        found = page.run(stops)
        assert all((tab == 0) == scrolls for scrolls, tab in found)
    assert any(scrolls for scrolls, _ in found)


def test_without_scripts_the_tables_and_figures_are_there(browser, path):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.call("Page.navigate", url=path.as_uri())
        text = browser._wait(
            lambda: (
                (found := browser.call("Accessibility.getFullAXTree")["nodes"])
                and any("needs JavaScript" in n.get("name", {}).get("value", "") for n in found)
                and found
            )
        )
        names = [node.get("name", {}).get("value", "") for node in text]
        assert "Scores of the maps" in names and any(name.startswith("Accuracy under") for name in names)
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_a_prediction_that_is_undefined_has_no_mark(browser, tmp_path):
    class Diverged(nn.Module):
        def forward(self, x):
            lost = (x.mean((1, 2, 3)) > 0.5)[:, None]
            return torch.where(lost, torch.nan, x.flatten(1)[:, :3])

    x = torch.rand(9, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    study = sl.Study({"diverged": Diverged().eval()}, (x, torch.arange(9) % 3)).attribute("saliency")
    page = browser.open(report(study, tmp_path / "report.html"))
    texts = page.run("[...document.querySelectorAll('#cards .state')].map(e => e.textContent)")
    lost = (x.mean((1, 2, 3)) > 0.5).tolist()
    assert [text == "undefined" for text in texts] == lost
    assert all(text[0] in "✓✗" for text in texts if text != "undefined")
    page.run(f"document.querySelectorAll('#cards .tile')[{lost.index(True)}].click()")
    assert page.run("document.getElementById('zoom-text').textContent").startswith("predicts nothing")
