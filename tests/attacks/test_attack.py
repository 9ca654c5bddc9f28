"""`attack`: against a reference written here, and the conventions that hold for every method."""

from __future__ import annotations

import copy
import json
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab._common.seeding import sample_seeds, sample_uniform
from saliency_lab.attacks.methods import METHODS

CHEAP = {
    "bim": {"steps": 4, "momentum": 0.5},
    "pgd": {"steps": 5, "restarts": 2},
    "apgd_ce": {"steps": 6, "restarts": 2},
    "apgd_dlr": {"steps": 6},
    "apgd_t": {"steps": 5, "target_classes": 2},
    "fab_t": {"steps": 4, "target_classes": 2},
    "square": {"queries": 15},
    "cw": {"steps": 10, "search_steps": 2},
    "ead": {"steps": 10, "search_steps": 2},
    "spsa": {"steps": 3, "directions": 4},
    "autoattack": {"steps": 4, "target_classes": 2, "queries": 10},
    "noise": {"draws": 3},
    "random_direction": {"draws": 3},
}


def textbook_pgd(
    model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float, alpha: float, steps: int
) -> Tensor:
    """Madry's PGD for L∞, one sample at a time; every iterate."""
    iterates = []
    for image, label, point in zip(x, y, start, strict=True):
        path = [point]
        for _ in range(steps):
            now = path[-1].clone().requires_grad_()
            F.cross_entropy(model(now[None]), label[None]).backward()
            moved = path[-1] + alpha * now.grad.sign()
            path.append(torch.max(torch.min(moved, image + eps), image - eps).clamp(0, 1))
        iterates.append(torch.stack(path))
    return torch.stack(iterates)


def test_fgsm_is_one_signed_step(case) -> None:
    now = case.x.clone().requires_grad_()
    F.cross_entropy(case.model(now), case.y, reduction="sum").backward()
    expected = (case.x + 0.03 * now.grad.sign()).clamp(0, 1)
    found = sl.attack(case.model, case.x, case.y, "fgsm", eps=0.03)
    assert torch.equal(found.adversarial[:-2], expected[:-2])
    assert torch.equal(found.adversarial[-2:], case.x[-2:])  # wrong before the attack: left alone


def test_l2_fgsm_goes_eps_along_the_normalised_gradient(case) -> None:
    now = case.x.clone().requires_grad_()
    F.cross_entropy(case.model(now), case.y, reduction="sum").backward()
    unit = now.grad / now.grad.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    found = sl.attack(case.model, case.x, case.y, "fgsm", eps=0.2, norm="l2")
    assert torch.allclose(found.adversarial[:-2], (case.x + 0.2 * unit).clamp(0, 1)[:-2], atol=1e-9)


def test_pgd_visits_the_textbooks_points_and_keeps_the_best(case) -> None:
    eps, steps = 0.02, 6
    alpha = 2.5 * eps / steps
    noise = sample_uniform(sample_seeds(case.x, 3, "attack start 0"), case.x.shape[1:]).double()
    start = (case.x + eps * (2 * noise - 1)).clamp(0, 1)
    path = textbook_pgd(case.model, case.x, case.y, start, eps, alpha, steps)
    found = sl.attack(case.model, case.x, case.y, "pgd", eps=eps, steps=steps, step_size=alpha, seed=3)
    for i in range(5):
        logits = case.model(path[i]).detach()
        wrong = (logits.argmax(1) != case.y[i]).nonzero().flatten()
        losses = F.cross_entropy(logits, case.y[i].expand(steps + 1), reduction="none")
        best = int(wrong[0]) if len(wrong) else 1 + int(losses[1:].argmax())
        assert torch.allclose(found.adversarial[i], path[i, best], atol=1e-9)
        assert found.queries[i] == (best + 1 if len(wrong) else steps + 1)
        shown = found.loss_curve[i, : found.queries[i]]
        assert torch.allclose(shown, losses[: found.queries[i]].float(), atol=1e-5)


