"""Checkpoints by folder, also of custom architectures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from saliency_lab.models import load_model, read_card
from saliency_lab.models.catalogue import ARCHITECTURES, is_custom


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> nn.Module:
    """Load a checkpoint; a custom model that its recipe names as `module:attribute` is imported.

    The card of a built-in architecture never imports anything, whatever its recipe says.

    Raises
    ------
    CheckpointError, InputError
        If there is no checkpoint, what the recipe names is no network, or the device is not here.
    """
    card = read_card(path)
    name = (card.recipe or {}).get("model", {}).get("name", "")
    own = None
    if ":" in name and is_custom(card.architecture):
        own = ARCHITECTURES[name](card.num_classes or 0, card.input_shape or (0, 0, 0))
    return load_model(path, device, model=own)
