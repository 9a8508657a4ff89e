"""Recorded training passes, with a recorder that does as torch.cuda.make_graphed_callables does."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.attacks.mode import untracked
from common.capture import WARM
from common.capture_training import MOST, RecordedRunner, training_runner
from common.engine import Engine
from common.tests.recorders import Recorder
from common.types import LossOut

CPU = torch.device("cpu")


def network(dropout=0.0):
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(),
                         nn.Linear(6 * 36, 10))


def steps(runner, count=8, sizes=(4,), unmoved=False):
    """Training steps of three calls, one without a gradient; what the weights are after each."""
    optimiser, found = torch.optim.SGD(runner.network.parameters(), 0.1), []
    for turn in range(count):
        generator = torch.Generator().manual_seed(turn)
        x = torch.rand(sizes[turn % len(sizes)], 3, 8, 8, generator=generator)
        runner.begin()
        clean = runner(x)
        if unmoved:
            with untracked(runner):
                moved = runner(0.9 * x)
        else:
            moved = runner(0.9 * x)
        with torch.no_grad():
            constant = runner(x).softmax(1)
        optimiser.zero_grad(set_to_none=True)
        (F.mse_loss(clean, constant) + (moved - 1).square().mean()).backward()
        optimiser.step()
        found.append({name: tensor.clone() for name, tensor in runner.network.state_dict().items()})
    return found


def compare(one, other):
    for first, second in zip(one, other, strict=True):
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


@pytest.mark.parametrize("unmoved", [False, True])
def test_a_training_goes_as_it_goes_without_recordings(unmoved):
    engine, recorder = Engine(CPU), Recorder()
    runner = RecordedRunner(network(), engine, recorder)
    compare(steps(runner, unmoved=unmoved), steps(Engine(CPU).runner(network()), unmoved=unmoved))
    assert len(recorder.made) == 2 and [one.replays for one in recorder.made] == [1 + 8 - WARM] * 2
    assert not engine.notes


def test_a_batch_of_another_size_has_recordings_of_its_own():
    recorder = Recorder()
    compare(steps(RecordedRunner(network(), Engine(CPU), recorder), sizes=(4, 4, 3), count=14),
            steps(Engine(CPU).runner(network()), sizes=(4, 4, 3), count=14))
    assert [one.x.shape[0] for one in recorder.made] == [4, 4, 3, 3]


def test_no_more_than_so_many_are_held():
    recorder = Recorder()
    sizes = tuple(range(2, 2 + MOST))
    compare(steps(RecordedRunner(network(), Engine(CPU), recorder), sizes=sizes, count=4 * MOST),
            steps(Engine(CPU).runner(network()), sizes=sizes, count=4 * MOST))
    assert len(recorder.made) == MOST


@pytest.mark.parametrize(("how", "says"), [
    ({"fails": "capture\nfailed"}, "training passes are not recorded as CUDA graphs: capture failed"),
    ({"spoil": 0.5}, "training passes are not recorded as CUDA graphs: the recording is off by")])
def test_what_cannot_be_recorded_is_said_and_changes_nothing(how, says):
    engine = Engine(CPU)
    compare(steps(RecordedRunner(network(), engine, Recorder(**how))), steps(Engine(CPU).runner(network())))
    assert len(engine.notes) == 2 and all(note.startswith(says) for note in engine.notes)


def test_dropout_and_batch_norm_over_processes_are_not_recorded():
    for engine, model, reason in ((Engine(CPU), network(0.2), "dropout"),
                                  (Engine(CPU, sync_bn=True), network(), "wait")):
        recorder = Recorder()
        steps(RecordedRunner(model, engine, recorder))
        assert not recorder.made and reason in engine.notes[0]


def test_the_network_stays_what_it_is():
    model = network()
    runner = RecordedRunner(model, Engine(CPU), Recorder())
    steps(runner)
    assert list(runner.state_dict()) == [f"network.{name}" for name in network().state_dict()]
    assert len(list(runner.parameters())) == len(list(model.parameters()))


class Objective:
    recordable = True

    def modules(self):
        return {}

    def __call__(self, model, batch, ctx):
        return LossOut(model(batch.x).sum(), {})


def test_the_engine_and_the_objective_must_both_allow_it():
    plain, graphs = Engine(CPU), replace(Engine(CPU), graphs=True)
    assert type(training_runner(plain, network(), Objective())).__name__ == "Runner" and not plain.notes
    assert isinstance(training_runner(graphs, network(), Objective()), RecordedRunner)

    class Silent(Objective):
        recordable = False

    assert not isinstance(training_runner(graphs, network(), Silent()), RecordedRunner)
    assert graphs.notes == ["training passes are not recorded as CUDA graphs: the objective does not allow it"]
