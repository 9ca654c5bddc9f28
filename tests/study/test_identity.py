"""What makes two models, or two functions, the same: cells are kept under it."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import os
import re
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab._common.fingerprints import canonical, model_fingerprint
from saliency_lab._common.hashing import fingerprint
from saliency_lab.attribution.catalogue import METHODS, key_settings
from saliency_lab.study import Study


class Quantised(nn.Module):
    def __init__(self, net: nn.Module, levels: int = 0) -> None:
        super().__init__()
        self.net = net
        self.levels = levels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net((x * self.levels).round() / self.levels if self.levels else x)


def test_models_that_differ_in_an_attribute_do_not_share_results(
    make_net: Callable[[int], nn.Module], tiny_sample: tuple[torch.Tensor, torch.Tensor]
) -> None:
    net = make_net(0)
    models = {"as it is": Quantised(net), "1 bit": Quantised(net, 1)}
    found = Study(models, tiny_sample).attribute("saliency").attack("fgsm", eps=0.1)
    x, y = tiny_sample
    for name, model in models.items():
        right = (model(x).argmax(1) == y).numpy()
        seen = found.robustness.query("model == @name and eps == 0").sort_values("sample")
        np.testing.assert_array_equal(seen.iloc[:, -1].astype(bool), right)
        assert torch.equal(found.maps[name]["saliency"].values, sl.attribute(model, x, y, "saliency").values)


class Net(nn.Module):
    gain = 1.0

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        with torch.no_grad():
            self.linear.weight.fill_(0.5)
            self.linear.bias.fill_(0.1)
        vars(self).update(attributes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return self.linear(x.flatten(1))


class Louder(Net):
    gain = 2.0


class Backward(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -self.linear(x.flatten(1))


def _buffered(value: float) -> nn.Module:
    net = Net()
    net.register_buffer("mean", torch.tensor(value), persistent=False)
    return net


def _replaced() -> nn.Module:
    net = nn.Sequential(nn.Flatten())
    net.forward = lambda x: -x  # type: ignore[method-assign]
    return net


def _encoder(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, dim_feedforward=8, **settings)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: Net(), lambda: Net(levels=1)),
        (lambda: Net(act=F.relu), lambda: Net(act=F.gelu)),
        (lambda: Net(act=torch.sin), lambda: Net(act=torch.cos)),
        (lambda: Net(act=lambda x: x), lambda: Net(act=lambda x: x + 1)),
        (lambda: Net(mean=torch.zeros(2)), lambda: Net(mean=torch.ones(2))),
        (lambda: Net(config=SimpleNamespace(bits=1)), lambda: Net(config=SimpleNamespace(bits=2))),
        (lambda: Net(parts=[nn.Linear(2, 2, bias=False)]), lambda: Net(parts=[nn.Linear(2, 3, bias=False)])),
        (lambda: Net(), lambda: Louder()),
        (lambda: Net(), lambda: Backward()),
        (lambda: nn.Sequential(Net()), lambda: nn.Sequential(Backward())),
        (lambda: _buffered(1.0), lambda: _buffered(2.0)),
        (lambda: Net(), lambda: Net().double()),
        (lambda: Net(), lambda: Net().bfloat16()),
        (lambda: nn.Sequential(nn.Flatten()), _replaced),
        (lambda: _encoder(nhead=2), lambda: _encoder(nhead=4)),
        (lambda: _encoder(nhead=2, activation="relu"), lambda: _encoder(nhead=2, activation="gelu")),
    ],
)
def test_models_that_compute_differently_have_different_fingerprints(
    one: Callable[[], nn.Module], other: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(0)
    first, again = model_fingerprint(one()), None
    torch.manual_seed(0)
    again = model_fingerprint(one())
    assert first == again
    assert first != model_fingerprint(other())


def test_weights_beyond_float32_count() -> None:
    nets = [Net().double() for _ in range(2)]
    with torch.no_grad():
        nets[1].linear.weight += 1e-12
    assert model_fingerprint(nets[0]) != model_fingerprint(nets[1])


def test_looking_at_a_model_leaves_its_fingerprint(tiny_sample: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Neither the mode nor the card nor what a forward pass or a hook leaves behind counts."""
    net = Net(_notes=[])
    before = model_fingerprint(net)
    net(torch.rand(2, 1, 2, 2))
    net._notes.append(1)
    net.card = sl.load_model("digits/standard").card
    assert model_fingerprint(net.eval()) == before
    assert model_fingerprint(copy.deepcopy(net)) == before


