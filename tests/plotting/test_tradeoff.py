from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import saliency_lab as sl
from saliency_lab.plotting.style import MARKERS, PALETTE, RECIPES, looks
from saliency_lab.plotting.tradeoff import NAMED, tradeoff


def _points(count: int) -> dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]]:
    return {f"model {i}": ((i, i - 0.1, i + 0.1), (0.5, 0.4, 0.6)) for i in range(count)}


def test_every_point_is_named_once_beside_it_or_in_a_legend_if_they_are_many() -> None:
    for count in (NAMED, NAMED + 1):
        (ax,) = tradeoff(_points(count)).axes
        beside = [text.get_text() for text in ax.texts]
        listed = [text.get_text() for legend in ax.figure.legends for text in legend.get_texts()]
        assert beside + listed == list(_points(count))
        assert bool(listed) == (count > NAMED)


def test_no_two_of_many_names_share_colour_and_marker() -> None:
    others = [str(i) for i in range(len(PALETTE) * len(MARKERS) - len(RECIPES))]
    for names in ([*others], [*others, *RECIPES], ["asgt", *others]):
        found = looks(names)
        assert list(found) == names
        assert len({(look.colour, look.marker) for look in found.values()}) == len(names)


@given(st.lists(st.sampled_from([*RECIPES, *map(str, range(70))]), unique=True))
def test_names_of_both_kinds_in_any_order_are_told_apart(names: list[str]) -> None:
    found = looks(names)
    assert list(found) == names
    assert len({(look.colour, look.marker) for look in found.values()}) == len(names)


def test_a_bundled_recipe_looks_the_same_in_every_figure_and_others_take_what_it_leaves() -> None:
    objectives = {name.partition("/")[2] for name in sl.list_recipes().index}
    assert objectives == set(RECIPES)
    assert len({(look.colour, look.stroke) for look in RECIPES.values()}) == len(RECIPES)
    found = looks(["mine", "asgt", "yours", "at"])
    assert (found["asgt"], found["at"]) == (RECIPES["asgt"], RECIPES["at"])
    assert len({look.colour for look in found.values()}) == 4
