"""The training loop on a network of a few numbers: order of a step, optimiser, averages, selection, exact resume."""

import errno
import json
import os
from dataclasses import dataclass, field
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common import checkpoint, ema
from common.engine import Engine
from common.errors import UserError
from common.files import sha256_of
from common.fit import SGD, fit
from common.records import read_metrics
from common.schedules import constant, steps
from common.seeds import fold
from common.types import Batch, Hyper, LossOut

CPU = torch.device("cpu")


@dataclass
class Noise:
    """Four batches of 8 images an epoch, the same whenever they are asked for."""

    size: int = 4
    images_per_epoch: int = 32

    def __len__(self):
        return self.size

    def epoch(self, epoch):
        for step in range(self.size):
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


# --- one step ---

def test_the_order_of_a_step(tmp_path, monkeypatch):
    seen = []

    class Watched(SGD):
        def build(self, model):
            optimiser = super().build(model)
            optimiser.register_step_pre_hook(lambda *_: seen.append("optimiser"))
            return optimiser

    model = network()
    model[5].weight.register_hook(lambda gradient: seen.append("backward"))
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *_: seen.append("clip"))
    train(tmp_path, model=model, optim=Watched(clip_norm=1.0), epochs=1, batches=Noise(2, 16),
          objective=CrossEntropy(lambda ctx: seen.append("objective")),
          average=ema.Averaging(lambda step: seen.append("average") or 0.5),
          before_step=lambda *_: seen.append("before_step"), after_step=lambda *_: seen.append("after_step"),
          validate=lambda judged: seen.append("validate") or {})
    one = ["before_step", "objective", "backward", "clip", "optimiser", "after_step", "average"]
    assert seen == [*one, *one, "validate"]


def test_hooks_get_the_network_the_batch_and_the_context_of_the_step(tmp_path):
    seen, model, batches = [], network(), Noise()
    train(tmp_path, model=model, batches=batches, epochs=2, schedule=lambda at: Hyper(0.1 / (1 + at)),
          average=ema.Averaging(lambda step: 0.5), before_step=lambda *given: seen.append(given))
    assert len(seen) == 8
    for number, (runner, batch, ctx) in enumerate(seen):
        assert runner.network is model
        assert batch.x.shape == (8, 1, 4, 4)
        assert (ctx.step, ctx.epoch, ctx.progress, ctx.steps_per_epoch) == (number, number // 4, number / 4, 4)
        assert ctx.lr == 0.1 / (1 + number / 4)
        assert not ctx.average.training


def test_the_schedule_is_asked_for_fractions_of_epochs_and_obeyed(tmp_path):
    asked, used = [], []

    def schedule(at):
        asked.append(at)
        return Hyper(0.01 * (1 + at), 0.5 + at / 100)

    class Watched(SGD):
        def build(self, model):
            optimiser = super().build(model)
            optimiser.register_step_pre_hook(lambda it, *_: used.append([(g["lr"], g["momentum"])
                                                                         for g in it.param_groups]))
            return optimiser

    train(tmp_path, schedule=schedule, epochs=2, optim=Watched(decays=lambda name, parameter: parameter.ndim > 1))
    assert asked == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]
    assert used == [[(0.01 * (1 + at), 0.5 + at / 100)] * 2 for at in asked]
    assert [row["lr"] for row in rows(tmp_path)] == [0.01 * 1.75, 0.01 * 2.75]


def test_each_step_is_seeded_by_itself(tmp_path):
    drawn = []
    train(tmp_path, objective=CrossEntropy(lambda ctx: drawn.append(
        (ctx.uniform(torch.zeros(1)).item(), torch.rand(()).item()))))
    assert len(set(drawn)) == 12
    assert drawn[3][0] == torch.rand(1, generator=torch.Generator().manual_seed(fold(5, "step", 3))).item()
    torch.manual_seed(fold(5, "global", 3))
    assert drawn[3][1] == torch.rand(()).item()


# --- the optimiser ---

def linear_loss(model, batch):
    return F.cross_entropy(model(batch.x), batch.y)


class Plain:
    """CE without noise, for loops written by hand."""

    def modules(self):
        return {}

    def __call__(self, model, batch, ctx):
        loss = linear_loss(model, batch)
        return LossOut(loss, {})


