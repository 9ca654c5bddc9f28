"""Guided back-propagation, deconvolution, DeepLIFT, LRP: Captum, closed forms, and what Captum gets wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import captum.attr as ca
import pytest
import torch
import torch.nn.functional as F
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule, PropagationRule
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from saliency_lab._common.errors import InputError
from saliency_lab.attribution import attribute

EPSILON = 1e-4
REFERENCES = {"guided_backprop": ca.GuidedBackprop, "deconvolution": ca.Deconvolution}


class Functional(nn.Module):
    """The network of the fixture `net` in functions, in place, with one ReLU module used twice."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.last = net[0], net[1], net[4], net[8]
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.max_pool2d(self.relu(self.norm(self.first(x))), 2)
        hidden = self.second(hidden)
        self.relu(hidden)
        return self.last(torch.flatten(hidden, 1))


class Rectified(nn.Module):
    """A linear layer, something between, batch normalisation of dimension 1, and a linear layer."""

    def __init__(self, change: Callable[[Tensor], Tensor], *, tokens: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.change, self.tokens = change, tokens
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        for value in (*self.parameters(), self.norm.running_mean):
            value.data = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        self.norm.running_var = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.change(self.first(x[:, 0] if self.tokens else x.flatten(1))))
        return self.last(hidden.sum(1) if self.tokens else hidden)


def _ratio(relevance: Tensor, z: Tensor) -> Tensor:
    return relevance / (z + torch.copysign(torch.tensor(1e-6), z))


@pytest.mark.parametrize("name", ["lrp", "attn_lrp"])
@pytest.mark.parametrize(
    "between", [lambda h: h.relu(), lambda h: h.relu_(), lambda h: h.clamp_(-1, 1), lambda h: h.clone()]
)
@pytest.mark.parametrize("tokens", [False, True])
def test_lrp_follows_what_stands_between_a_layer_and_its_normalisation(name, between, tokens):
    """The layers' ε rules, one after the other; with tokens, the normalisation is not that of the layer."""
    net = Rectified(between, tokens=tokens)
    x = torch.rand(2, 1, *((4, 4) if tokens else (2, 2)), dtype=torch.float64, generator=torch.manual_seed(1))
    settings = {"preset": "epsilon"} if name == "lrp" else {}
    maps = attribute(net, x, torch.tensor([2, 0]), name, **settings)

    values = x[:, 0] if tokens else x.flatten(1)
    with torch.no_grad():
        first = net.first(values)
        changed = between(first.clone())
        normalised = net.norm(changed)
        pooled = normalised.sum(1) if tokens else normalised
        logits = net.last(pooled)
    chosen = torch.zeros_like(logits).scatter_(1, torch.tensor([[2], [0]]), 1.0)
    back = pooled * (_ratio(logits * chosen, logits) @ net.last.weight)
    if tokens:
        back = normalised * _ratio(back, pooled)[:, None]
    shape = (1, -1, 1) if tokens else (1, -1)
    scale = ((net.norm.running_var + net.norm.eps).rsqrt() * net.norm.weight).reshape(shape)
    back = changed * scale * _ratio(back, normalised)
    expected = values * (_ratio(back, first) @ net.first.weight)
    torch.testing.assert_close(maps.values, expected.detach().reshape(x.shape).float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", REFERENCES)
def test_rectified_gradients_are_captums(name, rgb_net, rgb_batch):
    x, y = rgb_batch
    expected = REFERENCES[name](rgb_net).attribute(x.clone(), target=y)
    torch.testing.assert_close(attribute(rgb_net, x, y, name).values, expected, rtol=0, atol=1e-5)


def _average_pooled(net: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*net[:3], nn.AvgPool2d(2), *net[4:])


def test_deep_lift_is_captums(rgb_net, rgb_batch):
    x, y = rgb_batch
    net, base = _average_pooled(rgb_net), x.flip(0)
    expected, delta = ca.DeepLift(net).attribute(x, base, target=y, return_convergence_delta=True)
    maps = attribute(net, x, y, "deep_lift", baseline=base)
    torch.testing.assert_close(maps.values, expected.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(maps.delta, delta.double(), rtol=0, atol=1e-5)


def test_deep_lift_through_max_pooling_alone_is_captums(batch):
    x, y = batch
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 5))
    expected = ca.DeepLift(net).attribute(x, x.flip(0), target=y).detach()
    maps = attribute(net, x, y, "deep_lift", baseline=x.flip(0))
    torch.testing.assert_close(maps.values, expected, rtol=0, atol=1e-5)


