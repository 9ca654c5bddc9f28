"""Architectures by name; the normalisation lives inside the model; saving and loading."""

from saliency_lab.models.catalogue import build_model, list_models
from saliency_lab.models.layers import Normalised, cam_layer

__all__ = ["Normalised", "build_model", "cam_layer", "list_models"]