def test_a_model_that_knows_its_parent_has_a_fingerprint() -> None:
    def tied() -> nn.Module:
        child, parent = Net(), Net()
        parent.child, child.parents = child, [parent]
        return parent

    assert model_fingerprint(tied()) == model_fingerprint(tied())


def test_an_attribute_that_cannot_be_hashed_is_named() -> None:
    with pytest.raises(InputError, match=r"the attribute 'lock' of the network's Net: .*call it '_lock'"):
        model_fingerprint(Net(lock=threading.Lock()))


@pytest.mark.parametrize("name", ["digits/standard", "mnist/asgt"])
def test_the_fingerprint_of_known_parts_is_that_of_its_print_and_its_values(name: str) -> None:
    """Days of results are kept under it."""
    net = sl.load_model(name)
    state = net.state_dict()
    assert model_fingerprint(net) == fingerprint(repr(net), list(state), *(t.float() for t in state.values()))


def test_the_keys_of_functions_are_what_they_were() -> None:
    assert canonical(len) == "function 0c7bbdf3fdf615ea7e74864c7d172f06"
    assert canonical(torch.relu) == "function c557dedc336385e437b7b3c7cb36a2a7"


SCRIPT = """
import functools
class Shift:
    {before}
    def __init__(self, by): self.by = by
    def {name}(self): return (lambda: {value})()
"""


def _typed(value: str, *, name: str = "shift", before: str = "gain = 1") -> Any:
    """A class as it is typed into Jupyter: of `__main__`, without source."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(SCRIPT.format(value=value, name=name, before=before), "<cell>", "exec"), space)
    kind = space["Shift"]
    kind.__call__ = kind.__dict__[name]
    return kind


@pytest.mark.parametrize(
    "other",
    [
        {"value": "2"},
        {"value": "1", "before": "gain = 2"},
        {"value": "(1, 2)"},
        {"value": "1", "name": "move"},
    ],
)
def test_classes_without_source_are_distinguished_by_their_code(other: dict[str, str]) -> None:
    assert canonical(_typed("1")(0)) == canonical(_typed("1")(0))
    assert canonical(_typed("1")(0)) != canonical(_typed("1")(1))
    assert canonical(_typed("1")(0)) != canonical(_typed(**other)(0))
    inherited = [
        type("Heir", (_typed(**each),), {"__module__": "__main__"}) for each in ({"value": "1"}, other)
    ]
    assert canonical(inherited[0](0)) != canonical(inherited[1](0))


class _Slotted:
    __slots__ = ("factor",)

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class _Plain:
    def __init__(self, factor: float) -> None:
        self.factor = factor


@dataclasses.dataclass(frozen=True, slots=True)
class _Frozen:
    factor: float


def _closed(value: object) -> Callable[[], object]:
    return lambda: value


@pytest.mark.parametrize(
    "make",
    [
        _Slotted,
        lambda factor: _closed(_Plain(factor)),
        lambda factor: _closed(_Frozen(factor)),
        lambda factor: _closed({"a": [_Plain(factor)]}),
        lambda factor: _closed(collections.deque([factor])),
        lambda factor: _closed(re.compile(str(factor))),
        lambda factor: _closed(Path(str(factor))),
        lambda factor: _closed(bytes([int(factor)])),
        lambda factor: _closed(np.array([_Plain(factor)])),
        lambda factor: functools.lru_cache([lambda: 1, lambda: 2][int(factor) - 2]),
        lambda factor: [np.sin, np.cos][int(factor) - 2],
    ],
)
def test_callables_are_distinguished_by_the_objects_they_hold(make: Callable[[float], object]) -> None:
    assert canonical(make(2.0)) == canonical(make(2.0))
    assert canonical(make(2.0)) != canonical(make(3.0))


USES = """
import logging, threading, types
import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter, median_filter
helpers = types.ModuleType("helpers_of_a_user")
helpers.soft = lambda x: x
helpers.deep = types.ModuleType("helpers_of_a_user.deep")
helpers.deep.sharp = lambda x: x
class Config:
    def __init__(self, k): self.k = k
