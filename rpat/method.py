"""RPAT, part 1: robust perception beside four baselines (arXiv 2508.02186; the released `RPAT_Benchmarks`).

    RP    = MSE( f(mid), r*f(x) + (1-r)*f(x') ),   mid = r*x + (1-r)*x'     perception changes linearly from x to x'
    KL(P, Q) = mean_i sum_k P_ik*(log P_ik - log Q_ik);   p = softmax f;  CE the batch mean, MSE that over logits too

    PGD-AT          CE(x') + lam*RP
    TRADES          CE(x) + beta*KL(p(x), p(x')) + lam*RP
    MART            BCE + beta*MK + lam*RP
                        BCE = CE(x') - mean_i log(1.0001 - max_{k != y} p_k(x') + 1e-12)
                        MK  = mean_i (1.0000001 - p_y(x)) * sum_k p_k(x)*(log p_k(x) - log(p_k(x') + 1e-12))
    Consistency-AT  CE(x') + lam*JSD + lam*RP     on two views x1, x2 of each image, 2B images in all
                        JSD = (KL(p1, m) + KL(p2, m))/2,  p1, p2 = softmax(f(x1')/T), softmax(f(x2')/T),  m their mean

lam*RP stands where `perception` is given.  x' is a constant, nothing else is.  Attacks run in eval mode, the passes of
a loss in train mode, in the order of the released code, in which they move batch norm's running statistics.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.types import Attack, Batch, LossOut, StepContext


def robust_perception(middle: Tensor, clean: Tensor, adversarial: Tensor, rate: float = 0.5) -> Tensor:
    """RP per image (B,) of f(mid), f(x), f(x') (B,K): the mean over classes; 0 where f is linear."""
    return (middle - (rate * clean + (1 - rate) * adversarial)).square().mean(1)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(P, Q) per image (B,) of log-probabilities (B,K); log_q need not be normalised."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


def jensen_shannon(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """JSD per pair (B,) of logits (B,K) divided by the temperature; log m is floored at log 1e-8."""
    log_first, log_second = (first / temperature).log_softmax(1), (second / temperature).log_softmax(1)
    log_middle = ((log_first.exp() + log_second.exp()) / 2).clamp_min(1e-8).log()
    return (divergence(log_first, log_middle) + divergence(log_second, log_middle)) / 2


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """MART's BCE per image (B,) of logits (B,K): CE and the margin to the likeliest wrong class."""
    wrong = logits.softmax(1).scatter(1, y[:, None], 0).amax(1)
    return F.cross_entropy(logits, y, reduction="none") - torch.log(1.0001 - wrong + 1e-12)


def weighted_divergence(clean: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
    """MART's MK per image (B,) of logits (B,K): KL weighted by how little p(x) gives y; the weight has a gradient."""
    doubt = 1.0000001 - clean.softmax(1).gather(1, y[:, None]).squeeze(1)
    return doubt * divergence(clean.log_softmax(1), (adversarial.softmax(1) + 1e-12).log())


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of the batch that is classified as y (B,), detached."""
    return (logits.detach().argmax(1) == y).float().mean()


def summed(terms: dict[str, Tensor], **shares: Tensor) -> LossOut:
    """The sum of the terms, which are logged by name beside other detached scalars."""
    return LossOut(sum(terms.values()), {**{name: term.detach() for name, term in terms.items()}, **shares})


def attacked(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext, train: bool = False) -> Tensor:
    """x' of the shape of x, found in eval mode unless `train`."""
    with ctx.attacking(model, train) as target:
        return attack(target, x, y, ctx)


@dataclass(frozen=True)
class Perception:
    """lam*RP.  rate: r, the share of x in mid; start: the first epoch with it, counted from 1 (0 is as 1)."""

    lam: float = 1.0
    rate: float = 0.5
    start: int = 0

    def active(self, ctx: StepContext) -> bool:
        """Whether this epoch has the term, and with it the passes that it needs."""
        return ctx.epoch + 1 >= self.start

    def middle(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """mid (B,C,H,W)."""
        return self.rate * x + (1 - self.rate) * x_adv

    def term(self, middle: Tensor, clean: Tensor, adversarial: Tensor, ctx: StepContext) -> Tensor:
        """lam*RP, of logits (B,K)."""
        return self.lam * ctx.mean(robust_perception(middle, clean, adversarial, self.rate))


@dataclass(frozen=True)
class Consistency:
    """lam*JSD between the two views."""

    lam: float = 1.0
    temperature: float = 0.5

    def term(self, adversarial: Tensor, ctx: StepContext) -> Tensor:
        """lam*JSD, of the logits (2B,K) of the first views, then of the second."""
        return self.lam * ctx.mean(jensen_shannon(*adversarial.chunk(2), self.temperature))


class Stateless:
    """An objective without networks of its own."""

    recordable: ClassVar[bool] = True

    def modules(self) -> dict[str, nn.Module]:
        return {}


@dataclass(frozen=True)
class StandardTraining(Stateless):
    """CE(x) (`ce`), or with `noise` CE(clip(x + U(-noise, noise))) (`ce_rand`); noise in [0,1] units."""

    noise: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> LossOut:
        x = batch.x
        if self.noise:
            x = (x + self.noise * (2 * ctx.uniform(x) - 1)).clamp(0, 1)
        logits = model(x)
        loss = ctx.mean(F.cross_entropy(logits, batch.y, reduction="none"))
        return summed({"clean_loss": loss}, clean_accuracy=accuracy(logits, batch.y))


@dataclass(frozen=True)
class AdversarialTraining(Stateless):
    """PGD-AT and, with `consistency`, Consistency-AT, whose batches hold two views.  Passes: x'; with RP x', mid, x."""

    attack: Attack
    perception: Perception | None = None
    consistency: Consistency | None = None

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> LossOut:
        x, views = batch.x, 1 if self.consistency is None else 2
        if len(x) != views * len(batch.y):
            raise ValueError(f"{len(x)} images for {len(batch.y)} labels: the objective takes {views} views of each")
        y = batch.y.repeat(views)
        x_adv = attacked(self.attack, model, x, y, ctx)
        adversarial = model(x_adv)
        terms = {"adversarial_loss": ctx.mean(F.cross_entropy(adversarial, y, reduction="none"))}
        shares = {"adversarial_accuracy": accuracy(adversarial, y)}
        if self.consistency:
            terms["consistency_term"] = self.consistency.term(adversarial, ctx)
        if self.perception and self.perception.active(ctx):
            middle = model(self.perception.middle(x, x_adv))
            clean = model(x)
            terms["perception_term"] = self.perception.term(middle, clean, adversarial, ctx)
            shares["clean_accuracy"] = accuracy(clean, y)
        return summed(terms, **shares)


@dataclass(frozen=True)
class Trades(Stateless):
    """TRADES (Zhang et al. 2019).  Passes: x, x', x again under the quirk; with RP mid at the end.

    third_pass  quirk trades-third-pass: KL's p(x) comes from a pass of its own.  It is that of the first pass, so only
                the running statistics notice, and a pass without gradient will do.
    """

    attack: Attack
    beta: float = 6.0
    perception: Perception | None = None
    third_pass: bool = True

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> LossOut:
        x, y = batch.x, batch.y
        x_adv = attacked(self.attack, model, x, y, ctx)
        clean, adversarial = model(x), model(x_adv)
        if self.third_pass:
            with torch.no_grad():
                model(x)
        terms = {"clean_loss": ctx.mean(F.cross_entropy(clean, y, reduction="none")),
                 "divergence_term": self.beta * ctx.mean(divergence(clean.log_softmax(1), adversarial.log_softmax(1)))}
        if self.perception and self.perception.active(ctx):
            middle = model(self.perception.middle(x, x_adv))
            terms["perception_term"] = self.perception.term(middle, clean, adversarial, ctx)
        return summed(terms, clean_accuracy=accuracy(clean, y), adversarial_accuracy=accuracy(adversarial, y))


@dataclass(frozen=True)
class Mart(Stateless):
    """MART (Wang et al. 2020).  Passes: x, x'; with RP x, x', mid."""

    attack: Attack
    beta: float = 6.0
    perception: Perception | None = None

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> LossOut:
        x, y = batch.x, batch.y
        x_adv = attacked(self.attack, model, x, y, ctx)
        clean, adversarial = model(x), model(x_adv)
        terms = {"adversarial_loss": ctx.mean(boosted_cross_entropy(adversarial, y)),
                 "divergence_term": self.beta * ctx.mean(weighted_divergence(clean, adversarial, y))}
        if self.perception and self.perception.active(ctx):
            middle = model(self.perception.middle(x, x_adv))
            terms["perception_term"] = self.perception.term(middle, clean, adversarial, ctx)
        return summed(terms, clean_accuracy=accuracy(clean, y), adversarial_accuracy=accuracy(adversarial, y))
