"""AutoAugment and cutout on batches of uint8 images: an own sub-policy per image, on the images' device.

Source: Cubuk et al. 2019 (arXiv:1805.09501), the 25 sub-policies of CIFAR-10; DeVries and Taylor 2017
(arXiv:1708.04552).  The operations are those of RPAT's released code: see `magnitude`.

What is drawn decides which image goes through which operation, so it is drawn on the CPU: group sizes are then known
without a wait for the device, and the draws are the same on every device.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from common.data import transforms as t
from common.errors import UserError

# Two operations one after the other, each (name, probability, level 0..9; None: has no strength).
SUB_POLICIES = (
    (("invert", 0.1, None), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, None), ("equalize", 0.9, None)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("colour", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, None), ("equalize", 0.5, None)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("colour", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, None), ("autocontrast", 0.4, None)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("colour", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, None)),
    (("equalize", 0.2, None), ("autocontrast", 0.6, None)),
    (("equalize", 0.2, None), ("equalize", 0.6, None)),
    (("colour", 0.9, 9), ("equalize", 0.6, None)),
    (("autocontrast", 0.8, None), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("colour", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, None)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, None), ("solarize", 0.8, 3)),
    (("equalize", 0.8, None), ("invert", 0.1, None)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, None)),
)
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "invert": t.invert, "autocontrast": t.autocontrast, "equalize": t.equalize}
GRADED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "solarize": t.solarize, "posterize": t.posterize, "brightness": t.brightness, "colour": t.colour,
    "contrast": t.contrast, "sharpness": t.sharpness, "translate_x": t.translate_x, "translate_y": t.translate_y,
    "rotate": t.rotate, "shear_y": t.shear_y}
OPERATIONS = (*PLAIN, *GRADED)
ENHANCING = ("brightness", "colour", "contrast", "sharpness")
SIGNED = ("shear_y", "translate_x", "translate_y")
AUGMENT_TYPES = ("base", "autoaug", "autoaug_sche")


def magnitude(name: str, level: int | None, sign: int, height: int, width: int) -> float:
    """The strength of an operation at a level 0..9 for images of height x width; sign is 1 or -1.

    Rotation, solarize and posterize know no sign: an image is always turned counterclockwise.
    """
    if level is None:
        return 0.0
    share = level / 9
    if name in ENHANCING:
        return 1 + sign * 0.9 * share
    strength = {"shear_y": 0.3 * share, "translate_x": 150 / 331 * share * width,
                "translate_y": 150 / 331 * share * height, "rotate": 30 * share, "solarize": 256 - 256 * share,
                "posterize": float(round(8 - 4 * share))}[name]
    return sign * strength if name in SIGNED else strength


class Draws(NamedTuple):
    """What was drawn for R images, on the CPU."""

    policy: Tensor             # int64 (R,), 0..24
    chance: Tensor             # float32 (R,2), U(0,1): an operation is done where this is below its probability
    sign: Tensor               # int64 (R,2), 0 for -1 or 1 for 1
    row: Tensor                # int64 (R,), the row of the cutout's centre, 0..H-1
    column: Tensor             # int64 (R,), its column, 0..W-1

    def take(self, start: int, stop: int, views: int = 1) -> "Draws":
        """Rows start..stop-1 of each of the `views` equal parts."""
        return Draws(*(part.unflatten(0, (views, -1))[:, start:stop].flatten(0, 1) for part in self))


def draw(rows: int, size: tuple[int, int], generator: torch.Generator) -> Draws:
    """Independent draws for `rows` images of `size` (H,W), all uniform, on a CPU generator; always in this order."""
    policy = torch.randint(0, len(SUB_POLICIES), (rows,), generator=generator)
    chance = torch.rand(rows, 2, generator=generator)
    sign = torch.randint(0, 2, (rows, 2), generator=generator)
    row, column = (torch.randint(0, side, (rows,), generator=generator) for side in size)
    return Draws(policy, chance, sign, row, column)


def apply(images: Tensor, draws: Draws) -> Tensor:
    """uint8 (R,C,H,W) -> uint8 (R,C,H,W): the drawn sub-policies, then the cutout.  Crop and flip come before."""
    return cutout(apply_policy(images, draws), draws.row, draws.column)


def autoaugment(images: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 (R,C,H,W) with C 1 or 3 -> uint8 (R,C,H,W): a random sub-policy and a cutout for each image.

    `generator` is a CPU generator, wherever the images are.  Raises UserError for another number of channels.
    """
    return apply(images, draw(len(images), tuple(images.shape[-2:]), generator))


