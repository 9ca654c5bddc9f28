"""Common corruptions at five severities, as attacks whose ε is the severity.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019. The severities are those of CIFAR-10-C up to 64 pixels and of ImageNet-C above.
The original frost adds one of six photographs of ice; here it adds a generated texture.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saliency_lab._common.arguments import check_choice, check_count
from saliency_lab._common.checks import check_images
from saliency_lab._common.errors import InputError
from saliency_lab._common.seeding import sample_seeds
from saliency_lab._common.settings import Settings
from saliency_lab.attacks.problem import AttackOutcome, AttackProblem

Array = np.ndarray[Any, np.dtype[Any]]

SEVERITIES = (1, 2, 3, 4, 5)
_FEWEST = 3  # pixels of the shorter side: an affine map needs three corners
_SMALL = 64  # pixels of the longer side up to which the severities of CIFAR-10-C are used


class CorruptionSettings(Settings):
    """The severity, 1 to 5, is given as `eps`."""

    norm: Literal["severity"] = "severity"
    samples: int = Field(default=1, ge=1)


def corrupt(x: Tensor, corruption: str, severity: int, *, seed: int = 0) -> Tensor:
    """Apply a common corruption to images.

    Parameters
    ----------
    x : Tensor (N, C, H, W)
        Images in [0, 1].
    corruption : str
        One of "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "gaussian_blur",
        "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness",
        "contrast", "elastic_transform", "pixelate", "jpeg_compression" and "saturate" (the last for three
        channels).
    severity : {1, 2, 3, 4, 5}
    seed : int
        Draws depend on it and on each image alone.

    Returns
    -------
    Tensor (N, C, H, W)
        Images in [0, 1].

    Raises
    ------
    InputError
        If the corruption is unknown, the severity is not one of these, or the images do not suit it.

    Examples
    --------
    >>> x = torch.full((2, 1, 8, 8), 0.5)
    >>> round(corrupt(x, "brightness", severity=5)[0, 0, 0, 0].item(), 2)
    0.8
    """
    check_images(x)
    check_choice(corruption, CORRUPTIONS, "corruption")
    check_count(severity, "severity", most=max(SEVERITIES))
    if min(x.shape[-2:]) < _FEWEST:
        raise InputError(
            f"corruptions need images of at least {_FEWEST}×{_FEWEST} pixels, not {x.shape[-2]}×{x.shape[-1]}"
        )
    if corruption == "saturate" and x.shape[1] != 3:
        raise InputError("'saturate' needs images of three channels; use 'brightness' or 'contrast'")
    function, small, large = CORRUPTIONS[corruption]
    strength = (small if max(x.shape[-2:]) <= _SMALL else large)[int(severity) - 1]
    rows = []
    for image, key in zip(x.detach().cpu().double(), sample_seeds(x, seed, corruption), strict=True):
        array = function(image.permute(1, 2, 0).numpy(), strength, np.random.default_rng(key))
        rows.append(torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1))
    return torch.stack(rows).to(x).clamp(0, 1)


def attack_by(corruption: str) -> Callable[[AttackProblem, CorruptionSettings], AttackOutcome]:
    """Return the corruption as the function of an attack."""

    def run(problem: AttackProblem, settings: CorruptionSettings) -> AttackOutcome:
        severity = int(problem.eps[0])
        points = corrupt(problem.x, corruption, severity, seed=problem.seed)
        return AttackOutcome(points.to(problem.x), torch.zeros(len(points), dtype=torch.long))

    run.__doc__ = (
        f"Hendrycks and Dietterich, ICLR 2019: {corruption.replace('_', ' ')}; eps is the severity, 1 to 5."
    )
    return run


# Each function takes an image (H, W, C) in [0, 1], a strength and a generator.


def _gaussian_noise(image: Array, scale: float, rng: np.random.Generator) -> Array:
    from skimage.util import random_noise

    return random_noise(image, "gaussian", rng=rng, var=scale**2)


def _shot_noise(image: Array, photons: float, rng: np.random.Generator) -> Array:
    return rng.poisson(image * photons) / photons


def _impulse_noise(image: Array, amount: float, rng: np.random.Generator) -> Array:
    from skimage.util import random_noise

    return random_noise(image, "s&p", rng=rng, amount=amount)


def _speckle_noise(image: Array, scale: float, rng: np.random.Generator) -> Array:
    from skimage.util import random_noise

    return random_noise(image, "speckle", rng=rng, var=scale**2)


def _gaussian_blur(image: Array, sigma: float, rng: np.random.Generator) -> Array:
    from skimage.filters import gaussian

    return gaussian(image, sigma=sigma, channel_axis=-1)


def _filter(image: Array, kernel: Array) -> Array:
    from scipy.ndimage import convolve

    high, wide = image.shape[:2]
    # scipy reads beyond its memory where a kernel is several times as large as the image
    margin = len(kernel) // 2 if len(kernel) > min(high, wide) else 0
    image = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    blurred = convolve(image, kernel[..., None] / kernel.sum(), mode="reflect")
    return blurred[margin : margin + high, margin : margin + wide]


def _defocus_blur(image: Array, strength: tuple[float, float], rng: np.random.Generator) -> Array:
    from skimage.filters import gaussian

    radius, sigma = strength
    reach = np.arange(-max(8, int(radius)), max(8, int(radius)) + 1)
    disk = (reach[:, None] ** 2 + reach[None] ** 2 <= radius**2).astype(float)
    return _filter(image, gaussian(disk, sigma=sigma))


def _glass_blur(image: Array, strength: tuple[float, int, int], rng: np.random.Generator) -> Array:
    from skimage.filters import gaussian

    sigma, reach, rounds = strength
    image = np.array(gaussian(image, sigma=sigma, channel_axis=-1))
    high, wide = image.shape[:2]
    for _ in range(rounds):
        moves = rng.integers(-reach, reach + 1, (high, wide, 2))
        for row in range(high - reach - 1, reach - 1, -1):
            for column in range(wide - reach - 1, reach - 1, -1):
                other = row + moves[row, column, 0], column + moves[row, column, 1]
                image[[row, other[0]], [column, other[1]]] = image[[other[0], row], [other[1], column]]
    return gaussian(image, sigma=sigma, channel_axis=-1)


def _move(image: Array, radius: int, sigma: float, angle: float) -> Array:
    """Blur along a line of `radius` pixels at `angle` degrees, with weights of a one-sided Gaussian."""
    from skimage.transform import rotate

    reach = np.arange(-radius, radius + 1)
    kernel = np.zeros((len(reach), len(reach)))
    kernel[radius] = np.exp(-(reach**2) / (2 * sigma**2)) * (reach >= 0)
    return _filter(image, rotate(kernel, angle))


def _motion_blur(image: Array, strength: tuple[int, float], rng: np.random.Generator) -> Array:
    return _move(image, *strength, rng.uniform(-45, 45))


def _zoom(image: Array, factor: float) -> Array:
    """Magnify the middle of the image to its whole size."""
    from skimage.transform import SimilarityTransform, warp

    high, wide = image.shape[:2]
    centre = np.array([wide - 1, high - 1]) / 2
    zoom = SimilarityTransform(scale=1 / factor, translation=centre * (1 - 1 / factor))
    return warp(image, zoom, order=1, mode="edge")


def _zoom_blur(image: Array, factors: Array, rng: np.random.Generator) -> Array:
    return (image + sum(_zoom(image, factor) for factor in factors)) / (len(factors) + 1)


def _snow(
    image: Array, strength: tuple[float, float, float, float, int, float, float], rng: np.random.Generator
) -> Array:
    mean, spread, size, least, radius, sigma, kept = strength
    flakes = _zoom(rng.normal(mean, spread, (*image.shape[:2], 1)), size)
    flakes = np.where(flakes < least, 0, flakes.clip(0, 1))
    flakes = _move(flakes, radius, sigma, rng.uniform(-135, -45))
    whitened = np.maximum(image, 1.5 * _grey(image) + 0.5)
    return kept * image + (1 - kept) * whitened + flakes + np.rot90(flakes, 2)


def _grey(image: Array) -> Array:
    """Luminance (H, W, 1) of three channels, the mean of any other number."""
    from skimage.color import rgb2gray

    grey = rgb2gray(image) if image.shape[2] == 3 else image.mean(2)
    return grey[..., None]


def _frost(image: Array, strength: tuple[float, float], rng: np.random.Generator) -> Array:
    """Add crystals: bright ridges of one fractal where another is dense, slightly blue in three channels."""
    kept, amount = strength
    high, wide = image.shape[:2]
    size = 1 << (max(high, wide) - 1).bit_length()
    ridges, density = (_plasma(size, 1.6, rng)[:high, :wide, None] for _ in range(2))
    ice = 0.25 + 0.6 * (1 - np.abs(2 * ridges - 1)) ** 3 + 0.3 * density
    tint = np.array([0.95, 1.0, 1.05]) if image.shape[2] == 3 else 1.0
    return kept * image + amount * (ice * tint).clip(0, 1)


def _plasma(size: int, decay: float, rng: np.random.Generator) -> Array:
    """Fractal noise in [0, 1] on a periodic square of a power of two, by the diamond-square algorithm."""
    field = np.zeros((size, size))
    step, spread = size, 100.0
    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        square = corners + np.roll(corners, -1, 0)
        square = square + np.roll(square, -1, 1)
        field[half::step, half::step] = square / 4 + rng.uniform(-spread, spread, square.shape)
        middle = field[half::step, half::step]
        level = middle + np.roll(middle, 1, 1) + corners + np.roll(corners, -1, 0)
        field[half::step, ::step] = level / 4 + rng.uniform(-spread, spread, level.shape)
        above = middle + np.roll(middle, 1, 0) + corners + np.roll(corners, -1, 1)
        field[::step, half::step] = above / 4 + rng.uniform(-spread, spread, above.shape)
        step, spread = half, spread / decay
    field -= field.min()
    return field / field.max()


def _fog(image: Array, strength: tuple[float, float], rng: np.random.Generator) -> Array:
    amount, decay = strength
    high, wide = image.shape[:2]
    size = 1 << (max(high, wide) - 1).bit_length()
    top = image.max()
    foggy = image + amount * _plasma(size, decay, rng)[:high, :wide, None]
    return foggy * top / (top + amount)


def _in_hsv(image: Array, change: Callable[[Array], None]) -> Array:
    from skimage.color import hsv2rgb, rgb2hsv

    hsv = rgb2hsv(image)
    change(hsv)
    return hsv2rgb(hsv.clip(0, 1))


def _brightness(image: Array, amount: float, rng: np.random.Generator) -> Array:
    if image.shape[2] != 3:
        return image + amount

    def lighten(hsv: Array) -> None:
        hsv[..., 2] += amount

    return _in_hsv(image, lighten)


def _saturate(image: Array, strength: tuple[float, float], rng: np.random.Generator) -> Array:
    def colour(hsv: Array) -> None:
        hsv[..., 1] = hsv[..., 1] * strength[0] + strength[1]

    return _in_hsv(image, colour)


def _contrast(image: Array, factor: float, rng: np.random.Generator) -> Array:
    mean = image.mean((0, 1), keepdims=True)
    return (image - mean) * factor + mean


def _elastic_transform(image: Array, strength: tuple[float, float, float], rng: np.random.Generator) -> Array:
    from skimage.filters import gaussian
    from skimage.transform import AffineTransform, warp

    amount, sigma, affine = (part * min(image.shape[:2]) for part in strength)
    high, wide = image.shape[:2]
    third = min(high, wide) // 3
    centre = np.array([wide, high]) / 2
    corners = centre + np.array([[third, third], [third, -third], [-third, -third]])
    moved = corners + rng.uniform(-affine, affine, corners.shape)
    image = warp(image, AffineTransform.from_estimate(moved, corners), order=1, mode="reflect")
    if not amount:
        return image
    field = [
        gaussian(rng.uniform(-1, 1, (high, wide)), sigma, mode="reflect", truncate=3) * amount
        for _ in range(2)
    ]
    rows, columns = np.meshgrid(np.arange(high), np.arange(wide), indexing="ij")
    at = np.stack([rows + field[0], columns + field[1]])
    return np.stack([warp(band, at, order=1, mode="reflect") for band in np.moveaxis(image, 2, 0)], 2)


def _pixelate(image: Array, factor: float, rng: np.random.Generator) -> Array:
    from skimage.transform import resize

    high, wide = image.shape[:2]
    small = resize(image, (max(1, int(high * factor)), max(1, int(wide * factor))), anti_aliasing=True)
    return resize(small, (high, wide), order=0)


def _jpeg_compression(image: Array, quality: int, rng: np.random.Generator) -> Array:
    from PIL import Image

    bands = [image] if image.shape[2] in (1, 3) else [image[..., i : i + 1] for i in range(image.shape[2])]
    decoded = []
    for band in bands:
        pixels = (band * 255).round().astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(
            buffer, "JPEG", quality=quality
        )
        decoded.append(np.asarray(Image.open(buffer), dtype=float).reshape(band.shape) / 255)
    return np.concatenate(decoded, 2)


_Function = Callable[[Array, Any, np.random.Generator], Array]

CORRUPTIONS: dict[str, tuple[_Function, tuple[Any, ...], tuple[Any, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "speckle_noise": (_speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),
    "defocus_blur": (
        _defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass_blur": (
        _glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion_blur": (
        _motion_blur,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom_blur": (
        _zoom_blur,
        tuple(np.arange(1, end, 0.01) for end in (1.06, 1.11, 1.16, 1.21, 1.26)),
        tuple(
            np.arange(1, end, by)
            for end, by in ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
        ),
    ),
    "snow": (
        _snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": (
        _frost,
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
    "fog": (
        _fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": (
        _elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        tuple(
            tuple(part * 244 / 224 for part in strength)  # ImageNet-C has 244 for images of 224 pixels
            for strength in (
                *((2, 0.7, 0.1), (2, 0.08, 0.2)),
                *((0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
            )
        ),
    ),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (_jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    "saturate": (
        _saturate,
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    ),
}
"""Functions with their strengths for small and for large images."""
