"""A `__cache_key__` of the user's replaces what the package finds out about an object."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab._common.fingerprints import canonical, model_fingerprint


class Segmenter:
    def __init__(self, scale: float, log: list[str]) -> None:
        self.scale = scale
        self.log = log

    def __cache_key__(self) -> str:
        return f"scale {self.scale}"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append("called")
        return x


def test_only_the_key_of_an_object_counts() -> None:
    assert canonical(Segmenter(1.0, [])) == canonical(Segmenter(1.0, ["called"]))
    assert canonical(Segmenter(1.0, [])) != canonical(Segmenter(2.0, []))
    assert canonical({"segments": [Segmenter(1.0, [])]})["segments"][0].endswith("Segmenter: scale 1.0")


def test_a_function_may_have_a_key() -> None:
    def first(x):
        return x + 1

    def second(x):
        return x + 2

    first.__cache_key__ = second.__cache_key__ = "version 3"  # type: ignore[attr-defined]
    assert canonical(first) != canonical(second)  # names still differ
    second.__qualname__ = first.__qualname__
    assert canonical(first) == canonical(second)


def test_an_object_inside_a_function_counts_by_its_key() -> None:
    def over(segmenter):
        return lambda x: segmenter(x)

    assert canonical(over(Segmenter(1.0, []))) == canonical(over(Segmenter(1.0, ["called"])))
    assert canonical(over(Segmenter(1.0, []))) != canonical(over(Segmenter(2.0, [])))


def test_parameters_of_a_model_count_as_well_as_its_key() -> None:
    class Counting(nn.Linear):
        def __init__(self, calls: int) -> None:
            super().__init__(2, 2)
            self.calls = calls

        __cache_key__ = "linear"

    torch.manual_seed(0)
    first, second = Counting(1), Counting(2)
    assert model_fingerprint(first) != model_fingerprint(second)
    second.load_state_dict(first.state_dict())
    assert model_fingerprint(first) == model_fingerprint(second)


@pytest.mark.parametrize("key", [3, "", lambda: None])
def test_a_key_that_is_no_text_is_refused(key: object) -> None:
    class Wrong:
        __cache_key__ = staticmethod(key) if callable(key) else key

    with pytest.raises(InputError, match=r"__cache_key__ of .*Wrong must be text"):
        canonical(Wrong())


def _with_a_head(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize(
    ("usual", "other"),
    [
        (nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        (nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1, divisor_override=2)),
        (nn.AvgPool1d(3), nn.AvgPool1d(3, ceil_mode=True)),
        (nn.AvgPool3d(3), nn.AvgPool3d(3, count_include_pad=False)),
        (nn.Upsample((8, 8), mode="bilinear"), nn.Upsample((8, 8), mode="bilinear", align_corners=True)),
        (nn.Upsample(scale_factor=2.5), nn.Upsample(scale_factor=2.5, recompute_scale_factor=True)),
        (nn.RNN(4, 4), nn.RNN(4, 4, nonlinearity="relu")),
        (nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 4)),
        (torchvision.ops.Permute([0, 2, 3, 1]), torchvision.ops.Permute([0, 3, 2, 1])),
        (sl.BinaryLogits(nn.Flatten(), 0), sl.BinaryLogits(nn.Flatten(), 1)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_setting_counts_also_where_the_printed_form_omits_it(usual: nn.Module, other: nn.Module) -> None:
    other.load_state_dict(usual.state_dict())
    assert model_fingerprint(_with_a_head(usual)) != model_fingerprint(_with_a_head(other))
    assert model_fingerprint(_with_a_head(usual)) == model_fingerprint(_with_a_head(copy.deepcopy(usual)))


def test_a_setting_that_is_changed_later_counts() -> None:
    net = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=False)
    before = model_fingerprint(net)
    net.transform_input = True
    assert model_fingerprint(net) != before


def test_parameters_count_that_the_state_leaves_out() -> None:
    class Slim(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return self.head.state_dict()

    net = Slim()
    before = model_fingerprint(net)
    net.body.weight.data.mul_(2)
    assert model_fingerprint(net) != before


class Scale:
    """A hook that counts its calls."""

    def __init__(self, factor: float) -> None:
        self.factor, self.calls = factor, 0

    def __call__(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return output * self.factor

    def hook(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return self(module, inputs, output)


def _scaled_by(factor: float) -> Any:
    return lambda module, inputs, output: output * factor


@pytest.mark.parametrize(
    "make",
    [
        _scaled_by,
        Scale,
        lambda factor: Scale(factor).hook,
        lambda factor: functools.partial(lambda factor, module, inputs, output: output * factor, factor),
    ],
    ids=["closure", "object", "method", "partial"],
)
def test_a_hook_counts_with_its_code_and_its_numbers(make: Any) -> None:
    net = _with_a_head(nn.ReLU())
    keys = [model_fingerprint(net)]
    for factor in (0.5, 2.0):
        handle = net[0].register_forward_hook(make(factor))
        keys.append(model_fingerprint(net))
        net(torch.rand(1, 1, 8, 8))
        assert model_fingerprint(net) == keys[-1]
        handle.remove()
    assert len(set(keys)) == 3 and model_fingerprint(net) == keys[0]


def test_a_hook_that_records_keeps_its_key() -> None:
    net, seen, count = _with_a_head(nn.ReLU()), [], 0

    def note(*_: Any) -> None:
        nonlocal count
        count += 1

    net[0].register_forward_hook(note)
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    before = model_fingerprint(net)
    net(torch.rand(1, 1, 8, 8))
    assert seen and count and model_fingerprint(net) == before
    net[0].register_forward_pre_hook(lambda module, inputs: (inputs[0].clamp(0, 0.1),))
    assert model_fingerprint(net) != before
