"""Faster passes: they return what the model returns, leave it alone, and are used only where that holds."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

import saliency_lab as sl
from benchmarks.defences import BROKEN
from saliency_lab._common import passes
from saliency_lab._common.compiling import CompileError, compiled_in_place, compiler
from saliency_lab._common.folding import FoldedCopy, copy_for_evaluation, fold_batch_norm
from saliency_lab._common.inference import run_without_graph
from saliency_lab._common.passes import Passes, weights_digest
from saliency_lab.data import ImageData
from saliency_lab.data.images import Split


@pytest.fixture(autouse=True)
def _any_work_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "LONG_WORK", 0.0)
    monkeypatch.setattr(passes, "MANY_IMAGES", 0)
    monkeypatch.setattr(passes, "_SHARE", float("inf"))
    monkeypatch.setattr(passes, "_SHORT", 0.0)
    monkeypatch.setattr(passes, "compile_seconds", lambda model: float("inf"))
    monkeypatch.setattr(passes, "_plans", {})
    monkeypatch.setattr(passes, "seconds_per_image", lambda model, shape: 1e-3)


def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch normalisations statistics that are not those of a fresh network."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
    return net.eval()


class Residual(nn.Module):
    """A small residual network, whose normalisations can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.norm(self.first(x)).relu_()
        x = (x + self.norm2(self.second(x))).relu()
        return self.head(x.mean((2, 3)))


def folded_logits(net: nn.Module, x: Tensor) -> tuple[int, Tensor]:
    twin = copy_for_evaluation(net)
    count = fold_batch_norm(twin, x[:1], lambda model, image: model(image))
    with torch.no_grad():
        return count, twin(x)


