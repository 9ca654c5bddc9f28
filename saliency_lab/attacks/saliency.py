"""An attack on the saliency map that keeps the prediction.

Ghorbani, Abid and Zou, "Interpretation of Neural Networks is Fragile", AAAI 2019.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from saliency_lab._common.arguments import check_choice
from saliency_lab._common.calls import RELU, Call, Rule, deliver, is_in_place
from saliency_lab._common.checks import check_images, check_seed, format_epsilon, parse_epsilon
from saliency_lab._common.errors import InputError
from saliency_lab._common.html import facts, side_by_side, strip
from saliency_lab._common.inference import (
    attention_differentiable_twice,
    chunk_rows,
    device_of,
    gradients_recorded,
    translate_missing_derivatives,
    translate_model_errors,
    undisturbed,
)
from saliency_lab._common.progress import progress
from saliency_lab._common.ranks import largest
from saliency_lab._common.samples import Images, read_sample
from saliency_lab._common.seeding import derive_seed, preserved_rng
from saliency_lab._common.settings import Epsilon, Settings, as_keywords, parse_settings
from saliency_lab.attacks.api import check_model, finite_logits
from saliency_lab.attacks.ascent import check_radius, norm_of, project, steepest
from saliency_lab.attacks.draws import ball_point
from saliency_lab.attacks.gradient import step_lengths
from saliency_lab.attacks.problem import AttackProblem

Goal = Literal["top_k", "mass_centre"]


class MapAttackSettings(Settings):
    """`k`: the share of pixels that the top-k attack empties. `beta`: the sharpness of the softplus.

    `step_size` as for PGD: a cosine from 2ε towards 0 unless given.
    """

    norm: Literal["linf", "l2"] = "linf"
    steps: int = Field(default=50, ge=1)
    step_size: Epsilon | None = None
    k: float = Field(default=0.1, gt=0.0, lt=1.0)
    beta: float = Field(default=10.0, gt=0.0)


_SHOWN = 8  # images, in Jupyter
_CHECKED = 8  # images on which the map is checked for a gradient


@dataclass(frozen=True, eq=False, repr=False)
class MapAttackResult:
    """Images that look the same to the model and not to its saliency map; one row per sample, on the CPU.

    Attributes
    ----------
    adversarial : Tensor (N, C, H, W)
        Inside the ball and [0, 1], with the prediction of x; x itself where no such point changed the map.
    maps_before, maps_after : Tensor (N, C, H, W)
        ∂z_c/∂x of the model itself for the class c predicted for x, signed, at x and at `adversarial`.
    predictions : Tensor (N,)
        The class predicted for x and for `adversarial`.
    overlap : Tensor (N,)
        Share of the top-k pixels (by magnitude, summed over channels) still in the top k: 1 is unmoved.
    shift : Tensor (N,)
        Distance in pixels between the centres of mass of the two maps.
    distance : Tensor (N,)
        ‖adversarial − x‖ in the attack's norm.
    goal : str
        What the attack did to the map, as for `attack_map`.
    eps : float
        Radius of the ball, in image units.
    settings : dict
        All settings of the attack, defaults included.
    seed : int
        Seed of its random draws.
    seconds : float
        Time that the attack took.
    """

    adversarial: Tensor
    maps_before: Tensor
    maps_after: Tensor
    predictions: Tensor
    overlap: Tensor
    shift: Tensor
    distance: Tensor
    goal: Goal
    eps: float
    settings: dict[str, Any]
    seed: int
    seconds: float

    def __repr__(self) -> str:
        return (
            f"MapAttackResult({self.goal}, {self.settings['norm']}, eps={format_epsilon(self.eps)}: top-"
            f"{self.settings['k']:.0%} overlap {self.overlap.mean():.1%}, centre moved "
            f"{self.shift.mean():.2f} pixels, n={len(self.overlap)}, seed={self.seed}, {self.seconds:.1f} s)"
        )

    def _repr_html_(self) -> str:
        rows = {
            f"overlap of the top {self.settings['k']:.0%}": f"{self.overlap.mean():.1%}",
            "centre moved": f"{self.shift.mean():.2f} pixels",
            "images": str(len(self.overlap)),
            "ε": f"{format_epsilon(self.eps)} ({self.settings['norm']})",
            "settings": as_keywords(self.settings),
            "seed": str(self.seed),
            "time": f"{self.seconds:.3g} s",
        }
        shown = {"attacked images": self.adversarial[:_SHOWN]}
        for caption, gradient in (
            ("maps before the attack", self.maps_before),
            ("maps after it", self.maps_after),
        ):
            mass = _mass(gradient[:_SHOWN])
            peak = mass.amax((1, 2, 3), keepdim=True)
            shown[caption] = torch.where(peak > 0, mass / peak, 0)
        parts = [(strip(pictures, caption), caption) for caption, pictures in shown.items()]
        return facts(f"attack on maps, {self.goal}", rows) + side_by_side(parts)

    def table(self) -> pd.DataFrame:
        """Return the result as a table.

        Returns
        -------
        DataFrame
            One row per sample: `prediction`, `overlap`, `shift` and `distance`.
        """
        columns = {"prediction": self.predictions, "overlap": self.overlap, "shift": self.shift}
        columns["distance"] = self.distance
        table = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
        return table.rename_axis("sample")

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the images and maps, as values that JSON can hold.

        Returns
        -------
        dict
            The settings, the means, and the table under `samples`.
        """
        return {
            "goal": self.goal,
            "eps": self.eps,
            "settings": self.settings,
            "seed": self.seed,
            "seconds": self.seconds,
            "n": len(self.overlap),
            "overlap": self.overlap.double().mean().item(),
            "shift": self.shift.double().mean().item(),
            "samples": self.table().to_dict(orient="list"),
        }


