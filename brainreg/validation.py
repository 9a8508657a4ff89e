"""What is measured before training and after each epoch, in eval mode and float32: cross-entropy and accuracy on the
training images (augmented, as they are trained on), the validation images and the test images."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.attacks.losses import predictions
from common.data import Split, augment, to_float
from common.evaluation.judging import judged
from common.evaluation.validating import in_batches, mean
from common.types import Batch, StepContext


class Validation:
    """Numbers on named parts of a data set.  `before_step` must see the training's steps.

    augmented  part -> how `common.data.augment` treats its images, each epoch otherwise
    batch      images at a time
    """

    def __init__(self, parts: Mapping[str, Split], *, seed: int, augmented: Mapping[str, Mapping[str, Any]],
                 batch: int = 500):
        self.parts, self.seed, self.augmented, self.batch = dict(parts), seed, dict(augmented), batch
        self.epochs_done = 0
        self.untrained: dict[str, float] = {}

    def before_step(self, model: nn.Module, batch: Batch, ctx: StepContext) -> None:
        """Remember how many epochs are done when this one is."""
        self.epochs_done = ctx.epoch + 1

    def state_dict(self) -> dict[str, Any]:
        """What the first epoch's line of metrics needs of the untrained network; empty if it was not measured."""
        return {"untrained": self.untrained} if self.untrained else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.untrained = dict(state.get("untrained", {}))

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Of each part PART_loss (mean cross-entropy), PART_clean_accuracy (a fraction) and n_PART; after the first
        epoch also those of the untrained network, as untrained_PART_..., for metrics have a line an epoch."""
        numbers: dict[str, float] = {}
        for part, split in self.parts.items():
            numbers |= {f"{part}_{name}": value for name, value in self.measure(model, part, split).items()}
        if not self.epochs_done:
            self.untrained = {f"untrained_{name}": value for name, value in numbers.items()}
        first = self.untrained if self.epochs_done == 1 else {}
        return numbers | first | {f"n_{part}": len(split) for part, split in self.parts.items()}

    @torch.no_grad()
    def measure(self, model: nn.Module, part: str, split: Split) -> dict[str, float]:
        """The numbers of one part."""
        losses, right, told = [], [], self.augmented.get(part)
        with judged(model, split.device) as network:
            for images, y, ctx in in_batches(split, self.batch, self.seed, part, self.epochs_done):
                logits = network(to_float(augment(images, ctx.generator, **told) if told else images))
                losses.append(F.cross_entropy(logits, y, reduction="none"))
                right.append((predictions(logits) == y).float())
        return {"loss": mean(losses), "clean_accuracy": mean(right)}
