"""A training step as benchmarks and `make profile` run it: the body of `common.fit`'s loop, its parts named.

Images are random bytes: speed does not depend on what they show.  The learning rate is small, since labels are random.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from common import ema, fit, models
from common.benchmark import compare, with_memory
from common.capture_training import training_runner
from common.data.splits import Split
from common.engine import Engine
from common.types import Batch, Objective, Share, StepContext

LR = 0.01
WARM = 4                        # calls on a GPU: kernels are chosen, memory is set apart, graphs are recorded
Clock = Callable[[str], AbstractContextManager[None]]           # name of a part -> the block that takes its time
Step = Callable[[int], Any]                                     # attack steps -> a training step with so many


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What rows of training steps measure.  eps and step_size in [0,1]; size: the images' side in pixels."""

    batch: int
    rounds: int
    limit: float | None = None                      # seconds of a row, after which no third round is begun
    model: str = "resnet18"
    width: int | None = None
    size: int = 32
    steps: int = 10
    eps: float = 8 / 255
    step_size: float = 2 / 255
    block: int = 1                                  # training steps, or attacks, per block
    images: int = 50_000
    matrix: int = 2048                              # rows of the square matrices whose product gives the matrix rate


@dataclass(frozen=True)
class OneBatch:
    """The same batch in every step."""

    batch: Batch

    @property
    def images_per_epoch(self) -> int:
        return len(self.batch.y)

    def __len__(self) -> int:
        return 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        yield from [self.batch][start:]


@dataclass(eq=False)
class OurStep:
    """One training step after another: objective, backward, clip, optimiser, average, as `common.fit` makes them.

    objective  attack steps -> the paper's objective with an attack of so many
    batches    as `fit` takes them; epoch 0 is walked again and again
    epoch      the 0-based epoch that objectives are told
    average    decay of the weight average, None: there is none
    parts      times data, backward, other processes, optimiser, average
    """

    network: nn.Module
    engine: Engine
    objective: Callable[[int], Objective]
    batches: fit.BatchSource
    optim: fit.SGD = field(default_factory=fit.SGD)
    lr: float = LR
    epoch: int = 0
    average: float | None = None
    buffers: str = "average"
    after_step: Callable[[nn.Module, Batch, StepContext], None] | None = None
    parts: Clock = lambda name: nullcontext()

    def __post_init__(self) -> None:
        self.crew = fit.crew_of(self.batches)
        self.engine.place(self.network).train()
        self.runner = training_runner(self.engine, self.network, self.objective(1))
        self.averaged = None if self.average is None else ema.averaged_copy(self.network)
        self.optimiser = self.optim.build(self.network)
        fit.set_hyper(self.optimiser, self.lr, 0.9)
        self.generator = torch.Generator(self.engine.device)
        self.moving = fit.statistics(self.network, self.averaged)
        self.done, self.waiting = 0, self.endless()

    def endless(self) -> Iterator[Batch]:
        """The batches without end."""
        while True:
            yield from self.batches.epoch(0)

    def context(self, share: Share | None = None) -> StepContext:
        """What the objective knows of the step; share: this process's of the batch."""
        index, steps, done = self.done % len(self.batches), len(self.batches), self.done
        self.done += 1
        return StepContext(generator=fit.seeded_step(self.generator, 0, done, self.crew.rank), epoch=self.epoch,
                           step=self.epoch * steps + index, steps_per_epoch=steps, progress=self.epoch + index / steps,
                           lr=self.lr, average=self.averaged, attacking=self.engine.attacking,
                           **self.crew.of_step(share, self.engine.sync_bn))

    def __call__(self, steps: int) -> dict[str, Tensor]:
        """A step whose attack has `steps` steps, where it has an attack; the logs."""
        with self.parts("data"):
            batch = next(self.waiting)
        context = self.context(batch.share)
        self.network.train()
        self.runner.begin()
        loss, logs = self.objective(steps)(self.runner, batch, context)
        self.optimiser.zero_grad(set_to_none=True)
        with self.parts("backward"):
            loss.backward()
        with self.parts("other processes"):
            self.crew.average_gradients(self.network.parameters())
        with self.parts("optimiser"):
            if self.optim.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.network.parameters(), self.optim.clip_norm)
            self.optimiser.step()
        if self.after_step:
            self.after_step(self.runner, batch, context)
        with self.parts("other processes"):
            self.crew.take_over(self.moving)
        if self.averaged is not None:
            with self.parts("average"):
                ema.update(self.averaged, self.network, self.average, self.buffers)
        return logs


def network(settings: Settings, **changes: Any) -> nn.Module:
    """The network that rows measure, of the same weights each time."""
    torch.manual_seed(0)
    return models.build(settings.model, **{"classes": 10, "width": settings.width, **changes})


def random_images(settings: Settings, device: torch.device, channels: int = 3) -> Split:
    """Random bytes and labels, on the device."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (settings.images, channels, settings.size, settings.size), dtype=torch.uint8,
                           generator=generator)
    return Split(images, torch.randint(0, 10, (settings.images,), generator=generator)).to(device)


def warm_up(device: torch.device, steps: int, *ways: Step) -> None:
    """On a GPU whole steps, since kernels and graphs belong to shapes; on a CPU a brief one."""
    for way in ways:
        for _ in range(WARM if device.type == "cuda" else 1):
            way(steps if device.type == "cuda" else 1)


def measure(settings: Settings, engine: Engine, name: str, title: str, *, theirs: Step, ours: Step,
            operations: float) -> list[dict[str, Any]]:
    """The row of a training step (or an attack) of `settings.steps` attack steps; operations: useful ones per image.

    On a CPU the peak memory is that of a step with one attack step: the later ones take over the memory of the first.
    """
    warm_up(engine.device, settings.steps, theirs, ours)
    row = compare(settings, engine, name, title, theirs=lambda: theirs(settings.steps),
                  ours=lambda: ours(settings.steps), batch=settings.batch, block=settings.block, operations=operations)
    return [with_memory(row, engine.device, originals=lambda: theirs(1), ours=lambda: ours(1))]
