"""The passes of one call: how many images each has, and in which form of the model they run.

For short work a pass is the model's own, of `pass_rows` images. For long work a few forms are timed on the
first images, and the fastest one whose logits equal the model's own is used: batch normalisation folded or
not, either memory layout, compiled or not, several numbers of images. The choice is a `PassPlan`, which
later calls with a model of the same structure use again.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from saliency_lab._common.calls import hidden_part
from saliency_lab._common.checks import are_probabilities
from saliency_lab._common.compiling import CompileError, compile_seconds, compiled
from saliency_lab._common.cores import has_bfloat16
from saliency_lab._common.execution import ExecutionSettings, current_execution
from saliency_lab._common.folding import copy_for_evaluation, fold_batch_norm
from saliency_lab._common.hashing import fingerprint
from saliency_lab._common.inference import (
    chunk_rows,
    device_of,
    dtype_of,
    found_fault,
    in_float32,
    pass_clock,
    pass_rows,
    predict,
    run_without_graph,
    seconds_per_image,
    undisturbed,
    without_autocast,
)
from saliency_lab._common.progress import announce
from saliency_lab._common.provenance import machine
from saliency_lab._common.seeding import preserved_rng
from saliency_lab._common.threads import HOOKS

Layout = Literal["contiguous", "channels_last"]

TOLERANCE = 1e-5
"""Largest difference of logits from the model's own, relative to the largest logit, or to 1."""

LONG_WORK = 10.0
"""Seconds of estimated work from which "auto" looks for a faster form."""

MANY_IMAGES = 150
"""Images from which it does: making a form that is known and comparing its logits takes passes of a few."""

_SHARE = 0.04  # of the estimated work, which is often less, that measuring may take
_ROUNDS = 3
_HOPELESS = 1.25  # a form that took this much longer than the best in the first round is not timed again
_WORTH_IT = 0.97  # a form is chosen if it takes at most this share of the time of the one before
_GAIN = 0.9  # and used if it takes at most this share of the present passes: it copies the images besides
_SHORT = 0.02  # seconds that are timed at least
_FIRST = 2  # images on which outputs are compared
_GRADIENT_TOLERANCE = 1e-3  # of the gradient's norm: a ReLU at 0 may go either way
_COMPILED_SHARE = 0.7  # what a compiled pass is assumed to take at most of a folded one, before it is timed


