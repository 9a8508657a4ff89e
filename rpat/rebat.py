"""RPAT, part 2: ReBAT and RPAT++ (arXiv 2508.02186; the released `RPAT_SOTAs`).

    loss = CE(x') + beta*D
    ReBAT    D = KL( softmax f_wa(x'), softmax f(x') )
    RPAT++   D = KL( softmax( f_wa(mid) - (1-r)*f_wa(x) ), softmax( r*f(x') ) ),   mid = x + r*(x' - x)

f_wa is the weight average of f, a constant.  At r = 1 RPAT++ is ReBAT, at r = 0 nothing.  D is added only where it is
below 1e10.  beta is 0, and f_wa does not pass, before the warm-up's end.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.types import Attack, Batch, LossOut, StepContext
from rpat.method import Stateless, accuracy, attacked, divergence, summed
from rpat.rebat_attack import seen

SANE = 1e10                               # D from which on, and as NaN, it is left out


@dataclass(frozen=True)
class Beta:
    """The weight of D at a step: 0 before 0-based epoch `warmup`, then `beta` or, unless beta is 0, the `schedule`'s.

        "dependent"   (lr_max/lr(t) - 1)/2, 0 where lr(t) is 0        t = epochs done at the end of the step
        "piecewise"   beta, from t = stage2 on beta*factor

    An epoch whose first step has the weight 0 has it throughout, as in the released code.  lr is t -> learning rate,
    which does not rise within an epoch.
    """

    beta: float = 1.0
    warmup: int = 105
    schedule: str | None = None
    lr: Callable[[float], float] | None = None
    lr_max: float = 0.1
    factor: float = 1.5
    stage2: float = 150

    def __post_init__(self):
        if self.schedule not in (None, "dependent", "piecewise"):
            raise ValueError(f"schedule {self.schedule!r}")
        if self.schedule == "dependent" and self.lr is None:
            raise ValueError("the dependent weight needs the learning rate")

    def __call__(self, epoch: int, index: int, steps: int) -> float:
        """The weight at 0-based step `index` of the `steps` of 0-based epoch `epoch`."""
        if epoch < self.warmup or self.beta == 0 or self.at(epoch + 1 / steps) == 0:
            return 0.0
        return self.at(epoch + (index + 1) / steps)

    def at(self, t: float) -> float:
        """What the schedule says, warm-up or not."""
        if self.schedule == "dependent":
            lr = self.lr(t)
            return (self.lr_max / lr - 1) / 2 if lr > 0 else 0.0
        return self.beta * self.factor if self.schedule == "piecewise" and t >= self.stage2 else self.beta


@dataclass(frozen=True)
class ReBAT(Stateless):
    """ReBAT (Wang et al. 2023), on labels (B,) or on mixed ones (B,K), whose images' own labels (B,) are batch.extra.

    train_mode_attack   quirk: the attack passes in train mode; off: in eval mode
    wa_train_mode       quirk: f_wa passes in train mode, its statistics move, in the first averaged epoch (`warmup`)
    half_inputs         quirk: images are rounded to float16, in which the attack computes
    l1                  adds l1 times the sum of |w| over the parameters that `penalised` names
    Passes of f: the attack's, x'; of f_wa: x'.
    """

    attack: Attack
    weight: Beta = field(default_factory=Beta)
    train_mode_attack: bool = True
    wa_train_mode: bool = True
    half_inputs: bool = True
    l1: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> LossOut:
        x, own = images(batch, self.half_inputs), own_labels(batch)
        x_adv = attacked(self.attack, model, x, batch.y, ctx, self.train_mode_attack)
        adversarial = model(seen(x_adv))
        beta = self.weight(ctx.epoch, ctx.step - ctx.epoch * ctx.steps_per_epoch, ctx.steps_per_epoch)
        terms = {"adversarial_loss": ctx.mean(F.cross_entropy(adversarial, batch.y, reduction="none")),
                 "divergence_term": beta * self.regulariser(x, x_adv, adversarial, ctx) if beta
                 else adversarial.new_zeros(())}
        if self.l1:
            terms["l1_term"] = self.l1 * sum(weight.abs().sum() for name, weight in model.named_parameters()
                                             if penalised(name))
        return summed(terms, adversarial_accuracy=accuracy(adversarial, own), beta=adversarial.new_full((), beta))

    def regulariser(self, x: Tensor, x_adv: Tensor, adversarial: Tensor, ctx: StepContext) -> Tensor:
        """D, or 0 where it is left out."""
        if ctx.average is None:
            raise ValueError("ReBAT and RPAT++ need the weight average: fit with `average`")
        with ctx.attacking(ctx.average, self.wa_train_mode and ctx.epoch == self.weight.warmup) as average, \
                torch.no_grad():
            target = self.target(average, x, x_adv)
        return sane_divergence(target, self.student(adversarial), ctx)

    def target(self, average: nn.Module, x: Tensor, x_adv: Tensor) -> Tensor:
        """The logits (B,K) of D's first distribution."""
        return average(seen(x_adv))

    def student(self, adversarial: Tensor) -> Tensor:
        """The logits (B,K) of D's second distribution, of f(x')."""
        return adversarial


@dataclass(frozen=True)
class RPATpp(ReBAT):
    """RPAT++: ReBAT with robust perception; rate: r.  Passes of f_wa: x, mid."""

    rate: float = 0.5

    def target(self, average: nn.Module, x: Tensor, x_adv: Tensor) -> Tensor:
        clean = average(seen(x))
        middle = average(seen(x + self.rate * (x_adv - x)))
        return middle - (1 - self.rate) * clean

    def student(self, adversarial: Tensor) -> Tensor:
        return self.rate * adversarial


def sane_divergence(target: Tensor, student: Tensor, ctx: StepContext) -> Tensor:
    """D = KL(softmax target, softmax student) over the batch, of logits (B,K), target a constant; 0 unless D < 1e10."""
    log_p, log_q = target.log_softmax(1), student.log_softmax(1)
    kept = ctx.mean(divergence(log_p, log_q.detach())) < SANE
    # Each factor is replaced, not the product: a NaN times the 0 that `where` sends back would still be a NaN.
    return ctx.mean(divergence(torch.where(kept, log_p, 0), torch.where(kept, log_q, 0)))


def images(batch: Batch, half: bool) -> Tensor:
    """The images, rounded to float16 and in that type if `half`."""
    return batch.x.half() if half else batch.x


def own_labels(batch: Batch) -> Tensor:
    """The labels (B,) on which accuracy is counted: under CutMix those before mixing."""
    if batch.y.dim() == 1:
        return batch.y
    if batch.extra is None:
        raise ValueError("mixed labels need the images' own ones in batch.extra")
    return batch.extra


def penalised(name: str) -> bool:
    """Whether `--l1` and `--l2` hold a parameter down: one with neither `bn` nor `bias` in its name."""
    return "bn" not in name and "bias" not in name


def clean_forward(half_inputs: bool = True) -> Callable[[nn.Module, Batch, StepContext], None]:
    """Quirk clean-forward, as `fit`'s after_step: x passes after the optimiser's step; batch norm's statistics move."""
    def after_step(model: nn.Module, batch: Batch, ctx: StepContext) -> None:
        with torch.no_grad():
            model(seen(images(batch, half_inputs)))
    return after_step
