"""Batches from a data set that stays on its device as uint8, augmented there in one vectorised step.

Nothing here waits for the device, and no sampler state is ever saved: the order of an epoch is a function of
(seed, epoch), the augmentation of a batch one of (seed, epoch, step).
"""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from common.data.splits import Split, to_float
from common.errors import UserError
from common.seeds import fold
from common.types import Batch

CropMode = Literal["zero", "reflect"]
CROP_MODES = ("zero", "reflect")


class Draws(NamedTuple):
    """What was drawn for R images; None where it is not asked for."""

    top: Tensor | None         # int64 (R,), row of the padded image at which the crop starts, 0..2*crop
    left: Tensor | None        # int64 (R,), its column, 0..2*crop
    flip: Tensor | None        # bool (R,)

    def take(self, start: int, stop: int, views: int) -> "Draws":
        """Rows start..stop-1 of each of the `views` equal parts."""
        return Draws(*(part if part is None else part.view(views, -1)[:, start:stop].reshape(-1) for part in self))


def draw(rows: int, generator: torch.Generator, crop: int, flip: bool) -> Draws:
    """Independent draws per image, uniform over the (2*crop+1)^2 crops and the two directions, on the generator's
    device.  Always drawn in this order: top and left (if crop > 0), flip (if asked for)."""
    device = generator.device
    top = left = flips = None
    if crop:
        top, left = torch.randint(0, 2 * crop + 1, (2, rows), generator=generator, device=device)
    if flip:
        flips = torch.randint(0, 2, (rows,), generator=generator, device=device).bool()
    return Draws(top, left, flips)


def augment(images: Tensor, generator: torch.Generator, crop: int = 0, crop_mode: CropMode = "zero",
            flip: bool = False) -> Tensor:
    """uint8 (B,C,H,W) -> uint8 (B,C,H,W): each image padded by `crop` pixels on every side, cropped back to H x W at
    its own random place, then mirrored left-right with probability 1/2.

    crop_mode: "zero" pads black; "reflect" mirrors at the border pixel without repeating it, as numpy's "reflect".
    `generator` lives on the device of `images`.  Raises UserError for a crop that the image size does not allow.
    """
    check_crop(crop, crop_mode, images.shape[-2:])
    return apply(images, draw(len(images), generator, crop, flip), crop, crop_mode)


def check_crop(crop: int, crop_mode: str, size: tuple[int, ...]) -> None:
    """UserError unless images of `size` (H,W) can be padded by `crop` in this mode."""
    if crop_mode not in CROP_MODES:
        raise UserError(f"unknown crop mode {crop_mode!r}: choose from {', '.join(CROP_MODES)}")
    if crop < 0:
        raise UserError(f"crop {crop} is negative: give the padding in pixels, 0 for none")
    if crop_mode == "reflect" and crop >= min(size):
        raise UserError(f"reflect padding by {crop} pixels needs images larger than {crop} pixels, "
                        f"these are {size[0]}x{size[1]}: use a smaller crop or zero padding")


def apply(images: Tensor, draws: Draws, crop: int, crop_mode: CropMode) -> Tensor:
    """Crop, then flip uint8 (B,C,H,W) as `draws` says."""
    if draws.top is not None:
        images = _cropped(images, draws.top, draws.left, crop, crop_mode)
    if draws.flip is not None:
        # Choosing whole images among both directions: 4 times as fast as torch.where on a CPU, for it copies memory.
        rows = torch.arange(len(images), device=images.device)
        images = torch.cat((images, images.flip(3))).index_select(0, rows + len(images) * draws.flip)
    return images


def _cropped(images: Tensor, top: Tensor, left: Tensor, crop: int, crop_mode: CropMode) -> Tensor:
    """Only the batch is padded.  Every row of a crop is a run of W bytes of the padded batch: one gather of runs."""
    count, channels, height, width = images.shape
    padded = _padded(images, crop, crop_mode).contiguous()
    tall, wide = padded.shape[2:]
    device = images.device
    planes = torch.arange(count * channels, device=device).view(count, channels, 1)
    rows = top.view(-1, 1, 1) + torch.arange(height, device=device)                      # (B,1,H)
    starts = (planes * tall + rows) * wide + left.view(-1, 1, 1)                         # (B,C,H)
    # All runs of W consecutive bytes, as a view without a copy.
    runs = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
    return runs.index_select(0, starts.view(-1)).view(count, channels, height, width)