def test_step_lengths_fall_from_two_eps_to_zero_by_a_cosine() -> None:
    """A slope that turns round at every pass shows the length of each step."""

    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visited: list[float] = []

        def forward(self, x: Tensor) -> Tensor:
            total = x.flatten(1).sum(1)
            if torch.is_grad_enabled():
                total = total * (-1) ** len(self.visited)
                self.visited.append(x.detach().mean().item())
            return torch.stack([torch.full_like(total, 10), total], 1)

    x, y = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64), torch.tensor([0])
    model = Turning()
    sl.attack(model, x, y, "bim", eps=0.4, steps=4)
    down = 0.9 - 0.4 * (1 + 2**-0.5)
    assert model.visited == pytest.approx([0.5, 0.9, down, down + 0.4])
    model = Turning()
    sl.attack(model, x, y, "bim", eps=0.4, steps=3, step_size=0.03)
    assert model.visited == pytest.approx([0.5, 0.53, 0.5])


def test_without_early_stop_a_broken_sample_is_driven_further(case) -> None:
    stopped = sl.attack(case.model, case.x, case.y, "bim", eps=0.2, step_size=0.02)
    driven = sl.attack(case.model, case.x, case.y, "bim", eps=0.2, step_size=0.02, early_stop=False)
    assert stopped.success[:-2].all()
    assert torch.equal(stopped.robust, driven.robust)
    assert (driven.loss[:-2] > stopped.loss[:-2]).all()
    assert (driven.queries[:-2] == 11).all()
    assert (stopped.queries < 11).all()


def test_restarts_only_add(case) -> None:
    one = sl.attack(case.model, case.x, case.y, eps=0.012, steps=3)
    many = sl.attack(case.model, case.x, case.y, eps=0.012, steps=3, restarts=4)
    assert not (many.robust & ~one.robust).any()
    robust = one.robust & many.robust
    assert (many.loss[robust] >= one.loss[robust] - 1e-6).all()


ATTACKS = [name for name in METHODS if METHODS[name].access != "none"]
CASES = [(name, norm) for name in ATTACKS for norm in METHODS[name].norms]
RADII = {"linf": 0.02, "l2": 0.1, "l1": 0.6}


def length_of(delta: Tensor, norm: str) -> Tensor:
    return delta.flatten(1).norm(dim=1, p={"linf": torch.inf, "l2": 2, "l1": 1}[norm])


@pytest.mark.long
@pytest.mark.parametrize(("method", "norm"), [case for case in CASES if METHODS[case[0]].targeted])
def test_targeted_attack_reaches_the_target(case, method, norm) -> None:
    target = (case.y + 2) % 5
    found = sl.attack(
        case.model,
        case.x,
        case.y,
        method,
        eps={"linf": 0.8, "l2": 6, "l1": 40}[norm],
        norm=norm,
        target=target,
    )
    assert torch.equal(found.success, found.predictions == target)
    assert found.success.float().mean() > 0.5
    assert torch.equal(found.robust, found.clean_correct & (found.predictions == case.y))


