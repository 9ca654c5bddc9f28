"""What an attack found, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from saliency_lab._common.arguments import check_instance, check_text
from saliency_lab._common.checks import format_epsilon
from saliency_lab._common.errors import InputError
from saliency_lab._common.html import facts, side_by_side, strip
from saliency_lab._common.proportions import wilson
from saliency_lab._common.settings import as_keywords
from saliency_lab.attacks.ascent import Norm

_SHOWN = 8  # attacked images, in Jupyter

UNDEFINED = -1
"""The predicted class where the logits are not finite."""


@dataclass(frozen=True, eq=False, repr=False)
class AttackResult:
    """What an attack found, one row per sample, in input order, on the CPU.

    Parameters
    ----------
    adversarial : Tensor (N, C, H, W)
        Inside the ε-ball around x and inside [0, 1]. Where x is misclassified already (with a target:
        already classified as the target), x itself.
    labels, predictions : Tensor (N,)
        The labels given, and the classes predicted for `adversarial`; −1 where the logits are not finite.
    clean_correct : Tensor (N,) of bool
        The model is right on x.
    robust : Tensor (N,) of bool
        The model is right on x, and the attack found no point that it gets wrong. Logits that are not
        finite are never a success of the attack.
    success : Tensor (N,) of bool
        The model is right on x and wrong on `adversarial`; with a target, it does not predict the target
        for x and predicts it for `adversarial`.
    survives_rounding : Tensor (N,) of bool
        The attack succeeded, and still does after each pixel is rounded to a multiple of 1/255.
    loss : Tensor (N,)
        Cross-entropy of the label on `adversarial`, whatever loss the attack raised.
    queries : Tensor (N,)
        Forward passes the attack spent on the sample, without those that judge x and `adversarial`.
    distance : Tensor (N,)
        ‖adversarial − x‖ in the attack's norm.
    loss_curve : Tensor (N, steps + 1) or None
        The attack's own loss at each step of the restart that gave `adversarial`; NaN after an early
        stop and for samples left alone. None for methods without one, and if all were left alone.
    images : str
        Fingerprint of the attacked images, by which results on the same images are recognised.
    method : str
        Name of the attack.
    eps : float
        Radius of the ball in image units, or the severity of a corruption.
    norm : str
        The norm of that radius, such as "linf".
    settings : dict
        Every setting of the attack, with the defaults.
    seed : int
        Seed of the random draws.
    seconds : float
        Wall time of the whole call.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> net = sl.load_model("digits/at")
    >>> x, y = sl.load_dataset("digits").test.sample(16, seed=0)
    >>> result = sl.attack(net, x, y, "fgsm", eps=0.1)
    >>> 0 <= result.robust_accuracy <= result.clean_accuracy <= 1
    True
    >>> len(result.table())
    16
    """

    adversarial: Tensor
    labels: Tensor
    predictions: Tensor
    clean_correct: Tensor
    robust: Tensor
    success: Tensor
    survives_rounding: Tensor
    loss: Tensor
    queries: Tensor
    distance: Tensor
    loss_curve: Tensor | None
    images: str
    method: str
    eps: float
    norm: Norm
    settings: dict[str, Any]
    seed: int
    seconds: float

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        low, high = self.interval()
        return (
            f"AttackResult({self.method}, {self.norm}, eps={format_epsilon(self.eps)}: robust accuracy "
            f"{self.robust_accuracy:.1%} [{low:.1%}, {high:.1%}], clean {self.clean_accuracy:.1%}, "
            f"n={len(self)}, seed={self.seed}, {self.seconds:.1f} s)"
        )

    def _repr_html_(self) -> str:
        low, high = self.interval()
        rows = {
            "robust accuracy": f"{self.robust_accuracy:.1%} [{low:.1%}, {high:.1%}]",
            "clean accuracy": f"{self.clean_accuracy:.1%}",
            "images": str(len(self)),
            "ε": f"{format_epsilon(self.eps)} ({self.norm})",
            "settings": as_keywords(self.settings),
            "passes per image": f"{self.queries.double().mean().item():.4g}",
            "seed": str(self.seed),
            "time": f"{self.seconds:.3g} s",
        }
        if bool(self.success.any()):
            kept, count = int(self.survives_rounding.sum()), int(self.success.sum())
            rows["successes after rounding to k/255"] = f"{kept} of {count}"
        if self.nonfinite:
            rows["logits not finite"] = f"{self.nonfinite} of {len(self)} attacked images"
        parts = []
        for row in self.success.nonzero()[:_SHOWN, 0].tolist():
            caption = f"{int(self.labels[row])} classified as {int(self.predictions[row])}"
            parts.append((strip(self.adversarial[row : row + 1], f"attacked image {row}"), caption))
        return facts(f"attack {self.method}", rows) + side_by_side(parts)

    @property
    def clean_accuracy(self) -> float:
        """Share of samples the model is right on before the attack."""
        return self.clean_correct.double().mean().item()

    @property
    def nonfinite(self) -> int:
        """Number of samples whose logits at `adversarial` are not finite."""
        return int((self.predictions == UNDEFINED).sum())

    @property
    def robust_accuracy(self) -> float:
        """Share of samples the model is right on before and after the attack."""
        return self.robust.double().mean().item()

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Compute Wilson's interval of the robust accuracy.

        Parameters
        ----------
        level : float
            Confidence level, above 0 and below 1.

        Returns
        -------
        (float, float)
            Lower and upper end, in [0, 1].

        Raises
        ------
        InputError
            If `level` is not in (0, 1).
        """
        return wilson(int(self.robust.sum()), len(self), level)

    def table(self) -> pd.DataFrame:
        """Return the result as a table.

        Returns
        -------
        DataFrame
            One row per sample, in input order: `label`, `prediction`, `clean_correct`, `robust`, `success`,
            `survives_rounding`, `loss`, `queries` and `distance`.
        """
        columns = {"label": self.labels, "prediction": self.predictions} | {
            name: getattr(self, name)
            for name in (
                *("clean_correct", "robust", "success", "survives_rounding"),
                *("loss", "queries", "distance"),
            )
        }
        table = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
        return table.rename_axis("sample")

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the images, as values that JSON can hold.

        Returns
        -------
        dict
            The settings, the accuracies with their interval, and the table under `samples`.
        """
        low, high = self.interval()
        return {
            "method": self.method,
            "norm": self.norm,
            "eps": self.eps,
            "settings": self.settings,
            "seed": self.seed,
            "seconds": self.seconds,
            "n": len(self),
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "interval": [low, high],
            "survive_rounding": int(self.survives_rounding.sum()),
            "nonfinite": self.nonfinite,
            "samples": self.table().to_dict(orient="list"),
        }


_THREATS: dict[Norm, str] = {"linf": "Linf", "l2": "L2", "severity": "corruptions"}


def robustbench_entry(result: AttackResult, *, dataset: str, **info: Any) -> dict[str, Any]:
    """Describe a result as an entry of RobustBench's `model_info/DATASET/THREAT/NAME.json`.

    Parameters
    ----------
    result : AttackResult
        A result of `autoattack` for the field `autoattack_acc`; under any other attack the field is
        `reported`.
    dataset : str
        RobustBench's name of the data, such as "cifar10".
    info
        Further fields of the entry, such as `name`, `link`, `authors`, `venue`, `architecture` and
        `additional_data`.

    Returns
    -------
    dict
        Values that JSON can hold; accuracies are percentages as text with two decimals, as in RobustBench.

    Raises
    ------
    InputError
        If RobustBench has no leaderboard for the result's norm.

    Examples
    --------
    >>> import torch
    >>> from saliency_lab.attacks import attack
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> x = torch.full((2, 1, 4, 4), 0.5)
    >>> found = attack(model, x, model(x).argmax(1), "pgd", eps=0)
    >>> robustbench_entry(found, dataset="cifar10", name="Linear")["clean_acc"]
    '100.00'
    """
    check_instance(result, AttackResult, "result", "an AttackResult, as saliency_lab.attack returns it")
    check_text(dataset, "dataset")
    if result.norm not in _THREATS:
        raise InputError(f"RobustBench has no leaderboard for {result.norm}; it has Linf, L2 and corruptions")
    pixels = result.eps * 255
    whole = result.norm == "linf" and abs(pixels - round(pixels)) < 1e-6  # RobustBench writes 8/255
    robust = f"{100 * result.robust_accuracy:.2f}"
    measured = "autoattack_acc" if result.method == "autoattack" else "reported"
    return {
        **info,
        "dataset": dataset,
        "threat_model": _THREATS[result.norm],
        "eps": f"{round(pixels)}/255" if whole else f"{result.eps:g}",
        "clean_acc": f"{100 * result.clean_accuracy:.2f}",
        measured: robust,
    }
