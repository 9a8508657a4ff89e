"""CutMix: a box of each image is taken from another image of the batch, and the labels are mixed by pixels.

Source: Yun et al. 2019 (arXiv:1905.04899), in the form of ReBAT and RPAT: one box and one order per batch, and weights
from the box as it is after it was cut off at the borders.
"""

from math import sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.data.policies import on_device
from common.errors import UserError


class Mix(NamedTuple):
    """What was drawn for a batch of R images of H x W pixels; rows top..bottom-1, columns left..right-1 are taken."""

    top: int
    bottom: int
    left: int
    right: int
    partner: Tensor            # int64 (R,) on the CPU, a permutation: whose box each image gets
    own: float                 # the share of pixels, and of the label, that stays the image's own


def draw_mix(rows: int, size: tuple[int, int], generator: torch.Generator, alpha: float = 1.0,
             beta: float = 1.0) -> Mix:
    """lam ~ Beta(alpha, beta), a box with int(side*sqrt(1-lam))//2 pixels to each side of a uniform centre, an order.

    size: (H,W); `generator`: a CPU generator.  Raises UserError unless alpha and beta are positive.
    """
    if not (alpha > 0 and beta > 0):
        raise UserError(f"CutMix draws from Beta(alpha, beta), which needs positive numbers, not {alpha} and {beta}",
                        code="E-AUGMENT")
    # Torch has no public Beta that takes a generator, so it seeds numpy's.
    seed = torch.randint(0, 2 ** 63 - 1, (1,), generator=generator)
    share = sqrt(1 - np.random.default_rng(int(seed)).beta(alpha, beta))
    (top, bottom), (left, right) = (_span(side, share, generator) for side in size)
    partner = torch.randperm(rows, generator=generator)
    return Mix(top, bottom, left, right, partner, 1 - (bottom - top) * (right - left) / (size[0] * size[1]))


def _span(side: int, share: float, generator: torch.Generator) -> tuple[int, int]:
    centre = int(torch.randint(0, side, (1,), generator=generator))
    reach = int(side * share) // 2
    return max(0, centre - reach), min(side, centre + reach)


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """(R,C,H,W) of any type -> the same shape, with the box of each image's partner in it."""
    box = images[:, :, mix.top:mix.bottom, mix.left:mix.right]
    mixed = images.clone()
    mixed[:, :, mix.top:mix.bottom, mix.left:mix.right] = box.index_select(0, on_device(mix.partner, images.device))
    return mixed


def mix_labels(labels: Tensor, mix: Mix, classes: int) -> Tensor:
    """int64 (R,) -> float32 (R,classes): own share on the image's label, the rest on its partner's; rows sum to 1.

    Cross-entropy with these equals the two cross-entropies weighted by the shares.
    """
    own = (labels.unsqueeze(1) == torch.arange(classes, device=labels.device)).float()
    return mix.own * own + (1 - mix.own) * own.index_select(0, on_device(mix.partner, labels.device))


def cutmix(images: Tensor, labels: Tensor, generator: torch.Generator, classes: int, alpha: float = 1.0,
           beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Images (R,C,H,W) and labels int64 (R,) -> mixed images and labels float32 (R,classes), on the same device."""
    mix = draw_mix(len(images), tuple(images.shape[-2:]), generator, alpha, beta)
    return mix_images(images, mix), mix_labels(labels, mix, classes)