@pytest.mark.parametrize("resets", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_and_the_reset_of_its_momentum_equal_a_loop_written_by_hand(tmp_path, resets, nesterov):
    lr, momentum, decay = 0.3, 0.9, 0.01
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    theirs = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    train(tmp_path, model=model, objective=Plain(), schedule=constant(lr, momentum),
          optim=SGD(weight_decay=decay, nesterov=nesterov, reset_each_epoch=resets))
    for epoch in range(3):
        if resets or epoch == 0:
            velocities = None
        for batch in Noise().epoch(epoch):
            loss = F.cross_entropy(F.linear(batch.x.flatten(1), *theirs), batch.y)
            steps_ = [g.add(p.detach(), alpha=decay)
                      for g, p in zip(torch.autograd.grad(loss, theirs), theirs, strict=True)]
            velocities = steps_ if velocities is None else [
                v.mul(momentum).add(s) for v, s in zip(velocities, steps_, strict=True)]
            moves = [s.add(v, alpha=momentum) if nesterov else v for s, v in zip(steps_, velocities, strict=True)]
            theirs = [p.detach().add(m, alpha=-lr).requires_grad_() for p, m in zip(theirs, moves, strict=True)]
    for ours, expected in zip(model.parameters(), theirs, strict=True):
        assert torch.equal(ours, expected)


def test_clipping_bounds_the_norm_of_all_gradients_together(tmp_path):
    norms = []

    def run(clip):
        model, before = network(), [parameter.detach().clone() for parameter in network().parameters()]
        train(tmp_path / str(clip), model=model, optim=SGD(weight_decay=0, clip_norm=clip), epochs=1,
              batches=Noise(1, 8), schedule=constant(1.0, 0.0))
        moves = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
        norms.append(torch.cat([move.flatten() for move in moves]).norm().item())

    run(None)
    run(norms[0] / 4)
    run(norms[0] * 4)
    assert norms[1] == pytest.approx(norms[0] / 4, rel=1e-3)
    assert norms[2] == pytest.approx(norms[0], rel=1e-6)


def test_weight_decay_spares_the_parameters_that_it_is_told_to_spare(tmp_path):
    model = network()
    model[1].weight.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    class Flat(Plain):
        def __call__(self, model, batch, ctx):
            return LossOut(0 * sum(parameter.sum() for parameter in model.parameters()), {})

    train(tmp_path, model=model, objective=Flat(), epochs=1, batches=Noise(1, 8), schedule=constant(0.5, 0.0),
          optim=SGD(weight_decay=0.1, decays=lambda name, parameter: not name.endswith("bias")))
    for name, parameter in model.named_parameters():
        spared = name.endswith("bias") or name == "1.weight"
        torch.testing.assert_close(parameter.detach(), before[name] * (1 if spared else 1 - 0.5 * 0.1))


def test_frozen_networks_of_an_objective_are_put_in_eval_mode_and_frozen(tmp_path):
    teacher = network(1).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    train(tmp_path, objective=CrossEntropy(modules_used={"teacher": teacher}), epochs=1)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


# --- averages, validation, selection ---

@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_the_average_follows_every_step(tmp_path, buffers):
    model, states = network(), []
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    judged = []
    record = train(tmp_path, model=model, epochs=2, average=ema.Averaging(ema.warmed_up(0.3), buffers),
                   after_step=lambda *_: states.append({n: v.clone() for n, v in model.state_dict().items()}),
                   validate=lambda network: judged.append(network) or {})
    names = {name for name, _ in model.named_parameters()}
    for step, state in enumerate(states):
        decay = min(0.3, (step + 1) / (step + 10))
        for name, value in state.items():
            if name in names or buffers == "average":
                expected[name] = (decay * expected[name] + (1 - decay) * value).to(value.dtype)
    if buffers == "copy":
        expected |= {name: value for name, value in states[-1].items() if name not in names}
    average = checkpoint.read_state(tmp_path / "weights/average.pt")
    for name, value in average.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert judged[0] is judged[1] is not model
    assert {"last", "average"} == set(record.weights)
    last = checkpoint.read_state(tmp_path / "weights/last.pt")
    assert all(torch.equal(last[name], value) for name, value in model.state_dict().items())
    assert not torch.equal(last["0.weight"], average["0.weight"])


def test_validation_sees_eval_mode_and_disturbs_nothing(tmp_path):
    modes = []

    def meddling(judged):
        modes.append([module.training for module in judged.modules()])
        torch.manual_seed(0)
        torch.rand(100)
        judged(torch.rand(2, 1, 4, 4))
        return {"accuracy": 0.5}

    train(tmp_path / "with", validate=meddling, validate_first=True)
    train(tmp_path / "without")
    assert len(modes) == 4 and not any(flag for flags in modes for flag in flags)
    assert sha256_of(tmp_path / "with/weights/last.pt") == sha256_of(tmp_path / "without/weights/last.pt")
    assert rows(tmp_path / "with") == [row | {"accuracy": 0.5} for row in rows(tmp_path / "without")]


@pytest.mark.parametrize(("scores", "kept"), [([0.1, 0.3, 0.3, 0.2], 2), ([0.5, 0.4, 0.3, 0.2], 1),
                                              ([0.1, 0.2, 0.3, 0.4], 4)])
def test_best_holds_the_weights_of_the_strictly_highest_score(tmp_path, scores, kept):
    model, states, left = network(), [], list(scores)

    def validate(judged):
        states.append({name: value.clone() for name, value in judged.state_dict().items()})
        return {"score": left.pop(0)}

    record = train(tmp_path, model=model, epochs=4, validate=validate,
                   select={"best": lambda numbers: numbers["score"]})
    best = checkpoint.read_state(tmp_path / "weights/best.pt")
    assert all(torch.equal(best[name], value) for name, value in states[kept - 1].items())
    assert record.best == {"best": max(scores)}
    assert record.weights["best"] == {"file": "best.pt", "sha256": sha256_of(tmp_path / "weights/best.pt")}


def test_weights_from_before_the_first_epoch_can_be_the_best(tmp_path):
    model, scores = network(), [0.9, 0.1, 0.2, 0.3]
    start = {name: value.clone() for name, value in model.state_dict().items()}
    train(tmp_path, model=model, validate=lambda judged: {"score": scores.pop(0)}, validate_first=True,
          select={"best": lambda numbers: numbers["score"]})
    best = checkpoint.read_state(tmp_path / "weights/best.pt")
    assert all(torch.equal(best[name], value) for name, value in start.items())


def test_metrics_hold_the_means_over_an_epoch(tmp_path):
    class Numbers(Plain):
        def __call__(self, model, batch, ctx):
            loss = 0 * sum(parameter.sum() for parameter in model.parameters()) + ctx.step + 1
            odd = {"odd": torch.tensor(float(ctx.step))} if ctx.step % 2 else {}
            return LossOut(loss, {"half": loss.detach() / 2, **odd})

    record = train(tmp_path, objective=Numbers(), epochs=2, validate=lambda judged: {"accuracy": 0.25})
    first, second = read_metrics(tmp_path / "results/metrics.jsonl")
    assert (first["epoch"], first["step"], second["epoch"], second["step"]) == (1, 4, 2, 8)
    assert (first["loss"], first["half"], first["odd"]) == (2.5, 1.25, 2.0)        # of 1..4; odd: of steps 1 and 3
    assert (second["loss"], second["half"], second["odd"]) == (6.5, 3.25, 6.0)
    assert first["seconds"] > 0 and first["images_per_second"] > 0 and first["accuracy"] == 0.25
    assert record.final == second and (record.epochs, record.steps) == (2, 8)
    assert record.weights["last"]["sha256"] == sha256_of(tmp_path / "weights/last.pt")


# --- resuming ---

class Killed(Exception):
    pass


def whole(folder, **changes):
    """Everything on: average, selection, momentum, a schedule that moves, dropout, batch norm."""
    return train(folder, **{"epochs": 4, "schedule": steps(0.2, (1.5, 3), (0.1, 0.05)),
                            "average": ema.Averaging(ema.warmed_up(0.9)), "validate": validation,
                            "select": {"best": lambda numbers: -numbers["error"],
                                       "worst": lambda numbers: numbers["error"]},
                            "snapshots": {1, 3}, "validate_first": True} | changes)


def validation(judged):
    batch = next(Noise().epoch(99))
    with torch.no_grad():
        return {"error": F.cross_entropy(judged(batch.x), batch.y).item()}


def weights_of(folder):
    return {name: sha256_of(folder / "weights" / f"{name}.pt")
            for name in ("last", "average", "best", "worst", "1", "3")}


@pytest.mark.parametrize("where", [("validate", 0), ("validate", 1), ("validate", 3), ("objective", 0),
                                   ("objective", 6), ("objective", 15)])
@pytest.mark.parametrize("resets", [False, True])
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path, where, resets):
    place, number = where
    optim = SGD(reset_each_epoch=resets)
    whole(tmp_path / "whole", optim=optim)
    calls = []

    def stop(name, value=None):
        calls.append(name)
        if name == place and calls.count(name) == number + 1:
            raise Killed
        return value

    with pytest.raises(Killed):
        whole(tmp_path / "cut", optim=optim, validate=lambda judged: stop("validate", validation(judged)),
              objective=CrossEntropy(lambda ctx: stop("objective")))
    resumes = (tmp_path / "cut/weights/resume.pt").exists()
    assert resumes == (where not in (("validate", 0), ("validate", 1), ("objective", 0)))
    # Where there is a state to go on from, the weights that the caller starts with must not matter.
    record = whole(tmp_path / "cut", optim=optim, model=network(3 if resumes else 0))
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert (record.epochs, record.steps) == (4, 16)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = whole(tmp_path)
    (tmp_path / "weights/last.pt").unlink()            # as if killed between the last epoch and the last file
    again = whole(tmp_path, model=network(3), objective=CrossEntropy(lambda ctx: pytest.fail("trained again")))
    assert again.weights == first.weights and again.final == first.final and again.best == first.best


