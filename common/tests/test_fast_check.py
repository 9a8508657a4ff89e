"""The check of the attacks' fast path: what it finds, what follows, and that it leaves no other trace."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common import checkpoint, ema, fast_check
from common.attack_view import AttackView
from common.attacks import PGD
from common.engine import Engine, Runner
from common.fast_check import Comparison, FastCheck, compare
from common.files import sha256_of
from common.tests.fit_parts import CPU, CrossEntropy, Noise, network, train
from common.types import Batch, LossOut, StepContext

ATTACK = PGD(8 / 255, 2 / 255, 2)


class Far(nn.Module):
    """A network that float32 computes well and bf16 does not: its pixels pass through numbers near 1,000."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x + 1000) - 1000)


class Attacked(CrossEntropy):
    """Cross-entropy after an attack on the model in one mode; keeps what was attacked, as (step, network)."""

    def __init__(self, training=False, watch=None):
        super().__init__(watch)
        self.training, self.seen = training, []

    def __call__(self, model, batch, ctx):
        with ctx.attacking(model, self.training) as target:
            self.seen.append((ctx.step, target))
            x = ATTACK(target, batch.x, batch.y, ctx)
        return LossOut(*super().__call__(model, Batch(x, batch.y), ctx))

    @property
    def fast_steps(self):
        return [step for step, target in self.seen if isinstance(target, AttackView)]


def fast():
    return Engine(CPU, "bf16", channels_last=True, fast_attacks=True)


def weights(folder):
    return sha256_of(folder / "weights/last.pt")


def context(step=0):
    return StepContext(generator=torch.Generator().manual_seed(0), step=step)


# --- what it finds ---

def test_the_figures_are_those_of_their_definition():
    model, batch = network().eval(), next(Noise().epoch(0))
    figures = Comparison(*(each.mean().item() for each in compare(model, batch.x, batch.y, fast())))
    view = AttackView(model, False, torch.bfloat16)
    view.refresh()
    start = fast_check.ATTACK.start(batch.x, StepContext(generator=torch.Generator().manual_seed(
        fast_check.fold(0, "fast check"))))
    gradients, losses = [], []
    for each in (model, view):
        x = start.clone().requires_grad_()
        gradients.append(torch.autograd.grad(F.cross_entropy(each(x), batch.y), x)[0])
        losses.append(F.cross_entropy(model(fast_check.ATTACK.from_start(each, batch.x, batch.y, start)), batch.y))
    agreed = gradients[0].abs()[gradients[0].sign() == gradients[1].sign()].sum() / gradients[0].abs().sum()
    assert figures.same_sign == pytest.approx(agreed.item(), abs=1e-6) and 0.99 <= figures.same_sign <= 1
    assert figures.plain_loss == pytest.approx(losses[0].item(), rel=1e-6)
    assert figures.fast_loss == pytest.approx(losses[1].item(), rel=1e-6)
    assert losses[0] > F.cross_entropy(model(start), batch.y)
    assert figures.passed


@pytest.mark.parametrize(("figures", "passed"), [
    ((1.0, 1.0, 2.0, 2.0), True), ((1.0049, 1.0, 2.0, 2.0), True), ((0.9951, 1.0, 2.0, 2.0), True),
    ((1.0051, 1.0, 2.0, 2.0), False), ((0.9949, 1.0, 2.0, 2.0), False), ((1.0, 1.0, 2.0, 1.981), True),
    ((1.0, 1.0, 2.0, 1.979), False), ((float("nan"), 1.0, 2.0, 2.0), False), ((1.0, 1.0, 2.0, float("nan")), False),
    ((0.0, 0.0, 0.0, 0.0), True), ((0.1, 0.0, 2.0, 2.0), False), ((1.0, float("inf"), 2.0, 2.0), False)])
def test_half_a_percent_of_loss_and_a_hundredth_of_the_mass(figures, passed):
    assert Comparison(*figures).passed is passed


