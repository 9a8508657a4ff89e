"""The training attack of RPAT's part 2 (ReBAT, RPAT++), L-inf and L2, as released: in half precision, in train mode.

            start                                            step of size a           and back
    linf    U(-eps, eps), clipped to the box                 a*sign(g)                ball, box
    l2      normal direction, norm eps*U(0,1) per image,     a*g/(|g| + 1e-10)        ball, box
            clipped to the box

g is the gradient of the batch mean of the cross-entropy; the batch is that of all ranks.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from common.attacks import ball, cross_entropy, input_gradient
from common.attacks.balls import finite
from common.attacks.region import region
from common.errors import UserError
from common.types import StepContext
from rpat.attacks import columns


@dataclass(frozen=True)
class RebatPGD:
    """Part 2's attack, in linf or l2, on hard or mixed labels.  It computes in the type of the images.

    In float16 (quirk half-inputs) start, gradient, steps and clamps are rounded to it, so that entries of the batch
    mean's gradient under 3e-8 vanish; the network sees float32.  Where a gradient is zero nothing moves.

    restarts     the end of largest cross-entropy is kept per image, the later one on ties
    In train mode the ends pass once more, for that cross-entropy, and under mixed labels each step passes twice, as in
    the released code: batch norm's running statistics notice, so there is one pass that counts for two.
    """

    eps: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 10
    norm: str = "linf"
    restarts: int = 1

    def __post_init__(self):
        if self.norm not in ("linf", "l2"):
            raise UserError(f"ReBAT and RPAT++ attack in l_inf or l_2, not in {self.norm!r}", code="E-NORM")
        if self.restarts < 1:
            raise UserError(f"{self.restarts} restarts: give at least 1", code="E-FLAG-VALUE")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> Tensor:
        best, highest = torch.zeros_like(x), x.new_zeros(len(x), dtype=torch.float32)
        watched = bool(moving_norms(model))
        for _ in range(self.restarts):
            end = self.from_start(model, x, y, self.start(x, ctx), images=ctx.rows(x))
            if self.restarts == 1 and not watched:
                return x + end
            with torch.no_grad():
                loss = cross_entropy(model(seen(x + end)), y)
            best = torch.where(columns(loss >= highest), end, best)
            highest = torch.maximum(highest, loss)
        return x + best

    def start(self, x: Tensor, ctx: StepContext) -> Tensor:
        """A random displacement, clipped to the box."""
        return clipped(x, ball(self.norm, self.eps).start(x, ctx).to(x.dtype))

    @region
    def from_start(self, model: nn.Module, x: Tensor, y: Tensor, displacement: Tensor, *, images: int) -> Tensor:
        """The displacement (B,C,H,W) at the end; images: those of the whole batch, over all ranks."""
        norms = moving_norms(model) if y.dim() == 2 else []
        for _ in range(self.steps):
            with counted_twice(norms) if norms else nullcontext():
                gradient, _ = input_gradient(model, seen(x + displacement), y, cross_entropy)
            displacement = clipped(x, self.moved(displacement, (finite(gradient) / images).to(x.dtype)))
        return displacement

    def moved(self, displacement: Tensor, gradient: Tensor) -> Tensor:
        """A step, and back into the ball."""
        if self.norm == "linf":
            return (displacement + self.step_size * gradient.sign()).clamp(-self.eps, self.eps)
        direction = finite(gradient / columns(lengths(gradient) + 1e-10))
        displacement = displacement + self.step_size * direction
        return displacement * columns((self.eps / lengths(displacement).clamp_min(1e-7)).clamp_max(1))


def seen(x: Tensor) -> Tensor:
    """The images as networks take them: float16 ones as float32."""
    return x.float() if x.dtype == torch.float16 else x


def clipped(x: Tensor, displacement: Tensor) -> Tensor:
    """The displacement of x, cut where it leaves [0,1]."""
    return torch.minimum(torch.maximum(displacement, -x), 1 - x)


def lengths(displacement: Tensor) -> Tensor:
    """(B,) L2 norms, summed in float32, in the type of the displacement."""
    return displacement.flatten(1).float().norm(dim=1).to(displacement.dtype)


def moving_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms whose running statistics a pass would move."""
    return [module for module in model.modules() if isinstance(module, _NormBase) and module.training
            and module.track_running_stats and module.running_mean is not None]


@contextmanager
def counted_twice(norms: list[nn.Module]) -> Iterator[None]:
    """One pass in this block moves the running statistics of these modules as two equal ones would.

    Twice r <- (1-m)*r + m*s is once r <- (1-m)^2*r + (1-(1-m)^2)*s.
    """
    momenta = [module.momentum for module in norms]
    if None in momenta:
        raise ValueError("a batch norm that averages over all batches cannot count one twice")
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = 1 - (1 - momentum) ** 2
    try:
        yield
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
    for module in norms:
        module.num_batches_tracked.add_(1)