def _padded(images: Tensor, crop: int, crop_mode: CropMode) -> Tensor:
    if crop_mode == "zero":
        return F.pad(images, (crop, crop, crop, crop))
    for dim in (3, 2):             # torch's own reflection padding does not take uint8 on every device
        size = images.shape[dim]
        before = images.narrow(dim, 1, crop).flip(dim)
        after = images.narrow(dim, size - 1 - crop, crop).flip(dim)
        images = torch.cat((before, images, after), dim)
    return images


@dataclass(frozen=True, eq=False)
class Batches:
    """The shuffled, augmented batches of a split, epoch after epoch.

    batch_size: images per step over all ranks; each of the `ranks` processes gets batch_size/ranks of them.
    crop, crop_mode, flip: see `augment`.  views: how often each image is augmented, independently; x stacks the views
    one after another, (views*B,C,H,W).  channels_last: the memory format of x.
    drop_last: leave out the last batch if it is not full.  Otherwise it is kept; with several ranks it is cut to a
    multiple of them (at most ranks-1 images an epoch are left out, others in each epoch), for the ranks must have
    equal shares: then the mean over ranks of the batch means is the mean over the batch.

    Order and augmentation are drawn for the whole batch with generators on the split's device and sliced by rank: the
    ranks' shares, put together, are what a single process would see.  CPU and CUDA generators draw differently.
    Raises UserError for sizes that do not fit.
    """

    split: Split
    batch_size: int
    _: KW_ONLY
    seed: int
    crop: int = 0
    crop_mode: CropMode = "zero"
    flip: bool = False
    views: int = 1
    drop_last: bool = False
    rank: int = 0
    ranks: int = 1
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank {self.rank} of {self.ranks}")
        if self.batch_size < 1:
            raise UserError(f"batch size {self.batch_size}: give at least 1")
        if self.views < 1:
            raise UserError(f"{self.views} views of each image: give at least 1")
        if self.batch_size % self.ranks:
            raise UserError(f"a batch of {self.batch_size} cannot be shared evenly by {self.ranks} processes: "
                            f"make the batch size a multiple of {self.ranks}")
        check_crop(self.crop, self.crop_mode, self.split.images.shape[-2:])
        if len(self) == 0:
            why = "when the last one is dropped" if self.drop_last else f"for {self.ranks} processes"
            raise UserError(f"no batch of {self.batch_size} can be made of {len(self.split)} images {why}: "
                            "use a smaller batch size or more images")

    @property
    def images_per_epoch(self) -> int:
        """Images of the split that an epoch uses, over all ranks; views of one image count once."""
        whole = len(self.split) - len(self.split) % self.batch_size
        rest = 0 if self.drop_last else len(self.split) - whole
        return whole + rest - rest % self.ranks

    def __len__(self) -> int:
        """Steps per epoch."""
        return -(-self.images_per_epoch // self.batch_size)

    @property
    def device(self) -> torch.device:
        return self.split.device

    def order(self, epoch: int) -> Tensor:
        """int64 (N,): the permutation of the split's images in `epoch`."""
        generator = self._generator("order", epoch)
        return torch.randperm(len(self.split), generator=generator, device=self.device)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (0-based) from step `start` on: x float32 (views*B,C,H,W) in [0,1], y int64 (B,)."""
        order = self.order(epoch)
        for step in range(start, len(self)):
            yield self._batch(order, epoch, step)

    def _batch(self, order: Tensor, epoch: int, step: int) -> Batch:
        begin = step * self.batch_size
        size = min(self.batch_size, self.images_per_epoch - begin)       # over all ranks
        share = size // self.ranks
        mine = slice(self.rank * share, (self.rank + 1) * share)
        positions = order[begin + mine.start:begin + mine.stop]
        images = self.split.images.index_select(0, positions.repeat(self.views))
        if self.crop or self.flip:
            generator = self._generator("augment", epoch, step)
            draws = draw(self.views * size, generator, self.crop, self.flip)
            images = apply(images, draws.take(mine.start, mine.stop, self.views), self.crop, self.crop_mode)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return Batch(to_float(images), self.split.labels.index_select(0, positions))

    def _generator(self, *keys: int | str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(fold(self.seed, *keys))
