"""AdaRAT's barrier on RPAT's loss: no paper's method, but what its two terms give together.

    x' by PGD on CE in eval mode;  c = CE(x);  RP = MSE( f(mid), r*f(x) + (1-r)*f(x') ),  mid = r*x + (1-r)*x'
    L = c                                                while c >= 0.7*up      (AdaRAT's gate)
        B(c) + lam*RP + beta/epsilon*( CE(x') - c )      below it

B is the barrier of adarat/method.py, RP the robust perception of rpat/method.py (there CE(x') + lam*RP).
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from adarat.method import Ratio
from common.types import Attack, Batch, LossOut, StepContext
from rpat.method import Perception, accuracy, attacked


@dataclass(frozen=True)
class BarrierOnPerception:
    """RPAT's PGD-AT with the clean loss behind AdaRAT's barrier.  Passes: x', mid, x, as RPAT's, in its order."""

    attack: Attack
    ratio: Ratio
    perception: Perception

    def modules(self) -> dict[str, nn.Module]:
        return {}

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> LossOut:
        x, y = batch.x, batch.y
        x_adv = attacked(self.attack, model, x, y, ctx)
        adv_logits = model(x_adv)
        middle = model(self.perception.middle(x, x_adv))
        clean_logits = model(x)
        adversarial = ctx.mean(F.cross_entropy(adv_logits, y, reduction="none"))
        clean = ctx.mean(F.cross_entropy(clean_logits, y, reduction="none"))
        term = self.perception.term(middle, clean_logits, adv_logits, ctx)
        loss = self.ratio.weigh(plain=adversarial + term, clean=clean, adversarial=adversarial, divergence=term)
        return LossOut(loss, {**self.ratio.logs(clean, adversarial), "perception_term": term.detach(),
                              "clean_accuracy": accuracy(clean_logits, y),
                              "adversarial_accuracy": accuracy(adv_logits, y)})