def inner(x): return x + 1
def helper(x): return inner(x)
def even(n): return n == 0 or odd(n - 1)
def odd(n): return n > 0 and even(n - 1)
vectorised = np.vectorize(inner)
lookup = {0: 1}.get
squash = torch.nn.Threshold(0.1, 0).forward
K, SCALES, MEAN, CONFIG, smooth = 1, {"a": 1}, torch.zeros(2), Config(1), gaussian_filter
log, lock, _cache, count, act, unused = logging.getLogger("a"), threading.Lock(), [], 0, F.relu, 1
def own(x):
    global count
    count += 1
    log.info(x), lock.locked(), _cache.append(1)
    there = [helper(each) for each in x], helpers.soft(x), act(x), smooth(x, 1)
    there += helpers.deep.sharp(x), vectorised(x), lookup(0), squash(x)
    return there, K, SCALES, MEAN, CONFIG, even(2)
"""


def _own(change: str = "") -> Any:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(USES + change, "<cell>", "exec"), space)
    return space["own"]


@pytest.mark.long
@pytest.mark.parametrize(
    "change",
    [
        "K = 2",
        "SCALES['a'] = 2",
        "MEAN[0] = 1",
        "CONFIG.k = 2",
        "smooth = median_filter",
        "act = F.gelu",
        "helpers.soft = lambda x: 2 * x",
        "def inner(x): return x + 2",
        "def odd(n): return False",
        "helpers.deep.sharp = lambda x: 2 * x",
        "vectorised = np.vectorize(even)",
        "lookup = {0: 2}.get",
        "squash = torch.nn.Threshold(0.9, 0).forward",
    ],
)
def test_a_function_counts_with_the_globals_that_it_uses(change: str) -> None:
    """In Jupyter a helper is edited and its cell run again: what it made before is of another function."""
    assert canonical(_own(change)) == canonical(_own(change))
    assert canonical(_own(change)) != canonical(_own())


@pytest.mark.long
@pytest.mark.parametrize(
    "change",
    ["log = logging.getLogger('b')", "_cache.append(1)", "own(torch.ones(2, 2))", "unused = 2"],
)
def test_what_a_function_does_not_use_or_only_keeps_does_not_count(change: str) -> None:
    assert canonical(_own(change)) == canonical(_own())


def test_a_global_that_cannot_be_hashed_is_named() -> None:
    with pytest.raises(InputError, match=r"the global 'CONFIG': .*begin its name with an underscore"):
        canonical(_own("CONFIG.lock = lock"))


def test_a_forward_put_into_a_network_counts_with_its_globals() -> None:
    def patched(value: float) -> nn.Module:
        space: dict[str, Any] = {"__name__": "__main__", "K": value}
        exec("def forward(self, x): return self.linear(x.flatten(1)) * K", space)
        net = Net()
        net.forward = types.MethodType(space["forward"], net)  # type: ignore[method-assign]
        return net

    assert model_fingerprint(patched(1)) == model_fingerprint(patched(1))
    assert model_fingerprint(patched(1)) != model_fingerprint(patched(0))


def test_a_network_counts_with_the_globals_of_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = model_fingerprint(Rounded())
    monkeypatch.setattr(sys.modules[__name__], "LEVELS", 3)
    assert model_fingerprint(Rounded()) != before


LEVELS = 2


class Rounded(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward((x * LEVELS).round() / LEVELS)


def test_objects_that_hold_each_other_have_a_key() -> None:
    def tied() -> Callable[[], object]:
        one, two = _Plain(1), _Plain(2)
        one.other, two.other = two, one  # type: ignore[attr-defined]
        return _closed(one)

    assert canonical(tied()) == canonical(tied())


class Ordered(collections.OrderedDict[str, torch.Tensor]):
    pass


class Tabled(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Ordered(out=super().forward(x))["out"]


def test_a_class_that_inherits_from_one_written_in_c_counts() -> None:
    assert model_fingerprint(Tabled()) == model_fingerprint(Tabled())
    fromkeys = vars(dict)["fromkeys"]
    assert canonical(_closed(fromkeys)) == canonical(_closed(fromkeys))
    assert canonical(_closed(fromkeys)) != canonical(_closed(vars(bytes)["fromhex"]))


@pytest.mark.long
def test_a_compiled_network_is_the_network_that_it_was_made_from(
    make_net: Callable[[int], nn.Module], tiny_sample: tuple[torch.Tensor, torch.Tensor]
) -> None:
    net = make_net(0)
    compiled = torch.compile(net, backend="eager")
    around = nn.Sequential(torch.compile(net, backend="eager"))
    before = model_fingerprint(around)
    found = Study({"t": compiled}, tiny_sample).attribute("saliency").score("sparseness")
    around(tiny_sample[0])
    assert model_fingerprint(compiled) == model_fingerprint(net)
    assert model_fingerprint(around) == before != model_fingerprint(nn.Sequential(make_net(1)))
    eager = Study({"t": net}, tiny_sample).attribute("saliency").score("sparseness")
    assert found.results == eager.results and found.scores.equals(eager.scores)


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_network_is_refused(
    make_net: Callable[[int], nn.Module], tiny_sample: tuple[torch.Tensor, torch.Tensor]
) -> None:
    quantised = torch.ao.quantization.quantize_dynamic(make_net(0), {nn.Linear})
    with pytest.raises(InputError, match=r"quantised by torch\.ao .*; pass the network it was made from"):
        Study({"t": quantised}, tiny_sample)


def test_what_cannot_be_hashed_is_refused() -> None:
    with pytest.raises(InputError, match=r"content of a _thread\.lock cannot be hashed"):
        canonical(_closed(threading.Lock()))


ELSEWHERE = """
import re
from saliency_lab._common.fingerprints import canonical, model_fingerprint, nn
class Net(nn.Module):
    sizes = {"p", "q", "r"}
    def forward(self, x):
        return x if x in {"s", "t", "u"} else None
