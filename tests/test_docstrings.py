"""Public functions and classes are documented in the numpydoc layout, with an example that runs."""

from __future__ import annotations

import inspect

import pytest
from numpydoc.validate import validate

import saliency_lab as sl

COMPLETE = {
    "GL08",
    "SS01",
    "SS03",
    "SS04",
    "SS05",
    "PR01",
    "PR02",
    "PR03",
    "PR04",
    "PR07",
    "RT01",
    "RT03",
    "YD01",
}
"""Codes of numpydoc: no docstring, its summary, undocumented or unknown parameters, returns."""


def members(name):
    """Public methods and properties of a public class, also those of its base classes in this package."""
    found = getattr(sl, name)
    if not inspect.isclass(found):
        return []
    kinds = (property, classmethod, staticmethod)
    return [
        f"{name}.{member}"
        for base in found.__mro__
        if base.__module__.startswith("saliency_lab")
        for member, value in vars(base).items()
        if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds))
    ]


@pytest.mark.parametrize("name", sorted(sl.__all__))
def test_public_names_are_documented(name):
    problems = [
        text for code, text in validate(f"saliency_lab.{name}")["errors"] if code in COMPLETE | {"EX01"}
    ]
    for member in members(name):
        problems += [
            f"{member}: {text}"
            for code, text in validate(f"saliency_lab.{member}")["errors"]
            if code in COMPLETE
        ]
    assert problems == []
