"""What validations between epochs share: a split in batches, each with random numbers of its own, and means."""

from collections.abc import Iterator

import torch
from torch import Tensor

from common.data import Split
from common.seeds import fold
from common.types import StepContext


def in_batches(split: Split, size: int, seed: int, *keys: int | str) -> Iterator[tuple[Tensor, Tensor, StepContext]]:
    """Images uint8 (B,C,H,W), labels (B,) and a context, for each `size` images in order; the last B may be smaller.

    The context's random numbers depend on (seed, "validate", keys, number of the batch): the same in every epoch.
    """
    for number, start in enumerate(range(0, len(split), size)):
        generator = torch.Generator(split.device).manual_seed(fold(seed, "validate", *keys, number))
        stop = start + size
        yield split.images[start:stop], split.labels[start:stop], StepContext(generator=generator)


def mean(batches: list[Tensor], of_batches: bool = False) -> float:
    """The mean over the images of all batches [(B,)]; `of_batches`: the plain mean of the batches' means, which
    counts the images of a small last batch for more.  Waits for the device, once.
    """
    values = torch.stack([batch.mean() for batch in batches]) if of_batches else torch.cat(batches)
    return values.mean().item()
