"""Whether a robust accuracy can be believed: the checklist of the literature, each item with its evidence.

Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018; Carlini
et al., "On Evaluating Adversarial Robustness", 2019.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saliency_lab._common.checks import are_probabilities, parse_epsilon
from saliency_lab._common.errors import InputError
from saliency_lab._common.inference import chunk_rows, device_of, gradients_recorded, predict, undisturbed
from saliency_lab._common.progress import progress
from saliency_lab._common.samples import Images, read_labelled
from saliency_lab._common.seeding import derive_seed, preserved_rng
from saliency_lab._common.settings import Settings, parse_settings
from saliency_lab.attacks.api import attack, check_batch, check_source, run
from saliency_lab.attacks.ascent import Norm
from saliency_lab.attacks.losses import margin
from saliency_lab.attacks.methods import METHODS, Method, OwnAttack
from saliency_lab.attacks.result import AttackResult
from saliency_lab.attacks.transfer import transfer_attack
from saliency_lab.attacks.verdict import Audit, Check, Verdict, summarise

# Shares of all samples that another attack may break beyond the audited one: up to the first the item
# passes, up to the second it warns. One sample is always allowed.
WHITE_BOX = (0.02, 0.05)
WEAKER_ATTACK = (0.01, 0.03)
# Shares of the surviving samples that may show a fault of the gradient.
SURVIVORS = (0.02, 0.05)
# Margins in units of the logits' range that differ by less than this are one: float32 knows no better.
_TIE = 1e-5


@dataclass(frozen=True)
class Budget:
    """Of the reference attacks: steps, target classes, and queries of Square."""

    steps: int
    targets: int
    queries: int


BUDGETS = {"quick": Budget(steps=30, targets=4, queries=500), "full": Budget(100, 9, 5000)}


def audit(
    model: nn.Module,
    x: Images,
    y: Tensor | None = None,
    method: str | OwnAttack = "pgd",
    *,
    eps: float | str,
    surrogates: Mapping[str, nn.Module] | None = None,
    budget: Literal["quick", "full"] = "quick",
    seed: int = 0,
    **settings: Any,
) -> Audit:
    """Run the checklist on the robust accuracy that `attack(model, x, y, method, eps=eps, ...)` reports.

    The other attacks run on the samples that survived the audited one: what they break besides is what
    it missed.

    Parameters
    ----------
    model, x, y, method, eps, seed, settings
        The evaluation in question, as for `attack`.
    surrogates : mapping of str to nn.Module, optional
        Other models to transfer attacks from; without them that item is skipped.
    budget : "quick" or "full"
        Of the reference attacks: 30 steps, 4 target classes and 500 queries, or AutoAttack's standard
        100, 9 and 5000.

    Raises
    ------
    InputError
        As `attack`; also if a surrogate does not read these images, or tells other classes apart.
    """
    begun = time.perf_counter()
    if budget not in BUDGETS:
        raise InputError(f"unknown budget '{budget}'; known: {', '.join(BUDGETS)}")
    chosen = METHODS.find(method)
    parsed = parse_settings(chosen.settings, settings, of=chosen.name)
    radius = parse_epsilon(eps)
    if radius == 0:
        raise InputError("an audit needs eps > 0")
    x, y = read_labelled(x, y)
    with preserved_rng(derive_seed(seed, "audit")), gradients_recorded():
        logits, y = check_batch(model, x, y)
        others = _check_surrogates(surrogates, x, logits.shape[1])
        checks = [_outputs(logits, y), _determinism(model, x)]
        audited = run(model, x, y, chosen, parsed, eps=radius, seed=seed)
        panel = _Panel(model, x, y, audited, BUDGETS[budget], others, seed)
        stages: tuple[Callable[[], list[Check]], ...] = (
            lambda: [panel.single_step(chosen)],
            lambda: [panel.converged(chosen, parsed)],
            lambda: [panel.random()],
            lambda: [panel.rescaled()],
            lambda: panel.reference(classes=logits.shape[1]),
            lambda: [panel.transfer()],
            lambda: [panel.surface(), panel.gradients()],
            lambda: [_large_eps(model, x, y, chosen, parsed, audited, seed, classes=logits.shape[1])],
        )
        for stage in progress(stages, label="audit"):
            checks += stage()
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


class _Panel:
    """Other attacks on the survivors of the audited one, and which of them each breaks."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        audited: AttackResult,
        budget: Budget,
        surrogates: Mapping[str, nn.Module],
        seed: int,
    ) -> None:
        self.model, self.audited, self.budget = model, audited, budget
        self.surrogates, self.seed = surrogates, seed
        self.rows = audited.robust.nonzero().flatten()
        self.x, self.y = x.detach().cpu()[self.rows], y[self.rows]
        self.loss = audited.loss[self.rows]
        self.missed = torch.zeros(len(self.rows), dtype=torch.bool)
        self.drawn: list[Tensor] = []  # points found by chance, and points found by gradients
        self.climbed = [audited.adversarial[self.rows]]
        self.norm: Norm = audited.norm

    def robust(self) -> Tensor:
        """Mask (N,): robust against the audited attack and all of the panel's."""
        robust = self.audited.robust.clone()
        robust[self.rows[self.missed]] = False
        return robust

    def breaks(self, method: str, seed: int | None = None, **settings: Any) -> AttackResult | None:
        """Run a method on the survivors and note what it breaks; None if nobody survived."""
        if not len(self.rows):
            return None
        seed = self.seed if seed is None else seed
        found = attack(
            self.model, self.x, self.y, method, eps=self.audited.eps, seed=seed, norm=self.norm, **settings
        )
        self.missed |= ~found.robust
        return found

    def compare(
        self, name: str, who: str, found: list[AttackResult | None], limits: tuple[float, float]
    ) -> Check:
        """Judge a check by the share of all samples that the audited attack missed and `found` broke."""
        n = len(self.audited)
        if not len(self.rows):
            return Check(name, "pass", "no sample survived the audited attack", {"missed": 0.0})
        held = torch.stack([result.robust for result in found if result is not None]).all(0)
        missed = int((~held).sum())
        verdict = _grade(missed / n, limits, slack=1 / n)
        evidence = (
            f"{who}: {missed} of {n} samples broken that {self.audited.method} missed ({missed / n:.1%})"
        )
        return Check(name, verdict, evidence, {"missed": missed / n})

    def single_step(self, chosen: Method) -> Check:
        """An iterative attack breaks all that a single step breaks; a single step is no evaluation."""
        iterative = "steps" in chosen.settings.model_fields
        found = [self.breaks("fgsm"), self.breaks("r_fgsm")]
        if iterative:
            return self.compare("single step", "FGSM and R-FGSM", found, WEAKER_ATTACK)
        found.append(self.breaks("pgd"))
        return self.compare("single step", "FGSM, R-FGSM and PGD-40", found, WHITE_BOX)

    def converged(self, chosen: Method, parsed: Settings) -> Check:
        """More steps and restarts change nothing."""
        given = parsed.model_dump()
        if "steps" not in given:
            return Check("converged", "skipped", f"{chosen.name} has no steps", {})
        steps = 4 * given["steps"]
        more = {**given, "steps": steps}
        if "restarts" in given:
            more["restarts"] = 2 * given["restarts"]
        more.pop("norm")
        found = self.breaks(chosen.name, derive_seed(self.seed, "audit"), **more)
        who = f"{chosen.name} with {steps} steps, other starts" + (
            f" and {more['restarts']} restarts" if "restarts" in more else ""
        )
        return self.compare("converged", who, [found], WHITE_BOX)

    def random(self) -> Check:
        """No random point breaks what the attack did not."""
        found = [self.breaks(method, draws=20) for method in ("noise", "random_direction")]
        self.drawn += [result.adversarial for result in found if result is not None]
        return self.compare("random points", "20 noise and 20 direction draws", found, WEAKER_ATTACK)

    def surface(self) -> Check:
        """No random point comes closer to another class than gradients do, and the ball is not flat.

        Measured by the margin, in units of the range of the image's logits: it is what every attack raises
        in the end, whatever its own loss, and it does not know the scale of the logits.
        """
        if not len(self.rows):
            return Check("loss surface", "pass", "no sample survived the audited attack", {})
        logits = predict(self.model, self.x)
        unit = (logits.amax(1) - logits.amin(1)).clamp_min(torch.finfo(logits.dtype).tiny)

        def highest(points: list[Tensor]) -> Tensor:
            return torch.stack([margin(predict(self.model, each), self.y) / unit for each in points]).amax(0)

        start, chance, climbed = margin(logits, self.y) / unit, highest(self.drawn), highest(self.climbed)
        above = (chance > climbed + _TIE).double().mean().item()
        moved = (chance - start).abs().maximum((climbed - start).abs())
        flat = (moved <= _TIE).double().mean().item()
        verdict = _grade(max(above, flat), SURVIVORS, slack=1 / len(self.rows))
        evidence = (
            f"of {len(self.rows)} surviving samples, a random direction raises the margin further than "
            f"{self.audited.method} and PGD on rescaled logits do for {above:.1%}, and nothing moves it for "
            f"{flat:.1%}"
        )
        return Check("loss surface", verdict, evidence, {"above": above, "flat": flat})

    def gradients(self) -> Check:
        """The gradient at the image has not vanished, and no saturated loss hid a broken sample.

        A cross-entropy of exactly 0, where float32 has run out, is no fault by itself: a network that is sure
        of easy images has it. It counts where another attack of the panel broke the sample after all.
        """
        if not len(self.rows):
            return Check("vanished gradients", "pass", "no sample survived the audited attack", {})
        zero = _zero_gradient(self.model, self.x, self.y).double().mean().item()
        saturated = self.loss == 0
        hidden = (saturated & self.missed).double().mean().item()
        share = saturated.double().mean().item()
        verdict = _grade(max(zero, hidden), SURVIVORS, slack=1 / len(self.rows))
        evidence = (
            f"of {len(self.rows)} surviving samples, {zero:.1%} have a zero input gradient and {share:.1%} a "
            f"loss of exactly 0 (float32 has run out), behind which other attacks broke {hidden:.1%}"
        )
        numbers = {"zero": zero, "saturated": share, "hidden": hidden}
        return Check("vanished gradients", verdict, evidence, numbers)

    def rescaled(self) -> Check:
        """Losses that the scale of the logits cannot hide from break no more."""
        steps = self.budget.steps
        found = [self.breaks("pgd", loss=loss, steps=steps) for loss in ("scaled_ce", "margin")]
        self.climbed += [result.adversarial for result in found if result is not None]
        return self.compare("rescaled logits", "PGD on rescaled logits and on the margin", found, WHITE_BOX)

    def reference(self, classes: int) -> list[Check]:
        """Square alone, and AutoAttack: APGD-CE, targeted APGD-DLR, FAB-T and Square."""
        steps, targets = self.budget.steps, self.budget.targets
        queries = self.budget.queries
        square = self.breaks("square", queries=queries)
        strong = [square, self.breaks("apgd_ce", steps=steps)]
        if classes >= 4:
            strong.append(self.breaks("apgd_t", steps=steps, target_classes=targets))
        strong.append(self.breaks("fab_t", steps=steps, target_classes=targets))
        return [
            self.compare("black box", f"Square with {queries} queries", [square], WEAKER_ATTACK),
            self.compare("AutoAttack", "APGD, FAB-T and Square", strong, WHITE_BOX),
        ]

    def transfer(self) -> Check:
        """Points found on other models break no more."""
        if not self.surrogates:
            return Check("transfer", "skipped", "no surrogate model was given", {})
        found: list[AttackResult | None] = []
        for source in self.surrogates.values() if len(self.rows) else ():
            moved = transfer_attack(
                self.model, source, self.x, self.y, eps=self.audited.eps, seed=self.seed, norm=self.norm
            )
            self.missed |= ~moved.robust
            found.append(moved)
        return self.compare(
            "transfer", f"PGD on {', '.join(map(str, self.surrogates))}", found, WEAKER_ATTACK
        )


