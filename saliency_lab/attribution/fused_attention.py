"""Attention in single calls: fused attention is replaced by the products and the softmax it computes.

torch computes `scaled_dot_product_attention` and `multi_head_attention_forward` in one call each, which hides
the attention weights. A rule that derives from `AttentionRule` sees the same computation as separate calls.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saliency_lab._common.calls import Call, Rule


class AttentionRule(Rule):
    """A rule that sees fused attention as calls of `linear`, `matmul` and `softmax`."""

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do what the model asked for, fused attention in several calls."""
        if func not in FUSED:
            return super().call(func, args, kwargs)
        with self:
            return FUSED[func](*args, **kwargs)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """softmax(scale · QKᵀ + mask)·V and the softmax, for queries (…, L, E), keys and values (…, S, E)."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * scale) @ key.transpose(-2, -1)
    hidden = None  # rows that may attend to nothing
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
        hidden = ~mask.any(-1, keepdim=True)
    elif mask is not None:
        scores = scores + mask
        hidden = (mask == -math.inf).all(-1, keepdim=True)
    weights = scores.softmax(-1)
    if hidden is not None and hidden.any():
        weights = weights.masked_fill(hidden, 0.0)  # as torch does, where the softmax is 0/0
    return (F.dropout(weights, dropout) if dropout else weights) @ value, weights


def _scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute what torch documents for `torch.nn.functional.scaled_dot_product_attention`."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (each.repeat_interleave(groups, -3) for each in (key, value))
    if is_causal:
        rows, columns = query.shape[-2], key.shape[-2]
        attn_mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril()
    return _attend(query, key, value, attn_mask, scale, dropout_p)[0]


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask as numbers to add to the scores; where a boolean mask is true, the key is hidden."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def _multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute what torch documents for `torch.nn.functional.multi_head_attention_forward`."""
    batched = query.ndim == 3
    if not batched:
        query, key, value = (each.unsqueeze(1) for each in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    count = query.shape[1]
    weights: tuple[Any, ...] = (q_proj_weight, k_proj_weight, v_proj_weight)
    if not use_separate_proj_weight:
        assert in_proj_weight is not None
        weights = in_proj_weight.chunk(3)
    biases: tuple[Any, ...] = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    query, key, value = (
        F.linear(each, weight, bias)
        for each, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    if bias_k is not None and bias_v is not None:
        key = torch.cat([key, bias_k.expand(1, count, -1)])
        value = torch.cat([value, bias_v.expand(1, count, -1)])

    def heads(each: Tensor) -> Tensor:
        return each.reshape(len(each), count, num_heads, -1).permute(1, 2, 0, 3)  # (N, heads, T, E)

    query, key, value = heads(query), heads(key), heads(value)
    if static_k is not None:
        key = static_k.unflatten(0, (count, num_heads))
    if static_v is not None:
        value = static_v.unflatten(0, (count, num_heads))
    extra = (bias_k is not None) + add_zero_attn  # keys that no mask hides
    if add_zero_attn:
        key, value = (torch.cat([each, torch.zeros_like(each[:, :, :1])], 2) for each in (key, value))
    mask = None
    if attn_mask is not None:
        mask = _additive(attn_mask, query)
        mask = mask.unflatten(0, (count, num_heads)) if mask.ndim == 3 else mask[None, None]
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, query)[:, None, None]
        mask = padding if mask is None else mask + padding
    if mask is not None and extra:
        mask = F.pad(mask, (0, extra))
    mixed, attention = _attend(query, key, value, mask, None, dropout_p if training else 0.0)
    output = F.linear(mixed.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    if need_weights and average_attn_weights:
        attention = attention.mean(1)
    if not batched:
        output, attention = output.squeeze(1), attention.squeeze(0)
    return output, attention if need_weights else None


FUSED: dict[Call, Call] = {
    F.scaled_dot_product_attention: _scaled_dot_product_attention,
    F.multi_head_attention_forward: _multi_head_attention_forward,
}
