"""What tests of the benchmarks' two ways share: the same start for both, and how far their weights end apart."""

import copy
import itertools

import pytest
import torch

from common.bench_step import Settings
from common.engine import Engine
from common.types import StepContext

CPU = torch.device("cpu")


def tiny(**changes):
    """Rows of a small network that take milliseconds."""
    return Settings(**{"model": "small", "width": 8, "batch": 8, "steps": 3, "rounds": 1, "images": 32, "matrix": 32,
                       **changes})


def plain():
    return Engine(CPU)


class SameDraws:
    """Patches both ways' random numbers: one uniform and one normal tensor per shape, whoever asks."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.known = {}
        for name in ("rand", "randn"):
            patch.setattr(torch, f"{name}_like", lambda like, name=name: self.draw(name, like).to(like.dtype))
        patch.setattr(StepContext, "uniform", lambda ctx, like: self.draw("rand", like))
        patch.setattr(StepContext, "normal", lambda ctx, like: self.draw("randn", like))

    def draw(self, name, like):
        key = name, like.shape
        if key not in self.known:
            self.known[key] = getattr(torch, name)(like.shape, generator=torch.Generator().manual_seed(5))
        return self.known[key]


def apart(ours, network, theirs_step, steps, times=2):
    """|ours - theirs| / |moved| of parameters and of float buffers, after some steps of both on the same batch.

    ours: an OurStep of so many attack steps; network: theirs; theirs_step(x, y).
    """
    before = copy.deepcopy(network.state_dict())
    assert all(torch.equal(value, ours.network.state_dict()[name]) for name, value in before.items())
    batch = next(ours.waiting)
    ours.waiting = itertools.repeat(batch)
    for _ in range(times):
        theirs_step(batch.x.contiguous(), batch.y)
        ours(steps)
    after, found = network.state_dict(), ours.network.state_dict()
    gaps = []
    for part in ({name for name, _ in network.named_parameters()}, {name for name, _ in network.named_buffers()}):
        names = [name for name in part if before[name].is_floating_point()]
        flat = [torch.cat([state[name].flatten() for name in names]) for state in (before, after, found)]
        gaps.append(((flat[2] - flat[1]).norm() / (flat[1] - flat[0]).norm()).item())
    return gaps