def test_deep_lift_is_complete_where_captums_is_not(net, batch):
    """Max pooling behind a ReLU: Captum 0.9's map does not sum to the difference of the scores; ours does."""
    x, y = batch
    _, delta = ca.DeepLift(net).attribute(x, x.flip(0), target=y, return_convergence_delta=True)
    maps = attribute(net, x, y, "deep_lift", baseline=x.flip(0))
    assert maps.delta.abs().max() < 1e-6 and delta.abs().max() > 1e-3


def test_deep_lift_shap_is_captums(net, batch):
    x, y = batch
    net = _average_pooled(net)
    base = torch.rand(3, *x.shape[1:], generator=torch.Generator().manual_seed(5))
    maps = attribute(net, x, y, "deep_lift_shap", baselines=base)
    expected = ca.DeepLiftShap(net).attribute(x, base, target=y).detach()
    torch.testing.assert_close(maps.values, expected, rtol=0, atol=1e-5)
    assert maps.delta.abs().max() < 1e-5


@pytest.mark.parametrize("name", ["guided_backprop", "deconvolution", "deep_lift", "lrp"])
def test_functions_in_place_and_reuse_make_no_difference(name, net, batch):
    """Captum sees modules used once: on the functional twin it silently differs or fails."""
    x, y = batch
    twin = Functional(net).eval()
    torch.testing.assert_close(
        attribute(twin, x, y, name).values, attribute(net, x, y, name).values, rtol=0, atol=1e-6
    )


def test_captum_gets_the_functional_twin_wrong(batch):
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat = nn.Flatten()
            self.first, self.last = nn.Linear(144, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(self.first(self.flat(x))))

    x, y = batch
    torch.manual_seed(0)
    model = Plain()
    with pytest.warns(UserWarning):
        captums = ca.GuidedBackprop(model).attribute(x.clone().requires_grad_(), target=y)
    torch.testing.assert_close(captums.detach(), attribute(model, x, y, "saliency").values)
    assert not torch.allclose(attribute(model, x, y, "guided_backprop").values, captums.detach())


class Overlapping(nn.Module):
    """Max pooling whose windows overlap, as in every ResNet's stem, and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
            self.pool, self.last = nn.MaxPool2d(3, 2, padding=1), nn.Linear(100, 5)
        self.act = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.pool(self.act(self.first(x)))
        return self.last((hidden + F.relu(self.second(hidden))).flatten(1))


@pytest.mark.parametrize("baseline", ["zero", "mean", "uniform"])
def test_deep_lift_is_complete_where_pooling_windows_overlap(batch, baseline):
    x, y = batch
    maps = attribute(Overlapping(), x, y, "deep_lift", baseline=baseline)
    torch.testing.assert_close(maps.delta, torch.zeros(len(x), dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LeakyReLU(0.2),
        nn.ELU(),
        nn.GELU(),
        nn.SiLU(),
        nn.Tanh(),
        nn.Softplus(),
        nn.Hardswish(),
        nn.ReLU6(inplace=True),
        nn.PReLU(3, 0.3),
        nn.Threshold(0.1, -0.2),
        nn.RReLU(),
        nn.Softshrink(0.1),
        nn.Hardshrink(0.1),
        nn.Tanhshrink(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_deep_lift_is_complete_for_other_activations(batch, layer):
    x, y = batch
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3), layer, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(75, 5)
        ).eval()
    maps = attribute(model, x, y, "deep_lift", baseline="blur")
    torch.testing.assert_close(maps.delta, torch.zeros(len(x), dtype=torch.float64), rtol=0, atol=1e-5)
    assert maps.total.abs().max() > 1e-4


class Through(nn.Module):
    """A function of the image, or of a convolution's output, in front of a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor], convolution: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.convolution = function, convolution or nn.Identity()
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(4)
            width = function(self.convolution(torch.rand(1, 1, 12, 12))).numel()
            self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.convolution(x)).flatten(1))


