"""AdaRAT: the clean loss behind a barrier, so that the ratio of accuracy to robustness adapts as training goes on.

    R     = beta/epsilon * ( L(x') - L(x) )                                      the fixed ratio (FixRAT)
    B(c)  = max(0, tan( pi/2 * (c - down)/(up - down) )) ** (1 + tao)            the barrier: 0 at the floor `down`,
                                                                                 unbounded at the ceiling `up`
    plain    CE(x') | TRADES: CE(x) + lamda*K | KD-AT, IAD: L(x')
    FixRAT   L(x) + lamda*K + R
    AdaRAT   c = L(x) alone           while c >= 0.7*up   (the gate: in the released code only)
             B(c) + lamda*K + R       below it

L is the batch mean of the cross-entropy, for KD-AT and IAD of the distillation loss; K is TRADES' divergence, absent
elsewhere.  x' and what teachers say are constants; gradients flow through f(x) and f(x') wherever they stand.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adarat.settings import GATE
from common.types import Attack, Batch, LossOut, StepContext


@dataclass(frozen=True)
class Ratio:
    """How clean loss and robustness are weighed.  variant: "plain", "fixrat" or "adarat"; epsilon in [0,1] units."""

    variant: str = "plain"
    beta: float = 0.04
    epsilon: float = 8 / 255
    up_lim: float = 1.1
    down_lim: float = 0.4
    tao: float = 0.01

    def regulariser(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        """R = beta/epsilon * (L(x') - L(x)), from two scalars."""
        return self.beta / self.epsilon * (adversarial - clean)

    def barrier(self, clean: Tensor) -> Tensor:
        """B(c), elementwise.  Not clamped at the floor: the tangent wraps far below it, as in the released code."""
        angle = math.pi / 2 * (clean - self.down_lim) / (self.up_lim - self.down_lim)
        return torch.tan(angle).clamp_min(0) ** (1 + self.tao)

    def gated(self, clean: Tensor) -> Tensor:
        """Whether c is above the gate, where the clean loss stands alone."""
        return clean.detach() >= GATE * self.up_lim

    def weigh(self, *, plain: Tensor, clean: Tensor, adversarial: Tensor, divergence: Tensor | float = 0.0) -> Tensor:
        """The loss to minimise, from the scalars of a batch; `divergence` is lamda*K."""
        if self.variant == "plain":
            return plain
        ratio = self.regulariser(clean, adversarial)
        if self.variant == "fixrat":
            return clean + divergence + ratio
        # Near its pole the tangent is about 1e7 in float32, so what `where` drops is finite, and so is its gradient.
        return torch.where(self.gated(clean), clean, self.barrier(clean) + divergence + ratio)

    def logs(self, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        """What the figures show: the terms of the loss, whichever variant trains on them."""
        clean, adversarial = clean.detach(), adversarial.detach()
        gated = self.gated(clean)
        floor = torch.full_like(clean, self.down_lim)
        return {"clean_loss": clean, "adversarial_loss": adversarial,
                "barrier": self.barrier(torch.where(gated, floor, clean)),
                "ratio_term": self.regulariser(clean, adversarial), "gated": gated.float()}


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL(softmax first || softmax second) of logits (B,K), per image (B,)."""
    return (first.softmax(1) * (first.log_softmax(1) - second.log_softmax(1))).sum(1)


def trades_divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """K_i = sum_k q_k*(log q_k - log p_k(x')), q = max(p(x), 1e-8) not renormalised; logits (B,K) -> (B,)."""
    floored = clean.softmax(1).clamp_min(1e-8)
    return (floored * (floored.log() - adversarial.log_softmax(1))).sum(1)


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of the batch that is classified as y, detached."""
    return (logits.detach().argmax(1) == y).float().mean()


@dataclass(frozen=True)
class StandardTraining:
    """ST: CE(x)."""

    recordable: ClassVar[bool] = True

    def modules(self) -> dict[str, nn.Module]:
        return {}

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> LossOut:
        logits = model(batch.x)
        loss = ctx.mean(F.cross_entropy(logits, batch.y, reduction="none"))
        return LossOut(loss, {"clean_loss": loss.detach(), "clean_accuracy": accuracy(logits, batch.y)})


@dataclass(frozen=True)
class AdversarialTraining:
    """PGD-AT, FAT and DAT, which differ in the attack, and TRADES (lamda is not None).

    attack_in_train_mode  quirk attack-train-bn: batch-norm statistics move while x' is sought, dropout is active
    clean_pass            quirk clean-pass: x passes in train mode although the plain loss does not use it
    """

    recordable: ClassVar[bool] = True

    attack: Attack
    ratio: Ratio = field(default_factory=Ratio)
    lamda: float | None = None
    attack_in_train_mode: bool = True
    clean_pass: bool = True

    def modules(self) -> dict[str, nn.Module]:
        return {}

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> LossOut:
        x, y = batch.x, batch.y
        with ctx.attacking(model, self.attack_in_train_mode) as target:
            x_adv = self.attack(target, x, y, ctx)
        clean_logits = self.clean_logits(model, x)
        adv_logits = model(x_adv)
        adversarial = ctx.mean(F.cross_entropy(adv_logits, y, reduction="none"))
        logs = {"adversarial_accuracy": accuracy(adv_logits, y)}
        if clean_logits is None:
            return LossOut(adversarial, {"adversarial_loss": adversarial.detach(), **logs})
        clean = ctx.mean(F.cross_entropy(clean_logits, y, reduction="none"))
        if self.lamda is None:
            loss = self.ratio.weigh(plain=adversarial, clean=clean, adversarial=adversarial)
        else:
            k = self.lamda * ctx.mean(trades_divergence(clean_logits, adv_logits))
            loss = self.ratio.weigh(plain=clean + k, clean=clean, adversarial=adversarial, divergence=k)
        return LossOut(loss, {**self.ratio.logs(clean, adversarial), **logs,
                              "clean_accuracy": accuracy(clean_logits, y)})

    def clean_logits(self, model: nn.Module, x: Tensor) -> Tensor | None:
        """f(x) where the loss uses it; without gradient where only batch norm and the logs do; else None."""
        used = self.ratio.variant != "plain" or self.lamda is not None
        if not used and not self.clean_pass:
            return None
        with torch.set_grad_enabled(used):
            return model(x)


@dataclass(frozen=True)
class Distillation:
    """KD-AT and, with `begin` and `b`, IAD: a robust and a standard teacher t_r, t_s, both in eval mode.

        L(x)  = w_ce*CE(x) + w_r*KL(t_r(x) || p(x)) + w_s*KL(t_s(x) || p(x))
        IAD, from 0-based epoch `begin` on, in L(x') alone:  the middle term becomes
                w_r*( mean_i a_i*KL_i(t_r(x') || p(x')) + mean_i (1-a_i)*KL_i(p(x) || p(x')) ),
                a_i = (probability that t_r gives y_i on x'_i) ** b, a constant
    """

    recordable: ClassVar[bool] = True

    attack: Attack
    robust_teacher: nn.Module
    standard_teacher: nn.Module
    ratio: Ratio = field(default_factory=Ratio)
    weights: tuple[float, float, float] = (0.25, 0.5, 0.25)          # CE, robust teacher, standard teacher
    begin: int | None = None                                         # None: KD-AT
    b: float = 0.1
    attack_in_train_mode: bool = True
    clean_pass: bool = True

    def modules(self) -> dict[str, nn.Module]:
        return {"robust_teacher": self.robust_teacher, "standard_teacher": self.standard_teacher}

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> LossOut:
        x, y = batch.x, batch.y
        with ctx.attacking(model, self.attack_in_train_mode) as target:
            x_adv = self.attack(target, x, y, ctx)
        introspects = self.begin is not None and ctx.epoch >= self.begin
        used = self.ratio.variant != "plain" or introspects
        clean_logits = clean = None
        if used or self.clean_pass:
            with torch.set_grad_enabled(used):
                clean_logits = model(x)
                clean = ctx.mean(self.distance(clean_logits, y, *self.teachers(x)))
        adv_logits = model(x_adv)
        robust, standard = self.teachers(x_adv)
        adversarial = ctx.mean(self.distance(adv_logits, y, robust, standard, clean_logits if introspects else None))
        logs = {"adversarial_accuracy": accuracy(adv_logits, y), "teacher_accuracy": accuracy(robust, y)}
        if clean is None:
            return LossOut(adversarial, {"adversarial_loss": adversarial.detach(), **logs})
        loss = self.ratio.weigh(plain=adversarial, clean=clean, adversarial=adversarial)
        return LossOut(loss, {**self.ratio.logs(clean, adversarial), **logs,
                              "clean_accuracy": accuracy(clean_logits, y)})

    def teachers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the robust and of the standard teacher, constants."""
        with torch.no_grad():
            return self.robust_teacher(x), self.standard_teacher(x)

    def distance(self, logits: Tensor, y: Tensor, robust: Tensor, standard: Tensor,
                 clean_logits: Tensor | None = None) -> Tensor:
        """L per image (B,); with `clean_logits` the student trusts its own p(x) where the teacher errs (IAD)."""
        middle = divergence(robust, logits)
        if clean_logits is not None:
            trust = robust.softmax(1).gather(1, y[:, None]).squeeze(1) ** self.b
            middle = trust * middle + (1 - trust) * divergence(clean_logits, logits)
        by_label, by_robust, by_standard = self.weights
        return (by_label * F.cross_entropy(logits, y, reduction="none") + by_robust * middle
                + by_standard * divergence(standard, logits))
