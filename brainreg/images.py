"""The images that a run sees: the task's, grey or in colour, and those whose pairs regularise.

Shape letters: N images, C channels (1 or 3), H and W pixels.

    v             in [0,1], exactly value/255; grey is Pillow's L (luma), rounded as Pillow does it
    fed           5*(v - 0.5) where task or source is CIFAR, else v
    augmentation  CIFAR only: crop after reflect padding by 4, flip (before grey, which commutes with them)

Regularisation images are the first N training images (also those that validate), augmented once, then shuffled; they
keep their size, whatever the task's is.  ImageNet: of the first N files by sorted path the middle 144x256 pixels, every
4th in both directions: 36x64; the list of the authors' 5,000 images is not released.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brainreg.flags import data_spec, source_spec
from brainreg.settings import COLOUR, LABELS, Settings
from common.data import NAMED, DataSet, Split, augment, to_float
from common.data.decode import in_parallel, opened
from common.data.folder import ENDINGS
from common.data.grey import grey_images
from common.errors import UserError
from common.experiment import DATA, load_data
from common.seeds import fold

CROP = 4                       # pixels of padding
SCALE, SHIFT = 5.0, 0.5        # CIFAR images are fed as SCALE*(v - SHIFT)
MIDDLE = (144, 256)            # rows and columns of an ImageNet image that are looked at
EVERY = 4                      # of which every 4th pixel is taken


@dataclass(frozen=True, eq=False)
class Regularising:
    """images: float32 (N,C,h,w) on the CPU, as fed, shuffled; described: what a record says of them."""

    images: Tensor
    described: dict[str, Any]


def task_data(settings: Settings, args: argparse.Namespace) -> DataSet:
    """The task's data set as uint8, all of it: grey, or in colour with --rgb True."""
    data = load_data(data_spec(args, settings.task), args.data_dir, held_out=settings.hold_out)
    return replace(data, train=seen(data.train, settings.rgb, data.source),
                   test=seen(data.test, settings.rgb, data.source),
                   source=data.source if data.image_shape[0] == settings.channels else f"{data.source}, turned grey")


def seen(split: Split, rgb: bool, source: str) -> Split:
    """The split as the network sees it: with one channel, or three if `rgb`; UserError where there are not three."""
    channels = split.images.shape[1]
    if rgb and channels != 3:
        raise UserError(f"--rgb True needs images in colour, and {source} has {channels} channel: leave --rgb out",
                        code="E-FLAG-DATA")
    if rgb or channels == 1:
        return split
    return Split(grey_images(split.images), split.labels, split.note)


def augmentation(name: str) -> dict[str, Any]:
    """What `common.data.augment` and `Batches` do to images of the data set `name` (ours): nothing but to CIFAR's."""
    return {"crop": CROP, "crop_mode": "reflect", "flip": True} if name in COLOUR else {}


def network_scale(settings: Settings) -> tuple[float, float]:
    """(scale, shift): the task's images are fed to the network as scale*(v - shift)."""
    return (SCALE, SHIFT) if settings.colour_task else (1.0, 0.0)


def regularisation_images(settings: Settings, args: argparse.Namespace, data: DataSet) -> Regularising:
    """The images whose pairs regularise a run of `settings`; data: what `task_data` gave.

    UserError where there are fewer than --reg_image_num, or none to be found.
    """
    name, spec = settings.reg_data or "", source_spec(args, settings)
    if name == "imagenet" and spec not in NAMED and not spec.startswith("npz:"):
        split, source = imagenet(imagenet_folder(spec, args.data_dir), settings.reg_image_num), "ImageNet folder"
    elif spec == data_spec(args, settings.task):
        split, source = first_images(data.train, settings.reg_image_num, data.source), data.source
    else:
        other = load_data(spec, args.data_dir)
        split = seen(first_images(other.train, settings.reg_image_num, other.source), settings.rgb, other.source)
        source = other.source
    images = split.images
    if told := augmentation(name):
        generator = torch.Generator().manual_seed(fold(settings.seed, "regularisation augment"))
        images = augment(images, generator, **told)
    generator = torch.Generator().manual_seed(fold(settings.seed, "regularisation order"))
    images = to_float(images[torch.randperm(len(images), generator=generator)])
    if settings.colour_task or name in COLOUR:
        images = SCALE * (images - SHIFT)
    return Regularising(images, {"source": f"{LABELS.get(name, name)}: {source}", "fingerprint": split.fingerprint,
                                 "n": len(split)})


def first_images(split: Split, count: int, source: str) -> Split:
    """The first `count` images; UserError if there are not so many."""
    if count > len(split):
        raise UserError(f"--reg_image_num {count}: {source} has {len(split)} training images; give at most so many",
                        code="E-SUBSET")
    return split.subset(count)


# -- ImageNet --------------------------------------------------------------------------------------------------------

def imagenet_folder(spec: str, data_dir: str | None) -> Path:
    """Where ImageNet's images are: the path behind --reg_images or folder:, else imagenet/ in the data's folder."""
    path = Path(spec.removeprefix("folder:"))
    folder = (Path(data_dir) if data_dir else DATA) / "imagenet" if spec == "imagenet" else path
    if not folder.is_dir():
        raise UserError(f"ImageNet's images are looked for in {folder}, which is no folder: give theirs with "
                        "--reg_images DIR (any folder of JPEG files, also in subfolders)", code="E-DATA-MISSING")
    return folder


def imagenet(folder: Path, count: int) -> Split:
    """uint8 (count,1,36,64), labels 0: the first `count` images by sorted path that are at least 256x144, grey."""
    paths: list[Path] = []
    small = 0
    for path in in_order(folder):
        if len(paths) == count:
            break
        width, height = opened(path, lambda image: image.size)
        large = height >= MIDDLE[0] and width >= MIDDLE[1]
        small += not large
        paths += [path] if large else []
    if len(paths) < count:
        raise UserError(f"--reg_image_num {count}: {folder} has {len(paths)} images of at least {MIDDLE[1]}x"
                        f"{MIDDLE[0]} pixels" + (f" ({small} smaller ones)" if small else "") +
                        "; give at most so many, or another folder with --reg_images", code="E-SUBSET")
    out = np.empty((count, 1, MIDDLE[0] // EVERY, MIDDLE[1] // EVERY), np.uint8)

    def decode(position: int) -> None:
        out[position, 0] = middle(opened(paths[position], lambda image: np.asarray(image.convert("L"))))

    in_parallel(decode, range(count), "decoding ImageNet")
    return Split(torch.from_numpy(out), torch.zeros(count, dtype=torch.int64))


def middle(pixels: np.ndarray) -> np.ndarray:
    """(H,W), at least 144x256 -> (36,64): every 4th pixel of the middle, from its first on."""
    top, left = (side // 2 - part // 2 for side, part in zip(pixels.shape, MIDDLE, strict=True))
    return pixels[top:top + MIDDLE[0]:EVERY, left:left + MIDDLE[1]:EVERY]


def in_order(folder: Path) -> Iterator[Path]:
    """The image files in and below a folder, by sorted path, level by level; hidden ones are left out."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted((entry for entry in listing if not entry.name.startswith(".")),
                             key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror or error}", code="E-READ") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from in_order(Path(entry.path))
        elif Path(entry.name).suffix.lower() in ENDINGS:
            yield Path(entry.path)
