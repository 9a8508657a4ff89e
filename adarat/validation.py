"""The test after each epoch: clean, FGSM and PGD accuracy and loss on test images, in eval mode and float32.

The released code tests on the test set after each epoch and keeps the last weights: nothing is selected on it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from common.attacks import PGD, fgsm
from common.data import Split, augment
from common.data.splits import to_float
from common.evaluation.judging import judged
from common.evaluation.validating import in_batches, mean

BATCH = 128                 # the originals' test batch; it matters only to `batch_means`


class Validation:
    """Clean, FGSM and PGD on a split, the same random starts in every epoch.

    test_crop    quirk test-crop: the test images are randomly cropped (padding 4), anew for each of the three
    batch_means  quirk generalist-batch-mean: plain means over batches of 128, however small the last one is
    """

    def __init__(self, split: Split, *, epsilon: float, step_size: float, steps: int, seed: int,
                 test_crop: bool = False, batch_means: bool = False):
        self.split, self.seed = split, seed
        self.attacks = {"clean": None, "fgsm": fgsm(epsilon), "pgd": PGD(epsilon, step_size, steps)}
        self.test_crop, self.batch_means = test_crop, batch_means

    def __call__(self, model: nn.Module, names: Sequence[str] = ("clean", "fgsm", "pgd"), prefix: str = "test"
                 ) -> dict[str, float]:
        """{PREFIX_NAME_accuracy: fraction, PREFIX_NAME_loss: mean cross-entropy, n_validation: images}."""
        numbers: dict[str, float] = {"n_validation": len(self.split)}
        with judged(model, self.split.device) as network:
            for name in names:
                accuracy, loss = self.measure(network, name)
                numbers |= {f"{prefix}_{name}_accuracy": accuracy, f"{prefix}_{name}_loss": loss}
        return numbers

    def measure(self, network: nn.Module, name: str) -> tuple[float, float]:
        """Accuracy and mean loss under one attack; two fetches from the device, at the end."""
        right, losses = [], []
        for images, y, ctx in in_batches(self.split, BATCH, self.seed, name):
            x = to_float(augment(images, ctx.generator, 4) if self.test_crop else images)
            if (attack := self.attacks[name]) is not None:
                x = attack(network, x, y, ctx)
            with torch.no_grad():
                logits = network(x)
            right.append((logits.argmax(1) == y).float())
            losses.append(F.cross_entropy(logits, y, reduction="none"))
        return mean(right, self.batch_means), mean(losses, self.batch_means)
