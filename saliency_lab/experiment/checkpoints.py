"""Checkpoints by folder, also of a user's own architecture."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from saliency_lab._common.plugins import import_module
from saliency_lab.models import load_model, read_card


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> nn.Module:
    """Load a checkpoint; a network that its recipe names as `module:attribute` is imported.

    Raises
    ------
    CheckpointError, InputError
        If there is no checkpoint, what the recipe names is no network, or the device is not here.
    """
    name = (read_card(path).recipe or {}).get("model", {}).get("name", "")
    return load_model(path, device, model=copy.deepcopy(import_module(name)) if ":" in name else None)
