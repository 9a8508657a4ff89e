"""Where an attack starts, as a displacement (B,C,H,W) of the images: (ball, x, ctx) -> start - x, not yet clipped."""

from collections.abc import Callable

from torch import Tensor

from common.attacks.balls import Ball
from common.types import StepContext

Displacement = Callable[[Ball, Tensor, StepContext], Tensor]


def in_ball(threat: Ball, x: Tensor, ctx: StepContext) -> Tensor:
    """The ball's own random start."""
    return threat.start(x, ctx)


def towards_noise(threat: Ball, x: Tensor, ctx: StepContext) -> Tensor:
    """Towards an image of uniform noise, as far as the ball reaches: in L2 nearly always eps far from x."""
    return threat.project(x, ctx.uniform(x)) - x


def gaussian(deviation: float = 0.001) -> Displacement:
    """Normal noise beside x, the same whatever the ball (TRADES, MART)."""
    def displace(threat: Ball, x: Tensor, ctx: StepContext) -> Tensor:
        return deviation * ctx.normal(x)
    return displace
