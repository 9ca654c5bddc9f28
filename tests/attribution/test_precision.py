"""Models of half precision are run in float32, from any number of threads, and are left as they were."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from saliency_lab._common.inference import in_float32
from saliency_lab.attribution import attribute


def test_several_threads_use_one_model(net, batch):
    half = copy.deepcopy(net).bfloat16()
    expected = attribute(copy.deepcopy(half).float(), *batch, "integrated_gradients", steps=8).values
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(attribute, half, *batch, "integrated_gradients", steps=8) for _ in range(8)]
    assert all(torch.equal(job.result().values, expected) for job in jobs)
    assert {each.dtype for each in half.state_dict().values() if each.is_floating_point()} == {torch.bfloat16}


def test_blocks_nest_and_parameters_stay_the_same_objects(net):
    half = copy.deepcopy(net).half()
    before = {name: (parameter, parameter.data_ptr()) for name, parameter in half.named_parameters()}
    with in_float32(half):
        with pytest.raises(ZeroDivisionError), in_float32(half):
            raise ZeroDivisionError
        assert all(parameter.dtype == torch.float32 for parameter in half.parameters())
        assert all(parameter is before[name][0] for name, parameter in half.named_parameters())
    assert all(parameter.data_ptr() == before[name][1] for name, parameter in half.named_parameters())


def test_shared_weights_stay_shared_and_other_types_stay_as_they_are():
    first = nn.Linear(4, 4).half()
    second = nn.Linear(4, 4).double()
    model = nn.Sequential(first, first, second)
    third = nn.Linear(4, 4).half()
    third.weight = first.weight
    model.append(third)
    with in_float32(model):
        assert first.weight.dtype == torch.float32 and third.weight is first.weight
        assert second.weight.dtype == torch.float64
    assert first.weight.dtype == torch.float16


def test_gradients_that_the_caller_keeps_are_left_alone(net, batch):
    half = copy.deepcopy(net).bfloat16()
    half(batch[0].bfloat16()).sum().backward()
    kept = {name: parameter.grad.clone() for name, parameter in half.named_parameters()}
    attribute(half, *batch, "saliency")
    assert all(torch.equal(parameter.grad, kept[name]) for name, parameter in half.named_parameters())


@pytest.mark.parametrize(
    "method", ["rise", "shapley_value_sampling", "occlusion", "integrated_gradients", "lime"]
)
def test_logits_may_have_another_type_than_the_weights(net, batch, method):
    class Double(nn.Module):
        def forward(self, x):
            return net(x).double()

    settings = {"rise": {"n": 16}, "integrated_gradients": {"steps": 4}}.get(method, {})
    expected = attribute(net, *batch, method, **settings)
    found = attribute(Double(), *batch, method, **settings)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-6)
