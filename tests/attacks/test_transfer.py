"""Attacks from another model, merged results, and a user's own attack."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import saliency_lab as sl
from saliency_lab.attacks import transfer_attack, worst_case


def test_transfer_seeks_on_the_source_and_judges_on_the_model(trained, hardened, batch) -> None:
    x, y = batch
    settings = {"steps": 10, "eps": 0.15}
    found = transfer_attack(hardened, trained, x, y, **settings)
    with torch.no_grad():
        right = hardened(x).argmax(1) == y
        predictions = hardened(found.adversarial).argmax(1)
    assert torch.equal(found.clean_correct, right)
    assert torch.equal(found.robust, right & (predictions == y))
    direct = sl.attack(hardened, x, y, **settings)
    assert direct.robust_accuracy < found.robust_accuracy < found.clean_accuracy
    on_itself = transfer_attack(trained, trained, x, y, **settings)
    same = sl.attack(trained, x, y, early_stop=False, **settings)
    assert torch.equal(on_itself.adversarial, same.adversarial)


def test_worst_case_is_the_sample_by_sample_minimum(case) -> None:
    parts = [
        sl.attack(case.model, case.x, case.y, "pgd", eps=0.01, steps=2, seed=seed, loss=loss)
        for seed, loss in ((0, "ce"), (1, "margin"))
    ] + [sl.attack(case.model, case.x, case.y, "noise", eps=0.01)]
    merged = worst_case(*parts)
    robust = torch.stack([part.robust for part in parts])
    assert torch.equal(merged.robust, robust.all(0))
    assert torch.equal(merged.queries, sum(part.queries for part in parts))
    with torch.no_grad():
        assert torch.equal(merged.predictions, case.model(merged.adversarial).argmax(1))
    robust_rows = merged.robust.nonzero().flatten()
    losses = torch.stack([part.loss for part in parts])
    assert torch.equal(merged.loss[robust_rows], losses.amax(0)[robust_rows])
    assert "pgd" in merged.method and "noise" in merged.method


def test_worst_case_refuses_to_mix(case) -> None:
    small = sl.attack(case.model, case.x, case.y, "fgsm", eps=0.01)
    with pytest.raises(sl.SaliencyLabError, match="differ in norm"):
        worst_case(small, sl.attack(case.model, case.x, case.y, "fgsm", eps=0.02))
    with pytest.raises(sl.SaliencyLabError, match="not on the same"):
        worst_case(small, sl.attack(case.model, case.x[:5], case.y[:5], "fgsm", eps=0.01))
    others = sl.attack(case.model, 1 - case.x, case.y, "fgsm", eps=0)
    same = sl.attack(case.model, case.x, case.y, "fgsm", eps=0)
    alike = replace(others, labels=same.labels, clean_correct=same.clean_correct)
    with pytest.raises(sl.SaliencyLabError, match="not on the same"):
        worst_case(same, alike)
    with pytest.raises(sl.SaliencyLabError, match="at least one"):
        worst_case()
    with pytest.raises(sl.SaliencyLabError, match=r"one per argument.*not list"):
        worst_case([small, small])


def test_worst_case_of_targeted_results_counts_every_success(trained, batch) -> None:
    """A sample pushed into a third class first is no reason to forget the run that reached the target."""
    x, y = batch
    target = (y + 1) % 10
    parts = [
        sl.attack(trained, x, y, eps=0.15, target=target, steps=steps, loss=loss)
        for steps, loss in ((3, "ce"), (40, "ce"), (5, "margin"))
    ]
    merged = worst_case(*parts)
    union = torch.stack([part.success for part in parts]).any(0)
    assert union.sum() > parts[0].success.sum()
    assert torch.equal(merged.success, union)
    assert torch.equal(merged.predictions[union], target[union])
    assert torch.equal(merged.robust, torch.stack([part.robust for part in parts]).all(0))


class Takes(nn.Module):
    """Any size of images, this many classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : self.classes]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("at", "must be a torch.nn.Module, not str"),
        (Takes(3), "returns 3 classes, and the attacked model 5"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(9, 5)).double(),
            r"does not take images of shape \(1, 8, 8\)",
        ),
        (nn.Linear(2, 2), "computes in torch.float32"),
        (nn.Identity(), "must return logits"),
    ],
)
def test_a_source_that_does_not_fit_is_named(case, source, message) -> None:
    with pytest.raises(sl.SaliencyLabError, match=f"source.*{message}"):
        transfer_attack(case.model, source, case.x, case.y, eps=0.1)
    with pytest.raises(sl.SaliencyLabError, match=f"surrogate 'odd'.*{message}"):
        sl.audit(case.model, case.x, case.y, eps=0.1, surrogates={"odd": source})


def test_a_users_own_attack(case) -> None:
    def darken(model, x, y, eps):
        assert not model.training
        return (x - eps).clamp(0, 1)

    found = sl.attack(case.model, case.x, case.y, darken, eps=0.05)
    assert found.method == "darken"
    assert torch.allclose(found.adversarial[:5], (case.x - 0.05).clamp(0, 1)[:5])

    with pytest.raises(sl.SaliencyLabError, match="'cheat' left the linf ball"):

        def cheat(model, x, y, eps):
            return 1 - x

        sl.attack(case.model, case.x, case.y, cheat, eps=0.05)
    with pytest.raises(sl.SaliencyLabError, match=r"a tensor of the points, .* not \(1, 1, 8, 8\)"):
        sl.attack(case.model, case.x, case.y, lambda model, x, y, eps: x[:1], eps=0.05)
    with pytest.raises(sl.SaliencyLabError, match="takes no target"):
        sl.attack(case.model, case.x, case.y, darken, eps=0.05, target=(case.y + 1) % 5)


@pytest.mark.parametrize("method", ["fgsm", "r_fgsm", "bim", "pgd", "apgd_ce", "square", "spsa"])
def test_images_on_which_the_source_errs_are_changed_too(trained, batch, method) -> None:
    x, y = batch
    source = sl.build_model("small_cnn", seed=1)  # not trained
    found = transfer_attack(trained, source, x, y, method, eps=0.2)
    assert (found.distance[found.clean_correct] > 0).all()
    if method == "fgsm":
        point = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(source(point), y, reduction="sum"), point)
        expected = (x + 0.2 * slope.sign()).clamp(0, 1)
        torch.testing.assert_close(found.adversarial[found.clean_correct], expected[found.clean_correct])
