"""What `fit` keeps and shows on the way: snapshots, several selections, the observer."""

import pytest
import torch
from torch import nn

from common import checkpoint, ema
from common.engine import Engine
from common.fit import SGD, fit
from common.schedules import constant
from common.types import Batch, LossOut


class Pull:
    """Draws a single weight towards 1."""

    def modules(self):
        return {}

    def __call__(self, model, batch, ctx):
        return LossOut((model(torch.ones(1, 1)) - 1).square().sum(), {})


class Steps:
    images_per_epoch = 3

    def __len__(self):
        return 3

    def epoch(self, epoch, start=0):
        for _ in range(start, 3):
            yield Batch(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))


def network(value=0.0):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def train(folder, **changes):
    given = {"model": network(), "objective": Pull(), "batches": Steps(), "schedule": constant(0.1),
             "optim": SGD(weight_decay=0.0), "epochs": 4, "out": folder / "results", "weights": folder / "weights",
             "seed": 1, "engine": Engine(torch.device("cpu"))}
    return fit(**{**given, **changes})


def value(folder, name):
    return checkpoint.read_state(folder / "weights" / f"{name}.pt")["weight"].item()


def test_snapshots_hold_the_judged_network_at_the_end_of_their_epochs(tmp_path):
    seen = []
    average = ema.Averaging(lambda step: 0.5)

    def validate(judged):
        seen.append(judged.weight.item())
        return {"value": seen[-1]}

    record = train(tmp_path, validate=validate, average=average, snapshots={0, 2, 9})
    assert [value(tmp_path, name) for name in ("0", "2")] == [seen[0], seen[2]]
    assert set(record.weights) == {"last", "average", "0", "2"}              # epoch 9 never came
    assert record.weights["2"]["sha256"] == checkpoint.sha256_of(tmp_path / "weights/2.pt")


def test_each_selection_keeps_its_own_best(tmp_path):
    numbers = [{"up": 1, "down": 3}, {"up": 2, "down": 2}, {"up": 3, "down": 1}, {"up": 2, "down": 2}]
    left, states = list(numbers), []

    def validate(judged):
        states.append(judged.weight.item())
        return left.pop(0)

    record = train(tmp_path, validate=validate,
                   select={"best": lambda found: found["up"], "other": lambda found: found["down"]})
    assert (value(tmp_path, "best"), value(tmp_path, "other")) == (states[2], states[0])
    assert record.best == {"best": 3, "other": 3}


def test_the_observer_sees_the_start_and_every_epoch_of_the_trained_network(tmp_path):
    seen = []

    def observe(model, optimiser, done):
        seen.append((done, model.weight.item(), bool(optimiser.state)))

    model = network()
    train(tmp_path, model=model, observe=observe, average=ema.Averaging(lambda step: 0.5))
    assert [row[0] for row in seen] == [0, 1, 2, 3, 4]
    assert seen[0] == (0, 0.0, False) and seen[-1][1] == model.weight.item() and seen[1][2]


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_run_that_is_resumed_is_observed_from_there_on(tmp_path, stop_at):
    seen = []

    def observe(model, optimiser, done):
        seen.append((done, model.weight.item()))
        if done == stop_at and len(seen) == stop_at + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, observe=observe)
    train(tmp_path, observe=observe)
    first, again = seen[:stop_at + 1], seen[stop_at + 1:]
    assert [done for done, _ in first] == list(range(stop_at + 1))
    # The epoch in which it was stopped is done again, with the same bits; at the very start there is nothing to skip.
    assert [done for done, _ in again] == ([0] if stop_at == 1 else []) + list(range(stop_at, 5))
    assert again[-1][0] == 4 and first[-1] in again