@pytest.mark.long
@pytest.mark.parametrize(("method", "norm"), CASES)
def test_conventions(case, method, norm) -> None:
    """Range, ball, definitions, independence of the rest of the batch, nothing left changed."""
    eps = RADII[norm]
    settings = {**CHEAP.get(method, {}), "norm": norm}
    case.model.train()
    case.model[0].weight.requires_grad_(False)
    case.model[5].weight.grad = torch.ones_like(case.model[5].weight)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    x, y = case.x.clone(), case.y.clone()
    state = {key: value.clone() for key, value in case.model.state_dict().items()}

    found = sl.attack(case.model, case.x, case.y, method, eps=eps, seed=1, **settings)

    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all() and random.getstate() == before[2]  # noqa: NPY002
    assert torch.equal(case.x, x) and torch.equal(case.y, y) and not case.x.requires_grad
    assert all(module.training for module in case.model.modules())
    assert [p.requires_grad for p in case.model.parameters()] == [False, *[True] * 5]
    assert [p.grad is None for p in case.model.parameters()] == [True, True, True, True, False, True]
    assert (case.model[5].weight.grad == 1).all()
    assert not case.model._forward_hooks and not case.model._backward_hooks
    assert all(torch.equal(value, state[key]) for key, value in case.model.state_dict().items())

    case.model.eval()
    delta = (found.adversarial - x).flatten(1)
    length = length_of(delta, norm)
    assert (length <= eps + 1e-6).all() and torch.allclose(found.distance, length)
    assert found.adversarial.min() >= 0 and found.adversarial.max() <= 1
    with torch.no_grad():
        predictions = case.model(found.adversarial).argmax(1)
    assert torch.equal(found.predictions, predictions)
    assert found.clean_correct.tolist() == [True] * 5 + [False] * 2
    assert torch.equal(found.robust, found.clean_correct & (predictions == y))
    assert torch.equal(found.success, found.clean_correct & (predictions != y))
    assert torch.equal(found.adversarial[-2:], x[-2:]) and (found.queries[-2:] == 0).all()
    assert (found.queries[:-2] > 0).all()
    assert found.robust_accuracy == found.robust.double().mean().item()
    assert found.table()["robust"].tolist() == found.robust.tolist()
    assert json.loads(json.dumps(found.to_dict()))["robust_accuracy"] == found.robust_accuracy
    assert method in repr(found)

    order = torch.tensor([3, 0, 4])
    again = sl.attack(case.model, x[order], y[order], method, eps=eps, seed=1, **settings)
    assert torch.allclose(again.adversarial, found.adversarial[order], atol=1e-9)
    assert torch.equal(again.queries, found.queries[order])
    alone = sl.attack(case.model, x[4:5], y[4:5], method, eps=eps, seed=1, **settings)
    assert torch.allclose(alone.adversarial, found.adversarial[4:5], atol=1e-9)


