"""Averages of weights over the course of training (exponential moving averages)."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Averaging:
    """How a run averages its weights: after step t (0-based), `average <- d*average + (1-d)*model`, d = decay(t).

    buffers: "average" (batch-norm statistics too, after every step), "statistics" (the same, but integer buffers, such
    as batch norm's counters, are the model's) or "copy" (the model's, at each epoch's end).
    """

    decay: Callable[[int], float]
    buffers: str = "average"

    def __post_init__(self):
        if self.buffers not in ("average", "statistics", "copy"):
            raise ValueError(f"buffers {self.buffers!r}: average, statistics or copy")


def warmed_up(limit: float) -> Callable[[int], float]:
    """Decay min(limit, (t+1)/(t+10)): the average follows the model closely at first."""
    return lambda step: min(limit, (step + 1) / (step + 10))


def averaged_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters ask for no gradient: where an average starts."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, decay: float, buffers: str = "average") -> None:
    """`average <- decay*average + (1-decay)*model`, in place, for parameters and, as `Averaging` says, for buffers."""
    move(list(average.parameters()), list(model.parameters()), decay)
    if buffers == "copy":
        return
    pairs = list(zip(average.buffers(), model.buffers(), strict=True))
    if buffers == "statistics":
        for ours, theirs in pairs:
            if not ours.is_floating_point():
                ours.copy_(theirs)
        pairs = [(ours, theirs) for ours, theirs in pairs if ours.is_floating_point()]
    move([ours for ours, _ in pairs], [theirs for _, theirs in pairs], decay)


def move(averages: list[Tensor], values: list[Tensor], decay: float) -> None:
    """The same for lists of tensors; a counter (integer tensor) is averaged and truncated to an integer."""
    floats = [(a, v) for a, v in zip(averages, values, strict=True) if a.is_floating_point()]
    if floats:
        first, second = (list(column) for column in zip(*floats, strict=True))
        torch._foreach_lerp_(first, second, 1 - decay)
    for a, v in zip(averages, values, strict=True):
        if not a.is_floating_point():
            a.copy_((decay * a + (1 - decay) * v).to(a.dtype))


@torch.no_grad()
def copy_buffers(average: nn.Module, model: nn.Module) -> None:
    """Give the average the model's buffers (batch-norm statistics)."""
    for ours, theirs in zip(average.buffers(), model.buffers(), strict=True):
        ours.copy_(theirs)