ONE_BY_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "square": lambda x: x**2,
    "pow": lambda x: torch.pow(x, 3),
    "exponential": lambda x: 2**x,
    "inverse": lambda x: 1 / (x + 0.5),
    "clamp_min": lambda x: x.clamp_min(0.4),
    "clamp_max_": lambda x: (x + 0).clamp_max_(0.4),
    "maximum": lambda x: torch.maximum(x, torch.tensor(0.3)),
    "sin": lambda x: torch.sin(3 * x),
    "log1p": torch.log1p,
    "by keyword": lambda x: torch.relu(input=x - 0.5),
    "in place by position": lambda x: F.relu(x - 0.5, True),
}


@pytest.mark.parametrize("function", ONE_BY_ONE.values(), ids=ONE_BY_ONE)
def test_deep_lift_of_functions_of_single_pixels_is_what_each_pixel_adds(batch, function):
    """f(x) = Σ w φ(x): a pixel's share of f(x) − f(b) is w (φ(x) − φ(b)), whatever φ is."""
    x, y = batch
    model, base = Through(function), x.flip(0)
    maps = attribute(model, x, y, "deep_lift", baseline=base).values
    change = (function(x.double()) - function(base.double())).flatten(1)
    expected = (change * model.head.weight[y].double()).reshape(x.shape)
    torch.testing.assert_close(maps.double(), expected, rtol=0, atol=1e-6)


EXPONENTIAL: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(1),
    "softmax over positions": lambda x: torch.softmax(x.flatten(2), dim=-1, dtype=x.dtype),
    "softmax over the implicit dimension": lambda x: nn.Softmax()(x),
    "log-softmax": lambda x: F.log_softmax(x, 1),
    "log-sum-exp": lambda x: x.logsumexp(1),
    "log-sum-exp over two": lambda x: torch.logsumexp(x, dim=(2, 3), keepdim=True),
}


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("function", EXPONENTIAL.values(), ids=EXPONENTIAL)
@pytest.mark.parametrize("scale", [1.0, 1e-4, 300.0])
def test_deep_lift_is_complete_through_a_softmax(batch, function, scale):
    x, y = batch
    model = Through(lambda x: function(scale * x), nn.Conv2d(1, 4, 3)).double().eval()
    maps = attribute(model, x, y, "deep_lift", baseline=x.flip(0))
    assert maps.total.abs().max() > 1e-9
    error = maps.delta.abs().max() / maps.values.abs().flatten(1).sum(1).max()
    assert error < 1e-5


def test_deep_lift_of_a_softmax_head_is_the_rule_for_each_of_its_steps(batch):
    """softmax = exp(z − log Σ exp z): the rescale rule for exp, log and exp, in float64 step by step."""
    x, y = batch

    class Steps(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.exp(z - torch.log(torch.exp(z).sum(1, keepdim=True)))

    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(144, 5)).double()
    given = {"method": "deep_lift", "baseline": x.flip(0)}
    head = attribute(nn.Sequential(body, nn.Softmax(1)), x, y, **given)
    steps = attribute(nn.Sequential(body, Steps()), x, y, **given)
    torch.testing.assert_close(head.values, steps.values, rtol=1e-4, atol=1e-9)
    same = attribute(nn.Sequential(body, nn.Softmax(1)), x, y, "deep_lift", baseline=x)
    assert torch.equal(same.values, torch.zeros_like(x))


