"""The training loop, on Lightning Fabric: devices, precision and processes are Fabric's.

Every random draw of a step is derived from (recipe seed, step), and the order of an epoch from
(recipe seed, epoch). The state to resume from is therefore weights, optimiser and position.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

from saliency_lab._common.compiling import CompileError, compiled_in_place, uncompiled
from saliency_lab._common.copying import copy_model
from saliency_lab._common.errors import CheckpointError, InputError, TrainingError
from saliency_lab._common.folding import FoldedCopy
from saliency_lab._common.inference import run_without_graph, translate_missing_derivatives
from saliency_lab._common.memory import freed_memory_kept
from saliency_lab._common.progress import no_progress, progress, watched
from saliency_lab._common.seeding import derive_seed, generator, seed_generators
from saliency_lab.data import ImageData
from saliency_lab.training.augmentation import crop_and_flip
from saliency_lab.training.health import (
    Validation,
    check_finite,
    collapse_cure,
    collapse_message,
    validate,
)
from saliency_lab.training.layout import use_channels_last
from saliency_lab.training.objectives import Objective
from saliency_lab.training.recipe import OptimizerSpec, Recipe
from saliency_lab.training.run import RunFolder
from saliency_lab.training.schedules import learning_rate_factor, ramp
from saliency_lab.training.step import Step

logger = logging.getLogger(__name__)

SAVE_EVERY_SECONDS, LOOK_EVERY_BATCHES = 60.0, 20
"""The state is saved once a minute; the time is checked every 20 batches."""


class Loss(nn.Module):
    """The objective and the model as one module, whose forward pass computes the loss terms.

    A distributed wrapper synchronises once per step, although the objective makes several passes; attacks and
    saliencies use the model without the wrapper.
    """

    def __init__(self, net: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.net = net
        self.objective = objective
        self.attacked = False
        """Whether the objective has used ε in some step."""
        self.folded: FoldedCopy | None = None
        """The copy of the model that makes its passes in eval mode, where they are compiled."""

    def forward(self, x: Tensor, y: Tensor, **position: Any) -> dict[str, Tensor]:
        """Return the terms of the objective for one batch."""
        step = Step(net=self.net, x=x, y=y, folded=self.folded, **position)
        terms = self.objective.terms(step)
        self.attacked = self.attacked or step.attacked
        return terms


@dataclass
class Fitted:
    """The result of `fit`: the weights that are kept, on the CPU, and their validation."""

    weights: dict[str, Tensor]
    validation: Validation
    epochs: int
    concerns: list[str]


@dataclass
class _Position:
    """The position of a run: the next batch, and the sums and the history so far."""

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    """Time spent on the current epoch."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sum of each loss term over the batches of the current epoch."""
    history: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[str, float] = field(default_factory=dict)
    """Validation of the weights that are kept: the last or the best ones so far."""
    best: float = -1.0
    best_epoch: int = -1
    collapsed_before: int = 0
    """The number of successive epochs up to this one that ended in a constant prediction."""


def _optimizer(spec: OptimizerSpec, net: nn.Module) -> torch.optim.Optimizer:
    parameters, rate, decay = net.parameters(), spec.learning_rate, spec.weight_decay
    if spec.name == "sgd":
        momentum = spec.momentum
        return torch.optim.SGD(parameters, rate, momentum, weight_decay=decay, nesterov=momentum > 0)
    if spec.name == "adadelta":
        return torch.optim.Adadelta(parameters, rate, weight_decay=decay)
    kind = torch.optim.Adam if spec.name == "adam" else torch.optim.AdamW
    return kind(parameters, rate, weight_decay=decay)


def warm_average(decay: float) -> Callable[[PARAM_LIST, PARAM_LIST, Tensor | int], None]:
    """Return the update of a moving average whose decay after t updates is min(decay, (1 + t) / (10 + t)).

    With a constant decay, the initial weights keep the share decayᵗ, which may be nearly everything. Buffers
    of whole numbers, such as indices and counts, are copied, and so is what has no average, as −∞ in a mask.
    """

    def update(averaged: PARAM_LIST, current: PARAM_LIST, updates: Tensor | int) -> None:
        t = int(updates)
        real = averaged[0].is_floating_point() or averaged[0].is_complex()  # all are of one type
        if real:
            get_ema_multi_avg_fn(min(decay, (1 + t) / (10 + t)))(averaged, current, updates)
        for mean, value in zip(averaged, current, strict=True):
            mean.copy_(torch.where(mean.isnan(), value, mean) if real else value)

    return update


