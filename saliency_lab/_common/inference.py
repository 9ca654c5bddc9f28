"""Use a model without changing it: eval mode, no parameter gradients, batches cut into chunks."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils.checkpoint import CheckpointError

from saliency_lab._common.calls import hidden_part
from saliency_lab._common.checks import check_logits
from saliency_lab._common.errors import InputError, SaliencyLabError
from saliency_lab._common.memory import raise_mmap_threshold
from saliency_lab._common.seeding import preserved_rng
from saliency_lab._common.threads import SharedState, in_this_thread
from saliency_lab._common.warn import warn


def check_module(model: object, name: str = "the model") -> None:
    """Check that `model` is a torch module.

    Raises
    ------
    InputError
        If it is not; the message calls it `name`.
    """
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise InputError(f"{name} must be a torch.nn.Module, not {what}")
    if isinstance(model, nn.ModuleList | nn.ModuleDict | nn.ParameterList | nn.ParameterDict):
        raise InputError(
            f"{name} must be a network, not a {type(model).__name__}, which only holds modules and computes "
            "nothing; give one module, or wrap them in nn.Sequential"
        )


def check_ready(model: nn.Module) -> None:
    """Refuse a model whose weights have no values yet, or that torch.export or inference mode made.

    Raises
    ------
    InputError
        Says what to do.
    """
    graphs = [module for module in model.modules() if isinstance(module, torch.fx.GraphModule)]
    if any("eval" in vars(graph) for graph in graphs):  # replaced by torch.export
        raise InputError(
            f"{type(model).__name__} is the module of an exported program, which cannot be put into eval "
            "mode; pass the module that it was made from"
        )
    tensors = [*model.parameters(), *model.buffers()]
    if any(is_lazy(tensor) for tensor in tensors):
        raise InputError(
            f"{type(model).__name__} has lazy modules, whose weights its first pass creates; run it once, as "
            "in model(x[:1]), and then train it or load its weights"
        )
    if any(tensor.is_meta for tensor in tensors):
        raise InputError(
            f"{type(model).__name__} has weights on the device meta, which have a shape and no values; make "
            "room for them, model.to_empty(device='cpu'), and load their values, or make the model outside "
            "torch.device('meta')"
        )
    if any(tensor.is_inference() for tensor in tensors):
        raise InputError(
            f"{type(model).__name__} was made under torch.inference_mode, so it has no gradients; make or "
            "load it outside"
        )


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[nn.Module]:
    """Yield `model` in eval mode with parameters that take no gradient; restore both on leaving.

    Every module's own `training` flag and every parameter's `requires_grad` are restored, also after an
    exception; if several threads use the model, when the last of them leaves. Inputs may still take gradients
    inside. A model whose batch normalisation looks at the batch also in eval mode is warned about.

    Raises
    ------
    InputError
        If `model` is no torch module, has lazy modules that never ran, or was made under
        `torch.inference_mode`.
    """
    check_module(model)
    check_ready(model)
    raise_mmap_threshold()
    if any(isinstance(each, _BatchNorm) and each.running_mean is None for each in model.modules()):
        warn(
            f"{type(model).__name__} has batch normalisation without running statistics, so what it says of "
            "an image depends on the others of its pass, and so does every result here; let it track them "
            "(track_running_stats=True) and train it again, or use another normalisation",
        )
    with _MODELS.changed(lambda: _flags(model), lambda: _switch_off(model), _restore_flag):
        yield model


_MODELS = SharedState()


def _flags(model: nn.Module) -> dict[nn.Module | nn.Parameter, bool]:
    # a frozen TorchScript module has no mode
    modes = {module: module.training for module in model.modules() if hasattr(module, "training")}
    return modes | {parameter: parameter.requires_grad for parameter in model.parameters()}


def _switch_off(model: nn.Module) -> None:
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def _restore_flag(part: nn.Module | nn.Parameter, flag: bool) -> None:
    if isinstance(part, nn.Module):
        if part.training != flag and type(part).train is not nn.Module.train:
            part.train(flag)  # such as an adapter that merges its weights in eval mode
        part.training = flag
    else:
        part.requires_grad_(flag)


HALF = (torch.bfloat16, torch.float16)
"""Types in which differences of outputs, squares of gradients and stabilisers round to zero."""


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Run a model of half precision in float32 inside, with the same weights; put its own tensors back.

    Parameters and buffers stay the same objects. Models of other precisions are left as they are.

    Raises
    ------
    InputError
        If the model's forward computes in half precision whatever the type of its weights.
    """
    check_module(model)
    given = dtype_of(model)
    with _PRECISIONS.changed(lambda: _data(model), lambda: _widen(model), _put_back):
        try:
            yield
        except (RuntimeError, InputError) as error:
            if "the same dtype" not in f"{error}" or (isinstance(error, InputError) and given not in HALF):
                raise
            why = f", because {given} rounds small differences away" if given in HALF else ""
            raise InputError(
                f"{type(model).__name__} is run in float32 with its own weights{why}, but its forward "
                f"converts to another type ({error}); take that out of it"
            ) from error


