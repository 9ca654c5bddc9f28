"""Attention rollout: how attention mixes the patches of a vision transformer, layer upon layer."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from saliency_lab._common.errors import InputError
from saliency_lab._common.settings import Settings
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.calls import Call, Rule, check_visible
from saliency_lab.attribution.catalogue import Explained, method
from saliency_lab.attribution.layer import Interpolation, enlarge, patch_grid


class _Watch(Rule):
    """Keeps the attention weights (n, heads, T, T) of every self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is F.multi_head_attention_forward:
            told = {**kwargs, "need_weights": True, "average_attn_weights": False}
            output, weights = func(*args, **told)
            self.weights.append(weights)
            return output, weights if kwargs.get("need_weights", True) else None
        if func is F.scaled_dot_product_attention:
            query, key = args[:2]
            scale = kwargs.get("scale") or 1 / math.sqrt(query.shape[-1])
            self.weights.append((query @ key.transpose(-2, -1) * scale).softmax(-1))
        return func(*args, **kwargs)


class RolloutSettings(Settings):
    """`heads`: how a layer's heads become one; `residual`: the share of each token that skips attention."""

    heads: Literal["mean", "max", "min"] = "mean"
    residual: float = Field(0.5, ge=0, lt=1)
    interpolation: Interpolation = "bilinear"


@method(
    "attention_rollout",
    family="attention",
    passes="1 forward",
    reference="Abnar & Zuidema, ACL 2020",
    settings=RolloutSettings,
)
def attention_rollout(batch: Batch, settings: RolloutSettings) -> Explained:
    """The class token's row of Πₗ (r·I + (1 − r)·Aₗ), on the patches' grid; it does not depend on the class.

    Raises
    ------
    InputError
        If no self-attention over a grid of patches and one class token can be seen.
    """
    check_visible(batch.model, "attention_rollout")
    watch = _Watch()
    with torch.enable_grad(), watch:  # without gradients torch takes a path that hides the weights
        batch.model(batch.x.clone().requires_grad_(True))
    flow = None
    for weights in watch.weights:
        heads = weights.detach()
        joined = heads.mean(1) if settings.heads == "mean" else getattr(heads, f"a{settings.heads}")(1)
        eye = torch.eye(joined.shape[-1]).to(joined)
        mixed = settings.residual * eye + (1 - settings.residual) * joined
        mixed = mixed / mixed.sum(-1, keepdim=True)
        flow = mixed if flow is None else mixed @ flow
    grid = None if flow is None else patch_grid(flow.shape[-1] - 1, batch.x)
    if flow is None or grid is None:
        size = tuple(batch.x.shape[2:])
        tokens = "" if flow is None else f"it attends over {flow.shape[-1]} tokens of images {size}"
        raise InputError(
            "attention_rollout needs a vision transformer with a class token and a grid of patches, "
            f"but in {type(batch.model).__name__} {tokens or 'no self-attention was seen'}; use 'saliency' "
            "or 'rise'"
        )
    coarse = flow[:, None, 0, 1:].unflatten(2, grid)
    return enlarge(coarse, batch.x, settings.interpolation), None