@pytest.mark.parametrize("training", [False, True])
def test_dropout_and_mixed_labels_are_no_reason_to_refuse(training):
    batch = next(Noise().epoch(0))
    mixed = 0.7 * F.one_hot(batch.y, 2).float() + 0.15
    for y in (batch.y, mixed):
        assert Comparison(*(each.mean().item() for each in compare(network(), batch.x, y, fast(), training=training))
                          ).same_sign > 0.99


@pytest.mark.parametrize("training", [False, True])
def test_nothing_moves(training):
    model, batch = network(), next(Noise().epoch(0))
    before, modes = copy.deepcopy(model.state_dict()), [each.training for each in model.modules()]
    state = torch.random.get_rng_state()
    compare(model, batch.x, batch.y, fast(), training=training)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [each.training for each in model.modules()] and model[3].p == 0.3
    assert all(each.requires_grad and each.grad is None for each in model.parameters())


# --- what follows ---

@pytest.mark.parametrize("training", [False, True])
def test_a_network_that_bf16_spoils_is_attacked_in_float32_and_that_is_said_once(tmp_path, capsys, training):
    engine, objective, model = fast(), Attacked(training), Far(network())
    record = train(tmp_path, engine=engine, objective=objective, model=model)
    assert objective.fast_steps == [] and all(target is model for _, target in objective.seen)
    note, = record.notes
    mode = "train" if training else "eval"
    assert note.startswith(f"attacks on the model in {mode} mode run on the plain path, in float32 from step 0 on: in")
    assert "(at most 0.5%, at least 99%)" in note and engine.describe()["notes"] == [note]
    assert capsys.readouterr().err.count("note: attacks") == 1
    x = next(Noise().epoch(0)).x
    with FastCheck(engine, {"the model": model}).guard(context(), next(Noise().epoch(0))).attacking(
            engine.runner(model)) as target:
        assert target(x).dtype == torch.float32 and torch.equal(target(x), model.eval()(x))


def test_an_ordinary_network_stays_on_the_fast_path_and_the_check_costs_it_no_bit(tmp_path, capsys, monkeypatch):
    checked, unchecked = Attacked(), Attacked()
    record = train(tmp_path / "checked", engine=fast(), objective=checked)
    assert checked.fast_steps == list(range(12)) and len(record.notes) == 1
    assert record.notes[0].startswith("attacks on the model in eval mode run in bf16 from step 0 on: in bf16 the att")
    assert "note" not in capsys.readouterr().err
    monkeypatch.setattr(FastCheck, "guard", lambda self, ctx, batch: ctx)
    train(tmp_path / "unchecked", engine=fast(), objective=unchecked)
    assert weights(tmp_path / "checked") == weights(tmp_path / "unchecked")


def test_in_float32_nothing_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(fast_check, "compare", lambda *_, **__: pytest.fail("asked"))
    assert train(tmp_path, engine=Engine(CPU), objective=Attacked()).notes == []


def answers(monkeypatch, *passes):
    """Let the check find a passing or a failing comparison, one after another; -> the steps are its own affair."""
    given = iter(passes)
    monkeypatch.setattr(fast_check, "compare", lambda *_, **__: [
        torch.full((4,), value) for value in ((1.0, 1.0, 1.0, 1.0) if next(given) else (1.0, 1.0, 1.0, 0.5))])


def test_the_last_answer_holds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fast_check, "STEPS", (0, 3, 7))
    answers(monkeypatch, False, True, False)
    objective = Attacked()
    record = train(tmp_path, engine=fast(), objective=objective)
    assert objective.fast_steps == [3, 4, 5, 6]
    assert [note.split(" from ")[1].split(" on:")[0] for note in record.notes] == ["step 0", "step 3", "step 7"]
    assert capsys.readouterr().err.count("note: attacks") == 3


