"""Shapes and small records that every layer shares.  Imports nothing of ours.

Shape letters: B batch, V views, C channels, H and W pixels, K classes.
Images are float32 in [0, 1]; normalisation, where a network has one, lives inside the network.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Share(NamedTuple):
    """Which images of a global batch of `size` a rank has: start to stop-1.  copies: how many ranks have the same."""

    start: int
    stop: int
    size: int
    copies: int = 1

    def weight(self, ranks: int) -> float:
        """What this rank's mean counts for, so that the plain mean over the ranks is that over the batch; 1 where all
        shares are equal."""
        return ranks * (self.stop - self.start) / (self.size * self.copies)


def share_of(size: int, rank: int, ranks: int) -> Share:
    """The share of a rank of a batch of `size` images: as equal as can be.  Of fewer images than ranks each rank has
    all, for no network passes an empty batch."""
    if size < ranks:
        return Share(0, size, size, copies=ranks)
    return Share(rank * size // ranks, (rank + 1) * size // ranks, size)


class Batch(NamedTuple):
    """x (V*B,C,H,W) float32 in [0,1], V views one after another; y (B,) int64 or (V*B,K) mixed labels."""

    x: Tensor
    y: Tensor
    extra: Any = None          # a second stream, such as image pairs
    share: Share | None = None            # of the global batch; None: one process, or equal shares


class LossOut(NamedTuple):
    """loss: scalar to minimise; logs: detached scalars, fetched from the device once an epoch."""

    loss: Tensor
    logs: dict[str, Tensor]


def local_mean(values: Tensor, share: Share | None = None) -> Tensor:
    """The mean over the batch where there is one process."""
    return values.mean()


def local_total(values: Tensor) -> Tensor:
    """The sum over all processes where there is one."""
    return values


def local_first(values: Tensor) -> Tensor:
    """(1,): the value of the first image where there is one process; (0,) of none."""
    return values[:1]


@dataclass(frozen=True)
class StepContext:
    """What a loss or an attack may know about the run.  Read-only, made anew every step.

    `generator` is seeded from (seed, step) and is the only randomness that a loss may use.  Draw with `uniform` and
    `normal`: they draw for the global batch and hand out this rank's share, so the number of ranks does not matter.
    `share` says which images of the global batch `like` stands for; None: ranks with equal shares.
    `attacking(model, training)` is a context manager that yields the network to attack: parameters frozen, in the
    mode asked for, on the fastest path that the engine trusts.
    `mean` is a differentiable mean over the *global* batch, for losses that are not linear in the batch mean.  A loss
    must be the same number on every rank: gradients are averaged over the ranks after the backward pass.  Values of
    another stream than the images (pairs) go with the `share` that they are: mean(values, share).
    `total` adds a tensor up over all ranks, without a gradient; `first` gives (1,), the first value of the global
    batch.  Every rank must call `mean`, `total` and `first` equally often, in the same order.
    `synchronised`: batch norms take the statistics of all ranks, so every rank must pass equally often in train mode.
    """

    generator: torch.Generator
    epoch: int = 0             # 0-based
    step: int = 0              # optimiser steps done since the start of the run
    steps_per_epoch: int = 1
    progress: float = 0.0      # epochs done, fractional
    lr: float = 0.0
    average: nn.Module | None = None
    mean: Callable[..., Tensor] = local_mean
    total: Callable[[Tensor], Tensor] = local_total
    first: Callable[[Tensor], Tensor] = local_first
    attacking: Callable[[nn.Module, bool], AbstractContextManager[nn.Module]] | None = None
    rank: int = 0
    ranks: int = 1
    share: Share | None = None
    synchronised: bool = False

    def rows(self, like: Tensor) -> int:
        """How many rows the global batch has of which `like` (B,...) is this rank's share."""
        return len(like) * self.ranks if self.share is None else self._views(like, self.share) * self.share.size

    def uniform(self, like: Tensor) -> Tensor:
        """U(0,1) of the shape and device of `like` (B,...), float32."""
        return self._share(like, torch.rand)

    def normal(self, like: Tensor) -> Tensor:
        """N(0,1) of the shape and device of `like` (B,...), float32."""
        return self._share(like, torch.randn)

    def _share(self, like: Tensor, draw: Callable[..., Tensor]) -> Tensor:
        rows = len(like)
        drawn = draw((self.rows(like), *like.shape[1:]), generator=self.generator, device=self.generator.device)
        if self.share is None:
            return drawn[self.rank * rows:(self.rank + 1) * rows].to(like.device)
        views = drawn.unflatten(0, (self._views(like, self.share), self.share.size))
        return views[:, self.share.start:self.share.stop].flatten(0, 1).to(like.device)

    @staticmethod
    def _views(like: Tensor, share: Share) -> int:
        """How many views of each image of the share the rows are, one after another."""
        views, rest = divmod(len(like), share.stop - share.start)
        if rest or not views:
            raise ValueError(f"{len(like)} rows are no views of the {share.stop - share.start} images of this rank")
        return views


class Objective(Protocol):
    """All that a paper hands to the trainer.  Stateless: it depends on (model, batch, ctx) alone.

    A class attribute `recordable = True` says that it passes `model` in the same way in every step and takes first
    derivatives only, in its parameters: then a GPU may record these passes (common.capture_training).
    """

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> LossOut: ...

    def modules(self) -> dict[str, nn.Module]:
        """Frozen networks that it uses, such as teachers, for the engine to place; usually none."""
        ...


class Hyper(NamedTuple):
    """What a schedule says of one step."""

    lr: float
    momentum: float = 0.9


Schedule = Callable[[float], Hyper]                                  # epochs done (fractional) -> hyper-parameters
Attack = Callable[[nn.Module, Tensor, Tensor, StepContext], Tensor]  # model, x, y, ctx -> x' of the shape of x
LossPerImage = Callable[[Tensor, Tensor], Tensor]                    # logits (B,K), y (B,) -> (B,)
