"""AdaRAT's training steps written the original's way, to be measured against ours: rows of make bench.

Facts, not text, of the released code (xiyan0524/AdaRAT, attack/PGD.py and train/*/train_cifar10.py): float32 in
contiguous NCHW, eager; input gradients by torch.autograd.grad through a network whose parameters stay trainable;
attacks in train mode (Generalist's: eval mode); x passes with a graph also where the plain loss uses x' alone; both
losses and both accuracies are fetched from the device in every step; torch.optim.SGD; a DataLoader with one worker.
TRADES' p(x) comes from one pass, with a graph.  Generalist averages through state dicts, one tensor after another,
loads each average into a network of its own, and passes x through two of them for its progress bar.  cuDNN is told to
be deterministic there; here it chooses freely for both ways.

The row `pgd-training` is plain PGD-AT with the attack in eval mode, as RPAT's part 1 and most others have it, and
without what AdaRAT adds; its gradients are taken by torch.autograd.grad too, the cheaper way (RPAT's part 1 takes
loss.backward(): rpat/bench.py).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adarat.generalist import Quintet
from adarat.method import AdversarialTraining, StandardTraining, trades_divergence
from common import bench_pipeline, fit
from common.attacks import PGD, TradesPGD
from common.bench_step import LR, OurStep, Settings, measure, network, random_images
from common.benchmark import forward_operations
from common.capture_training import training_runner
from common.engine import Engine
from common.types import StepContext


@dataclass(eq=False)
class Originals:
    """The originals' way, with the network in float32 and contiguous NCHW."""

    network: nn.Module
    device: torch.device
    settings: Settings

    def __post_init__(self) -> None:
        self.network.to(self.device).train()
        self.optimiser = torch.optim.SGD(self.network.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)

    def attack(self, x: Tensor, y: Tensor, *, training: bool, steps: int, start: Tensor | None = None,
               trades: bool = False) -> Tensor:
        """PGD on the mean cross-entropy (TRADES: KL to p(x)), from `start` or from a uniform one."""
        eps = self.settings.eps
        self.network.train(training)
        x_adv = start if start is not None else (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        clean = self.network(x) if trades else None
        for _ in range(steps):
            x_adv = x_adv.detach().requires_grad_(True)
            logits = self.network(x_adv)
            loss = (F.kl_div(logits.log_softmax(1), clean.softmax(1), reduction="batchmean") if trades
                    else F.cross_entropy(logits, y))
            gradient, = torch.autograd.grad(loss, [x_adv])
            x_adv = x_adv.detach() + self.settings.step_size * gradient.sign()
            x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
        self.network.train()
        return x_adv.detach()

    def plain(self, x: Tensor, y: Tensor, *, training: bool, steps: int) -> None:
        """PGD-AT: attack, pass of x', update."""
        self.update(F.cross_entropy(self.network(self.attack(x, y, training=training, steps=steps)), y))

    def released(self, x: Tensor, y: Tensor, *, steps: int, trades: bool = False) -> None:
        """PGD-AT or TRADES as AdaRAT trains them: attack in train mode, passes of x and x', waits."""
        x_adv = self.attack(x, y, training=True, steps=steps, trades=trades)
        clean, adversarial = self.network(x), self.network(x_adv)
        losses = F.cross_entropy(clean, y), F.cross_entropy(adversarial, y)
        self.update(losses[0] + 6 * trades_divergence(clean, adversarial).mean() if trades else losses[1])
        for loss, logits in zip(losses, (clean, adversarial), strict=True):
            loss.item(), (logits.argmax(1) == y).cpu().sum()

    def update(self, loss: Tensor) -> None:
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


@dataclass(eq=False)
class OriginalGeneralist:
    """Generalist's step as released: both learners, three averages of state dicts."""

    network: nn.Module
    device: torch.device
    settings: Settings

    def __post_init__(self) -> None:
        self.at = Originals(self.network, self.device, self.settings)
        self.st = Originals(copy.deepcopy(self.network), self.device, self.settings)
        self.teachers = [copy.deepcopy(self.network).eval() for _ in range(3)]
        self.shadows = [{name: value.clone() for name, value in self.network.state_dict().items()} for _ in range(3)]
        self.done = 0

    def average(self, which: int, states: list[dict[str, Tensor]], weights: tuple[float, ...]) -> None:
        decay = min(0.999, (self.done + 1) / (self.done + 10))
        shadow = self.shadows[which]
        for name, old in shadow.items():
            mixed = sum(weight * state[name] for weight, state in zip(weights, states, strict=True))
            old.copy_(decay * old + (1 - decay) * mixed)
        self.teachers[which].load_state_dict(shadow)

    def step(self, x: Tensor, y: Tensor, *, steps: int) -> None:
        """The AT learner on x' and x, the ST learner on x, their averages, the mix."""
        x_adv = self.at.attack(x, y, training=False, steps=steps)
        self.at.network(x)
        loss = F.cross_entropy(self.at.network(x_adv), y)
        self.at.update(loss)
        self.average(0, [self.at.network.state_dict()], (1.0,))
        self.st.update(F.cross_entropy(self.st.network(x), y))
        self.average(1, [self.st.network.state_dict()], (1.0,))
        self.average(2, [teacher.state_dict() for teacher in self.teachers[:2]], (0.95, 0.05))
        loss.item()
        for teacher in self.teachers[:2]:
            (teacher(x).argmax(1) == y).sum().item()
        self.done += 1


class OurGeneralist(OurStep):
    """The body of `adarat.generalist`'s loop: the AT learner as any other, then the ST learner, averages, the mix."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.five = Quintet(self.network)
        self.st_runner = training_runner(self.engine, self.five.st, StandardTraining())
        self.st_optimiser = self.optim.build(self.five.st)
        fit.set_hyper(self.st_optimiser, self.lr, 0.9)
        self.after_step = self.standard

    def standard(self, model: nn.Module, batch: Any, ctx: StepContext) -> None:
        """What a step has after the AT learner's update."""
        step = self.done - 1
        self.five.update_average("at", step)
        self.five.st.train()
        self.st_runner.begin()
        loss, _ = StandardTraining()(self.st_runner, batch, ctx)
        self.st_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.st_optimiser.step()
        self.five.update_average("st", step)
        self.five.update_mixed(0.95, step)


def our_step(settings: Settings, engine: Engine, *, training: bool, clean_pass: bool, lamda: float | None = None,
             kind: type[OurStep] = OurStep) -> OurStep:
    """The paper's objective in our loop."""
    attack = TradesPGD if lamda is not None else PGD

    def objective(steps: int) -> AdversarialTraining:
        return AdversarialTraining(attack(settings.eps, settings.step_size, steps), lamda=lamda,
                                   attack_in_train_mode=training, clean_pass=clean_pass)

    split = random_images(settings, engine.device)
    return kind(network(settings), engine, objective, bench_pipeline.our_batches(split, settings.batch, engine))


STEPS: dict[str, Callable[[Settings, Engine], OurStep]] = {
    "pgd-training": lambda settings, engine: our_step(settings, engine, training=False, clean_pass=False),
    "pgd-training-attack-train-bn": lambda settings, engine: our_step(settings, engine, training=True,
                                                                      clean_pass=True),
    "trades": lambda settings, engine: our_step(settings, engine, training=True, clean_pass=True, lamda=6.0),
    "generalist": lambda settings, engine: our_step(settings, engine, training=False, clean_pass=True,
                                                    kind=OurGeneralist)}


def originals_step(name: str, settings: Settings, engine: Engine) -> Callable[[int], None]:
    """Their step, on batches of their pipeline: attack steps -> None."""
    batches = bench_pipeline.originals(random_images(settings, torch.device("cpu")), settings.batch, engine.device)
    if name == "generalist":
        generalist = OriginalGeneralist(network(settings), engine.device, settings)
        return lambda steps: generalist.step(*next(batches), steps=steps)
    theirs = Originals(network(settings), engine.device, settings)
    if name == "pgd-training":
        return lambda steps: theirs.plain(*next(batches), training=False, steps=steps)
    return lambda steps: theirs.released(*next(batches), steps=steps, trades=name == "trades")


def training(name: str, title: str, passes: Callable[[int], int]) -> Callable[[Settings, Engine], list[dict[str, Any]]]:
    """The row of a training step; passes: attack steps -> useful operations, in forward passes of one image."""
    def row(settings: Settings, engine: Engine) -> list[dict[str, Any]]:
        ours = STEPS[name](settings, engine)
        operations = passes(settings.steps) * forward_operations(ours.network, settings.size)
        return measure(settings, engine, name, title.format(settings.steps), ours=ours, operations=operations,
                       theirs=originals_step(name, settings, engine))
    return row


def attack_alone(settings: Settings, engine: Engine) -> list[dict[str, Any]]:
    """The row of a PGD attack in eval mode."""
    ours = STEPS["pgd-training"](settings, engine)
    theirs = Originals(network(settings), engine.device, settings)
    batch = next(ours.waiting)
    contiguous = batch.x.contiguous()

    def attack(steps: int) -> None:
        context = ours.context()
        with context.attacking(ours.runner, False) as target:
            PGD(settings.eps, settings.step_size, steps)(target, batch.x, batch.y, context)

    operations = 2 * settings.steps * forward_operations(ours.network, settings.size)
    return measure(settings, engine, "pgd-attack", f"PGD-{settings.steps} attack alone, eval mode", ours=attack,
                   theirs=lambda steps: theirs.attack(contiguous, batch.y, training=False, steps=steps),
                   operations=operations)


ROWS = {
    "pgd-training": training("pgd-training", "PGD-AT: PGD-{} training step, attack in eval mode", lambda n: 2 * n + 3),
    "pgd-training-attack-train-bn": training(
        "pgd-training-attack-train-bn", "PGD-AT as AdaRAT: attack in train mode, clean pass", lambda n: 2 * n + 4),
    "pgd-attack": attack_alone,
    "trades": training("trades", "TRADES as AdaRAT: attack in train mode", lambda n: 2 * n + 7),
    "generalist": training("generalist", "Generalist: two learners, three averages", lambda n: 2 * n + 7)}


def notes(settings: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """What one must know to read the rows."""
    return ["PGD-AT, TRADES, Generalist, originals: contiguous NCHW, eager, parameters trainable while attacking, "
            "torch.autograd.grad (as AdaRAT; the cheaper way), losses fetched in each step (not in plain PGD-AT), a "
            "DataLoader with one worker"]