def _unsaved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that the state dict leaves out, and on which the next step may depend."""
    saved = module.state_dict()
    return {name: buffer for name, buffer in module.named_buffers() if name not in saved}


def _cpu_copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}


class Trainer:
    """One run of a recipe under a launched Fabric."""

    def __init__(
        self, fabric: Fabric, recipe: Recipe, data: ImageData, net: nn.Module, run: RunFolder | None
    ) -> None:
        self.fabric, self.recipe, self.data, self.run = fabric, recipe, data, run
        batch = recipe.training.batch_size
        if batch % fabric.world_size:
            raise InputError(
                f"a batch of {batch} images cannot be shared equally by {fabric.world_size} processes; "
                f"set training.batch_size to a multiple of {fabric.world_size}"
            )
        self.batches = len(data.train) // batch
        self.net = copy_model(net).train()
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            self.net = nn.SyncBatchNorm.convert_sync_batchnorm(self.net)
        if recipe.training.channels_last:
            use_channels_last(self.net)
        self.loss = Loss(self.net, recipe.objective)
        self.module, self.optimizer = fabric.setup(self.loss, _optimizer(recipe.optimizer, self.net))
        self.parameters = [p for p in self.net.parameters() if p.requires_grad]
        decay = recipe.training.ema_decay
        self.average = (
            AveragedModel(self.net, multi_avg_fn=warm_average(decay), use_buffers=True) if decay else None
        )
        self.validation_images = data.val.sample(
            min(recipe.validation.images, len(data.val)), seed=recipe.seed
        )
        self.position = _Position()
        self.best_weights: dict[str, Tensor] | None = None

    @property
    def judged(self) -> nn.Module:
        """The model that is validated and kept: the moving average if there is one."""
        return self.average.module if self.average is not None else self.net

    def fit(self) -> Fitted:
        """Train from the saved state, or from the start, to the end."""
        recipe, epochs = self.recipe, self.recipe.training.epochs
        self._resume()
        at, first = self.position, self.fabric.is_global_zero
        with (
            freed_memory_kept() if self.fabric.device.type == "cpu" else nullcontext(),
            nullcontext() if first else no_progress(),
            self._compiled(),
            progress(label=recipe.name, total=epochs * self.batches) as bar,
        ):
            bar.update(at.epoch * self.batches + at.batch)
            while at.epoch < epochs and not self._gives_up() and not self._out_of_patience():
                for _ in self._epoch():
                    bar.update()
                self._finish_epoch()
                summary = _summary(at.history[-1])
                bar.set_postfix_str(summary)
                if first and (bar.disable or not watched()):
                    logger.info(
                        "%s, seed %d: epoch %d of %d: %s", recipe.name, recipe.seed, at.epoch, epochs, summary
                    )
        kept = Validation(**at.kept)
        return Fitted(
            weights=_cpu_copy(self.judged) if self.best_weights is None else self.best_weights,
            validation=kept,
            epochs=at.epoch,
            concerns=[*self._late_collapse(), *kept.concerns()],
        )

    @contextmanager
    def _compiled(self) -> Iterator[None]:
        """Compile the network inside, if the recipe says so, and fold it for the passes in eval mode."""
        if not self.recipe.training.compile:
            yield
            return
        x, _ = self.fabric.to_device(self.data.train.batch(slice(2)))
        folded = self.loss.folded = FoldedCopy.make(self.net, x, run_without_graph)
        try:
            with compiled_in_place(self.net, *([] if folded is None else [folded.follow()])):
                yield
        except CompileError as error:
            raise TrainingError(f"training.compile = true: {error}; leave it out") from error
        finally:
            self.loss.folded = None

    def _epoch(self) -> Iterator[None]:
        """Train on the remaining batches of the current epoch."""
        at, recipe, size = self.position, self.recipe, self.recipe.training.batch_size
        order = torch.randperm(len(self.data.train), generator=generator(recipe.seed, "order", at.epoch))
        own = size // self.fabric.world_size
        first = self.fabric.global_rank * own
        sums: dict[str, Tensor] = {}
        started = saved = time.monotonic()
        self.net.train()
        while at.batch < self.batches:
            begin = at.batch * size + first
            for term, value in self._step(order[begin : begin + own]).items():
                sums[term] = sums.get(term, torch.zeros((), device=value.device)) + value
            at.batch += 1
            if self._time_to_save(at.batch, time.monotonic() - saved):
                self._collect(sums, started)
                sums, started = {}, time.monotonic()
                self._save()
                saved = time.monotonic()
            yield
        self._collect(sums, started)

    def _time_to_save(self, batch: int, seconds: float) -> bool:
        """Let the clock of the first process decide, because all processes take part in saving."""
        if self.run is None or batch % LOOK_EVERY_BATCHES:
            return False
        return self.fabric.broadcast(seconds > SAVE_EVERY_SECONDS)

    def _collect(self, sums: dict[str, Tensor], started: float) -> None:
        """Add the sums on the device to those of the position, and check that they are finite."""
        at = self.position
        for term, value in sums.items():
            mean = self.fabric.all_reduce(value, reduce_op="mean")
            assert isinstance(mean, Tensor)
            at.sums[term] = at.sums.get(term, 0.0) + mean.item()
        check_finite(at.sums, at.epoch)
        at.seconds += time.monotonic() - started

    def _step(self, indices: Tensor) -> dict[str, Tensor]:
        at, recipe, world = self.position, self.recipe, self.fabric.world_size
        index = at.epoch * self.batches + at.batch
        share = index / (recipe.training.epochs * self.batches)
        seed = derive_seed(recipe.seed, "step", index)
        self._seed_model(seed)
        x, y = self.data.train.batch(indices)
        if recipe.data.augmentation == "crop_flip":
            draws = torch.rand(len(x) * world, 3, generator=generator(seed, "augmentation"))
            x = crop_and_flip(x, draws[self.fabric.global_rank * len(x) :][: len(x)])
        x, y = self.fabric.to_device((x, y))
        if recipe.training.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        factor = learning_rate_factor(recipe.optimizer.schedule, share)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.optimizer.learning_rate * factor
        terms = self.module(
            x,
            y,
            attack=recipe.attack,
            eps=recipe.attack.eps * ramp(share, recipe.attack.warmup),
            progress=share,
            seed=seed,
            rank=self.fabric.global_rank,
            world_size=world,
        )
        if not terms or any(value.ndim for value in terms.values()):
            raise TrainingError(
                f"objective '{recipe.objective.name}' must return one or more scalar terms, not "
                f"{ {term: tuple(value.shape) for term, value in terms.items()} }"
            )
        self.optimizer.zero_grad()
        with translate_missing_derivatives(TrainingError):
            self.fabric.backward(sum(terms.values()), inputs=self.parameters)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.net)
        return {term: value.detach().float() for term, value in terms.items()}

    def _seed_model(self, *keys: object) -> None:
        """Seed the global generators, for networks that draw from them in eval mode."""
        seed_generators(derive_seed(self.recipe.seed, "model", *keys, self.fabric.global_rank))

    def _validate(self) -> Validation:
        self._seed_model("validation", self.position.epoch)
        with no_progress(), uncompiled(self.judged):
            measured = validate(self.judged, *self.validation_images, self.recipe)
        return self.fabric.broadcast(measured)

    def _finish_epoch(self) -> None:
        """Validate, log, keep the best weights and save; raise an error at a collapse."""
        at, recipe = self.position, self.recipe
        started = time.monotonic()
        measured = self._validate()
        row: dict[str, Any] = {
            "epoch": at.epoch + 1,
            "eps": recipe.attack.eps * ramp((at.epoch + 1) / recipe.training.epochs, recipe.attack.warmup),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "loss": sum(at.sums.values()) / self.batches,
            **{f"loss_{term}": value / self.batches for term, value in at.sums.items()},
            "val_clean": measured.clean,
            "val_robust": measured.robust,
            "val_constant_share": measured.constant_share,
            "val_zero_gradient_share": measured.zero_gradient_share,
            "seconds": at.seconds,
            "validation_seconds": time.monotonic() - started,
        }
        at.history.append(row)
        if self.run is not None and self.fabric.is_global_zero:
            self.run.write_log(at.history)
            self.run.mirror_to_tensorboard(row)
        last = at.epoch + 1 == recipe.training.epochs
        at.collapsed_before = at.collapsed_before + 1 if measured.collapsed else 0
        keep = recipe.training.collapse == "keep"
        if at.collapsed_before and (last or self._gives_up()) and self.best_weights is None and not keep:
            message = collapse_message(measured, recipe, attacked=self.loss.attacked)
            raise TrainingError(f"recipe '{recipe.name}', epoch {at.epoch + 1}: {message}")
        select = recipe.training.select
        score = measured.robust if select == "robust" else measured.clean
        if select == "last":
            at.kept = asdict(measured)
        elif score > at.best and (keep or not measured.collapsed):
            at.kept, at.best, at.best_epoch = asdict(measured), score, at.epoch
            self.best_weights = _cpu_copy(self.judged)
        at.epoch, at.batch, at.seconds, at.sums = at.epoch + 1, 0, 0.0, {}
        self._save()

    def _gives_up(self) -> bool:
        """Whether two epochs in succession ended in a constant prediction, unless such a model is kept."""
        return self.position.collapsed_before > 1 and self.recipe.training.collapse == "refuse"

    def _out_of_patience(self) -> bool:
        at, patience = self.position, self.recipe.training.patience
        if patience is None or self.best_weights is None:
            return False
        return at.epoch - 1 - at.best_epoch >= patience

    def _late_collapse(self) -> list[str]:
        """Return a warning that the run ended in a collapse and an earlier epoch was kept."""
        at = self.position
        if not at.collapsed_before:
            return []
        kept = Validation(**at.kept)
        if kept.collapsed:
            return [collapse_message(kept, self.recipe, attacked=self.loss.attacked)]
        cure = collapse_cure(self.recipe, attacked=self.loss.attacked)
        return [
            f"the model collapsed to a constant prediction in epoch {at.epoch - at.collapsed_before + 1} and "
            f"did not recover; epoch {at.best_epoch + 1} is kept; {cure}"
        ]

    def _save(self) -> None:
        if self.run is None or not self.fabric.is_global_zero:
            return
        self.run.save_state(
            {
                "position": copy.deepcopy(vars(self.position)),
                "net": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "unsaved buffers": [_unsaved_buffers(each) for each in self._networks],
                "best": self.best_weights,
                "precision": self.fabric.strategy.precision.state_dict(),
            }
        )

    def _resume(self) -> None:
        state = self.run.load_state() if self.run is not None else None
        if state is None:
            return
        try:
            self.position = _Position(**state["position"])
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"the state of the run in '{self.run.path}' was written by another version of this package; "  # type: ignore[union-attr]
                "delete the folder to train from the start"
            ) from error
        recipe, epoch = self.recipe, self.position.epoch + 1
        logger.info("%s, seed %d: continues with epoch %d", recipe.name, recipe.seed, epoch)
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for network, buffers in zip(self._networks, state.get("unsaved buffers", ()), strict=False):
            for name, value in _unsaved_buffers(network).items():
                value.copy_(buffers[name])
        self.best_weights = state["best"]

    @property
    def _networks(self) -> list[nn.Module]:
        return [self.net] if self.average is None else [self.net, self.average.module]


def _summary(row: dict[str, Any]) -> str:
    terms = " ".join(f"{key.removeprefix('loss_')} {row[key]:.3f}" for key in row if key.startswith("loss_"))
    return f"{terms} | val clean {row['val_clean']:.1%} robust {row['val_robust']:.1%}"