def test_a_torn_line_and_a_line_without_its_state_are_cut_off(tmp_path):
    whole(tmp_path / "whole")
    whole(tmp_path / "cut", epochs=2)
    path = tmp_path / "cut/results/metrics.jsonl"
    path.write_text(path.read_text() + json.dumps({"epoch": 3, "step": 12}) + '\n{"epoch": 4, "st')
    whole(tmp_path / "cut")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_the_state_of_another_configuration_is_refused(tmp_path):
    whole(tmp_path, epochs=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"resume\.pt belongs to another configuration: give this run another name"):
        whole(tmp_path, identity="b")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_metrics_that_are_missing_while_the_weights_are_there_are_named(tmp_path):
    whole(tmp_path, epochs=2)
    path = tmp_path / "results/metrics.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(UserError, match=r"metrics\.jsonl has 1 of the 2 epochs that .*resume\.pt has trained"):
        whole(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"has 0 of the 2 epochs"):
        whole(tmp_path)


# --- numbers that are not finite, disks that are full ---

def kept_files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_last_good_state(tmp_path):
    whole(tmp_path, epochs=2)
    before = kept_files(tmp_path)
    broken = CrossEntropy(lambda ctx: float("nan") if ctx.step >= 9 else None)
    with pytest.raises(UserError, match=r"loss is nan in epoch 3, step 2 of 4 \(step 10 of the run\): training stops\. "
                                        r"The state after epoch 2 is kept in .*weights"):
        whole(tmp_path, objective=broken)
    after = kept_files(tmp_path)
    assert after["resume.pt"] == before["resume.pt"] and after["best.pt"] == before["best.pt"]
    assert b"NaN" not in after["metrics.jsonl"] and len(rows(tmp_path)) == 2
    assert checkpoint.load_tree(tmp_path / "weights/resume.pt")["epoch"] == 2
    whole(tmp_path)
    whole(tmp_path / "whole")
    assert weights_of(tmp_path) == weights_of(tmp_path / "whole")


