"""Checkpoints by folder, also of a user's own architecture."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

from saliency_lab._common.plugins import import_module
from saliency_lab.models import load_model, read_card


def load_checkpoint(path: Path) -> nn.Module:
    """Load a checkpoint; a network that its recipe names as `module:attribute` is imported.

    Raises
    ------
    CheckpointError, InputError
        If there is no checkpoint, or what the recipe names is no network.
    """
    name = (read_card(path).recipe or {}).get("model", {}).get("name", "")
    return load_model(path, model=copy.deepcopy(import_module(name)) if ":" in name else None)