@pytest.mark.parametrize("window", [nn.AdaptiveMaxPool2d(3), nn.AdaptiveMaxPool2d((1, 5))], ids=str)
@pytest.mark.parametrize("baseline", ["zero", "uniform"])
def test_deep_lift_is_complete_through_adaptive_max_pooling(batch, window, baseline):
    x, y = batch
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Through(lambda x: window(torch.tanh(x)), nn.Conv2d(1, 3, 3))
    maps = attribute(model, x, y, "deep_lift", baseline=baseline)
    torch.testing.assert_close(maps.delta, torch.zeros(len(x), dtype=torch.float64), rtol=0, atol=1e-6)


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "glu": (lambda x: F.glu(x, 1), "F.glu"),
    "lp_pool2d": (lambda x: F.lp_pool2d(x, 2.0, 2), "F.lp_pool2d"),
    "amax": (lambda x: x.amax((2, 3)), "Tensor.amax"),
    "max": (lambda x: x.max(1).values, "Tensor.max"),
    "logsumexp": (lambda x: x.logsumexp(1), "Tensor.logsumexp"),
    "softmax": (lambda x: x.softmax(1), "Tensor.softmax"),
    "where": (lambda x: torch.where(x > 0.1, x, 0.2 * x), "where"),
    "maximum of two": (lambda x: torch.maximum(x[:, :2], x[:, 2:]), "maximum"),
    "product by keyword": (lambda x: torch.mul(x[:, :2], other=x[:, 2:]), "mul"),
    "quotient": (lambda x: torch.div(torch.ones(1), x + 9), "div"),
    "with indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], "F.max_pool2d_with_indices"),
}


@pytest.mark.parametrize("name", ["deep_lift", "lrp"])
@pytest.mark.parametrize(("function", "call"), REFUSED.values(), ids=REFUSED)
def test_what_no_rule_covers_is_refused_by_name_and_not_given_the_gradient(name, batch, function, call):
    model = Through(function, nn.Conv2d(1, 4, 3))
    does = {"lrp": ["div"], "deep_lift": ["Tensor.softmax", "Tensor.logsumexp"]}
    if call in does[name]:
        assert torch.isfinite(attribute(model, *batch, name).values).all()
        return
    instead = "'deep_lift'" if call in does["deep_lift"] else "'integrated_gradients'"
    with pytest.raises(InputError, match=rf"{name} .*calls {call}.*{instead}"):
        attribute(model, *batch, name)


def test_lrp_names_deep_lift_only_where_deep_lift_would_do(batch):
    model = Through(lambda x: x.softmax(1), nn.Conv2d(1, 4, 3))
    with pytest.raises(InputError, match=r"calls Tensor.softmax. Use 'deep_lift'"):
        attribute(model, *batch, "lrp")
    assert attribute(model, *batch, "deep_lift").delta.abs().max() < 1e-6


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: torch.add(a, b, alpha=3),
        lambda a, b: torch.add(input=a, other=b, alpha=3),
        lambda a, b: torch.sub(a, b, alpha=2),
        lambda a, b: a.sub(b, alpha=-2),
        lambda a, b: a - b,
    ],
)
def test_lrp_weighs_the_terms_of_a_sum(batch, join):
    """In a linear network without biases each pixel's relevance is its value times its weight."""
    x, y = batch

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(2)
                self.left, self.right = (nn.Conv2d(1, 2, 3, bias=False) for _ in range(2))
                self.head = nn.Linear(200, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(join(self.left(x), self.right(x)).flatten(1))

    model = Joined().double()
    maps = attribute(model, x, y, "lrp", preset="epsilon", epsilon=1e-12).values
    expected = attribute(model, x, y, "input_x_gradient").values
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["deep_lift", "lrp"])
def test_a_model_that_multiplies_activations_is_refused_by_name(name, batch):
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(self.conv(x))

    x, y = batch
    model = nn.Sequential()
    model.add_module("gate", Gate())
    model.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(144, 5)))
    with pytest.raises(InputError, match=rf"{name} .*gate \(Gate\) calls Tensor.mul"):
        attribute(model, x, y, name)


