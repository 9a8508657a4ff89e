"""The one training loop.  It knows no paper, no attack, no data set and no network.

One step: before_step, objective, backward, mean over ranks, clip, optimiser step, after_step, average.  Randomness is
folded from (seed, purpose, step), so a run that was killed and started again ends with the same weights.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from common import ema, group, memory
from common.capture_training import training_runner
from common.engine import Engine
from common.fast_check import FastCheck
from common.files import sha256_of
from common.journal import Journal, progress
from common.seeds import fold
from common.signals import held
from common.types import Batch, Objective, Schedule, StepContext


class BatchSource(Protocol):
    """Steps per epoch, and the batches of an epoch (0-based) from a step on, the same whenever they are asked for.

    With several processes it has `ranks`, their number, and hands out this rank's share of each batch.
    """

    images_per_epoch: int

    def __len__(self) -> int: ...
    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent; learning rate and momentum come from the schedule."""

    weight_decay: float = 5e-4
    nesterov: bool = False
    clip_norm: float | None = None                                   # total L2 norm of the gradients
    reset_each_epoch: bool = False                                   # momentum starts again from 0 every epoch
    decays: Callable[[str, nn.Parameter], bool] = lambda name, parameter: True

    def build(self, model: nn.Module) -> torch.optim.SGD:
        """The optimiser over the parameters that ask for a gradient, in two groups: decayed or not."""
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        groups = [{"params": [p for name, p in named if self.decays(name, p)], "weight_decay": self.weight_decay},
                  {"params": [p for name, p in named if not self.decays(name, p)], "weight_decay": 0.0}]
        return torch.optim.SGD([one for one in groups if one["params"]], lr=1.0, nesterov=self.nesterov,
                               momentum=0.9)


@dataclass(frozen=True)
class TrainRecord:
    """What training leaves: files (name -> sha256) in the weights folder, and the last line of metrics."""

    epochs: int
    steps: int
    seconds: float
    weights: dict[str, dict[str, str]]
    final: dict[str, Any]
    best: dict[str, float] = field(default_factory=dict)             # name of a selection -> its best score
    notes: list[str] = field(default_factory=list)
    alarms: list[dict[str, Any]] = field(default_factory=list)       # see common.alarms


def seeded_step(generator: torch.Generator, seed: int, step: int, rank: int = 0) -> torch.Generator:
    """Seed the step's generator, alike on all ranks, and the global one for dropout, from (seed, step)."""
    torch.manual_seed(fold(seed, "global", step, *([rank] if rank else [])))
    return generator.manual_seed(fold(seed, "step", step))


def set_hyper(optimiser: torch.optim.Optimizer, lr: float, momentum: float) -> None:
    """Give every parameter group the schedule's values."""
    for settings in optimiser.param_groups:
        settings["lr"], settings["momentum"] = lr, momentum


def crew_of(batches: BatchSource) -> group.Group:
    """The processes that train together; ValueError where the batches are not shared out among them."""
    crew = group.current()
    if (shared := getattr(batches, "ranks", 1)) != crew.ranks:
        raise ValueError(f"the batches are for {shared} processes, there are {crew.ranks}: give rank and ranks "
                         "(Engine.shares)")
    return crew


def statistics(*networks: nn.Module | None) -> list[Tensor]:
    """The running statistics of batch norms, which rank 0 gives all after each step, and what else a module's
    `statistics()` names as such."""
    modules = [module for network in networks if network is not None for module in network.modules()]
    own = [tensor for module in modules if hasattr(module, "statistics") for tensor in module.statistics()]
    return own + [buffer for module in modules if isinstance(module, _NormBase)
                  for buffer in module.buffers(recurse=False)]


