"""What part 1's code measures after an epoch, eval mode, float32: clean accuracy and accuracy under PGD.

Beside them how far the logits move from x to x' and to the image between (see `rpat.perception`), on the same x'.
"""

import math

import numpy as np
import torch
from torch import nn

from common.attacks.losses import predictions
from common.data import Split
from common.data.splits import to_float
from common.evaluation.judging import judged
from common.evaluation.validating import everyones, in_batches, mean
from common.types import Attack, Batch, StepContext
from rpat.perception import consistency, distances
from rpat.settings import VALIDATION


def held_out_positions(count: int) -> list[int]:
    """Which of `count` training images --val holds out: the first 1,000 of numpy's permutation with seed 0, as the
    released generate_validation.py takes them of 50,000; of fewer than 10,000 images a tenth."""
    size = max(1, min(VALIDATION, count // 10))
    return np.random.RandomState(0).permutation(count)[:size].tolist()


class Validation:
    """Numbers on named parts of a data set, from the same random starts in every epoch.

    attack   the released evaluation's PGD; also for runs that train with FGSM
    batch    images at a time, which share their random numbers
    every    validate after every so many epochs only; `before_step` must then see the training's steps
    """

    def __init__(self, parts: dict[str, Split], *, attack: Attack, seed: int, batch: int = 100, every: int = 1):
        self.parts, self.attack, self.seed, self.batch, self.every = dict(parts), attack, seed, batch, every
        self.epoch = 0

    def before_step(self, model: nn.Module, batch: Batch, ctx: StepContext) -> None:
        """Remember which epoch it is (0-based)."""
        self.epoch = ctx.epoch

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Of each part PART_clean_accuracy, PART_pgd_accuracy (fractions), n_PART, and PART_mse_GROUP_PAIR for
        perception's groups and pairs (a group without images has none); nothing in epochs between."""
        if (self.epoch + 1) % self.every:
            return {}
        numbers: dict[str, float] = {}
        for part, split in self.parts.items():
            numbers |= {f"{part}_{name}": value for name, value in self.measure(model, part, split).items()}
            numbers[f"n_{part}"] = len(split)
        return numbers

    def measure(self, model: nn.Module, part: str, split: Split) -> dict[str, float]:
        """The numbers of one part."""
        right, moved = [], []
        with judged(model, split.device) as network:
            for images, y, ctx in in_batches(split, self.batch, self.seed, part):
                x = to_float(images)
                x_adv = self.attack(network, x, y, ctx)
                with torch.no_grad():
                    right.append((predictions(network(x)) == y).float())
                moved.append(distances(network, x, x_adv, y))
        values = {f"mse_{group}_{pair}": value for group, pairs in consistency(everyones(moved)).items()
                  for pair, value in pairs.items() if not math.isnan(value)}
        return {"clean_accuracy": mean(right), "pgd_accuracy": mean([batch.defended.float() for batch in moved]),
                **values}
