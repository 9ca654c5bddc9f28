"""The attacks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import create_model
from torch import Tensor, nn

from saliency_lab._common.checks import format_epsilon
from saliency_lab._common.errors import InputError
from saliency_lab._common.own_code import check_user_function
from saliency_lab._common.registry import Extension, Registry, given_settings, settings_of
from saliency_lab._common.seeding import derive_seed, preserved_rng
from saliency_lab._common.settings import Settings, list_settings, parse_settings
from saliency_lab.attacks.ascent import Norm, project
from saliency_lab.attacks.controls import DrawSettings, noise, random_direction
from saliency_lab.attacks.corruptions import CORRUPTIONS, CorruptionSettings, attack_by
from saliency_lab.attacks.gradient import (
    BimSettings,
    FgsmSettings,
    PgdSettings,
    SpsaSettings,
    bim,
    fgsm,
    pgd,
    r_fgsm,
    spsa,
)
from saliency_lab.attacks.minimal import CwSettings, DeepFoolSettings, EadSettings, cw, deepfool, ead
from saliency_lab.attacks.problem import AttackOutcome, AttackProblem, AttackSettings
from saliency_lab.attacks.reference import (
    ApgdSettings,
    AutoAttackSettings,
    SquareSettings,
    TargetedSettings,
    apgd_ce,
    apgd_dlr,
    apgd_t,
    autoattack,
    fab_t,
    square,
)
from saliency_lab.attacks.sources import Watched

Access = Literal["gradient", "logits", "none"]


@dataclass(frozen=True)
class AttackMethod:
    """A named attack: its settings, what it does with a chunk of samples, what it sees of the model.

    `targeted`: it can be given a target class per sample. `each_eps`: it takes one ε per sample. `norms`:
    those of the balls it can search.
    """

    name: str
    settings: type[Settings]
    run: Callable[[AttackProblem, Any], AttackOutcome]
    access: Access
    targeted: bool = False
    each_eps: bool = False
    norms: tuple[Norm, ...] = ("linf", "l2")

    def parse(self, given: Mapping[str, Any]) -> Settings:
        """Validate keyword arguments of the attack.

        Raises
        ------
        InputError
            For an unknown setting or a value out of range.
        """
        return parse_settings(self.settings, given, of=f"attack '{self.name}'")


_ALL: tuple[Norm, ...] = ("linf", "l2", "l1")

OwnAttack = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""A user's attack: (model, x, y, eps) → points of the shape of x."""


def custom_attack(extension: Extension) -> AttackMethod:
    """Describe a user's function `f(model, x, y, eps, **settings)` as an attack.

    Raises
    ------
    InputError
        If it cannot be called, or takes other arguments.
    """
    function, name = extension.item, extension.name
    if not callable(function):
        raise InputError(f"method must be the name of an attack or a function, not {type(function).__name__}")
    check_user_function(function, "attack", "model, x, y, eps")
    own = settings_of(extension, 4)
    fields: dict[str, Any] = {
        name: (field.annotation, field.default)
        for name, field in AttackSettings.model_fields.items()
        if name not in own.model_fields
    }
    model = create_model(name, __base__=own, **fields)

    def run(problem: AttackProblem, settings: Any) -> AttackOutcome:
        """Call the function with the global generators seeded, and check that its points are in the ball."""
        eps = problem.eps[0].item()
        seen = problem.model
        network = seen.model if isinstance(seen, Watched) else seen  # the one that the user gave
        given = {key: value for key, value in given_settings(settings).items() if key not in fields}
        with preserved_rng(derive_seed(problem.seed, name)):
            points = function(network, problem.x.clone(), problem.y.clone(), eps, **given)
        if not isinstance(points, Tensor) or points.shape != problem.x.shape:
            got = tuple(points.shape) if isinstance(points, Tensor) else type(points).__name__
            raise InputError(
                f"attack '{name}' must return a tensor of the points, {tuple(problem.x.shape)}, not {got}"
            )
        points = points.detach().to(problem.x)
        inside = project(points, problem.x, problem.eps, problem.norm)
        away = (points - inside).abs().max().item()
        if not away <= 1e-5:
            raise InputError(
                f"attack '{name}' left the {problem.norm} ball of radius {format_epsilon(eps)} around x, or "
                f"[0, 1], by {away:.3g}; project its points (saliency_lab.attacks.ascent.project)"
            )
        return AttackOutcome(inside, torch.ones(len(points), dtype=torch.long))

    return AttackMethod(name, model, run, "gradient", norms=_ALL)


