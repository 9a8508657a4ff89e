"""Corruptions of our own, for test images whose published corrupted files (common.data.corruption_files) are absent.

Shape letters: N images, C channels, H and W pixels.

They take the strengths of CIFAR-C's generator (Hendrycks and Dietterich 2019, five severities, meant for 32 pixels),
but not its code: filters, resampling, rounding and random numbers are others, so the images are close to the published
ones, never equal.  What needs photographs (frost) or OpenCV's and ImageMagick's own operations (snow, spatter, glass
blur) is left out.  An image's corruption depends on (corruption, severity, its position in the test set) alone, so all
networks see the same images.
"""

import io
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from common.seeds import fold

# -- (image float64 (H,W,C) in [0,1], strength, random numbers) -> the same shape, which `corrupt` clips --------------

def gaussian_noise(image, deviation, rng):
    """+ N(0, deviation)."""
    return image + rng.normal(scale=deviation, size=image.shape)


def shot_noise(image, photons, rng):
    """Poisson noise: an all-white value counts `photons`."""
    return rng.poisson(image * photons) / photons


def impulse_noise(image, share, rng):
    """This share of the values becomes 0 or 1."""
    drawn = rng.random(image.shape)
    return np.where(drawn < share, drawn < share / 2, image)


def speckle_noise(image, deviation, rng):
    """Noise in proportion to the value."""
    return image * (1 + rng.normal(scale=deviation, size=image.shape))


def gaussian_blur(image, deviation, rng):
    """deviation in pixels."""
    return ndimage.gaussian_filter(image, (deviation, deviation, 0), mode="nearest")


def defocus_blur(image, strength, rng):
    """A disk of radius r, its edge smoothed by three taps of deviation d."""
    radius, deviation = strength
    reach = np.arange(-3, 4)
    disk = (reach[:, None] ** 2 + reach ** 2 <= radius ** 2).astype(float)
    taps = np.exp(-np.array([1, 0, 1]) / (2 * deviation ** 2))
    taps /= taps.sum()
    kernel = ndimage.convolve(disk / disk.sum(), taps[:, None] * taps, mode="constant")
    return ndimage.convolve(image, kernel[..., None], mode="mirror")


def motion_blur(image, strength, rng):
    """A trail of 2*radius+1 pixels in a direction within 45 degrees of horizontal, fading as half a Gaussian."""
    radius, deviation = strength
    angle = np.deg2rad(rng.uniform(-45, 45))
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-steps ** 2 / (2 * deviation ** 2))
    height, width = image.shape[:2]
    found = np.zeros_like(image)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        rows = np.clip(np.arange(height) + round(step * np.sin(angle)), 0, height - 1)
        columns = np.clip(np.arange(width) + round(step * np.cos(angle)), 0, width - 1)
        found += weight * image[rows[:, None], columns]
    return found


def zoom_blur(image, most, rng):
    """The mean of the image, once more, and of it enlarged by 1, 1.01, ..., `most`."""
    factors = np.arange(100, round(100 * most) + 1) / 100
    channels = image.transpose(2, 0, 1)
    enlarged = [enlarging(image.shape[0], factor) @ channels @ enlarging(image.shape[1], factor).T
                for factor in factors]
    return ((channels + sum(enlarged)) / (len(factors) + 1)).transpose(1, 2, 0)


@cache
def enlarging(side: int, factor: float) -> np.ndarray:
    """(side, side) weights of linear interpolation about the middle; a row has one output value's weights."""
    middle = (side - 1) / 2
    places = middle + (np.arange(side) - middle) / factor
    return np.clip(1 - np.abs(places[:, None] - np.arange(side)), 0, 1)


def brightness(image, shift, rng):
    """The largest channel (HSV's value) + shift, hue and saturation kept."""
    value = image.max(2, keepdims=True)
    raised = np.clip(value + shift, 0, 1)
    return np.where(value > 0, image * raised / np.where(value > 0, value, 1), raised)


def saturate(image, strength, rng):
    """HSV's saturation times a, plus b, clipped; a grey pixel counts as red, of saturation 0."""
    factor, shift = strength
    value, least = image.max(2, keepdims=True), image.min(2, keepdims=True)
    before = np.where(value > 0, (value - least) / np.where(value > 0, value, 1), 0)
    after = np.clip(before * factor + shift, 0, 1)
    coloured = value - (value - image) * after / np.where(before > 0, before, 1)
    red = np.concatenate([value, value * (1 - after), value * (1 - after)], 2)
    return np.where(before > 0, coloured, red)


def contrast(image, factor, rng):
    """Each channel's distance from its mean times the factor."""
    mean = image.mean((0, 1), keepdims=True)
    return (image - mean) * factor + mean


def fog(image, strength, rng):
    """+ a*plasma, then darkened to the image's old range; the plasma's roughness falls by decay^2 per octave."""
    amount, decay = strength
    most = image.max()
    height, width = image.shape[:2]
    mist = plasma(max(height, width), decay ** 2, rng)[:height, :width, None]
    return (image + amount * mist) * most / (most + amount)