def test_a_model_without_relus_is_refused_by_name(batch):
    x, y = batch
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(200, 5))
    with pytest.raises(InputError, match=r"1 \(GELU\) calls F.gelu"):
        attribute(model, x, y, "guided_backprop")


def test_deep_lift_refuses_a_model_whose_path_depends_on_the_values(batch):
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(144, 5)

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            return self.head(torch.relu(flat) if flat.sum() > 0 else torch.tanh(flat))

    with pytest.raises(InputError, match="depends on the values"):
        attribute(Fork(), *batch, "deep_lift")


class Fused(nn.Module):
    """The network as Captum's LRP wants it: batch norm merged, flattened by a method."""

    def __init__(self, net: nn.Sequential, convolution: PropagationRule, linear: PropagationRule) -> None:
        super().__init__()
        net = copy.deepcopy(net)
        body = nn.Sequential(fuse_conv_bn_eval(net[0], net[1]), *net[2:6])
        self.body, self.head = body, net[8]
        body[0].rule, body[2].rule, body[3].rule = convolution, EpsilonRule(1e-12), copy.copy(convolution)
        self.head.rule = linear
        for layer in (body[0], body[3], self.head):
            layer.rule.STABILITY_FACTOR = EPSILON

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


def _without_biases(net: nn.Sequential) -> nn.Sequential:
    for module in net:
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    net[1].running_mean.zero_()
    return net


@pytest.mark.parametrize(
    ("preset", "convolution", "linear"),
    [
        ("epsilon", EpsilonRule, EpsilonRule),
        ("gamma", GammaRule, EpsilonRule),
        ("alpha1_beta0", Alpha1_Beta0_Rule, Alpha1_Beta0_Rule),
        ("epsilon_plus", Alpha1_Beta0_Rule, EpsilonRule),
    ],
)
def test_lrp_is_captums_on_a_network_without_biases(net, batch, preset, convolution, linear):
    """Under γ and α1β0 Captum leaves biases as they are; here they are weights (Montavon et al. 2019)."""
    x, y = batch
    net = _without_biases(net)
    expected = ca.LRP(Fused(net, convolution(), linear())).attribute(x.clone(), target=y).detach()
    ours = attribute(net, x, y, "lrp", preset=preset, epsilon=EPSILON).values
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_lrp_epsilon_is_captums_with_biases(net, batch):
    x, y = batch
    expected = ca.LRP(Fused(net, EpsilonRule(), EpsilonRule())).attribute(x.clone(), target=y).detach()
    ours = attribute(net, x, y, "lrp", preset="epsilon", epsilon=EPSILON).values
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("preset", ["epsilon", "gamma", "epsilon_plus", "epsilon_plus_flat"])
def test_lrp_conserves_the_score_without_biases(net, batch, preset):
    x, y = batch
    maps = attribute(_without_biases(net), x, y, "lrp", preset=preset)
    torch.testing.assert_close(maps.values.double().flatten(1).sum(1), maps.total, rtol=1e-3, atol=1e-4)


def test_lrp_splits_a_residual_sum(batch):
    """Captum hands the whole relevance to both branches, so its map sums to more than the score."""
    x, y = batch
    model = Overlapping()
    model.act = nn.ReLU()
    for layer in (model.first, model.second, model.last):
        nn.init.zeros_(layer.bias)
    maps = attribute(model, x, y, "lrp", preset="epsilon", epsilon=1e-9)
    torch.testing.assert_close(maps.values.double().flatten(1).sum(1), maps.total, rtol=1e-3, atol=1e-4)


