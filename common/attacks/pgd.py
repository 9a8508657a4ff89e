"""Projected gradient ascent in any ball on any loss (Madry et al. 2018), and the variants that papers name."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.attacks.balls import Ball, ball
from common.attacks.losses import cross_entropy, cw_loss, kl_to
from common.attacks.region import region
from common.attacks.starts import Displacement, in_ball
from common.types import LossPerImage, StepContext


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, loss: LossPerImage) -> tuple[Tensor, Tensor]:
    """The gradient (B,C,H,W) of the loss summed over the images, and the logits (B,K) at x, both detached.

    The sum, not the mean: an image's gradient then depends on nothing else in the batch and does not shrink with it.
    Parameters get no gradient; the model's mode is the caller's business.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = model(x).float()
        gradient, = torch.autograd.grad(loss(logits, y).sum(), x)
    return gradient, logits.detach()


@dataclass(frozen=True)
class PGD:
    """`steps` steps of `step_size` uphill on `loss`, each projected into the ball and then into [0,1].

    The start is random (`random_start`, else x itself), displaced from x as `displace` says, by itself inside the
    ball, and clipped to [0,1] if `clip_start`.  Images are (B,C,H,W) float in [0,1], eps and step_size in the same
    units; returns x' detached.  Only `ctx` is random.
    """

    eps: float
    step_size: float
    steps: int
    norm: str = "linf"
    loss: LossPerImage = cross_entropy
    random_start: bool = True
    clip_start: bool = True
    displace: Displacement = in_ball

    def __post_init__(self):
        if self.steps < 0 or not self.step_size >= 0:
            raise ValueError(f"steps and step_size must not be negative: {self.steps}, {self.step_size}")
        _ = self.ball              # refuses an unknown norm and a negative eps before anything runs

    @property
    def ball(self) -> Ball:
        """The threat model."""
        return ball(self.norm, self.eps)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> Tensor:
        return self.from_start(model, x, y, self.start(x, ctx))

    def start(self, x: Tensor, ctx: StepContext) -> Tensor:
        """Where the first gradient is taken (B,C,H,W)."""
        if not self.random_start:
            return x.detach().clone()
        start = x.detach() + self.displace(self.ball, x, ctx)
        return start.clamp(0, 1) if self.clip_start else start

    @region
    def from_start(self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        """The end point of an ascent from `start` (B,C,H,W)."""
        x, x_adv, threat = x.detach(), start.detach(), self.ball
        loss = self.objective(model, x)
        for _ in range(self.steps):
            gradient, _ = input_gradient(model, x_adv, y, loss)
            x_adv = threat.project(x, threat.step(x_adv, gradient, self.step_size))
        return x_adv

    def objective(self, model: nn.Module, x: Tensor) -> LossPerImage:
        """The loss to ascend round the clean images x; a subclass may derive it from the model's output there."""
        return self.loss


@dataclass(frozen=True)
class TradesPGD(PGD):
    """PGD on KL(p(x) || p(x')), p(x) a constant from one pass of x before the steps (TRADES, Zhang et al. 2019).

    `loss` is not used.  From x itself nothing moves (the gradient is zero there): it needs a start beside x.
    """

    def objective(self, model: nn.Module, x: Tensor) -> LossPerImage:
        with torch.no_grad():
            return kl_to(model(x).float().softmax(dim=1))


def cw(eps: float, step_size: float, steps: int = 20, *, norm: str = "linf", confidence: float = 50.0) -> PGD:
    """The AT literature's "CW" attack: PGD on the margin.  Its start is not clipped to [0,1], its iterates are."""
    return PGD(eps, step_size, steps, norm=norm, loss=cw_loss(confidence), clip_start=False)