def plasma(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """A height map in [0,1], a square of at least `side` pixels, by the diamond-square method on a torus."""
    size = 1 << (side - 1).bit_length()
    heights, step, roughness = np.zeros((size, size)), size, 1.0
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        total = corners + np.roll(corners, -1, 0)
        total = total + np.roll(total, -1, 1)
        centres = total / 4 + roughness * rng.uniform(-1, 1, corners.shape)
        heights[half::step, half::step] = centres
        above, left = np.roll(centres, 1, 0), np.roll(centres, 1, 1)
        heights[::step, half::step] = ((corners + np.roll(corners, -1, 1) + centres + above) / 4
                                       + roughness * rng.uniform(-1, 1, corners.shape))
        heights[half::step, ::step] = ((corners + np.roll(corners, -1, 0) + centres + left) / 4
                                       + roughness * rng.uniform(-1, 1, corners.shape))
        step, roughness = half, roughness / decay
    return (heights - heights.min()) / np.ptp(heights)


def pixelate(image, share, rng):
    """Averaged down to this share of the side, and enlarged again."""
    height, width = image.shape[:2]
    small = as_pillow(image).resize((max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BOX)
    return from_pillow(small.resize((width, height), Image.Resampling.BOX), image.shape)


def jpeg_compression(image, quality, rng):
    """Written as JPEG and read again."""
    written = io.BytesIO()
    as_pillow(image).save(written, "JPEG", quality=quality)
    return from_pillow(Image.open(written), image.shape)


def elastic_transform(image, strength, rng):
    """Three points moved by U(-c, c), the affine map that follows them, and smooth displacements on top; a, s, c in
    sides: displacements are noise U(-1,1) smoothed with deviation s, times a."""
    height, width = image.shape[:2]
    amount, deviation, jitter = (part * min(height, width) for part in strength)
    middle, reach = np.array([width // 2, height // 2]), min(height, width) // 3
    points = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + rng.uniform(-jitter, jitter, points.shape)
    # The affine map from where a point is now to where it was: [x, y, 1] @ back = [x', y'].
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)
    smooth = [amount * ndimage.gaussian_filter(rng.uniform(-1, 1, (height, width)), deviation, truncate=3)
              for _ in range(2)]
    y, x = np.mgrid[:height, :width].astype(float)
    now = np.stack([x + smooth[0], y + smooth[1], np.ones_like(x)], -1)
    before = now @ back
    places = [before[..., 1], before[..., 0]]
    return np.stack([ndimage.map_coordinates(image[..., channel], places, order=1, mode="mirror")
                     for channel in range(image.shape[2])], -1)


def as_pillow(image: np.ndarray) -> Image.Image:
    """An image for Pillow: grey or RGB."""
    whole = np.rint(255 * image).astype(np.uint8)
    return Image.fromarray(whole[..., 0] if whole.shape[2] == 1 else whole)


def from_pillow(image: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `as_pillow`."""
    return np.asarray(image, np.float64).reshape(shape) / 255


# Corruption -> its function and the strength of each severity (CIFAR-C's).
OWN: dict[str, tuple[Callable[..., np.ndarray], Sequence[Any]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": (speckle_noise, (0.06, 0.10, 0.12, 0.16, 0.20)),
    "gaussian_blur": (gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))),
    "motion_blur": (motion_blur, ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))),
    "zoom_blur": (zoom_blur, (1.06, 1.11, 1.15, 1.20, 1.25)),
    "brightness": (brightness, (0.05, 0.10, 0.15, 0.20, 0.30)),
    "contrast": (contrast, (0.75, 0.50, 0.40, 0.30, 0.15)),
    "saturate": (saturate, ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))),
    "fog": (fog, ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))),
    "pixelate": (pixelate, (0.95, 0.90, 0.85, 0.75, 0.65)),
    "jpeg_compression": (jpeg_compression, (80, 65, 58, 50, 40)),
    "elastic_transform": (elastic_transform, ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06),
                                              (0.10, 0.04, 0.05), (0.10, 0.03, 0.03))),
}


def own_corruptions(channels: int) -> tuple[str, ...]:
    """The names of our own corruptions for images of so many channels; grey ones have no saturation."""
    return tuple(name for name in OWN if channels == 3 or name != "saturate")


def corrupt(name: str, severity: int, images: np.ndarray, *, first: int = 0) -> np.ndarray:
    """uint8 (N,C,H,W), C 1 or 3, corrupted; severity 1 to 5; first: the first image's position in the test set."""
    function, strengths = OWN[name]
    found = np.empty_like(images)
    for number, image in enumerate(images):
        rng = np.random.default_rng(fold(0, "own-corruption", name, severity, first + number))
        corrupted = function(image.transpose(1, 2, 0) / 255, strengths[severity - 1], rng)
        found[number] = np.rint(255 * np.clip(corrupted, 0, 1)).transpose(2, 0, 1)
    return found
