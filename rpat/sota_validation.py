"""What part 2 measures after each epoch: clean and robust accuracy of the model and of the average, eval mode, float32.

The attack is that of training (`RebatPGD`), whose sizes the quirk select-attack-fixed replaces.
"""

from collections.abc import Iterable

import torch
from torch import nn

from common.attacks.losses import predictions
from common.data import Batches, Split
from common.data.splits import to_float
from common.evaluation.judging import judged
from common.evaluation.validating import in_batches, mean, mine
from common.seeds import fold
from common.types import Batch, StepContext
from rpat.rebat import images
from rpat.rebat_attack import RebatPGD, seen
from rpat.sota_settings import SotaSettings


def selection_attack(settings: SotaSettings, *, stronger: bool = True) -> RebatPGD | None:
    """The attack after each epoch, None under `--eval-attack none`; `--stronger-eval` only where `stronger`."""
    if settings.eval_attack == "none":
        return None
    common = {"norm": settings.norm, "restarts": settings.restarts}
    if stronger and settings.stronger_attack and settings.stronger_eval:
        return RebatPGD(settings.stronger_epsilon / 255, settings.step_size, settings.stronger_attack_iters, **common)
    if "select-attack-fixed" in settings.quirks:
        return RebatPGD(8 / 255, 2 / 255, 10, **common)
    return RebatPGD(settings.eps, settings.step_size, settings.attack_iters, **common)


class SotaValidation:
    """Accuracies of the model and of the average, from the same random starts in every epoch.

    model      the network in training; the average is what `fit` hands over
    split      val or test images (`part`)
    train      batches of augmented training images on which the average is measured too (`--eval-train-robust`)
    Quirk half-test-inputs: images are rounded to float16, in which the attack computes.
    """

    def __init__(self, model: nn.Module, split: Split, settings: SotaSettings, *, train: Batches | None = None):
        self.model, self.split, self.train, self.settings = model, split, train, settings
        self.half = "half-test-inputs" in settings.quirks

    def __call__(self, average: nn.Module) -> dict[str, float]:
        """{PART_clean_accuracy, PART_pgd_accuracy: of the model, PART_wa_...: of the average, n_PART: images}.

        While the average is the model, its numbers are the model's, and train_wa_... are left out.
        """
        part, settings = self.settings.judged_part, self.settings
        found = {f"n_{part}": len(self.split)}
        attack = selection_attack(settings)
        started = not same_weights(self.model, average)
        numbers = self.measure(self.model, self.batches(), attack)
        found |= prefixed(part, numbers)
        found |= prefixed(f"{part}_wa", self.measure(average, self.batches(), attack) if started else numbers)
        if self.train is not None and started:
            found |= prefixed("train_wa", self.measure(average, self.train_batches(),
                                                       selection_attack(settings, stronger=False)))
        return found

    def batches(self) -> Iterable[tuple[Batch, StepContext]]:
        settings = self.settings
        for pixels, y, ctx in in_batches(self.split, settings.batch_size, settings.seed, settings.judged_part):
            yield Batch(to_float(pixels), y), ctx

    def train_batches(self) -> Iterable[tuple[Batch, StepContext]]:
        for number, batch in enumerate(self.train.epoch(0)):
            if not mine(number):
                continue
            generator = torch.Generator(self.split.device)
            generator.manual_seed(fold(self.settings.seed, "validate", "train", number))
            yield batch, StepContext(generator=generator)

    def measure(self, model: nn.Module, batches: Iterable[tuple[Batch, StepContext]],
                attack: RebatPGD | None) -> dict[str, float]:
        """{clean_accuracy, pgd_accuracy}: fractions; without an attack they are equal."""
        clean, robust = [], []
        with judged(model, self.split.device) as network:
            for batch, ctx in batches:
                x = images(batch, self.half)
                with torch.no_grad():
                    clean.append((predictions(network(seen(x))) == batch.y).float())
                if attack is None:
                    continue
                x_adv = attack(network, x, batch.y, ctx)
                with torch.no_grad():
                    robust.append((predictions(network(seen(x_adv))) == batch.y).float())
        return {"clean_accuracy": mean(clean), "pgd_accuracy": mean(clean if attack is None else robust)}


def prefixed(prefix: str, numbers: dict[str, float]) -> dict[str, float]:
    """The numbers under PREFIX_name."""
    return {f"{prefix}_{name}": value for name, value in numbers.items()}


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks have equal parameters and buffers."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)
