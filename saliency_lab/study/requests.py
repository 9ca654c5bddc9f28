"""What a user asks a study for: methods, metrics, attacks and audits with validated settings and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from saliency_lab._common.arguments import check_choice
from saliency_lab._common.checks import parse_radii
from saliency_lab._common.errors import InputError
from saliency_lab._common.execution import ExecutionSettings, current_execution
from saliency_lab._common.registry import Registry
from saliency_lab._common.selection import Selection, check_label, default_label, named_by, read_selection
from saliency_lab._common.settings import Settings, parse_settings
from saliency_lab.attacks.ascent import check_radius
from saliency_lab.attacks.checklist import BUDGETS, BudgetName
from saliency_lab.attacks.methods import METHODS as ATTACKS
from saliency_lab.attacks.methods import AttackMethod
from saliency_lab.attribution.api import MethodCall, parse_call
from saliency_lab.attribution.catalogue import METHODS
from saliency_lab.metrics.catalogue import METRICS
from saliency_lab.metrics.job import Job, make_job
from saliency_lab.study.sample import StudySample


@dataclass(frozen=True, eq=False)
class Request:
    """A method, metric, attack or audit with its settings, under the label that it has in the tables."""

    label: str
    what: str | Callable[..., Any]
    """A registered name, or the user's function or object."""
    settings: Mapping[str, Any]
    """Keyword arguments, validated and with the defaults; those of a custom method as given.

    They are plain data, which a worker process can be sent, and are not validated again.
    """
    eps: tuple[float, ...] = ()
    """Of an attack, ascending and with 0; of an audit, ascending and without 0."""
    images: int = 0
    """How many images an audit looks at."""
    budget: BudgetName = "quick"
    """Of the reference attacks of an audit."""
    given: frozenset[str] = frozenset()
    """Names of the settings of an attack or audit that are not defaults."""
    execution: ExecutionSettings = field(default_factory=current_execution)
    """How its passes may run: the innermost `sl.execution` when it was read."""
    compact_maps: bool = False
    """Whether the maps of a method are stored with one byte per value."""

    @property
    def method_call(self) -> MethodCall:
        """The request of a method as attribution takes it."""
        return MethodCall.of(self.what, self.settings)

    def of_rows(self, rows: Tensor) -> Request:
        """Return the request of a method for the images at `rows`, with the settings and targets of these."""
        return replace(self, settings=self.method_call.of_rows(rows).keywords)

    def job(self, masks: Tensor | None = None) -> Job:
        """Return the request of a metric as metrics take it; `masks` are for one that needs some."""
        settings = dict(self.settings)
        engine = settings.pop("engine")
        if needs_sample_masks(self):
            settings["masks"] = masks
        return Job.of(self.what, settings, engine)

    @property
    def attack(self) -> tuple[AttackMethod, Settings]:
        """The attack of a request, and its settings."""
        method = ATTACKS.find(self.what)
        return method, method.settings.model_construct(**self.settings)


Verb = Literal["attribute", "score", "attack", "audit"]


class StudyStep(NamedTuple):
    """A method of `Study` and the requests of one call of it."""

    verb: Verb
    requests: Sequence[Request]


@dataclass(frozen=True, eq=False)
class GridRequests:
    """Everything that is asked of a study."""

    methods: Sequence[Request] = ()
    metrics: Sequence[Request] = ()
    attacks: Sequence[Request] = ()
    audits: Sequence[Request] = ()

    def steps(self) -> list[StudyStep]:
        """Return the calls in their order: methods together and metrics together, as they share passes."""
        together: list[StudyStep] = [StudyStep("attribute", self.methods), StudyStep("score", self.metrics)]
        return [
            *(step for step in together if step.requests),
            *(StudyStep("attack", [each]) for each in self.attacks),
            *(StudyStep("audit", [each]) for each in self.audits),
        ]

    def with_settings(self, execution: ExecutionSettings | None, compact_maps: bool) -> GridRequests:
        """Return the same requests with the settings of a study.

        `execution` says how passes run (None: as each request says); `compact_maps` makes all maps compact.
        """
        methods = [replace(each, compact_maps=each.compact_maps or compact_maps) for each in self.methods]
        grid = replace(self, methods=methods)
        if execution is None:
            return grid
        kinds = (grid.methods, grid.metrics, grid.attacks, grid.audits)
        return GridRequests(*([replace(each, execution=execution) for each in kind] for kind in kinds))