_ELSEWHERE = {
    "mifgsm": '"bim" with momentum=1.0',
    "mim": '"bim" with momentum=1.0',
    "ifgsm": '"bim"',
    "ffgsm": '"r_fgsm"',
    "rfgsm": '"r_fgsm"',
    "pgdl2": '"pgd" with norm="l2"',
    "pgdlinf": '"pgd"',
    "tpgd": '"pgd" with loss="kl"',
    "eotpgd": '"pgd" with samples=20',
    "eot": '"pgd" with samples=20',
    "bpda": '"pgd" with gradients_from=another network',
    "apgd": '"apgd_ce" or "apgd_dlr"',
    "apgdt": '"apgd_t"',
    "apgdl1": '"apgd_ce" with norm="l1"',
    "aa": '"autoattack"',
    "standard": '"autoattack"',
    "fab": '"fab_t"',
    "cwl2": '"cw"',
    "cw2": '"cw"',
    "carliniwagner": '"cw"',
    "carlinil2": '"cw"',
    "df": '"deepfool"',
    "eadl1": '"ead"',
    "eaden": '"ead"',
    "elasticnet": '"ead"',
    "gn": '"noise"',
    "un": '"noise"',
    "squareattack": '"square"',
}
"""Names in torchattacks, foolbox, ART, CleverHans and AutoAttack, and what to write here."""


METHODS: Registry[AttackMethod] = Registry("attack", "attack", custom_attack, _ELSEWHERE)
for _method in (
    AttackMethod("fgsm", FgsmSettings, fgsm, "gradient", targeted=True, each_eps=True),
    AttackMethod("r_fgsm", FgsmSettings, r_fgsm, "gradient", targeted=True, each_eps=True),
    AttackMethod("bim", BimSettings, bim, "gradient", targeted=True, each_eps=True),
    AttackMethod("pgd", PgdSettings, pgd, "gradient", targeted=True, each_eps=True),
    AttackMethod("apgd_ce", ApgdSettings, apgd_ce, "gradient", norms=_ALL),
    AttackMethod("apgd_dlr", ApgdSettings, apgd_dlr, "gradient", norms=_ALL),
    AttackMethod("apgd_t", TargetedSettings, apgd_t, "gradient", norms=_ALL),
    AttackMethod("fab_t", TargetedSettings, fab_t, "gradient", norms=_ALL),
    AttackMethod("square", SquareSettings, square, "logits", norms=_ALL),
    AttackMethod("autoattack", AutoAttackSettings, autoattack, "gradient", norms=_ALL),
    AttackMethod("cw", CwSettings, cw, "gradient", targeted=True, each_eps=True, norms=("l2",)),
    AttackMethod("deepfool", DeepFoolSettings, deepfool, "gradient", each_eps=True),
    AttackMethod("ead", EadSettings, ead, "gradient", targeted=True, each_eps=True, norms=("l1",)),
    AttackMethod("spsa", SpsaSettings, spsa, "logits", targeted=True, each_eps=True),
    AttackMethod("noise", DrawSettings, noise, "logits", each_eps=True),
    AttackMethod("random_direction", DrawSettings, random_direction, "logits", each_eps=True),
):
    METHODS.add(_method.name, _method)
for _name in CORRUPTIONS:
    METHODS.add(_name, AttackMethod(_name, CorruptionSettings, attack_by(_name), "none", norms=("severity",)))


def list_attacks() -> pd.DataFrame:
    """List the attacks.

    Returns
    -------
    DataFrame
        One row per attack, indexed by name: `access` (what it sees of the model), whether it can be
        `targeted`, its `settings` with their defaults, and its `reference`.

    Examples
    --------
    >>> list_attacks().loc["pgd", "access"]
    'gradient'
    """
    rows = {
        name: {
            "access": METHODS[name].access,
            "targeted": METHODS[name].targeted,
            "settings": list_settings(METHODS[name].settings),
            "reference": (METHODS[name].run.__doc__ or "").split("\n")[0],
        }
        for name in METHODS
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")