def apply_policy(images: Tensor, draws: Draws) -> Tensor:
    """uint8 (R,C,H,W) -> uint8 (R,C,H,W): the first and then the second operation of each image's sub-policy."""
    if images.shape[1] not in (1, 3):
        raise UserError(f"AutoAugment works on images of 1 or 3 channels, these have {images.shape[1]}: train with the "
                        "base augmentation", code="E-AUGMENT")
    which, below, strengths = _tables(*images.shape[-2:])
    done = draws.chance < below[draws.policy]                                            # (R,2)
    operation = torch.where(done, which[draws.policy], len(OPERATIONS))
    stage = torch.arange(2).expand_as(operation)
    strength = strengths[draws.policy.unsqueeze(1), stage, draws.sign]
    # Per stage the images in the order of their operations, those without one last.
    order = operation.argsort(dim=0, stable=True)
    sizes = [torch.bincount(column, minlength=len(OPERATIONS) + 1).tolist()[:-1] for column in operation.unbind(1)]
    order_there, strength_there = (on_device(part, images.device) for part in (order, strength.gather(0, order)))
    for number in range(2):
        images = _grouped(images, order_there[:, number], strength_there[:, number], sizes[number])
    return images


def _grouped(images: Tensor, order: Tensor, strength: Tensor, sizes: list[int]) -> Tensor:
    """Each operation on its group: the first sizes[0] images of `order`, the next sizes[1] and so on."""
    total = sum(sizes)
    if total == 0:
        return images
    chosen = order[:total]
    done, begin = [], 0
    groups = images.index_select(0, chosen)
    for name, size in zip(OPERATIONS, sizes, strict=True):
        part = slice(begin, begin + size)
        if size:
            done.append(PLAIN[name](groups[part]) if name in PLAIN else GRADED[name](groups[part], strength[part]))
        begin += size
    return images.index_copy(0, chosen, torch.cat(done))


@lru_cache(maxsize=8)
def _tables(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Per sub-policy and stage: number of the operation (25,2), probability (25,2), strength by sign (25,2,2)."""
    which = torch.tensor([[OPERATIONS.index(name) for name, _, _ in pair] for pair in SUB_POLICIES])
    below = torch.tensor([[share for _, share, _ in pair] for pair in SUB_POLICIES])
    strengths = torch.tensor([[[magnitude(name, level, sign, height, width) for sign in (-1, 1)]
                               for name, _, level in pair] for pair in SUB_POLICIES], dtype=torch.float64)
    return which, below, strengths


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`, without a wait: copies from pinned memory go on behind what the device does."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def cutout(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Zeros in a square of half the (shorter) side about each image's centre pixel, cut off at the borders.

    images (R,C,H,W); row, column int64 (R,), the centre: the square spans row - s/4 .. row + s/4 - 1 for the side s.
    """
    height, width = images.shape[2:]
    reach = min(height, width) // 2 // 2
    centre = on_device(torch.stack((row, column)), images.device).view(2, -1, 1, 1, 1)
    rows = torch.arange(height, device=images.device).view(1, 1, -1, 1) - centre[0]
    columns = torch.arange(width, device=images.device) - centre[1]
    hole = (rows >= -reach) & (rows < reach) & (columns >= -reach) & (columns < reach)   # (R,1,H,W)
    return images.masked_fill(hole, 0)


def uses_policy(augment_type: str, epoch: int, epochs: int) -> bool:
    """Whether the images of `epoch` (0-based, of `epochs`) go through sub-policy and cutout after crop and flip.

    RPAT's --augment_type: base never, autoaug always, autoaug_sche in the second half (epoch + 1 > epochs/2).
    """
    if augment_type not in AUGMENT_TYPES:
        raise UserError(f"unknown augmentation {augment_type!r}: choose one of {', '.join(AUGMENT_TYPES)}",
                        code="E-AUGMENT")
    return augment_type == "autoaug" or (augment_type == "autoaug_sche" and 2 * (epoch + 1) > epochs)
