"""Uniform noise, and part of the way to an adversarial image: attacks of one stage, with nothing to learn from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from common.attacks.balls import Ball
from common.seeds import fold
from common.types import StepContext

Stages = Iterator[tuple[str, Callable[[Tensor], Tensor]]]


def noisy(threat: Ball, x: Tensor, seed: int) -> Tensor:
    """x (B,C,H,W) displaced at random in its ball, in L-inf by U(-eps, eps), and clipped to [0,1].

    Drawn on the CPU for all images, so that neither the device nor which of them are still attacked matters.
    """
    ctx = StepContext(generator=torch.Generator().manual_seed(fold(seed, "noise")))
    return (x + threat.start(x, ctx)).clamp(0, 1)


@dataclass(frozen=True)
class Noise:
    """One draw of noise per image."""

    ball: Ball

    def __call__(self, x: Tensor, y: Tensor, seed: int) -> Stages:
        drawn = noisy(self.ball, x, seed)
        yield "noise", drawn.__getitem__


@dataclass(frozen=True)
class Weakened:
    """x + share*(x' - x), x' the end of each stage of an attack; share in [0,1] (RPAT's `--weak w`: w/8)."""

    runner: Callable[[Tensor, Tensor, int], Stages]
    share: float

    def __call__(self, x: Tensor, y: Tensor, seed: int) -> Stages:
        for stage, attack in self.runner(x, y, seed):
            yield stage, partial(self._part, attack, x)

    def _part(self, attack, x: Tensor, standing: Tensor) -> Tensor:
        return x[standing] + self.share * (attack(standing) - x[standing])