class Breaks(nn.Module):
    """Raises in its third forward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("out of luck")
        return self.inner(x)


@pytest.mark.parametrize("method", ATTACKS)
def test_everything_is_put_back_after_an_exception(case, method) -> None:
    model = Breaks(case.model).train()
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="out of luck"):
        sl.attack(model, case.x, case.y, method, eps=0.02)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_chunks_do_not_matter(case, monkeypatch) -> None:
    whole = sl.attack(case.model, case.x, case.y, eps=0.02, steps=5)
    monkeypatch.setattr("saliency_lab.attacks.api.pass_rows", lambda model, shape, backward: 2)
    cut = sl.attack(case.model, case.x, case.y, eps=0.02, steps=5)
    assert torch.allclose(whole.adversarial, cut.adversarial, atol=1e-9)
    assert torch.allclose(whole.loss_curve, cut.loss_curve, atol=1e-6, equal_nan=True)


def test_seed_moves_the_start(case) -> None:
    a, b = (sl.attack(case.model, case.x, case.y, eps=0.001, steps=5, step_size=1e-4, seed=s) for s in (0, 1))
    assert not torch.equal(a.adversarial, b.adversarial)


def test_zero_eps_is_clean_accuracy(case) -> None:
    found = sl.attack(case.model, case.x, case.y, eps=0)
    assert torch.equal(found.adversarial, case.x) and torch.equal(found.robust, found.clean_correct)


@pytest.mark.parametrize("method", ATTACKS)
def test_images_that_are_all_wrong_already_are_left_alone(case, method) -> None:
    wrong = case.x[-2:], (case.model(case.x[-2:]).argmax(1) + 1) % 5
    found = sl.attack(case.model, *wrong, method, eps=0.1)
    assert torch.equal(found.adversarial, wrong[0])
    assert not found.queries.any() and not found.success.any()


def test_eps_in_pixels(case) -> None:
    text = sl.attack(case.model, case.x, case.y, "fgsm", eps="2/255")
    number = sl.attack(case.model, case.x, case.y, "fgsm", eps=2 / 255)
    assert text.eps == 2 / 255 and torch.equal(text.adversarial, number.adversarial)


def test_a_nan_gradient_does_not_hide_a_weak_model() -> None:
    """A square root at zero gives NaN in the backward pass of one pixel; the others still break the model."""

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            gap = flat[:, 1:].sum(1) + 0 * (flat[:, 0] - flat[:, 0]).sqrt() - 0.2
            return torch.stack([gap, -gap], 1)

    x, y = torch.full((1, 1, 2, 2), 0.1), torch.tensor([0])
    assert not sl.attack(Root(), x, y, eps=0.1).robust.any()


GRADIENT_ATTACKS = [name for name in METHODS if METHODS[name].access == "gradient"]


def detached(x: Tensor) -> Tensor:
    return x.detach()


def with_an_idle_gradient(x: Tensor) -> Tensor:
    """Gradients are 0 at all pixels, as those of a step function."""
    return x.detach() + 0 * x


@pytest.mark.parametrize("hide", [detached, with_an_idle_gradient])
@pytest.mark.parametrize("method", GRADIENT_ATTACKS)
def test_a_model_without_a_gradient_raises_one_warning(case, method, hide) -> None:
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return case.model(hide(x))  # not a submodule: its weights have gradients all the same

    settings = {"norm": METHODS[method].norms[0], **CHEAP.get(method, {})}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = sl.attack(Hidden(), case.x, case.y, method, eps=0.01, **settings)
    assert found.robust.any()
    [warning] = caught
    assert f"no gradient at the image, or one that is 0 everywhere, so attack '{method}'" in str(
        warning.message
    )
    assert warning.filename == __file__
    if method in ("fgsm", "deepfool", "cw", "ead"):
        assert torch.equal(found.adversarial, case.x)


@pytest.mark.parametrize("method", GRADIENT_ATTACKS)
def test_an_attack_that_needs_no_gradient_or_has_one_does_not_warn_of_it(case, method, recwarn) -> None:
    """Where every image is broken at the start, no gradient is asked for."""
    settings = {"norm": METHODS[method].norms[0], **CHEAP.get(method, {})}
    for eps in (0.01, 1.0):
        sl.attack(case.model, case.x, case.y, method, eps=eps, **settings)
    assert not [each for each in recwarn if "no gradient" in str(each.message)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.full((7, 1, 8, 8), torch.nan)}, "holds NaN"),
        ({"x": torch.full((7, 1, 8, 8), 255.0)}, r"must lie in \[0, 1\].*wrap makes"),
        ({"x": torch.zeros(7, 8, 8)}, r"\(N, C, H, W\)"),
        ({"x": torch.zeros(7, 1, 8, 8, dtype=torch.uint8)}, "x.float"),
        ({"y": torch.full((7,), 5)}, r"in 0 … 4"),
        ({"y": torch.zeros(6, dtype=torch.long)}, r"\(7,\)"),
        ({"eps": -0.1}, "≥ 0"),
        ({"eps": "8/256/2"}, "8/255"),
        ({"eps": float("nan")}, "≥ 0"),
        ({"eps": 8}, 'did you mean "8/255"'),
        ({"x": torch.zeros(7, 3, 8, 8).double()}, r"does not take images of shape \(3, 8, 8\)"),
        ({"method": "pdg"}, "did you mean 'pgd'"),
        ({"stesp": 3}, "did you mean 'steps'"),
        ({"alpha": 0.01}, "unknown setting of attack 'pgd': 'alpha'; it is called 'step_size' here"),
        ({"method": lambda x: x}, r"is called as \(model, x, y, eps, \*\*settings\): too many positional"),
        ({"steps": 0}, "'steps'"),
        ({"norm": "l1"}, "has no l1 version; these have: apgd_ce"),
        ({"norm": "l0"}, "'norm'"),
        ({"step_size": 0}, "must be > 0"),
        ({"eps": 10**400}, "finite number"),
        ({"method": "mifgsm"}, '"bim" with momentum=1.0'),
        ({"method": "aa"}, 'write "autoattack"'),
        ({"loss": "hinge"}, "'loss'"),
        ({"method": "fgsm", "loss": "kl"}, "zero gradient at x"),
        ({"loss": "kl", "target": torch.zeros(7, dtype=torch.long)}, "targeted"),
        ({"target": torch.full((7,), 9)}, "target: labels must be in 0 … 4"),
        ({"target": 3}, r"target must be a tensor \(N,\).*not int"),
    ],
)
def test_bad_input_says_what_would_do(case, change, message) -> None:
    given = {"x": case.x, "y": case.y, "method": "pgd", "eps": 0.1, **change}
    if "target" in change and "loss" in change:
        given["target"] = (case.y + 1) % 5
    with pytest.raises(sl.SaliencyLabError, match=message):
        sl.attack(case.model, **given)


@pytest.mark.parametrize("model", ["digits/at", lambda x: x])
def test_what_is_no_module_is_refused(case, model) -> None:
    named = "the model must be a torch.nn.Module, not"
    with pytest.raises(sl.SaliencyLabError, match=named):
        sl.attack(model, case.x, case.y, eps=0.1)
    with pytest.raises(sl.SaliencyLabError, match=named):
        sl.attack_map(model, case.x, eps=0.1)


def test_a_target_that_is_the_label_is_refused(case) -> None:
    with pytest.raises(sl.SaliencyLabError, match="choose another class"):
        sl.attack(case.model, case.x, case.y, eps=0.1, target=case.y)


def test_logits_that_are_not_finite_are_refused(case) -> None:
    case.model[5].bias.data[0] = torch.nan
    with pytest.raises(sl.SaliencyLabError, match="not finite"):
        sl.attack(case.model, case.x, case.y, eps=0.1)
    with pytest.raises(sl.SaliencyLabError, match="not finite"):
        sl.attack_map(case.model, case.x, eps=0.1)


def test_list_attacks_names_every_method_and_its_settings() -> None:
    table = sl.list_attacks()
    assert list(table.index) == list(METHODS)
    assert "steps=40" in table.loc["pgd", "settings"]
    assert table["reference"].str.len().min() > 20


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", ["fgsm", "pgd", "apgd_ce", "apgd_t", "fab_t"])
def test_a_callers_mode_without_gradients_changes_nothing(case, method, context, recwarn) -> None:
    settings = CHEAP.get(method, {})
    plain = sl.attack(case.model, case.x, case.y, method, eps=0.02, **settings)
    with context():
        found = sl.attack(case.model, case.x.clone(), case.y.clone(), method, eps=0.02, **settings)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
    assert torch.equal(found.adversarial, plain.adversarial) and not len(recwarn)
    assert torch.equal(found.queries, plain.queries)


def test_a_callers_mode_does_not_stop_a_targeted_loss_or_a_curve(case) -> None:
    target = (case.y + 1) % 5
    plain = sl.attack(case.model, case.x, case.y, eps=0.02, steps=3, target=target)
    curve = sl.robustness_curve(case.model, case.x, case.y, eps=(0, 0.02), steps=3, loss="kl")
    smallest = sl.attacks.minimal_epsilon(case.model, case.x, case.y, steps=3, tolerance=0.01)
    with torch.inference_mode():
        x, y = case.x.clone(), case.y.clone()
        found = sl.attack(case.model, x, y, eps=0.02, steps=3, target=target.clone())
        assert torch.equal(found.adversarial, plain.adversarial)
        again = sl.robustness_curve(case.model, x, y, eps=(0, 0.02), steps=3, loss="kl")
        assert torch.equal(again.robust, curve.robust)
        assert torch.equal(sl.attacks.minimal_epsilon(case.model, x, y, steps=3, tolerance=0.01), smallest)


def test_a_model_made_in_inference_mode_is_refused(case) -> None:
    """Its parameters can have no gradient flow past them, nor be put back as they were."""
    with torch.inference_mode():
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).double()
        y = model(case.x).argmax(1)
    with pytest.raises(sl.SaliencyLabError, match=r"torch\.inference_mode.*load it outside"):
        sl.attack(model, case.x, y, eps=0.02)


class InPlace(nn.Module):
    """Normalises its input where it stands."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.sub_(0.5).mul_(2.0))