def read_grid(
    sample: StudySample,
    methods: Selection = (),
    metrics: Selection = (),
    attacks: Mapping[str, Mapping[str, Any]] | None = None,
    audits: Mapping[str, Mapping[str, Any]] | None = None,
) -> GridRequests:
    """Read and validate everything that is asked of a study, without any network."""
    return GridRequests(
        () if _is_empty(methods) else read_methods(methods),
        () if _is_empty(metrics) else read_metrics(metrics, sample),
        [read_attack(**each) for each in attack_arguments("attack", attacks, "eps")],
        [
            read_audit(**each, sample=sample)
            for each in attack_arguments("audit", audits, "eps", "images", "budget")
        ],
    )


def _is_empty(given: Selection) -> bool:
    """Return whether nothing is asked for: an empty sequence or mapping."""
    return isinstance(given, list | tuple | Mapping) and not given


def read_methods(given: Selection) -> list[Request]:
    """Read and validate attribution methods.

    >>> (wide,) = read_methods({"wide": {"method": "smoothgrad", "stdev": 0.3}})
    >>> wide.label, wide.what, wide.settings["stdev"]
    ('wide', 'smoothgrad', 0.3)

    Raises
    ------
    InputError
        For an unknown method or setting.
    """
    requests = []
    for label, (named, settings) in read_selection(given, METHODS).items():
        what = METHODS.custom(named)
        own = {key: settings.pop(key) for key in ("engine", "target") if key in settings}
        call = parse_call(what, settings, label=label, **own)
        requests.append(Request(label, what, call.keywords))
    return requests


def read_metrics(given: Selection, sample: StudySample) -> list[Request]:
    """Read and validate metrics; those that need masks are given those of the sample.

    >>> import torch
    >>> sample = StudySample(torch.rand(2, 1, 4, 4), torch.tensor([0, 1]))
    >>> [request.label for request in read_metrics(["sparseness", "complexity"], sample)]
    ['sparseness', 'complexity']

    Raises
    ------
    InputError
        For an unknown metric or setting, or if a metric needs masks and the sample has none.
    """
    requests = []
    for label, (named, settings) in read_selection(given, METRICS).items():
        what = METRICS.custom(named)
        engine = settings.pop("engine", None)
        masks = {}
        if needs_sample_masks(Request(label, what, settings)):
            if sample.masks is None:
                raise InputError(
                    f"metric '{label}' needs masks of where the evidence is, as the data sets 'mosaic', "
                    "'mnist_mosaic' and 'planted' have them; a study in Python takes them as "
                    "Study(models, data.test.located(256)), or your own as Study(models, (x, y, masks))"
                )
            masks = {"masks": sample.masks}
        job = make_job(what, settings | masks, engine)
        parsed = {key: value for key, value in dict(job.settings).items() if key not in masks}
        requests.append(Request(label, what, parsed | {"engine": job.engine}))
    return requests


def needs_sample_masks(request: Request) -> bool:
    """Say whether a metric gets the masks of the sample: it needs some, and no others were given."""
    masks = METRICS.find(request.what).settings.model_fields.get("masks")
    return masks is not None and masks.is_required() and "masks" not in request.settings


