"""Our calls of pyautoattack against pyautoattack called directly, and our PGD against its APGD."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import nn

import saliency_lab as sl
from saliency_lab._common.seeding import preserved_rng, sample_normal, sample_seeds, sample_uniform
from saliency_lab.attacks import reference

EPS = {"linf": 0.1, "l2": 1.5}
LIBRARY_NORM = {"linf": "Linf", "l2": "L2"}


def library(method: str, norm: str, model, seed: int = 0):
    common = {"norm": LIBRARY_NORM[norm], "eps": EPS[norm], "seed": seed, "device": "cpu"}
    rescaled = norm == "linf"  # as ours: the size of the squares shrinks over the queries that there are
    return {
        "apgd_ce": lambda: APGDAttack(model, n_iter=20, loss="ce", **common),
        "apgd_dlr": lambda: APGDAttack(model, n_iter=20, loss="dlr", **common),
        "apgd_t": lambda: APGDAttack_targeted(model, n_iter=20, n_target_classes=3, **common),
        "fab_t": lambda: FABAttack_PT(model, n_iter=20, targeted=True, n_target_classes=3, **common),
        "square": lambda: SquareAttack(model, n_queries=300, resc_schedule=rescaled, **common),
    }[method]()


SETTINGS = {
    "apgd_ce": {"steps": 20},
    "apgd_dlr": {"steps": 20},
    "apgd_t": {"steps": 20, "target_classes": 3},
    "fab_t": {"steps": 20, "target_classes": 3},
    "square": {"queries": 300},
}


@pytest.mark.long
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", ["apgd_ce", "apgd_dlr", "apgd_t", "fab_t"])
def test_as_strong_as_the_library_itself(trained, batch, method, norm) -> None:
    x, y = batch
    found = sl.attack(trained, x, y, method, eps=EPS[norm], norm=norm, **SETTINGS[method])
    trained.requires_grad_(False)
    with preserved_rng():
        theirs = library(method, norm, lambda z: trained(z).clone()).perturb(x, y)
    trained.requires_grad_(True)
    with torch.no_grad():
        robust = trained(theirs).argmax(1) == y
    assert 0.02 < robust.float().mean() < 0.9  # neither trivial nor hopeless
    if method == "fab_t":  # it makes no draw
        assert (found.robust != robust).sum() <= 1
    else:  # other draws, the same algorithm
        assert abs(int(found.robust.sum()) - int(robust.sum())) <= 1


@pytest.mark.long
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_is_as_strong_as_that_of_the_library_over_seeds(trained, batch, norm) -> None:
    """Runs on 64 images have a standard deviation of up to two images, so means of runs are compared."""
    x, y = batch
    seeds = range(6)
    ours = [
        int(sl.attack(trained, x, y, "square", eps=EPS[norm], norm=norm, queries=300, seed=seed).robust.sum())
        for seed in seeds
    ]
    with preserved_rng(), torch.no_grad():
        theirs = [
            int((trained(library("square", norm, trained, seed).perturb(x, y)).argmax(1) == y).sum())
            for seed in seeds
        ]
    assert abs(sum(ours) - sum(theirs)) <= 3 * len(seeds), (ours, theirs)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_is_the_librarys_point_by_point_given_its_starts(trained, batch, loss, norm) -> None:
    """What differs from the library called directly is the draw of the starts and nothing else."""
    x, y = batch
    single_run = APGDAttack.attack_single_run

    def from_our_start(self, x, y):
        seeds = sample_seeds(x, 5, "apgd 0")
        draw = 2 * sample_uniform(seeds, x.shape[1:]) - 1 if norm == "linf" else None
        draw = sample_normal(seeds, x.shape[1:]) if draw is None else draw
        length = draw.flatten(1).abs().amax(1) if norm == "linf" else draw.flatten(1).norm(dim=1)
        start = (x + (EPS[norm] / length).reshape(-1, 1, 1, 1) * draw).clamp(0, 1)
        return single_run(self, x, y, x_init=start)

    library = APGDAttack(
        trained, n_iter=20, loss=loss, norm=LIBRARY_NORM[norm], eps=EPS[norm], seed=0, device="cpu"
    )
    trained.requires_grad_(False)
    with preserved_rng(), mock.patch.object(APGDAttack, "attack_single_run", from_our_start):
        theirs = library.perturb(x, y)
    trained.requires_grad_(True)
    ours = sl.attack(trained, x, y, f"apgd_{loss}", eps=EPS[norm], norm=norm, steps=20, seed=5)
    with torch.no_grad():
        robust = trained(theirs).argmax(1) == y
    assert torch.equal(ours.robust, robust) and robust.any()
    assert ours.success.any()
    broken = ours.success
    torch.testing.assert_close(ours.adversarial[broken], theirs[broken], rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_ensemble_is_the_librarys_standard_in_every_norm(batch, norm) -> None:
    """Restarts, classes and steps of its first two attacks, as given to them."""
    given: dict[str, dict[str, int]] = {}

    def note(name: str):
        attack = getattr(reference, name)

        def run(problem, settings):
            given[name] = settings.model_dump()
            return attack(problem, settings.model_copy(update={"steps": 1}))

        return run

    net, x = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), batch[0][:4]
    with mock.patch.multiple(reference, apgd_ce=note("apgd_ce"), apgd_t=note("apgd_t")):
        sl.attack(net, x, net(x).argmax(1), "autoattack", eps=1e-6, norm=norm, queries=1)
    names = {"linf": "Linf", "l2": "L2", "l1": "L1"}
    standard = AutoAttack(net, norm=names[norm], eps=0.1, version="standard")
    assert given["apgd_ce"]["restarts"] == standard.apgd.n_restarts
    assert given["apgd_ce"]["steps"] == standard.apgd.n_iter
    assert given["apgd_t"]["target_classes"] == standard.apgd_targeted.n_target_classes
    assert given["apgd_t"]["steps"] == standard.apgd_targeted.n_iter


@pytest.mark.long
def test_the_ensemble_is_as_strong_as_the_library_and_as_its_parts(trained, batch) -> None:
    x, y = batch[0][:24], batch[1][:24]
    budget = {"steps": 10, "target_classes": 9, "queries": 100}
    found = sl.attack(trained, x, y, "autoattack", eps=0.08, **budget)
    ensemble = AutoAttack(trained, eps=0.08, norm="Linf", seed=0)
    ensemble.apgd.n_iter = ensemble.apgd_targeted.n_iter = ensemble.fab.n_iter = 10
    ensemble.square.n_queries = 100
    trained.requires_grad_(False)
    with preserved_rng():
        points, _ = ensemble.run_standard_evaluation(x, y)
    trained.requires_grad_(True)
    with torch.no_grad():
        robust = trained(points).argmax(1) == y
    assert abs(int(found.robust.sum()) - int(robust.sum())) <= 1
    first = sl.attack(trained, x, y, "apgd_ce", eps=0.08, steps=10)
    assert not (found.robust & ~first.robust).any()
    assert not torch.equal(found.queries, first.queries)


@pytest.mark.long
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", ["apgd_dlr", "apgd_t", "fab_t", "square", "autoattack"])
def test_a_sample_that_survives_keeps_the_best_attempt(hardened, batch, method, norm) -> None:
    """By the cross-entropy: never below that of x; the ensemble's never below its first member's."""
    x, y = batch[0][:24], batch[1][:24]
    eps, budget = EPS[norm] / 2, {"steps": 5, "target_classes": 2, "queries": 30}
    settings = budget if method == "autoattack" else {k: budget[k] for k in SETTINGS[method]}
    found = sl.attack(hardened, x, y, method, eps=eps, norm=norm, **settings)
    with torch.no_grad():
        clean = torch.nn.functional.cross_entropy(hardened(x), y, reduction="none")
    robust = found.robust
    assert robust.sum() > 10
    assert (found.loss[robust] >= clean[robust] - 1e-6).all()
    assert (found.loss[robust] > clean[robust] + 1e-6).double().mean() > (0.3 if method == "fab_t" else 0.9)
    if method == "autoattack":
        first = sl.attack(hardened, x, y, "apgd_ce", eps=eps, norm=norm, steps=5)
        assert (found.loss[robust] >= first.loss[robust] - 1e-5).all()


@pytest.mark.long
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_not_weaker_than_apgd(trained, hardened, digits, norm) -> None:
    x, y = digits.test.batch(torch.arange(len(digits.test)))
    for model in (trained, hardened):
        ours = sl.attack(model, x, y, "pgd", eps=EPS[norm], norm=norm, steps=40)
        theirs = APGDAttack(model, n_iter=40, norm=LIBRARY_NORM[norm], eps=EPS[norm], loss="ce", device="cpu")
        with preserved_rng():
            points = theirs.perturb(x, y)
        with torch.no_grad():
            robust = (model(points).argmax(1) == y).double().mean().item()
        assert ours.robust_accuracy <= robust + 0.5 / 100 + 1e-9


@pytest.mark.parametrize("method", ["square", "apgd_ce"])
def test_a_sample_does_not_see_its_batch_mates_in_float32(trained, batch, method) -> None:
    x, y = batch
    together = sl.attack(trained, x, y, method, eps=0.1, **SETTINGS[method])
    for i in (3, 17):
        alone = sl.attack(trained, x[i : i + 1], y[i : i + 1], method, eps=0.1, **SETTINGS[method])
        assert alone.robust[0] == together.robust[i]
        assert alone.queries[0] == together.queries[i]


def test_nothing_is_printed(trained, batch, capsys, caplog) -> None:
    x, y = batch[0][:3], batch[1][:3]
    sl.attack(trained, x, y, "autoattack", eps=0.05, steps=3, target_classes=1, queries=3)
    out = capsys.readouterr()
    assert out.out == "" and caplog.text == ""


def test_a_model_without_gradients_warns_and_is_left_to_square(trained, batch) -> None:
    """APGD and FAB-T see nothing and say so: what the ensemble breaks is what APGD's start and Square do."""

    class WithoutGraph(torch.nn.Module):
        @torch.no_grad()
        def forward(self, x):
            return trained(x)

    class GraphOfAnother(torch.nn.Module):
        """As a layer without a backward pass leaves it."""

        def forward(self, x):
            return trained(x.detach().requires_grad_())

    x, y = batch[0][:8], batch[1][:8]
    for method in ("apgd_ce", "fab_t"):
        assert sl.attack(GraphOfAnother(), x, y, method, eps=0.01, steps=2).robust.any()
    blind = WithoutGraph()
    with pytest.warns(UserWarning, match="no gradient at the image.*'square'"):
        assert sl.attack(blind, x, y, "apgd_ce", eps=0.12, steps=3).clean_accuracy > 0.5
    with pytest.warns(UserWarning, match="no gradient at the image.*'square'"):
        whole = sl.attack(blind, x, y, "autoattack", eps=0.12, steps=3, target_classes=1, queries=100)
    alone = sl.attack(blind, x, y, "square", eps=0.12, queries=100)
    assert alone.success.any() and not (whole.robust & ~alone.robust).any()