@dataclass(frozen=True)
class PassPlan:
    """How passes run: images per pass, layout, whether folded and compiled, and the precision."""

    rows: int
    layout: Layout = "contiguous"
    folded: bool = False
    compiled: bool = False
    dtype: str | None = None
    milliseconds: float = field(default=0.0, compare=False)
    """Per image, when it was measured."""

    def facts(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return asdict(self)


AS_IT_IS = PassPlan(rows=0)
"""The plan of a model for which nothing faster was found: its passes run as if nothing had been measured."""

_plans: dict[str, PassPlan] = {}
_book: ContextVar[MutableMapping[str, PassPlan] | None] = ContextVar("plans", default=None)
_lock = threading.RLock()


@contextmanager
def plans_kept_in(book: MutableMapping[str, PassPlan]) -> Iterator[None]:
    """Look plans up in `book` inside, and add those that are made, so that later runs use the same."""
    token = _book.set(book)
    try:
        yield
    finally:
        _book.reset(token)


class Passes:
    """The passes of one call over images like `x`, forward only or also back to the input.

    `expect` decides how they run, and must be called while the model is in eval mode; before that, and where
    nothing faster is found, they run as the model's own.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        *,
        backward: bool = False,
        reduced: bool = True,
        own: tuple[int, Layout] | None = None,
    ) -> None:
        """Take the model, the images (N, C, H, W) of the call, and whether a lower precision is allowed.

        `own` is how the caller's passes run without a plan: images per pass, and layout.
        """
        self.own = own
        self.model, self.backward, self.reduced = model, backward, reduced and not backward
        self.x = x
        self.plan: PassPlan | None = None
        self._form: _Form | None = None
        self._weights: tuple[tuple[int, int], ...] = ()
        self._expected = 0

    @property
    def rows(self) -> int | None:
        """How many images a pass has; None if that is not decided here."""
        return None if self.plan is None else self.plan.rows

    def facts(self) -> dict[str, Any]:
        """Return what a result records of its passes; nothing if they are the model's own."""
        return {} if self.plan is None else {"passes": self.plan.facts()}

    def expect(self, count: int) -> None:
        """Decide how `count` images run, in this call and from now on."""
        wanted = current_execution()
        if not self.reduced:
            wanted = replace(wanted, dtype=None)
        if self._form is not None or (wanted.compile is False and wanted.dtype is None):
            return
        if count <= self._expected:  # nothing was found for as many
            return
        self._expected = count
        forced = wanted.compile is True or wanted.dtype is not None
        speed = seconds_per_image(self.model, self.x.shape[1:])
        work = count * (speed or 0.0) * (_BACKWARD_COST if self.backward else 1)
        if not forced and (work < LONG_WORK or count < MANY_IMAGES):
            return
        if not _may_copy(self.model):
            if wanted.dtype is not None:
                _say(
                    self.model, "runs in its own precision: it has hooks, or is compiled, scripted or wrapped"
                )
            return
        if wanted.dtype is not None and device_of(self.model).type == "cpu" and not has_bfloat16():
            _say(
                self.model,
                "runs in bfloat16, for which this processor has no instructions, so that passes may take "
                "about ten times as long as in float32",
            )
        with _lock, preserved_rng(), undisturbed(self.model), torch.inference_mode(False):
            self._decide(wanted, work, forced)

    def _decide(self, wanted: ExecutionSettings, work: float, forced: bool) -> None:
        book, key = _book.get(), _plan_key(self.model, self.x, self.backward, wanted, self.own)
        book = _plans if book is None else book
        trial = _Trial(self.model, self.x, self.backward)
        plan = book.get(key)
        if plan is None:
            plan = _measure(trial, wanted, work, forced, self.own)
            if plan is None:
                return
            book[key] = plan
        if plan == AS_IT_IS:
            trial.keep(None)
            return
        if (
            plan.compiled
            and not (forced or trial.is_compiled(plan))
            and work < 3 * compile_seconds(self.model)
        ):
            plan = replace(plan, compiled=False)
        form = trial.form(plan)
        if form is None and plan.compiled:
            plan = replace(plan, compiled=False)
            form = trial.form(plan)
        if form is None:
            return
        trial.keep(plan)
        self.plan, self._form, self._weights = plan, form, _weights(self.model)

    def usable(self) -> bool:
        """Whether the form stands for the model now: its weights are as before, and nobody looks inside."""
        return (
            self._form is not None
            and _weights(self.model) == self._weights
            and not _has_hooks(self.model)
            and not torch._C._len_torch_function_stack()
            and not torch._C._len_torch_dispatch_stack()
        )

    def logits(self, images: Tensor) -> Tensor:
        """Return what the model returns for images on its device, without a graph."""
        form = self._form
        if form is None or not self.usable() or images.shape[1:] != self.x.shape[1:]:
            return run_without_graph(self.model, images.clone())
        return torch.cat([run_without_graph(form, chunk) for chunk in images.split(form.plan.rows)])

    def differentiable(self) -> nn.Module:
        """Return the module whose logits and gradients stand for the model's, or the model itself."""
        return self._form if self._form is not None and self.usable() else self.model


def predict_many(model: nn.Module, x: Tensor) -> Tensor:
    """Compute the logits (N, K) of `x` (N, C, H, W), by faster passes where that pays.

    Raises
    ------
    InputError
        If the model does not return one row of logits per image.
    """
    passes = Passes(model, x, reduced=False)
    passes.expect(len(x))
    if passes.plan is None:
        return predict(model, x)
    device, dtype = device_of(model), dtype_of(model, x.dtype)
    with without_autocast(), undisturbed(model), torch.inference_mode(False), torch.no_grad():
        chunks = x.split(chunk_rows(x.shape, device))
        return torch.cat([passes.logits(chunk.to(device, dtype)).float().cpu() for chunk in chunks])


class Predictions(NamedTuple):
    """Predicted classes (N,) and their probabilities (N,)."""

    classes: list[int]
    probabilities: list[float]


def predict_classes(model: nn.Module, x: Tensor) -> Predictions:
    """Return the class that a model predicts for each image (N, C, H, W), and its probability.

    A network of half precision is run in float32, as for its maps.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> len(predict_classes(model, torch.rand(2, 1, 2, 2)).classes)
    2
    """
    with in_float32(model):
        outputs = predict_many(model, x.to(dtype_of(model))).double()
    shares = outputs if are_probabilities(outputs) else outputs.softmax(1)
    probabilities, classes = shares.max(1)
    return Predictions(classes.tolist(), probabilities.tolist())


_BACKWARD_COST = 3.0  # a pass forward and back to the input, in forward passes, before it is timed


class _Form(nn.Module):
    """A model in another form, with the layout and precision of its plan."""

    def __init__(self, net: nn.Module, plan: PassPlan, fast: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.net, self.plan, self._fast = net, plan, fast

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, K)."""
        images = arranged(images, self.plan.layout)
        if self.plan.dtype is not None:
            images = images.to(getattr(torch, self.plan.dtype))
        if self._fast is not None and len(images) == self.plan.rows and not torch.is_grad_enabled():
            output = self._fast(images)
        else:
            output = self.net(images)
        return output.float() if self.plan.dtype is not None else output


def arranged(images: Tensor, layout: Layout) -> Tensor:
    """Copy images in a memory layout; one channel is in both at once, and then the strides say which."""
    if layout == "contiguous":
        return images.clone(memory_format=torch.contiguous_format)
    _, channels, height, width = images.shape
    if channels == 1:
        return images.clone(memory_format=torch.contiguous_format).as_strided(
            images.shape, (height * width, 1, width, 1)
        )
    return images.clone(memory_format=torch.channels_last)


class _Copies:
    """Copies of a model in other forms, and the weights that they were made of."""

    def __init__(self, weights: tuple[Any, ...]) -> None:
        self.weights = weights
        self.nets: dict[tuple[bool, Layout, str | None], nn.Module | None] = {}
        self.fast: dict[PassPlan, Callable[[Tensor], Tensor] | None] = {}
        self.used: set[tuple[PassPlan, bool]] = set()
        """Plans in use, and whether their gradients are used too, and so were compared."""


_copies: WeakKeyDictionary[nn.Module, _Copies] = WeakKeyDictionary()


class _Trial:
    """Makes forms of a model, and compares and times them on the first images."""

    def __init__(self, model: nn.Module, x: Tensor, backward: bool) -> None:
        self.model, self.backward = model, backward
        self.x, self.device = x, device_of(model)
        self.few = x[:_FIRST].to(self.device, dtype_of(model, x.dtype))
        digest = (_weights(model), weights_digest(model), _plain_attributes(model))
        copies = _copies.get(model)
        if copies is None or copies.weights != digest:
            copies = _copies[model] = _Copies(digest)
        self.copies = copies
        self._own: dict[bool, Tensor | None] = {}

    def _outputs(self, net: nn.Module, alone: bool) -> Tensor | None:
        """Logits of the first images, or of one of them alone; None if the model fails."""
        try:
            output = run_without_graph(net, (self.few[-1:] if alone else self.few).clone())
        except Exception:  # whatever a model raises on a layout or in a copy, the model itself is used
            return None
        return output.float() if isinstance(output, Tensor) and output.ndim == 2 else None

    def _expected(self, alone: bool) -> Tensor | None:
        """What the model itself returns."""
        if alone not in self._own:
            self._own[alone] = self._outputs(self.model, alone)
        return self._own[alone]

    def keep(self, plan: PassPlan | None) -> None:
        """Remember that a plan is used, and drop copies in forms that none is."""
        used = self.copies.used
        if plan is not None:
            used.add((plan, self.backward))
        plans = {each for each, _ in used}
        nets = {(each.folded, each.layout, each.dtype) for each in plans}
        self.copies.nets = {key: net for key, net in self.copies.nets.items() if key in nets or net is None}
        self.copies.fast = {key: run for key, run in self.copies.fast.items() if key in plans or run is None}

    def is_compiled(self, plan: PassPlan) -> bool:
        """Whether the plan's form was compiled before."""
        return self.copies.fast.get(plan) is not None

    def form(self, plan: PassPlan) -> _Form | None:
        """Return the form of a plan, or None if it cannot be made or its logits are not the model's."""
        net = self._net(plan)
        if net is None:
            return None
        fast = None
        if plan.compiled:
            fast = self._fast(net, plan)
            if fast is None:
                return None
        form = _Form(net, plan, fast)
        return form if self.agrees(form) else None

    def agrees(self, form: _Form) -> bool:
        """Whether the logits of the first images are the model's own."""
        if form.plan.dtype is not None:
            outputs = self._outputs(form, alone=False)
            return outputs is not None and bool(outputs.isfinite().all())
        use = (form.plan, self.backward)
        known = use in self.copies.used  # then one image tells a change
        for alone in (True,) if known else (True, False):
            outputs, expected = self._outputs(form, alone), self._expected(alone)
            if outputs is None or expected is None or not same_logits(outputs, expected):
                return False
        if self.backward and not known and not self._same_gradients(form):
            return False
        if form._fast is None or known:
            return True
        images = _fitted(self.x, form.plan.rows, self.few)
        expected = run_without_graph(self.model, images.clone())
        return same_logits(run_without_graph(form, images), expected)

    def _same_gradients(self, form: _Form) -> bool:
        """Whether the gradients on the first images are the model's own; False if either cannot be had."""
        try:
            gradient, expected = self._gradient(form, self.few), self._gradient(self.model, self.few)
        except Exception:  # whatever a model raises in its backward pass, the model itself is used
            return False
        if gradient is None or expected is None:
            return gradient is expected
        size = max(float(expected.norm()), torch.finfo(expected.dtype).tiny)
        return float((gradient - expected).norm()) <= _GRADIENT_TOLERANCE * size

    def _gradient(self, net: nn.Module, images: Tensor) -> Tensor | None:
        """Gradient of the largest logits; None where no graph leads from them to the images."""
        with torch.enable_grad():
            points = images.detach().clone().requires_grad_(True)
            value = net(points).amax(1).sum()
            if not value.requires_grad:
                return None
            return torch.autograd.grad(value, points, allow_unused=True)[0]

    def _net(self, plan: PassPlan) -> nn.Module | None:
        if not plan.folded and plan.dtype is None and not plan.compiled:
            return self.model
        key = (plan.folded, plan.layout, plan.dtype)
        if key not in self.copies.nets:
            self.copies.nets[key] = self._copy(plan)
        return self.copies.nets[key]

    def _copy(self, plan: PassPlan) -> nn.Module | None:
        try:
            net = copy_for_evaluation(self.model)
            before = _plain_attributes(net)
            run_without_graph(net, self.few[:1].clone())
            if _plain_attributes(net) != before:
                return None  # it counts its passes, or keeps what it saw: a copy would do so instead of it
            if plan.folded and not fold_batch_norm(net, self.few[:1].clone(), run_without_graph):
                return None
            if plan.dtype is not None:
                net = net.to(getattr(torch, plan.dtype))
            if plan.layout == "channels_last":
                net = net.to(memory_format=torch.channels_last)
        except Exception:  # a model that cannot be copied or folded is used as it is
            return None
        return net

    def _fast(self, net: nn.Module, plan: PassPlan) -> Callable[[Tensor], Tensor] | None:
        if plan not in self.copies.fast:
            example = arranged(_fitted(self.x, plan.rows, self.few), plan.layout)
            if plan.dtype is not None:
                example = example.to(getattr(torch, plan.dtype))
            try:
                self.copies.fast[plan] = compiled(net, example)
            except CompileError as error:
                _say(self.model, f"is not compiled: {error}")
                self.copies.fast[plan] = None
        return self.copies.fast[plan]

    def seconds(self, form: _Form, rows: int) -> float:
        """Time passes of `rows` images, per image."""
        images = _fitted(self.x, rows, self.few)
        now = pass_clock(self.device)
        began, done = now(), 0
        while done == 0 or now() - began < _SHORT:
            self._run(form, images)
            done += rows
        return (now() - began) / done

    def _run(self, form: _Form, images: Tensor) -> None:
        if self.backward:
            self._gradient(form, images)
        else:
            run_without_graph(form, images)


def _measure(
    trial: _Trial, wanted: ExecutionSettings, work: float, forced: bool, present: tuple[int, Layout] | None
) -> PassPlan | None:
    """Time forms, then numbers of images; return the best plan, or None if measuring does not pay."""
    model, dtype = trial.model, wanted.dtype
    usual = pass_rows(model, trial.x.shape, backward=trial.backward)
    if wanted.compile is False:
        return PassPlan(usual, dtype=dtype)
    middle = min(usual, 16) if usual > 2 else 2
    own = PassPlan(middle, dtype=dtype)
    plans = [own]
    if any(isinstance(each, nn.modules.conv._ConvNd) for each in model.modules()):
        plans.append(replace(own, layout="channels_last"))
        plans += [replace(each, folded=True) for each in plans]
    began, limit = time.perf_counter(), float("inf") if forced else _SHARE * work
    if 2 * len(plans) * middle * _seconds_of_one(trial) > limit:
        return None
    forms = {plan: form for plan in plans if (form := trial.form(plan)) is not None}
    if dtype is not None and not forms:
        _say(model, f"runs in its own precision: it does not compute in {dtype}")
        return None
    if own not in forms:
        return None
    times = {plan: trial.seconds(form, middle) for plan, form in forms.items()}
    if (known := _seconds_of_one(trial)) > times[own]:  # that was one image, and a first pass
        work *= times[own] / known
        limit = float("inf") if forced else _SHARE * work
    left = [plan for plan in forms if plan == own or times[plan] <= _HOPELESS * min(times.values())]
    for _ in range(_ROUNDS - 1):
        for plan in left:
            times[plan] = min(times[plan], trial.seconds(forms[plan], middle))
    chosen = min(left, key=lambda plan: times[plan])
    if times[chosen] > _WORTH_IT * times[own]:
        chosen = own
    rows, seconds = _best_rows(trial, forms[chosen], middle, times[chosen], began + limit)
    plan = replace(chosen, rows=rows, milliseconds=round(1000 * seconds, 3))
    measured = _with_compilation(trial, plan, wanted, work)
    if measured.compiled or forced:
        return measured
    if time.perf_counter() < began + limit:
        usual, layout = present or (usual, "contiguous")
        now = forms.get(replace(own, layout=layout), forms[own])
        pairs = [(trial.seconds(forms[chosen], rows), trial.seconds(now, usual)) for _ in range(2)]
        mine, before = (min(column) for column in zip(*pairs, strict=True))
        if mine > _GAIN * before:
            return AS_IT_IS
    return measured


def _seconds_of_one(trial: _Trial) -> float:
    """Seconds of a pass per image, as far as they are known."""
    known = seconds_per_image(trial.model, trial.x.shape[1:]) or 0.0
    return known * (_BACKWARD_COST if trial.backward else 1)


def _best_rows(trial: _Trial, form: _Form, middle: int, seconds: float, until: float) -> tuple[int, float]:
    """Double the images per pass while that is faster, and halve them; return the best number."""
    most = max(pass_rows(trial.model, trial.x.shape, backward=trial.backward), 4 if trial.backward else 8)
    times = {middle: seconds}
    for factor in (2.0, 0.5):
        rows = int(middle * factor)
        while 1 <= rows <= most and time.perf_counter() < until:
            times[rows] = min(trial.seconds(form, rows) for _ in range(_ROUNDS))
            times[middle] = min(times[middle], trial.seconds(form, middle))
            if times[rows] >= min(times.values()) * (2 - _WORTH_IT):
                break
            rows = int(rows * factor)
    best = min(times, key=lambda rows: times[rows])
    return best, times[best]


def _with_compilation(trial: _Trial, plan: PassPlan, wanted: ExecutionSettings, work: float) -> PassPlan:
    """Return the plan compiled, if that is asked for or pays, and is faster."""
    if trial.backward:
        return plan
    gain = (1 - _COMPILED_SHARE) * work
    if wanted.compile != True and gain < 2 * compile_seconds(trial.model):  # noqa: E712 - "auto" is true too
        return plan
    unfolded = replace(plan, compiled=True, layout="contiguous")
    forms = (trial.form(option) for option in (replace(unfolded, folded=True), unfolded))
    form, plain = next(filter(None, forms), None), trial.form(plan)
    if form is None or plain is None:
        return plan
    times = [(trial.seconds(form, plan.rows), trial.seconds(plain, plan.rows)) for _ in range(_ROUNDS)]
    mine, other = (min(column) for column in zip(*times, strict=True))
    return replace(form.plan, milliseconds=round(1000 * mine, 3)) if mine < _WORTH_IT * other else plan


def same_logits(logits: Tensor, expected: Tensor) -> bool:
    """Whether logits are equal up to `TOLERANCE`; NaN equals NaN."""
    if logits.shape != expected.shape:
        return False
    size = expected[expected.isfinite()].abs()
    scale = max(1.0, float(size.max())) if len(size) else 1.0
    return torch.allclose(logits, expected.to(logits.dtype), rtol=0.0, atol=TOLERANCE * scale, equal_nan=True)


def _fitted(x: Tensor, rows: int, few: Tensor) -> Tensor:
    """The first `rows` images, repeated where there are fewer, where the model is."""
    index = torch.arange(rows) % len(x)
    return x[index.to(x.device)].to(few.device, few.dtype)


def _may_copy(model: nn.Module) -> bool:
    """Whether a copy can stand for the model, as far as that can be seen without running it."""
    if found_fault(model) == "coupled" or _has_hooks(model) or dtype_of(model) != torch.float32:
        return False
    if any(each.layout is not torch.strided for each in (*model.parameters(), *model.buffers())):
        return False
    if hidden_part(model) is not None:
        return False
    return not any(isinstance(module, DataParallel | DistributedDataParallel) for module in model.modules())


def _has_hooks(model: nn.Module) -> bool:
    """Whether somebody looks into the model as it runs."""
    if nn.modules.module._has_any_global_hook():
        return True
    return any(getattr(module, name) for module in model.modules() for name in HOOKS)


def _weights(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """Where the parameters and buffers are, and how often each was changed in place."""
    return tuple((each.data_ptr(), each._version) for each in (*model.parameters(), *model.buffers()))


def weights_digest(model: nn.Module) -> tuple[int, ...]:
    """Return a checksum of each parameter and buffer, so that a change through `.data` is seen too.

    `torch.hash_tensor` will not do: it adds up bits modulo 2, so that twice the weights often have its value.
    """
    tensors = (*model.parameters(), *model.buffers())
    return tuple(_checksum(each) for each in tensors if each.is_floating_point())


def _checksum(tensor: Tensor) -> int:
    dense = tensor if tensor.layout is torch.strided else tensor.to_dense()
    values = dense.detach().cpu().contiguous().flatten()
    return zlib.crc32(values.view(torch.uint8).numpy().data)


def _plain_attributes(model: nn.Module) -> list[Any]:
    """Numbers and text among the attributes of all modules, also in containers and objects, and checksums."""
    attributes = [
        (name, _plain(value, _DEPTH))
        for module in model.modules()
        for name, value in vars(module).items()
        if name not in _OF_TORCH
    ]
    return attributes + [(name, _checksum(each)) for name, each in model.named_buffers()]


_DEPTH = 3  # of objects in attributes
_OF_TORCH = vars(nn.Module()).keys()


def _plain(value: Any, depth: int) -> Any:
    """The numbers and text in an attribute; of modules and functions, their type alone."""
    if value is None or isinstance(value, int | float | str):
        return value
    kind = type(value).__qualname__
    if isinstance(value, Tensor):
        return kind if value.is_quantized or value.is_meta else _checksum(value)
    if depth == 0 or callable(value):
        return kind
    if isinstance(value, dict):
        return [kind, *((str(key), _plain(each, depth - 1)) for key, each in value.items())]
    if isinstance(value, list | tuple | set | frozenset):
        return [kind, *(_plain(each, depth - 1) for each in value)]
    return [kind, *((key, _plain(each, depth - 1)) for key, each in getattr(value, "__dict__", {}).items())]


def _plan_key(
    model: nn.Module,
    x: Tensor,
    backward: bool,
    wanted: ExecutionSettings,
    own: tuple[int, Layout] | None = None,
) -> str:
    """The hash of what the speed of passes depends on: structure, shape, device, threads and settings."""
    structure = [
        (name, type(module).__qualname__, [(*each.shape,) for each in module.parameters(recurse=False)])
        for name, module in model.named_modules()
    ]
    device = device_of(model)
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    facts = [structure, list(x.shape[1:]), kind, machine(), backward, wanted.compile, wanted.dtype]
    return fingerprint(*facts, *([] if own is None else [list(own)]))


_logged: set[str] = set()


def _say(model: nn.Module, message: str) -> None:
    line = f"{type(model).__name__} {message}"
    if line not in _logged:
        _logged.add(line)
        announce(line)
