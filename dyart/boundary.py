"""The point of a decision boundary that is closest to an image: FAB (Croce and Hein 2020) on any scalar function.

The boundary is {f(., label) = 0}; an image is on the right side of it where f > 0.  One iteration, from x1:

    plane    the boundary as f sees it from x1: {<w, .> = b},   w = grad f(x1),   b = <w, x1> - f(x1)
    d1, d2   shortest ways onto the plane, inside the box, from x1 and from the image x;   a1, a2 their lengths
    alpha    = min(a1/(a1 + a2), 0.1): how strongly x1 is drawn towards x
    x1      <- clamp((1 - alpha)*(x1 + 1.05*d1) + alpha*(x + 1.05*d2))
    across   where f(x1) < 0: x1 is kept if it is the closest to x yet;   x1 <- x + 0.9*(x1 - x)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.attacks import ball, frozen, mode
from common.attacks.projection import PROJECTIONS
from common.engine import Runner
from common.threads import by_rows
from common.types import StepContext, local_first

ScalarFunction = Callable[[Tensor, Tensor], Tensor]      # images (B,C,H,W), labels (B,) -> (B,)
SHORTEST = 1e-8                                          # floor of a1 and a2


class Search(NamedTuple):
    """What was found for the n images with f > 0, in the order of the batch.

    index (n,) their places in the batch; value (n,) f there; points (n,C,H,W) the closest points with f < 0 that the
    search met, or the image itself where it met none: found (n,) bool.  All detached.
    """

    index: Tensor
    value: Tensor
    points: Tensor
    found: Tensor


@dataclass(frozen=True)
class FAB:
    """The search.  norm: "linf" or "l2"; eps: twice the length of the random displacement that it starts from, in
    [0,1] units.

    shared_alpha  quirk scalar-alpha: the alpha of the first image that is searched serves all (an old bug of
                  AutoAttack's FAB, which made DyART's numbers), over all ranks; False: each image its own
    """

    norm: str = "linf"
    eps: float = 8 / 255
    steps: int = 20
    alpha_max: float = 0.1
    overshoot: float = 1.05
    backward: float = 0.9
    shared_alpha: bool = True

    def __post_init__(self):
        if self.norm not in PROJECTIONS:
            raise ValueError(f"FAB knows the norms {', '.join(PROJECTIONS)}, not {self.norm!r}")
        if self.steps < 0 or not self.eps >= 0:
            raise ValueError(f"steps and eps must not be negative: {self.steps}, {self.eps}")

    def __call__(self, function: ScalarFunction, x: Tensor, y: Tensor, ctx: StepContext) -> Search:
        """Search on those images of a batch x (B,C,H,W) in [0,1], y (B,) where the function is above 0."""
        with torch.no_grad():
            value = function(x, y)
        index = (value > 0).nonzero().squeeze(1)                 # waits for the device: how many there are
        x, y, start = x[index].detach(), y[index], self.start(x, ctx)[index]
        return Search(index, value[index], *self.from_start(function, x, y, start, ctx.first))

    def start(self, x: Tensor, ctx: StepContext) -> Tensor:
        """x displaced by eps/2: uniform noise scaled to that max-norm, or normal noise scaled to that 2-norm."""
        noise = 2 * ctx.uniform(x) - 1 if self.norm == "linf" else ctx.normal(x)
        return (x + self.eps / 2 * noise / per_image(self.length(noise), x)).clamp(0, 1)

    def from_start(self, function: ScalarFunction, x: Tensor, y: Tensor, start: Tensor,
                   first: Callable[[Tensor], Tensor] = local_first) -> tuple[Tensor, Tensor]:
        """The points (B,...) and whether they were found (B,), for images x (B,...) that all have f > 0.

        first: (B,) -> (1,), the value of the first image of all ranks.
        """
        project, slope = PROJECTIONS[self.norm], partial(value_and_gradient, function)
        x1, closest = start, x
        distance = x.new_full((len(x),), torch.inf)
        for _ in range(self.steps):
            if not len(x):
                self.shared(x.new_zeros(0), first)
                continue
            value, w = by_rows(slope, x1, y)
            b = (w * x1).flatten(1).sum(1) - value
            # Both in one call: on a CUDA device the number of kernels is what a projection costs.
            d1, d2 = project(torch.cat((x1, x)), torch.cat((w, w)), torch.cat((b, b))).chunk(2)
            alpha = per_image(self.shared(self.alpha(d1, d2), first), x)
            x1 = ((x1 + self.overshoot * d1) * (1 - alpha) + (x + self.overshoot * d2) * alpha).clamp(0, 1)
            with torch.no_grad():
                across = by_rows(function, x1, y) < 0
            reached = self.length(x1 - x)
            closer = across & (reached < distance)
            closest = torch.where(per_image(closer, x), x1, closest)
            distance = torch.where(closer, reached, distance)
            x1 = torch.where(per_image(across, x), x + self.backward * (x1 - x), x1)
        return closest, distance.isfinite()

    def alpha(self, d1: Tensor, d2: Tensor) -> Tensor:
        """How strongly to draw each image's point towards the image: (B,)."""
        a1, a2 = self.length(d1).clamp_min(SHORTEST), self.length(d2).clamp_min(SHORTEST)
        return (a1 / (a1 + a2)).clamp_max(self.alpha_max)

    def shared(self, alpha: Tensor, first: Callable[[Tensor], Tensor]) -> Tensor:
        """(B,), or (1,) where the first image decides: every rank then asks, also one without images."""
        return first(alpha) if self.shared_alpha else alpha

    def length(self, displacement: Tensor) -> Tensor:
        """(B,) norm of each displacement."""
        return ball(self.norm, self.eps).size(displacement)


def value_and_gradient(function: ScalarFunction, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """f (B,) and its gradient in the images (B,...), both detached; B may be 0."""
    if not len(x):
        return x.new_zeros(0), torch.zeros_like(x)
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value = function(x, y)
        gradient, = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def per_image(values: Tensor, x: Tensor) -> Tensor:
    """(B,) or (1,) as a shape that multiplies images."""
    return values.view(-1, *[1] * (x.dim() - 1))


def network_of(model: nn.Module) -> nn.Module:
    """The network behind an engine's runner, or the model itself."""
    return model.network if isinstance(model, Runner) else model


@contextmanager
def searchable(model: nn.Module, fast: bool = False) -> Iterator[nn.Module]:
    """The network behind `model`, in float32 whatever the engine's precision, eval mode, parameters frozen.

    Fewer digits would not do: a boundary point is told by the sign of f where f is near 0.
    fast: a faster copy of it, where the engine behind `model` makes one; it computes the same, but for rounding.
    """
    network, cudnn = network_of(model), torch.backends.cudnn
    tf32 = cudnn.allow_tf32
    try:
        cudnn.allow_tf32 = False
        if fast and isinstance(model, Runner):
            with model.engine.searching(model) as view:
                yield view
        else:
            with mode(network, training=False), frozen(network):
                yield network
    finally:
        cudnn.allow_tf32 = tf32
