"""A training step as objectives use it: the batch, the model, random draws, attacks and saliencies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from saliency_lab._common.compiling import is_compiled
from saliency_lab._common.errors import TrainingError
from saliency_lab._common.folding import FoldedCopy
from saliency_lab._common.seeding import derive_seed, generator, seed_generators
from saliency_lab._common.settings import Epsilon, Settings
from saliency_lab.attacks.ascent import check_radius, projected_ascent, random_start
from saliency_lab.training.trunk import Part, run, trunk_and_head


class AttackSpec(Settings):
    """The attack used in training and, with more steps, in validation."""

    eps: Epsilon = 0.1
    """Radius of the ball, in image units [0, 1]."""
    norm: Literal["linf", "l2"] = "linf"
    steps: Annotated[int, Field(ge=1)] = 7
    step_size: Epsilon | None = None
    """α; None is 2.5·ε / steps (Madry et al. 2018)."""
    random_start: bool = True
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.0
    """ε rises linearly from 0 over this share of the training."""

    @model_validator(mode="after")
    def _radius_in_image_units(self) -> AttackSpec:
        check_radius(self.eps, self.norm)
        return self

    def alpha(self, eps: float) -> float:
        """Return the step size at the radius `eps`, which may be smaller during the warm-up."""
        if self.step_size is None:
            return 2.5 * eps / self.steps
        return self.step_size * (eps / self.eps if self.eps else 1.0)


def full_precision(z: Tensor) -> Tensor:
    """Return logits of a shorter type, as autocast makes them, as float32."""
    return z.float() if z.dtype in (torch.bfloat16, torch.float16) else z


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Set eval mode inside, and restore the mode of each module on leaving."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def frozen(*parts: Part) -> Iterator[None]:
    """Let parameters take no gradient inside: a compiled pass computes every gradient that may be taken."""
    modules = [part for part in parts if isinstance(part, nn.Module)]
    parameters = [each for module in modules for each in module.parameters() if each.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@dataclass
class Step:
    """Everything that an objective may use. Attacks and saliencies run in eval mode, losses in train mode."""

    net: nn.Module
    """The module without a distributed wrapper, in train mode."""
    x: Tensor
    """Images (N, C, H, W) in [0, 1]: this process's rows of the global batch."""
    y: Tensor
    """Class indices (N,)."""
    attack: AttackSpec
    eps: float
    """The radius at this step, after warm-up."""
    progress: float
    """The share of the training that is done, in [0, 1)."""
    seed: int
    """The seed of this step, from which every draw is derived."""
    rank: int = 0
    world_size: int = 1
    folded: FoldedCopy | None = None
    """A copy of `net` with folded batch normalisation, which computes its logits in eval mode."""
    last_gradient: Tensor | None = field(default=None, init=False)
    """Gradient of the attack's loss at its last iterate, after `perturb`."""
    attacked: bool = field(default=False, init=False)
    """Whether the objective has used the ball of ε, by `perturb` or `start_noise`."""

    def draw(self, purpose: str, shape: torch.Size | None = None, *, normal: bool = False) -> Tensor:
        """Return uniform draws from [0, 1), or standard normal ones, for this process's rows.

        They are drawn for the global batch and sliced, so that they do not depend on the number of processes.
        """
        rows, *rest = self.x.shape if shape is None else shape
        make = torch.randn if normal else torch.rand
        whole = make(rows * self.world_size, *rest, generator=generator(self.seed, purpose))
        return whole[self.rank * rows : (self.rank + 1) * rows].to(self.x.device)

    def logits(self, x: Tensor, draw: int = 0) -> Tensor:
        """Return logits in train mode. Passes with the same `draw` share their dropout mask."""
        return self._forward([self.net], x, draw)

    def _forward(self, chain: list[Part], x: Tensor, draw: int) -> Tensor:
        seed_generators(derive_seed(self.seed, "dropout", draw, self.rank))
        return full_precision(run(chain, x))

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """Give the module that computes the logits of `net` in eval mode; no parameter takes a gradient."""
        if self.folded is not None:
            yield self.folded.follow()
            return
        with evaluating(self.net), frozen(self.net):
            yield self.net

    def start_noise(self) -> Tensor:
        """Return the noise from which `random_start` makes a point in the ball."""
        self.attacked = True
        if self.attack.norm == "linf":
            return self.draw("start")
        return self.draw("start", torch.Size((len(self.x), self.x[0].numel() + 2)), normal=True)

    def perturb(
        self, loss: Callable[[Tensor], Tensor] | None = None, spec: AttackSpec | None = None
    ) -> Tensor:
        """Run PGD on `loss(logits)`, by default the cross-entropy; return the last iterate."""
        spec = spec or self.attack
        self.attacked = True
        raised = loss or (lambda z: F.cross_entropy(z, self.y, reduction="sum"))
        if self.eps == 0:
            self.last_gradient = None
            return self.x

        def gradient(point: Tensor) -> Tensor:
            point = point.detach().requires_grad_()
            with torch.enable_grad():
                z = net(point)
                # in float16 the gradient of a confident sample would underflow; only its direction is used
                scale = 1024.0 if z.dtype == torch.float16 else 1.0
                g = required_gradient(scale * raised(full_precision(z)), point)
            self.last_gradient = g
            return g

        start = self.x
        if spec.random_start:
            start = random_start(self.x, self.eps, spec.norm, self.start_noise())
        with self.evaluated() as net:
            return projected_ascent(
                self.x,
                gradient,
                start=start,
                eps=self.eps,
                step_size=spec.alpha(self.eps),
                steps=spec.steps,
                norm=spec.norm,
            ).detach()

    def correct(self, x: Tensor) -> Tensor:
        """Return which rows of `x` the model classifies correctly in eval mode; bool (N,)."""
        with self.evaluated() as net, torch.no_grad():
            return net(x).argmax(1) == self.y

    def logits_and_saliency(self, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return logits of x in train mode, and s = ∂z_target/∂x in eval mode.

        `target=None` means the predicted class. Up to the first layer that differs between the modes
        (dropout, BatchNorm), one forward pass serves both, with exactly the same weights and losses as two
        passes. See `saliency_lab.training.trunk` for the networks that can be cut there; others take two
        passes, and so does a compiled network, which is compiled as a whole.
        """
        point = x.detach().requires_grad_()
        if is_compiled(self.net):
            with self.evaluated() as net:
                z = full_precision(net(point))
            saliency = required_gradient(_score(z, target), point)
            return self.logits(x), saliency
        trunk, head = trunk_and_head(self.net)
        shared = run(trunk, point)
        with evaluating(self.net), frozen(*head):
            z = full_precision(run(head, shared))
        upper = required_gradient(_score(z, target), shared, retain_graph=not head)  # frees the head
        (saliency,) = torch.autograd.grad(shared, point, upper, retain_graph=True)
        return self._forward(head, shared, draw=0), saliency


def required_gradient(
    value: Tensor, point: Tensor, *, retain_graph: bool | None = None, create_graph: bool = False
) -> Tensor:
    """Return the gradient of a scalar at `point`.

    Raises
    ------
    TrainingError
        If the scalar does not depend on it, as of a model that detaches or rounds its images.
    """
    slope = None
    if value.requires_grad:
        (slope,) = torch.autograd.grad(
            value, point, retain_graph=retain_graph, create_graph=create_graph, allow_unused=True
        )
    if slope is None:
        raise TrainingError(
            "the model's logits have no gradient at the image (it is detached or converted on the way), and "
            "this objective needs one; change the model, or use 'standard' or 'noise'"
        )
    return slope


def _score(z: Tensor, target: Tensor | None) -> Tensor:
    """Sum the logits (N, K) of the targets, or of the predicted classes."""
    classes = z.detach().argmax(1) if target is None else target
    return z.gather(1, classes[:, None]).sum()


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return the batch mean of KL(p ‖ q) = Σ p·log(p/q) from logits (N, K), differentiable in both."""
    return F.kl_div(F.log_softmax(q, 1), F.log_softmax(p, 1), log_target=True, reduction="batchmean")
