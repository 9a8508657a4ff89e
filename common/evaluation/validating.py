"""What validations between epochs share: a split in batches, each with random numbers of its own, and means.

Several processes (common.group) take the batches in turn, which is sooner done than by rank 0 alone; the numbers of all
batches then come together in their order, so that means are those of one process to the last bit, on every rank.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import TypeVar

import torch
from torch import Tensor

from common import group
from common.data import Split
from common.seeds import fold
from common.types import StepContext

T = TypeVar("T", Tensor, tuple[Tensor, ...])


def in_batches(split: Split, size: int, seed: int, *keys: int | str) -> Iterator[tuple[Tensor, Tensor, StepContext]]:
    """Images uint8 (B,C,H,W), labels (B,) and a context, for each `size` images in order; the last B may be smaller.
    Of several processes each gets the batches that are its own.

    The context's random numbers depend on (seed, "validate", keys, number of the batch): the same in every epoch.
    """
    for number, start in enumerate(range(0, len(split), size)):
        if not mine(number):
            continue
        generator = torch.Generator(split.device).manual_seed(fold(seed, "validate", *keys, number))
        stop = start + size
        yield split.images[start:stop], split.labels[start:stop], StepContext(generator=generator)


def mine(number: int) -> bool:
    """Whether batch `number` (from 0) is this process's."""
    crew = group.current()
    return number % crew.ranks == crew.rank


def everyones(batches: list[T]) -> list[T]:
    """What was found in the batches of all processes (tensors, or named tuples of them), in the batches' order."""
    crew = group.current()
    if crew.ranks == 1:
        return batches
    found = crew.gather([batch.cpu() if isinstance(batch, Tensor) else type(batch)(*(part.cpu() for part in batch))
                         for batch in batches])
    return [batch for turn in zip_longest(*found) for batch in turn if batch is not None]


def mean(batches: list[Tensor], of_batches: bool = False) -> float:
    """The mean over the images of all batches [(B,)], those of other processes too; `of_batches`: the plain mean of
    the batches' means, which counts the images of a small last batch for more.  Waits for the device, once.
    """
    batches = everyones(batches)
    values = torch.stack([batch.mean() for batch in batches]) if of_batches else torch.cat(batches)
    return values.mean().item()
