"""The audit against broken defences and honest networks: no false belief, few false alarms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import saliency_lab as sl
from benchmarks.audits import CAUSE
from benchmarks.defences import BROKEN, Bfloat16, fit, honest_networks
from saliency_lab._common.inference import predict
from saliency_lab.attacks.slope import check_slope
from saliency_lab.attacks.sources import Expected, StraightThrough, inner_networks
from saliency_lab.attacks.verdict import exceeds, upper_bound

FAST = ["zero half of the gradient", "masked off the data", "batch mean", "NaN off the data"]


@pytest.fixture(scope="module")
def net(digits) -> nn.Module:
    """A perceptron on digits: cheap, and not robust at 0.1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
    return fit(made, digits, epochs=8)


def adaptive(model: nn.Module, inner: nn.Module, x: Tensor, y: Tensor, eps: float) -> float:
    """Accuracy under gradients of the undefended network, with points judged on the defended one."""
    runs = [
        sl.attack(model, x, y, eps=eps, gradients_from=inner, loss=loss).robust for loss in ("margin", "ce")
    ]
    runs.append(sl.transfer_attack(model, inner, x, y, eps=eps, loss="margin").robust)
    return torch.stack(runs).all(0).double().mean().item()


def check_broken(name: str, net: nn.Module, x: Tensor, y: Tensor, eps: float) -> None:
    model = BROKEN[name](net).eval()
    report = sl.audit(model, x, y, eps=eps)
    assert report.verdict != "believe", report.table().to_string()
    assert report.worst_case <= report.robust_accuracy


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*in a batch")
@pytest.mark.parametrize("name", FAST)
def test_broken_defences_are_not_believed(name, net, batch) -> None:
    check_broken(name, net, batch[0][:24], batch[1][:24], 0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in BROKEN if name not in FAST])