@pytest.mark.parametrize("method", ["pgd", "noise", "square", "apgd_ce"])
def test_a_model_that_changes_its_input_is_refused(case, method) -> None:
    """Its changed input would be returned as a point of the ball."""
    kept = case.x.clone()
    with pytest.raises(sl.SaliencyLabError, match=r"InPlace changes its input in place.*x\.clone"):
        sl.attack(InPlace(case.model), case.x, case.y, method, eps=0.02)
    with pytest.raises(sl.SaliencyLabError, match="changes its input in place"):
        sl.transfer_attack(case.model, InPlace(case.model), case.x, case.y, eps=0.02)
    assert torch.equal(case.x, kept)


def test_a_first_layer_in_place_is_refused_though_it_changes_no_pixel(case) -> None:
    """A ReLU in place leaves images in [0, 1] as they are, and cannot be differentiated at them."""
    model = nn.Sequential(nn.ReLU(inplace=True), case.model)
    with pytest.raises(sl.SaliencyLabError, match=r"changes its input in place.*inplace=False"):
        sl.attack(model, case.x, case.y, eps=0.02)
    with torch.inference_mode(), pytest.raises(sl.SaliencyLabError, match="changes its input in place"):
        sl.robustness_curve(model, case.x.clone(), case.y, eps=(0, 0.02))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(case, half) -> None:
    """The next number above 0.5 is 0.0039 away in bfloat16, an eighth of a ball of 8/255."""
    for x in (case.x.to(half), case.x.float()):
        with pytest.raises(sl.SaliencyLabError, match=rf"numbers of {half} .*x\.float\(\)"):
            sl.attack(copy.deepcopy(case.model).to(half), x, case.y, eps="8/255")
    with pytest.raises(sl.SaliencyLabError, match=rf"numbers of {half}"):
        sl.attack(copy.deepcopy(case.model).float(), case.x.to(half), case.y, eps="8/255")


