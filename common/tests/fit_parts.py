"""What the tests of the training loop share: a data source, an objective, a network of a few numbers."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from common.engine import Engine
from common.fit import SGD, fit
from common.records import read_metrics
from common.schedules import constant
from common.seeds import fold
from common.types import Batch, LossOut

CPU = torch.device("cpu")


@dataclass
class Noise:
    """Four batches of 8 images an epoch, the same whenever they are asked for."""

    size: int = 4
    images_per_epoch: int = 32

    def __len__(self):
        return self.size

    def epoch(self, epoch, start=0):
        for step in range(start, self.size):
            generator = torch.Generator().manual_seed(fold(7, "batch", epoch, step))
            x = torch.rand(8, 1, 4, 4, generator=generator)
            yield Batch(x, (x.mean((1, 2, 3)) * 2).long())


@dataclass
class CrossEntropy:
    """CE of noisy images; calls `watch(ctx)` first, which may return a factor for the loss."""

    watch: object = None
    modules_used: dict = field(default_factory=dict)

    def modules(self):
        return self.modules_used

    def __call__(self, model, batch, ctx):
        factor = self.watch(ctx) if self.watch else None
        loss = ctx.mean(F.cross_entropy(model(batch.x + 0.1 * ctx.uniform(batch.x)), batch.y, reduction="none"))
        loss = loss if factor is None else loss * factor
        return LossOut(loss, {"half": loss.detach() / 2})


def network(seed=0):
    """Batch norm and dropout, so that modes and the global generator matter."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
                         nn.Linear(12, 2))


def train(folder, **changes):
    given = {"model": network(), "objective": CrossEntropy(), "batches": Noise(), "schedule": constant(0.1),
             "optim": SGD(), "epochs": 3, "out": folder / "results", "weights": folder / "weights", "seed": 5,
             "engine": Engine(CPU), "identity": "a"} | changes
    return fit(**given)


def rows(folder):
    """The metrics without what the clock says."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")}
            for row in read_metrics(folder / "results/metrics.jsonl")]
