"""`attack`: any method by name, on any model, with one kind of result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lab._common.checks import check_images, check_labels, parse_epsilon
from saliency_lab._common.errors import InputError
from saliency_lab._common.inference import chunk_rows, device_of, predict, undisturbed
from saliency_lab._common.progress import progress
from saliency_lab._common.registry import Registry
from saliency_lab._common.settings import Settings, parse_settings
from saliency_lab.attacks.ascent import Norm
from saliency_lab.attacks.gradient import FgsmSettings, PgdSettings, fgsm, pgd
from saliency_lab.attacks.problem import Outcome, Problem
from saliency_lab.attacks.result import AttackResult


@dataclass(frozen=True)
class Method:
    """A named attack: its settings, what it does with a chunk of samples, and what it needs."""

    settings: type[Settings]
    run: Callable[[Problem, Any], Outcome]
    access: str
    targeted: bool


METHODS: Registry[Method] = Registry("attack")
METHODS.add("fgsm", Method(FgsmSettings, fgsm, "gradient", targeted=True))
METHODS.add("pgd", Method(PgdSettings, pgd, "gradient", targeted=True))


def attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    method: str = "pgd",
    *,
    eps: float | str,
    seed: int = 0,
    target: Tensor | None = None,
    **settings: Any,
) -> AttackResult:
    """Look for a point of the ε-ball around each image, inside [0, 1], that the model gets wrong.

    Samples that the model gets wrong before the attack are left alone. Random draws are keyed by the
    seed and the sample's own pixels, so a sample's outcome does not move with its batch-mates (beyond
    the rounding of the backend's batched arithmetic).

    Parameters
    ----------
    model : nn.Module
        Takes images in [0, 1] (normalises inside) and returns logits (N, K). Looked at in eval mode.
    x, y : Tensor
        Images (N, C, H, W) in [0, 1] and labels (N,).
    method : str
        A name of `list_attacks()`.
    eps : float or str
        Radius of the ball in image units; text such as "8/255" is accepted.
    seed : int
        Of the random starts and every other draw.
    target : Tensor (N,), optional
        The class each sample should be taken for; without it any wrong class will do.
    settings
        The method's own settings; `list_attacks()` names them.

    Raises
    ------
    InputError
        Images outside [0, 1] or NaN, labels out of range, a negative ε, an unknown method or setting,
        a model that does not return finite logits.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> _ = torch.nn.init.zeros_(model[1].weight), torch.nn.init.zeros_(model[1].bias)
    >>> x, y = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1])
    >>> attack(model, x, y, "pgd", eps="8/255", steps=2).robust
    tensor([ True, False])
    """
    chosen = METHODS[method]
    parsed = parse_settings(chosen.settings, settings, of=method)
    return run(model, x, y, method, parsed, eps=parse_epsilon(eps), seed=seed, target=target)


def run(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    method: str,
    settings: Settings,
    *,
    eps: float | Tensor,
    seed: int,
    target: Tensor | None = None,
) -> AttackResult:
    """Do what `attack` says, with settings already read and one ε, or one a sample (N,)."""
    begun = time.perf_counter()
    chosen = METHODS[method]
    norm: Norm = getattr(settings, "norm", "linf")
    check_images(x)
    y = check_labels(y, len(x)).cpu()
    clean = predict(model, x)
    if not clean.isfinite().all():
        first = int((~clean.isfinite().all(1)).nonzero()[0])
        raise InputError(f"the model's logits for image {first} are not finite; it cannot be attacked")
    check_labels(y, len(x), clean.shape[1])
    target = _check_target(target, y, clean.shape[1], method)

    guess = clean.argmax(1)
    radius = torch.as_tensor(eps, dtype=x.dtype).expand(len(x))
    open_rows = ((guess == y if target is None else guess != target) & (radius > 0)).nonzero().flatten()
    found = x.detach().cpu().clone()
    queries = torch.zeros(len(x), dtype=torch.long)
    curve: Tensor | None = None
    device = device_of(model)
    rows_a_chunk = chunk_rows(x.shape)
    with undisturbed(model), progress(label=method, total=len(open_rows)) as bar:
        for rows in open_rows.split(rows_a_chunk):
            at = rows.to(x.device)
            problem = Problem(
                model=model,
                x=x.detach()[at].to(device),
                y=y[rows].to(device),
                target=None if target is None else target[rows].to(device),
                logits=clean[rows].to(device, x.dtype),
                eps=radius[rows].to(device),
                norm=norm,
                seed=seed,
            )
            outcome = chosen.run(problem, settings)
            found[rows] = outcome.points.cpu()
            queries[rows] = outcome.queries.cpu()
            if outcome.loss_curve is not None:
                if curve is None:
                    curve = torch.full((len(x), outcome.loss_curve.shape[1]), torch.nan)
                curve[rows] = outcome.loss_curve.float().cpu()
            bar.update(len(rows))

    logits = clean.clone()
    if len(open_rows):
        logits[open_rows] = predict(model, found[open_rows])
    predictions = logits.argmax(1)
    clean_correct = guess == y
    delta = (found - x.detach().cpu()).flatten(1)
    return AttackResult(
        adversarial=found,
        labels=y,
        predictions=predictions,
        clean_correct=clean_correct,
        robust=clean_correct & (predictions == y),
        success=clean_correct & (predictions != y)
        if target is None
        else (guess != target) & (predictions == target),
        loss=F.cross_entropy(logits, y, reduction="none"),
        queries=queries,
        distance=delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1),
        loss_curve=curve,
        method=method,
        eps=float(eps.max()) if isinstance(eps, Tensor) else eps,
        norm=norm,
        settings=settings.model_dump(mode="json"),
        seed=seed,
        seconds=time.perf_counter() - begun,
    )


def list_attacks() -> pd.DataFrame:
    """Methods by name: what each needs of the model, whether it takes a target, settings, reference.

    >>> list_attacks().loc["pgd", "access"]
    'gradient'
    """
    rows = {
        name: {
            "access": METHODS[name].access,
            "targeted": METHODS[name].targeted,
            "settings": ", ".join(
                f"{key}={field.default!r}" for key, field in METHODS[name].settings.model_fields.items()
            ),
            "reference": (METHODS[name].run.__doc__ or "").split("\n")[0],
        }
        for name in METHODS
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


def _check_target(target: Tensor | None, y: Tensor, classes: int, method: str) -> Tensor | None:
    if target is None:
        return None
    if not METHODS[method].targeted:
        names = ", ".join(name for name in METHODS if METHODS[name].targeted)
        raise InputError(f"attack '{method}' takes no target; these do: {names}")
    try:
        target = check_labels(target, len(y), classes).cpu()
    except InputError as error:
        raise InputError(f"target: {error}") from None
    if (target == y).any():
        first = int((target == y).nonzero()[0])
        raise InputError(f"target {first} is the sample's own label {int(y[first])}; choose another class")
    return target
