"""The audit on models with known faults, and on an adversarially trained network."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency_lab as sl
from saliency_lab.attacks import audit


class Loud(nn.Module):
    """Logits times 100: the cross-entropy saturates."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 100 * self.inner(x)


class Quantised(Loud):
    """The input rounded to eight levels: no gradient gets through."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((7 * x).round() / 7)


class RoundedLogits(Loud):
    """A rounding defence at the other end."""

    def forward(self, x: Tensor) -> Tensor:
        return (2 * self.inner(x)).round() / 2


class WithoutGraph(Loud):
    """A forward that records nothing to differentiate."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Noisy(Loud):
    """Dropout left on for good: eval() does not reach the functional call."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(F.dropout(x, 0.3, training=True))


class Shattered(Loud):
    """The input rounded, with a backward pass that points nowhere in particular."""

    def forward(self, x: Tensor) -> Tensor:
        rounded = (7 * x).round() / 7
        return self.inner(rounded.detach() + 1e-3 * (torch.sin(1e4 * x) - torch.sin(1e4 * x).detach()))


class Probabilities(Loud):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).softmax(1)


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "eps", "caught_by"),
    [
        (Quantised, 0.1, {"vanished gradients", "other gradients", "gradient check"}),
        (RoundedLogits, 0.1, {"vanished gradients", "coarse slope"}),
        pytest.param(
            WithoutGraph,
            0.1,
            {"vanished gradients", "gradient check"},
            marks=pytest.mark.filterwarnings("ignore:the model's logits have no gradient"),
        ),
        pytest.param(Noisy, 0.1, {"determinism"}, marks=pytest.mark.slow),
        (Shattered, 0.1, {"gradient check"}),
        (Probabilities, 0.1, {"units and outputs"}),
    ],
)
def test_known_faults_are_not_believed(trained, batch, fault, eps, caught_by) -> None:
    model = fault(trained).eval()
    x, y = batch
    report = audit(model, x[:24], y[:24], eps=eps)
    assert report.verdict == "do not believe", report.table().to_string()
    failed = {check.name for check in report.checks if check.verdict == "fail"}
    assert caught_by <= failed, report.table().to_string()
    assert all(name in report.reason for name in caught_by)


@pytest.mark.long
def test_an_attack_says_on_how_many_samples_it_ran(trained, batch) -> None:
    """Square finds nothing that other gradients have not broken; alone it would break most of them."""
    x, y = batch[0][:24], batch[1][:24]
    report = audit(Quantised(trained).eval(), x, y, eps=0.1)
    broken = round(24 * report["other gradients"].numbers["missed"])
    left = int(report.audited.robust.sum()) - broken
    assert broken > 0
    for name in ("single step", "black box", "AutoAttack"):
        assert f"; it was run on the {left} that gradients from elsewhere" in report[name].evidence
    assert "it was run on" not in report["strongest attack"].evidence


@pytest.mark.long
def test_saturated_logits_are_a_weak_attack_not_a_misleading_gradient(trained, batch) -> None:
    """The gradient is right; the cross-entropy is what fails, and the report names what does not."""
    report = audit(Loud(trained).eval(), batch[0][:24], batch[1][:24], eps=0.1)
    assert report.verdict == "weak attack", report.table().to_string()
    assert {"rescaled logits", "strongest attack"} <= {c.name for c in report.checks if c.verdict == "fail"}
    assert "the strongest single one is attack(" in report.reason
    assert report["gradient check"].verdict == "pass"
    assert {c.about for c in report.checks if c.verdict == "fail"} == {"attack"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("square", {"queries": 100}),
        ("autoattack", {"steps": 5, "target_classes": 2, "queries": 50}),
        ("pgd", {"loss": "dlr", "steps": 20}),
        ("bim", {"steps": 10, "step_size": 0.01}),
        ("fgsm", {}),
    ],
)
def test_a_sound_model_is_not_called_masked_whatever_is_audited(hardened, batch, method, settings) -> None:
    """Not every attack raises the cross-entropy, and a fixed step is not meant for a far larger ball."""
    report = audit(hardened, batch[0][:16], batch[1][:16], eps=0.05, method=method, **settings)
    for name in ("loss surface", "vanished gradients", "large eps"):
        assert report[name].verdict == "pass", report[name].evidence
    assert not [c.evidence for c in report.checks if c.verdict == "fail" and c.about == "model"]


def test_a_given_step_grows_with_the_ball(hardened, batch) -> None:
    """Ten steps of 0.01 cannot cross a ball of radius 1; in proportion they break all that they can reach."""
    x, y = batch[0][:16], batch[1][:16]
    report = audit(hardened, x, y, eps=0.05, method="bim", steps=10, step_size=0.01)
    reached = sl.attack(hardened, x, y, "bim", eps=1, steps=10, step_size=0.2)
    assert f"leaves {reached.robust_accuracy:.1%} accuracy" in report["large eps"].evidence
    fixed = sl.attack(hardened, x, y, "bim", eps=1, steps=10, step_size=0.01)
    assert reached.robust_accuracy < 0.2 < fixed.robust_accuracy


@pytest.mark.long
def test_the_verdict_does_not_know_the_scale_of_the_logits(hardened, batch) -> None:
    """Cross-entropies of exactly 0 are no fault where no attack breaks more: the decisions are the same."""

    class Scaled(Loud):
        def forward(self, x: Tensor) -> Tensor:
            return 32 * self.inner(x)  # a power of two: not a bit is rounded

    x, y = batch[0][:16], batch[1][:16]
    plain, loud = (audit(model, x, y, eps="2/255", steps=20) for model in (hardened, Scaled(hardened).eval()))
    assert loud["vanished gradients"].numbers["saturated"] > 0.1
    assert plain["vanished gradients"].numbers["saturated"] == 0
    assert plain.worst_case == loud.worst_case == loud.robust_accuracy
    assert plain.verdict == loud.verdict == "believe", loud.table().to_string()
    assert plain["loss surface"].numbers == loud["loss surface"].numbers
    assert all(report["vanished gradients"].numbers["zero"] == 0 for report in (plain, loud))


def test_a_constant_model_is_flat_at_any_scale(batch) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e4 * torch.eye(10)[torch.zeros(len(x), dtype=torch.long)] + 0 * x.sum()

    report = audit(Constant(), batch[0][:8], torch.zeros(8, dtype=torch.long), eps=0.1, steps=2)
    assert report["loss surface"].numbers == {"above": 0.0, "flat": 1.0}
    assert "loss surface" in report and list(report) == report.table().index.tolist()
    assert report["loss surface"].verdict == report["vanished gradients"].verdict == "fail"


@pytest.mark.long
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_callers_mode_without_gradients_changes_nothing(hardened, batch, context) -> None:
    x, y = batch[0][:8], batch[1][:8]
    plain = audit(hardened, x, y, eps=0.1, steps=5, surrogates={"itself": hardened})
    with context():
        inside = audit(hardened, x.clone(), y.clone(), eps=0.1, steps=5, surrogates={"itself": hardened})
    assert inside.table().equals(plain.table()) and torch.equal(inside.robust, plain.robust)


def test_surrogates_have_names(hardened, trained, batch) -> None:
    with pytest.raises(sl.SaliencyLabError, match=r"surrogates must be a mapping"):
        audit(hardened, *batch, eps=0.1, surrogates=[trained])


@pytest.mark.filterwarnings("ignore")
def test_an_audit_leaves_square_out_where_its_tiles_do_not_fit() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 4)).eval()
    x = torch.rand(6, 1, 24, 24)
    for norm, verdict in (("l2", "skipped"), ("linf", "pass")):
        found = sl.audit(net, x, net(x).argmax(1), eps=0.01, norm=norm, steps=3)
        checks = {check.name: check for check in found.checks}
        assert checks["black box"].verdict == verdict, norm
        assert ("24×24" in checks["black box"].evidence) == (verdict == "skipped")
        assert ("Square" in checks["AutoAttack"].evidence) == (verdict == "pass")


@pytest.mark.long
def test_an_adversarially_trained_network_is_believed(hardened, trained, batch) -> None:
    x, y = batch[0][:32], batch[1][:32]
    report = audit(hardened, x, y, eps=0.1, surrogates={"standard": trained})
    assert report.verdict == "believe", report.table().to_string()
    assert {c.name for c in report.checks if c.verdict != "pass"} == {"other gradients"}
    assert report["other gradients"].verdict == "skipped"
    assert 0.5 < report.worst_case <= report.robust_accuracy <= report.audited.clean_accuracy
    assert report.robust_accuracy - report.worst_case <= 0.04


@pytest.mark.slow
def test_dropout_in_train_mode_is_noticed(hardened, batch) -> None:
    x, y = batch
    model = nn.Sequential(nn.Dropout(0.2), hardened).train()
    hardened.eval()
    report = audit(model, x[:16], y[:16], eps=0.05)
    assert report.verdict == "doubt" and report["determinism"].verdict == "warn"
    assert "train mode" in report.reason and "(0)" in report.reason  # the module's name
    assert model.training and not hardened.training


@pytest.mark.long
def test_a_single_step_is_not_believed_where_it_overstates(trained, batch) -> None:
    """Half the accuracy FGSM reports at this radius falls to PGD: the gap, not the name, decides."""
    x, y = batch
    report = audit(trained, x, y, eps=0.12, method="fgsm")
    gap = report.robust_accuracy - sl.attack(trained, x, y, eps=0.12).robust_accuracy
    assert (report["single step"].verdict != "pass") == (gap > 0.02)
    assert report["converged"].verdict == "skipped"
    assert report.worst_case <= report.robust_accuracy - gap


def test_a_model_that_expects_normalised_images_is_questioned(batch) -> None:
    constant = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    constant[1].bias.data[0] += 10  # it predicts one class for all, so that accuracy is that of chance
    report = audit(constant, *batch, eps=0.1)
    assert report["units and outputs"].verdict == "warn" and "Normalised" in report.reason


def test_nothing_survives_nothing_to_doubt(trained, batch) -> None:
    report = audit(trained, *batch, eps=0.4)
    assert report.robust_accuracy == 0 and report.verdict == "believe"


@pytest.mark.long
def test_audit_leaves_no_trace_and_can_be_written_down(hardened, batch) -> None:
    x, y = batch[0][:10], batch[1][:10]
    model = nn.Sequential(nn.BatchNorm2d(1), hardened).train()
    statistics = [buffer.clone() for buffer in model.buffers()]
    before, kept = torch.get_rng_state(), x.clone()
    report = audit(model, x, y, eps="10/255")
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(x, kept)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), statistics, strict=True))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    hardened.eval()
    written = json.loads(json.dumps(report.to_dict()))
    assert written["eps"] == 10 / 255 and len(written["checks"]) == len(report.table()) == 18
    assert report.verdict in repr(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0}, "eps > 0"),
        ({"budget": "huge"}, "known: full, quick"),
        ({"stesp": 3}, "did you mean 'steps'"),
    ],
)
def test_bad_input_is_refused(hardened, batch, change, message) -> None:
    with pytest.raises(sl.SaliencyLabError, match=message):
        audit(hardened, *batch, **{"eps": 0.1, **change})


@pytest.mark.long
def test_two_classes_are_not_near_chance_by_themselves(batch) -> None:
    x = batch[0][:8]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
    with torch.no_grad():
        y = model(x).argmax(1)
    right = audit(model, x, y, eps=1e-4, steps=2)
    assert right["units and outputs"].verdict == "pass"
    y[: len(y) // 2] = 1 - y[: len(y) // 2]
    half = audit(model, x, y, eps=1e-4, steps=2)
    assert half["units and outputs"].verdict == "warn"


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 129])
def test_one_image_left_over_does_not_stop_batch_norm_in_train_mode(count) -> None:
    """129 is a chunk and one more."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4)).train()
    x = torch.rand(count, 1, 4, 4)
    with torch.no_grad():
        y = nn.Sequential(*model).eval()(x).argmax(1)
    model.train()
    report = audit(model, x, y, eps=1e-4, steps=1)
    assert report["determinism"].verdict == "pass" and model.training


