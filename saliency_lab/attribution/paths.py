"""Integrated gradients along other paths, and over regions: Guided IG, Blur IG and XRAI."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from pydantic import Field
from scipy.ndimage import find_objects, gaussian_filter
from scipy.sparse import csr_array
from skimage.morphology import dilation, disk
from skimage.segmentation import felzenszwalb
from torch import Tensor

from saliency_lab._common.settings import Settings
from saliency_lab.attribution.baseline import Baseline, resolve_baseline
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.catalogue import Explained, method
from saliency_lab.attribution.gradient import IntegratedGradientsSettings, integrated_gradients


class GuidedSettings(Settings):
    """`steps` on a path from the `baseline` on which the values with the smallest gradients move first.

    A step moves the share `fraction` of them; the path keeps within `distance` of the straight line, as a
    share of its length (0 is the straight line, 1 leaves it free).
    """

    steps: int = Field(50, ge=2)
    fraction: float = Field(0.25, gt=0, le=1)
    distance: float = Field(0.02, ge=0, le=1)
    baseline: Baseline = "zero"


@method(
    "guided_ig",
    family="gradient",
    passes="steps × (1 forward, 1 backward) + 2 forward",
    reference="Kapishnikov et al., CVPR 2021",
    settings=GuidedSettings,
)
def guided_ig(batch: Batch, settings: GuidedSettings) -> Explained:
    """Integrate the gradient along an adaptive path that avoids large gradients; sums to f(x) − f(b)."""
    base = resolve_baseline(settings.baseline, batch)
    ends, starts = (each.double().cpu() for each in (batch.x, base))
    points, total = starts.clone(), torch.zeros_like(ends)
    for step in range(1, settings.steps + 1):
        gradient = batch.gradient(points.to(batch.x))[0].double().cpu()
        for row in range(len(points)):
            before = points[row].clone()
            size = gradient[row].abs().nan_to_num(nan=torch.inf)  # NaN would be chosen never, and moved never
            _move(points[row], size, starts[row], ends[row], step, settings)
            total[row] += (points[row] - before) * gradient[row]
    return total.to(batch.x), batch.score(batch.x) - batch.score(base)


def _move(
    point: Tensor, size: Tensor, start: Tensor, end: Tensor, step: int, settings: GuidedSettings
) -> None:
    """Move a point in place until its L1 distance from the end is that of step `step` of `steps`."""
    share = step / settings.steps
    low, high = (
        start + max(0.0, share - settings.distance) * (end - start),
        start + min(1.0, share + settings.distance) * (end - start),
    )
    goal = (1 - share) * (end - start).abs().sum()
    behind = (point - start).abs() < (low - start).abs()
    point[behind] = low[behind]
    while True:
        excess = (point - end).abs().sum() - goal
        free = (point != high) & (start != end)
        if excess <= 1e-9 * (end - start).abs().sum() or not free.any():
            return
        ranked = size[free].sort().values
        limit = ranked[min(len(ranked) - 1, int(settings.fraction * (size.numel() - 1)))]
        chosen = free & (size <= limit)
        reach = (point - high).abs()[chosen].sum()
        gain = min(1.0, float(excess / reach)) if reach > 0 else 1.0
        if gain < 1:
            point[chosen] += gain * (high - point)[chosen]
            return
        point[chosen] = high[chosen]


class BlurSettings(Settings):
    """`steps` of a Gaussian blur from σ = `sigma` pixels, by default a sixth of the longer side, to 0."""

    steps: int = Field(50, ge=2)
    sigma: float | None = Field(None, gt=0)


@method(
    "blur_ig",
    family="gradient",
    passes="(steps + 1) × (1 forward, 1 backward)",
    reference="Xu et al., CVPR 2020",
    settings=BlurSettings,
)
def blur_ig(batch: Batch, settings: BlurSettings) -> Explained:
    """Integrate the gradient from the blurred image to the image; sums to f(x) − f(blurred).

    The blur has black around the image, as in the authors' code. The integral is the trapezoid rule.
    """
    sigma = settings.sigma or max(batch.x.shape[2:]) / 6
    images = batch.x.double().cpu().numpy()
    total, last, slope, first = torch.zeros_like(batch.x), batch.x, batch.x, batch.x
    for step in range(settings.steps + 1):
        width = sigma * step / settings.steps
        blurred = gaussian_filter(images, (0, 0, width, width), mode="constant") if step else images
        point = torch.from_numpy(blurred).to(batch.x)
        gradient, scores = batch.gradient(point)
        if step:
            total += (gradient + slope) / 2 * (last - point)
        else:
            first = scores
        last, slope = point, gradient
    return total, first - scores


class XraiSettings(Settings):
    """`steps` of integrated gradients, from a black and from a white baseline.

    `scales` are those of Felzenszwalb's segmentation. Regions that would add less than the share `smallest`
    of the area of the image are left out.
    """

    steps: int = Field(50, ge=2)
    scales: list[float] = Field([50.0, 100.0, 150.0, 250.0, 500.0, 1200.0], min_length=1)
    smallest: float = Field(50 / 299**2, ge=0, lt=1)


@method(
    "xrai",
    family="gradient",
    passes="2 × integrated_gradients",
    reference="Kapishnikov et al., ICCV 2019",
    settings=XraiSettings,
)
def xrai(batch: Batch, settings: XraiSettings) -> Explained:
    """Give each pixel the mean attribution of the region with which it joins, best region first.

    Regions are overlapping segments of several scales, each grown by a border of 5 pixels in 299. At every
    step the region joins whose new pixels have the largest mean attribution.
    """
    maps = torch.zeros_like(batch.x)
    for baseline in ("black", "white"):
        inner = IntegratedGradientsSettings(steps=settings.steps, baseline=baseline)
        maps += integrated_gradients(batch, inner)[0] / 2
    values = maps.sum(1).double().cpu().numpy()
    images = batch.x.float().cpu().numpy()
    rows = [
        grow_regions(value, regions(image, settings.scales), settings.smallest * value.size)
        for value, image in zip(values, images, strict=True)
    ]
    return torch.from_numpy(np.stack(rows)).to(batch.x)[:, None].expand_as(batch.x).clone(), None


def regions(image: np.ndarray, scales: list[float]) -> list[np.ndarray]:
    """Return overlapping regions of an image (C, H, W), each as the indices of its pixels, ascending."""
    pixels = image.transpose(1, 2, 0)
    side, area = max(pixels.shape[:2]), pixels.shape[0] * pixels.shape[1]
    border, least = round(5 * side / 299), max(2, round(150 * area / 299**2))
    masks = []
    for scale in scales:
        with warnings.catch_warnings():  # it doubts images of more than three channels
            warnings.filterwarnings("ignore", "Got image with third dimension", RuntimeWarning)
            labels = felzenszwalb(pixels, scale=scale, sigma=0.8, min_size=least, channel_axis=-1)
        boxes = find_objects(labels + 1)
        masks += [_grown(labels, label, box, border) for label, box in enumerate(boxes) if box is not None]
    return masks


def _grown(labels: np.ndarray, label: int, box: tuple[slice, slice], border: int) -> np.ndarray:
    """Return the indices of the pixels of a segment within `box`, and of those up to `border` away."""
    starts = [max(0, each.start - border) for each in box]
    window = labels[starts[0] : box[0].stop + border, starts[1] : box[1].stop + border] == label
    rows, columns = np.nonzero(dilation(window, disk(border)) if border else window)
    indices: np.ndarray = (rows + starts[0]) * labels.shape[1] + columns + starts[1]
    return indices


def grow_regions(values: np.ndarray, regions: list[np.ndarray], least: float) -> np.ndarray:
    """Return the mean attribution (H, W) with which each pixel joins; pixels of no region share their mean.

    A region, given by the indices of its pixels, joins if it adds at least `least` of them.

    >>> values = np.array([[3.0, 1.0, 0.0, 0.0]])
    >>> grow_regions(values, [np.array([0, 1])], 1)
    array([[2., 2., 0., 0.]])
    """
    flat = values.ravel()
    ends = np.cumsum([0] + [len(each) for each in regions])
    columns = np.concatenate([*regions, np.empty(0, np.intp)])
    member = csr_array((np.ones(len(columns)), columns, ends), shape=(len(regions), flat.size))
    joined, left = np.zeros(flat.size), np.ones(flat.size)
    while True:
        counts = member @ left
        allowed = counts >= max(1, least)
        if not allowed.any():
            break
        gains = np.where(allowed, member @ (left * flat) / np.maximum(counts, 1), -np.inf)
        best = int(np.argmax(gains))
        joined[regions[best][left[regions[best]] > 0]] = gains[best]
        left[regions[best]] = 0
    if left.any():
        joined[left > 0] = flat[left > 0].mean()
    return joined.reshape(values.shape)
