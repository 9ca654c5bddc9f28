"""State dicts from files and downloads: tensors only, never code."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from saliency_lab._common.errors import CheckpointError, InputError

DEFAULT = "DEFAULT"
"""The weights that a library calls its default ones."""

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
"""How files of torch.save end."""

State = dict[str, Tensor]


@contextmanager
def tensors_only() -> Iterator[None]:
    """Make torch.load refuse anything but tensors inside, whoever calls it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def read_state(path: str | Path) -> State:
    """Return the state dict in a .safetensors file, or in one of torch.save that holds nothing but tensors.

    A dict that holds it as "state_dict", "model_state_dict" or "model" is unwrapped.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, or holds something else.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"there is no file '{path}'; name the file that holds the state dict")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' cannot be read ({error}); fetch it again") from error
    except Exception as error:  # torch raises whatever it met
        if isinstance(error, pickle.UnpicklingError) and _is_of_torch_save(path):
            raise CheckpointError(
                f"'{path}' holds more than tensors, and reading that could run code of its author, so it is "
                "refused; save the state dict alone: torch.save(model.state_dict(), …), or "
                "safetensors.torch.save_file"
            ) from error
        raise CheckpointError(f"'{path}' is damaged or no file of torch.save; fetch it again") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(each, Tensor) for each in state.values())
    ):
        raise CheckpointError(
            f"'{path}' does not hold a state dict (names → tensors); save model.state_dict()"
        )
    return {str(key): value for key, value in state.items()}


def _is_of_torch_save(path: Path) -> bool:
    """Whether a file begins as those of torch.save do: as a zip archive, or before torch 1.6 as a pickle."""
    with path.open("rb") as file:
        return file.read(2).startswith((b"PK", b"\x80"))


def without_wrapper(state: State, own: Iterable[str]) -> State:
    """Remove the prefixes of wrappers from the names of a state dict, unless the network has them in `own`.

    They are those of DataParallel and torch.compile, and any other that all names share, such as "model." of
    Lightning, if the names without it are those of the network.
    """
    known = set(own)
    for prefix in ("module.", "_orig_mod.", "module."):
        if known.isdisjoint(state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    prefix = next(iter(state), "").partition(".")[0] + "."
    if set(state) == {prefix + key for key in known}:
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def misfit(error: RuntimeError) -> str:
    """Return what `load_state_dict` complains about, with three items of each list and its length."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
    lines = lines[1:] or lines  # the first only introduces the others
    complaints, sizes = [], []
    for line in lines:
        what, found, names = line.partition(" key(s) in state_dict: ")
        if found:  # sorted, because safetensors returns the names in any order
            complaints.append(what + found + _first_three(sorted(names.split(", ")), ", "))
        else:
            sizes.append(line)
    return ". ".join([*complaints, *([_first_three(sizes, "; ")] if sizes else [])])


def _first_three(items: Sequence[str], separator: str) -> str:
    more = [f"… ({len(items)} in all)"] if len(items) > 3 else []
    return separator.join([*items[:3], *more])


def serialised_weights(model: nn.Module) -> bytes:
    """Return the state of a model as the content of a .safetensors file.

    Raises
    ------
    InputError
        If it holds what is no tensor, as that of a quantised model does.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"the state of {type(model).__name__} holds '{name}', which is no tensor but a "
                f"{type(value).__name__}; a checkpoint holds tensors, so save the model this one was made "
                "from"
            )
    return serialise(
        {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in state.items()
        }
    )


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of the weights, as a card has it; nothing if they cannot be saved."""
    try:
        return hashlib.sha256(serialised_weights(model)).hexdigest()
    except InputError:
        return ""


def load_fitting(
    make: Callable[[int], nn.Module], state: State, name: str, path: str | Path, *, usual: int = 1000
) -> nn.Module:
    """The network with as many classes as the state dict has, and its weights."""
    with torch.device("meta"):
        outline = make(usual).state_dict()
    state = without_wrapper(state, outline)
    pairs = {
        (len(tensor), len(state[key]))
        for key, tensor in outline.items()
        if key in state and tensor.ndim and state[key].ndim == tensor.ndim and len(tensor) != len(state[key])
    }
    classes = pairs.pop()[1] if len(pairs) == 1 else usual
    net = make(classes)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"'{path}' holds the weights of another architecture than '{name}': {misfit(error)}. Name the "
            "network it was saved from, or make that and call load_model(FILE, model=my_module)."
        ) from None
    return net


@contextmanager
def explain_failed_download(
    name: str, source: str, cache: Path | None, *, folder: bool = False
) -> Iterator[None]:
    """Turn a failed download inside into an error that says which file to put where."""
    try:
        yield
    except (InputError, CheckpointError):
        raise
    except Exception as error:  # every library raises its own errors when there is no network or no such file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        file = source.rpartition("/")[2]
        if isinstance(error, pickle.UnpicklingError):
            if cache is None or _is_of_torch_save(cache / file):
                raise CheckpointError(
                    f"the weights of '{name}' hold more than tensors, and reading that could run code of "
                    "their author, so they are refused"
                ) from error
            reason = "the file is damaged or none of torch.save"
        if folder:
            advice = (
                f"copy the files of {source} (config.json, preprocessor_config.json, model.safetensors) into "
                "a folder and load 'hf/FOLDER'"
            )
        elif cache is not None:
            advice = f"fetch {source} elsewhere and copy it to '{cache / file}'"
        else:
            advice = f"fetch {source} elsewhere and pass weights='{file}'"
        raise CheckpointError(f"the weights of '{name}' could not be loaded ({reason}); {advice}") from error


def is_weights_file(weights: str | Path) -> bool:
    """Whether `weights` is a file by its name, rather than a name of a library's weights."""
    return isinstance(weights, Path) or Path(weights).suffix in (*PICKLED, ".safetensors")


def unknown_weights(weights: object, known: Sequence[str]) -> InputError:
    """Return the error for weights that are neither a file nor one of the library's names."""
    return InputError(
        f"weights={weights!r} is neither one of {', '.join(dict.fromkeys(known))} nor a file that ends with "
        f"{', '.join(PICKLED)} or .safetensors"
    )
