"""The Quantus engine: pass every setting, leave the caller's data alone, key random draws by sample.

Quantus's loops and similarities are used as they are (`evaluate_batch`). What release 0.6 gets wrong around
them (normalisation over the batch, assertions on the whole batch, curves integrated with a function that
NumPy no longer has, results of the first batch only) is done here instead. Random draws, and sums in the
order of the map, are passed through the functions that its metrics accept (`perturb_func`,
`similarity_func`, `explain_func`), so several threads can use the engine. Only `replaced_in_quantus` patches
Quantus; it lets one thread in at a time.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saliency_lab._common.errors import InputError
from saliency_lab._common.ranks import varies
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
"""Settings of every Quantus metric: maps are reduced and normalised here, and nothing is aggregated."""


class MaskSpace:
    """Quantus's view of a block: one feature per pixel, 1 where it is kept and 0 where it is removed.

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
        """Return the images that masks (N, 1, H, W) stand for, one mask per image, in order."""
        mask = torch.as_tensor(masks, dtype=torch.float32, device=self.probe.device)
        fill = self.fills[:, 0]
        for index in range(1, self.fills.shape[1]):
            fill = torch.where(mask == -index, self.fills[:, index], fill)
        return torch.where(mask > 0, self.probe.x, fill)

    def predict(self, masks: np.ndarray) -> np.ndarray:
        """Return outputs (N, K), float64; those of the image itself where a mask changes nothing in it."""
        images = self.images(masks)
        out = self._outputs(images)
        same = (images == self.probe.x).flatten(1).all(1).cpu()
        if same.any():
            clean = self.probe.remember(("quantus outputs",), lambda: self._outputs(self.probe.x))
            out = clean.where(same[:, None], out)
        out = out.double()
        return (out.softmax(1) if self.output == "probability" else out).numpy()

    def _outputs(self, images: Tensor) -> Tensor:
        out = torch.cat([self.probe.logits(chunk) for chunk in images.split(self.probe.chunk)]).cpu()
        return out if out.dtype == torch.float64 else out.float()

    def fill_in_turn(self, arr: np.ndarray, indices: np.ndarray, **_: Any) -> np.ndarray:
        """Perturb with fill 0, 1, … in turn, and begin again after the last."""
        out = arr.copy()
        np.put_along_axis(out, indices, -float(self._turn), axis=1)
        self._turn = (self._turn + 1) % self.fills.shape[1]
        return out


class SumSpace(MaskSpace):
    """A `MaskSpace` that sums pixel scores (N, H·W) over what is removed and correlates them with the drops.

    Quantus sorts by ranks, which have no ties, and sums those; here the sums of the scores take their place.
    With `subsets` (N, runs, size), subset 0, 1, … is removed in turn in place of Quantus's global draws.
    """

    def __init__(
        self,
        probe: Probe,
        baseline: Baseline,
        output: Output,
        scores: Tensor,
        correlation: Callable[..., np.ndarray],
        *,
        subsets: Tensor | None = None,
        fills: Tensor | None = None,
    ) -> None:
        super().__init__(probe, baseline, output, fills=fills)
        self.scores = scores.cpu().double().numpy()
        self.correlation = correlation
        self.subsets = None if subsets is None else subsets.cpu().numpy()
        self._sums: list[np.ndarray] = []

    def remove(self, arr: np.ndarray, indices: np.ndarray, **_: Any) -> np.ndarray:
        """Remove the pixels `indices` (N, size), or the next subset, and sum their scores."""
        if self.subsets is not None:
            indices = self.subsets[:, len(self._sums)]
        self._sum(indices)
        out = arr.copy()
        np.put_along_axis(out, indices, 0.0, axis=1)
        return out

    def fill(self, arr: np.ndarray, indices: np.ndarray, **_: Any) -> np.ndarray:
        """Fill the pixels `indices` (N, size) with each fill in turn, and sum their scores once."""
        if self._turn == 0:
            self._sum(indices)
        return self.fill_in_turn(arr, indices)

    def correlate(self, a: np.ndarray, b: np.ndarray, **_: Any) -> np.ndarray:
        """Correlate the sums with the changes `b` (N, K); NaN where either does not vary."""
        sums = np.stack(self._sums, axis=1)
        defined = (varies(torch.as_tensor(sums)) & varies(torch.as_tensor(b))).numpy()
        rising = np.arange(sums.shape[1], dtype=np.float64)  # in place of what Quantus cannot correlate
        sums, changes = (np.where(defined[:, None], rows, rising) for rows in (sums, b))
        return np.where(defined, self.correlation(a=sums, b=changes, batched=True), np.nan)

    def _sum(self, indices: np.ndarray) -> None:
        self._sums.append(np.take_along_axis(self.scores, indices, axis=1).sum(axis=1))


