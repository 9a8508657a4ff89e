"""The second stream of a training: a batch of image pairs, and how similar they are to be, beside each class batch.

Which pairs an epoch takes, and in which order, is a function of (seed, epoch): drawn without replacement, shuffled
anew each epoch and when used up; the last batch of a shuffle is dropped if it is not full.  They are drawn on the host
once an epoch, whatever the device; then nothing waits for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brainreg.method import PairBatch
from brainreg.network import Pair
from brainreg.settings import Settings
from brainreg.similarity import boosted, pairs_in_range, pixel_similarity
from common.data import Batches
from common.seeds import fold
from common.types import Batch, share_of

FEW = 1 << 16                  # so many numbers are shuffled whole at once


def distinct(count: int, total: int, generator: torch.Generator) -> Tensor:
    """int64 (count,) on the CPU: different numbers in 0..total-1, every ordered choice of them equally likely.

    Where count is small beside total it takes time and memory for count, not for total.
    """
    if not 0 <= count <= total:
        raise ValueError(f"{count} different numbers out of {total}")
    if total <= FEW or 2 * count > total:
        return torch.randperm(total, generator=generator)[:count]
    numbers = np.empty(0, np.int64)
    while True:
        # What was drawn before counts as drawn: a number's first appearance decides its place.
        more = torch.randint(total, (count + count // 4 + 64,), generator=generator).numpy()
        numbers = np.concatenate((numbers, more))
        numbers = numbers[np.sort(np.unique(numbers, return_index=True)[1])]
        if len(numbers) >= count:
            return torch.from_numpy(numbers[:count])


@dataclass(frozen=True, eq=False)
class PairBatches:
    """The class batches, each with `size` pairs in `extra`: a BatchSource for `common.fit.fit`.

    images      float32 (N,C,h,w) as fed, on the device of the training
    pairs       int64 (P,2), P >= size, on the CPU: the pairs that may be drawn
    similarity  float32 (N,N) on the CPU: S; threshold, boost: of the targets S^Th; boost None: the targets are S

    Of several processes each gets its share of the `size` pairs, as of the class batch.
    """

    classes: Batches
    images: Tensor
    pairs: Tensor
    similarity: Tensor
    size: int
    seed: int
    threshold: float = 0.0
    boost: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.size <= len(self.pairs):
            raise ValueError(f"batches of {self.size} of {len(self.pairs)} pairs")

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def images_per_epoch(self) -> int:
        """Class images of an epoch; those of the pairs do not count."""
        return self.classes.images_per_epoch

    @property
    def ranks(self) -> int:
        """How many processes share the batches."""
        return self.classes.ranks

    @property
    def flag(self) -> str:
        """See `Batches`."""
        return self.classes.flag

    def drawn(self, epoch: int) -> Tensor:
        """int64 (steps,size,2) on the CPU: the pairs of each step of `epoch`, those of all processes."""
        per_shuffle = len(self.pairs) // self.size
        parts: list[Tensor] = []
        for turn, done in enumerate(range(0, len(self), per_shuffle)):
            steps = min(per_shuffle, len(self) - done)
            generator = torch.Generator().manual_seed(fold(self.seed, "pairs", epoch, turn))
            parts.append(distinct(steps * self.size, len(self.pairs), generator))
        return self.pairs[torch.cat(parts)].view(len(self), self.size, 2)

    def targets(self, pairs: Tensor) -> Tensor:
        """float32 (...): how similar the pairs int64 (...,2) are to be."""
        similarity = self.similarity[pairs[..., 0], pairs[..., 1]]
        return similarity if self.boost is None else boosted(similarity, self.threshold, self.boost)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The class batches of `epoch` (0-based) from step `start` on; extra is a PairBatch on the device."""
        share = share_of(self.size, self.classes.rank, self.ranks)
        pairs = self.drawn(epoch)[:, share.start:share.stop]
        targets = self.targets(pairs).to(self.images.device)
        rows, columns = (part.to(self.images.device) for part in pairs.unbind(2))
        for step, batch in enumerate(self.classes.epoch(epoch, start), start):
            pair = Pair(self.images.index_select(0, rows[step]), self.images.index_select(0, columns[step]))
            yield batch._replace(extra=PairBatch(pair, targets[step], share if self.ranks > 1 else None))


def pair_batches(settings: Settings, classes: Batches, images: Tensor) -> PairBatches:
    """The stream of a regularised run; images (N,C,h,w) as fed, on the CPU, where similarities are computed, so that
    the device does not decide which pairs there are.  UserError where too few are in the range."""
    similarity = pixel_similarity(images)
    pairs = pairs_in_range(similarity, settings.reg_range, settings.reg_thresh, settings.reg_thresh_2,
                           boosted=settings.reg_boosting, at_least=settings.reg_batch_size)
    return PairBatches(classes, images.to(classes.device), pairs, similarity, settings.reg_batch_size, settings.seed,
                       settings.reg_thresh, settings.reg_boost_val_1 if settings.reg_boosting else None)