def read_attack(
    attack: str | Callable[..., Any],
    eps: float | str | Sequence[float | str],
    label: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Request:
    """Read and validate the arguments of `Study.attack`; by default the label shows ε in L2.

    >>> attack = read_attack("pgd", "8/255", settings={"norm": "l2"})
    >>> attack.label, attack.eps == (0.0, 8 / 255)
    ('pgd_l2', True)

    Raises
    ------
    InputError
        For an unknown attack or setting, or a radius out of range.
    """
    if not (isinstance(attack, str) or callable(attack)):
        raise InputError(
            f"attack must be one name, such as 'pgd', or a function, not {attack!r}; call once for each"
        )
    settings = dict(settings or {})
    if label is None:
        label = default_label(attack) + ("_l2" if settings.get("norm") == "l2" else "")
    label, attack = check_label(label, "an attack"), ATTACKS.custom(attack)
    radii = tuple(sorted({0.0, *parse_radii(eps)}))
    parsed = parse_settings(ATTACKS.find(attack).settings, settings, of=f"attack '{label}'")
    check_radius(max(radii), getattr(parsed, "norm", "linf"))
    return Request(label, attack, dict(parsed), radii, given=frozenset(settings))


def read_audit(
    attack: str | Callable[..., Any],
    eps: float | str | Sequence[float | str],
    sample: StudySample,
    label: str | None = None,
    images: int | None = None,
    budget: BudgetName = "quick",
    settings: Mapping[str, Any] | None = None,
) -> Request:
    """Read and validate the arguments of `Study.audit`."""
    attacked = read_attack(attack, eps, label, settings)
    count = len(sample.x) if images is None else images
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 1 <= count <= len(sample.x):
        raise InputError(
            f"audit of {attacked.label}: images must be a whole number in 1 … {len(sample.x)}, "
            f"the number of this study's images, not {images!r}"
        )
    check_choice(budget, BUDGETS, f"budget of the audit of {attacked.label}")
    radii = tuple(radius for radius in attacked.eps if radius > 0)
    if not radii:
        raise InputError("an audit needs eps > 0")
    return replace(attacked, eps=radii, images=int(count), budget=budget)


def stored_request(label: str, depends: Mapping[str, Any]) -> Request | None:
    """Return the method or attack that a stored result depends on.

    None for a function, and for settings or a target that are tensors, of which a store has the hash alone.
    """
    kind = "method" if "method" in depends else "attack"
    registry: Registry[Any] = METHODS if kind == "method" else ATTACKS
    what, settings = depends[kind], dict(depends["settings"])
    if not (isinstance(what, str) and what in registry.built_in):
        return None
    own = {key: settings.pop(key) for key in ("engine", "target") if key in settings}
    target = own.get("target")
    if isinstance(target, list):  # JSON has no tuples
        own["target"] = tuple(target)
    if any(str(each).startswith("tensor ") for each in (target if isinstance(target, list) else [target])):
        return None
    try:
        parsed = parse_settings(registry[what].settings, settings, of=f"{kind} '{label}'")
    except InputError:  # settings of an earlier version
        return None
    return Request(label, what, dict(parsed) | own, tuple(depends.get("eps", ())))


def attack_to_audit(audit: Request, attacks: Mapping[str, Request]) -> Request:
    """Give an audit without settings, except for the norm, those of the attack with its label."""
    attack = attacks.get(audit.label)
    if attack is None or attack.what != audit.what or audit.given - {"norm"}:
        return audit
    if any(attack.settings.get(name) != audit.settings[name] for name in audit.given):
        return audit
    return replace(audit, settings=attack.settings)


def attack_arguments(
    kind: Literal["attack", "audit"], given: Mapping[str, Mapping[str, Any]] | None, *names: str
) -> list[dict[str, Any]]:
    """Turn label → settings into arguments of `read_attack` or `read_audit`; `names` are not settings."""
    example = {"attack": "eps = [0.1, 0.2]", "audit": "eps = 0.2"}[kind]
    if given is None:
        return []
    if not isinstance(given, Mapping):
        raise InputError(
            f"{kind}s must be a mapping of labels to settings, such as pgd with {example}, not {given!r:.80}"
        )
    calls = []
    for label, each in given.items():
        if not isinstance(each, Mapping) or "eps" not in each:
            raise InputError(f"{kind} '{label}' needs ε, such as {example}")
        if "label" in each:
            raise InputError(f"{kind} '{label}' has its label already; leave out label = {each['label']!r}")
        arguments = {key: each[key] for key in names if key in each}
        settings = {key: value for key, value in each.items() if key not in {*arguments, "attack"}}
        attack = each["attack"] if "attack" in each else named_by(check_label(label, f"an {kind}"), ATTACKS)
        calls.append({"attack": attack, "label": label, "settings": settings, **arguments})
    return calls
