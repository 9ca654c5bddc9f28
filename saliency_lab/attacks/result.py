"""What an attack found, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from saliency_lab._common.html import facts, side_by_side, strip
from saliency_lab._common.proportions import wilson
from saliency_lab._common.settings import as_keywords
from saliency_lab.attacks.ascent import Norm

_SHOWN = 8  # attacked images, in Jupyter


@dataclass(frozen=True, eq=False, repr=False)
class AttackResult:
    """What an attack found, one row a sample, in input order, on the CPU.

    Attributes
    ----------
    adversarial : Tensor (N, C, H, W)
        Inside the ε-ball around x and inside [0, 1]. Where x is misclassified already (with a target:
        already taken for the target), x itself.
    labels, predictions : Tensor (N,)
        The labels given, and the classes predicted for `adversarial`.
    clean_correct : Tensor (N,) of bool
        The model is right on x.
    robust : Tensor (N,) of bool
        The model is right on x and on `adversarial`.
    success : Tensor (N,) of bool
        The attack did it: the model is right on x and wrong on `adversarial`; with a target, it does not
        see the target in x and sees it in `adversarial`.
    loss : Tensor (N,)
        Cross-entropy of the label on `adversarial`, whatever loss the attack raised.
    queries : Tensor (N,)
        Forward passes the attack spent on the sample (the two that judge x and `adversarial` apart).
    distance : Tensor (N,)
        ‖adversarial − x‖ in the attack's norm.
    loss_curve : Tensor (N, steps + 1) or None
        The attack's own loss at each step of the restart that gave `adversarial`; NaN after an early
        stop and for samples left alone. None for methods without one, and if all were left alone.
    images : str
        Fingerprint of the images attacked, by which results on the same ones are known.
    """

    adversarial: Tensor
    labels: Tensor
    predictions: Tensor
    clean_correct: Tensor
    robust: Tensor
    success: Tensor
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
            f"AttackResult({self.method}, {self.norm}, eps={self.eps:.4g}: robust accuracy "
            f"{self.robust_accuracy:.1%} [{low:.1%}, {high:.1%}], clean {self.clean_accuracy:.1%}, "
            f"n={len(self)}, seed={self.seed}, {self.seconds:.1f} s)"
        )

    def _repr_html_(self) -> str:
        low, high = self.interval()
        rows = {
            "robust accuracy": f"{self.robust_accuracy:.1%} [{low:.1%}, {high:.1%}]",
            "clean accuracy": f"{self.clean_accuracy:.1%}",
            "images": str(len(self)),
            "ε": f"{self.eps:.4g} ({self.norm})",
            "settings": as_keywords(self.settings),
            "passes an image": f"{self.queries.double().mean().item():.4g}",
            "seed": str(self.seed),
            "time": f"{self.seconds:.3g} s",
        }
        parts = []
        for row in self.success.nonzero()[:_SHOWN, 0].tolist():
            said = f"{int(self.labels[row])} taken for {int(self.predictions[row])}"
            parts.append((strip(self.adversarial[row : row + 1], f"attacked image {row}"), said))
        return facts(f"attack {self.method}", rows) + side_by_side(parts)

    @property
    def clean_accuracy(self) -> float:
        """Share of samples the model is right on before the attack."""
        return self.clean_correct.double().mean().item()

    @property
    def robust_accuracy(self) -> float:
        """Share of samples the model is right on before and after the attack."""
        return self.robust.double().mean().item()

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson interval of the robust accuracy."""
        return wilson(int(self.robust.sum()), len(self), level)

    def table(self) -> pd.DataFrame:
        """One row a sample: label, prediction, clean_correct, robust, success, loss, queries, distance."""
        columns = {"label": self.labels, "prediction": self.predictions} | {
            name: getattr(self, name)
            for name in ("clean_correct", "robust", "success", "loss", "queries", "distance")
        }
        table = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
        return table.rename_axis("sample")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images, as values that JSON can hold."""
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
            "samples": self.table().to_dict(orient="list"),
        }
