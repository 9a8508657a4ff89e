"""What tests compare with: RPAT's losses and attacks written down once more, image by image, from the paper file."""

import math

import torch
from torch import nn

from common.engine import Engine
from common.types import StepContext

CPU = Engine(torch.device("cpu"))


def context(seed: int = 5, **more) -> StepContext:
    return StepContext(generator=torch.Generator().manual_seed(seed), attacking=CPU.attacking, **more)


def given(x_adv):
    """An attack that answers with these images."""
    return lambda model, x, y, ctx: x_adv


class Fixed(nn.Module):
    """Answers with given logits, in turn."""

    def __init__(self, *answers):
        super().__init__()
        self.answers, self.asked = answers, []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        return self.answers[(len(self.asked) - 1) % len(self.answers)]


class Norm(nn.Module):
    """One batch norm over 3 channels and a linear layer without bias: what passed shows in the statistics.

    `passes` holds, for each pass, whether it was in train mode, and the images.
    """

    def __init__(self, classes: int = 4, side: int = 4):
        super().__init__()
        torch.manual_seed(2)
        self.norm = nn.BatchNorm2d(3)
        self.linear = nn.Linear(3 * side * side, classes, bias=False)
        self.passes = []

    def forward(self, x):
        self.passes.append((self.training, x.detach().clone()))
        return self.linear(self.norm(x).flatten(1))


def pictures(count: int, seed: int = 3, side: int = 4) -> torch.Tensor:
    """Images (count,3,side,side) in [0,1], some values at the bounds."""
    draw = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return (1.4 * draw - 0.2).clamp(0, 1)


def kl(p, q, offset: float = 0.0) -> float:
    """mean_i sum_k p*(log p - log(q + offset)), of lists of probabilities, in Python's floats."""
    rows = [sum(a * (math.log(a) - math.log(b + offset)) for a, b in zip(first, second, strict=True))
            for first, second in zip(p.tolist(), q.tolist(), strict=True)]
    return sum(rows) / len(rows)


def length(displacement, norm: str) -> torch.Tensor:
    flat = displacement.flatten(1)
    return {"linf": flat.abs().amax(1), "l2": flat.norm(dim=1), "l1": flat.abs().sum(1)}[norm]


def mean_gradient(model, x, y):
    """The gradient of the batch mean of the cross-entropy."""
    x = x.clone().requires_grad_()
    nn.CrossEntropyLoss()(model(x), y).backward()
    return x.grad


def shrunk(displacement, radius: float):
    """Each image's displacement shortened to an L2 norm of at most `radius`."""
    rows = [d if d.norm() <= radius else d * (radius / d.norm()) for d in displacement]
    return torch.stack(rows)


def onto_l1(displacement, radius: float):
    """Each image's displacement projected on the L1 ball, by bisection for the threshold."""
    rows = []
    for d in displacement.double():
        low, high = 0.0, d.abs().max().item()
        if d.abs().sum() <= radius:
            high = 0.0
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (low, middle) if (d.abs() - middle).clamp_min(0).sum() <= radius else (middle, high)
        rows.append(d.sign() * (d.abs() - high).clamp_min(0))
    return torch.stack(rows).to(displacement.dtype)


def released_pgd(model, x, y, start, norm, eps, size, steps):
    """Part 1's PGD, in terms of the displacement."""
    d = start - x
    for _ in range(steps):
        g = mean_gradient(model, x + d, y)
        if norm == "linf":
            d = torch.clamp(x + torch.clamp(d + size * g.sign(), -eps, eps), 0, 1) - x
        elif norm == "l2":
            unit = torch.stack([row / max(row.norm().item(), 1e-6) for row in g])
            d = shrunk(torch.clamp(x + d + size * unit, 0, 1) - x, eps)
        else:
            for row, slope in zip(d, g, strict=True):
                place = slope.abs().flatten().argmax()
                row.view(-1)[place] += size * slope.flatten()[place].sign()
            d = torch.clamp(x + onto_l1(d, eps), 0, 1) - x
    return x + d


def released_rebat(model, x, y, start, norm, eps, size, steps):
    """Part 2's attack, in terms of the displacement."""
    d = start.clone()
    for _ in range(steps):
        g = mean_gradient(model, x + d, y)
        if norm == "linf":
            d = torch.clamp(d + size * g.sign(), -eps, eps)
        else:
            d = shrunk(d + size * torch.stack([row / (row.norm() + 1e-10) for row in g]), eps)
        d = torch.clamp(x + d, 0, 1) - x
    return d