def test_too_few_classes_are_refused(batch) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 3))
    x = batch[0][:2]
    with torch.no_grad():
        y = model(x).argmax(1)
    for method in ("apgd_t", "autoattack"):
        with pytest.raises(sl.SaliencyLabError, match="4 classes or more"):
            sl.attack(model, x, y, method, eps=0.1)
    assert sl.attack(model, x, y, "fab_t", eps=0.5, steps=3).method == "fab_t"


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_square_goes_on_where_logits_are_tied(norm) -> None:
    """A tie of the label with a later class is still right, and with an earlier one wrong."""

    class Coarse(torch.nn.Module):
        """Two logits of whole numbers, which are equal unless a pixel is bright."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bright = (x.amax((1, 2, 3)) > 0.53).to(x.dtype)
            return torch.stack([torch.ones_like(bright), 1 + bright], 1)

    x, y = torch.full((3, 1, 8, 8), 0.5), torch.zeros(3, dtype=torch.long)
    eps = {"linf": 0.001, "l2": 0.01, "l1": 0.05}[norm]
    assert sl.attack(Coarse(), x, y, "square", eps=eps, norm=norm, queries=20).robust.all()
    found = sl.attack(Coarse(), x, y, "square", eps=100 * eps, norm=norm, queries=60)
    assert found.success.all() and found.queries.max() <= 62


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_square_goes_on_where_logits_are_not_finite(norm) -> None:
    class Undefined(torch.nn.Module):
        """No logits where a pixel is bright, and the wrong class where one is dark."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bright, dark = x.amax((1, 2, 3)) > 0.505, x.amin((1, 2, 3)) < 0.495
            logits = torch.stack([2 * torch.ones(len(x)), 4 * dark.to(x)], 1)
            return logits.masked_fill(bright[:, None], torch.nan)

    x, y = torch.full((2, 1, 8, 8), 0.5), torch.zeros(2, dtype=torch.long)
    found = sl.attack(
        Undefined(), x, y, "square", eps={"linf": 0.1, "l2": 1.0, "l1": 5.0}[norm], norm=norm, queries=20
    )
    assert not (found.success & (found.predictions == -1)).any() and found.clean_accuracy == 1


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize(
    ("size", "fits"),
    [((28, 28), True), ((14, 14), False), ((24, 24), False), ((14, 13), False), ((4, 9), False)],
)
def test_images_that_the_first_tiles_of_square_do_not_fit_are_named(norm, size, fits) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)).eval()
    x = torch.rand(2, 1, *size)
    y = net(x).argmax(1)
    if fits:
        assert len(sl.attack(net, x, y, "square", norm=norm, eps=1, queries=5)) == 2
        return
    with pytest.raises(sl.SaliencyLabError, match=f"do not fit into {size[0]}×{size[1]} pixels; use 'linf'"):
        sl.attack(net, x, y, "square", norm=norm, eps=1, queries=5)
    assert len(sl.attack(net, x, y, "square", eps=0.1, queries=5)) == 2


@pytest.mark.parametrize("norm", ["linf", "l1", "l2"])
def test_square_draws_the_same_whatever_other_threads_draw(norm) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.rand(3, 1, 15, 15)
    y = net(x).argmax(1)

    class Interrupted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.rand(3)  # as another thread does between two steps
            return net(x)

    settings = {"norm": norm, "eps": {"linf": 0.01, "l1": 1.0, "l2": 0.2}[norm], "queries": 30}
    alone = sl.attack(net, x, y, "square", **settings)
    assert torch.equal(sl.attack(Interrupted(), x, y, "square", **settings).adversarial, alone.adversarial)
