"""Fused attention in single calls gives what torch's fused calls give, whatever their arguments."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lab.attribution.fused_attention import FUSED, AttentionRule


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Seen(AttentionRule):
    """Keeps the names of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def call(self, func, args, kwargs):
        self.names.append(func.__name__)
        return super().call(func, args, kwargs)


HIDDEN = torch.rand(5, 5, generator=torch.Generator().manual_seed(3)) > 0.4
PARTLY = HIDDEN | torch.eye(5, dtype=torch.bool)
CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)
ROW_OFF = PARTLY & (torch.arange(5) != 2)[:, None]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"scale": 0.3},
        {"scale": 0.0},
        {"is_causal": True},
        {"attn_mask": PARTLY},
        {"attn_mask": ROW_OFF},
        {"attn_mask": random(3, 1, 5)},
        {"attn_mask": random(2, 1, 5, 5), "scale": 2.0},
        {"attn_mask": torch.zeros(5, 5, dtype=torch.float64).masked_fill(~ROW_OFF, -torch.inf)},
        {"key": random(2, 1, 5, 4, seed=7), "value": random(2, 1, 5, 4, seed=8), "enable_gqa": True},
    ],
)
def test_scaled_dot_product_attention_with_every_argument(arguments):
    named = {name: random(2, 3, 5, 4, seed=seed) for seed, name in enumerate(("query", "key", "value"))}
    named |= arguments
    expected = F.scaled_dot_product_attention(**named)
    seen = Seen()
    with seen:
        found = F.scaled_dot_product_attention(**named)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert "softmax" in seen.names and "matmul" in seen.names


@pytest.mark.parametrize(
    ("built", "called"),
    [
        ({}, {}),
        ({}, {"need_weights": False}),
        ({}, {"average_attn_weights": False}),
        ({"bias": False}, {"attn_mask": ~PARTLY}),
        ({}, {"attn_mask": random(2 * 6, 5, 5)}),
        ({}, {"key_padding_mask": torch.arange(5).expand(2, 5) > 2}),
        ({}, {"key_padding_mask": random(2, 5), "attn_mask": ~PARTLY}),
        ({"add_bias_kv": True}, {"attn_mask": ~PARTLY}),
        ({"add_zero_attn": True}, {"key_padding_mask": torch.arange(5).expand(2, 5) > 2}),
        ({"add_zero_attn": True, "add_bias_kv": True}, {}),
        ({"kdim": 4, "vdim": 3}, {}),
        ({"batch_first": False}, {}),
        (
            {},
            {
                "is_causal": True,
                "attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1),
                "need_weights": False,
            },
        ),
    ],
)
def test_multi_head_attention_with_every_argument(built, called):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(12, 6, **{"batch_first": True, **built}).double().eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    query, key, value = (
        random(2, 5, width, seed=seed).requires_grad_()
        for seed, width in enumerate((12, built.get("kdim", 12), built.get("vdim", 12)))
    )
    if not layer.batch_first:
        query, key, value = (each.transpose(0, 1) for each in (query, key, value))
    expected, weights = layer(query, key, value, **called)
    seen = Seen()
    with seen:
        found, found_weights = layer(query, key, value, **called)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert (weights is None) == (found_weights is None)
    if weights is not None:
        torch.testing.assert_close(found_weights, weights, rtol=1e-9, atol=1e-12)
    assert "softmax" in seen.names


def test_attention_over_one_sequence_without_a_batch():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(12, 6).double().eval()
    tokens = random(5, 12).requires_grad_()
    expected = layer(tokens, tokens, tokens)
    with Seen():
        found = layer(tokens, tokens, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_every_parameter_of_multi_head_attention_is_known():
    torchs, ours = F.multi_head_attention_forward, FUSED[F.multi_head_attention_forward]
    assert inspect.signature(ours).parameters.keys() == inspect.signature(torchs).parameters.keys()
