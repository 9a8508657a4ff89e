"""What tests compare with: projections by sorting, and margins to the last digit, to be differentiated."""

from dataclasses import dataclass

import torch
from torch import nn

from common.attacks.projection import SMALLEST
from dyart.boundary import FAB, Search, per_image, value_and_gradient


def by_sorting(z, w, b, norm):
    """The projection in one go: sort the pixels by where they stop, find the interval in which the plane is met."""
    excess = (w * z).sum(1, keepdim=True) - b[:, None]
    speed = w.sign() if norm == "linf" else torch.where(w.abs() < SMALLEST, 0, w)
    velocity = -excess.sign() * speed
    stops = torch.where(velocity == 0, 0, torch.where(velocity < 0, z, 1 - z) / velocity.abs())
    ordered, order = stops.sort(1)
    rates = (w * velocity).abs().gather(1, order)
    stopped, still = (rates * ordered).cumsum(1), rates.sum(1, keepdim=True) - rates.cumsum(1)
    place = torch.searchsorted(stopped + ordered * still, excess.abs())
    last = (place - 1).clamp_min(0)
    covered = torch.where(place > 0, stopped.gather(1, last), 0)
    slope = torch.where(place > 0, still.gather(1, last), rates.sum(1, keepdim=True))
    length = torch.where(place < z.shape[1], (excess.abs() - covered) / slope.clamp_min(1e-30), torch.inf)
    return velocity * torch.minimum(stops, length)


def size(displacement, norm):
    flat = displacement.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def smooth_network(seed: int = 3, classes: int = 3) -> nn.Sequential:
    """A float64 network without kinks: (B,1,3,3) -> (B,classes)."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 4, 2), nn.SiLU(), nn.Flatten(), nn.Linear(16, classes)).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.8)
    return network.eval()


def grey_images(count: int, seed: int = 4) -> torch.Tensor:
    """Images (count,1,3,3) float64 so far from black and white that no move of 0.3 meets a bound."""
    return 0.35 + 0.3 * torch.rand(count, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class ExactLinf:
    """FAB's point, moved to where the conditions of the closest point hold exactly: every pixel moved by R, downhill.

    x^ = x - R*sign(grad f(x^)), f(x^) = 0, by bisection for R, again until the signs stay.
    """

    norm = "linf"
    rough = FAB(steps=60, shared_alpha=False)
    length = rough.length

    def __call__(self, function, x, y, ctx):
        searched = self.rough(function, x, y, ctx)
        x, y, points = x[searched.index], y[searched.index], searched.points
        for _ in range(5):
            _, gradient = value_and_gradient(function, points, y)
            low, high = x.new_zeros(len(x)), x.new_full((len(x),), 0.3)
            for _ in range(50):
                middle = (low + high) / 2
                inside = function(x - per_image(middle, x) * gradient.sign(), y) >= 0
                low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
            points = x - per_image(high, x) * gradient.sign()
        return Search(searched.index, searched.value, points, function(points, y).abs() < 1e-9)


@dataclass(frozen=True)
class Given:
    """A search that answers with given points."""

    points: torch.Tensor
    value: torch.Tensor
    norm = "linf"
    length = FAB().length

    def __call__(self, function, x, y, ctx):
        return Search(torch.arange(len(x)), self.value, self.points, torch.ones(len(x), dtype=torch.bool))