def attack_map(
    model: nn.Module,
    x: Images,
    goal: Goal = "top_k",
    *,
    eps: float | str,
    seed: int = 0,
    **settings: Any,
) -> MapAttackResult:
    """Look for a point of the ε-ball with the same prediction and another saliency map.

    The map is the input gradient of the predicted class's logit, its magnitudes summed over channels and
    divided by their sum. `top_k` takes mass from the pixels that were the map's top k; `mass_centre` moves
    its centre of mass. Of all points on the way that keep the prediction, the one that changes the
    *model's own* map most is returned.

    A map of a network of ReLUs is piecewise constant and has no useful gradient, so the direction is
    of the model with softplus(β·)/β in place of each ReLU, module or function, as in the paper; the model is
    not changed.

    Parameters
    ----------
    model : nn.Module
        As for `attack`.
    x : Tensor, DataLoader or data set
        Images (N, C, H, W) in [0, 1].
    goal : {"top_k", "mass_centre"}
        What the attack changes in the map.
    eps : float or str
        Radius of the ball in image units; text such as "8/255" is accepted.
    seed : int
        Seed of the random starts.
    **settings
        `norm`, `steps`, `step_size`, the share `k` of the pixels for `top_k`, and `beta` of the softplus.

    Returns
    -------
    MapAttackResult
        One row per sample: the point found, the maps before and after, and how far they differ.

    Raises
    ------
    InputError
        As `attack`; also if the smoothed model's map still has no gradient (a piecewise linear model without
        ReLUs), or torch cannot differentiate it (a hard sigmoid).

    Examples
    --------
    >>> import saliency_lab as sl
    >>> net = sl.load_model("digits/at")
    >>> x, _ = sl.load_dataset("digits").test.sample(4, seed=0)
    >>> result = sl.attack_map(net, x, "top_k", eps=0.1, steps=2)
    >>> bool((result.overlap <= 1).all())
    True
    """
    begun = time.perf_counter()
    seed = check_seed(seed)
    check_choice(goal, get_args(Goal), "goal")
    parsed = parse_settings(MapAttackSettings, settings, of="attack_map")
    radius = check_radius(parse_epsilon(eps), parsed.norm)
    x = read_sample(x).x
    check_images(x)
    images = x.detach().cpu()
    with preserved_rng(derive_seed(seed, "attack_map")), gradients_recorded():
        check_model(model, x)
    device = device_of(model)
    with (
        preserved_rng(derive_seed(seed, "attack_map")),
        gradients_recorded(),
        translate_model_errors(model, x),
        attention_differentiable_twice(),
        translate_missing_derivatives(InputError),
        undisturbed(model),
        progress(label=goal, total=len(images)) as bar,
    ):
        if radius > 0:  # on a few images, before all are predicted
            few = images[: min(_CHECKED, chunk_rows(images.shape, device))].to(device)
            _check_curvature(smoothed(model, parsed.beta), few)
        classes = finite_logits(model, images).argmax(1)
        adversarial, before, after = images.clone(), torch.empty_like(images), torch.empty_like(images)
        for rows in torch.arange(len(images)).split(chunk_rows(images.shape, device)):
            problem = AttackProblem(
                model=model,
                x=images[rows].to(device),
                y=classes[rows].to(device),
                target=None,
                logits=torch.empty(0),
                eps=images.new_full((len(rows),), radius).to(device),
                norm=parsed.norm,
                seed=seed,
            )
            points = _climb(problem, goal, parsed) if radius > 0 else problem.x
            adversarial[rows] = points.cpu()
            before[rows] = class_gradient(model, problem.x, problem.y).cpu()
            after[rows] = class_gradient(model, points, problem.y).cpu()
            bar.update(len(rows))
    return MapAttackResult(
        adversarial=adversarial,
        maps_before=before,
        maps_after=after,
        predictions=classes,
        overlap=(_top_k(before, parsed.k) & _top_k(after, parsed.k)).double().sum(1)
        / _top_k(before, parsed.k).sum(1),
        shift=(_centre(_mass(after)) - _centre(_mass(before))).norm(dim=1),
        distance=norm_of(adversarial - images, parsed.norm),
        goal=goal,
        eps=radius,
        settings=parsed.model_dump(mode="json"),
        seed=seed,
        seconds=time.perf_counter() - begun,
    )