_PRECISIONS = SharedState()


def _data(model: nn.Module) -> dict[Any, Any]:
    """Return the data of each tensor, and the type of each buffer by its owner and name.

    A forward may replace a buffer by a new tensor.
    """
    buffers = {
        (module, name): buffer.dtype
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    }
    return {tensor: tensor.data for tensor in (*model.parameters(), *model.buffers())} | buffers


def _widen(model: nn.Module) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in HALF:
            tensor.data = tensor.data.float()


def _put_back(part: Tensor | tuple[nn.Module, str], found: Any) -> None:
    if isinstance(part, Tensor):
        if part.dtype != found.dtype:
            part.data = found
        return
    module, name = part
    buffer = dict(module.named_buffers(recurse=False)).get(name)  # a scripted one's `_buffers` has no get
    if buffer is not None and buffer.dtype != found and found in HALF:
        setattr(module, name, buffer.to(found))


@contextmanager
def gradients_recorded() -> Iterator[None]:
    """Record gradients inside, in the model's own precision, whatever the caller's contexts are.

    These are `torch.no_grad`, `torch.inference_mode` and `torch.autocast`.
    """
    with torch.inference_mode(False), torch.enable_grad(), without_autocast():
        yield


@contextmanager
def without_autocast() -> Iterator[None]:
    """Compute inside without `torch.autocast`, also where the caller is under it."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def check_signature(model: nn.Module) -> None:
    """Refuse a model whose forward needs more than the images.

    Raises
    ------
    InputError
        Names what else it needs.
    """
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [each.name for each in parameters if each.default is each.empty and each.kind not in variable]
    needed = needed[1:]  # the first is the images
    if needed:
        raise InputError(
            f"the forward of {type(model).__name__} needs more than images: {', '.join(needed)}; wrap it in "
            f"a module that supplies the rest, whose forward returns model(x, {', '.join(needed)})"
        )


def check_classifier(model: nn.Module, x: Tensor, *, random: bool = False) -> Tensor:
    """Run the first two of the images, and return their logits (n, K), on the CPU.

    Every entry point that takes a model calls it. The first time that it sees a model it also runs one of the
    images alone, and warns if the model's logits for an image depend on the rest of the batch, or change from
    pass to pass; not if the caller expects a `random` model.

    Raises
    ------
    InputError
        If the model needs more than images, does not take these, or does not return logits of two classes
        or more.
    """
    check_signature(model)
    with (
        without_autocast(),
        torch.inference_mode(False),
        torch.no_grad(),
        translate_model_errors(model, x),
        undisturbed(model),
    ):
        few = x[:2].detach().to(device_of(model), dtype_of(model, x.dtype), copy=True)
        now = pass_clock(few.device)
        began = now()
        with _activations_noted(model, few):
            logits = check_logits(run_without_graph(model, few.clone()), len(few)).cpu()
        _note_seconds(model, few, now() - began)
    if not random:
        _warn_of_fault(model, few, logits)
    return logits


def pass_clock(device: torch.device) -> Callable[[], float]:
    """Return the clock of passes on a device, in seconds.

    Of one thread on the CPU it is the processor time, which other processes do not change. On CUDA it waits
    for the passes before.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.thread_time
    if device.type != "cuda":
        return time.perf_counter

    def wait_and_read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return wait_and_read