@pytest.mark.slow
def test_a_model_that_is_random_in_eval_mode_does_not_move_the_global_generator(trained, batch) -> None:
    model, x, y = Noisy(trained).eval(), batch[0][:6], batch[1][:6]
    before = torch.get_rng_state()
    first = audit(model, x, y, eps=0.05, steps=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert audit(model, x, y, eps=0.05, steps=2).reason == first.reason
    torch.set_rng_state(before)
    sl.robustness_curve(model, x, y, eps=[0, 0.05], steps=2)
    sl.attack_map(model, x, eps=0.05, steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_random_choice_of_two_branches_is_seen(batch) -> None:
    """Two passes choose alike as often as not, and then the network seems to be deterministic."""

    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(784, 10), nn.Linear(784, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            chosen = self.first if torch.rand(()) < 0.5 else self.second
            return chosen(x.flatten(1))

    torch.manual_seed(0)
    report = audit(Either().eval(), batch[0][:4], batch[1][:4], eps=0.05, steps=2)
    assert report["determinism"].verdict == "fail"
    assert report["determinism"].numbers["random"] == 1


@pytest.mark.slow
def test_few_images_are_never_believed() -> None:
    data, net = sl.load_dataset("digits"), sl.load_model("digits/at")
    settings = {"eps": 0.02, "method": "pgd", "steps": 10}
    few = audit(net, *data.test.sample(12, seed=0), **settings)
    assert few.verdict == "doubt" and "12 images cannot show that it is few" in few.reason
    assert "use 100 images or more" in few.reason
    assert audit(net, *data.test.sample(40, seed=0), **settings).verdict == "believe"


def test_a_function_with_steps_can_be_audited() -> None:
    def darken(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int = 2) -> Tensor:
        return (x - eps).clamp(0, 1)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    x = torch.rand(8, 1, 8, 8)
    report = audit(net, x, net(x).argmax(1), darken, eps=0.1)
    (converged,) = (check for check in report.checks if check.name == "converged")
    assert converged.evidence.startswith("darken with 8 steps")


def test_a_model_that_returns_more_than_logits_in_train_mode_is_audited_in_eval_mode() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            logits = self.head(x.flatten(1))
            return (logits, logits) if self.training else logits

    net, x = Auxiliary(), torch.rand(8, 1, 8, 8)
    report = audit(net, x, net.eval()(x).argmax(1), "fgsm", eps=0.1)
    in_train_mode = audit(net.train(), x, report.audited.labels, "fgsm", eps=0.1)
    (check,) = (each for each in in_train_mode.checks if each.name == "determinism")
    assert check.verdict == "warn" and "returns tuple there, not logits" in check.evidence
    assert net.training and torch.equal(in_train_mode.audited.robust, report.audited.robust)