def _grade(share: float, limits: tuple[float, float], *, slack: float) -> Verdict:
    """Pass, warn or fail by a share; `slack` is one sample, which is always allowed."""
    if share <= max(limits[0], slack) + 1e-12:
        return "pass"
    return "warn" if share <= limits[1] + 1e-12 else "fail"


def _check_surrogates(
    surrogates: Mapping[str, nn.Module] | None, x: Tensor, classes: int
) -> Mapping[str, nn.Module]:
    if not isinstance(surrogates or {}, Mapping):
        got = type(surrogates).__name__
        raise InputError(f"surrogates must map names to models, such as {{'standard': model}}, not {got}")
    for name, source in (surrogates or {}).items():
        check_source(source, x, classes, name=f"surrogate '{name}'")
    return surrogates or {}


def _outputs(logits: Tensor, y: Tensor) -> Check:
    """Logits, not probabilities; and an accuracy that fits images in [0, 1]."""
    accuracy = (logits.argmax(1) == y).double().mean().item()
    chance = 1 / logits.shape[1]
    if are_probabilities(logits):
        evidence = (
            "the outputs are probabilities, not logits: the cross-entropy takes a second softmax of them"
        )
        return Check("units and outputs", "fail", evidence, {"accuracy": accuracy})
    if accuracy <= min(2 * chance, (1 + chance) / 2):
        evidence = (
            f"clean accuracy is {accuracy:.1%}, near chance ({chance:.1%}): does the model expect normalised "
            "images? saliency_lab.Normalised(model, mean, std) wraps one that does"
        )
        return Check("units and outputs", "warn", evidence, {"accuracy": accuracy})
    evidence = f"images in [0, 1], logits, clean accuracy {accuracy:.1%}"
    return Check("units and outputs", "pass", evidence, {"accuracy": accuracy})


