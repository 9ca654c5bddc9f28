"""Points found on another model, and the worst case over all that was run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saliency_lab._common.checks import format_epsilon, parse_epsilon
from saliency_lab._common.errors import InputError
from saliency_lab._common.inference import check_module
from saliency_lab._common.samples import Images, read_labelled
from saliency_lab.attacks.api import run_attack
from saliency_lab.attacks.methods import METHODS, OwnAttack
from saliency_lab.attacks.result import AttackResult


def transfer_attack(
    model: nn.Module,
    source: nn.Module,
    x: Images,
    y: Tensor | None = None,
    method: str | OwnAttack = "pgd",
    *,
    eps: float | str,
    seed: int = 0,
    **settings: Any,
) -> AttackResult:
    """Attack `source`, judge the points on `model`: a black-box attack that needs no query of `model`.

    A method with `early_stop` runs without it by default, because a point deep in the wrong class of one
    model transfers to another more often. `deepfool`, `fab_t` and `ead` look for the nearest point on which
    `source` errs, so they leave an image as it is where `source` errs already.

    Parameters
    ----------
    model : nn.Module
        The model that is judged, as for `attack`.
    source : nn.Module
        The model that is attacked. It takes the same images and returns the same number of classes.
    x : Tensor, DataLoader or data set
        Images (N, C, H, W) in [0, 1], or what else `attack` takes.
    y : Tensor, optional
        Labels (N,).
    method : str or callable
        A name of `list_attacks()`, or a function as for `attack`.
    eps : float or str
        Radius of the ball in image units; text such as "8/255" is accepted.
    seed : int
        Seed of every random draw.
    **settings
        Settings of the attack; `list_attacks()` names them.

    Returns
    -------
    AttackResult
        One row per sample: the point found on `source`, and whether `model` is right on it.

    Raises
    ------
    InputError
        As `attack`; also if `source` does not take these images, or returns another number of classes.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> net, source = sl.load_model("digits/at"), sl.build_model("small_cnn", seed=1)
    >>> x, y = sl.load_dataset("digits").test.sample(16, seed=0)
    >>> result = sl.transfer_attack(net, source, x, y, "fgsm", eps=0.1)
    >>> result.robust_accuracy <= result.clean_accuracy
    True
    """
    check_module(source, "source")
    x, y = read_labelled(x, y)
    chosen = METHODS.find(method)
    if "early_stop" in chosen.settings.model_fields:
        settings = {"early_stop": False, **settings}
    parsed = chosen.parse(settings)
    return run_attack(model, x, y, chosen, parsed, eps=parse_epsilon(eps), seed=seed, source=source)


def worst_case(*results: AttackResult) -> AttackResult:
    """Merge results on the same model and samples: a sample is robust if it is in every one of them.

    A sample's row is that of the first result in which the attack succeeded (`success`), else of the first
    that is not robust, else of the highest loss; the queries are summed.

    Parameters
    ----------
    *results : AttackResult
        Results of `attack` or `transfer_attack`, all with the same ε and norm.

    Returns
    -------
    AttackResult
        The merged result, whose `settings` hold those of each attack.

    Raises
    ------
    InputError
        If there is no result, something else, or they differ in images, labels, ε, norm, or in which images
        are right before the attack.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> net = sl.load_model("digits/at")
    >>> x, y = sl.load_dataset("digits").test.sample(16, seed=0)
    >>> results = [sl.attack(net, x, y, method, eps=0.1) for method in ("noise", "fgsm")]
    >>> worst = sl.worst_case(*results)
    >>> worst.robust_accuracy <= min(result.robust_accuracy for result in results)
    True
    """
    if not results:
        raise InputError("worst_case needs at least one result")
    for result in results:
        if not isinstance(result, AttackResult):
            raise InputError(
                "worst_case takes results of attack, one per argument, such as worst_case(first, second), "
                f"not {type(result).__name__}"
            )
    first = results[0]
    for other in results[1:]:
        if other.images != first.images or not (
            torch.equal(other.labels, first.labels) and torch.equal(other.clean_correct, first.clean_correct)
        ):
            raise InputError(f"'{other.method}' and '{first.method}' are not on the same model and samples")
        if (other.eps, other.norm) != (first.eps, first.norm):
            raise InputError(
                f"'{other.method}' ({other.norm}, eps={format_epsilon(other.eps)}) and '{first.method}' "
                f"({first.norm}, eps={format_epsilon(first.eps)}) differ in norm or ε; merge like with like"
            )
    robust = torch.stack([result.robust for result in results])
    loss = torch.stack([result.loss for result in results])
    did = torch.stack([result.success for result in results])
    otherwise = torch.where(robust.all(0), loss.argmax(0), robust.int().argmin(0))
    pick = torch.where(did.any(0), did.int().argmax(0), otherwise)
    rows = torch.arange(len(first))

    def chosen(name: str) -> Tensor:
        return torch.stack([getattr(result, name) for result in results])[pick, rows]

    return AttackResult(
        adversarial=chosen("adversarial"),
        labels=first.labels,
        predictions=chosen("predictions"),
        clean_correct=first.clean_correct,
        robust=chosen("robust"),
        success=chosen("success"),
        survives_rounding=chosen("survives_rounding"),
        loss=chosen("loss"),
        queries=torch.stack([result.queries for result in results]).sum(0),
        distance=chosen("distance"),
        loss_curve=None,
        images=first.images,
        method=f"worst of {', '.join(result.method for result in results)}",
        eps=first.eps,
        norm=first.norm,
        settings={f"{i}: {result.method}": result.settings for i, result in enumerate(results)},
        seed=first.seed,
        seconds=sum(result.seconds for result in results),
    )
