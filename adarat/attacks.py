"""The training attacks of FAT and DAT; PGD-AT, TRADES, KD-AT and IAD use those of `common.attacks`."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.attacks import Linf, cross_entropy, input_gradient
from common.attacks.region import region
from common.types import StepContext


@dataclass(frozen=True)
class FriendlyPGD:
    """FAT (Zhang et al. 2020): keeps, per image, the iterate at which it had been misclassified tau+1 times.

    tau by 0-based epoch: 3 below `epochs[0]`, 6 below `epochs[1]`, then 9.  The iterate is judged before each step; an
    image that was never so often wrong keeps x' after the last step; all images keep moving.
    """

    eps: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 10
    epochs: tuple[int, int] = (50, 90)

    def tau(self, epoch: int) -> int:
        """The patience in 0-based epoch `epoch`."""
        return 3 if epoch < self.epochs[0] else 6 if epoch < self.epochs[1] else 9

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> Tensor:
        start = (x + Linf(self.eps).start(x, ctx)).clamp(0, 1)
        return self.from_start(model, x, y, start, tau=self.tau(ctx.epoch))

    @region
    def from_start(self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, *, tau: int) -> Tensor:
        linf = Linf(self.eps)
        x_adv = kept = start
        patience = torch.full_like(y, tau)
        held = torch.zeros_like(y, dtype=torch.bool)
        for _ in range(self.steps):
            gradient, logits = input_gradient(model, x_adv, y, cross_entropy)
            wrong = (logits.argmax(1) != y) & ~held
            newly = wrong & (patience == 0)
            kept = torch.where(newly.view(-1, 1, 1, 1), x_adv, kept)
            held = held | newly
            patience = patience - (wrong & ~newly).long()
            x_adv = linf.project(x, linf.step(x_adv, gradient, self.step_size))
        return torch.where(held.view(-1, 1, 1, 1), kept, x_adv)


@dataclass(frozen=True)
class DynamicPGD:
    """DAT (Wang et al. 2019): an image stops, for good, once its first-order stationary condition is small enough.

        FOSC_i = eps*||g_i||_1 - <x'_i - x_i, g_i>,  g the gradient of the summed cross-entropy at x'

    tested after each step, not at the start; threshold max(0, FOSC_max - FOSC_max*epoch/FOSC_control_epoch).
    """

    eps: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 10
    fosc_max: float = 0.3
    fosc_control_epoch: int = 60

    def threshold(self, epoch: int) -> float:
        """The threshold in 0-based epoch `epoch`."""
        return max(0.0, self.fosc_max - self.fosc_max * epoch / self.fosc_control_epoch)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> Tensor:
        start = (x + Linf(self.eps).start(x, ctx)).clamp(0, 1)
        return self.from_start(model, x, y, start, threshold=self.threshold(ctx.epoch))

    @region
    def from_start(self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, *, threshold: float) -> Tensor:
        linf = Linf(self.eps)
        x_adv = start
        moving = torch.ones_like(y, dtype=torch.bool)
        gradient, _ = input_gradient(model, x_adv, y, cross_entropy)
        for _ in range(self.steps):
            moved = linf.project(x, linf.step(x_adv, gradient, self.step_size))
            x_adv = torch.where(moving.view(-1, 1, 1, 1), moved, x_adv)
            # Also after the last step, as the released code does: in train mode the pass moves batch-norm statistics.
            gradient, _ = input_gradient(model, x_adv, y, cross_entropy)
            fosc = self.eps * gradient.flatten(1).abs().sum(1) - ((x_adv - x) * gradient).flatten(1).sum(1)
            moving = moving & (fosc > threshold)
        return x_adv