net = Net()
net.mixed = {"a", "b", "c", (1, "d")}
net.pattern = re.compile("a")
print(canonical(lambda x: net), model_fingerprint(net))
"""


@pytest.mark.long
def test_keys_are_the_same_in_another_process() -> None:
    """Also of sets, whose order is not."""
    fingerprints = {
        subprocess.run(
            [sys.executable, "-c", ELSEWHERE],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(fingerprints) == 1


def test_many_objects_that_all_know_each_other_are_hashed_quickly() -> None:
    crowd = [_Plain(number) for number in range(30)]
    for each in crowd:
        each.others = crowd  # type: ignore[attr-defined]
    assert canonical(_closed(crowd)).startswith("function ")


def test_layers_that_look_alike_are_told_apart(tiny_sample: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = tiny_sample
    torch.manual_seed(0)
    channels, classes = x.shape[1], int(y.max()) + 1
    layers = [nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes)).eval()
    given = {
        "first": {"method": "layer_cam", "layer": net[1]},
        "second": {"method": "layer_cam", "layer": net[3]},
        "averaged": {"method": "smoothgrad", "n": 2, "base": "layer_cam", "base_settings": {"layer": net[1]}},
    }
    study = Study({"net": net, "twin": copy.deepcopy(net)}, tiny_sample).attribute(given)
    for model in ("net", "twin"):  # the name of the layer holds for every network
        maps = study.maps[model]
        assert maps["first"].settings["layer"] == "1" and maps["second"].settings["layer"] == "3"
        for label, layer in (("first", "1"), ("second", "3")):
            expected = sl.attribute(net, x, y, "layer_cam", layer=layer).values
            assert torch.equal(maps[label].values, expected)
    assert not torch.equal(study.maps["net"]["first"].values, study.maps["net"]["second"].values)


def test_a_default_that_is_given_is_the_default() -> None:
    lime = METHODS["lime"].settings
    given = [{}, {"kernel_width": float("1.0")}]  # another object than the default
    keys = [canonical(key_settings(lime, dict(lime(**each)))) for each in given]
    assert keys[0] == keys[1]
    assert canonical(key_settings(lime, dict(lime(kernel_width=0.5)))) != keys[0]
