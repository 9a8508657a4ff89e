"""Perception consistency: how far the logits move from x to x', and on either side of the midpoint.

    MSE( f(x), f(x') ),  MSE( f(x), f(mid) ),  MSE( f(mid), f(x') ),   mid = (x + x')/2

over all images, over those whose x' is classified right (defended), and over the rest (fooled; those wrong before the
attack too).  The paper's fact: the fooled ones move less.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.evaluation.measuring import PAIRS
from common.evaluation.perception import moves

GROUPS = ("all", "defended", "fooled")


class Distances(NamedTuple):
    """Of a batch: values (B,3), means over the classes, one column for each of PAIRS; defended (B,) bool."""

    values: Tensor
    defended: Tensor


def distances(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Distances:
    """Of images x, x' (B,C,H,W) and labels (B,).  The model's mode is the caller's business (eval)."""
    values, predicted = moves(model, x, x_adv)
    return Distances(values, predicted == y)


def consistency(batches: Iterable[Distances], *, batch_means: bool = False) -> dict[str, dict[str, float]]:
    """Group -> pair -> mean over the group's images, for GROUPS and PAIRS; NaN for a group without images.

    batch_means  quirk mse-batch-means: a group's mean in a batch is weighted by the whole batch's size, and is NaN,
                 which then everything is, in a batch that has none of the group
    ValueError where there is no batch.
    """
    batches = [Distances(batch.values.double().cpu(), batch.defended.cpu()) for batch in batches]
    if not batches:
        raise ValueError("no batch to take means over")
    if not batch_means:
        batches = [Distances(*(torch.cat(column) for column in zip(*batches, strict=True)))]
    total = sum(len(batch.values) for batch in batches)
    found = {}
    for group in GROUPS:
        means = sum(len(batch.values) / total * batch.values[members(batch, group)].mean(0) for batch in batches)
        found[group] = dict(zip(PAIRS, means.tolist(), strict=True))
    return found


def members(batch: Distances, group: str) -> Tensor:
    """(B,) bool: which images of the batch are in the group."""
    return {"all": torch.ones_like(batch.defended), "defended": batch.defended, "fooled": ~batch.defended}[group]
