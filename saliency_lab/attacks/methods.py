"""The attacks by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import create_model
from torch import Tensor, nn

from saliency_lab._common.errors import InputError
from saliency_lab._common.own_code import check_callable
from saliency_lab._common.registry import Extension, Registry, given_settings, settings_of
from saliency_lab._common.seeding import derive_seed, preserved_rng
from saliency_lab._common.settings import Settings, list_settings
from saliency_lab.attacks.ascent import Norm, project
from saliency_lab.attacks.controls import DrawSettings, noise, random_direction
from saliency_lab.attacks.gradient import BimSettings, FgsmSettings, PgdSettings, bim, fgsm, pgd, r_fgsm
from saliency_lab.attacks.problem import Outcome, Problem
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

Access = Literal["gradient", "logits"]


@dataclass(frozen=True)
class Method:
    """A named attack: its settings, what it does with a chunk of samples, what it sees of the model.

    `targeted`: it can be given a target class a sample. `each_eps`: it takes one ε a sample.
    """

    name: str
    settings: type[Settings]
    run: Callable[[Problem, Any], Outcome]
    access: Access
    targeted: bool = False
    each_eps: bool = False


OwnAttack = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""A user's attack: (model, x, y, eps) → points of the shape of x."""


def custom_attack(extension: Extension) -> Method:
    """Describe a user's function `f(model, x, y, eps, **settings)` as an attack.

    Raises
    ------
    InputError
        If it cannot be called, or takes other arguments.
    """
    function, name = extension.item, extension.name
    if not callable(function):
        raise InputError(f"an attack must be a name or a function, not {type(function).__name__}")
    check_callable(function, "attack", "model, x, y, eps")
    own = settings_of(extension, 4)
    fields: dict[str, Any] = {} if "norm" in own.model_fields else {"norm": (Norm, "linf")}
    model = create_model(name, __base__=own, **fields)

    def run(problem: Problem, settings: Any) -> Outcome:
        """Call the function with the global generators seeded, and check that its points are in the ball."""
        eps = problem.eps[0].item()
        given = {key: value for key, value in given_settings(settings).items() if key not in fields}
        with preserved_rng(derive_seed(problem.seed, name)):
            points = function(problem.model, problem.x.clone(), problem.y.clone(), eps, **given)
        if not isinstance(points, Tensor) or points.shape != problem.x.shape:
            raise InputError(f"attack '{name}' must return points of the shape {tuple(problem.x.shape)}")
        points = points.detach().to(problem.x)
        inside = project(points, problem.x, problem.eps, problem.norm)
        away = (points - inside).abs().max().item()
        if not away <= 1e-5:
            raise InputError(
                f"attack '{name}' left the {problem.norm} ball of radius {eps:.4g} around x, or [0, 1], "
                f"by {away:.3g}; project its points (saliency_lab.attacks.ascent.project)"
            )
        return Outcome(inside, torch.ones(len(points), dtype=torch.long))

    return Method(name, model, run, "gradient")


METHODS: Registry[Method] = Registry("attack", "attack", custom_attack)
for _method in (
    Method("fgsm", FgsmSettings, fgsm, "gradient", targeted=True, each_eps=True),
    Method("r_fgsm", FgsmSettings, r_fgsm, "gradient", targeted=True, each_eps=True),
    Method("bim", BimSettings, bim, "gradient", targeted=True, each_eps=True),
    Method("pgd", PgdSettings, pgd, "gradient", targeted=True, each_eps=True),
    Method("apgd_ce", ApgdSettings, apgd_ce, "gradient"),
    Method("apgd_dlr", ApgdSettings, apgd_dlr, "gradient"),
    Method("apgd_t", TargetedSettings, apgd_t, "gradient"),
    Method("fab_t", TargetedSettings, fab_t, "gradient"),
    Method("square", SquareSettings, square, "logits"),
    Method("autoattack", AutoAttackSettings, autoattack, "gradient"),
    Method("noise", DrawSettings, noise, "logits", each_eps=True),
    Method("random_direction", DrawSettings, random_direction, "logits", each_eps=True),
):
    METHODS.add(_method.name, _method)


def list_attacks() -> pd.DataFrame:
    """Methods by name: what each sees of the model, whether it takes a target, its settings, its paper.

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
