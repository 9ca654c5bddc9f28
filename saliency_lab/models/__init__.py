"""Architectures by name; the normalisation lives inside the model; saving and loading."""

from saliency_lab.models.card import ModelCard, card_of
from saliency_lab.models.catalogue import build_model, list_models
from saliency_lab.models.checkpoint import list_zoo, load_model, read_card, save_model
from saliency_lab.models.layers import BinaryLogits, Normalised
from saliency_lab.models.pretrained import wrap

__all__ = [
    "BinaryLogits",
    "ModelCard",
    "Normalised",
    "build_model",
    "card_of",
    "list_models",
    "list_zoo",
    "load_model",
    "read_card",
    "save_model",
    "wrap",
]
