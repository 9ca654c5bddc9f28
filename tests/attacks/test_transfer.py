"""Attacks from another model, merged results, and a user's own attack."""

from __future__ import annotations

import pytest
import torch

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
    held = merged.robust.nonzero().flatten()
    losses = torch.stack([part.loss for part in parts])
    assert torch.equal(merged.loss[held], losses.amax(0)[held])
    assert "pgd" in merged.method and "noise" in merged.method


def test_worst_case_refuses_to_mix(case) -> None:
    small = sl.attack(case.model, case.x, case.y, "fgsm", eps=0.01)
    with pytest.raises(sl.SaliencyLabError, match="differ in norm"):
        worst_case(small, sl.attack(case.model, case.x, case.y, "fgsm", eps=0.02))
    with pytest.raises(sl.SaliencyLabError, match="not on the same"):
        worst_case(small, sl.attack(case.model, case.x[:5], case.y[:5], "fgsm", eps=0.01))
    with pytest.raises(sl.SaliencyLabError, match="at least one"):
        worst_case()


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
    with pytest.raises(sl.SaliencyLabError, match="shape"):
        sl.attack(case.model, case.x, case.y, lambda model, x, y, eps: x[:1], eps=0.05)
    with pytest.raises(sl.SaliencyLabError, match="takes no target"):
        sl.attack(case.model, case.x, case.y, darken, eps=0.05, target=(case.y + 1) % 5)
