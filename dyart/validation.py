"""What DyART's code measures before the first epoch and after each: clean and robust accuracy, eval mode, float32.

The attack ascends -max(z_y - max_{k != y} z_k, 0) by 40 steps, four times as many as in training: an image stops as
soon as it is misclassified.
"""

import torch
from torch import Tensor, nn

from common.attacks import PGD, cw_loss, fgsm, input_gradient, margin, towards_noise
from common.attacks.losses import predictions
from common.data import Split
from common.data.splits import to_float
from common.evaluation.judging import judged
from common.evaluation.validating import in_batches, mean
from common.types import StepContext

STOPS = cw_loss(0.0)            # no gradient where an image is misclassified


def validation_attack(name: str, *, eps: float, step_size: float, steps: int = 40) -> PGD:
    """The attack called "linf-pgd" (uniform start), "fgsm" or "l2-pgd"; sizes in the norm's own units, images in [0,1].

    ValueError for another name.
    """
    if name == "linf-pgd":
        return PGD(eps, step_size, steps, loss=STOPS)
    if name == "fgsm":
        return fgsm(eps, loss=STOPS)
    if name == "l2-pgd":
        return PGD(eps, step_size, steps, norm="l2", loss=STOPS, displace=towards_noise)
    raise ValueError(f"no attack is called {name!r}: linf-pgd, fgsm, l2-pgd")


def withstands(network: nn.Module, attack: PGD, x: Tensor, y: Tensor, ctx: StepContext) -> Tensor:
    """(B,) bool: which images are classified correctly at the end of the attack.

    Images that stand still, being misclassified, leave the batch before steps 1, 2, 3, 5, 9, 17, ...: most fall early.
    Each time the host waits for the device, which costs far less than the passes that it saves.
    """
    threat, places = attack.ball, torch.arange(len(x), device=x.device)
    start = attack.start(x, ctx)
    images, labels, x_adv = x, y, start
    for step in range(attack.steps):
        gradient, logits = input_gradient(network, x_adv, labels, attack.loss)
        if step & (step - 1) == 0:                               # 0, 1, 2, 4, 8, ...
            moving = (margin(logits, labels) >= 0).nonzero().squeeze(1)      # waits: how many there are
            if not len(moving):
                return torch.zeros_like(y, dtype=torch.bool)
            places, images, labels, x_adv, gradient = (t[moving] for t in (places, images, labels, x_adv, gradient))
        x_adv = threat.project(images, threat.step(x_adv, gradient, attack.step_size))
    with torch.no_grad():
        right = predictions(network(x_adv)) == labels
    return torch.zeros_like(y, dtype=torch.bool).index_copy(0, places, right)


class Validation:
    """Accuracies on named parts of a data set, from the same random starts in every epoch.

    robust       False (clean training): clean accuracy alone
    batch        images at a time; it matters only to `batch_means` and to the random starts
    batch_means  quirk batch-mean-acc: accuracies are plain means over batches, however small the last one is
    """

    def __init__(self, parts: dict[str, Split], *, attack: str, eps: float, step_size: float, steps: int = 40,
                 seed: int, robust: bool = True, batch: int = 1024, batch_means: bool = False):
        if batch < 1:
            raise ValueError(f"a batch holds 1 image or more, not {batch}")
        self.parts, self.seed, self.batch, self.batch_means = dict(parts), seed, batch, batch_means
        self.attack = validation_attack(attack, eps=eps, step_size=step_size, steps=steps) if robust else None

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """{PART_clean_accuracy, PART_robust_accuracy: fractions, n_PART: images}; the model stays as it is."""
        numbers: dict[str, float] = {}
        for part, split in self.parts.items():
            with judged(model, split.device) as network:
                numbers[f"{part}_clean_accuracy"] = self.measure(network, part, None)
                if self.attack is not None:
                    numbers[f"{part}_robust_accuracy"] = self.measure(network, part, self.attack)
            numbers[f"n_{part}"] = len(split)
        return numbers

    def measure(self, network: nn.Module, part: str, attack: PGD | None) -> float:
        """The share of a part that is classified correctly, under the attack if one is given."""
        right = []
        for images, y, ctx in in_batches(self.parts[part], self.batch, self.seed, part):
            x = to_float(images)
            if attack is None:
                with torch.no_grad():
                    right.append((predictions(network(x)) == y).float())
            else:
                right.append(withstands(network, attack, x, y, ctx).float())
        return mean(right, self.batch_means)
