"""Models of RobustBench, loaded as its users load them."""

from __future__ import annotations

from torch import nn

from saliency_lab._common.errors import InputError

PREFIX = "robustbench/"


def load_robustbench(name: str) -> nn.Module:
    """Load "robustbench/DATASET/THREAT/MODEL", such as "robustbench/cifar10/Linf/Carmon2019Unlabeled".

    The model takes images in [0, 1] and returns logits, as RobustBench asks of its entries.

    Raises
    ------
    InputError
        If the name has other parts, RobustBench is not installed, or has no such model.
    """
    parts = name.removeprefix(PREFIX).split("/")
    if len(parts) != 3 or not all(parts):
        raise InputError(
            f"'{name}' must be {PREFIX}DATASET/THREAT/MODEL, such as {PREFIX}cifar10/Linf/Carmon2019Unlabeled"
        )
    try:
        from robustbench.utils import load_model
    except ImportError as error:
        raise InputError(
            f"'{name}' needs the package robustbench ({error}); see github.com/RobustBench/robustbench"
        ) from None
    dataset, threat, model = parts
    try:
        net: nn.Module = load_model(model_name=model, dataset=dataset, threat_model=threat)
    except (KeyError, ValueError) as error:
        raise InputError(f"RobustBench has no model '{name}': {error}") from None
    return net.eval()
