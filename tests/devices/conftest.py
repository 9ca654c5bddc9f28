"""A pretend accelerator: its tensors are on the CPU, and refuse what tensors of a GPU refuse."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from saliency_lab._common import inference
from saliency_lab.data import LabelledImages

aten = torch.ops.aten
KIND = "lazy"  # torch knows it, needs no driver, and runs its backward passes in the calling thread
_MOVES = {aten.copy_.default, aten._to_copy.default}
_INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Elsewhere(Tensor):
    """A tensor that says it is on the pretend device; `held` is what it holds, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(KIND, 0),
        )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Elsewhere({self.held!r})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raise AssertionError("the pretend device is off")


class PretendDevice(TorchDispatchMode):
    """While it is on, tensors can be moved to the device, and made and worked with there."""

    def __init__(self, *, has_float64: bool) -> None:
        super().__init__()
        self.has_float64 = has_float64

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        tensors = [each for each in tree_leaves((args, given)) if isinstance(each, Tensor)]
        there = any(isinstance(each, Elsewhere) for each in tensors)
        wanted = torch.device(given["device"]).type if given.get("device") is not None else None
        if not there and wanted != KIND:
            return func(*args, **given)
        _refuse_a_mixture(func, args, tensors)
        if wanted is not None:
            given["device"] = torch.device("cpu")
        stays = wanted == KIND if wanted is not None else there
        if stays and given.get("generator") is not None:
            raise RuntimeError(f"Expected a '{KIND}' device type for generator but found 'cpu'")
        out = func(*tree_map(_held, args), **tree_map(_held, given))
        if func is aten.copy_.default:
            return args[0]
        if not stays or func is aten._local_scalar_dense.default:
            return out
        out = tree_map(self._moved, out)
        return return_and_correct_aliasing(func, args, given, out) if there else out

    def _moved(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.dtype == torch.float64 and not self.has_float64:
            raise TypeError("Cannot convert to float64 as the device doesn't support it")
        return Elsewhere(value)


class _MadeElsewhere(TorchFunctionMode):
    """Make tensors of Python's numbers on the CPU and move them: torch does not ask a mode about that."""

    def __torch_function__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func not in (torch.tensor, torch.as_tensor) or given.get("device") is None:
            return func(*args, **given)
        where = given.pop("device")
        return func(*args, **given).to(where)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


def _refuse_a_mixture(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Raise as torch does.

    A number (of no dimension) may be an operand beside what is elsewhere, but not be written to, nor stand
    beside it in a list; indices of what is elsewhere may be here.
    """
    strict: Sequence[Any] = ()  # where also a number must be elsewhere
    if isinstance(args[0], list | tuple):
        strict = args[0]
    elif func._schema.name.endswith("_"):
        strict = args[:1]
    here = [each for each in tensors if not isinstance(each, Elsewhere)]
    here = [each for each in here if each.ndim or any(each is other for other in strict)]
    indexes = func in _INDEXES and isinstance(args[0], Elsewhere)
    values_here = indexes and len(args) > 2 and any(each is args[2] for each in here)
    if here and func not in _MOVES and (not indexes or values_here):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {KIND} and cpu! ({func})"
        )


@pytest.fixture(params=["float64", "no float64"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The pretend device: as CUDA's, and as Apple's, which has no float64."""
    has_float64 = request.param == "float64"
    if not has_float64:
        monkeypatch.setattr(inference, "_WITHOUT_FLOAT64", frozenset({KIND}))
    # tensors made in inference mode have no version, which a tensor that holds another asks for
    monkeypatch.setattr(
        torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else contextlib.nullcontext()
    )
    # moving a network keeps its parameters the same objects, as an optimiser relies on
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    with PretendDevice(has_float64=has_float64), _MadeElsewhere():
        yield torch.device(KIND, 0)


@pytest.fixture(scope="session")
def few(digits_sample: LabelledImages) -> LabelledImages:
    """Four digits."""
    x, y = digits_sample
    return LabelledImages(x[:4], y[:4])


@pytest.fixture
def same(trained: nn.Module, device: torch.device) -> Callable[[Callable[[nn.Module], Any]], None]:
    """Check that a function of a network returns the same numbers for the network on the device."""

    def check(compute: Callable[[nn.Module], Any]) -> None:
        expected = compute(trained)
        got = compute(copy.deepcopy(trained).to(device))
        torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(expected), equal_nan=True)

    return check
