"""Values and gradients of each objective against float64 formulas written here, sample by sample."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from saliency_lab.attacks.ascent import projected_ascent
from saliency_lab.training import OBJECTIVES, AttackSpec, Step
from saliency_lab.training.step import divergence
from saliency_lab.training.trunk import mode_matters


def smooth_net(seed=0, inputs=12, classes=3):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 7), nn.Tanh(), nn.Linear(7, classes))
    return net.double().train()


def make_step(net, n=4, **changes):
    draws = torch.Generator().manual_seed(3)
    x = torch.rand(n, 3, 2, 2, generator=draws, dtype=torch.float64) * 0.8 + 0.1
    y = torch.randint(0, 3, (n,), generator=draws)
    given = {"attack": AttackSpec(eps=0.05, steps=3), "eps": 0.05, "progress": 0.5, "seed": 11} | changes
    return Step(net=net, x=x, y=y, **given)


def softmax(z):
    e = [math.exp(v) for v in z]
    return [v / sum(e) for v in e]


def kl(z_p, z_q):
    p, q = softmax(z_p), softmax(z_q)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def cross_entropy(z, label):
    return -math.log(softmax(z)[label])


def logits(net, x):
    with torch.no_grad():
        return net(x).tolist()


def mean(values):
    return sum(values) / len(values)


def by_hand_mask(step, x, saliency, objective):
    """⌊k·H·W⌋ lowest pixels by a loop, filled from the step's own draw."""
    noise = step.draw("fill").double()
    out = x.clone()
    for i in range(len(x)):
        reduced = saliency[i] if objective.ranking == "signed" else saliency[i].abs()
        scores = reduced.mean(0).flatten().tolist()
        order = sorted(range(len(scores)), key=lambda pixel: scores[pixel])
        for pixel in order[: math.floor(objective.fraction * len(scores))]:
            row, column = divmod(pixel, x.shape[3])
            for c in range(x.shape[1]):
                low, high = x[i, c].min(), x[i, c].max()
                out[i, c, row, column] = low + (high - low) * noise[i, c, row, column]
    return out


def saliency_by_difference(net, x, classes, h=1e-6):
    """∂z_class/∂x by central differences."""
    out = torch.zeros_like(x)
    for i in range(len(x)):
        for index in np.ndindex(*x.shape[1:]):
            up, down = x[i : i + 1].clone(), x[i : i + 1].clone()
            up[(0, *index)] += h
            down[(0, *index)] -= h
            out[(i, *index)] = (logits(net, up)[0][classes[i]] - logits(net, down)[0][classes[i]]) / (2 * h)
    return out


def values(objective, step):
    return {term: value.item() for term, value in objective.terms(step).items()}


def test_kl_has_the_first_argument_in_front_and_is_a_batch_mean():
    p, q = (
        torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.0, 0.0]]),
        torch.tensor([[1.0, 1.0, -1.0], [3.0, 0.0, 0.0]]),
    )
    expected = mean([kl(a, b) for a, b in zip(p.tolist(), q.tolist(), strict=True)])
    backwards = mean([kl(b, a) for a, b in zip(p.tolist(), q.tolist(), strict=True)])
    assert divergence(p, q).item() == pytest.approx(expected, rel=1e-6)
    assert abs(expected - backwards) > 0.1


def test_standard():
    step = make_step(net := smooth_net())
    expected = mean([cross_entropy(z, t) for z, t in zip(logits(net, step.x), step.y.tolist(), strict=True)])
    assert values(OBJECTIVES["standard"](), step) == {"clean": pytest.approx(expected)}


@pytest.mark.parametrize("ranking", ["signed", "absolute"])
@pytest.mark.parametrize("fraction", [0.5, 0.8, 0.0])
def test_saliency_guided(ranking, fraction):
    step = make_step(net := smooth_net())
    objective = OBJECTIVES["sgt"](weight=0.7, ranking=ranking, fraction=fraction)
    y = step.y.tolist()
    hidden = by_hand_mask(step, step.x, saliency_by_difference(net, step.x, y), objective)
    clean = logits(net, step.x)
    expected = {
        "clean": mean([cross_entropy(z, t) for z, t in zip(clean, y, strict=True)]),
        "divergence": 0.7 * mean([kl(p, q) for p, q in zip(clean, logits(net, hidden), strict=True)]),
    }
    assert values(objective, step) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("reference", ["clean", "adversarial"])
