"""Generalist (Wang and Wang 2023) with AdaRAT's losses: two learners, an average of each, and a mix of the averages.

    AT learner   the loss of `adarat.method` on (x, x')        ST learner   CE(x)
    average_k <- d*average_k + (1-d)*learner_k                 d = min(0.999, (t+1)/(t+10)), t counts updates from 0
    mixed     <- d*mixed + (1-d)*(w*average_AT + (1-w)*average_ST)
    epochs (from 1) >= 75 that are multiples of 3: both learners take over `mixed` after every batch
The result is `mixed`.  Averages cover parameters and buffers.  It has two learners and so its own loop, on fit's parts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common import ema, memory
from common.capture_training import training_runner
from common.engine import Engine
from common.fast_check import FastCheck
from common.fit import SGD, BatchSource, TrainRecord, crew_of, finish, seeded_step, set_hyper, statistics
from common.journal import Journal, progress
from common.schedules import interpolate
from common.signals import held
from common.types import Batch, Objective, StepContext

DECAY = ema.warmed_up(0.999)


@dataclass(frozen=True)
class Plan:
    """Learning rate and mixing weight by 1-based epoch, and the epochs of reloading."""

    epochs: int
    lr: float = 0.1
    reload_from: int = 75

    @property
    def knots(self) -> tuple[int, int, int, int]:
        return 0, self.epochs // 3, self.epochs * 2 // 3, self.epochs

    def lr_at(self, epoch: int) -> float:
        """The learning rate of both learners."""
        return interpolate(self.knots, (self.lr, self.lr, self.lr / 10, self.lr / 100), epoch)

    def weight_at(self, epoch: int) -> float:
        """w: the AT learner's share of the mix."""
        return interpolate(self.knots, (1.0, 1.0, 1.0, 0.9), epoch)

    def reloads(self, epoch: int) -> bool:
        """Whether the learners take over the mixed weights after each batch of this epoch."""
        return epoch >= self.reload_from and epoch % 3 == 0


class Quintet:
    """Both learners, their averages and the mixed network, all from the same weights."""

    def __init__(self, network: nn.Module):
        self.at = network
        self.st = ema.averaged_copy(network).requires_grad_(True)
        self.at_average, self.st_average, self.mixed = (ema.averaged_copy(network) for _ in range(3))

    def networks(self) -> dict[str, nn.Module]:
        return vars(self)

    def update_average(self, which: str, step: int) -> None:
        """Average of the learner "at" or "st" after its update number `step` (from 0)."""
        ema.update(getattr(self, f"{which}_average"), getattr(self, which), DECAY(step))

    @torch.no_grad()
    def update_mixed(self, weight: float, step: int) -> None:
        """The mix of both averages, averaged into `mixed`."""
        mix = [blend(a, s, weight) for a, s in zip(tensors(self.at_average), tensors(self.st_average), strict=True)]
        ema.move(tensors(self.mixed), mix, DECAY(step))

    @torch.no_grad()
    def reload(self) -> None:
        """Both learners take over the mixed weights and buffers; their momenta stay."""
        for learner in (self.at, self.st):
            for ours, theirs in zip(tensors(learner), tensors(self.mixed), strict=True):
                ours.copy_(theirs)


def tensors(network: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*network.parameters(), *network.buffers()]


def blend(at: Tensor, st: Tensor, weight: float) -> Tensor:
    """weight*at + (1-weight)*st; a counter stays a float until it is averaged, where it is truncated."""
    return weight * at + (1 - weight) * st


@memory.in_training(("at", "at_optim"), ("st", "st_optim"), model="network", copies=4)
def fit_generalist(*, network: nn.Module, at: Objective, st: Objective, batches: BatchSource, plan: Plan,
                   at_optim: SGD, st_optim: SGD, out: Path, weights: Path, seed: int, engine: Engine, identity: str,
                   validate: Callable[[Quintet], dict[str, float]], saves_at: bool = False) -> TrainRecord:
    """Train; resumes as `common.fit.fit` does.  Weights: last (mixed; with `saves_at` the AT learner), at, st."""
    crew = crew_of(batches)
    engine.place(network)
    crew.take_over([*network.parameters(), *network.buffers()])
    five = Quintet(network)
    optimisers = {"at": at_optim.build(five.at), "st": st_optim.build(five.st)}
    parts = {**five.networks(), **{f"{name}_optimiser": optimiser for name, optimiser in optimisers.items()}}
    check = FastCheck(engine, {"the AT learner": five.at, "the ST learner": five.st})
    parts["fast_check"] = check
    journal = Journal(out=out, weights=weights, identity=identity, parts=parts, device=engine.device)
    journal.restore()
    runners = {"at": training_runner(engine, five.at, at), "st": training_runner(engine, five.st, st)}
    generator = torch.Generator(engine.device)
    moving = {name: statistics(getattr(five, name)) for name in optimisers}

    def take_step(index: int, batch: Batch, epoch: int, lr: float) -> dict[str, Tensor]:
        """One step of both learners in the 1-based epoch; what it logs."""
        step, log = journal.step + index, {}
        context = StepContext(generator=seeded_step(generator, seed, step, crew.rank), epoch=epoch - 1, step=step,
                              steps_per_epoch=len(batches), progress=epoch - 1 + index / len(batches), lr=lr,
                              attacking=engine.attacking, **crew.of_step(batch.share, engine.sync_bn))
        context = check.guard(context, batch)
        for name, objective in (("at", at), ("st", st)):
            getattr(five, name).train()
            runners[name].begin()
            loss, logged = objective(runners[name], batch, context)
            optimisers[name].zero_grad(set_to_none=True)
            loss.backward()
            crew.average_gradients(getattr(five, name).parameters())
            optimisers[name].step()
            crew.take_over(moving[name])
            five.update_average(name, step)
            # The AT learner's log goes by the plain names, as every other method's.
            log |= {"loss": loss.detach(), **logged} if name == "at" else {
                "st_loss": loss.detach(), "st_clean_accuracy": logged["clean_accuracy"]}
        five.update_mixed(plan.weight_at(epoch), step)
        if plan.reloads(epoch):
            five.reload()
        return log

    with journal.kept_if_stopped():
        while journal.epoch < plan.epochs:
            epoch, first = journal.epoch + 1, len(journal.logs)
            journal.begin_epoch()
            lr = plan.lr_at(epoch)
            for optimiser in optimisers.values():
                set_hyper(optimiser, lr, 0.9)
            for index, batch in enumerate(progress(batches.epoch(epoch - 1, first), images=batches.images_per_epoch,
                                                   label=f"epoch {epoch}/{plan.epochs}", share=first / len(batches)),
                                          start=first):
                with held():
                    journal.log(take_step(index, batch, epoch, lr), crew.weight(batch.share))
            crew.check_alike(five.mixed)
            means = journal.means()
            for module in five.networks().values():
                module.eval()
            journal.close_epoch({**means, "mixing_weight": plan.weight_at(epoch)}, images=batches.images_per_epoch,
                                lr=lr, validation=crew.from_first(validate(five)))
            journal.say(plan.epochs)
    last = five.at if saves_at else five.mixed
    return finish(journal, {"last": last, "at": five.at, "st": five.st}, engine)