def test_lrp_of_a_linear_model_is_input_times_weight(batch):
    x, y = batch
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 5, bias=False))
    expected = x * model[1].weight[y].reshape(x.shape).detach()
    for preset in ("epsilon", "epsilon_plus"):
        torch.testing.assert_close(
            attribute(model, x, y, "lrp", preset=preset).values, expected, rtol=1e-4, atol=1e-6
        )


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["guided_backprop", "deconvolution", "deep_lift", "lrp", "attention_rollout"]
)
def test_scripted_and_compiled_parts_are_refused_by_name(name, batch):
    x, y = batch
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    model = nn.Sequential()
    model.add_module("body", torch.jit.trace(body.eval(), x))
    model.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(200, 5)))
    with pytest.raises(InputError, match=f"{name} must see the modules and calls .*, but body was traced"):
        attribute(model, x, y, name)
    model.body = body
    body.compile()
    with pytest.raises(InputError, match="body was compiled"):
        attribute(model, x, y, name)


class Cancelling(nn.Module):
    """Two pixels that cancel exactly in front of a nonlinearity: its Δinput and Δoutput are 0."""

    def __init__(self, nonlinearity: nn.Module, shift: float) -> None:
        super().__init__()
        self.first, self.nonlinearity, self.last = nn.Linear(4, 1), nonlinearity, nn.Linear(1, 2)
        with torch.no_grad():
            self.first.weight[:] = torch.tensor([[1.0, -1.0, 0.0, 0.0]])
            self.first.bias[:] = shift
            self.last.weight[:] = torch.tensor([[3.0], [-3.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.nonlinearity(self.first(x.flatten(1))))


@pytest.mark.parametrize(
    ("nonlinearity", "shift", "slope"),
    [(nn.ReLU(), 0.5, 1.0), (nn.ReLU(), -0.5, 0.0), (nn.Sigmoid(), 0.0, 0.25), (nn.Tanh(), 0.0, 1.0)],
)
def test_deep_lift_takes_the_derivative_where_changes_cancel(nonlinearity, shift, slope):
    model, x = Cancelling(nonlinearity, shift), torch.tensor([0.5, 0.5, 0.2, 0.9]).reshape(1, 1, 2, 2)
    ours = attribute(model, x, method="deep_lift", target=0).values
    expected = 3 * slope * torch.tensor([0.5, -0.5, 0.0, 0.0]).reshape(1, 1, 2, 2)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    theirs = ca.DeepLift(model).attribute(x.clone(), torch.zeros_like(x), target=0)
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-6)


def test_deep_lift_takes_the_derivative_where_changes_cancel_in_a_pooled_maximum():
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mixed = torch.cat([x[..., :1] - x[..., 1:2] + 1, 0 * x[..., 2:]], -1)  # its maximum is unmoved
            score = F.max_pool2d(mixed, (1, 3)).flatten(1)
            return torch.cat([score, -score], 1)

    x = torch.tensor([0.5, 0.5, 0.2, 0.9]).reshape(1, 1, 1, 4)
    maps = attribute(Pooled(), x, method="deep_lift", target=0)
    assert maps.values.flatten().tolist() == [0.5, -0.5, 0.0, 0.0]
    nearly = x + torch.tensor([0.0, 1e-3, 0.0, 0.0])
    moved = attribute(Pooled(), nearly, method="deep_lift", target=0)
    torch.testing.assert_close(moved.values, maps.values, rtol=0, atol=2e-3)


def test_threads_that_share_a_model_get_the_same_maps(rgb_net, rgb_batch):
    """Rules by module name need hooks, which the passes of other threads call as well."""
    rules = [{"0": "flat"}, {"0": "box"}, {"4": "gamma"}, {"8": "alpha1_beta0"}] * 2
    alone = [attribute(rgb_net, *rgb_batch, "lrp", rules=each).values for each in rules]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(attribute, rgb_net, *rgb_batch, "lrp", rules=each) for each in rules]
        together = [job.result().values for job in jobs]
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in rgb_net.modules())


