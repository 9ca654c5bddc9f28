"""What rules for calls cannot see is refused: custom autograd functions, masks, statistics of a batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from saliency_lab._common.errors import InputError
from saliency_lab.attribution import attribute

IMAGES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
CLASSES = torch.tensor([0, 1, 2])
BY_RULES = {
    "lrp": {},
    "attn_lrp": {},
    "deep_lift": {},
    "deep_lift_shap": {"baselines": IMAGES[:2] / 2},
    "guided_backprop": {},
    "deconvolution": {},
    "guided_grad_cam": {},
    "full_grad": {},
}
RECTIFIED = ("guided_backprop", "deconvolution", "guided_grad_cam")


class Saving(torch.autograd.Function):
    """Swish that keeps its input alone, as in efficientnet_pytorch."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s * (1 + x * (1 - s)))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Saving.apply(x)


class Net(nn.Module):
    """A ReLU, and behind it another nonlinearity."""

    def __init__(self, nonlinearity: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.nonlinearity, self.head = nonlinearity, nn.Linear(6 * 64, 4)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(self.first(x).relu())
        return self.head(self.nonlinearity(hidden).flatten(1))


@pytest.mark.parametrize("method", BY_RULES)
@pytest.mark.parametrize(
    ("nonlinearity", "clause"),
    [
        (Swish(), r"nonlinearity \(Swish\) calls Saving\."),
        (Saving.apply, r"the model \(Net\) calls Saving\."),
    ],
)
def test_a_custom_function_is_refused_by_name_and_module(method, nonlinearity, clause):
    with pytest.raises(InputError, match=rf"^{method} must see the calls .* {clause}"):
        attribute(Net(nonlinearity), IMAGES, CLASSES, method, **BY_RULES[method])


@pytest.mark.parametrize("method", BY_RULES)
def test_checkpoints_that_torch_cannot_differentiate_are_refused(method):
    net = Net(lambda x: checkpoint(F.relu, x, use_reentrant=True))
    with pytest.raises(InputError, match=r"Net\) calls CheckpointFunction|Net cannot be differentiated"):
        attribute(net, IMAGES, CLASSES, method, **BY_RULES[method])


@pytest.mark.parametrize(
    ("method", "settings"),
    [("saliency", {}), ("integrated_gradients", {}), ("grad_cam", {"layer": "second"})],
)
def test_methods_that_need_no_calls_treat_it(method, settings):
    own, torchs = (
        attribute(Net(each), IMAGES, CLASSES, method, **settings).values for each in (Swish(), F.silu)
    )
    torch.testing.assert_close(own, torchs, rtol=1e-4, atol=1e-6)


def test_custom_functions_outside_of_the_pass_do_not_matter():
    torch.manual_seed(0)
    model = Net(F.relu)
    Saving.apply(model.second.weight).sum().backward()
    assert attribute(model, IMAGES, CLASSES, "lrp").values.isfinite().all()


# --- gates ------------------------------------------------------------------------------------------

RELUS = {
    "mask": lambda z: z * (z > 0),
    "mask as numbers": lambda z: (z > 0).to(z) * z,
    "step": lambda z: z * torch.heaviside(z.detach(), torch.zeros(())),
    "index_put": lambda z: z.clone().index_put((z < 0,), torch.zeros(())),
    "mask made by assignment": lambda z: z * _mask(z),
}


def _mask(z: Tensor) -> Tensor:
    mask = torch.zeros_like(z)
    mask[z > 0] = 1
    return mask


def _assigned(z: Tensor) -> Tensor:
    z = z.clone()
    z[z < 0] = 0
    return z


@pytest.mark.parametrize("method", ["deep_lift", "deep_lift_shap", *RECTIFIED])
@pytest.mark.parametrize("gate", [*RELUS.values(), _assigned], ids=[*RELUS, "assigned"])
def test_a_relu_by_a_mask_is_refused(method, gate):
    with pytest.raises(InputError, match=rf"^{method} .*the model \(Net\) calls .*[uU]se '"):
        attribute(Net(gate), IMAGES, CLASSES, method, **BY_RULES[method])


@pytest.mark.parametrize(
    "gate",
    [
        lambda z: z * torch.sigmoid(z).detach(),
        lambda z: z + (z.round() - z).detach(),
        lambda z: z / z.detach().std((1, 2, 3), keepdim=True),
        lambda z: z - z.amax(1, keepdim=True).detach(),
    ],
)
def test_deep_lift_refuses_what_was_detached(gate):
    with pytest.raises(
        InputError, match=r"^deep_lift (follows gradients|covers linear layers), .*the model \(Net\) calls"
    ):
        attribute(Net(gate), IMAGES, CLASSES, "deep_lift")


def test_deep_lift_warns_of_what_torch_does_not_see():
    def scaled(z: Tensor) -> Tensor:
        return z * torch.from_numpy(np.abs(z.detach().numpy()))

    with pytest.warns(UserWarning, match=r"2 of 3 maps do not sum to f\(x\) − f\(b\)"):
        attribute(Net(scaled), IMAGES, CLASSES, "deep_lift")


class Shapes(nn.Module):
    """Takes shapes, types and constants from the activations."""

    def forward(self, z: Tensor) -> Tensor:
        ones = torch.ones(1, dtype=torch.float64).to(z) * torch.ones_like(z)
        return (z * ones + z.new_zeros(z.shape)).relu() * torch.full((1,), 2.0).type_as(z).expand_as(z)


@pytest.mark.parametrize("method", ["deep_lift", "guided_backprop"])
def test_shapes_and_types_of_activations_are_no_gates(method):
    found, expected = (
        attribute(Net(each), IMAGES, CLASSES, method).values for each in (Shapes(), lambda z: 2 * z.relu())
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", RECTIFIED)
@pytest.mark.parametrize(
    "relu",
    [
        lambda z: z.clamp(min=0),
        lambda z: z.clamp(0),
        lambda z: z.clamp_min(0),
        lambda z: z.clone().clamp_min_(0),
        lambda z: F.threshold(z, 0, 0),
        lambda z: torch.maximum(z, torch.zeros_like(z)),
        lambda z: torch.maximum(torch.zeros(()), z),
        lambda z: F.leaky_relu(z, 0.0),
    ],
)
def test_a_relu_by_another_name_is_a_relu(method, relu):
    found, expected = (attribute(Net(each), IMAGES, CLASSES, method).values for each in (relu, F.relu))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("other", [F.relu6, lambda z: z.clamp(min=0.1), lambda z: F.leaky_relu(z, 0.1)])
def test_other_functions_keep_their_derivative(other):
    net = Net(other)
    point = IMAGES.clone().requires_grad_(True)
    hidden = net.first(point)
    score = net.head(other(net.second(hidden.relu())).flatten(1)).gather(1, CLASSES[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, hidden)
    (expected,) = torch.autograd.grad(net.first(point), point, gradient.clamp_min(0))
    found = attribute(net, IMAGES, CLASSES, "guided_backprop").values
    torch.testing.assert_close(found, expected)


# --- statistics of the batch --------------------------------------------------------------------------


def by_function(z: Tensor) -> Tensor:
    return F.batch_norm(z, torch.zeros(6), torch.ones(6), training=True)


@pytest.mark.parametrize("method", ["lrp", "attn_lrp", "deep_lift"])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6, track_running_stats=False), by_function])
@pytest.mark.filterwarnings("ignore:.*batch")
def test_statistics_of_the_batch_are_refused(method, norm):
    with pytest.raises(InputError, match=rf"^{method} .*calls F.batch_norm.*[Uu]se 'integrated_gradients'"):
        attribute(Net(norm), IMAGES, CLASSES, method)
