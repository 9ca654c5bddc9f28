"""Copy a model, also one that keeps tensors of its last forward pass."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

from saliency_lab._common.calls import tensors_in
from saliency_lab._common.errors import InputError

M = TypeVar("M", bound=nn.Module)


def copy_model(model: M) -> M:
    """Return a deep copy of `model`, in which tensors with a gradient history are detached.

    Such tensors are left by a forward pass, for example of the older `torch.nn.utils.weight_norm`, and make
    `copy.deepcopy` fail. A model that cannot be copied is an InputError.

    >>> import torch
    >>> net = nn.utils.weight_norm(nn.Linear(3, 2))
    >>> logits = net(torch.ones(1, 3))
    >>> torch.equal(copy_model(net)(torch.ones(1, 3)), logits)
    True
    """
    memo = {
        id(tensor): tensor.detach().clone()
        for module in model.modules()
        for tensor in tensors_in(vars(module))  # modules and parameters are left to `deepcopy`
        if not tensor.is_leaf
    }
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{type(model).__name__} cannot be copied{_culprit(model)}: {error}") from error


def _culprit(model: nn.Module) -> str:
    """Name the attribute that cannot be copied, such as a lock or an open file."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if not attribute.startswith("_") or attribute not in vars(nn.Module()):
                try:
                    copy.deepcopy(value)
                except Exception:
                    return f", because of its attribute '{f'{name}.{attribute}'.removeprefix('.')}'"
    return ""


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by name: also the buffers that a state_dict leaves out, and a tensor
    that two modules share under both names.
    """
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