def test_images_of_another_type_than_the_models_are_refused(case) -> None:
    with pytest.raises(sl.SaliencyLabError, match=r"computes in torch.float64.*torch.float32; use x\.to"):
        sl.attack(case.model, case.x.float(), case.y, eps=0.02)


def test_a_model_of_probabilities_is_warned_about(case) -> None:
    model = nn.Sequential(case.model, nn.Softmax(1))
    with pytest.warns(UserWarning, match="returns probabilities, not logits"):
        sl.attack(model, case.x, case.y, "fgsm", eps=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sl.attack(case.model, case.x, case.y, "fgsm", eps=0.1)


def test_a_single_logit_is_refused(case) -> None:
    """Its argmax never changes: every sample would be robust."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).double()
    with pytest.raises(sl.SaliencyLabError, match=r"one number per image, \(N, 1\); .*sl\.BinaryLogits"):
        sl.attack(model, case.x, torch.zeros(7, dtype=torch.long), eps=0.5)


def test_a_radius_is_shown_as_it_is_written(case) -> None:
    """Every object and message that names ε says 8/255 for "8/255"."""
    found = sl.attack(case.model, case.x, case.y, "fgsm", eps="8/255")
    curve = sl.robustness_curve(case.model, case.x, case.y, "fgsm", eps=(0, "8/255", 0.1))
    report = sl.audit(case.model, case.x, case.y, "fgsm", eps="8/255")
    moved = sl.attack_map(case.model, case.x, eps="8/255", steps=1)
    for shown in (found, curve, report, moved):
        assert "8/255" in repr(shown) and "0.03137" not in repr(shown)
        assert "8/255" in shown._repr_html_()
    assert "0.1: " in repr(curve)
    with pytest.raises(sl.SaliencyLabError, match=r"eps=0\.1.*eps=8/255\)"):
        sl.worst_case(found, sl.attack(case.model, case.x, case.y, "fgsm", eps=0.1))


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].norms != ("severity",)])
def test_images_in_any_order_of_memory_are_attacked_alike(method) -> None:
    """Photographs come as (N, H, W, C), and a permuted view of them is (N, C, H, W)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(120, 5)).double().eval()
    x = torch.rand(4, 3, 7, 8, dtype=torch.float64)
    y = model(x).argmax(1)
    for norm in METHODS[method].norms:
        settings = {"eps": 0.1, "norm": norm, **CHEAP.get(method, {})}
        plain = sl.attack(model, x, y, method, **settings)
        for moved in (
            x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
            x.transpose(2, 3).contiguous().transpose(2, 3),
        ):
            other = sl.attack(model, moved, y, method, **settings)
            torch.testing.assert_close(other.adversarial, plain.adversarial, rtol=0, atol=1e-6)