_SECONDS: WeakKeyDictionary[nn.Module, dict[torch.Size, float]] = WeakKeyDictionary()


def _note_seconds(model: nn.Module, images: Tensor, seconds: float) -> None:
    """Remember the shortest time per image that a forward pass took."""
    known = _SECONDS.setdefault(model, {})
    shape = images.shape[1:]
    known[shape] = min(known.get(shape, float("inf")), seconds / len(images))


def seconds_per_image(model: nn.Module, shape: torch.Size) -> float | None:
    """Return the shortest time per image (C, H, W) of the passes that checks made, or None before the first.

    A first pass is slow, so this is an estimate from above.
    """
    return _SECONDS.get(model, {}).get(shape)


@contextmanager
def attention_differentiable_twice() -> Iterator[None]:
    """Compute attention inside with the one kernel of torch that is differentiable twice."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def translate_missing_derivatives(error: type[SaliencyLabError]) -> Iterator[None]:
    """Raise `error` inside where torch reports that an operation is not differentiable twice."""
    try:
        yield
    except RuntimeError as problem:
        match = re.search(r"derivative for aten::(\w+?)(_backward)? is not implemented", f"{problem}")
        if match is None:
            raise
        raise error(
            f"the gradient is differentiated here, and torch cannot differentiate that of '{match[1]}'; let "
            "the model use other operations in its place, such as relu6(x + 3) / 6 for hardsigmoid(x)"
        ) from problem


def no_gradient(model: nn.Module) -> InputError:
    """Return the error for a model whose logits have no gradient at the image."""
    return InputError(
        f"the logits of {type(model).__name__} have no gradient at the image (does its forward detach it, or "
        "run under no_grad?); use a method that needs none, such as 'occlusion' or 'rise'"
    )


_SHAPE_ERRORS = (RuntimeError, ValueError, AssertionError, TypeError)
"""What models raise when they are given images that they were not made for."""


@contextmanager
def translate_model_errors(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Turn an error inside into an `InputError` if the model alone fails on the first of these images.

    The model is run only after an error: forward, and then back to the image unless the caller has disabled
    gradients. Any other error is raised unchanged.
    """
    try:
        yield
    except (SaliencyLabError, torch.OutOfMemoryError):
        raise
    except CheckpointError as error:
        raise InputError(
            f"{type(model).__name__} computes parts of its forward pass a second time (activation "
            "checkpointing), which this method cannot follow; turn it off, for example by "
            "gradient_checkpointing_disable() or memory_efficient=False"
        ) from error
    except Exception as error:
        image = x[:1].detach().to(device_of(model), dtype_of(model, x.dtype), copy=True)
        name = type(model).__name__
        if isinstance(error, _SHAPE_ERRORS):
            try:
                with undisturbed(model):
                    run_without_graph(model, image)
            except _SHAPE_ERRORS as problem:
                reason = _first_line(problem) or type(problem).__name__
                if _takes_together(model, x):
                    raise InputError(
                        f"{name} takes these {len(x)} images together and not one alone ({reason}), but "
                        "passes here have other numbers of images; let its forward take any number, by -1 in "
                        "place of the size of the batch in view and reshape"
                    ) from problem
                raise InputError(
                    f"{name} does not take images of shape {tuple(x.shape[1:])} (C, H, W): {reason}, given "
                    "one image"
                ) from problem
        if torch.is_grad_enabled():
            with undisturbed(model):
                backward = _backward_problem(model, image)
            if backward is not None and type(backward) is type(error):
                raise InputError(
                    f"{name} cannot be differentiated with respect to its images "
                    f"({type(backward).__name__}: {_first_line(backward)}); use what only evaluates it, such "
                    "as the method 'occlusion' or the attack 'square'"
                ) from backward
        raise


