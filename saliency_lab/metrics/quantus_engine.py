"""Quantus behind one adapter: every setting passed, nothing of the caller's touched, draws keyed by sample.

Quantus's loops, sums and similarities are used as they are (`evaluate_batch`); what its release 0.6 gets
wrong around them (normalisation over the batch, assertions on the whole batch, curves integrated with a
function NumPy no longer has, results of the first batch only) is done here instead.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from saliency_lab._common.errors import InputError
from saliency_lab._common.seeding import preserved_rng
from saliency_lab.metrics.probe import Baseline, Output, Probe

NEUTRAL = {
    "abs": False,
    "normalise": False,
    "normalise_func": None,
    "normalise_func_kwargs": None,
    "return_aggregate": False,
    "aggregate_func": None,
    "default_plot_func": None,
    "disable_warnings": True,
    "display_progressbar": False,
}
"""What every Quantus metric is built with: maps are reduced and normalised here, nothing is aggregated."""


class MaskSpace:
    """Quantus's view of a block: one feature a pixel, 1 where it is kept and 0 where it is removed.

    So the pixel with all its channels is the unit, and what replaces it is this package's baseline of the
    *original* image, not one recomputed from an image that is perturbed already.
    """

    def __init__(self, probe: Probe, baseline: Baseline, output: Output) -> None:
        self.probe = probe
        self.baseline = baseline
        self.output = output
        self.x = np.ones((len(probe), 1, *probe.x.shape[2:]), dtype=np.float32)
        self.y = probe.labels.cpu().numpy()

    def shape_input(self, x: np.ndarray, shape: Any, **_: Any) -> np.ndarray:
        """Return `x` as Quantus shaped it."""
        return np.asarray(x).reshape(shape)

    def predict(self, masks: np.ndarray) -> np.ndarray:
        """Outputs (N, K), float64, of the images under masks (N, 1, H, W), one an image in order."""
        kept = torch.as_tensor(masks, device=self.probe.device) > 0.5
        images = torch.where(kept, self.probe.x, self.probe.fill(self.baseline))
        out = torch.cat([self.probe.logits(chunk) for chunk in images.split(self.probe.chunk)])
        out = out.float() if out.dtype != torch.float64 else out
        return (out.softmax(1) if self.output == "probability" else out).double().cpu().numpy()


def equal_steps(pixels: int, steps: int) -> int:
    """How many pixels a step holds; Quantus takes equal steps only.

    Raises
    ------
    InputError
        If `steps` does not divide the number of pixels.
    """
    if pixels % steps:
        near = min((s for s in range(1, pixels + 1) if pixels % s == 0), key=lambda s: abs(s - steps))
        raise InputError(
            f"engine 'quantus' takes equal steps, but {pixels} pixels do not divide into {steps}; "
            f"use steps={near}, or engine='fast'"
        )
    return pixels // steps


def build(name: str, **settings: Any) -> Any:
    """A Quantus metric by class name, with `NEUTRAL` and every setting given."""
    import quantus

    return getattr(quantus, name)(**{**NEUTRAL, **settings})


def evaluate_batch(name: str, space: MaskSpace, scores: Tensor, **settings: Any) -> Any:
    """What Quantus's metric `name` returns for a block, from pixel scores (N, H·W)."""
    maps = scores.double().cpu().numpy().reshape(space.x.shape).copy()
    metric = build(name, **settings)
    with preserved_rng(space.probe.seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return metric.evaluate_batch(model=space, x_batch=space.x.copy(), y_batch=space.y, a_batch=maps)


@contextmanager
def drawn_subsets(subsets: Tensor) -> Iterator[None]:
    """Make FaithfulnessCorrelation use `subsets` (N, runs, size) in place of NumPy's global draws."""
    module = importlib.import_module("quantus.metrics.faithfulness.faithfulness_correlation")
    rows = iter(subsets.cpu().numpy().swapaxes(0, 1).reshape(-1, subsets.shape[2]))
    random = mock.Mock(spec=["choice"], choice=lambda *_, **__: next(rows))
    with mock.patch.object(module, "np", mock.Mock(wraps=np, random=random)):
        yield
