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


class Batch(NamedTuple):
    """x (V*B,C,H,W) float32 in [0,1], V views one after another; y (B,) int64 or (V*B,K) mixed labels."""

    x: Tensor
    y: Tensor
    extra: Any = None          # a second stream, such as image pairs


class LossOut(NamedTuple):
    """loss: scalar to minimise; logs: detached scalars, fetched from the device once an epoch."""

    loss: Tensor
    logs: dict[str, Tensor]


def local_mean(values: Tensor) -> Tensor:
    """The mean over the batch where there is one process."""
    return values.mean()


@dataclass(frozen=True)
class StepContext:
    """What a loss or an attack may know about the run.  Read-only, made anew every step.

    `generator` is seeded from (seed, step) and is the only randomness that a loss may use.  Draw with `uniform` and
    `normal`: they draw for the global batch and hand out this rank's share, so the number of ranks does not matter.
    `attacking(model, training)` is a context manager that yields the network to attack: parameters frozen, in the
    mode asked for, on the fastest path that the engine trusts.
    `mean` is a differentiable mean over the *global* batch, for losses that are not linear in the batch mean.
    """

    generator: torch.Generator
    epoch: int = 0             # 0-based
    step: int = 0              # optimiser steps done since the start of the run
    steps_per_epoch: int = 1
    progress: float = 0.0      # epochs done, fractional
    lr: float = 0.0
    average: nn.Module | None = None
    mean: Callable[[Tensor], Tensor] = local_mean
    attacking: Callable[[nn.Module, bool], AbstractContextManager[nn.Module]] | None = None
    rank: int = 0
    ranks: int = 1

    def uniform(self, like: Tensor) -> Tensor:
        """U(0,1) of the shape and device of `like` (B,...), float32."""
        return self._share(like, torch.rand)

    def normal(self, like: Tensor) -> Tensor:
        """N(0,1) of the shape and device of `like` (B,...), float32."""
        return self._share(like, torch.randn)

    def _share(self, like: Tensor, draw: Callable[..., Tensor]) -> Tensor:
        rows = len(like)
        drawn = draw((rows * self.ranks, *like.shape[1:]), generator=self.generator, device=self.generator.device)
        return drawn[self.rank * rows:(self.rank + 1) * rows].to(like.device)


class Objective(Protocol):
    """All that a paper hands to the trainer.  Stateless: it depends on (model, batch, ctx) alone."""

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
