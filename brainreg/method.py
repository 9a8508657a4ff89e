"""The regulariser of arXiv 2410.03952: similarities s of a network's features are pulled towards targets t.

    L = CE(x) + alpha*R,   R = mean over the k pairs of (A(s) - A(t))^2
    A(v) = log(1 + v + 1e-5) - log(1 - v + 1e-5)                     twice the inverse tanh, finite at -1 and 1
    without arctanh: R = mean (s - t)^2

s is `brainreg.network`'s, t `brainreg.similarity`'s and a constant; CE is the mean over the class batch.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from brainreg.network import Pair
from common.attacks.mode import untracked
from common.types import Batch, LossOut, Share, StepContext


class PairBatch(NamedTuple):
    """What `batch.extra` holds: k pairs of images as fed, and their targets (k,) float32 in [-1,1].

    share: which of the pairs of all processes they are; None where there is one process.
    """

    pair: Pair
    target: Tensor
    share: Share | None = None


def transform(v: Tensor) -> Tensor:
    """A(v), elementwise, of v in [-1,1]."""
    return (1 + v + 1e-5).log() - (1 - v + 1e-5).log()


def regulariser(s: Tensor, t: Tensor, arctanh: bool = True) -> Tensor:
    """R per pair (k,) of similarities and targets (k,) in [-1,1]; 0 where they are equal."""
    return (transform(s) - transform(t)).square() if arctanh else (s - t).square()


@dataclass(frozen=True)
class Regularised:
    """CE(x) + alpha*R.  Passes in train mode, in this order: class batch, row images, column images.

    alpha            weight of R; 0 or None: the class pass only, and no pairs needed
    arctanh          compare A(s) and A(t) instead of s and t
    move_statistics  quirk pair-bn: the two passes of a pair move batch norm's running statistics too
    """

    recordable: ClassVar[bool] = True

    alpha: float | None = None
    arctanh: bool = True
    move_statistics: bool = True

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> LossOut:
        logits = model(batch.x)
        clean = ctx.mean(F.cross_entropy(logits, batch.y, reduction="none"))
        logs = {"clean_loss": clean.detach(),
                "clean_accuracy": (logits.detach().argmax(1) == batch.y).float().mean()}
        if not self.alpha:
            return LossOut(clean, logs)
        if batch.extra is None:
            raise ValueError(f"alpha is {self.alpha}, but the batch has no pairs of images")
        with nullcontext() if self.move_statistics else untracked(model):
            similarities = model(batch.extra.pair)
        pulled = ctx.mean(regulariser(similarities, batch.extra.target, self.arctanh), batch.extra.share)
        return LossOut(clean + self.alpha * pulled, logs | {"regulariser": pulled.detach()})

    def modules(self) -> dict[str, nn.Module]:
        return {}
