"""Attention rollout and Chefer's relevance against their definitions, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lab._common.errors import InputError
from saliency_lab.attribution import attribute

METHODS = ["attention_rollout", "attention_relevance"]
IMAGES = torch.rand(3, 1, 12, 16, generator=torch.Generator().manual_seed(1))
CLASSES = torch.tensor([0, 3, 1])
ROWS, COLUMNS, HEADS, WIDTH = 3, 4, 2, 8
Weigh = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The attention weights from queries, keys (N, heads, T, d) and a bias (heads, T, T)."""


def softmax(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    return (query @ key.transpose(-2, -1) / 2).softmax(-1)


def by_hand(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return softmax(query, key, bias) @ value


def by_einsum(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    weights = nn.Softmax(dim=3)(torch.einsum("nhqd,nhkd->nhqk", query, key).mul(0.5))
    return torch.einsum("nhqk,nhkd->nhqd", F.dropout(weights, 0.5, training=False), value)


def by_bmm(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    query, key, value = (each.flatten(0, 1) for each in (query, key, value))
    scores = torch.baddbmm(torch.zeros(1, 1, 1), query, key.mT, alpha=0.5)
    return torch.bmm(F.softmax(scores, dim=-1, dtype=torch.float32), value).unflatten(0, (-1, HEADS))


def transposed(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return (value.mT @ softmax(query, key, bias).mT).mT


def fused(**options: Any) -> Callable[..., Tensor]:
    def mix(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        given = dict(options)
        if given.pop("biased", False):
            given["attn_mask"] = bias
        if given.pop("masked", False):
            given["attn_mask"] = bias > 0
        if given.get("enable_gqa"):
            key, value = key[:, :1], value[:, :1]
        return F.scaled_dot_product_attention(query=query, key=key, value=value, **given)

    return mix


def hidden(weights: Tensor, seen: Tensor) -> Tensor:
    return weights.masked_fill(~seen, -torch.inf)


def scores(query: Tensor, key: Tensor, scale: float = 0.5) -> Tensor:
    return query @ key.transpose(-2, -1) * scale


KINDS: dict[str, tuple[Callable[..., Tensor], Weigh]] = {
    "fused": (fused(), softmax),
    "relative position bias": (fused(biased=True), lambda q, k, b: (scores(q, k) + b).softmax(-1)),
    "mask": (fused(masked=True), lambda q, k, b: hidden(scores(q, k), b > 0).softmax(-1)),
    "causal": (
        fused(is_causal=True),
        lambda q, k, b: hidden(scores(q, k), torch.ones(b.shape[1:]).tril().bool()).softmax(-1),
    ),
    "scale": (fused(scale=3.0), lambda q, k, b: scores(q, k, 3.0).softmax(-1)),
    "grouped queries": (fused(enable_gqa=True), lambda q, k, b: scores(q, k[:, :1]).softmax(-1)),
    "by hand": (by_hand, softmax),
    "by einsum": (by_einsum, softmax),
    "by bmm": (by_bmm, softmax),
    "transposed": (transposed, softmax),
}


class Vision(nn.Module):
    """A vision transformer; `mixes` are the attention of its blocks, `own` tokens precede the patches."""

    def __init__(self, *mixes: Callable[..., Tensor], own: int = 1, pool: str = "first") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixes, self.own, self.pool = mixes, own, pool
        self.patches = nn.Conv2d(1, WIDTH, 4, 4)
        self.tokens = nn.Parameter(torch.randn(1, own, WIDTH))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in mixes)
        self.up = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in mixes)
        size = own + ROWS * COLUMNS
        self.bias = nn.Parameter(2 * torch.randn(HEADS, size, size) + 5 * torch.eye(size))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)
        for layer in self.qkv:
            nn.init.normal_(layer.weight)
        self.eval()

    def start(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.tokens.expand(len(x), -1, -1), tokens], 1)

    def projected(self, block: int, tokens: Tensor) -> tuple[Tensor, ...]:
        return (
            self.qkv[block](self.norm(tokens)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )

    def after(self, block: int, tokens: Tensor, mixed: Tensor) -> Tensor:
        tokens = tokens + mixed.transpose(1, 2).flatten(2)
        return tokens + F.gelu(self.up[block](self.norm(tokens)))

    def read(self, tokens: Tensor) -> Tensor:
        chosen = {
            "first": tokens[:, 0],
            "two": tokens[:, :2].mean(1),
            "patches": tokens[:, self.own :].mean(1),
        }
        return self.head(self.norm(chosen[self.pool]))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.start(x)
        for block, mix in enumerate(self.mixes):
            tokens = self.after(block, tokens, mix(*self.projected(block, tokens), self.bias))
        return self.read(tokens)


def on_image(flow: Tensor, model: Vision, rows: slice) -> Tensor:
    coarse = flow[:, rows, model.own :].mean(1).reshape(-1, 1, ROWS, COLUMNS)
    return F.interpolate(coarse, IMAGES.shape[2:])


def expected_maps(model: Vision, weighs: list[Weigh], rows: slice) -> dict[str, Tensor]:
    """Both maps by their definitions, from weights that are computed outside of the network."""
    tokens, weights = model.start(IMAGES), []
    for block, weigh in enumerate(weighs):
        query, key, value = model.projected(block, tokens)
        weights.append(weigh(query, key, model.bias))
        value = value[:, :1].expand_as(value) if weigh is KINDS["grouped queries"][1] else value
        tokens = model.after(block, tokens, weights[-1] @ value)
    score = model.read(tokens).gather(1, CLASSES[:, None]).sum()
    gradients = torch.autograd.grad(score, weights)
    eye = torch.eye(weights[0].shape[-1])
    rollout, relevance = eye, eye
    for each, gradient in zip(weights, gradients, strict=True):
        rollout = (0.5 * eye + 0.5 * each.mean(1)) @ rollout
        relevance = relevance + (gradient * each).clamp_min(0).mean(1) @ relevance
    maps = {"attention_rollout": rollout, "attention_relevance": relevance - eye}
    return {name: on_image(flow.detach(), model, rows) for name, flow in maps.items()}


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_call_attention_counts(name, kind):
    mix, weigh = KINDS[kind]
    model = Vision(mix, by_hand)
    found = attribute(model, IMAGES, CLASSES, name, interpolation="nearest").values
    assert_same(found, expected_maps(model, [weigh, softmax], slice(1))[name])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("own", "pool", "rows"),
    [
        (1, "first", slice(1)),
        (2, "two", slice(2)),
        (5, "first", slice(1)),
        (0, "patches", slice(None)),
        (1, "patches", slice(1, None)),
        (5, "patches", slice(5, None)),
    ],
)
def test_prefix_tokens_and_what_the_head_reads_are_found(name, own, pool, rows):
    model = Vision(fused(), by_hand, own=own, pool=pool)
    expected = expected_maps(model, [softmax, softmax], rows)[name]
    maps = attribute(model, IMAGES, CLASSES, name, interpolation="nearest")
    assert_same(maps.values, expected)
    assert maps.settings["prefix_tokens"] == own
    given = attribute(model, IMAGES, CLASSES, name, interpolation="nearest", prefix_tokens=own)
    assert torch.equal(given.values, maps.values)
    wrapped = attribute(nn.Sequential(model), IMAGES, CLASSES, name, interpolation="nearest")
    assert torch.equal(wrapped.values, maps.values)


def test_relevance_of_one_block_is_what_each_patch_adds():
    """f = Σⱼ A₀ⱼ w·vⱼ, so R₀ⱼ is the mean over heads of (A₀ⱼ w·vⱼ)⁺."""

    class Linear(Vision):
        def forward(self, x: Tensor) -> Tensor:
            mixed = self.mixes[0](*self.projected(0, self.start(x)), self.bias)
            return self.head(mixed.transpose(1, 2).flatten(2)[:, 0])

    model = Linear(fused())
    query, key, value = model.projected(0, model.start(IMAGES))
    weight = model.head.weight[CLASSES].unflatten(1, (HEADS, -1))
    added = softmax(query, key, model.bias)[:, :, 0] * torch.einsum("nhtd,nhd->nht", value, weight)
    expected = on_image(added.clamp_min(0).mean(1)[:, None].detach(), model, slice(1))
    assert_same(
        attribute(model, IMAGES, CLASSES, "attention_relevance", interpolation="nearest").values, expected
    )


def test_rollout_does_not_depend_on_the_weights_of_the_head():
    model = Vision(fused(), by_hand)
    before = attribute(model, IMAGES, CLASSES, "attention_rollout").values
    nn.init.zeros_(model.head.weight)
    assert torch.equal(attribute(model, IMAGES, CLASSES, "attention_rollout").values, before)


def sigmoid(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return scores(query, key).sigmoid() @ value


def linear(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return query.softmax(-1) @ (key.softmax(-2).mT @ value)


def talking(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return (softmax(query, key, bias).movedim(1, -1) @ bias[:2, :2, 0]).movedim(-1, 1) @ value


def reduced(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return softmax(query, key[:, :, ::2], bias) @ value[:, :, ::2]


def windows(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    query, key, value = (
        each.unflatten(2, (ROWS, -1)).transpose(1, 2).flatten(0, 1) for each in (query, key, value)
    )
    mixed = softmax(query, key, bias) @ value
    return mixed.unflatten(0, (-1, ROWS)).transpose(1, 2).flatten(2, 3)


def windows_as_heads(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    query, key, value = (each.unflatten(2, (ROWS, -1)).flatten(0, 2) for each in (query, key, value))
    return (softmax(query, key, bias) @ value).unflatten(0, (-1, HEADS, ROWS)).flatten(2, 3)


def channels(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return (softmax(query.mT, key.mT, bias) @ value.mT).mT


class Between(Vision):
    """Something else than attention works on the tokens between two blocks."""

    def __init__(self, between: Callable[[Tensor], Tensor], **options: Any) -> None:
        super().__init__(fused(), by_hand, **options)
        self.between = between

    def after(self, block: int, tokens: Tensor, mixed: Tensor) -> Tensor:
        tokens = super().after(block, tokens, mixed)
        return self.between(tokens) if block == 0 else tokens


class Parallel(Vision):
    def forward(self, x: Tensor) -> Tensor:
        tokens = self.start(x)
        mixed = [mix(*self.projected(0, tokens), self.bias) for mix in self.mixes]
        return self.read(self.after(0, tokens, sum(mixed)))


class ClassAttention(Vision):
    """The last block lets only the class token attend."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.start(x)
        tokens = self.after(0, tokens, by_hand(*self.projected(0, tokens), self.bias))
        query, key, value = self.projected(1, tokens)
        mixed = softmax(query[:, :, :1], key, self.bias) @ value
        return self.read(self.after(1, tokens[:, :1], mixed))


def convolved(tokens: Tensor) -> Tensor:
    return F.avg_pool2d(tokens[:, None], (3, 1), 1, (1, 0))[:, 0]


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "sigmoid": (lambda: Vision(by_hand, sigmoid), "mixes tokens by another product of activations"),
    "linear attention": (lambda: Vision(linear, by_hand), "attends from 13 to 4 tokens"),
    "talking heads": (lambda: Vision(by_hand, talking), "mixes tokens by another product of activations"),
    "only talking heads": (lambda: Vision(talking), "mixes tokens by another product of activations"),
    "reduced keys": (lambda: Vision(reduced, by_hand), "attends from 13 to 7 tokens"),
    "class attention": (lambda: ClassAttention(fused(), fused()), "attends from 1 to 13 tokens"),
    "windows": (
        lambda: Vision(windows, by_hand, own=0, pool="patches"),
        "attends within windows or groups of 4 tokens",
    ),
    "windows as heads": (
        lambda: Vision(windows_as_heads, windows_as_heads, own=0, pool="patches"),
        "attends within windows or groups of 4 tokens|tokens are mixed or moved",
    ),
    "channels": (lambda: Vision(channels, channels), "tokens are mixed or moved"),
    "shifted": (lambda: Between(lambda tokens: tokens.roll(1, 1)), "tokens are mixed or moved"),
    "mixed": (
        lambda: Between(lambda tokens: tokens + tokens.mean(1, keepdim=True)),
        "positions|mixed or moved",
    ),
    "merged": (lambda: Between(lambda tokens: tokens[:, :9]), "attends over 9 tokens and .* over 13"),
    "pooled": (lambda: Between(lambda tokens: tokens + convolved(tokens)), "mixed or moved"),
    "parallel": (lambda: Parallel(fused(), by_hand), "does not depend on that of"),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("build", "cause"), REFUSED.values(), ids=REFUSED)
def test_networks_for_which_the_product_means_nothing_are_refused_with_the_cause(name, build, cause):
    model = build()
    with pytest.raises(
        InputError, match=rf"^{name} .*({cause}).*use 'integrated_gradients', 'saliency' or 'rise'"
    ):
        attribute(model, IMAGES, CLASSES, name)
    assert attribute(model, IMAGES, CLASSES, "saliency").values.isfinite().all()


def cosine(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    unit = F.normalize(query, dim=-1)
    return (5 * unit @ unit.mT).softmax(-1) @ value


def test_where_the_prefix_cannot_be_found_it_can_be_given():
    model = Vision(cosine, by_hand)
    with pytest.raises(InputError, match=r"these do not depend on the image \(give prefix_tokens=\)"):
        attribute(model, IMAGES, CLASSES, "attention_rollout")
    maps = attribute(model, IMAGES, CLASSES, "attention_rollout", prefix_tokens=1)
    assert maps.values.std() > 0 and maps.settings["prefix_tokens"] == 1


def test_tokens_that_are_no_grid_are_refused():
    with pytest.raises(InputError, match=r"needs a grid of patches, but behind 3 token\(s\)"):
        attribute(Vision(fused()), IMAGES, CLASSES, "attention_rollout", prefix_tokens=3)


def test_a_network_without_attention_is_named(net, batch):
    with pytest.raises(
        InputError, match="in Sequential no self-attention was seen; use 'integrated_gradients'"
    ):
        attribute(net, *batch, "attention_rollout")
