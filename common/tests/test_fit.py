"""The training loop on a network of a few numbers: order of a step, optimiser, averages, selection, exact resume."""


import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common import checkpoint, ema
from common.files import sha256_of
from common.fit import SGD
from common.records import read_metrics
from common.schedules import constant
from common.seeds import fold
from common.tests.fit_parts import CrossEntropy, Noise, network, rows, train
from common.types import Hyper, LossOut

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