def smoothed(model: nn.Module, beta: float) -> Callable[[Tensor], Tensor]:
    """Return the model as a function with softplus(βz)/β in place of each ReLU, module or function.

    >>> smoothed(nn.ReLU(), beta=1.0)(torch.zeros(1))
    tensor([0.6931])
    """

    def forward(x: Tensor) -> Tensor:
        with _SoftRelus(beta):
            logits: Tensor = model(x)
            return logits

    return forward


class _SoftRelus(Rule):
    """Answers every call of a ReLU with softplus(βz)/β."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, or the softplus; a ReLU in place leaves the softplus where its input was."""
        if func not in RELU:
            return func(*args, **kwargs)
        z = args[0].clone() if is_in_place(func, kwargs) else args[0]
        return deliver(F.softplus(z, self.beta), func, args, kwargs)


def class_gradient(
    model: Callable[[Tensor], Tensor], x: Tensor, classes: Tensor, *, graph: bool = False
) -> Tensor:
    """∂z_c/∂x (N, C, H, W) of each image's own class c; with `graph` it can be differentiated again."""
    return _gradient_and_class(model, x, classes, graph=graph)[0]


def _gradient_and_class(
    model: Callable[[Tensor], Tensor], x: Tensor, classes: Tensor, *, graph: bool = False
) -> tuple[Tensor, Tensor]:
    """`class_gradient`, and the class (N,) predicted for each image, of one pass."""
    with torch.enable_grad():
        point = x if graph else x.detach().requires_grad_()
        logits = model(point)
        score = logits.gather(1, classes[:, None]).sum()
        slope = torch.autograd.grad(score, point, create_graph=graph, allow_unused=True)[0]
    if slope is None:
        raise InputError("the model's logits have no gradient at the image, so there is no map to attack")
    return slope, logits.argmax(1)


def _check_curvature(smooth: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Check that the map of the smoothed model changes with the image.

    Raises
    ------
    InputError
        If its gradient is zero for all of `images`, as of a piecewise linear model without ReLUs.
    """
    with torch.no_grad():
        classes = smooth(images.clone()).argmax(1)
    point, slope = images.clone().requires_grad_(), None
    gradient = class_gradient(smooth, point, classes, graph=True)
    if gradient.requires_grad:
        slope = torch.autograd.grad(gradient.abs().sum(), point, allow_unused=True)[0]
    if slope is None or not bool(slope.any()):
        raise InputError(
            "the saliency map has no gradient: ReLUs are smoothed and no other piecewise linear layer "
            "is, so use a ReLU or a smooth activation in its place"
        )


def _climb(problem: AttackProblem, goal: Goal, settings: MapAttackSettings) -> Tensor:
    def change(gradient: Tensor) -> Tensor:
        mass = _mass(gradient)
        if goal == "top_k":
            return -(mass.flatten(1) * top).sum(1)
        return (_centre(mass) - centre).square().sum(1)

    smooth = smoothed(problem.model, settings.beta)
    clean = _mass(class_gradient(problem.model, problem.x, problem.y))
    top, centre = _top_k(clean, settings.k), _centre(clean)
    best = problem.x.clone()
    best_change = -(clean.flatten(1) * top).sum(1) if goal == "top_k" else torch.zeros_like(clean[:, 0, 0, 0])
    point = ball_point(problem, "map attack start")
    lengths = step_lengths(problem.eps, settings.step_size, settings.steps)
    for step in range(settings.steps + 1):
        gradient, predicted = _gradient_and_class(problem.model, point, problem.y)
        achieved = change(gradient).where(gradient.flatten(1).any(1), -torch.inf)  # no gradient is no map
        better = (predicted == problem.y) & (achieved > best_change)
        best[better], best_change[better] = point[better], achieved[better]
        if step == settings.steps:
            break
        point = point.detach().requires_grad_()
        wanted = change(class_gradient(smooth, point, problem.y, graph=True))
        slope = torch.autograd.grad(wanted.sum(), point)[0]
        move = lengths[step].reshape(-1, 1, 1, 1) * steepest(slope.nan_to_num(), problem.norm)
        point = project(point.detach() + move, problem.x, problem.eps, problem.norm)
    return best


def _mass(gradient: Tensor) -> Tensor:
    """|gradient| summed over channels, over its sum: (N, 1, H, W), zero where the gradient is."""
    size = gradient.abs().sum(1, keepdim=True)
    total = size.sum((1, 2, 3), keepdim=True)
    return size / total.clamp_min(torch.finfo(size.dtype).tiny)


def _top_k(gradient: Tensor, k: float) -> Tensor:
    """Mask (N, H·W) of the round(k·H·W) pixels with the largest |gradient|; ties go to the earlier pixel."""
    return largest(gradient.abs().sum(1).flatten(1), k)


def _centre(mass: Tensor) -> Tensor:
    """Centre of mass (N, 2) in pixels: row, column."""
    height, width = mass.shape[-2:]
    rows = torch.arange(height, dtype=mass.dtype, device=mass.device)
    columns = torch.arange(width, dtype=mass.dtype, device=mass.device)
    return torch.stack([(mass.sum((1, 3)) * rows).sum(1), (mass.sum((1, 2)) * columns).sum(1)], 1)
