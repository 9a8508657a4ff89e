"""Small data sets in the form of the real ones, for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

NAMED = {"cifar10": (32, True), "cifar100": (32, True), "mnist": (28, False), "fashion-mnist": (28, False)}


def arrays(seed, count=40, side=32, colour=True):
    """uint8 (count,side,side[,3]) of noise."""
    shape = (count, side, side, 3) if colour else (count, side, side)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def data_folder(path: Path) -> Path:
    """NAME.npz of 40 training and 40 test images each, under the names of the real data sets; seeds 0..3, 10..13."""
    for number, (name, (side, colour)) in enumerate(NAMED.items()):
        np.savez(path / f"{name}.npz", **{
            f"{part}_{what}": value for part, seed in (("train", number), ("test", number + 10)) for what, value in
            (("images", arrays(seed, 40, side, colour)), ("labels", np.arange(40) % 10))})
    return path


def photograph(path: Path, width: int, height: int, seed: int, mode: str = "RGB") -> np.ndarray:
    """Write an image of noise; what Pillow's L of it is, (height,width)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return np.asarray(Image.open(path).convert("L"))
