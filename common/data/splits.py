"""Images and labels in memory: a Split is one part of a data set, a DataSet is its training and test part.

Shape letters: N images, C channels (1 or 3), H and W pixels.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.seeds import fold

ORDER = 13                     # DyART's seed


def to_float(images: Tensor) -> Tensor:
    """uint8 (N,C,H,W) -> float32 of the same shape, device and memory format in [0,1]: exactly the quotient x/255."""
    # A divisor on the device: for one that is a number, CUDA multiplies by the rounded 1/255, which is not x/255.
    return images / torch.full((), 255.0, device=images.device)


@dataclass(frozen=True, eq=False)
class Split:
    """images: uint8 (N,C,H,W), contiguous; labels: int64 (N,); both on one device.

    `note` says in words which part of the original split this is ("first 5000 of 50000"); empty for all of it.
    """

    images: Tensor
    labels: Tensor
    note: str = ""

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images are uint8 (N,C,H,W), not {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels are int64 ({len(self.images)},), not {self.labels.dtype} "
                             f"{tuple(self.labels.shape)}")
        if self.labels.device != self.images.device:
            raise ValueError(f"images on {self.images.device} but labels on {self.labels.device}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.images.device

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over "DTYPE SHAPE\\n" and the bytes in C order of the images (NCHW), then of the labels.

        Labels count as little-endian int64.  Computed once; a split on a device is copied to the CPU for it.
        """
        digest = hashlib.sha256()
        for tensor, dtype in ((self.images, "u1"), (self.labels, "<i8")):
            array = tensor.cpu().contiguous().numpy().astype(dtype, copy=False)
            digest.update(f"{dtype} {array.shape}\n".encode())
            digest.update(memoryview(array).cast("B") if array.size else b"")
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "Split":
        """The same split on `device`; the fingerprint is taken along, not computed again."""
        if torch.device(device) == self.device:
            return self
        moved = replace(self, images=self.images.to(device), labels=self.labels.to(device))
        moved.__dict__["fingerprint"] = self.fingerprint      # where cached_property keeps it
        return moved

    def subset(self, which: int | Tensor) -> "Split":
        """The first `which` images, or those at the positions `which` (integers (M,), in that order, or bool (N,)).

        Raises UserError for a number outside 1..N, positions outside 0..N-1, or no position at all.
        """
        if isinstance(which, int):
            if not 1 <= which <= len(self):
                raise UserError(f"cannot take the first {which} images of a split of {len(self)}: "
                                f"give a number from 1 to {len(self)}", code="E-SUBSET")
            if which == len(self):
                return self
            return Split(self.images[:which], self.labels[:which], self._part(f"first {which} of {len(self)}"))
        positions = self._positions(which)
        return self._at(positions, f"{len(positions)} chosen of {len(self)}")

    def float_images(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Images start..stop-1 as float32 (M,C,H,W) in [0,1], exactly x/255."""
        return to_float(self.images[start:stop])

    def _at(self, positions: Tensor, note: str) -> "Split":
        positions = positions.to(self.device)
        return Split(self.images.index_select(0, positions), self.labels.index_select(0, positions), self._part(note))

    def _part(self, note: str) -> str:
        return f"{note} ({self.note})" if self.note else note

    def _positions(self, which: Tensor) -> Tensor:
        """`which` as int64 (M,) positions, checked."""
        which = torch.as_tensor(which)
        if which.dtype == torch.bool:
            if which.shape != self.labels.shape:
                raise UserError(f"a mask of shape {tuple(which.shape)} does not fit a split of {len(self)} images",
                                code="E-SUBSET")
            which = which.nonzero().flatten()
        if which.ndim != 1 or which.is_floating_point() or which.is_complex():
            raise UserError(f"positions are a list of integers, not {which.dtype} of shape {tuple(which.shape)}",
                            code="E-SUBSET")
        if len(which) == 0:
            raise UserError(f"no image chosen of a split of {len(self)}", code="E-SUBSET")
        low, high = int(which.min()), int(which.max())
        if low < 0 or high >= len(self):
            raise UserError(f"position {low if low < 0 else high} is outside the split of {len(self)} images: "
                            f"positions run from 0 to {len(self) - 1}", code="E-SUBSET")
        return which.to(torch.int64)


def fixed_order(count: int, seed: int = ORDER) -> np.ndarray:
    """int64 (count,): the permutation under which images stand that lie in folders of their classes, so that the first
    N are a sample of all of them; drawn by numpy's legacy generator of `seed`.

    Of Tiny-ImageNet's training images it is DyART's: its first 90,000 train, its last 10,000 validate.
    """
    return np.random.RandomState(seed).permutation(count).astype(np.int64)


def in_fixed_order(images: np.ndarray, labels: list[int]) -> Split:
    """A split of uint8 images (N,C,H,W) and their labels, in `fixed_order`."""
    order = fixed_order(len(images))
    return Split(torch.from_numpy(images[order]), torch.tensor(labels)[torch.from_numpy(order)])


@dataclass(frozen=True, eq=False)
class DataSet:
    """A named pair of splits with images of one shape and labels in 0..classes-1.

    `source` says in words where the arrays come from; it names no folder of the machine, for it goes into records.
    """

    name: str
    train: Split
    test: Split
    classes: int
    class_names: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise ValueError(f"training images are {tuple(self.train.images.shape[1:])}, "
                             f"test images {tuple(self.test.images.shape[1:])}")
        if len(self.class_names) != self.classes:
            raise ValueError(f"{len(self.class_names)} class names for {self.classes} classes")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> "DataSet":
        """Both splits on `device`."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def take(self, train: int | None = None, test: int | None = None) -> "DataSet":
        """The first `train` training and the first `test` test images; None takes all.  UserError if too many."""
        return replace(self, train=self.train if train is None else self.train.subset(train),
                       test=self.test if test is None else self.test.subset(test))

    def describe(self) -> dict[str, Any]:
        """What a record says of the data; JSON-able."""
        parts = [f"{name}: {split.note}" for name, split in (("train", self.train), ("test", self.test)) if split.note]
        return {"name": self.name, "source": "; ".join([self.source, *parts]),
                "train_fingerprint": self.train.fingerprint, "test_fingerprint": self.test.fingerprint,
                "n_train": len(self.train), "n_test": len(self.test), "classes": self.classes,
                "image_shape": list(self.image_shape)}


def hold_out(split: Split, *, size: int | None = None, indices: Tensor | list[int] | None = None,
             seed: int = 0) -> tuple[Split, Split]:
    """Cut `split` into (rest, held) without a common image.  Give either `size` or `indices`.

    size: how many images to hold, 1..N-1, drawn from (seed, "hold-out") on the CPU, so that the device does not
    matter; `held` is in the order of `split`.  indices: the positions to hold, distinct, in that order.
    `rest` is always in the order of `split`.  Raises UserError if either part would be empty, or positions repeat.
    """
    if (size is None) == (indices is None):
        raise ValueError("hold_out takes either size or indices")
    count = len(split)
    if size is not None:
        if not 1 <= size < count:
            raise UserError(f"cannot hold out {size} of {count} images: give a number from 1 to {count - 1}",
                            code="E-SUBSET")
        generator = torch.Generator().manual_seed(fold(seed, "hold-out"))
        held = torch.randperm(count, generator=generator)[:size].sort().values
        how = f"seed {seed}"
    else:
        held = split._positions(torch.as_tensor(indices).cpu())
        if len(held.unique()) < len(held):
            values, counts = held.unique(return_counts=True)
            raise UserError(f"position {int(values[counts > 1][0])} is held out more than once: name each image once",
                            code="E-SUBSET")
        if len(held) == count:
            raise UserError(f"cannot hold out all {count} images: nothing would be left to train on", code="E-SUBSET")
        how = "given positions"
    kept = torch.ones(count, dtype=torch.bool)
    kept[held] = False
    rest = kept.nonzero().flatten()
    return (split._at(rest, f"{len(rest)} of {count}, {len(held)} held out by {how}"),
            split._at(held, f"{len(held)} of {count}, held out by {how}"))
