"""Quantus behind one adapter: every setting passed, nothing of the caller's touched, draws keyed by sample.

Quantus's loops, sums and similarities are used as they are (`evaluate_batch`); what its release 0.6 gets
wrong around them (normalisation over the batch, assertions on the whole batch, curves integrated with a
function NumPy no longer has, results of the first batch only) is done here instead.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping
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
    *original* image, not one recomputed from an image that is perturbed already. With `fills`
    (N, S, C, H, W), a pixel at −s is replaced by fill s.
    """

    def __init__(
        self, probe: Probe, baseline: Baseline, output: Output, *, fills: Tensor | None = None
    ) -> None:
        self.probe = probe
        self.output = output
        self.fills = probe.fill(baseline)[:, None] if fills is None else fills
        self.x = np.ones((len(probe), 1, *probe.x.shape[2:]), dtype=np.float32)
        self.y = probe.labels.cpu().numpy()
        self._turn = 0

    def shape_input(self, x: np.ndarray, shape: Any, **_: Any) -> np.ndarray:
        """Return `x` as Quantus shaped it."""
        return np.asarray(x).reshape(shape)

    def images(self, masks: np.ndarray) -> Tensor:
        """The images that masks (N, 1, H, W) stand for, one an image in order."""
        mask = torch.as_tensor(masks, dtype=torch.float32, device=self.probe.device)
        fill = self.fills[:, 0]
        for index in range(1, self.fills.shape[1]):
            fill = torch.where(mask == -index, self.fills[:, index], fill)
        return torch.where(mask > 0, self.probe.x, fill)

    def predict(self, masks: np.ndarray) -> np.ndarray:
        """Outputs (N, K), float64."""
        out = torch.cat([self.probe.logits(chunk) for chunk in self.images(masks).split(self.probe.chunk)])
        out = out.float() if out.dtype != torch.float64 else out
        return (out.softmax(1) if self.output == "probability" else out).cpu().double().numpy()

    def fill_in_turn(self, arr: np.ndarray, indices: np.ndarray, **_: Any) -> np.ndarray:
        """A perturbation function that uses fill 0, 1, … and begins again after the last."""
        out = arr.copy()
        np.put_along_axis(out, indices, -float(self._turn), axis=1)
        self._turn = (self._turn + 1) % self.fills.shape[1]
        return out


class ImputedSpace(MaskSpace):
    """A `MaskSpace` in which removed pixels are imputed by Quantus, and `noise` (N, C, H, W) is added."""

    def __init__(self, probe: Probe, noise: Tensor) -> None:
        super().__init__(probe, "black", "logit")
        self.noise = noise
        self._filled: list[Tensor] = []

    def impute(self, arr: np.ndarray, indices: np.ndarray, **_: Any) -> np.ndarray:
        """A perturbation function for image 0, 1, … in turn; what it returns only fills Quantus's stack."""
        from quantus.functions.perturb_func import noisy_linear_imputation

        row = len(self._filled)
        image = self.probe.images[row].cpu().double().numpy()
        filled = torch.as_tensor(noisy_linear_imputation(image, indices.copy(), noise=0.0))  # type: ignore[arg-type]
        filled = filled.to(self.probe.x)
        gone = torch.zeros(self.probe.pixels, dtype=torch.bool, device=self.probe.device)
        gone[torch.as_tensor(indices.copy())] = True
        self._filled.append(torch.where(gone.view(filled.shape[1:]), filled + self.noise[row], filled))
        return arr

    def images(self, masks: np.ndarray) -> Tensor:
        """The images imputed since the last call."""
        filled, self._filled = torch.stack(self._filled), []
        return filled


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


def quantus_failure(error: Exception) -> str:
    """Why a sample has no score, when Quantus raised."""
    return f"Quantus cannot score it: {type(error).__name__}: {error}"


def build(name: str, **settings: Any) -> Any:
    """A Quantus metric by class name, with `NEUTRAL` and every setting given."""
    import quantus

    return getattr(quantus, name)(**{**NEUTRAL, **settings})


def evaluate_batch(
    name: str,
    space: MaskSpace,
    scores: Tensor,
    *,
    masks: np.ndarray | None = None,
    state: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """What Quantus's metric `name` returns for a block, from pixel scores (N, H·W).

    `state` holds attributes that Quantus sets before it scores a batch.
    """
    maps = scores.cpu().double().numpy().reshape(space.x.shape).copy()
    metric = build(name, **settings)
    vars(metric).update(state or {})
    with preserved_rng(space.probe.seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return metric.evaluate_batch(
            model=space, x_batch=space.x.copy(), y_batch=space.y, a_batch=maps, s_batch=masks
        )


class Neighbourhood:
    """Quantus's view of a block with neighbours (N, S, C, H, W) and their maps, both made already."""

    def __init__(self, probe: Probe, points: Tensor, maps: Tensor) -> None:
        self.probe = probe
        self.points = points.cpu().double().numpy()
        self.maps = maps.cpu().double().numpy()
        self._drawn = self._explained = 0

    def draw(self, arr: np.ndarray, **_: Any) -> np.ndarray:
        """A perturbation function that returns neighbour 0, 1, … in turn."""
        self._drawn += 1
        return self.points[:, self._drawn - 1].reshape(arr.shape)

    def explain(self, **_: Any) -> np.ndarray:
        """An explanation function that returns the maps of neighbour 0, 1, … in turn."""
        self._explained += 1
        return self.maps[:, self._explained - 1]


def evaluate_neighbours(name: str, space: Neighbourhood, maps: Tensor, **settings: Any) -> np.ndarray:
    """What Quantus's metric `name` returns for a block, float64 (N,), from maps (N, C, H, W)."""
    metric = build(name, perturb_func=space.draw, perturb_func_kwargs=None, **settings)
    metric.explain_func, metric.explain_func_kwargs = space.explain, {}
    with preserved_rng(space.probe.seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = metric.evaluate_batch(
            model=space,
            x_batch=space.probe.images.cpu().double().numpy(),
            y_batch=space.probe.labels.cpu().numpy(),
            a_batch=maps.cpu().numpy().copy(),
        )
    return np.asarray(scores, dtype=np.float64)


@contextmanager
def subsets_given(subsets: Tensor) -> Iterator[None]:
    """Make FaithfulnessCorrelation use `subsets` (N, runs, size) in place of NumPy's global draws."""
    module = importlib.import_module("quantus.metrics.faithfulness.faithfulness_correlation")
    rows = iter(subsets.cpu().numpy().swapaxes(0, 1).reshape(-1, subsets.shape[2]))
    random = mock.Mock(spec=["choice"], choice=lambda *_, **__: next(rows))
    with mock.patch.object(module, "np", mock.Mock(wraps=np, random=random)):
        yield


@contextmanager
def segments_given(segments: Tensor) -> Iterator[None]:
    """Make IROF use `segments` (N, H, W), which are those of the image and not of a mask."""
    rows = iter(segments.cpu().numpy())
    with mock.patch("quantus.helpers.utils.get_superpixel_segments", lambda **_: next(rows)):
        yield


@contextmanager
def curve_caught() -> Iterator[list[np.ndarray]]:
    """Catch the curves (N, K) that Quantus would integrate with a function NumPy no longer has."""
    caught: list[np.ndarray] = []

    def catch(values: np.ndarray, **_: Any) -> np.ndarray:
        caught.append(np.asarray(values))
        return np.zeros(len(values))

    with mock.patch("quantus.helpers.utils.calculate_auc", catch):
        yield caught