def exact(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(net).double()(x.double())


@pytest.mark.parametrize(
    ("build", "size", "expected"),
    [
        (Residual, 8, 3),
        (lambda: sl.build_model("resnet8", input_shape=(3, 16, 16)), 16, None),
        pytest.param(lambda: torchvision.models.resnet18(num_classes=5), 64, 20, marks=pytest.mark.long),
        pytest.param(lambda: torchvision.models.mobilenet_v2(num_classes=5), 64, 52, marks=pytest.mark.long),
        (lambda: nn.Sequential(sl.Normalised(Residual(), (0.5,) * 3, (0.2,) * 3)), 8, 3),
    ],
)
def test_folding_keeps_the_logits(build, size, expected):
    net, x = lively(build()), torch.rand(3, 3, size, size)
    count, logits = folded_logits(net, x)
    assert count == (expected or count) > 0
    reference = exact(net, x)
    assert (logits - reference).abs().max() <= 1e-5 * max(1, reference.abs().max())


@pytest.mark.long
def test_folding_reads_timm_normalisations_with_their_activation():
    timm = pytest.importorskip("timm")
    net = lively(timm.create_model("efficientnet_lite0", num_classes=4))
    x = torch.rand(2, 3, 64, 64)
    count, logits = folded_logits(net, x)
    assert count > 40
    reference = exact(net, x)
    assert (logits - reference).abs().max() <= 1e-5 * max(1, reference.abs().max())


def test_frozen_and_transposed_layers_fold():
    frozen = torchvision.ops.FrozenBatchNorm2d(4)
    frozen.running_mean.normal_(), frozen.running_var.uniform_(0.5, 2), frozen.weight.uniform_(0.5, 2)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        frozen,
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        nn.BatchNorm2d(6, affine=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.BatchNorm1d(5, affine=False),
    )
    net[3].running_mean.normal_(), net[3].running_var.uniform_(0.5, 2)
    net[7].running_mean.normal_(), net[7].running_var.uniform_(0.5, 2)
    net, x = net.eval(), torch.rand(2, 3, 6, 6)
    count, logits = folded_logits(net, x)
    assert count == 3
    torch.testing.assert_close(logits.double(), exact(net, x), rtol=1e-5, atol=1e-5)


class Twice(nn.Module):
    """What cannot be folded: a layer that runs twice, a shared weight, an output that is also read raw."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.norm = kind, nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.other = nn.Conv2d(3, 3, 3, padding=1)
        if kind == "shared":
            self.other.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        raw = self.conv(x)
        out = self.norm(raw)
        if self.kind == "twice":
            out = self.norm(self.conv(out))
        if self.kind == "shared":
            out = self.other(out)
        if self.kind == "changed":
            raw = self.conv(x)
            raw.mul_(2)
            out = self.norm(raw)
        if self.kind == "raw":
            out = out + raw
        return out.mean((2, 3))


@pytest.mark.parametrize("kind", ["twice", "shared", "changed", "raw"])
def test_layers_that_cannot_be_folded_are_left(kind):
    net, x = lively(Twice(kind)), torch.rand(2, 3, 8, 8)
    count, logits = folded_logits(net, x)
    assert count == 0
    assert torch.equal(logits, net(x))


def decided(net: nn.Module, x: Tensor, *, backward: bool = False, mode: object = "auto") -> Passes:
    found = Passes(net, x, backward=backward)
    with sl.execution(compile=mode):
        found.expect(10_000)
    return found


def force(monkeypatch: pytest.MonkeyPatch, **wanted: object) -> None:
    """Let the form with these properties be the fastest."""

    def seconds(self, form, rows):
        return 1e-3 if all(getattr(form.plan, key) == value for key, value in wanted.items()) else 1.0

    monkeypatch.setattr(passes._Trial, "seconds", seconds)


def test_an_output_that_is_also_read_before_the_normalisation_is_not_folded(monkeypatch):
    force(monkeypatch, folded=True)
    x = torch.rand(4, 3, 8, 8)
    assert decided(lively(Residual()), x).plan.folded
    net = lively(Twice("raw"))
    found = decided(net, x)
    assert found.plan is None
    torch.testing.assert_close(found.logits(x), net(x).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_logits_and_gradients_of_the_fast_form_are_those_of_the_model(monkeypatch, layout):
    force(monkeypatch, folded=True, layout=layout)
    net, x = lively(Residual()), torch.rand(37, 3, 8, 8)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = decided(net, x)
    assert found.plan.folded and found.plan.layout == layout
    assert (found.logits(x) - exact(net, x)).abs().max() <= 1e-5
    back = decided(net, x, backward=True)
    assert back.plan.folded
    points = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(back.differentiable()(points)[:, 1].sum(), points)
    inputs = x.double().requires_grad_(True)
    (reference,) = torch.autograd.grad(copy.deepcopy(net).double()(inputs)[:, 1].sum(), inputs)
    assert (gradient - reference).abs().max() <= 1e-5
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert isinstance(net.norm, nn.BatchNorm2d)


def test_changed_weights_are_seen(monkeypatch):
    force(monkeypatch, folded=True)
    net, x = lively(Residual()), torch.rand(4, 3, 8, 8)
    found = decided(net, x)
    with torch.no_grad():
        net.first.weight.mul_(2)  # in the middle of a call
    torch.testing.assert_close(found.logits(x), net(x).detach())
    again = decided(net, x)
    torch.testing.assert_close(again.logits(x), net(x).detach(), rtol=1e-5, atol=1e-5)
    assert again.plan.folded
    net.norm.running_mean.data += 1  # behind torch's back, between two calls
    torch.testing.assert_close(decided(net, x).logits(x), net(x).detach(), rtol=1e-5, atol=1e-5)
    net.head[2] = nn.Tanh()  # a change that no weight shows
    torch.testing.assert_close(decided(net, x).logits(x), net(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [lambda w: w.mul_(2), lambda w: w.neg_(), lambda w: w.copy_(w.flip(0))])
def test_the_digest_of_weights_changes_when_every_weight_is_doubled_or_moved(change):
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    before = weights_digest(model)
    assert weights_digest(model) == before
    change(model.weight.data)
    assert weights_digest(model) != before


class Counting(Residual):
    """Counts its passes, as a wrapper that charges per query does."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        self.calls += 1
        return super().forward(x)


class Noisy(Residual):
    """Is random in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return super().forward(x + 0.1 * torch.rand_like(x))


class Defended(Residual):
    """Moves the image along its own gradient first."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        with torch.enable_grad():
            points = x.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(super().forward(points).logsumexp(1).sum(), points)
        return super().forward(x + 0.1 * slope.sign())


def hooked() -> nn.Module:
    net = Residual()
    net.norm.register_forward_hook(lambda module, given, output: output * 2)
    return net


@pytest.mark.parametrize("build", [Counting, Noisy, hooked, lambda: nn.DataParallel(Residual())])
def test_models_that_a_copy_cannot_stand_for_run_as_they_are(monkeypatch, build):
    force(monkeypatch, folded=True)
    net, x = lively(build()), torch.rand(4, 3, 8, 8)
    found = decided(net, x)
    assert found.plan is None or not found.plan.folded
    before = getattr(net, "calls", 0)
    found.logits(x)
    assert getattr(net, "calls", 0) > before or not isinstance(net, Counting)


def test_a_model_that_differentiates_in_its_pass_keeps_its_logits(monkeypatch):
    force(monkeypatch, folded=True)
    net, x = lively(Defended()), torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(decided(net, x).logits(x), net(x).detach(), rtol=1e-4, atol=1e-4)


def test_nobody_who_looks_inside_is_bypassed(monkeypatch):
    force(monkeypatch, folded=True)
    net, x = lively(Residual()), torch.rand(4, 3, 8, 8)
    found, seen = decided(net, x), []
    handle = net.second.register_forward_hook(lambda *_: seen.append(1))
    found.logits(x)
    handle.remove()
    assert seen == [1]
    found.logits(x)
    assert seen == [1]


@pytest.mark.long
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_scores_and_maps_do_not_change(monkeypatch, layout):
    net, x, y = lively(Residual()), torch.rand(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    with torch.no_grad():
        net.head[3].weight *= 4  # so that a removal changes the logits by more than their rounding
    calls = {
        "occlusion": {"window": 4},
        "feature_ablation": {"segments": 5},
        "rise": {"n": 20},
        "kernel_shap": {"n": 20, "segments": 5},
        "shapley_value_sampling": {"n": 2, "segments": 5},
        "smoothgrad": {"n": 4},
        "integrated_gradients": {"steps": 8},
    }
    metrics = ["faithfulness_correlation", "pixel_flipping", "insertion", "road", "infidelity", "selectivity"]

    def everything() -> tuple[dict, dict]:
        maps = {name: sl.attribute(net, x, y, name, **given) for name, given in calls.items()}
        fixed = {"m": torch.arange(x.numel(), dtype=torch.float32).reshape(x.shape).sin()}
        return maps, sl.evaluate_many(net, x, y, fixed, metrics)["m"]

    with sl.execution(compile=False):
        maps, scores = everything()
    assert all("passes" not in each.provenance for each in maps.values())
    force(monkeypatch, folded=True, layout=layout)
    fast_maps, fast_scores = everything()
    for name, each in fast_maps.items():
        facts = each.provenance["passes"]
        assert next(iter(facts.values()))["folded"], name
        assert (each.values - maps[name].values).abs().max() <= 1e-5 * max(1, maps[name].values.abs().max())
    for name, each in fast_scores.items():
        assert each.provenance["passes"]["folded"] and each.provenance["passes"]["layout"] == layout
        assert abs(each.values - scores[name].values).max() <= 1e-5, name


def test_the_number_of_images_per_pass_is_measured_and_used_again(monkeypatch):
    net, x = lively(Residual()), torch.rand(6, 3, 8, 8)
    asked = []

    def seconds(self, form, rows):
        asked.append(rows)
        return abs(rows - 32) + 1.0

    monkeypatch.setattr(passes._Trial, "seconds", seconds)
    assert decided(net, x).plan.rows == 32
    asked.clear()
    other = lively(Residual(), seed=3)  # the same structure
    assert decided(other, x).plan.rows == 32 and not asked
    book: dict = {}
    with passes.plans_kept_in(book):
        decided(net, x)
    assert asked and len(book) == 1


def test_bfloat16_is_opt_in_and_only_evaluates():
    net, x, y = lively(Residual()), torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    maps = torch.rand_like(x)
    own = sl.evaluate(net, x, y, maps, "faithfulness_correlation", runs=10)
    with sl.execution(dtype=torch.bfloat16):
        low = sl.evaluate_detailed(net, x, y, maps, "faithfulness_correlation", runs=10)
        saliency = sl.attribute(net, x, y, "saliency")
    assert low.provenance["passes"]["dtype"] == "bfloat16"
    assert abs(low.values - own).max() > 0
    assert torch.equal(saliency.values, sl.attribute(net, x, y, "saliency").values)


@pytest.mark.parametrize("given", [{"compile": "yes"}, {"compile": 1.5}, {"dtype": "int8"}, {"dtype": 16}])
def test_other_settings_are_refused(given):
    with pytest.raises(sl.SaliencyLabError, match="must be"), sl.execution(**given):
        pass


def test_blocks_nest_and_end_after_an_exception():
    from saliency_lab._common.execution import current_execution

    with sl.execution(compile=False):
        with pytest.raises(ZeroDivisionError), sl.execution(dtype="bfloat16"):
            raise ZeroDivisionError
        assert current_execution().compile is False and current_execution().dtype is None
    assert current_execution().compile == "auto"


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_on_a_processor_without_it_is_announced_once(monkeypatch, native):
    said: list[str] = []
    monkeypatch.setattr(passes, "announce", said.append)
    monkeypatch.setattr(passes, "has_bfloat16", lambda: native)
    monkeypatch.setattr(passes, "_logged", set())
    net, x = lively(Residual()), torch.rand(4, 3, 8, 8)
    for _ in range(2):
        with sl.execution(dtype="bfloat16"):
            sl.attribute(net, x, method="occlusion", target=0)
    assert sum("no instructions" in line for line in said) == (0 if native else 1)


def test_without_a_compiler_the_model_runs_uncompiled_and_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr("saliency_lab._common.compiling.compiler", lambda: None)
    monkeypatch.setattr(passes, "_logged", set())
    said = []
    monkeypatch.setattr(passes, "announce", said.append)
    net, x = lively(Residual()), torch.rand(4, 3, 8, 8)
    found = decided(net, x, mode=True)
    assert not found.plan.compiled
    assert len(said) == 1 and "compiler" in said[0]


@pytest.mark.slow
def test_compiled_logits_are_those_of_the_model(monkeypatch):
    force(monkeypatch, compiled=True)
    net, x = lively(Residual()), torch.rand(9, 3, 8, 8)
    found = decided(net, x, mode=True)
    assert found.plan.compiled
    for count in (9, 1, 4):
        assert (found.logits(x[:count]) - exact(net, x[:count])).abs().max() <= 1e-5


@pytest.mark.parametrize(("name", "given"), [("square", {"queries": 8}), ("pgd", {"steps": 4})])
def test_attacks_find_the_same_points(monkeypatch, name, given):
    net, x = lively(Residual()), torch.rand(6, 3, 8, 8)
    y = net(x).argmax(1)
    with sl.execution(compile=False):
        own = sl.attack(net, x, y, name, eps=0.05, **given)
    force(monkeypatch, folded=True)
    seen = []
    whole = passes._Form.forward
    monkeypatch.setattr(passes._Form, "forward", lambda self, x: seen.append(len(x)) or whole(self, x))
    fast = sl.attack(net, x, y, name, eps=0.05, **given)
    assert sum(seen) > 6 * 4
    assert (fast.adversarial - own.adversarial).abs().max() <= 1e-6
    assert torch.equal(fast.robust, own.robust)


def test_predictions_of_many_images(monkeypatch):
    force(monkeypatch, folded=True)
    net, x = lively(Residual()), torch.rand(150, 3, 8, 8)
    with torch.no_grad():
        reference = net(x)
    torch.testing.assert_close(passes.predict_many(net, x), reference, rtol=1e-5, atol=1e-5)


def test_a_study_stores_how_passes_ran_and_goes_on_with_that(monkeypatch, tmp_path):
    net, x, y = lively(Residual()), torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    force(monkeypatch, folded=True, layout="channels_last")
    sl.Study({"net": net}, (x, y), store=tmp_path).attribute({"occlusion": {"window": 4}})
    assert list((tmp_path / "passes").glob("*.json"))

    def measured(*given):
        raise AssertionError("measured again")

    monkeypatch.setattr(passes._Trial, "seconds", measured)
    study = sl.Study({"net": net}, (x, y), store=tmp_path)
    study.attribute({"occlusion": {"window": 4}, "ablation": {"method": "feature_ablation", "segments": 4}})
    facts = study.read_maps("net", "ablation").provenance["passes"]["forward"]
    assert facts["folded"] and facts["layout"] == "channels_last"
    for path in (tmp_path / "passes").glob("*.json"):
        path.write_text("{")  # damaged: it is measured again
    force(monkeypatch, folded=False)
    study.attribute({"wide": {"method": "occlusion", "window": 6}})
    assert "passes" not in study.read_maps("net", "wide").provenance  # nothing is faster than the model's own


def test_passes_that_nothing_beats_run_as_they_are_and_are_not_measured_again(monkeypatch):
    net, x = lively(Residual()), torch.rand(4, 3, 8, 8)
    for own in (None, (3, "channels_last")):
        force(monkeypatch, folded=False)
        found = passes.Passes(net, x, own=own)
        found.expect(1000)
        assert found.plan is None and torch.equal(found.logits(x), net(x).detach())
        monkeypatch.setattr(passes._Trial, "seconds", lambda *_: pytest.fail("measured again"))
        again = passes.Passes(net, x, own=own)
        again.expect(1000)
        assert again.plan is None


def test_only_a_lower_precision_changes_the_keys_of_a_study(monkeypatch, tmp_path):
    net, x, y = lively(Residual()), torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    force(monkeypatch, folded=True)

    def keys(**given) -> set[str]:
        study = sl.Study({"net": net}, (x, y), store=tmp_path, **given)
        study.attribute({"occlusion": {"window": 4}}).score("pixel_flipping")
        return {path.stem for path in (tmp_path / "cells").rglob("*.safetensors")}

    first = keys()
    assert len(first) == 2
    assert keys(compile=False) == first
    with sl.execution(compile=False):
        assert keys() == first
    assert len(keys(dtype="bfloat16")) == 4
    with sl.execution(dtype="bfloat16"):
        assert len(keys()) == 4


def test_training_never_measures(monkeypatch):
    def refuse(*given):
        raise AssertionError("training measured")

    def split(count: int) -> Split:
        return Split(torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8), torch.arange(count) % 2)

    monkeypatch.setattr(passes, "_measure", refuse)
    data = ImageData("noise", split(32), split(8), split(8), ("even", "odd"))
    overrides = {"training.epochs": 1, "training.batch_size": 16, "validation.steps": 2}
    overrides["training.collapse"] = "keep"
    net = sl.train("digits/standard", data, overrides=overrides)
    x = data.test.sample(8, seed=0)[0]
    with pytest.raises(AssertionError, match="measured"):
        sl.attack(net, x, net(x).argmax(1), eps=0.1, steps=2)


def test_passes_as_they_are_in_a_lower_precision_are_not_measured(monkeypatch):
    def refuse(*given):
        raise AssertionError("measured")

    monkeypatch.setattr(passes._Trial, "seconds", refuse)
    net, x = lively(Residual()), torch.rand(4, 3, 8, 8)
    found = Passes(net, x)
    with sl.execution(compile=False, dtype="bfloat16"):
        found.expect(10)
    assert found.plan == passes.PassPlan(128, dtype="bfloat16")


DIFFERENT_EACH_TIME = {"counts calls", "hidden randomness"}
"""Defences whose logits change from one pass to the next."""


class Weird(nn.Module):
    """A linear network whose gradient is missing, or whose backward pass raises."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body, self.head = kind, nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        if self.kind == "no graph":
            x = x.detach()
        if self.kind == "no gradient" and torch.is_grad_enabled():
            return self.head(self.body(x.round().detach()).mean((2, 3)) + 0 * x.mean((2, 3))[:, :1].detach())
        logits = self.head(self.body(x).mean((2, 3)))
        if self.kind == "raises" and logits.requires_grad:
            logits.register_hook(lambda gradient: 1 / 0)
        return logits


@pytest.mark.parametrize("kind", ["no graph", "no gradient"])
def test_a_model_without_a_gradient_is_attacked_as_it_is(monkeypatch, kind):
    net, x, y = Weird(kind).eval(), torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    found = sl.attack(net, x, y, eps=0.1, steps=3, seed=0)
    with sl.execution(compile=False):
        assert torch.equal(found.adversarial, sl.attack(net, x, y, eps=0.1, steps=3, seed=0).adversarial)


def test_a_model_whose_backward_pass_raises_is_not_timed(monkeypatch):
    force(monkeypatch, layout="channels_last")
    x = torch.rand(4, 3, 8, 8)
    assert decided(Weird("plain").eval(), x, backward=True).plan is not None
    assert decided(Weird("raises").eval(), x, backward=True).plan is None


def test_a_form_with_another_gradient_is_not_used(monkeypatch):
    net, x = lively(Residual()), torch.rand(4, 3, 8, 8)
    monkeypatch.setattr(passes, "arranged", lambda images, layout: images.clone().detach_()
                        if layout == "channels_last" else images.clone())  # fmt: skip

    def seconds(self, form, rows):
        return 0.01 if form.plan.layout == "channels_last" else 0.1 if form.plan.folded else 1.0

    monkeypatch.setattr(passes._Trial, "seconds", seconds)
    assert decided(net, x).plan.layout == "channels_last"
    plan = decided(net, x, backward=True).plan
    assert plan.layout == "contiguous" and plan.folded


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(set(BROKEN) - DIFFERENT_EACH_TIME))
def test_attacks_on_defences_find_the_same_points(name):
    x, y = sl.load_dataset("digits").test.sample(3, seed=0)

    def points() -> Tensor:
        net = BROKEN[name](sl.load_model("digits/standard")).eval()
        return sl.attack(net, x, y, eps=0.1, steps=3, seed=0).adversarial

    found = points()
    with sl.execution(compile=False):
        expected = points()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_torchs_word_for_a_statistic_that_a_second_pass_changed_is_a_refusal_to_compile(monkeypatch):
    monkeypatch.setattr("saliency_lab._common.compiling.compiler", lambda: "c++")
    with (
        pytest.raises(CompileError, match="several forward passes in training mode"),
        compiled_in_place(lively(Residual())),
    ):
        raise RuntimeError("one of the variables needed has been modified by an inplace operation: [8]")


class ReadsBetween(Residual):
    """Reads the output of a convolution also where it isn't normalised."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        between = self.first(x)
        x = self.norm(between).relu_()
        return self.head((x + self.norm2(self.second(x)) + between).mean((2, 3)))


class Counts(Residual):
    """Counts its passes in a buffer, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        self.passes += 1
        return super().forward(x)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_folded_copy_follows_the_weights_and_statistics_of_its_model(wrapped):
    torch.manual_seed(0)
    net: nn.Module = Residual()
    if wrapped:
        net = nn.Sequential(sl.Normalised(net, (0.5,) * 3, (0.2,) * 3))
    net = net.double().train()
    x = torch.rand(6, 3, 8, 8, dtype=torch.float64)
    folded = FoldedCopy.make(net, x[:2], run_without_graph)
    assert folded is not None
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        optimiser.zero_grad()
        net(x).square().mean().backward()
        optimiser.step()
        copied = folded.follow()
        expected = copy.deepcopy(net).eval()
        torch.testing.assert_close(copied(x), expected(x), rtol=1e-12, atol=1e-12)
        net(x * 2)  # changes the statistics alone
        assert not torch.allclose(folded.follow()(x), expected(x), rtol=1e-3)
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copied.modules())


@pytest.mark.parametrize(
    "net", [Counts(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4))],
    ids=["counts", "nothing to fold"],
)  # fmt: skip
def test_a_new_network_that_cannot_be_folded_is_recognised(net):
    """Its statistics are 0 and 1, so that even a wrong fold would change nothing yet."""
    before = copy.deepcopy(net.state_dict())
    assert FoldedCopy.make(net, torch.rand(2, 3, 8, 8), run_without_graph) is None
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_network_is_folded_but_for_what_is_also_read_elsewhere():
    net, x = ReadsBetween().eval(), torch.rand(2, 3, 8, 8)
    folded = FoldedCopy.make(net, x, run_without_graph)
    assert folded is not None
    lively(net)
    copied = folded.follow()
    assert [name for name, each in copied.named_modules() if isinstance(each, nn.BatchNorm2d)] == ["norm"]
    torch.testing.assert_close(copied(x), net(x), rtol=1e-5, atol=1e-5)


COMPILER = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")


@COMPILER
@pytest.mark.long
def test_no_pass_runs_uncompiled_because_too_much_was_compiled(monkeypatch):
    """Batch normalisation in such a pass would save a statistic that the next compiled pass changes."""
    monkeypatch.setattr("saliency_lab._common.compiling._TRAINED_LIMIT", 1)
    net = nn.Linear(3, 2)
    with pytest.raises(CompileError, match="too many networks"), compiled_in_place(net):
        net(torch.rand(2, 3))
        net(torch.rand(4, 3))


class Capped(nn.Module):
    """Clamps at a number, or at one in a list or an object, or at a tensor, none of which is a buffer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.conv.weight.data *= 10
        self.kind = kind
        self.set(6.0)

    def set(self, cap: float) -> None:
        makes = {"number": float, "list": lambda cap: [cap], "tensor": torch.tensor, "object": Cap}
        self.cap = makes[self.kind](cap)

    def forward(self, x: Tensor) -> Tensor:
        cap = {"list": lambda: self.cap[0], "object": lambda: self.cap.value}.get(
            self.kind, lambda: self.cap
        )()
        return self.head(self.norm(self.conv(x)).clamp(0, cap).amax((2, 3)))


class Cap:
    def __init__(self, value: float) -> None:
        self.value = value


@pytest.mark.long
@pytest.mark.parametrize("kind", ["number", "list", "tensor", "object"])
def test_a_copy_is_made_again_when_an_attribute_changed(kind: str) -> None:
    model, x, y = Capped(kind).eval(), torch.rand(8, 1, 12, 12), torch.zeros(8, dtype=torch.int64)
    x[:2] *= 0.05  # the images that are compared show no difference
    maps = torch.rand_like(x)
    for cap in (6.0, 0.5):
        model.set(cap)
        scores = {}
        for compile in (True, False):
            with sl.execution(compile=compile):
                scores[compile] = sl.evaluate(model, x, y, maps, "pixel_flipping", output="logit")
        torch.testing.assert_close(*map(torch.from_numpy, scores.values()), rtol=0, atol=1e-5)


class Branching(nn.Module):
    """Normalises dark images alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(image) for image in x.split(1)])

    def one(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        if self.dark(x):
            h = self.norm(h)
        return self.head(h.relu().mean((2, 3)))

    def dark(self, x: Tensor) -> object:
        return x.amax() < 0.3


class AsNumber(Branching):
    def dark(self, x: Tensor) -> object:
        return x.amax().item() < 0.3


class Selecting(Branching):
    """Takes no branch, but uses what the convolution returned twice."""

    def one(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.head(torch.where(x.amax() < 0.3, self.norm(h), h).relu().mean((2, 3)))


@pytest.mark.parametrize("kind", [Branching, AsNumber, Selecting])
def test_nothing_is_folded_that_other_images_use_otherwise(kind: type[nn.Module]) -> None:
    model, x = kind().eval(), torch.rand(4, 1, 12, 12)
    assert fold_batch_norm(copy_for_evaluation(model), x[:1] * 0.1, run_without_graph) == 0
    assert FoldedCopy.make(model, x * 0.1, run_without_graph) is None


class OneStep(nn.Module):
    """Takes a step along a gradient of its own before it answers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        point = x.detach().clone().requires_grad_(True)
        slope = torch.autograd.grad(self.net(point).logsumexp(1).sum(), point)[0]
        return self.net(x + 0.05 * slope.sign())


@pytest.mark.long
def test_a_model_that_differentiates_itself_is_explained_and_scored_in_every_way() -> None:
    model, x = OneStep().eval(), torch.rand(6, 1, 8, 8)
    y = model(x).argmax(1)
    for method in ("integrated_gradients", "occlusion", "rise", "lime", "shapley_values", "gradient_shap"):
        given = {"baselines": x[:2]} if method == "gradient_shap" else {}
        assert sl.attribute(model, x, y, method, **given).values.isfinite().all()
    logits = model(x).detach().gather(1, y[:, None])[:, 0]
    x0 = x.clone()
    x0[:, :, 2, 3] = 0
    ablated = sl.attribute(model, x, y, "feature_ablation", baseline="zero").values[:, 0, 2, 3]
    expected = logits - model(x0).detach().gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(ablated, expected, rtol=0, atol=1e-5)
    maps, scores = torch.rand_like(x), []
    for compile in (False, True):
        with sl.execution(compile=compile):
            scores.append(torch.from_numpy(sl.evaluate(model, x, y, maps, "pixel_flipping")))
    torch.testing.assert_close(*scores, rtol=0, atol=1e-5)


class Sparse(nn.Module):
    """Has a matrix of few entries as a buffer and another as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("first", (torch.rand(64, 64) * (torch.rand(64, 64) < 0.1)).to_sparse())
        self.last = torch.rand(64, 3).to_sparse()

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.sparse.mm(self.first, x.flatten(1).T)
        return torch.sparse.mm(self.last.T, hidden).T


def test_networks_with_sparse_matrices_are_scored_in_every_way() -> None:
    model, x = Sparse().eval(), torch.rand(6, 1, 8, 8)
    y, maps, scores = model(x).argmax(1), torch.rand(6, 1, 8, 8), []
    for compile in (False, True):
        with sl.execution(compile=compile):
            scores.append(torch.from_numpy(sl.evaluate(model, x, y, maps, "pixel_flipping")))
    torch.testing.assert_close(*scores, rtol=0, atol=1e-5)
