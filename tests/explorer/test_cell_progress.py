"""Progress in a notebook: one place per cell, which is empty when the work is done."""

import time
from types import SimpleNamespace

import pytest

from saliency_lab._common import progress as bars

pytest.importorskip("IPython", reason="needs IPython: pip install '.[notebook]'")


@pytest.fixture
def cell(monkeypatch):
    """A notebook's cell whose displays are collected: one list per place."""
    places = []

    def display(html, display_id):
        place = [html.data]
        places.append(place)
        return SimpleNamespace(update=lambda html: place.append(html.data))

    shell = SimpleNamespace(kernel=object(), execution_count=1, places=places)
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(bars, "_in_notebook", lambda: True)
    monkeypatch.setattr(bars, "SECONDS_UNSEEN", 0.0)
    monkeypatch.setattr(bars, "_enabled", True)
    bars._cell_bars.cache_clear()
    yield shell
    bars._cell_bars.cache_clear()


def work(label, steps=3):
    for _ in bars.progress(range(steps), label=label):
        time.sleep(0.26)


def test_the_bars_of_a_cell_share_one_place_and_leave_it_empty(cell):
    work("first")
    work("second")
    (place,) = cell.places
    assert (
        place[-1] == "" and any("first" in html for html in place) and any("second" in html for html in place)
    )
    assert any('<progress value="' in html for html in place)
    cell.execution_count = 2
    work("third")
    assert len(cell.places) == 2 and cell.places[1][-1] == ""


def test_nested_bars_are_not_shown(cell):
    for _ in bars.progress(range(2), label="outer"):
        work("inner", steps=2)
    (place,) = cell.places
    assert not any("inner" in html for html in place) and place[-1] == ""


def test_names_are_text(cell):
    work("<script>alert(1)</script>")
    assert not any("<script" in html for html in cell.places[0])


def test_short_work_and_silenced_work_show_nothing(cell, monkeypatch):
    monkeypatch.setattr(bars, "SECONDS_UNSEEN", 10.0)
    work("short")
    bars.show_progress(False)
    monkeypatch.setattr(bars, "SECONDS_UNSEEN", 0.0)
    work("silent")
    assert cell.places == []