def test_adversarial_saliency_guided(reference):
    step = make_step(net := smooth_net())
    objective = OBJECTIVES["asgt"](weight=2.0, reference=reference)
    attacked = step.perturb()
    y = step.y.tolist()
    clean, adversarial = logits(net, step.x), logits(net, attacked)
    classes = y if reference == "clean" else [z.index(max(z)) for z in adversarial]
    hidden = logits(
        net, by_hand_mask(step, attacked, saliency_by_difference(net, attacked, classes), objective)
    )
    r = clean if reference == "clean" else adversarial
    expected = {
        "clean": mean([cross_entropy(z, t) for z, t in zip(clean, y, strict=True)]),
        "adversarial": mean([cross_entropy(z, t) for z, t in zip(adversarial, y, strict=True)]),
        "divergence": 2.0 * mean([kl(p, q) for p, q in zip(r, hidden, strict=True)]),
    }
    assert values(objective, step) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("clean_weight", [0.0, 0.5])
def test_adversarial(clean_weight):
    step = make_step(net := smooth_net())
    got = values(OBJECTIVES["at"](clean_weight=clean_weight), step)
    y = step.y.tolist()
    expected = {
        "adversarial": mean(
            [cross_entropy(z, t) for z, t in zip(logits(net, step.perturb()), y, strict=True)]
        )
    }
    if clean_weight:
        expected["clean"] = clean_weight * mean(
            [cross_entropy(z, t) for z, t in zip(logits(net, step.x), y, strict=True)]
        )
    assert got == pytest.approx(expected)


def test_trades_against_a_second_formulation():
    """KL(p ‖ q) = H(p, q) − H(p); the attack raises exactly that."""
    step = make_step(net := smooth_net())
    got = values(OBJECTIVES["trades"](beta=3.0), step)
    fixed = net(step.x).detach()

    def rising(point):
        point = point.detach().requires_grad_()
        cross = -(fixed.softmax(1) * net(point).log_softmax(1)).sum()  # H(p) is constant in the point
        return torch.autograd.grad(cross, point)[0]

    start = step.x + 0.05 * (2 * step.draw("start").double() - 1)
    attacked = projected_ascent(
        step.x, rising, start=start.clamp(0, 1), eps=0.05, step_size=2.5 * 0.05 / 3, steps=3
    )
    pairs = list(zip(logits(net, step.x), logits(net, attacked), strict=True))
    assert got["divergence"] == pytest.approx(3.0 * mean([kl(p, q) for p, q in pairs]), rel=1e-6)
    assert got["divergence"] > 3.0 * mean(
        [kl(p, q) for p, q in zip(fixed.tolist(), logits(net, start), strict=True)]
    )


def test_mart():
    step = make_step(net := smooth_net())
    got = values(OBJECTIVES["mart"](weight=5.0), step)
    boosted, weighted = [], []
    for a, c, t in zip(logits(net, step.perturb()), logits(net, step.x), step.y.tolist(), strict=True):
        p, clean = softmax(a), softmax(c)
        rival = max(value for k, value in enumerate(p) if k != t)
        boosted.append(-math.log(p[t]) - math.log(1 - rival))
        weighted.append(kl(c, a) * (1 - clean[t]))
    assert got == pytest.approx({"boosted": mean(boosted), "divergence": 5.0 * mean(weighted)})


def test_fast_adversarial_takes_one_step_of_its_stride():
    step = make_step(net := smooth_net())
    got = values(OBJECTIVES["fast_at"](), step)["adversarial"]
    start = (step.x + 0.05 * (2 * step.draw("start").double() - 1)).clamp(0, 1).requires_grad_()
    loss = sum(net(start)[i].logsumexp(0) - net(start)[i, t] for i, t in enumerate(step.y))
    moved = start + 1.25 * 0.05 * torch.autograd.grad(loss, start)[0].sign()
    attacked = torch.minimum(torch.maximum(moved, step.x - 0.05), step.x + 0.05).clamp(0, 1).detach()
    expected = mean(
        [cross_entropy(z, t) for z, t in zip(logits(net, attacked), step.y.tolist(), strict=True)]
    )
    assert got == pytest.approx(expected)


def test_input_gradient_against_finite_differences():
    step = make_step(net := smooth_net(), n=2)
    got = values(OBJECTIVES["input_gradient"](weight=0.3), step)
    squares = []
    for i, t in enumerate(step.y.tolist()):
        total = 0.0
        for index in np.ndindex(*step.x.shape[1:]):
            up, down = step.x[i : i + 1].clone(), step.x[i : i + 1].clone()
            up[(0, *index)] += 1e-6
            down[(0, *index)] -= 1e-6
            slope = (cross_entropy(logits(net, up)[0], t) - cross_entropy(logits(net, down)[0], t)) / 2e-6
            total += slope**2
        squares.append(total)
    assert got["gradient"] == pytest.approx(0.3 * mean(squares), rel=1e-5)


class Attention(nn.Module):
    """One head over the four pixels, by torch's own function or written out."""

    def __init__(self, *, written_out):
        super().__init__()
        torch.manual_seed(0)
        self.within, self.out = nn.Linear(3, 12), nn.Linear(4, 3)
        self.written_out = written_out

    def forward(self, x):
        q, k, v = self.within(x.flatten(2).transpose(1, 2)).chunk(3, dim=2)
        if self.written_out:
            return self.out(((q @ k.transpose(1, 2) / 2).softmax(2) @ v).mean(1))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).mean(1))


