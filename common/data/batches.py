"""Batches from a data set that stays on its device as uint8, augmented there in one vectorised step.

Nothing here waits for the device, and no sampler state is ever saved: the order of an epoch is a function of
(seed, epoch), the augmentation of a batch one of (seed, epoch, step).  mixed.py has batches with extra images.
"""

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from common.data import policies
from common.data.augmentation import CROP_MODES, CropMode, apply, augment, check_crop, check_rotation, draw
from common.data.cutmix import draw_mix, mix_images, mix_labels
from common.data.splits import Split, to_float
from common.errors import UserError
from common.seeds import fold
from common.types import Batch, share_of

__all__ = ["CROP_MODES", "Batches", "apply", "augment", "draw"]


@dataclass(frozen=True, eq=False)
class Batches:
    """The shuffled, augmented batches of a split, epoch after epoch.

    batch_size: images per step over all ranks; each of the `ranks` processes gets its share, as `share_of` cuts it.
    crop, crop_mode, flip, rotate: see `augment`.  views: how often each image is augmented, independently; x stacks
    the views one after another, (views*B,C,H,W).  channels_last: the memory format of x.
    policy: 0-based epoch -> whether its images go through AutoAugment and cutout (policies.py) after that.
    cutmix: (alpha, beta) of CutMix (cutmix.py) in every batch, over the `classes` classes; then y is float32
    (B,classes), the mixed labels, and extra int64 (B,), the images' own ones.  With one view only.
    drop_last: leave out the last batch if it is not full.
    steps: an epoch has exactly so many batches: a permutation is walked to its (short) end, then a fresh one, as
    often as it takes, or only as far.  None: one permutation, to its end.
    flag: what a user sets batch_size by, for messages.

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
    rotate: float = 0.0
    views: int = 1
    policy: Callable[[int], bool] | None = None
    cutmix: tuple[float, float] | None = None
    classes: int | None = None
    drop_last: bool = False
    steps: int | None = None
    rank: int = 0
    ranks: int = 1
    channels_last: bool = False
    flag: str = "--batch_size"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank {self.rank} of {self.ranks}")
        if self.batch_size < 1:
            raise UserError(f"batch size {self.batch_size}: give at least 1", code="E-BATCH-SIZE")
        if self.views < 1:
            raise UserError(f"{self.views} views of each image: give at least 1", code="E-BATCH-SIZE")
        if self.batch_size < self.ranks:
            raise UserError(f"a batch of {self.batch_size} cannot be shared by {self.ranks} processes: make the batch "
                            "larger, or start fewer processes", code="E-BATCH-SIZE")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"{self.steps} batches an epoch: give at least 1", code="E-BATCH-SIZE")
        check_crop(self.crop, self.crop_mode, self._image_size)
        check_rotation(self.rotate)
        if self.cutmix is not None:
            if self.views > 1 or self.classes is None:
                raise ValueError(f"CutMix needs the number of classes and one view, not {self.classes}, {self.views}")
            draw_mix(1, self._image_size, torch.Generator(), *self.cutmix)        # refuses what is no Beta's parameter
        if self._pass_steps == 0:
            raise UserError(f"no batch of {self.batch_size} can be made of {len(self.split)} images when the last one "
                            "is dropped: use a smaller batch size or more images", code="E-BATCH-SIZE")

    @property
    def _image_size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.split.images.shape[-2:]
        return height, width

    @property
    def _pass_images(self) -> int:
        """Images that one walk over a permutation uses, over all ranks."""
        whole = len(self.split) - len(self.split) % self.batch_size
        return whole if self.drop_last else len(self.split)

    @property
    def _pass_steps(self) -> int:
        return -(-self._pass_images // self.batch_size)

    @property
    def images_per_epoch(self) -> int:
        """Images that an epoch uses, over all ranks; views of one image count once, a further pass counts again."""
        passes, rest = divmod(len(self), self._pass_steps)
        return passes * self._pass_images + min(rest * self.batch_size, self._pass_images)

    def __len__(self) -> int:
        """Steps per epoch."""
        return self._pass_steps if self.steps is None else self.steps

    @property
    def device(self) -> torch.device:
        return self.split.device

    def order(self, epoch: int, turn: int = 0) -> Tensor:
        """int64 (N,): the permutation of the split's images in `epoch`; where it takes several, number `turn`."""
        generator = self._generator("order", epoch, *([turn] if turn else []))
        return torch.randperm(len(self.split), generator=generator, device=self.device)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (0-based) from step `start` on: x float32 (views*B,C,H,W) in [0,1], y int64 (B,), or
        with `cutmix` float32 (B,classes)."""
        turn, order = -1, None
        for step in range(start, len(self)):
            if step // self._pass_steps != turn:
                turn = step // self._pass_steps
                order = self.order(epoch, turn)
            yield self._batch(order, epoch, step)

    def _batch(self, order: Tensor, epoch: int, step: int) -> Batch:
        begin = step % self._pass_steps * self.batch_size
        size = min(self.batch_size, self._pass_images - begin)           # over all ranks
        share = share_of(size, self.rank, self.ranks)
        mine = slice(share.start, share.stop)
        # CutMix takes from any image of the batch, so that every rank makes all of it.
        made = mine if self.cutmix is None else slice(0, size)
        positions = order[begin + made.start:begin + made.stop]
        labels, own = self.split.labels.index_select(0, positions), None
        images = self._augmented(positions, made, size, epoch, step)
        if self.cutmix is not None:
            mix = draw_mix(size, self._image_size, self._host_generator("cutmix", epoch, step), *self.cutmix)
            images, own = mix_images(images, mix)[mine], labels[mine]
            labels = mix_labels(labels, mix, self.classes)[mine]
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return Batch(to_float(images), labels, own, share if self.ranks > 1 else None)

    def _augmented(self, positions: Tensor, made: slice, size: int, epoch: int, step: int) -> Tensor:
        """uint8 (views*M,C,H,W): the views of the images at `positions` (M,), rows `made` of a batch of `size`."""
        images = self.split.images.index_select(0, positions.repeat(self.views))
        if self.crop or self.flip or self.rotate:
            generator = self._generator("augment", epoch, step)
            draws = draw(self.views * size, generator, self.crop, self.flip, self.rotate)
            images = apply(images, draws.take(made.start, made.stop, self.views), self.crop, self.crop_mode)
        if self.policy is not None and self.policy(epoch):
            drawn = policies.draw(self.views * size, self._image_size, self._host_generator("policy", epoch, step))
            images = policies.apply(images, drawn.take(made.start, made.stop, self.views))
        return images

    def _generator(self, *keys: int | str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(fold(self.seed, *keys))

    def _host_generator(self, *keys: int | str) -> torch.Generator:
        """On the CPU, whatever the device, for draws that the host must know."""
        return torch.Generator().manual_seed(fold(self.seed, *keys))