def _determinism(model: nn.Module, x: Tensor) -> Check:
    """The same image gives the same logits: in eval mode, and in the mode the model was handed over in."""

    def spread(mode: Callable[[], Tensor]) -> float:
        passes = []
        for seed in (1, 2, 3):
            with preserved_rng(seed):
                passes.append(mode().argmax(1))
        return (torch.stack(passes) != passes[0]).any(0).double().mean().item()

    def logits_differ(mode: Callable[[], Tensor]) -> bool:
        passes = []
        for seed in (1, 2):
            with preserved_rng(seed):
                passes.append(mode())
        return not torch.allclose(passes[0], passes[1], rtol=1e-4, atol=1e-5)

    few = x.detach()[: chunk_rows(x.shape, device_of(model))]
    few = few.repeat(2, 1, 1, 1) if len(few) == 1 else few  # in train mode batch norm needs two
    in_eval = lambda: predict(model, few)  # noqa: E731
    as_given = lambda: _predict_as_given(model, few)  # noqa: E731
    if logits_differ(in_eval):
        share = spread(in_eval)
        evidence = f"the model is random in eval mode: three passes disagree on {share:.1%} of the images"
        return Check("determinism", "fail", evidence, {"disagree": share})
    if logits_differ(as_given):
        share = spread(as_given)
        active = ", ".join(
            name for name, module in model.named_modules() if module.training and _is_random(module)
        )
        evidence = (
            f"the model was handed over in train mode and is random there ({active or 'an unknown module'}): "
            f"three passes disagree on {share:.1%} of the images; it is attacked in eval mode, so call "
            "model.eval() if that is the model you mean"
        )
        return Check("determinism", "warn", evidence, {"disagree": share})
    return Check("determinism", "pass", "repeated passes give the same logits", {"disagree": 0.0})


