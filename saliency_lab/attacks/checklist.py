"""Whether a robust accuracy can be believed: the checklist of the literature, with evidence for each check.

Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018; Carlini
et al., "On Evaluating Adversarial Robustness", 2019.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lab._common.arguments import check_choice, check_mapping
from saliency_lab._common.checks import parse_epsilon
from saliency_lab._common.errors import InputError
from saliency_lab._common.inference import (
    chunk_rows,
    device_of,
    gradients_recorded,
    predict,
    translate_model_errors,
    undisturbed,
)
from saliency_lab._common.progress import progress
from saliency_lab._common.samples import Images, read_labelled
from saliency_lab._common.seeding import derive_seed, preserved_rng, sample_seeds, sample_uniform
from saliency_lab._common.settings import Settings
from saliency_lab.attacks.api import attack, check_batch, check_source, is_source, run_attack
from saliency_lab.attacks.ascent import Norm, input_gradient
from saliency_lab.attacks.curve import whole_range
from saliency_lab.attacks.losses import margin
from saliency_lab.attacks.methods import METHODS, AttackMethod, OwnAttack
from saliency_lab.attacks.model_checks import check_batch_independence, check_determinism, check_outputs
from saliency_lab.attacks.reference import square_begins
from saliency_lab.attacks.result import AttackResult
from saliency_lab.attacks.slope import FINE, check_slope
from saliency_lab.attacks.sources import FiniteDifferences, Smoothed, StraightThrough, inner_networks
from saliency_lab.attacks.transfer import transfer_attack
from saliency_lab.attacks.verdict import About, Audit, Check, Verdict, exceeds, summarise, upper_bound

# Shares above which a fault is established, by an exact binomial test (`verdict.exceeds`).
MISSED = 0.02  # of all samples: another attack breaks them, the audited one does not
FAULTY = 0.05  # of the surviving samples: the gradient or the loss has a fault there
# "believe" needs the share that the audited attack missed to lie below this, by a one-sided 95 % bound.
PRECISION = 0.2
# Relative error of a sample's gradient above which it does not describe the model.
MISMATCH = 0.3
# Cosine between predicted and measured changes at the width of the ball, below which the slope misleads.
AGREEMENT = 0.4
# Margins in units of the logits' range that differ by less than this are one: float32 knows no better.
_TIE = 1e-5


@dataclass(frozen=True)
class Budget:
    """Effort of the reference attacks: steps, target classes, and queries of Square."""

    steps: int
    targets: int
    queries: int


STAND_INS = "other gradients"
"""Name of the check that takes gradients from another source than the model."""

_DRAWS = 8  # passes over which the reference attacks average a random model
_CHECKED = 64  # surviving samples whose gradient is compared with finite differences
_DIRECTIONS = 16
_JITTER = 5e-3  # keeps the points of the gradient check off the ties of flat image regions

BudgetName = Literal["quick", "full"]
BUDGETS = {"quick": Budget(steps=30, targets=4, queries=500), "full": Budget(100, 9, 5000)}


def audit(
    model: nn.Module,
    x: Images,
    y: Tensor | None = None,
    method: str | OwnAttack = "pgd",
    *,
    eps: float | str,
    surrogates: Mapping[str, nn.Module] | None = None,
    budget: BudgetName = "quick",
    seed: int = 0,
    **settings: Any,
) -> Audit:
    """Run the checklist on the robust accuracy that `attack(model, x, y, method, eps=eps, ...)` reports.

    The other attacks run on the samples that survived the audited one. Whatever they break, the audited
    attack has missed.

    Parameters
    ----------
    model : nn.Module
        As for `attack`.
    x : Tensor, DataLoader or data set
        Images (N, C, H, W) in [0, 1], or what else `attack` takes.
    y : Tensor, optional
        Labels (N,).
    method : str or callable
        A name of `list_attacks()`, or a function as for `attack`.
    eps : float or str
        Radius of the ball in image units, above 0.
    surrogates : mapping of str to nn.Module, optional
        Other models to transfer attacks from; without them that check is skipped.
    budget : {"quick", "full"}
        Effort of the reference attacks: 30 steps, 4 target classes and 500 queries, or AutoAttack's standard
        100, 9 and 5000.
    seed : int
        Seed of every random draw.
    **settings
        Settings of the attack; `list_attacks()` names them.

    Returns
    -------
    Audit
        The verdict, the checks with their evidence, and which samples are robust against every attack.

    Raises
    ------
    InputError
        As `attack`; also if a surrogate does not take these images, or returns other classes.

    Examples
    --------
    >>> import torch
    >>> import saliency_lab as sl
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    >>> verdict = sl.audit(net, x, y, "pgd", eps=0.01, steps=2).verdict
    >>> verdict in ("believe", "doubt", "weak attack", "do not believe")
    True
    """
    check_choice(budget, BUDGETS, "budget")
    if surrogates is not None:
        surrogates = check_mapping(surrogates, "surrogates", '{"other": other_model}')
    chosen = METHODS.find(method)
    parsed = chosen.parse(settings)
    radius = parse_epsilon(eps)
    x, y = read_labelled(x, y)
    return run_audit(model, x, y, chosen, parsed, eps=radius, surrogates=surrogates, budget=budget, seed=seed)


def run_audit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    method: AttackMethod,
    settings: Settings,
    *,
    eps: float,
    surrogates: Mapping[str, nn.Module] | None,
    budget: BudgetName,
    seed: int,
) -> Audit:
    """Do what `audit` says, with settings and ε already parsed."""
    begun = time.perf_counter()
    if eps == 0:
        raise InputError("an audit needs eps > 0")
    norm = getattr(settings, "norm", "linf")
    if norm not in ("linf", "l2"):
        raise InputError(
            f"an audit covers attacks in linf and l2, not {norm}; run several and see worst_case"
        )
    with (
        preserved_rng(derive_seed(seed, "audit")),
        gradients_recorded(),
        translate_model_errors(model, x),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings(
            "ignore", message=".*(returns probabilities|in a batch|is random|have no gradient)"
        )
        logits, y = check_batch(model, x, y)
        others = _check_surrogates(surrogates, x, logits.shape[1])
        random = check_determinism(model, x)
        checks = [check_outputs(logits, y), random, check_batch_independence(model, x, logits)]
        audited = run_attack(model, x, y, method, settings, eps=eps, seed=seed)
        is_random = random.numbers["random"] > 0
        samples = max(getattr(settings, "samples", 1), _DRAWS) if is_random else 1
        panel = _Panel(model, x, y, audited, BUDGETS[budget], others, seed, samples)

        def misleads() -> bool:
            return any(check.verdict == "fail" and check.about == "model" for check in checks)

        stages: tuple[Callable[[], list[Check]], ...] = (
            panel.slope,
            lambda: [panel.stand_ins(suspicious=True)] if misleads() else [],
            lambda: [panel.single_step(method)],
            lambda: [panel.converged(method, settings)],
            lambda: [panel.random()],
            lambda: [panel.rescaled()],
            lambda: panel.reference(classes=logits.shape[1]),
            lambda: [panel.transfer()],
            lambda: [panel.surface(), panel.gradients()],
            lambda: [_large_eps(model, x, y, method, settings, audited, seed, classes=logits.shape[1])],
        )
        for stage in progress(stages, label="audit"):
            checks += stage()
        if STAND_INS not in [check.name for check in checks]:
            checks += [panel.stand_ins(suspicious=misleads())]
        checks += [panel.strength()]
    verdict, reason = summarise(checks, len(x))
    return Audit(
        verdict=verdict,
        reason=reason,
        checks=tuple(checks),
        audited=audited,
        robust=panel.robust(),
        budget=budget,
        seconds=time.perf_counter() - begun,
    )


class Tried(NamedTuple):
    """Result of one attack on the survivors: a mask of those that it broke, and the points (N, C, H, W)."""

    success: Tensor
    points: Tensor


class _Panel:
    """Runs other attacks on the samples that survived the audited one, and records what each breaks."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        audited: AttackResult,
        budget: Budget,
        surrogates: Mapping[str, nn.Module],
        seed: int,
        samples: int,
    ) -> None:
        self.model, self.audited, self.budget = model, audited, budget
        self.surrogates, self.seed, self.samples = surrogates, seed, samples
        self.rows = audited.robust.nonzero().flatten()
        self.x, self.y = x.detach().cpu()[self.rows], y[self.rows]
        self.loss = audited.loss[self.rows]
        none = torch.zeros(len(self.rows), dtype=torch.bool)
        self.by_gradient, self.without_gradient, self.by_stand_in = none, none.clone(), none.clone()
        self.strongest: dict[str, int] = {}
        self.drawn: list[Tensor] = []  # points found by chance, and points found by gradients
        self.climbed = [audited.adversarial[self.rows]]
        self.norm: Norm = audited.norm
        self.differs = False  # the straight-through gradient is another, or the own one cannot be checked

    @property
    def missed(self) -> Tensor:
        """Mask of survivors that some other attack breaks."""
        return self.by_gradient | self.without_gradient | self.by_stand_in

    def robust(self) -> Tensor:
        """Mask (N,): robust against the audited attack and all of the panel's."""
        robust = self.audited.robust.clone()
        robust[self.rows[self.missed]] = False
        return robust

    @property
    def left(self) -> Tensor:
        """Indices of the survivors that no gradient from another source has broken."""
        return (~self.by_stand_in).nonzero().flatten()

    def breaks(self, method: str | AttackMethod, seed: int | None = None, **settings: Any) -> Tried:
        """Run a method on the survivors that are left, and record what it breaks."""
        method = METHODS[method] if isinstance(method, str) else method
        success, points = torch.zeros_like(self.by_stand_in), self.x.clone()
        left = self.left
        if not len(left):
            return Tried(success, points)
        seed = self.seed if seed is None else seed
        settings = {"norm": self.norm, "samples": self.samples, **settings}
        x, y = self.x[left], self.y[left]
        parsed = method.parse(settings)
        result = run_attack(self.model, x, y, method, parsed, eps=self.audited.eps, seed=seed)
        success[left], points[left] = result.success, result.adversarial
        if method.access == "logits":
            self.without_gradient = self.without_gradient | success
        else:
            self.by_gradient = self.by_gradient | success
        self.note(result, settings)
        return Tried(success, points)

    def note(self, result: AttackResult, settings: Mapping[str, Any]) -> None:
        """Record how many survivors an attack breaks, under the call that repeats it."""
        own = {k: v for k, v in settings.items() if (k, v) not in (("norm", "linf"), ("samples", 1))}
        call = ", ".join([repr(result.method), *(f"{key}={value!r}" for key, value in own.items())])
        self.strongest[call] = int(result.success.sum())

    def compare(self, name: str, who: str, tried: list[Tried]) -> Check:
        """Judge a check by the share of samples that those in `tried` broke and the audited attack missed."""
        if not len(self.rows):
            return Check(name, "pass", "no sample survived the audited attack", {"missed": 0.0})
        check = self.judge(name, who, torch.stack([each.success for each in tried]).any(0), "attack")
        if len(self.left) == len(self.rows):
            return check
        left = f"it was run on the {len(self.left)} that gradients from elsewhere did not break"
        return replace(check, evidence=f"{check.evidence}; {left}")

    def judge(self, name: str, who: str, broken: Tensor, about: About) -> Check:
        """Fail if `broken` (of the survivors) is significantly more than `MISSED` of all samples."""
        n, missed = len(self.audited), int(broken.sum())
        evidence = (
            f"{who}: {missed} of {n} samples broken that {self.audited.method} missed ({missed / n:.1%})"
        )
        return Check(name, exceeds(missed, n, MISSED), evidence, {"missed": missed / n}, about)

    def slope(self) -> list[Check]:
        """Check that the gradient matches finite differences, and that the logits are finite."""
        names = ("finite outputs", "gradient check", "coarse slope")
        if not len(self.rows):
            return [Check(name, "pass", "no sample survived the audited attack", {}) for name in names]
        pixels = self.x[0].numel()
        width = self.audited.eps / 2 if self.norm == "linf" else self.audited.eps / 2 / math.sqrt(pixels)
        width = min(max(width, FINE[0]), 0.05)
        count = min(len(self.rows), _CHECKED)
        seeds = sample_seeds(self.x[:count], self.seed, "slope check")
        noise = (2 * sample_uniform(seeds, self.x.shape[1:]) - 1).to(self.x)
        near = (self.x[:count] + min(2 * width, 0.05) * noise).clamp(0, 1)
        far = (self.audited.adversarial[self.rows[:count]] + _JITTER * noise).clamp(0, 1)
        labels = self.y[:count]
        checks = [check_slope(self.model, points, labels, width=width) for points in (near, far)]
        coarse = any(bool(check.coarse.any()) for check in checks)  # too few digits for fine differences
        self.differs = coarse or self._straight_through_differs(near, labels)
        finite = torch.stack([c.finite for c in checks])
        error = torch.stack([c.error for c in checks]).amax(0)
        agreement = torch.stack([c.agreement for c in checks]).amin(0)
        usable = finite.all(0)
        changed = int(torch.stack([c.changed for c in checks]).any(0).sum())
        lost = int((~usable).sum())
        answers = f"{lost} of {count} surviving samples have logits that are not finite inside the ball"
        if changed:
            answers += f", and {changed} other logits when gradients are recorded than when they are not"
        answered: Verdict = "fail" if lost or changed else "pass"
        result = [
            Check(names[0], answered, answers, {"lost": lost / count, "changed": changed / count}, "model")
        ]
        if not usable.any():
            return result + [Check(name, "skipped", "no finite outputs", {}) for name in names[1:]]
        error, agreement = error[usable], agreement[usable]
        wrong, middle = int((error > MISMATCH).sum()), error.median().item()
        verdict = "fail" if middle > MISMATCH else exceeds(wrong, len(error), FAULTY)
        evidence = (
            f"measured along {_DIRECTIONS} directions, the margin of {wrong} of {len(error)} surviving "
            f"samples changes otherwise than the gradient says; the median relative error is {middle:.2g}"
        )
        numbers = {"mismatch": wrong / len(error), "error": middle}
        result.append(Check(names[1], verdict, evidence, numbers, "model"))
        middle = agreement.median().item()
        verdict = "fail" if middle < AGREEMENT else "pass"
        evidence = (
            f"over ±{width:.3g} per pixel, measured and predicted changes of the margin have a median cosine "
            f"of {middle:.2f}"
        )
        result.append(Check(names[2], verdict, evidence, {"cosine": middle}, "model"))
        return result

    def _straight_through_differs(self, points: Tensor, y: Tensor) -> bool:
        """Whether the gradient changes if operations that block or change gradients are replaced."""
        few, labels = points[:16], y[:16]
        with undisturbed(self.model), preserved_rng(0):
            own = margin_gradient(self.model, few, labels)
        with undisturbed(self.model), preserved_rng(0):
            replaced = margin_gradient(StraightThrough(self.model), few, labels)
        cosine = F.cosine_similarity(own.flatten(1), replaced.flatten(1))
        return bool(replaced.abs().sum() > 0) and cosine.median().item() < 0.95

    def stand_ins(self, *, suspicious: bool) -> Check:
        """Check that gradients from other sources break no more samples than the model's own gradient."""
        name = STAND_INS
        if not len(self.rows):
            return Check(name, "pass", "no sample survived the audited attack", {"missed": 0.0})
        beyond = int((self.without_gradient & ~self.by_gradient).sum())
        if not (suspicious or self.differs or exceeds(beyond, len(self.audited), MISSED) == "fail"):
            return Check(name, "skipped", "the model's own gradient describes it", {})
        radius = self.audited.eps if self.norm == "linf" else self.audited.eps / math.sqrt(self.x[0].numel())
        through = StraightThrough(self.model)
        inner = {f"an inner network ({i})": network for i, network in enumerate(self._inner_networks(), 1)}
        whole: dict[str, nn.Module] = {
            "a straight-through backward pass": through,
            "the identity in place of what precedes an inner network": StraightThrough(
                self.model, identity=True
            ),
            **inner,
        }
        noisy: dict[str, nn.Module] = {
            "gradients averaged over noise": Smoothed(through, radius / 2, 8),
            "finite differences (SPSA)": FiniteDifferences(self.model, 24, max(radius / 2, 0.01)),
        }
        steps = self.budget.steps
        tries = [
            *((label, source, "margin", steps, False) for label, source in whole.items()),
            *((label, source, "ce", steps, False) for label, source in whole.items()),
            *(
                (label, source, loss, steps, True)
                for loss in ("ce", "margin")
                for label, source in inner.items()
            ),
            *((label, source, "margin", steps // 2, False) for label, source in noisy.items()),
        ]
        broken = dict.fromkeys([*whole, *noisy], 0)
        for label, source, loss, count, moved in tries:
            left = (~self.by_stand_in & ~self.by_gradient).nonzero().flatten()
            if not len(left):
                break
            result = self._with_gradients_of(source, left, loss=loss, steps=count, transfer=moved)
            self.by_stand_in[left] |= result.success
            broken[label] += int(result.success.sum())
        best = max(broken, key=lambda label: broken[label])
        extra = self.by_stand_in & ~self.by_gradient
        check = self.judge(name, f"with {best} among {len(broken)}", extra, "model")
        return replace(
            check,
            evidence=f"PGD with gradients from elsewhere (best: {best}) leaves "
            f"{(~self.by_stand_in & ~self.by_gradient).sum().item() / len(self.audited):.1%} accuracy; it "
            f"breaks {int(extra.sum())} samples that the model's own gradient did not",
        )

    def _inner_networks(self) -> list[nn.Module]:
        """Return up to three inner networks that attacks can run on."""
        with undisturbed(self.model):
            networks = inner_networks(self.model, self.x[:1].to(device_of(self.model)))
        classes = predict(self.model, self.x[:1]).shape[1]
        return [network for network in networks if is_source(network, self.x, classes)][:3]

    def _with_gradients_of(
        self, source: nn.Module, left: Tensor, *, loss: str, steps: int, transfer: bool
    ) -> AttackResult:
        """Attack survivors along the gradient of `source`; the model judges every step, or the last one."""
        settings: dict[str, Any] = {"norm": self.norm, "samples": self.samples, "loss": loss, "steps": steps}
        settings |= {"eps": self.audited.eps, "seed": self.seed}
        x, y = self.x[left], self.y[left]
        if transfer:
            return transfer_attack(self.model, source, x, y, "pgd", **settings)
        return attack(self.model, x, y, "pgd", gradients_from=source, **settings)

    def strength(self) -> Check:
        """Check that all attacks together break no more samples than the audited one."""
        check = self.judge("strongest attack", "all attacks together", self.missed, "attack")
        best = max(self.strongest, key=lambda call: self.strongest[call], default="")
        if check.verdict == "fail" and best and self.strongest[best]:
            evidence = f"{check.evidence}; the strongest single one is attack({best})"
            check = replace(check, evidence=evidence)
        bound = upper_bound(int(self.missed.sum()), len(self.audited))
        if check.verdict == "pass" and bound > PRECISION:
            evidence = (
                f"{check.evidence}, but {len(self.audited)} images cannot show that it is few: up to "
                f"{bound:.0%} (95 % bound); use 100 images or more"
            )
            check = replace(check, verdict="warn", evidence=evidence)
        return check

    def single_step(self, chosen: AttackMethod) -> Check:
        """Check that a single step breaks nothing that an iterative attack missed."""
        iterative = "steps" in chosen.settings.model_fields
        tried = [self.breaks("fgsm"), self.breaks("r_fgsm")]
        if iterative:
            return self.compare("single step", "FGSM and R-FGSM", tried)
        tried.append(self.breaks("pgd"))
        return self.compare("single step", "FGSM, R-FGSM and PGD-40", tried)

    def converged(self, chosen: AttackMethod, parsed: Settings) -> Check:
        """Check that more steps and restarts break no more samples."""
        given = parsed.model_dump()
        if "steps" not in given:
            return Check("converged", "skipped", f"{chosen.name} has no steps", {})
        steps = 4 * given["steps"]
        more = {**given, "steps": steps}
        if "restarts" in given:
            more["restarts"] = 2 * given["restarts"]
        more["samples"] = max(self.samples, given["samples"])
        tried = self.breaks(chosen, derive_seed(self.seed, "audit"), **more)
        who = f"{chosen.name} with {steps} steps, other starts" + (
            f" and {more['restarts']} restarts" if "restarts" in more else ""
        )
        return self.compare("converged", who, [tried])

    def random(self) -> Check:
        """Check that random points break nothing that the attack missed."""
        tried = [self.breaks(method, draws=20) for method in ("noise", "random_direction")]
        self.drawn += [each.points for each in tried]
        return self.compare("random points", "20 noise and 20 direction draws", tried)

    def surface(self) -> Check:
        """Check that gradients come closer to another class than random points, and the ball is not flat.

        The margin is measured in units of the range of the image's logits. Every attack raises it in the end,
        whatever its own loss, and in these units it does not depend on the scale of the logits.
        """
        left = self.left
        if not len(left):
            return Check("loss surface", "pass", "no sample is left", {})
        x, y = self.x[left], self.y[left]
        logits = predict(self.model, x)
        unit = (logits.amax(1) - logits.amin(1)).clamp_min(torch.finfo(logits.dtype).tiny)

        def highest(points: list[Tensor]) -> Tensor:
            return torch.stack([margin(predict(self.model, each[left]), y) / unit for each in points]).amax(0)

        start, chance, climbed = margin(logits, y) / unit, highest(self.drawn), highest(self.climbed)
        above = (chance > climbed + _TIE).double().mean().item()
        moved = (chance - start).abs().maximum((climbed - start).abs())
        flat = (moved <= _TIE).double().mean().item()
        worst = max(int((chance > climbed + _TIE).sum()), int((moved <= _TIE).sum()))
        verdict = exceeds(worst, len(left), FAULTY)
        evidence = (
            f"of {len(left)} surviving samples, a random direction raises the margin further than "
            f"{self.audited.method} and PGD on rescaled logits do for {above:.1%}, and nothing moves it for "
            f"{flat:.1%}"
        )
        return Check("loss surface", verdict, evidence, {"above": above, "flat": flat}, "model")

    def gradients(self) -> Check:
        """Check that no gradient has vanished, and that no saturated loss hid a broken sample.

        A cross-entropy of exactly 0, where float32 has run out of digits, is no fault by itself: a confident
        network has it on easy images. It counts against the attack where another attack broke the sample.
        """
        if not len(self.rows):
            return Check("vanished gradients", "pass", "no sample survived the audited attack", {})
        device = device_of(self.model)
        with undisturbed(self.model):
            chunks = zip(*(t.split(chunk_rows(self.x.shape, device)) for t in (self.x, self.y)), strict=True)
            slopes = [margin_gradient(self.model, x, y).abs().flatten(1).amax(1).cpu() for x, y in chunks]
        zero, saturated = ~(torch.cat(slopes) > 0), self.loss == 0
        hidden, n = saturated & self.missed, len(self.rows)
        vanished = exceeds(int(zero.sum()), n, FAULTY)
        verdict = "fail" if vanished == "fail" else exceeds(int(hidden.sum()), n, FAULTY)
        numbers = {k: v.double().mean().item() for k, v in
                   {"zero": zero, "saturated": saturated, "hidden": hidden}.items()}  # fmt: skip
        evidence = (
            f"of {n} surviving samples, {numbers['zero']:.1%} have a zero input gradient and "
            f"{numbers['saturated']:.1%} a loss of exactly 0 (float32 has run out), behind which other "
            f"attacks broke {numbers['hidden']:.1%}"
        )
        about: About = "model" if vanished == "fail" else "attack"
        return Check("vanished gradients", verdict, evidence, numbers, about)

    def rescaled(self) -> Check:
        """Check that losses which do not depend on the scale of the logits break no more samples."""
        steps = self.budget.steps
        tried = [self.breaks("pgd", loss=loss, steps=steps) for loss in ("scaled_ce", "margin")]
        self.climbed += [each.points for each in tried]
        return self.compare("rescaled logits", "PGD on rescaled logits and on the margin", tried)

    def reference(self, classes: int) -> list[Check]:
        """Check Square alone, and the attacks of AutoAttack: APGD-CE, targeted APGD-DLR, FAB-T and Square.

        Square is left out where it cannot begin on images of this size.
        """
        steps, targets = self.budget.steps, self.budget.targets
        queries = self.budget.queries
        high, wide = self.x.shape[-2:]
        begins = square_begins(self.norm, high, wide)
        square = [self.breaks("square", queries=queries)] if begins else []
        strong = [*square, self.breaks("apgd_ce", steps=steps)]
        if classes >= 4:
            strong.append(self.breaks("apgd_t", steps=steps, target_classes=targets))
        strong.append(self.breaks("fab_t", steps=steps, target_classes=targets))
        reason = f"Square in {self.norm} does not fit into {high}×{wide} pixels"
        return [
            self.blind("black box", f"Square with {queries} queries", square)
            if begins
            else Check("black box", "skipped", reason, {}),
            self.compare("AutoAttack", "APGD, FAB-T and Square" if begins else "APGD and FAB-T", strong),
        ]

    def blind(self, name: str, who: str, tried: list[Tried]) -> Check:
        """Check that attacks without gradients break nothing that gradient attacks miss."""
        check = self.compare(name, who, tried)
        if not len(self.rows):
            return check
        broken = torch.stack([each.success for each in tried]).any(0)
        beyond = self.judge(name, f"{who}, beyond all gradient attacks", broken & ~self.by_gradient, "model")
        return beyond if beyond.verdict == "fail" else check

    def transfer(self) -> Check:
        """Check that points found on other models break no more samples."""
        if not self.surrogates:
            return Check("transfer", "skipped", "no surrogate model was given", {})
        tried: list[Tried] = []
        for source in self.surrogates.values():
            success, left = torch.zeros_like(self.by_stand_in), self.left
            if len(left):
                moved = self._with_gradients_of(source, left, loss="ce", steps=40, transfer=True)
                success[left] = moved.success
            self.without_gradient = self.without_gradient | success
            tried.append(Tried(success, self.x))
        return self.blind("transfer", f"PGD on {', '.join(map(str, self.surrogates))}", tried)


def margin_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient (N, C, H, W) of the margin at x, on the model's device; 0 where there is none."""
    device = device_of(model)
    point = x.detach().to(device).requires_grad_()
    return input_gradient(margin(model(point), y.to(device)), point)


def _check_surrogates(
    surrogates: Mapping[str, nn.Module] | None, x: Tensor, classes: int
) -> Mapping[str, nn.Module]:
    for name, source in (surrogates or {}).items():
        check_source(source, x, classes, name=f"surrogate '{name}'")
    return surrogates or {}


def _large_eps(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    chosen: AttackMethod,
    parsed: Settings,
    audited: AttackResult,
    seed: int,
    classes: int,
) -> Check:
    """Check that the attack breaks every sample if the ball contains every image, with steps in proportion.

    PGD on the margin runs on what is left: if it breaks that, the attack was weak and no gradient is masked.
    """
    whole = whole_range(x, audited.norm)
    step = getattr(parsed, "step_size", None)
    scaled = parsed if step is None else parsed.model_copy(update={"step_size": step * whole / audited.eps})
    left = run_attack(model, x, y, chosen, scaled, eps=whole, seed=seed).robust
    evidence = f"{chosen.name} at eps={whole:.4g}, which reaches every image, leaves {_share(left)} accuracy"
    if left.any():
        rows = left.nonzero().flatten()
        again = attack(
            model, x[rows.to(x.device)], y[rows], eps=whole, seed=seed, norm=audited.norm, loss="margin"
        )
        left[rows] = again.robust
        evidence += f", and PGD on the margin after it {_share(left)}"
    share = left.double().mean().item()
    verdict = exceeds(int(left.sum()), len(x), max(MISSED, 1 / classes))
    return Check("large eps", verdict, evidence, {"accuracy": share}, "model")


def _share(mask: Tensor) -> str:
    return f"{mask.double().mean().item():.1%}"