class ImputedSpace(MaskSpace):
    """A `MaskSpace` in which removed pixels are imputed by Quantus, and `noise` (N, C, H, W) is added."""

    def __init__(self, probe: Probe, noise: Tensor) -> None:
        super().__init__(probe, "black", "logit")
        self.noise = noise
        self.undefined: list[np.ndarray] = []
        """Of each prediction, which answers (N,) are not a number; to Quantus these are wrong ones."""
        self._filled: list[Tensor] = []

    def predict(self, masks: np.ndarray) -> np.ndarray:
        """Return outputs (N, K), float64, and note which are not a number."""
        out = super().predict(masks)
        self.undefined.append(torch.as_tensor(out).softmax(1).isnan().any(1).numpy())
        return out

    def impute(self, arr: np.ndarray, indices: np.ndarray, **_: Any) -> np.ndarray:
        """Impute image 0, 1, … in turn; what this returns only fills Quantus's stack."""
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
        """Return the images imputed since the last call."""
        filled, self._filled = torch.stack(self._filled), []
        return filled


def equal_steps(pixels: int, steps: int) -> int:
    """Return how many pixels a step holds; Quantus takes equal steps only.

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
    """Return why a sample has no score, when Quantus raised."""
    return f"Quantus cannot score it: {type(error).__name__}: {error}"


def build(name: str, **settings: Any) -> Any:
    """Build a Quantus metric by class name, with `NEUTRAL` and every setting given."""
    import quantus

    return getattr(quantus, name)(**{**NEUTRAL, **settings})


def similarity(kind: str) -> Callable[..., np.ndarray]:
    """Return Quantus's batched correlation, "pearson" or "spearman"."""
    from quantus.functions import similarity_func

    return getattr(similarity_func, f"correlation_{kind}")


def evaluate_batch(
    name: str,
    space: MaskSpace,
    scores: Tensor,
    *,
    masks: np.ndarray | None = None,
    state: Mapping[str, Any] | None = None,
    draws: bool = False,
    **settings: Any,
) -> Any:
    """Return what Quantus's metric `name` computes for a block, from pixel scores (N, H·W).

    `state` holds attributes that Quantus sets before it scores a batch. If Quantus `draws` from the global
    generators on the way, one thread at a time does so.
    """
    maps = scores.cpu().double().numpy().reshape(space.x.shape).copy()
    metric = build(name, **settings)
    vars(metric).update(state or {})
    with preserved_rng(exclusive=draws), no_warnings():
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
        """Return neighbour 0, 1, … in turn, whatever is to be perturbed."""
        self._drawn += 1
        return self.points[:, self._drawn - 1].reshape(arr.shape)

    def explain(self, **_: Any) -> np.ndarray:
        """Return the maps of neighbour 0, 1, … in turn, whatever is to be explained."""
        self._explained += 1
        return self.maps[:, self._explained - 1]


def evaluate_neighbours(name: str, space: Neighbourhood, maps: Tensor, **settings: Any) -> np.ndarray:
    """Return what Quantus's metric `name` computes for a block, float64 (N,), from maps (N, C, H, W)."""
    metric = build(name, perturb_func=space.draw, perturb_func_kwargs=None, **settings)
    metric.explain_func, metric.explain_func_kwargs = space.explain, {}
    with preserved_rng(), no_warnings():
        scores = metric.evaluate_batch(
            model=space,
            x_batch=space.probe.images.cpu().double().numpy(),
            y_batch=space.probe.labels.cpu().numpy(),
            a_batch=maps.cpu().numpy().copy(),
        )
    return np.asarray(scores, dtype=np.float64)


def in_order(ranks: Tensor, units: Tensor | None = None) -> Tensor:
    """Return scores (N, H·W) without ties whose order is that of `ranks`, of pixels or of `units` (H·W,).

    Quantus sorts with an unstable algorithm, so it is never given ties. The score of a unit lies on its first
    pixel, and the others have none, so that its sum is exact whatever its size.
    """
    if units is None:
        return -ranks.double()
    first = torch.zeros(int(units.max()) + 1, dtype=torch.long, device=units.device).scatter_reduce_(
        0, units, torch.arange(len(units), device=units.device), "amin", include_self=False
    )
    scores = torch.zeros(len(ranks), len(units), dtype=torch.float64, device=ranks.device)
    scores[:, first] = -ranks.double()
    return scores


_PATCHING = threading.RLock()


@contextmanager
def replaced_in_quantus(**functions: Callable[..., Any]) -> Iterator[None]:
    """Replace functions of `quantus.helpers.utils` inside; other threads that want to do so wait.

    This is for what Quantus offers no argument for: the segments of IROF, and areas under curves, for which
    it calls a function that NumPy 2.4 no longer has.
    """
    from quantus.helpers import utils

    with _PATCHING:
        before = {name: getattr(utils, name) for name in functions}
        try:
            for name, function in functions.items():
                setattr(utils, name, function)
            yield
        finally:
            for name, function in before.items():
                setattr(utils, name, function)


class _Silence:
    """A block without warnings that several threads can be in; filters are process-wide."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._filters.__exit__(None, None, None)


no_warnings = _Silence()
"""Silence what Quantus warns of, such as a perturbation that changes nothing."""
