"""What a study is asked for: methods, metrics and attacks, each with its settings, under a label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from saliency_lab._common.checks import parse_radii
from saliency_lab._common.errors import InputError
from saliency_lab._common.registry import Registry, name_of
from saliency_lab.attacks.methods import METHODS as ATTACKS
from saliency_lab.attribution.catalogue import METHODS
from saliency_lab.metrics.catalogue import METRICS

Requests: TypeAlias = "str | Callable[..., Any] | Sequence[str | Callable[..., Any]] | Mapping[str, Any]"
"""A name, several, or label → settings; a label that is not a name says which by `method` or `metric`."""


@dataclass(frozen=True)
class Request:
    """A method, metric or attack with its settings, under the label it has in the tables."""

    label: str
    what: str | Callable[..., Any]
    settings: Mapping[str, Any]


def read_requests(given: Requests, kind: str) -> list[Request]:
    """Read what the user asked for; `kind` is "method" or "metric".

    >>> read_requests({"wide": {"method": "smoothgrad", "stdev": 0.3}}, "method")
    [Request(label='wide', what='smoothgrad', settings={'stdev': 0.3})]
    """
    if isinstance(given, str) or callable(given):
        given = [given]
    if not isinstance(given, Mapping | Sequence):
        raise InputError(f"{kind}s must be a name, a function, several, or label → settings, not {given!r}")
    if not isinstance(given, Mapping):
        by_label: dict[str, Any] = {}
        for each in given:
            if (label := _label(each)) in by_label:
                same = by_label[label] is each or by_label[label] == each
                raise InputError(
                    f"{kind} '{label}' is given twice; give each a label of its own, such as "
                    f"{{'first': {{'{kind}': '{label}', …}}, 'second': {{'{kind}': '{label}', …}}}}"
                    if same
                    else f"two different {kind}s are called '{label}'; give each a label of its own, such as "
                    "{'first': f, 'second': g}"
                )
            by_label[label] = each
        given = {label: {kind: each} for label, each in by_label.items()}
    if not given:
        raise InputError(f"name at least one {kind}; list_{kind}s() says which there are")
    requests = []
    for label, value in given.items():
        if not (isinstance(value, str | Mapping) or callable(value)):
            raise InputError(f"{kind} '{label}' must map to its settings, such as {{}}, not {value!r}")
        settings = {kind: value} if isinstance(value, str) or callable(value) else dict(value)
        what = _REGISTRIES[kind].custom(settings.pop(kind, label))
        requests.append(Request(label, what, settings))
    return requests


def read_attacks(given: Mapping[str, Mapping[str, Any]]) -> list[Request]:
    """Read label → settings of `Study.attack` or `Study.audit`, `eps` among them.

    >>> read_attacks({"weak": {"attack": "pgd", "eps": 0.1, "steps": 2}})
    [Request(label='weak', what='pgd', settings={'eps': 0.1, 'steps': 2})]
    """
    if not isinstance(given, Mapping):
        raise InputError(
            f'attacks must be label → settings, such as {{"pgd": {{"eps": [0.1, 0.2]}}}}, not {given!r}'
        )
    requests = []
    for label, each in given.items():
        if not isinstance(each, Mapping) or "eps" not in each:
            raise InputError(f"attack '{label}' needs its radii, such as eps = [0.1, 0.2]")
        if "label" in each:
            raise InputError(f"attack '{label}' has its label already; leave out label = {each['label']!r}")
        settings = dict(each)
        requests.append(Request(label, ATTACKS.custom(settings.pop("attack", label)), settings))
    return requests


def read_attack(attack: str | Callable[..., Any], label: str | None, settings: Mapping[str, Any]) -> Request:
    """Read what `Study.attack` or `Study.audit` was given; by default ε in L2 shows in the label.

    >>> read_attack("pgd", None, {"norm": "l2"}).label
    'pgd_l2'
    """
    if not (isinstance(attack, str) or callable(attack)):
        raise InputError(
            f"attack must be one name, such as 'pgd', or a function, not {attack!r}; call once for each"
        )
    (named,) = read_requests(attack, "attack")
    other = "_l2" if settings.get("norm") == "l2" else ""
    return Request(label or named.label + other, named.what, settings)


_REGISTRIES: dict[str, Registry[Any]] = {"method": METHODS, "metric": METRICS, "attack": ATTACKS}


def _label(what: Any) -> str:
    return what.rpartition(":")[2] if isinstance(what, str) else name_of(what)


def read_eps(eps: float | str | Sequence[float | str]) -> tuple[float, ...]:
    """Ascending radii, with 0 (the clean images) always among them.

    >>> read_eps("8/255") == (0.0, 8 / 255)
    True
    """
    return tuple(sorted({0.0, *parse_radii(eps)}))