@pytest.mark.parametrize("name", ["lrp", "attn_lrp", "full_grad", "deep_lift"])
def test_a_normalisation_that_is_called_by_torchs_own_name_is_the_same(name, rgb_net, rgb_batch):
    """torch.batch_norm takes its arguments in another order than torch.nn.functional.batch_norm."""

    class Named(nn.Module):
        def __init__(self, norm: nn.BatchNorm2d) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            norm = self.norm
            facts = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
            return torch.batch_norm(x, *facts, False, 0.1, norm.eps, False)

    twin = nn.Sequential(
        *(Named(layer) if isinstance(layer, nn.BatchNorm2d) else layer for layer in rgb_net)
    ).eval()
    assert any(isinstance(layer, Named) for layer in twin)
    x, y = rgb_batch
    maps, expected = (attribute(each, x, y, name).values for each in (twin, rgb_net))
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-6)


RECTIFIERS: dict[str, Callable[[Tensor], Tensor]] = {
    "max of two": lambda h: torch.max(h, torch.zeros_like(h)),
    "max of zero and it": lambda h: torch.max(torch.zeros(()), h),
    "max by keyword": lambda h: torch.max(h, other=torch.zeros(())),
    "maximum": lambda h: torch.maximum(h, torch.zeros(())),
    "fmax": lambda h: torch.fmax(h, torch.zeros(())),
    "clamp": lambda h: h.clamp(min=0),
    "hardtanh": lambda h: F.hardtanh(h, 0, 1e6),
}


@pytest.mark.parametrize("name", ["guided_backprop", "deconvolution"])
@pytest.mark.parametrize("spelling", RECTIFIERS)
def test_a_relu_is_one_however_it_is_spelt(name, spelling):
    class Two(nn.Module):
        def __init__(self, rectify: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)
            self.rectify = rectify

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.second(self.rectify(self.first(x)))).mean((2, 3)))

    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, found = (
        attribute(Two(rectify), x, None, name, target=1).values for rectify in (F.relu, RECTIFIERS[spelling])
    )
    assert torch.equal(found, expected)


class Folded(nn.Module):
    """Runs a network on rows in which the images of the batch are joined with positions or channels."""

    def __init__(self, rows: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = rows
        self.patches, self.wide, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 4)
        self.conv, self.tail = nn.Conv2d(1, 4, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, channels = x.shape[:2]
        if self.rows == "channels":
            maps = F.max_pool2d(torch.sigmoid(self.conv(x.reshape(n * channels, 1, *x.shape[2:]))), 2)
            return self.tail(maps.mean((2, 3))).view(n, channels, 4).mean(1)
        tokens = self.wide(self.patches(x).permute(0, 2, 3, 1).reshape(-1, 8))
        tokens = tokens.softmax(1) if self.rows == "softmax" else F.relu(tokens)
        return self.head(tokens.view(n, -1, 8).mean(1))


@pytest.mark.parametrize("rows", ["positions", "channels", "softmax"])
def test_deep_lift_of_images_joined_in_rows_is_that_of_each_image(rows):
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = Folded(rows)
    maps = attribute(model, x, None, "deep_lift", target=1)
    alone = [attribute(model, image[None], None, "deep_lift", target=1).values for image in x]
    torch.testing.assert_close(maps.values, torch.cat(alone))
    assert maps.completeness_error.max() < 1e-4
    base = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    shap = attribute(model, x, None, "deep_lift_shap", target=1, baselines=base)
    assert shap.completeness_error.max() < 1e-3


def test_a_backward_hook_of_the_users_is_what_is_to_be_removed(net, batch):
    handle = net[0].register_full_backward_hook(lambda module, inner, outer: None)
    try:
        with pytest.raises(InputError, match="Remove the model's backward hooks"):
            attribute(net, *batch, "lrp")
    finally:
        handle.remove()
