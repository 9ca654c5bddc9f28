"""A `__cache_key__` of the user's replaces what the package finds out about an object."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saliency_lab._common.errors import InputError
from saliency_lab._common.fingerprints import canonical, model_fingerprint


class Segmenter:
    def __init__(self, scale: float, log: list[str]) -> None:
        self.scale = scale
        self.log = log

    def __cache_key__(self) -> str:
        return f"scale {self.scale}"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append("called")
        return x


def test_only_the_key_of_an_object_counts() -> None:
    assert canonical(Segmenter(1.0, [])) == canonical(Segmenter(1.0, ["called"]))
    assert canonical(Segmenter(1.0, [])) != canonical(Segmenter(2.0, []))
    assert canonical({"segments": [Segmenter(1.0, [])]})["segments"][0].endswith("Segmenter: scale 1.0")


def test_a_function_may_have_a_key() -> None:
    def first(x):
        return x + 1

    def second(x):
        return x + 2

    first.__cache_key__ = second.__cache_key__ = "version 3"  # type: ignore[attr-defined]
    assert canonical(first) != canonical(second)  # names still differ
    second.__qualname__ = first.__qualname__
    assert canonical(first) == canonical(second)


def test_an_object_inside_a_function_counts_by_its_key() -> None:
    def over(segmenter):
        return lambda x: segmenter(x)

    assert canonical(over(Segmenter(1.0, []))) == canonical(over(Segmenter(1.0, ["called"])))
    assert canonical(over(Segmenter(1.0, []))) != canonical(over(Segmenter(2.0, [])))


def test_parameters_of_a_model_count_as_well_as_its_key() -> None:
    class Counting(nn.Linear):
        def __init__(self, calls: int) -> None:
            super().__init__(2, 2)
            self.calls = calls

        __cache_key__ = "linear"

    torch.manual_seed(0)
    first, second = Counting(1), Counting(2)
    assert model_fingerprint(first) != model_fingerprint(second)
    second.load_state_dict(first.state_dict())
    assert model_fingerprint(first) == model_fingerprint(second)


@pytest.mark.parametrize("key", [3, "", lambda: None])
def test_a_key_that_is_no_text_is_refused(key: object) -> None:
    class Wrong:
        __cache_key__ = staticmethod(key) if callable(key) else key

    with pytest.raises(InputError, match=r"__cache_key__ of .*Wrong must be text"):
        canonical(Wrong())
