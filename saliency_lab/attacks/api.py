"""`attack`: any method on any model, with one kind of result."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lab._common.checks import (
    are_probabilities,
    check_images,
    check_labels,
    check_seed,
    parse_epsilon,
)
from saliency_lab._common.errors import InputError
from saliency_lab._common.hashing import TensorBlocks, fingerprint
from saliency_lab._common.inference import (
    check_classifier,
    check_input_kept,
    check_module,
    chunk_rows,
    device_of,
    dtype_of,
    gradients_recorded,
    pass_rows,
    predict,
    translate_model_errors,
    undisturbed,
)
from saliency_lab._common.mapped import empty_tensor
from saliency_lab._common.passes import Passes
from saliency_lab._common.progress import progress
from saliency_lab._common.samples import Images, read_labelled
from saliency_lab._common.seeding import derive_seed, preserved_rng
from saliency_lab._common.settings import Settings
from saliency_lab._common.warn import warn
from saliency_lab.attacks.ascent import Norm, check_radius, norm_of, to_grid
from saliency_lab.attacks.methods import METHODS, AttackMethod, OwnAttack
from saliency_lab.attacks.problem import AttackProblem
from saliency_lab.attacks.result import UNDEFINED, AttackResult
from saliency_lab.attacks.sources import Borrowed, Expected, OnGrid, Watched


def attack(
    model: nn.Module,
    x: Images,
    y: Tensor | None = None,
    method: str | OwnAttack = "pgd",
    *,
    eps: float | str,
    seed: int = 0,
    target: Tensor | None = None,
    gradients_from: nn.Module | None = None,
    **settings: Any,
) -> AttackResult:
    """Look for a point of the ε-ball around each image, inside [0, 1], that the model gets wrong.

    Samples that the model gets wrong before the attack are left alone; with a `target`, those that it
    already takes for the target. Random draws are keyed by the seed and the sample's own pixels, so a
    sample's outcome does not change with the other samples of its batch (beyond the rounding of the
    backend's batched arithmetic; a model that is random itself draws per batch).

    Parameters
    ----------
    model : nn.Module
        Takes images in [0, 1] (normalises inside) and returns logits (N, K). Attacked in eval mode.
    x : Tensor, DataLoader or data set
        Images (N, C, H, W) in [0, 1]; or a pair (images, labels), or a loader or data set of torch or Hugging
        Face, whose labels are used unless `y` is given.
    y : Tensor, optional
        Labels (N,).
    method : str or callable
        A name of `list_attacks()`, or your own `f(model, x, y, eps)` that returns points like x.
    eps : float or str
        Radius of the ball in image units; text such as "8/255" is accepted.
    seed : int
        Seed of the random starts and of every other draw.
    target : Tensor (N,), optional
        The class that each sample should be mistaken for; without it any wrong class will do.
    gradients_from : nn.Module, optional
        Network that provides the gradient, while every point is judged on `model` (backward pass
        differentiable approximation, BPDA). It takes the same images and returns the same classes.
    **settings
        The method's own settings; `list_attacks()` names them. `samples=S` averages the probabilities of a
        random model over S passes (expectation over transformation), in the attack and in its result.
        `quantised=True` returns only points whose pixels are multiples of 1/255.

    Returns
    -------
    AttackResult
        One row per sample: the point found, and whether the model is right on it.

    Raises
    ------
    InputError
        Images outside [0, 1] or NaN, labels out of range, a negative ε or seed, an unknown method or setting,
        a model that does not return finite logits of two classes or more for the images, computes in half
        precision or another type than the images', or changes its input in place; a callable that leaves the
        ball.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> _ = torch.nn.init.zeros_(model[1].weight), torch.nn.init.zeros_(model[1].bias)
    >>> x, y = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1])
    >>> attack(model, x, y, "pgd", eps="8/255", steps=2).robust
    tensor([ True, False])
    """
    x, y = read_labelled(x, y)
    chosen = METHODS.find(method)
    parsed = chosen.parse(settings)
    return run_attack(
        model, x, y, chosen, parsed, eps=parse_epsilon(eps), seed=seed, target=target, lender=gradients_from
    )


def run_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    method: AttackMethod,
    settings: Settings,
    *,
    eps: float | Tensor,
    seed: int,
    target: Tensor | None = None,
    source: nn.Module | None = None,
    lender: nn.Module | None = None,
    clean: Tensor | None = None,
) -> AttackResult:
    """Do what `attack` says, with settings already parsed, and one ε, or one per sample (N,).

    With `source` the points are sought on that model and judged on `model`; with `lender` that network only
    provides the gradient. `clean` are the logits (N, K) of x, where a caller has checked the batch before.
    Libraries, and models that are random in eval mode, draw from global generators that are seeded here and
    put back.
    """
    seed = check_seed(seed)
    with (
        preserved_rng(derive_seed(seed, "attack")),
        gradients_recorded(),
        translate_model_errors(lender or source or model, x),
    ):
        return _run(model, x, y, method, settings, eps, seed, target, source, lender, clean)


def _run(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    method: AttackMethod,
    settings: Settings,
    eps: float | Tensor,
    seed: int,
    target: Tensor | None,
    source: nn.Module | None,
    lender: nn.Module | None,
    clean: Tensor | None,
) -> AttackResult:
    begun = time.perf_counter()
    norm: Norm = getattr(settings, "norm", "linf")
    samples: int = getattr(settings, "samples", 1)
    quantised: bool = getattr(settings, "quantised", False)
    check_radius(float(eps.max()) if isinstance(eps, Tensor) else eps, norm)
    if norm not in method.norms:
        others = ", ".join(name for name in METHODS if norm in METHODS[name].norms)
        raise InputError(f"attack '{method.name}' has no {norm} version; these have: {others}")
    original = model
    model = Expected(model, samples) if samples > 1 else model
    if clean is None:
        clean, y = check_batch(original, x, y, random=samples > 1)
        clean = predict(model, x) if samples > 1 else clean
    target = _check_target(target, y, clean.shape[1], method)
    guess = clean.argmax(1)
    radius = torch.as_tensor(eps, dtype=x.dtype).expand(len(x))
    wanted = (guess == y if target is None else guess != target) & (radius > 0)
    rows = wanted.nonzero().flatten()

    attacked = model if source is None else source
    if source is not None:
        check_source(source, x, clean.shape[1], name="the source")
    if lender is not None:
        check_source(lender, x, clean.shape[1], name="gradients_from")
        lender = Expected(lender, samples) if samples > 1 else lender
        attacked = Borrowed(attacked, lender)
    attacked = OnGrid(attacked) if quantised else attacked
    there = clean if source is None else predict(source, x)
    points, queries, curve, blind = _search(
        attacked, x, y, target, there, radius, rows, method, settings, seed, expect=attacked is original
    )
    logits = clean.clone()
    size = chunk_rows(x.shape, device_of(model))
    for chunk in rows.split(size) if len(rows) else ():
        if quantised:
            centre = x.detach()[chunk.to(x.device)].cpu()
            points[chunk] = to_grid(points[chunk], centre, radius[chunk], norm)
        logits[chunk] = predict(model, points[chunk])
    finite = logits.isfinite().all(1)
    predictions = logits.argmax(1).where(finite, torch.tensor(UNDEFINED))
    clean_correct = guess == y
    success = (
        clean_correct & (predictions != y) if target is None else (guess != target) & (predictions == target)
    ) & finite
    if blind and not success[rows].all():
        warn(
            "the model's logits have no gradient at the image, or one that is 0 everywhere, so attack "
            f"'{method.name}' cannot see where to go; use 'square', and see what audit says",
        )
    return AttackResult(
        adversarial=points,
        labels=y,
        predictions=predictions,
        clean_correct=clean_correct,
        robust=clean_correct & ((predictions == y) | ~finite),
        success=success,
        survives_rounding=_survives_rounding(model, points, y, target, success),
        loss=F.cross_entropy(logits, y, reduction="none"),
        queries=queries,
        distance=_distance(points, x.detach(), norm),
        loss_curve=curve,
        images=fingerprint(TensorBlocks.of(x.detach(), torch.float32)),
        method=method.name,
        eps=float(eps.max()) if isinstance(eps, Tensor) else eps,
        norm=norm,
        settings=settings.model_dump(mode="json"),
        seed=seed,
        seconds=time.perf_counter() - begun,
    )


def _search(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    target: Tensor | None,
    logits: Tensor,
    radius: Tensor,
    rows: Tensor,
    method: AttackMethod,
    settings: Settings,
    seed: int,
    *,
    expect: bool,
) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """Run the method on the images at `rows`, chunk by chunk.

    Return a point for each image of x (those that are not attacked stay), the queries spent on it, the curve
    of the loss (N, steps), if the method records one, and whether all gradients were missing or 0. `logits`
    are those of x on `model`; with `expect` the passes are announced, so that a faster form of the model may
    be measured.
    """
    device = device_of(model)
    points = empty_tensor(x.shape, x.dtype).copy_(x.detach())
    queries = torch.zeros(len(x), dtype=torch.long)
    curve: Tensor | None = None
    forwards, gradients = Passes(model, x, reduced=False), Passes(model, x, backward=True)
    blind = True
    with undisturbed(model), progress(label=method.name, total=len(rows)) as bar:
        if expect:
            _expect(forwards, gradients, method, settings, len(rows))
        size = gradients.rows or pass_rows(model, x.shape, backward=True)
        chunks = rows.split(size) if len(rows) else ()  # of nothing, split makes one
        for chunk in chunks:
            watched = Watched(gradients.differentiable())
            problem = AttackProblem(
                model=watched,
                x=x.detach()[chunk.to(x.device)].to(device),
                y=y[chunk].to(device),
                target=None if target is None else target[chunk].to(device),
                logits=logits[chunk].to(device, x.dtype),
                eps=radius[chunk].to(device),
                norm=getattr(settings, "norm", "linf"),
                seed=seed,
                forwards=forwards,
            )
            outcome = method.run(problem, settings)
            points[chunk] = outcome.points.cpu()
            queries[chunk] = outcome.queries.cpu()
            if outcome.loss_curve is not None:
                if curve is None:
                    curve = torch.full((len(x), outcome.loss_curve.shape[1]), torch.nan, dtype=torch.float32)
                curve[chunk] = outcome.loss_curve.float().cpu()
            blind = blind and watched.blind
            bar.update(len(chunk))
    return points, queries, curve, blind


_EARLY_STOP_SAVES = 4  # an attack that stops at the first broken point makes far fewer passes than it may


def _expect(
    forwards: Passes, gradients: Passes, method: AttackMethod, settings: Settings, count: int
) -> None:
    """Say how many passes an attack on `count` images makes, as far as its settings tell."""
    given = dict(settings)
    if method.access == "logits" and "queries" in given:
        forwards.expect(count * given["queries"] // _EARLY_STOP_SAVES)
    elif method.access == "gradient" and "steps" in given:
        early = _EARLY_STOP_SAVES if given.get("early_stop", True) else 1
        gradients.expect(count * given["steps"] * given.get("restarts", 1) // early)


def _survives_rounding(
    model: nn.Module, points: Tensor, y: Tensor, target: Tensor | None, success: Tensor
) -> Tensor:
    """Mask (N,): the attack succeeded, and still does with every pixel rounded to a multiple of 1/255."""
    survives = success.clone()
    rows = success.nonzero().flatten()
    for chunk in rows.split(chunk_rows(points.shape, device_of(model))) if len(rows) else ():
        logits = predict(model, (points[chunk] * 255).round() / 255)
        predictions = logits.argmax(1)
        hit = predictions != y[chunk] if target is None else predictions == target[chunk]
        survives[chunk] = hit & logits.isfinite().all(1)
    return survives


def _distance(points: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """Return the length (N,) of each perturbation; some at a time, and never a single one of several."""
    parts = max(1, len(x) // 16)
    lengths = torch.empty(len(x), dtype=points.dtype)
    triples = (each.tensor_split(parts) for each in (points, x, lengths))
    for point, start, length in zip(*triples, strict=True):
        length.copy_(norm_of(point - start.cpu(), norm))
    return lengths


def check_batch(model: nn.Module, x: Tensor, y: Tensor, *, random: bool = False) -> tuple[Tensor, Tensor]:
    """Logits (N, K) of checked images and the checked labels, both on the CPU.

    A model that is random in eval mode is warned about unless the caller says that it is `random`.

    Raises
    ------
    InputError
        As `attack`.
    """
    check_images(x)
    y = check_labels(y, len(x)).cpu()
    with preserved_rng():
        check_model(model, x, random=random)
        logits = finite_logits(model, x)
    if are_probabilities(logits):
        warn(
            "the model returns probabilities, not logits: its gradient vanishes where it is confident, so an "
            "attack can fail although the model is not robust; remove its last softmax",
        )
    return logits, check_labels(y, len(x), logits.shape[1])


def finite_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Compute the logits (N, K), on the CPU.

    Raises
    ------
    InputError
        If they are not finite: such a model cannot be attacked.
    """
    logits = predict(model, x)
    finite = logits.isfinite().all(1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise InputError(f"the model's logits for image {first} are not finite; it cannot be attacked")
    return logits


def check_model(model: nn.Module, x: Tensor, *, random: bool = False) -> None:
    """Refuse a model that no point of the ball can be sought on: for its type, or for what it does to x.

    Raises
    ------
    InputError
        Says what would do. A changed input would be taken for a point of the ball.
    """
    dtype = dtype_of(model, x.dtype)
    for half in (dtype, x.dtype):
        if torch.finfo(half).bits < 32:
            raise InputError(
                f"an attack needs float32 or float64: the numbers of {half} lie too far apart for points of "
                "a small ball; use model.float() and x.float()"
            )
    if dtype != x.dtype:
        raise InputError(f"the model computes in {dtype}, but the images are {x.dtype}; use x.to({dtype})")
    check_classifier(model, x, random=random)
    with translate_model_errors(model, x):
        check_input_kept(model, x)


def check_source(source: nn.Module, x: Tensor, classes: int, *, name: str) -> None:
    """Refuse a model whose points cannot be tried on another: one of other images or other classes.

    Raises
    ------
    InputError
        Names the source by `name`, and says what it returned.
    """
    check_module(source, name)
    try:
        with preserved_rng():
            check_model(source, x)
            returned = predict(source, x[:1]).shape[1]
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    if returned != classes:
        raise InputError(f"{name} returns {returned} classes, and the attacked model {classes}")


def is_source(source: nn.Module, x: Tensor, classes: int) -> bool:
    """Whether points of this model can be tried on another of so many classes; see `check_source`."""
    try:
        check_source(source, x, classes, name="the source")
    except InputError:
        return False
    return True


def _check_target(target: Tensor | None, y: Tensor, classes: int, method: AttackMethod) -> Tensor | None:
    if target is None:
        return None
    if not method.targeted:
        names = ", ".join(name for name in METHODS if METHODS[name].targeted)
        raise InputError(f"attack '{method.name}' takes no target; these do: {names}")
    if not isinstance(target, Tensor):
        raise InputError(
            "target must be a tensor (N,), for each image another class than its own, not "
            f"{type(target).__name__}"
        )
    try:
        target = check_labels(target, len(y), classes).cpu()
    except InputError as error:
        raise InputError(f"target: {error}") from None
    if (target == y).any():
        first = int((target == y).nonzero()[0])
        raise InputError(f"target {first} is the sample's own label {int(y[first])}; choose another class")
    return target