def test_weights_that_broke_in_the_last_step_of_an_epoch_are_not_kept(tmp_path):
    """The loss of that step was still finite: only the weights show it."""
    whole(tmp_path, epochs=1)
    before = kept_files(tmp_path)

    def break_weights(model, batch, ctx):
        if ctx.step == 7:
            with torch.no_grad():
                model.network[5].bias.fill_(float("inf"))

    with pytest.raises(UserError, match=r"5\.bias is not finite after epoch 2"):
        whole(tmp_path, after_step=break_weights, validate=lambda judged: {"error": -1.0})
    assert kept_files(tmp_path) == before


def test_a_validation_that_is_not_finite_stops_the_run(tmp_path):
    whole(tmp_path, epochs=1)
    before = kept_files(tmp_path)
    with pytest.raises(UserError, match=r"error is nan after epoch 2"):
        whole(tmp_path, validate=lambda judged: {"error": float("nan")})
    assert kept_files(tmp_path) == before
    with pytest.raises(UserError, match=r"error is inf after epoch 0"):
        whole(tmp_path / "first", validate=lambda judged: {"error": float("inf")})
    assert not (tmp_path / "first/weights/best.pt").exists()


@pytest.mark.parametrize("call", range(1, 4))
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch, call):
    """call: which write of the third epoch fails (best.pt, metrics.jsonl, resume.pt, in this order)."""
    better = count()
    best = {"validate": lambda judged: {"error": -float(next(better))}}
    whole(tmp_path, epochs=2, **best)
    before, calls, fsync = kept_files(tmp_path), [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == call + 1:               # the first one cuts the metrics on resume
            raise OSError(errno.ENOSPC, "No space left on device")
        return fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    name = ("best.pt", "metrics.jsonl", "resume.pt")[call - 1]
    with pytest.raises(UserError, match=f"no space left while writing .*{name}: free some space"):
        whole(tmp_path, **best)
    monkeypatch.undo()
    after = kept_files(tmp_path)
    assert set(after) == set(before)
    assert after["resume.pt"] == before["resume.pt"]
    assert after["best.pt"] == before["best.pt"] or call > 1
    assert whole(tmp_path, **best).steps == 16
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2, 3, 4]


def test_a_full_disk_at_the_last_file_leaves_the_former_one(tmp_path, monkeypatch):
    whole(tmp_path)
    before = kept_files(tmp_path)

    def full(path, tensors, **_):
        raise UserError(f"no space left while writing {path}")

    monkeypatch.setattr(checkpoint, "save_state", full)
    with pytest.raises(UserError, match=r"no space left while writing .*last\.pt"):
        whole(tmp_path)
    assert kept_files(tmp_path) == before