@memory.in_training(("objective", "optim"))
def fit(*, model: nn.Module, objective: Objective, batches: BatchSource, schedule: Schedule, optim: SGD, epochs: int,
        out: Path, weights: Path, seed: int, engine: Engine, identity: str = "", average: ema.Averaging | None = None,
        validate: Callable[[nn.Module], dict[str, float]] | None = None, validate_first: bool = False,
        select: Mapping[str, Callable[[dict[str, float]], float]] = MappingProxyType({}),
        online: Collection[str] = (), snapshots: Collection[int] = (),
        observe: Callable[[nn.Module, torch.optim.Optimizer, int], None] | None = None,
        before_step: Callable[[nn.Module, Batch, StepContext], None] | None = None,
        after_step: Callable[[nn.Module, Batch, StepContext], None] | None = None) -> TrainRecord:
    """Train `model` on `objective` for `epochs`; goes on from `weights`/resume.pt if that is there.

    out       metrics.jsonl is written there, a line an epoch; `weights` gets last.pt, average.pt, resume.pt
    validate  network to judge (the average if there is one, in eval mode) -> named numbers, into the metrics; its
              `state_dict()`, if it has one, goes into the resume file
    select    name -> (those numbers -> score): the weights of the strictly highest score are kept as NAME.pt
    online    names in `select` that keep the model in training, not the judged network
    snapshots 0-based epochs at whose end the judged network is kept, as EPOCH.pt
    observe   called with the model, the optimiser and the epochs done (before the first one: 0) after each epoch,
              before the epoch counts as done: what it writes must be written again where a resumed run comes by again;
              rank 0 alone observes, as if it were the only process, and the others wait
    before_step  where a run goes on within an epoch it is called again for the last step done, without the step, so
              that what it sets outside the resume file (batch norm's momentum) is as it was
    identity  hash of the configuration; a resume file of another one is refused
    A signal to end (common.signals) waits for the running step, whose state is then written.
    Raises UserError where a loss is not finite (with epoch and step), a file cannot be written, or memory runs out.
    """
    crew = crew_of(batches)
    engine.place(model)
    crew.take_over([*model.parameters(), *model.buffers()])
    for module in objective.modules().values():
        engine.place(module).eval().requires_grad_(False)
    averaged = ema.averaged_copy(model) if average else None
    judged = averaged if averaged is not None else model
    keeps = {name: model if name in online else judged for name in select}
    optimiser = optim.build(model)
    check = FastCheck(engine, {"the average": averaged, **objective.modules(), "the model": model})
    parts = {"model": model, "optimiser": optimiser, **({"average": averaged} if averaged is not None else {}),
             "fast_check": check, **({"validation": validate} if hasattr(validate, "state_dict") else {})}
    journal = Journal(out=out, weights=weights, identity=identity, parts=parts, device=engine.device)
    resumed = journal.restore()
    network = training_runner(engine, model, objective)
    generator = torch.Generator(engine.device)
    moving = statistics(model, averaged)

    def context_of(index: int, batch: Batch) -> StepContext:
        """Step `index` of the running epoch is to come: its learning rate is set, its random numbers are seeded."""
        at, step = journal.epoch + index / len(batches), journal.step + index
        hyper = schedule(at)
        set_hyper(optimiser, *hyper)
        context = StepContext(generator=seeded_step(generator, seed, step, crew.rank), epoch=journal.epoch, step=step,
                              steps_per_epoch=len(batches), progress=at, lr=hyper.lr, average=averaged,
                              attacking=engine.attacking, **crew.of_step(batch.share, engine.sync_bn))
        return check.guard(context, batch)

    def take_step(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """One step; what it logs."""
        model.train()
        network.begin()
        if before_step:
            before_step(network, batch, context)
        loss, log = objective(network, batch, context)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        crew.average_gradients(model.parameters())
        if optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimiser.step()
        if after_step:
            after_step(network, batch, context)
        crew.take_over(moving)
        if averaged is not None:
            ema.update(averaged, model, average.decay(context.step), average.buffers)
        return {"loss": loss.detach(), **log}

    if not resumed:
        if validate_first and validate:
            consider(keeps, journal.check(crew.from_first(validate(judged.eval())), 0), select, journal)
        if observe and crew.leads:
            with group.alone():
                observe(model, optimiser, 0)
    with journal.kept_if_stopped():
        while journal.epoch < epochs:
            epoch, done = journal.epoch, len(journal.logs)
            journal.begin_epoch()
            if optim.reset_each_epoch and not done:
                optimiser.state.clear()
            first = max(done - 1, 0)
            for index, batch in enumerate(progress(batches.epoch(epoch, first), images=batches.images_per_epoch,
                                                   label=f"epoch {epoch + 1}/{epochs}", share=first / len(batches)),
                                          start=first):
                context = context_of(index, batch)
                if index < done:
                    if before_step:
                        before_step(network, batch, context)
                    continue
                with held():
                    journal.log(take_step(batch, context), crew.weight(batch.share))
            if averaged is not None and average.buffers == "copy":
                ema.copy_buffers(averaged, model)
            crew.check_alike(model)
            means = journal.means()
            numbers = journal.check(crew.from_first(validate(judged.eval())), epoch + 1) if validate else {}
            consider(keeps, numbers, select, journal)
            if epoch in snapshots:
                journal.keep(str(epoch), judged)
            if observe and crew.leads:
                with group.alone():
                    observe(model, optimiser, epoch + 1)
            journal.close_epoch(means, images=batches.images_per_epoch, lr=optimiser.param_groups[0]["lr"],
                                validation=numbers)
            journal.say(epochs)
    kept = [str(epoch) for epoch in sorted(snapshots) if epoch < epochs]
    return finish(journal, {"last": model, **({"average": averaged} if averaged is not None else {})}, engine, kept)


def consider(keeps: Mapping[str, nn.Module], numbers: dict[str, float],
             select: Mapping[str, Callable[[dict[str, float]], float]], journal: Journal) -> None:
    """Keep a network's weights as NAME.pt for each selection by which the score is strictly the highest so far.

    keeps: name of a selection -> the network whose weights it keeps.
    """
    for name, score_of in select.items() if numbers else ():
        score = score_of(numbers)
        if name not in journal.best or score > journal.best[name]:
            journal.best[name] = score
            journal.keep(name, keeps[name])


def finish(journal: Journal, networks: dict[str, nn.Module], engine: Engine,
           kept: Collection[str] = ()) -> TrainRecord:
    """Write the final weights, each network under its name, and say what there is; kept: files written on the way."""
    for name, network in networks.items():
        journal.keep(name, network)
    names, files = [*networks, *journal.best, *kept], {}
    if journal.crew.leads:
        files = {name: {"file": f"{name}.pt", "sha256": sha256_of(journal.weights / f"{name}.pt")} for name in names}
    files = journal.crew.from_first(files)
    return TrainRecord(journal.epoch, journal.step, journal.seconds, files, journal.final, dict(journal.best),
                       list(engine.notes), [asdict(alarm) for alarm in journal.alarms()])