def _takes_together(model: nn.Module, x: Tensor) -> bool:
    """Whether a model that fails on one image runs on all of them, where these are few enough for a pass."""
    if not 1 < len(x) <= chunk_rows(x.shape, device_of(model)):
        return False
    try:
        with undisturbed(model):
            run_without_graph(model, x.detach().to(device_of(model), dtype_of(model, x.dtype), copy=True))
    except _SHAPE_ERRORS:
        return False
    return True


def _backward_problem(model: nn.Module, image: Tensor) -> Exception | None:
    """Return what the model raises on the way forward and back to one image, but not without gradients."""
    try:
        run_without_graph(model, image)
    except Exception:  # a bug of the model, which has nothing to do with gradients
        return None
    try:
        point = image.requires_grad_()
        value = model(point).sum()
        if value.requires_grad:
            torch.autograd.grad(value, point, allow_unused=True)
    except Exception as problem:  # whatever a model of a user raises
        return problem
    return None


def _first_line(error: Exception) -> str:
    return f"{error}".partition("\n")[0]


def check_input_kept(model: nn.Module, x: Tensor) -> None:
    """Run the model on one image and check that the image is not written to, even with its own values.

    Raises
    ------
    InputError
        If the model changes its input in place.
    """
    with undisturbed(model), torch.inference_mode(False), torch.no_grad():
        image = x[:1].detach().to(device_of(model), copy=True)
        before, version = image.clone(), image._version
        run_without_graph(model, image)
    if image._version != version or not torch.equal(image, before):
        raise InputError(
            f"{type(model).__name__} changes its input in place, so results would belong to another image "
            "than the one given; let its forward begin with x = x.clone(), or its first layer be one with "
            "inplace=False"
        )


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters and buffers (the CPU if it has neither).

    Raises
    ------
    InputError
        If `model` is no torch module, or spread over several devices.
    """
    check_module(model)
    devices = dict.fromkeys(tensor.device for tensor in (*model.parameters(), *model.buffers()))
    if len(devices) > 1:
        raise InputError(
            f"{type(model).__name__} is spread over {', '.join(map(str, devices))}; move it to one device, "
            f"such as model.to('{next(iter(devices))}')"
        )
    return next(iter(devices), torch.device("cpu"))


def named_device(name: str | torch.device) -> torch.device:
    """Return the device of this name; "auto" is CUDA if there is a GPU, else the CPU.

    >>> named_device("cpu")
    device(type='cpu')

    Raises
    ------
    InputError
        If torch knows no such device, or it is not here.
    """
    if not isinstance(name, str | torch.device):
        raise InputError(
            f"device must be a name, such as 'cpu' or 'cuda', or a torch.device, not {name!r:.80}"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device '{name}'; known: auto, cpu, cuda, cuda:0, cuda:1, …, mps") from None
    try:
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = f"{error}".partition("\n")[0]
        raise InputError(f"there is no device '{name}' here ({reason}); cpu always works") from None
    return device


_WITHOUT_FLOAT64 = frozenset({"mps"})


def float64_device(device: torch.device) -> torch.device:
    """Return the device for float64 work on tensors of `device`: the CPU if that has no float64.

    >>> float64_device(torch.device("cuda", 0)), float64_device(torch.device("mps"))
    (device(type='cuda', index=0), device(type='cpu'))
    """
    return torch.device("cpu") if device.type in _WITHOUT_FLOAT64 else device


def dtype_of(model: nn.Module, otherwise: torch.dtype = torch.float32) -> torch.dtype:
    """Return the model's floating-point type; `otherwise` for a model without parameters.

    Raises
    ------
    InputError
        If `model` is no torch module.
    """
    check_module(model)
    return next((each.dtype for each in model.parameters() if each.is_floating_point()), otherwise)


def chunk_rows(shape: torch.Size | tuple[int, ...], device: torch.device) -> int:
    """Return how many images of `shape` (..., C, H, W) a forward chunk holds on a device.

    On the CPU a chunk holds 128 images up to 56×56, and 8 images of 224×224; on other devices 512 and 32, so
    that the backward pass of a ResNet-50 fits into 4 GB.

    >>> chunk_rows((3, 224, 224), torch.device("cpu")), chunk_rows((3, 224, 224), torch.device("cuda"))
    (8, 32)
    """
    pixels = shape[-1] * shape[-2]
    most, pixels_per_chunk = (128, 8 * 224**2) if device.type == "cpu" else (512, 32 * 224**2)
    return max(1, min(most, pixels_per_chunk // pixels))


_ACTIVATION_BYTES: WeakKeyDictionary[nn.Module, dict[torch.Size, float]] = WeakKeyDictionary()
"""Size of what all layers return for one image, by its shape."""
_BYTES_PER_PASS = 256 << 20
_FEW = 32


def pass_rows(model: nn.Module, shape: torch.Size, *, backward: bool) -> int:
    """Return how many images of `shape` (..., C, H, W) a pass has: half as many where it also goes back.

    A pass has at most a chunk. On the CPU it has only so many images that the outputs of all layers take
    256 MiB, but no fewer than 32 for that reason, because passes that leave the caches are slower: a
    ResNet-18 at 32×32 takes 1.5 times as long per image in passes of 128. `benchmarks/passes.py` compares
    these numbers with the best ones.
    """
    device = device_of(model)
    rows = chunk_rows(shape, device)
    size = _ACTIVATION_BYTES.get(model, {}).get(shape[-3:])
    if size and device.type == "cpu":
        rows = min(rows, max(_FEW, int(_BYTES_PER_PASS / size) // 8 * 8))
    return max(1, rows // 2) if backward else rows


@contextmanager
def _activations_noted(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Note the size of what the layers of a model return for images (N, C, H, W) inside, once per model.

    A layer with weights of float32 that returns half precision, as under `torch.autocast` inside of the
    forward, is warned about.
    """
    known = _ACTIVATION_BYTES.setdefault(model, {})
    shape = images.shape[1:]
    if shape in known or hidden_part(model) is not None:
        yield
        return
    size, rounded = 0.0, None

    def add(layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        nonlocal size, rounded
        if isinstance(output, Tensor):
            size += output.numel() * output.element_size() / len(images)
            weight = next(layer.parameters(), output)
            rounded = output.dtype if output.dtype in HALF and weight.dtype not in HALF else rounded

    with ExitStack() as hooks:
        for module in model.modules():
            if next(module.children(), None) is None:
                hooks.enter_context(module.register_forward_hook(in_this_thread(add)))
        yield
    if rounded is not None and not known:
        warn(
            f"the forward of {type(model).__name__} computes in {str(rounded).removeprefix('torch.')}, as "
            "under torch.autocast, although its weights are float32. That rounds small differences of its "
            "outputs away, which maps and scores are made of; take it out of the forward"
        )
    known[shape] = size


def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Compute the logits (N, K) of `x` (N, C, H, W) in chunks on the model's device; return them on the CPU.

    Raises
    ------
    InputError
        If the model does not return one row of logits per image.
    """
    device = device_of(model)
    with without_autocast(), undisturbed(model), torch.inference_mode(False), torch.no_grad():
        chunks = x.split(chunk_rows(x.shape, device))
        rows = [
            check_logits(run_without_graph(model, chunk.to(device, copy=True)), len(chunk))
            for chunk in chunks
        ]
        return torch.cat([row.float().cpu() for row in rows])


_NOTHING_TO_DIFFERENTIATE = "does not require grad"  # in torch's message, where no graph was recorded


def run_without_graph(model: nn.Module, images: Tensor) -> Tensor:
    """Run one forward pass without a graph; a model that differentiates inside its own pass is given one.

    Such a model (an anti-adversary layer, test-time optimisation of the image) may call
    `torch.enable_grad` itself, or rely on the caller to record gradients.
    """
    try:
        with torch.no_grad():
            output: Tensor = model(images)
            return output
    except RuntimeError as error:
        if _NOTHING_TO_DIFFERENTIATE not in f"{error}":
            raise
    with torch.enable_grad():
        output = model(images)
        return output.detach() if isinstance(output, Tensor) else output


Fault = Literal["random", "coupled"]
"""Logits for an image change from pass to pass, or with the other images of the batch."""

_FAULTS: WeakKeyDictionary[nn.Module, Fault | None] = WeakKeyDictionary()


def found_fault(model: nn.Module) -> Fault | None:
    """Return the fault that `check_classifier` found in the model, if any."""
    return _FAULTS.get(model)


_SEEDS = range(8)
"""A network that chooses one of two branches at random does so alike under all of them once in 128 times."""


def any_differ(compute: Callable[[], Tensor], same: Callable[[Tensor, Tensor], bool]) -> bool:
    """Whether what `compute` returns changes with the seed of the global generators."""
    first: Tensor | None = None
    for seed in _SEEDS:
        with preserved_rng(seed):
            now = compute()
        if first is not None and not same(first, now):
            return True
        first = now if first is None else first
    return False


def depends_on_batch(model: nn.Module, x: Tensor, logits: Tensor) -> bool:
    """Whether the model's logits for an image change with the other images of its batch.

    `logits` (N, K) were computed for all of `x` by `predict`. With one image there is nothing to compare.
    """
    return len(x) > 1 and _find_fault(model, x, logits) == "coupled"


def _find_fault(model: nn.Module, x: Tensor, logits: Tensor) -> Fault | None:
    """Run one image alone, and compare its logits with its row of `logits` (N, K), those of all of `x`.

    Where they differ, the image is run again under several seeds, which tells a random model.
    """
    with preserved_rng(1):  # other draws than the first time
        now = pass_clock(device_of(model))
        began = now()
        alone = predict(model, x[-1:])[0]
        _note_seconds(model, x[-1:], now() - began)
        together = logits[-1].float().cpu()
        span = (together.amax() - together.amin()).clamp_min(torch.finfo(together.dtype).tiny)

        def same(first: Tensor, second: Tensor) -> bool:
            return not (first - second).abs().amax() > 1e-3 * span

        if same(alone, together):
            return None
        if any_differ(lambda: predict(model, x[-1:])[0], same):
            return "random"
        return "coupled" if len(x) > 1 else None


def _warn_of_fault(model: nn.Module, x: Tensor, logits: Tensor) -> None:
    """Warn, once per model, if its logits for an image change from pass to pass, or with the batch."""
    if model in _FAULTS:
        return
    _FAULTS[model] = fault = _find_fault(model, x, logits)
    if fault == "coupled":
        warn(
            f"{type(model).__name__} returns other logits for an image alone than for the same image in a "
            "batch, so every result here depends on how images are grouped; let batch normalisation use its "
            "running statistics, and turn off adaptation at test time",
        )
    elif fault == "random":
        warn(
            f"{type(model).__name__} is random in eval mode: it returns other logits for the same image in "
            "another pass, so maps and scores depend on the draws; a forward that calls F.dropout needs "
            "training=self.training. If the model is meant to be random, attack it with samples=20",
        )
