"""Threat models: the L-inf, L2 and L1 ball of radius eps round an image, cut by the box [0,1].

Each ball answers three questions.  `start`: a random displacement inside it; `step`: the move of a given size that
raises a linear loss most; `project`: the way back into ball and box.  Images are (B,C,H,W) float in [0,1]; eps and
sizes are in the same units (8/255, not 8), measured in the ball's own norm.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from common.errors import UserError
from common.types import StepContext

TINY = 1e-12      # floor of a norm that is divided by


@dataclass(frozen=True)
class Ball:
    """A ball of radius eps >= 0; see `Linf`, `L2`, `L1`."""

    eps: float
    norm: ClassVar[str]

    def __post_init__(self):
        if not self.eps >= 0:
            raise ValueError(f"eps must not be negative, it is {self.eps}")

    def start(self, x: Tensor, ctx: StepContext) -> Tensor:
        """A random displacement (B,C,H,W) inside the ball, not yet clipped to the box."""
        raise NotImplementedError

    def step(self, x_adv: Tensor, gradient: Tensor, size: float) -> Tensor:
        """x_adv moved by `size`, uphill along `gradient`; an image whose gradient is zero or NaN stays."""
        raise NotImplementedError

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """x_adv brought into the ball round x, then into [0,1], which brings no pixel farther from x."""
        raise NotImplementedError

    def size(self, displacement: Tensor) -> Tensor:
        """(B,) norm of each displacement."""
        raise NotImplementedError


class Linf(Ball):
    """max_j |d_j| <= eps.  Start U(-eps, eps) per pixel; step size*sign(g) (Madry et al. 2018)."""

    norm = "linf"

    def start(self, x, ctx):
        return self.eps * (2 * ctx.uniform(x) - 1)

    def step(self, x_adv, gradient, size):
        return x_adv + size * finite(gradient).sign()

    def project(self, x, x_adv):
        return torch.minimum(torch.maximum(x_adv, x - self.eps), x + self.eps).clamp(0, 1)

    def size(self, displacement):
        return displacement.flatten(1).abs().amax(1)


class L2(Ball):
    """||d||_2 <= eps.  Start: uniform direction, norm eps*U(0,1); step size*g/||g||; projection by scaling."""

    norm = "l2"

    def start(self, x, ctx):
        return self.eps * ctx.uniform(one_each(x)) * unit_l2(ctx.normal(x))

    def step(self, x_adv, gradient, size):
        return x_adv + size * unit_l2(finite(gradient))

    def project(self, x, x_adv):
        displacement = x_adv - x
        norms = self.size(displacement).clamp_min(TINY).view(-1, 1, 1, 1)
        return (x + displacement * (self.eps / norms).clamp_max(1)).clamp(0, 1)

    def size(self, displacement):
        return displacement.flatten(1).norm(dim=1)


class L1(Ball):
    """||d||_1 <= eps.

    Start: Laplace direction (uniform on the L1 sphere), norm eps*U(0,1).
    Step: the steepest ascent that the box allows.  `size` is spent on the pixels of largest |g| first, each moved to
    its bound before the next one gets anything; a step on the one largest pixel alone, as in RPAT's code, is mostly
    lost where the box cuts it off (Croce and Hein 2021, "Mind the box").
    Projection: soft threshold, found by sorting (Duchi et al. 2008).
    """

    norm = "l1"

    def start(self, x, ctx):
        centred = ctx.uniform(x) - 0.5
        laplace = -centred.sign() * torch.log((1 - 2 * centred.abs()).clamp_min(TINY))
        return self.eps * ctx.uniform(one_each(x)) * laplace / self.size(laplace).clamp_min(TINY).view(-1, 1, 1, 1)

    def step(self, x_adv, gradient, size):
        slope = finite(gradient).flatten(1)
        flat = x_adv.flatten(1)
        room = torch.where(slope > 0, 1 - flat, flat).clamp_min(0) * (slope != 0)
        order = slope.abs().argsort(dim=1, descending=True)
        room = room.gather(1, order)
        spent_before = room.cumsum(1) - room
        moves = torch.minimum(room, (size - spent_before).clamp_min(0))
        moves = torch.zeros_like(flat).scatter(1, order, moves)
        return x_adv + (moves * slope.sign()).view_as(x_adv)

    def project(self, x, x_adv):
        displacement = (x_adv - x).flatten(1)
        lengths = displacement.abs()
        # In float64 (which mps lacks): running sums lose the digits that decide which pixels go to zero.
        precise = lengths if lengths.device.type == "mps" else lengths.double()
        ordered = precise.sort(dim=1, descending=True).values
        ranks = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
        thresholds = (ordered.cumsum(1) - self.eps) / ranks
        kept = (ordered > thresholds).sum(1, keepdim=True).clamp_min(1)
        threshold = thresholds.gather(1, kept - 1).clamp_min(0).to(lengths.dtype)
        shrunk = displacement.sign() * (lengths - threshold).clamp_min(0)
        return (x + shrunk.view_as(x)).clamp(0, 1)

    def size(self, displacement):
        return displacement.flatten(1).abs().sum(1)


BALLS: dict[str, type[Ball]] = {kind.norm: kind for kind in (Linf, L2, L1)}


def ball(norm: str, eps: float) -> Ball:
    """The ball of a norm called linf, l2 or l1; any other name is a UserError."""
    if norm not in BALLS:
        raise UserError(f"unknown norm {norm!r}: give one of {', '.join(BALLS)}", code="E-NORM")
    return BALLS[norm](eps)


def finite(gradient: Tensor) -> Tensor:
    """The gradient with every NaN and infinity at 0: such a pixel does not move, and the others still do."""
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def unit_l2(direction: Tensor) -> Tensor:
    """Each image scaled to L2 norm 1; zero stays zero."""
    # Scaled by its largest entry first: the squares of a saturated network's 1e-25 would all be zero.
    flat = direction.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    flat = torch.where(largest > 0, flat / largest, flat)
    return (flat / flat.norm(dim=1, keepdim=True).clamp_min(TINY)).view_as(direction)


def one_each(x: Tensor) -> Tensor:
    """(B,1,1,1): the shape of one number per image."""
    return x[:, :1, :1, :1]
