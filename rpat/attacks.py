"""The training attacks of RPAT's part 1, L-inf, L2 and L1, with the released starts and steps.

g is the gradient of the batch mean of the cross-entropy, in TRADES' attack of the summed KL: the floors below, under
which a step shortens, are counted against it.  The batch is that of all ranks.  Images and sizes are in [0,1] units.

                  start                                     step of size a                       and back
    PGD    linf   U(-eps, eps), clipped                     a*sign(g)                            ball, box
           l2     towards a uniform image, norm eps         a*g/max(|g|, 1e-6)                   box, ball
           l1     Laplace direction; one norm U(0, eps)     a*sign(g) at the largest |g_j|       ball, box
                  for the whole batch; clipped
    TRADES linf   x + 0.001*N(0,1), clipped to nothing      a*sign(g)                            ball, box
    MART   l2     the same                                  a*g/(|g| + 1e-8)                     ball, box
    FGSM          x itself                                  as PGD's, of size eps                as PGD's
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.attacks import L1, L2, Ball, Linf, cross_entropy, gaussian, in_ball, input_gradient, kl_to, towards_noise
from common.attacks.balls import TINY, finite
from common.attacks.region import region
from common.attacks.starts import Displacement
from common.errors import UserError
from common.types import Attack, StepContext


def columns(norms: Tensor) -> Tensor:
    """(B,) -> (B,1,1,1)."""
    return norms.view(-1, 1, 1, 1)


@dataclass(frozen=True)
class FlooredL2(L2):
    """Part 1's PGD: a gradient shorter than 1e-6 gives a shorter step; the box before the ball."""

    def start(self, x, ctx):
        return towards_noise(L2(self.eps), x, ctx)

    def step(self, x_adv, gradient, size):
        gradient = finite(gradient)
        return x_adv + size * gradient / columns(self.size(gradient).clamp_min(1e-6))

    def project(self, x, x_adv):
        displacement = x_adv.clamp(0, 1) - x
        return x + displacement * columns((self.eps / self.size(displacement).clamp_min(TINY)).clamp_max(1))


@dataclass(frozen=True)
class OffsetL2(L2):
    """A step of size*g/(|g| + offset)."""

    offset: float = 1e-8

    def step(self, x_adv, gradient, size):
        gradient = finite(gradient)
        return x_adv + size * gradient / columns(self.size(gradient) + self.offset)


@dataclass(frozen=True)
class OnePixelL1(L1):
    """Part 1's PGD in L1: a step moves one value of one pixel; a start is as long for each image of the batch."""

    def start(self, x, ctx):
        direction = super().start(x, ctx)
        length = torch.rand((), generator=ctx.generator, device=ctx.generator.device).to(x.device)
        return self.eps * length * direction / columns(self.size(direction).clamp_min(TINY))

    def step(self, x_adv, gradient, size):
        slope = finite(gradient).flatten(1)
        largest = slope.abs().argmax(1, keepdim=True)
        one = torch.zeros_like(slope).scatter(1, largest, slope.gather(1, largest).sign())
        return x_adv + size * one.view_as(x_adv)


@dataclass(frozen=True)
class Ascent:
    """Part 1's attacks: `steps` steps of `step_size` uphill, each followed by the ball's projection.

    start        displacement of the start, None: x itself; clipped to [0,1] if `clip_start`
    from_clean   ascends the sum of KL(p(x), p(x')), p(x) a constant, instead of the batch mean of the cross-entropy
    Sizes are in [0,1] units.  The mode of the network is the caller's business (eval in the released code).
    """

    ball: Ball
    step_size: float
    steps: int
    start: Displacement | None = in_ball
    clip_start: bool = True
    from_clean: bool = False

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> Tensor:
        start = x
        if self.start is not None:
            start = x + self.start(self.ball, x, ctx)
            start = start.clamp(0, 1) if self.clip_start else start
        return self.from_start(model, x, y, start, images=ctx.rows(x))

    @region
    def from_start(self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, *, images: int) -> Tensor:
        """x' (B,C,H,W) of an ascent from `start`; images: those of the whole batch, over all ranks."""
        x, x_adv, loss, share = x.detach(), start.detach(), cross_entropy, 1 / images
        if self.from_clean:
            with torch.no_grad():
                loss, share = kl_to(model(x).float().softmax(1)), 1
        for _ in range(self.steps):
            gradient, _ = input_gradient(model, x_adv, y, loss)
            x_adv = self.ball.project(x, self.ball.step(x_adv, gradient * share, self.step_size))
        return x_adv


PGD_BALLS: dict[str, type[Ball]] = {"linf": Linf, "l2": FlooredL2, "l1": OnePixelL1}
FGSM_BALLS: dict[str, type[Ball]] = {"linf": Linf, "l2": FlooredL2}
NOISE_BALLS: dict[str, type[Ball]] = {"linf": Linf, "l2": OffsetL2}


def pgd(norm: str, eps: float, step_size: float, steps: int) -> Ascent:
    """The attack of `adv_train` and of part 1's evaluation; norm linf, l2 or l1."""
    return Ascent(chosen(PGD_BALLS, norm, eps, "PGD"), step_size, steps)


def fgsm(norm: str, eps: float) -> Ascent:
    """`--adv_method fgsm`: one step of length eps from x; norm linf or l2."""
    return Ascent(chosen(FGSM_BALLS, norm, eps, "FGSM"), eps, 1, start=None)


def trades(norm: str, eps: float, step_size: float, steps: int) -> Ascent:
    """The attack of `adv_trades`; norm linf or l2."""
    return Ascent(chosen(NOISE_BALLS, norm, eps, "TRADES"), step_size, steps, gaussian(), clip_start=False,
                  from_clean=True)


def mart(norm: str, eps: float, step_size: float, steps: int) -> Ascent:
    """The attack of `adv_mart`; norm linf or l2."""
    return Ascent(chosen(NOISE_BALLS, norm, eps, "MART"), step_size, steps, gaussian(), clip_start=False)


def chosen(balls: dict[str, type[Ball]], norm: str, eps: float, name: str) -> Ball:
    """The ball of a norm; UserError where the attack has none."""
    if norm not in balls:
        raise UserError(f"{name} has no attack in the norm {norm!r}: choose one of {', '.join(balls)}", code="E-NORM")
    return balls[norm](eps)


@dataclass(frozen=True)
class FromEpoch:
    """`before`, and from 0-based epoch `epoch` on `after` (`--stronger-attack`)."""

    before: Attack
    after: Attack
    epoch: int

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> Tensor:
        return (self.before if ctx.epoch < self.epoch else self.after)(model, x, y, ctx)


def no_attack(model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> Tensor:
    """`--attack none`: x itself."""
    return x
