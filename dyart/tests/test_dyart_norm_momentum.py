"""The quirk bn-first-step in training: which momentum each pass sees, also in a resumed run."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.attacks import TradesPGD
from common.checkpoint import read_state
from common.engine import Engine
from common.fit import SGD, fit
from common.schedules import constant
from common.types import Batch, LossOut, StepContext
from dyart.baselines import TRADES
from dyart.norm_momentum import FirstStep

CPU = Engine(torch.device("cpu"))
FAST = Engine(torch.device("cpu"), fast_attacks=True)


@dataclass
class ThreeBatches:
    """Three batches of 4 images an epoch."""

    images_per_epoch: int = 12

    def __len__(self):
        return 3

    def epoch(self, epoch, start=0):
        for step in range(start, 3):
            x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(10 * epoch + step))
            yield Batch(x, torch.arange(4) % 2)


@dataclass
class TwoPasses:
    """CE(x) after a pass of 1-x; notes the momenta that the passes of each step see."""

    seen: list = field(default_factory=list)

    def modules(self):
        return {}

    def __call__(self, model, batch, ctx):
        model(1 - batch.x)
        logits = model(batch.x)
        self.seen.append([module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)])
        return LossOut(F.cross_entropy(logits, batch.y), {})


def network():
    """Two batch norms of different momentum, and a group norm."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.1), nn.ReLU(), nn.Conv2d(4, 4, 3),
                         nn.BatchNorm2d(4, momentum=0.03), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 2))


def train(folder, epochs, objective=None, before_step=None, model=None):
    fit(model=model or network(), objective=objective or TwoPasses(), batches=ThreeBatches(), schedule=constant(0.05),
        optim=SGD(), epochs=epochs, out=folder / "results", weights=folder / "weights", seed=5, engine=CPU,
        before_step=before_step)
    return read_state(folder / "weights/last.pt")


def test_the_momenta_of_nine_steps(tmp_path):
    objective = TwoPasses()
    train(tmp_path, 3, objective, FirstStep())
    assert objective.seen == [[0.1, 0.03]] * 3 + [[1.0, 1.0]] + [[0.01, 0.01]] * 5


def test_without_the_quirk_nothing_changes(tmp_path):
    objective = TwoPasses()
    train(tmp_path, 2, objective)
    assert objective.seen == [[0.1, 0.03]] * 6


@pytest.mark.parametrize("sitting", [1, 2])
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(tmp_path, sitting):
    whole = train(tmp_path / "whole", 3, before_step=FirstStep())
    train(tmp_path / "parts", sitting, before_step=FirstStep())
    objective = TwoPasses()
    resumed = train(tmp_path / "parts", 3, objective, FirstStep())           # a network that is built anew
    assert objective.seen == ([[1.0, 1.0]] + [[0.01, 0.01]] * 5)[3 * (sitting - 1):]
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)


def step_of(epoch, index):
    return StepContext(generator=torch.Generator().manual_seed(1), epoch=epoch, step=3 * epoch + index,
                       steps_per_epoch=3, attacking=FAST.attacking)


def test_the_first_batch_of_epoch_1_replaces_the_statistics():
    model = network()
    model.train()
    x = next(ThreeBatches().epoch(1)).x
    model(1 - x)
    FirstStep()(CPU.runner(model), Batch(x, None), step_of(1, 0))
    model(x)
    features = model[0](x)
    torch.testing.assert_close(model[1].running_mean, features.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, features.var((0, 2, 3), unbiased=True))


def test_an_attack_in_train_mode_sees_the_same_momentum():
    model, seen = network().train(), []

    class Noting(TradesPGD):
        def from_start(self, target, x, y, start):
            seen.extend(module.momentum for module in target.modules() if isinstance(module, nn.BatchNorm2d))
            return super().from_start(target, x, y, start)

    batch = next(ThreeBatches().epoch(0))
    objective, runner = TRADES(Noting(8 / 255, 2 / 255, 2)), FAST.runner(model)
    for epoch, index in ((0, 2), (1, 0), (1, 1), (2, 0)):
        FirstStep()(runner, batch, step_of(epoch, index))
        objective(runner, batch, step_of(epoch, index))
    assert seen == [0.1, 0.03, 1.0, 1.0, 0.01, 0.01, 0.01, 0.01] and not FAST.notes


def test_group_norm_trains_as_it_is(tmp_path):
    def grouped():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 2))
    with_quirk = train(tmp_path / "with", 2, before_step=FirstStep(), model=grouped())
    without = train(tmp_path / "without", 2, model=grouped())
    assert all(torch.equal(with_quirk[key], without[key]) for key in without)