def test_input_gradient_of_a_network_with_attention_is_that_of_attention_written_out():
    slopes = []
    for way in (False, True):
        net = Attention(written_out=way).double()
        sum(OBJECTIVES["input_gradient"](weight=0.3).terms(make_step(net)).values()).backward()
        slopes.append([parameter.grad for parameter in net.parameters()])
    torch.testing.assert_close(*slopes)


def test_noise_is_uniform_in_the_ball_and_unaimed():
    step = make_step(net := smooth_net())
    noisy = (step.x + 0.05 * (2 * step.draw("start").double() - 1)).clamp(0, 1)
    expected = mean([cross_entropy(z, t) for z, t in zip(logits(net, noisy), step.y.tolist(), strict=True)])
    assert values(OBJECTIVES["noise"](), step) == {"noisy": pytest.approx(expected)}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_parameter_gradients_are_those_of_the_terms(name, monkeypatch):
    """The summed terms' gradient by parameters, against central differences, x' and mask fixed."""
    net = smooth_net()
    step = make_step(net)
    attacked = step.perturb()
    assert not torch.equal(attacked, step.x)
    # an attack and a ranking that do not follow the parameters leave nothing that jumps with them
    monkeypatch.setattr(Step, "perturb", lambda self, *given, **named: attacked)
    objective = OBJECTIVES[name](**({"ranking": "random"} if name in {"sgt", "asgt"} else {}))

    def loss():
        return sum(objective.terms(step).values())

    parameter = net[1].weight
    (gradient,) = torch.autograd.grad(loss(), parameter)
    for index in [(0, 0), (3, 5), (6, 11)]:
        with torch.no_grad():
            kept = parameter[index].item()
            parameter[index] = kept + 1e-6
            up = loss_value(loss)
            parameter[index] = kept - 1e-6
            down = loss_value(loss)
            parameter[index] = kept
        assert gradient[index].item() == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-8)


def loss_value(loss):
    with torch.enable_grad():
        return loss().item()


def test_reused_saliency_ranks_by_minus_the_last_attack_gradient():
    step = make_step(net := smooth_net())
    attacked = step.perturb()
    objective = OBJECTIVES["asgt"](saliency="reuse")
    hidden = by_hand_mask(step, attacked, -step.last_gradient, objective)
    expected = mean([kl(p, q) for p, q in zip(logits(net, step.x), logits(net, hidden), strict=True)])
    assert values(objective, step)["divergence"] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("progress", [0.0, 0.5, 0.999])
def test_masked_fraction_over_the_training(schedule, progress):
    step = make_step(smooth_net(), progress=progress)
    step.x = torch.rand(4, 3, 10, 10, dtype=torch.float64)
    step.net = smooth_net(inputs=300)
    hidden = OBJECTIVES["sgt"](fraction=0.5, fraction_schedule=schedule, fill="zero").mask(
        step, step.x, torch.rand_like(step.x)
    )
    counts = (hidden == 0).all(1).flatten(1).sum(1)
    if schedule == "constant":
        assert counts.tolist() == [50] * 4
    else:
        assert counts.tolist() == [math.floor(50 * progress + 1e-6)] * 4


def test_adaptive_fraction_keeps_the_label_or_masks_nothing():
    step = make_step(net := smooth_net(inputs=300))
    step.x = torch.rand(40, 3, 10, 10, dtype=torch.float64)
    with torch.no_grad():
        net[1].bias -= net[1](step.x.flatten(1)).mean(0)  # so that small changes matter
        net[3].bias -= net(step.x).mean(0)
        step.y = net(step.x).argmax(1)
    step.y[:10] = (step.y[:10] + 1) % 3  # these are wrong at every fraction that changes nothing
    saliency = torch.randn_like(step.x)
    objective = OBJECTIVES["sgt"](fraction=0.8, fraction_schedule="adaptive")
    hidden = objective.mask(step, step.x, saliency)
    share = (hidden != step.x).any(1).flatten(1).double().mean(1)
    expected = torch.zeros(40, dtype=torch.float64)
    for quarter in (0.2, 0.4, 0.6, 0.8):
        candidate = OBJECTIVES["sgt"](fraction=quarter).mask(step, step.x, saliency)
        right = torch.tensor(logits(net, candidate)).argmax(1) == step.y
        expected[right] = quarter
    assert torch.allclose(share, expected, atol=1e-6)
    assert len(expected.unique()) > 2