def test_no_broken_defence_is_believed(name, trained, batch) -> None:
    check_broken(name, trained, batch[0][:50], batch[1][:50], 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero half of the gradient", "quantised input", "negated gradient"])
def test_the_worst_case_comes_close_to_the_adaptive_attack(name, trained, batch) -> None:
    model = BROKEN[name](trained).eval()
    found = sl.audit(model, batch[0][:50], batch[1][:50], eps=0.1).worst_case
    assert found <= adaptive(model, trained, batch[0][:50], batch[1][:50], 0.1) + 0.06


@pytest.mark.slow
def test_at_most_one_honest_network_in_twenty_is_refused_without_cause(digits, batch) -> None:
    """A refusal has a cause where another attack of the audit breaks 5 % of the images more."""
    zoo = {name: sl.load_model(f"digits/{name}") for name in ("standard", "sgt", "at", "asgt")}
    reports = {
        name: sl.audit(make(), batch[0][:50], batch[1][:50], eps=0.05)
        for name, make in honest_networks(digits, zoo).items()
    }
    assert len(reports) >= 20
    refused = {
        name: report.reason
        for name, report in reports.items()
        if report.verdict != "believe" and report.robust_accuracy - report.worst_case < CAUSE
    }
    assert len(refused) <= len(reports) // 20, refused


@pytest.mark.long
def test_a_linear_network_with_a_hinge_loss_is_not_called_misleading(digits, batch) -> None:
    """With 20 images a few samples that another attack breaks show a weak attack at most."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    model = fit(made, digits, loss="hinge", epochs=8)
    report = sl.audit(model, batch[0][:20], batch[1][:20], eps=0.03)
    assert report.verdict != "do not believe", report.table().to_string()


def test_one_image_is_never_believed(net, batch) -> None:
    report = sl.audit(net, batch[0][:1], batch[1][:1], eps=0.001)
    assert report.verdict == "doubt" and "1 images cannot show" in report.reason


def test_exact_decisions() -> None:
    """Against binomial tails by hand: P(X ≥ 3 | 50, 0.02) = 0.078, P(X ≥ 4) = 0.018."""
    assert exceeds(3, 50, 0.02) == "pass" and exceeds(4, 50, 0.02) == "fail"
    assert exceeds(0, 1, 0.02) == "pass"
    assert upper_bound(0, 20) == pytest.approx(1 - 0.05 ** (1 / 20))


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_masked_gradient_does_not_match_differences_and_its_repair_does(share, net, batch) -> None:
    x, y = batch[0][:8].clamp(0.1, 0.9), batch[1][:8]
    good = check_slope(net, x, y, width=0.02)
    assert good.error.max() < 0.1 and good.agreement.min() > 0.9
    masked = BROKEN["zero half of the gradient" if share == 0.5 else "zero 70 % of the gradient"](net)
    assert check_slope(masked, x, y, width=0.02).error.median() > 0.4
    assert check_slope(StraightThrough(masked), x, y, width=0.02).error.max() < 0.1
    assert inner_networks(masked, x[:1]) == [net]


@pytest.mark.long
def test_a_network_in_bfloat16_is_believed_and_a_masked_one_is_not(net, batch) -> None:
    """Its logits have three digits, so fine differences say nothing of its gradient."""
    x, y = batch[0][:40], batch[1][:40]
    coarse = Bfloat16(net).eval()
    assert check_slope(coarse, x, y, width=0.02).coarse.all()
    assert not check_slope(net, x, y, width=0.02).coarse.any()
    report = sl.audit(coarse, x, y, eps=0.03)
    assert report["gradient check"].verdict == report["other gradients"].verdict == "pass"
    assert report.verdict == "believe", report.table().to_string()
    masked = Bfloat16(BROKEN["zero 70 % of the gradient"](net)).eval()
    assert sl.audit(masked, x, y, eps=0.03).verdict == "do not believe"


def test_nonfinite_outputs_are_no_success(net, batch) -> None:
    """Neither a success where NaN, nor because the largest of NaN is class 0."""
    x, y = batch[0][:20], batch[1][:20]
    model = BROKEN["NaN off the data"](net)
    found = sl.attack(model, x, y, eps=0.05)
    with torch.no_grad():
        lost = ~model(found.adversarial).isfinite().all(1)
    assert found.nonfinite == int(lost.sum()) and (found.predictions[lost] == -1).all()
    assert not (found.success & lost).any() and found.robust[lost & found.clean_correct].all()
    assert found.to_dict()["nonfinite"] == found.nonfinite


@pytest.mark.long
@pytest.mark.parametrize("name", ["anti-adversary", "differentiates plainly"])
def test_a_model_that_differentiates_in_its_forward_pass(name, net, batch) -> None:
    model = BROKEN[name](net).eval()
    x, y = batch[0][:6], batch[1][:6]
    assert predict(model, x).shape == (6, 10)
    assert sl.attack(model, x, y, "square", eps=0.05, queries=5).queries.max() <= 7
    report = sl.audit(model, x[:2], y[:2], eps=0.01, steps=2)
    assert "differentiates inside its forward pass" in report["determinism"].evidence


def test_batch_coupling_is_warned_about_once(net, batch) -> None:
    model = BROKEN["batch mean"](net)
    with pytest.warns(UserWarning, match="alone than for the same image in a batch"):
        sl.attack(model, batch[0][:4], batch[1][:4], "fgsm", eps=0.01)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sl.attack(model, batch[0][:4], batch[1][:4], "fgsm", eps=0.01)


def test_expectation_over_draws_is_judged_as_it_is_attacked(net, batch) -> None:
    model, (x, y) = BROKEN["random noise"](net), (batch[0][:20], batch[1][:20])
    one = sl.attack(model, x, y, eps=0.05, steps=10)
    many = sl.attack(model, x, y, eps=0.05, steps=10, samples=10)
    assert many.settings["samples"] == 10
    fresh = Expected(model, 200)(many.adversarial).argmax(1)
    assert (fresh == many.predictions).double().mean() > 0.8
    assert (Expected(model, 200)(one.adversarial).argmax(1) != y).sum() <= (fresh != y).sum() + 2


def test_gradients_from_another_network_with_verdicts_of_the_model(net, batch) -> None:
    model, (x, y) = BROKEN["no graph"](net), (batch[0][:20], batch[1][:20])
    borrowed = sl.attack(model, x, y, eps=0.05, gradients_from=net)
    direct = sl.attack(net, x, y, eps=0.05)
    assert torch.allclose(borrowed.adversarial, direct.adversarial, atol=1e-6)
    with pytest.raises(sl.SaliencyLabError, match="gradients_from returns 3 classes"):
        sl.attack(net, x, y, eps=0.05, gradients_from=nn.Sequential(nn.Flatten(), nn.Linear(784, 3)))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.8)])
def test_quantised_points_lie_on_the_grid_inside_the_ball(norm, eps, net, batch) -> None:
    found = sl.attack(net, batch[0][:20], batch[1][:20], eps=eps, norm=norm, quantised=True)
    levels = found.adversarial.double() * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    assert (found.distance <= eps + 1e-6).all()
    assert torch.equal(found.survives_rounding, found.success) and found.success.any()


def test_the_defences_are_those_of_the_command() -> None:
    assert len(BROKEN) >= 20 and (Path(__file__).parents[2] / "benchmarks" / "audits.py").is_file()
