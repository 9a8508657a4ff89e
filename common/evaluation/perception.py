"""Perception consistency (RPAT, ICCV 2025): how far the logits move from x to x', and on either side of the
image half way.

    MSE( f(x), f(x') ),  MSE( f(x), f(mid) ),  MSE( f(mid), f(x') ),   mid = (x + x')/2

per image, a mean over the logits; over all images, those whose x' is classified correctly (defended) and the rest
(fooled; images that are wrong clean too).  A network that is linear between x and x' has 1 : 1/4 : 1/4.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.attacks.balls import Ball
from common.attacks.losses import predictions
from common.attacks.pgd import PGD
from common.evaluation.judging import allowed
from common.evaluation.measuring import PAIRS, Measured
from common.evaluation.noise import noisy
from common.seeds import fold
from common.types import StepContext

Ends = Callable[[Tensor, Tensor, int], Tensor]           # x (B,C,H,W), y (B,), seed -> x' (B,C,H,W)


@dataclass(frozen=True)
class Perception:
    """Every image of a chunk is attacked, also those that are wrong clean; x' is brought into ball and box first."""

    network: nn.Module
    ball: Ball
    ends: Ends
    batch_size: int
    stage: str = "perception"

    def measure(self, x: Tensor, y: Tensor, right: Tensor, seed: int) -> Measured:
        x_adv = allowed(self.ball, x, self.ends(x, y, seed))
        parts = [moves(self.network, *images)
                 for images in zip(x.split(self.batch_size), x_adv.split(self.batch_size), strict=True)]
        distances = torch.cat([distance for distance, _ in parts])
        defended = torch.cat([predicted for _, predicted in parts]) == y
        arrays = dict(zip(PAIRS, distances.unbind(1), strict=True)) | {"defended": defended.float()}
        return Measured(right & defended, arrays)


@torch.no_grad()
def moves(network: nn.Module, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
    """(B,3) mean squared difference of the logits for each of PAIRS, and (B,) predictions at x'."""
    clean, middle, adversarial = network(x), network((x + x_adv) / 2), network(x_adv)
    pairs = (clean - adversarial, clean - middle, middle - adversarial)
    return torch.stack([difference.square().mean(1) for difference in pairs], 1), predictions(adversarial)


def pgd_ends(network: nn.Module, attack: PGD, batch_size: int) -> Ends:
    """x' of PGD, from the starts that evaluator pgd's first restart has for the same seed."""
    def ends(x: Tensor, y: Tensor, seed: int) -> Tensor:
        start = attack.start(x, StepContext(generator=torch.Generator().manual_seed(fold(seed, "restart", 0))))
        return torch.cat([attack.from_start(network, *part)
                          for part in zip(*(whole.split(batch_size) for whole in (x, y, start)), strict=True)])
    return ends


def noise_ends(threat: Ball) -> Ends:
    """x' = x and noise."""
    return lambda x, y, seed: noisy(threat, x, seed)
