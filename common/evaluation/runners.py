"""From an evaluator to the stages that attack a chunk of images.

A runner is made once per evaluator.  For each chunk it gives named stages; the harness calls them one after another
with the positions (k,) of the images that are still classified correctly, and gets their adversarial versions
(k,C,H,W).  A measuring runner (common.evaluation.measuring) gets the whole chunk instead.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.attacks.balls import ball
from common.attacks.fgsm import fgsm
from common.attacks.losses import LOSSES
from common.attacks.pgd import PGD, cw
from common.evaluation import autoattack
from common.evaluation.decision import Search
from common.evaluation.fast_search import FastSearch
from common.evaluation.kinds import CHANGED_KINDS, SEARCH_KINDS
from common.evaluation.measuring import Measuring
from common.evaluation.noise import Noise, Weakened
from common.evaluation.perception import Perception, noise_ends, pgd_ends
from common.evaluation.plans import Evaluator
from common.evaluation.searches import KIND as FAST
from common.seeds import fold
from common.types import StepContext

Stage = tuple[str, Callable[[Tensor], Tensor]]
Runner = Callable[[Tensor, Tensor, int], Iterator[Stage]]       # images, labels, seed of the chunk -> stages


@dataclass(frozen=True)
class GradientRunner:
    """FGSM, PGD, CW: one stage per restart.

    Starts are drawn for the whole chunk, so an image's start depends neither on `batch_size` nor on which other images
    are still standing, and two models are attacked from the same starts.
    """

    network: nn.Module
    attack: PGD
    restarts: int
    batch_size: int

    def __call__(self, x: Tensor, y: Tensor, seed: int) -> Iterator[Stage]:
        for restart in range(self.restarts):
            ctx = StepContext(generator=torch.Generator().manual_seed(fold(seed, "restart", restart)))
            start = self.attack.start(x, ctx)

            def attack(standing: Tensor, start: Tensor = start) -> Tensor:
                return torch.cat([self.attack.from_start(self.network, x[part], y[part], start[part])
                                  for part in standing.split(self.batch_size)])
            yield f"restart-{restart + 1}", attack


def gradient_attack(evaluator: Evaluator) -> PGD:
    """The attack of an evaluator of kind fgsm, pgd, weak-pgd, perception-pgd or cw."""
    eps, step_size, steps, norm = evaluator.eps, evaluator.step_size, evaluator.steps, evaluator.norm
    if evaluator.kind == "fgsm":
        return fgsm(eps, norm=norm)
    if evaluator.kind == "cw":
        return cw(eps, step_size, steps, norm=norm, confidence=evaluator.setting("confidence"))
    return PGD(eps, step_size, steps, norm=norm, loss=LOSSES[evaluator.setting("loss")],
               random_start=evaluator.setting("random_start"))


def runner_for(evaluator: Evaluator, network: nn.Module, *, classes: int, device: torch.device,
               batch_size: int) -> Runner | Measuring:
    """The runner of an evaluator on a network with `classes` classes."""
    kind = evaluator.kind
    if kind == "clean" or kind in CHANGED_KINDS:         # what is changed are the images, by the harness
        return lambda x, y, seed: iter(())
    if kind in autoattack.OFFICIAL:
        return autoattack.Official(evaluator, network, classes, device)
    if kind == FAST:
        return FastSearch(evaluator, network, classes, device, batch_size)
    if kind == "torchattacks-autoattack":
        return autoattack.Torchattacks(evaluator, network, classes)
    if kind in SEARCH_KINDS:
        return Search(evaluator, network, device, batch_size)
    threat = ball(evaluator.norm, evaluator.eps)
    if kind == "uniform-noise":
        return Noise(threat)
    if kind == "perception-noise":
        return Perception(network, threat, noise_ends(threat), batch_size)
    attack = gradient_attack(evaluator)
    if kind == "perception-pgd":
        return Perception(network, threat, pgd_ends(network, attack, batch_size), batch_size)
    runner = GradientRunner(network, attack, evaluator.restarts, batch_size)
    return Weakened(runner, evaluator.setting("share")) if kind == "weak-pgd" else runner
