"""Batches of training images that stay on the device and extra images that stay on disk, mixed as DyART mixes them.

Everything drawn is a function of (seed, epoch, step), so that a resumed run and any number of processes see the same
batches.  Extra images are gathered by a thread, ahead of the step that uses them.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from common.data.augmentation import CropMode, apply, check_crop, check_rotation, draw
from common.data.ddpm import ExtraImages
from common.data.splits import Split, to_float
from common.errors import UserError
from common.seeds import fold
from common.types import Batch, Share, share_of

AHEAD = 3                      # batches gathered before they are asked for
T = TypeVar("T")


class Gathered(NamedTuple):
    """One process's share of a batch on the host: R images, E of them extra."""

    numbers: Tensor            # int64: R-E positions in the split, R places, E labels, one after another
    images: Tensor             # uint8 (E,H,W,C)
    share: Share               # of the whole batch


@dataclass(frozen=True, eq=False)
class MixedBatches:
    """The shuffled, augmented batches of `split` and `extra`, epoch after epoch.

    Of the batch_size images of a step (over all ranks) int(unsup_fraction * batch_size) are extra images, drawn with
    replacement; the others come from a permutation of `split`, which is walked to its end, then a fresh one; a short
    rest of it is filled up with extra images, as the released sampler does.  unsup_fraction < 0: one permutation of
    both instead.  steps: batches an epoch; None: one walk.  crop, crop_mode, flip, rotate: see `augment`; they treat
    all images alike.  rank, ranks, channels_last: see `Batches`.

    What a batch consists of is drawn on the CPU and is the same on every device.  Raises UserError for sizes and
    fractions that do not fit.
    """

    split: Split
    extra: ExtraImages
    batch_size: int
    _: KW_ONLY
    seed: int
    unsup_fraction: float = 0.7
    steps: int | None = None
    crop: int = 0
    crop_mode: CropMode = "zero"
    flip: bool = False
    rotate: float = 0.0
    rank: int = 0
    ranks: int = 1
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank {self.rank} of {self.ranks}")
        if self.extra.image_shape != tuple(self.split.images.shape[1:]):
            raise ValueError(f"extra images are {self.extra.image_shape}, others {tuple(self.split.images.shape[1:])}")
        if self.batch_size < self.ranks:
            raise UserError(f"batch size {self.batch_size}: give at least {self.ranks}, an image for each process",
                            code="E-BATCH-SIZE")
        if not self.unsup_fraction < 1:
            raise UserError(f"an extra-data fraction of {self.unsup_fraction} leaves no room for training images: give "
                            "--unsup-fraction below 1 (negative: one permutation of both)", code="E-BATCH-SIZE")
        if self.unsup_fraction > 0 and self.extra_images == 0:
            raise UserError(f"an extra-data fraction of {self.unsup_fraction} gives no extra image in a batch of "
                            f"{self.batch_size}: raise one of both, or leave the extra data out", code="E-BATCH-SIZE")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"{self.steps} batches an epoch: give at least 1", code="E-BATCH-SIZE")
        check_crop(self.crop, self.crop_mode, self.split.images.shape[-2:])
        check_rotation(self.rotate)

    @property
    def extra_images(self) -> int:
        """Extra images in a full batch; 0 where one permutation of both decides."""
        return int(self.unsup_fraction * self.batch_size) if self.unsup_fraction > 0 else 0

    @property
    def _pool(self) -> int:
        """How many images a permutation goes over: the split's, then (unsup_fraction < 0) the extra ones."""
        return len(self.split) + (len(self.extra) if self.unsup_fraction < 0 else 0)

    @property
    def _stride(self) -> int:
        """Images of the permutation in a full batch."""
        return self.batch_size - self.extra_images

    @property
    def _pass_steps(self) -> int:
        return -(-self._pool // self._stride)

    @property
    def images_per_epoch(self) -> int:
        """Images that an epoch uses, over all ranks, extra ones included."""
        if self.extra_images:
            return len(self) * self.batch_size
        passes, rest = divmod(len(self), self._pass_steps)
        return passes * self._pool + min(rest * self._stride, self._pool)

    def __len__(self) -> int:
        """Steps per epoch."""
        return self._pass_steps if self.steps is None else self.steps

    @property
    def device(self) -> torch.device:
        return self.split.device

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (0-based) from step `start` on: x float32 (B,C,H,W) in [0,1], y int64 (B,).  UserError
        at its beginning or its end where a file of extra images has changed: nothing of such an epoch is to be kept."""
        self.extra.check_unchanged()
        for step, gathered in enumerate(ahead(self._gathered(epoch, start), AHEAD), start=start):
            yield self._batch(gathered, epoch, step)
        self.extra.check_unchanged()

    def members(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """What the batches from step `start` on consist of, over all ranks: int64 (B,), in order.  Numbers below
        len(split) are positions in it; the others, less len(split), are numbers of extra images."""
        turn, order = -1, np.empty(0, np.int64)
        for step in range(start, len(self)):
            if step // self._pass_steps != turn:
                turn = step // self._pass_steps
                order = self._order(epoch, turn)
            begin = step % self._pass_steps * self._stride
            taken = order[begin:min(begin + self._stride, self._pool)]
            if self.extra_images:
                generator = torch.Generator().manual_seed(fold(self.seed, "mix", epoch, step))
                drawn = torch.randint(len(self.extra), (self.batch_size - len(taken),), generator=generator).numpy()
                shuffle = torch.randperm(self.batch_size, generator=generator).numpy()
                taken = np.concatenate((taken, drawn + len(self.split)))[shuffle]
            yield taken

    def _order(self, epoch: int, turn: int) -> np.ndarray:
        """As much of permutation number `turn` of an epoch as the epoch uses."""
        generator = torch.Generator().manual_seed(fold(self.seed, "order", epoch, turn))
        left = (len(self) - turn * self._pass_steps) * self._stride
        return beginning_of_permutation(self._pool, min(left, self._pool), generator)

    def _gathered(self, epoch: int, start: int) -> Iterator[Gathered]:
        height, width = self.split.images.shape[2:]
        pinned = self.device.type == "cuda"
        for members in self.members(epoch, start):
            share = share_of(len(members), self.rank, self.ranks)
            mine, own = slice(share.start, share.stop), share.stop - share.start
            is_extra = members[mine] >= len(self.split)
            count = int(is_extra.sum())
            numbers = torch.empty(2 * own, dtype=torch.int64, pin_memory=pinned)
            images = torch.empty((count, height, width, self.split.images.shape[1]), dtype=torch.uint8,
                                 pin_memory=pinned)
            labels = self.extra.gather(members[mine][is_extra] - len(self.split), images.numpy())
            # Row r of the batch is row places[r] of the split's images, then the extra ones.
            places = np.where(is_extra, own - count + np.cumsum(is_extra) - 1, np.cumsum(~is_extra) - 1)
            numbers.numpy()[:] = np.concatenate((members[mine][~is_extra], places, labels))
            yield Gathered(numbers, images, share)

    def _batch(self, gathered: Gathered, epoch: int, step: int) -> Batch:
        extra, share = len(gathered.images), gathered.share
        own = share.stop - share.start
        numbers = gathered.numbers.to(self.device, non_blocking=True)
        positions, places, labels = numbers.split((own - extra, own, extra))
        others = gathered.images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        images = torch.cat((self.split.images.index_select(0, positions), others)).index_select(0, places)
        labels = torch.cat((self.split.labels.index_select(0, positions), labels)).index_select(0, places)
        if self.crop or self.flip or self.rotate:
            generator = torch.Generator(self.device).manual_seed(fold(self.seed, "augment", epoch, step))
            draws = draw(share.size, generator, self.crop, self.flip, self.rotate)
            images = apply(images, draws.take(share.start, share.stop, 1), self.crop, self.crop_mode)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return Batch(to_float(images), labels, share=share if self.ranks > 1 else None)


def beginning_of_permutation(count: int, wanted: int, generator: torch.Generator) -> np.ndarray:
    """int64 (wanted,): the first numbers of a random permutation of 0..count-1, in time and memory of their number
    where they are few: distinct ones in the order in which they are first drawn."""
    if 4 * wanted > count:
        return torch.randperm(count, generator=generator)[:wanted].numpy()
    drawn = np.empty(0, np.int64)
    while True:
        drawn = np.concatenate((drawn, torch.randint(count, (2 * wanted,), generator=generator).numpy()))
        first = np.sort(np.unique(drawn, return_index=True)[1])
        if len(first) >= wanted:
            return drawn[first[:wanted]]


def ahead(source: Iterator[T], depth: int) -> Iterator[T]:
    """The items of `source` (none of them None), made by a thread up to `depth` items early.  What it raises is raised
    where its item is asked for."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        pending = deque(pool.submit(next, source, None) for _ in range(depth))
        try:
            while (item := pending.popleft().result()) is not None:
                pending.append(pool.submit(next, source, None))
                yield item
        finally:
            for future in pending:
                future.cancel()