def test_a_list_of_norms_names_those_of_balls(case) -> None:
    for method in ("pgd", "cw", "autoattack"):
        with pytest.raises(sl.SaliencyLabError, match=r"'linf', 'l2' or 'l1' \(given: 'L2'\)"):
            sl.attack(case.model, case.x, case.y, method, eps=0.1, norm="L2")


@pytest.mark.parametrize("method", ["pgd", "deepfool", "cw", "ead", "apgd_ce"])
def test_another_default_type_of_torch_changes_nothing_or_is_named(case, method) -> None:
    model, x, settings = case.model.float(), case.x.float(), {"eps": 0.1, **CHEAP.get(method, {})}
    if "norm" not in settings:
        settings["norm"] = METHODS[method].norms[0]
    before = sl.attack(model, x, case.y, method, **settings)
    torch.set_default_dtype(torch.float64)
    try:
        if method == "apgd_ce":
            with pytest.raises(sl.SaliencyLabError, match=r"default type is torch\.float64"):
                sl.attack(model, x, case.y, method, **settings)
            return
        after = sl.attack(model, x, case.y, method, **settings)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(after.adversarial, before.adversarial)
    assert after.adversarial.dtype == after.loss.dtype == torch.float32


class Double(nn.Module):
    """Returns the logits of a model in float64."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).double()


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].norms != ("severity",)])
def test_logits_may_have_another_type_than_the_images(case, method) -> None:
    model, x = case.model.float(), case.x.float()
    settings = {"norm": METHODS[method].norms[0], **CHEAP.get(method, {})}
    expected = sl.attack(model, x, case.y, method, eps=0.02, **settings)
    found = sl.attack(Double(model), x, case.y, method, eps=0.02, **settings)
    assert found.adversarial.dtype == torch.float32
    torch.testing.assert_close(found.adversarial, expected.adversarial, rtol=0, atol=1e-4)
    assert torch.equal(found.robust, expected.robust)


def test_gradients_may_come_from_a_network_of_another_type(case) -> None:
    model, x = case.model.float(), case.x.float()
    found = sl.attack(model, x, case.y, "pgd", eps=0.02, steps=3, gradients_from=Double(model))
    assert torch.equal(found.robust, sl.attack(model, x, case.y, "pgd", eps=0.02, steps=3).robust)


def test_an_attack_of_ones_own_that_returns_an_array_is_told_so(case) -> None:
    with pytest.raises(InputError, match=r"must return a tensor of the points, \(5, 1, 8, 8\), not ndarray"):
        sl.attack(case.model, case.x, case.y, lambda model, x, y, eps: x.numpy(), eps=0.1)