def test_each_network_and_mode_has_its_own_answer(monkeypatch):
    answers(monkeypatch, True, False, False)
    engine, first, second = fast(), network(), network(1)
    check, batch = FastCheck(engine, {"the model": first, "the average": engine.runner(second)}), next(Noise().epoch(0))
    found = {}
    for training, (name, each) in itertools.product((False, True), (("first", first), ("second", second))):
        if (name, training) != ("second", True):
            with check.guard(context(5), batch).attacking(engine.runner(each), training) as target:
                found[name, training] = type(target)
    assert found["first", False] is AttackView
    assert found["second", False] is not AttackView and found["first", True] is not AttackView
    said = [note.split("attacks on ")[1].split(" mode run")[0] for note in engine.notes]
    assert said == ["the model in eval", "the average in eval", "the model in train"]


def test_of_several_views_of_the_images_the_first_are_asked_about():
    """Consistency training stacks two views of each image: twice as many images as labels."""
    one, model = next(Noise().epoch(0)), network()
    found = []
    for x in (one.x, torch.cat((one.x, 1 - one.x))):
        engine = fast()
        check = FastCheck(engine, {"the model": model})
        with check.guard(context(), Batch(x, one.y)).attacking(engine.runner(model), False):
            found += check.answers
    assert len(found) == 2 and found[0] == found[1]


def test_a_network_that_cannot_be_traced_is_checked_as_it_is_attacked():
    class Branching(nn.Module):
        def __init__(self, far):
            super().__init__()
            self.far, self.first, self.head = far, nn.Linear(16, 16), nn.Linear(16, 2)

        def forward(self, x):
            hidden = self.first(x.flatten(1) if x.sum() > 0 else -x.flatten(1))
            return self.head(((hidden + self.far) - self.far).relu())
    torch.manual_seed(0)
    engine, batch = fast(), next(Noise().epoch(0))
    for model, trusted in ((Branching(0.0), True), (Branching(1000.0), False)):
        with FastCheck(engine, {"the model": model}).guard(context(), batch).attacking(model) as target:
            assert isinstance(target, Runner) is trusted


# --- resuming ---

class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_at", [2, 5, 9])
def test_a_resumed_run_goes_on_with_the_answers_it_had(tmp_path, monkeypatch, killed_at):
    """4 steps an epoch.  The first answer is no, the second, at step 6, is yes: neither is asked for again."""
    monkeypatch.setattr(fast_check, "STEPS", (0, 6))
    notes = []

    def run(folder, objective, *passes):
        answers(monkeypatch, *passes)
        record = train(folder, engine=fast(), objective=objective, model=Far(network()),
                       average=ema.Averaging(ema.warmed_up(0.9)))
        notes.append(record.notes)
        return objective.fast_steps

    def stop(ctx):
        if ctx.step == killed_at:
            raise Killed
    assert run(tmp_path / "whole", Attacked(), False, True) == list(range(6, 12))
    given = [False, True]
    with pytest.raises(Killed):
        run(tmp_path / "cut", Attacked(watch=stop), *given)
    # What was found in the epoch that was cut off is found again; what was found before is kept.
    kept = {2: [], 5: [False], 9: [False, True]}[killed_at]
    steps = run(tmp_path / "cut", Attacked(), *given[len(kept):])
    assert steps == list(range(max(6, killed_at // 4 * 4), 12))
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole") and notes[0] == notes[-1]


def test_a_resume_file_from_before_there_was_a_check_is_read(tmp_path):
    train(tmp_path, engine=fast(), objective=CrossEntropy(), epochs=1)
    path = tmp_path / "weights/resume.pt"
    state = checkpoint.load_tree(path)
    assert state["parts"].pop("fast_check") == {}
    checkpoint.save_tree(path, state)
    objective = Attacked()
    assert len(train(tmp_path, engine=fast(), objective=objective).notes) == 1
    assert objective.fast_steps == list(range(4, 12))