class Noisy(nn.Module):
    """A net with dropout and BatchNorm, for what depends on the mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.ReLU()
        self.drop, self.out = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.drop(self.act(self.norm(self.conv(x))).flatten(1)))


def test_same_dropout_draw_makes_the_divergence_of_equal_inputs_zero():
    net = Noisy().double().train()
    net.norm.momentum = 0.0
    step = make_step(net)
    same = values(OBJECTIVES["sgt"](fraction=0.0), step)["divergence"]
    other = values(OBJECTIVES["sgt"](fraction=0.0, same_dropout=False), step)["divergence"]
    assert same == pytest.approx(0.0, abs=1e-12)
    assert other > 1e-3


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_attack_and_saliency_leave_the_batch_statistics_and_the_mode_alone(name):
    net = Noisy().double().train()
    net.drop.eval()  # a module frozen by its owner stays frozen
    passes = {"standard": 1, "sgt": 2, "at": 1, "asgt": 3, "trades": 2, "mart": 2}.get(name, 1)
    sum(OBJECTIVES[name]().terms(make_step(net)).values()).backward()
    assert net.norm.num_batches_tracked.item() == passes
    assert net.training and net.norm.training and not net.drop.training


def test_shared_forward_gives_what_separate_passes_give():
    net = smooth_net()
    step = make_step(net)
    z, s = step.logits_and_saliency(step.x, step.y)
    assert not mode_matters(net)
    net.append(nn.Dropout(1e-9))
    assert mode_matters(net)
    z2, s2 = step.logits_and_saliency(step.x, step.y)
    assert torch.allclose(s, s2)
    assert torch.allclose(z, z2)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_training_attack_stays_in_the_ball_and_raises_the_loss(norm):
    step = make_step(net := smooth_net(), attack=AttackSpec(eps=0.05, steps=5, norm=norm))
    attacked = step.perturb()
    delta = (attacked - step.x).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert (size <= 0.05 + 1e-9).all()
    assert ((attacked >= 0) & (attacked <= 1)).all()
    for before, after, t in zip(logits(net, step.x), logits(net, attacked), step.y.tolist(), strict=True):
        assert cross_entropy(after, t) > cross_entropy(before, t)


def test_two_processes_draw_the_rows_of_one():
    whole = make_step(smooth_net())
    parts = [make_step(smooth_net(), rank=rank, world_size=2) for rank in (0, 1)]
    for part in parts:
        part.x = part.x[:2]
    assert torch.equal(torch.cat([part.draw("start") for part in parts]), whole.draw("start"))


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_full_precision_under_autocast(name, dtype):
    """Nearly equal, confident predictions: in half precision the divergence goes negative, MART infinite."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).train()
    with torch.no_grad():
        net[1].weight.mul_(20)
    step = make_step(net, attack=AttackSpec(eps=1e-4, steps=2), eps=1e-4)
    step.x = step.x.float()
    with torch.autocast("cpu", dtype):
        step.y = net(step.x).argmax(1)
        terms = OBJECTIVES[name]().terms(step)
    for value in terms.values():
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
        assert value >= 0


def test_the_attack_does_not_stand_still_on_confident_samples_in_float16():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).train()
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(3, 12) * 17)
        net[1].bias.zero_()
    step = make_step(net, attack=AttackSpec(eps=0.05, steps=1, random_start=False))
    step.x = torch.zeros(3, 3, 2, 2)
    step.x.flatten(1)[:, :3] = torch.eye(3)
    step.y = torch.arange(3)  # right with 1 − p ≈ 8e-8, which float16 holds only as a subnormal
    with torch.autocast("cpu", torch.float16):
        attacked = step.perturb()
    assert (attacked != step.x).flatten(1).any(1).all()


class Functional(nn.Module):
    """Drops without a module that says so."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        return self.out(nn.functional.dropout(x.flatten(1), 0.5, self.training))


def test_a_class_of_unknown_mode_shares_no_forward_and_draws_by_the_seed():
    net = Functional().double().train()
    step = make_step(net)
    assert mode_matters(net)
    _, saliency = step.logits_and_saliency(step.x, step.y)
    assert torch.allclose(saliency.flatten(1), net.out.weight[step.y])  # of the whole image: no dropout
    torch.manual_seed(1)
    first = step.logits(step.x)
    torch.manual_seed(2)
    assert torch.equal(first, step.logits(step.x))
    assert not torch.equal(first, step.logits(step.x, draw=1))


def test_trades_starts_away_from_x_where_its_gradient_would_be_zero():
    step = make_step(smooth_net(), attack=AttackSpec(eps=0.05, steps=3, random_start=False))
    assert values(OBJECTIVES["trades"](), step)["divergence"] > 0


@pytest.mark.parametrize(("changes", "words"), [({"steps": 0}, "steps"), ({"eps": 8.0}, "8/255")])
def test_settings_that_would_switch_the_attack_off_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        AttackSpec(**changes)
