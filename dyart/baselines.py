"""What DyART is compared with, as its code has it: clean training, AT, TRADES and MART (arXiv 2302.03015, section 5).

    p(x) = softmax f(x);    KL_i = sum_k p_k(x_i) * (log p_k(x_i) - log p_k(x'_i))
    clean     CE(x)
    AT        CE(x')
    TRADES    mean_i( -0.9*log p_y(x_i) - 0.1*mean_k log p_k(x_i) ) + beta * mean_i KL_i
    MART      CE(x') - mean_i log(1.0001 - max_{k != y} p_k(x'_i) + 1e-12)
              + beta * mean_i( KL_i * (1.0000001 - p_y(x_i)) ),     with log(p_k(x'_i) + 1e-12) in the KL

CE is the batch mean of the cross-entropy.  x' is a constant; gradients flow through f(x) and f(x') wherever they stand.
The passes of a loss are in train mode and in the order that is written here, for batch norm's statistics follow them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.attacks import PGD, TradesPGD, fgsm, gaussian, towards_noise, untracked
from common.types import Attack, Batch, LossOut, StepContext

SMOOTHING = 0.1                 # quirk smooth-trades
BESIDE = 0.001                  # deviation of the normal noise that MART's attack starts from


def training_attack(method: str, *, name: str, eps: float, step_size: float, steps: int) -> Attack:
    """The attack of "AT", "TRADES" or "MART" in training; eps and step_size in the norm's own units, images in [0,1].

    AT       ascends CE: "linf-pgd" from a uniform start in the ball, "fgsm" (one step of eps from x),
             "l2-pgd" from a start on the sphere, towards uniform noise
    TRADES   ascends KL(p(x) || p(x')), p(x) a constant: "linf-pgd" from a uniform start, "l2-pgd" from x + 0.001*N(0,1)
             by steps of 2*eps/steps, whatever `step_size` says
    MART     ascends CE: "linf-pgd" from x + 0.001*N(0,1), not clipped
    ValueError for another method, or an attack that the method does not have.
    """
    if (method, name) == ("AT", "linf-pgd"):
        return PGD(eps, step_size, steps)
    if (method, name) == ("AT", "fgsm"):
        return fgsm(eps)
    if (method, name) == ("AT", "l2-pgd"):
        return PGD(eps, step_size, steps, norm="l2", displace=towards_noise)
    if (method, name) == ("TRADES", "linf-pgd"):
        return TradesPGD(eps, step_size, steps)
    if (method, name) == ("TRADES", "l2-pgd"):
        return TradesPGD(eps, 2 * eps / max(steps, 1), steps, norm="l2", displace=gaussian(BESIDE), clip_start=False)
    if (method, name) == ("MART", "linf-pgd"):
        return PGD(eps, step_size, steps, displace=gaussian(BESIDE), clip_start=False)
    raise ValueError(f"{method} has no training attack {name!r}")


def cross_entropies(logits: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log p_y per image (B,); with smoothing s: (1-s) times that, and s times the mean over all classes."""
    return F.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)


def trades_divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """KL_i (B,) of logits (B,K) at x and x'."""
    return (clean.softmax(1) * (clean.log_softmax(1) - adversarial.log_softmax(1))).sum(1)


def mart_boosted(adversarial: Tensor, y: Tensor) -> Tensor:
    """-log p_y(x') - log(1.0001 - max_{k != y} p_k(x') + 1e-12) per image (B,), of logits (B,K) at x'."""
    others = adversarial.softmax(1).scatter(1, y[:, None], -1.0).max(1).values
    return cross_entropies(adversarial, y) - torch.log(1.0001 - others + 1e-12)


def mart_divergence(clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
    """KL_i * (1.0000001 - p_y(x_i)) (B,), of logits (B,K) at x and x'; 1e-12 is added inside the log of p(x')."""
    p = clean.softmax(1)
    divergence = (p * (clean.log_softmax(1) - torch.log(adversarial.softmax(1) + 1e-12))).sum(1)
    return divergence * (1.0000001 - p.gather(1, y[:, None]).squeeze(1))


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of the batch that is classified as y, detached."""
    return (logits.detach().argmax(1) == y).float().mean()


@dataclass(frozen=True)
class CleanTraining:
    """CE(x), one pass: the burn-in that DyART starts from."""

    def modules(self) -> dict[str, nn.Module]:
        return {}

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> LossOut:
        logits = model(batch.x)
        loss = ctx.mean(cross_entropies(logits, batch.y))
        return LossOut(loss, {"clean_loss": loss.detach(), "clean_accuracy": accuracy(logits, batch.y)})


@dataclass(frozen=True)
class AT:
    """CE(x'), x' sought in eval mode; then x passes without gradient.

    clean_pass  quirk at-clean-pass: that pass, for the logged accuracy, moves batch-norm statistics; False: no pass
    keep_clean  one pass of x and x' as one batch instead, and CE the mean over both; no clean pass
    """

    attack: Attack
    clean_pass: bool = True
    keep_clean: bool = False

    def modules(self) -> dict[str, nn.Module]:
        return {}

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> LossOut:
        x, y = batch.x, batch.y
        with ctx.attacking(model, False) as target:
            x_adv = self.attack(target, x, y, ctx)
        logs = {}
        if self.keep_clean:
            clean, adversarial = model(torch.cat((x, x_adv))).chunk(2)
            losses = (cross_entropies(clean, y) + cross_entropies(adversarial, y)) / 2
            logs["clean_accuracy"] = accuracy(clean, y)
        else:
            adversarial = model(x_adv)
            losses = cross_entropies(adversarial, y)
            if self.clean_pass:
                with torch.no_grad():
                    logs["clean_accuracy"] = accuracy(model(x), y)
        loss = ctx.mean(losses)
        name = "mixed_loss" if self.keep_clean else "adversarial_loss"
        return LossOut(loss, {name: loss.detach(), "adversarial_accuracy": accuracy(adversarial, y), **logs})


@dataclass(frozen=True)
class TRADES:
    """CE(x), with label smoothing, + beta * mean KL; passes of x, then x'.

    x' is sought in train mode, and the statistics of batch norm are not tracked meanwhile.
    smooth: quirk smooth-trades; False: plain cross-entropy.
    """

    attack: Attack
    beta: float = 6.0
    smooth: bool = True

    def modules(self) -> dict[str, nn.Module]:
        return {}

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> LossOut:
        x, y = batch.x, batch.y
        with ctx.attacking(model, True) as target, untracked(target):
            x_adv = self.attack(target, x, y, ctx)
        clean, adversarial = model(x), model(x_adv)
        natural = ctx.mean(cross_entropies(clean, y, SMOOTHING if self.smooth else 0.0))
        robust = self.beta * ctx.mean(trades_divergence(clean, adversarial))
        return LossOut(natural + robust, {"clean_loss": natural.detach(), "divergence_term": robust.detach(),
                                          "clean_accuracy": accuracy(clean, y),
                                          "adversarial_accuracy": accuracy(adversarial, y)})


@dataclass(frozen=True)
class MART:
    """Boosted cross-entropy of x' + beta * mean of the weighted KL; x' sought in eval mode; passes of x, then x'."""

    attack: Attack
    beta: float = 6.0

    def modules(self) -> dict[str, nn.Module]:
        return {}

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> LossOut:
        x, y = batch.x, batch.y
        with ctx.attacking(model, False) as target:
            x_adv = self.attack(target, x, y, ctx)
        clean, adversarial = model(x), model(x_adv)
        boosted = ctx.mean(mart_boosted(adversarial, y))
        robust = self.beta * ctx.mean(mart_divergence(clean, adversarial, y))
        return LossOut(boosted + robust, {"boosted_loss": boosted.detach(), "divergence_term": robust.detach(),
                                          "clean_accuracy": accuracy(clean, y),
                                          "adversarial_accuracy": accuracy(adversarial, y)})