def _is_random(module: nn.Module) -> bool:
    return "dropout" in type(module).__name__.lower() or "stochasticdepth" in type(module).__name__.lower()


def _predict_as_given(model: nn.Module, x: Tensor) -> Tensor:
    """Logits in the model's own mode; buffers, such as BatchNorm's statistics, are put back."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.no_grad():
            logits: Tensor = model(x.to(device_of(model)))
        return logits.float().cpu()
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _zero_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mask (N,): the margin's gradient at the image is zero everywhere, or there is none."""
    device, out = device_of(model), []
    with undisturbed(model):
        rows = chunk_rows(x.shape, device)
        for images, labels in zip(x.split(rows), y.split(rows), strict=True):
            point = images.to(device).requires_grad_()
            loss = margin(model(point), labels.to(device)).sum()
            slope = torch.autograd.grad(loss, point, allow_unused=True)[0] if loss.requires_grad else None
            size = torch.zeros(len(images)) if slope is None else slope.abs().flatten(1).amax(1).cpu()
            out.append(~(size > 0))
    return torch.cat(out)


def _large_eps(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    chosen: Method,
    parsed: Settings,
    audited: AttackResult,
    seed: int,
    classes: int,
) -> Check:
    """With the whole image range to move in, and steps in proportion, the attack leaves nothing standing.

    What it leaves, PGD on the margin may break: then the attack was weak, and no gradient is masked.
    """
    whole = 1.0 if audited.norm == "linf" else math.sqrt(x[0].numel())
    step = getattr(parsed, "step_size", None)
    scaled = parsed if step is None else parsed.model_copy(update={"step_size": step * whole / audited.eps})
    left = run(model, x, y, chosen, scaled, eps=whole, seed=seed).robust
    evidence = f"{chosen.name} at eps={whole:.4g}, which reaches every image, leaves {_share(left)} accuracy"
    if left.any():
        rows = left.nonzero().flatten()
        again = attack(
            model, x[rows.to(x.device)], y[rows], eps=whole, seed=seed, norm=audited.norm, loss="margin"
        )
        left[rows] = again.robust
        evidence += f", and PGD on the margin after it {_share(left)}"
    share = left.double().mean().item()
    verdict = _grade(share, (0.01, 1 / classes), slack=1 / len(x))
    return Check("large eps", verdict, evidence, {"accuracy": share})


def _share(mask: Tensor) -> str:
    return f"{mask.double().mean().item():.1%}"
