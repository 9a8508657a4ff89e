"""The baselines' losses, image by image in another way and against released values; passes, modes and statistics."""

import copy
import math

import pytest
import torch
from torch import nn

from common.attacks import PGD, TradesPGD
from common.engine import Engine
from common.types import Batch, StepContext
from dyart.baselines import (
    AT,
    MART,
    TRADES,
    CleanTraining,
    mart_boosted,
    mart_divergence,
    trades_divergence,
    training_attack,
)

CPU = Engine(torch.device("cpu"))
FAST = Engine(torch.device("cpu"), fast_attacks=True)
SIZES = {"eps": 8 / 255, "step_size": 2 / 255, "steps": 10}
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def context(engine=CPU, **more):
    return StepContext(generator=torch.Generator().manual_seed(5), attacking=engine.attacking, **more)


def attack(method, name="linf-pgd"):
    return training_attack(method, name=name, **SIZES)


def given(x_adv):
    return lambda model, x, y, ctx: x_adv


@pytest.fixture
def batch(golden):
    return Batch(golden["x"], golden["y"])


# --- The formulas, one image and one class at a time, in Python's own numbers.

def probabilities(row):
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def by_hand(clean, adversarial, y):
    """Per image: CE(x), smoothed CE(x), CE(x'), KL, boosted CE of x', weighted KL."""
    rows = []
    for first, second, label in zip(clean.tolist(), adversarial.tolist(), y.tolist(), strict=True):
        p, q = probabilities(first), probabilities(second)
        costs = [-math.log(value) for value in p]
        kl = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        kl_mart = sum(a * (math.log(a) - math.log(b + 1e-12)) for a, b in zip(p, q, strict=True))
        runner_up = max(value for place, value in enumerate(q) if place != label)
        rows.append((costs[label], 0.9 * costs[label] + 0.1 * sum(costs) / len(costs), -math.log(q[label]), kl,
                     -math.log(q[label]) - math.log(1.0001 - runner_up + 1e-12), kl_mart * (1.0000001 - p[label])))
    return torch.tensor(rows, dtype=torch.float64).mean(0).tolist()


@pytest.mark.parametrize("scale", [1, 8])
def test_losses_are_those_of_the_formulas(golden, batch, tiny, scale):
    with torch.no_grad():
        tiny[5].weight *= scale
        tiny[5].bias *= scale
        x_adv = golden["rpat/mart_x_adv"]
        clean, adversarial = tiny(batch.x).double(), tiny(x_adv).double()
    ce, smoothed, ce_adv, kl, boosted, weighted = by_hand(clean, adversarial, batch.y)
    expected = {CleanTraining(): ce, AT(given(x_adv)): ce_adv, AT(given(x_adv), keep_clean=True): (ce + ce_adv) / 2,
                TRADES(given(x_adv)): smoothed + 6 * kl, TRADES(given(x_adv), beta=2.5, smooth=False): ce + 2.5 * kl,
                MART(given(x_adv)): boosted + 6 * weighted, MART(given(x_adv), beta=0.5): boosted + 0.5 * weighted}
    for objective, value in expected.items():
        loss, logs = objective(tiny, batch, context())
        assert loss.item() == pytest.approx(value, rel=2e-5), objective
        assert logs.get("clean_accuracy") == (clean.argmax(1) == batch.y).float().mean()
        if not isinstance(objective, CleanTraining):
            assert logs["adversarial_accuracy"] == (adversarial.argmax(1) == batch.y).float().mean()
        parts = [part for name, part in logs.items() if name.endswith(("_loss", "_term"))]
        assert sum(parts).item() == pytest.approx(value, rel=2e-5) and not any(p.requires_grad for p in logs.values())
        assert objective.modules() == {}


def test_gradients_flow_through_both_passes():
    # The formulas again, written on whole tensors of probabilities: nothing but x' is a constant.
    generator = torch.Generator().manual_seed(2)
    clean, adversarial = (torch.randn(12, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    y = torch.arange(12) % 5
    rows = torch.arange(12)

    def trades(z, z_adv):
        p, q = (value.exp() / value.exp().sum(1, keepdim=True) for value in (z, z_adv))
        return torch.einsum("ik,ik->i", p, (p / q).log())

    def boosted(z, z_adv):
        q = z_adv.exp() / z_adv.exp().sum(1, keepdim=True)
        ranked = torch.stack([torch.cat((row[:label], row[label + 1:])).sort().values
                              for row, label in zip(q, y, strict=True)])
        return -(q[rows, y] * (1.0001 - ranked[:, -1] + 1e-12)).log()

    def weighted(z, z_adv):
        p = z.exp() / z.exp().sum(1, keepdim=True)
        return trades(z, z_adv) * (1.0000001 - p[rows, y])

    for ours, theirs in ((lambda a, b: trades_divergence(a, b), trades), (lambda a, b: mart_boosted(b, y), boosted),
                         (lambda a, b: mart_divergence(a, b, y), weighted)):
        answers = []
        for function in (ours, theirs):
            inputs = clean.clone().requires_grad_(), adversarial.clone().requires_grad_()
            value = function(*inputs)
            gradients = torch.autograd.grad(value.mean(), inputs, allow_unused=True)
            answers.append((value.detach(), *(torch.zeros_like(clean) if g is None else g for g in gradients)))
        torch.testing.assert_close(*answers, rtol=1e-6, atol=1e-9)


def test_the_small_constants_of_mart():
    # Sure of y at x, and of another class at x': each constant is most of the term that it stands in.
    clean, adversarial = torch.tensor([[40.0, 0, 0]]).double(), torch.tensor([[0.0, 40, 0]]).double()
    *_, boosted, weighted = by_hand(clean, adversarial, torch.tensor([0]))
    assert boosted == pytest.approx(40 - math.log(1e-4), rel=1e-6)
    assert weighted == pytest.approx(-1e-7 * math.log(1e-12), rel=1e-3)
    assert mart_boosted(adversarial, torch.tensor([0])).item() == pytest.approx(boosted, rel=1e-11)
    assert mart_divergence(clean, adversarial, torch.tensor([0])).item() == pytest.approx(weighted, rel=1e-7)


def test_extreme_logits_give_finite_losses_and_gradients():
    clean, adversarial = torch.tensor([[200.0, -200, 0]] * 3), torch.tensor([[-200.0, 200, 0]] * 3)
    y, inputs = torch.arange(3), [clean.requires_grad_(), adversarial.requires_grad_()]
    for value in (mart_boosted(adversarial, y), mart_divergence(clean, adversarial, y),
                  trades_divergence(clean, adversarial)):
        gradients = torch.autograd.grad(value.sum(), inputs, allow_unused=True)
        assert value.isfinite().all() and all(g.isfinite().all() for g in gradients if g is not None)


# --- Values of the released codes that share these formulas.

def test_mart_on_released_values(golden, batch, tiny):
    ended = attack("MART").from_start(tiny, batch.x, batch.y, golden["rpat/mart_start"])
    assert ((ended - golden["rpat/mart_x_adv"]).abs() < 1e-6).float().mean() > 0.999
    loss, logs = MART(given(golden["rpat/mart_x_adv"]))(tiny, batch, context())
    torch.testing.assert_close(logs["boosted_loss"], golden["rpat/mart_adv_loss"], **CLOSE)
    torch.testing.assert_close(logs["divergence_term"], golden["rpat/mart_robust_loss"], **CLOSE)
    torch.testing.assert_close(loss.detach(), golden["rpat/mart_adv_loss"] + golden["rpat/mart_robust_loss"], **CLOSE)


def test_trades_on_released_values(golden, batch, tiny):
    for start, end in (("rpat/trades_start", "rpat/trades_x_adv"), ("adarat/trades_start", "adarat/trades10")):
        ended = attack("TRADES").from_start(tiny, batch.x, batch.y, golden[start])
        assert ((ended - golden[end]).abs() < 1e-6).float().mean() > 0.999
    # With RPAT's term, which on this network is 3e-8.
    loss, _ = TRADES(given(golden["rpat/x_adv"]), smooth=False)(tiny, batch, context())
    torch.testing.assert_close(loss.detach(), golden["rpat/tiny/trades_rpat"], **CLOSE)


# --- Passes: which images, in which mode, with or without gradient, and what batch norm keeps of them.

class Watched(nn.Module):
    """A network that notes its passes: (train mode, statistics tracked, parameters' gradient wanted, images)."""

    def __init__(self, network):
        super().__init__()
        self.network, self.passes = network, []

    def forward(self, x):
        norm = self.network[1]
        wants = torch.is_grad_enabled() and self.network[0].weight.requires_grad
        self.passes.append((norm.training, norm.track_running_stats, wants, x.detach().clone()))
        return self.network(x)


@pytest.mark.parametrize("name", ["clean", "AT", "AT, no clean pass", "AT, x kept", "TRADES", "MART"])
def test_passes_in_the_released_order(batch, tinybn, name):
    found = []

    def noted(seek):
        return lambda *what: found.append(seek(*what)) or found[0]

    objective, passes = {
        "clean": (CleanTraining(), "x"),
        "AT": (AT(noted(attack("AT"))), "eeeeeeeeee'o"),
        "AT, no clean pass": (AT(noted(attack("AT")), clean_pass=False), "eeeeeeeeee'"),
        "AT, x kept": (AT(noted(attack("AT")), keep_clean=True), "eeeeeeeeee2"),
        "TRADES": (TRADES(noted(attack("TRADES"))), "uuuuuuuuuuux'"),
        "MART": (MART(noted(attack("MART"))), "eeeeeeeeeex'")}[name]
    model, twin, before = Watched(tinybn).train(), copy.deepcopy(tinybn), int(tinybn[1].num_batches_tracked)
    objective(model, batch, context())
    x, x_adv = batch.x, found[0] if found else None
    kinds = {"e": (False, True, False), "u": (True, False, False), "x": (True, True, True), "'": (True, True, True),
             "2": (True, True, True), "o": (True, True, False)}
    assert [kind[:3] for kind in model.passes] == [kinds[letter] for letter in passes]
    wanted = {"x": x, "o": x, "'": x_adv, "2": torch.cat((x, x_adv)) if found else None}
    for letter, (*_, images) in zip(passes, model.passes, strict=True):
        if letter in wanted:
            assert torch.equal(images, wanted[letter])
            twin(images)
    if name == "TRADES":
        assert torch.equal(model.passes[0][3], x)                # the constant p(x) comes first
    # What batch norm keeps is what those passes alone, in that order, leave in it.
    for (key, ours), theirs in zip(tinybn.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs), key
    counts = {"clean": 1, "AT": 2, "AT, no clean pass": 1, "AT, x kept": 1, "TRADES": 2, "MART": 2}
    assert int(tinybn[1].num_batches_tracked) - before == counts[name]


@pytest.mark.parametrize(("objective", "count"), [(AT(attack("AT")), 2), (TRADES(attack("TRADES")), 2),
                                                  (MART(attack("MART")), 2), (CleanTraining(), 1)])
@pytest.mark.parametrize("engine", [CPU, FAST])
def test_statistics_count_the_passes_of_the_loss_alone(batch, tinybn, engine, objective, count):
    before = int(tinybn[1].num_batches_tracked)
    loss, _ = objective(engine.runner(tinybn), batch, context(engine))
    loss.backward()
    assert int(tinybn[1].num_batches_tracked) - before == int(tinybn[4].num_batches_tracked) - before == count
    assert all(module.training for module in tinybn.modules()) and tinybn[1].track_running_stats
    assert all(parameter.grad.isfinite().all() for parameter in tinybn.parameters()) and not engine.notes


def test_every_mean_is_over_the_global_batch(batch, tiny):
    for objective in (CleanTraining(), AT(given(batch.x)), AT(given(batch.x), keep_clean=True),
                      TRADES(given(1 - batch.x)), MART(given(1 - batch.x))):
        loss, _ = objective(tiny, batch, context())
        doubled, _ = objective(tiny, batch, context(mean=lambda values: 2 * values.mean()))
        assert doubled.item() == pytest.approx(2 * loss.item(), rel=1e-6)


# --- The attacks.

def test_the_released_attacks():
    assert attack("AT") == PGD(8 / 255, 2 / 255, 10) and attack("TRADES") == TradesPGD(8 / 255, 2 / 255, 10)
    fgsm = attack("AT", "fgsm")
    assert (fgsm.steps, fgsm.step_size, fgsm.random_start) == (1, 8 / 255, False)
    with_l2 = training_attack("TRADES", name="l2-pgd", eps=0.5, step_size=0.7, steps=10)
    assert (with_l2.norm, with_l2.eps, with_l2.step_size, with_l2.steps) == ("l2", 0.5, 0.1, 10)


def test_where_the_attacks_start(batch):
    x = batch.x.round()
    for method in ("AT", "TRADES"):
        start = attack(method).start(x, context())
        assert start.min() >= 0 and start.max() <= 1 and (start - x).abs().max() <= 8 / 255 + 1e-6
        assert torch.equal(start, (x + 8 / 255 * (2 * context().uniform(x) - 1)).clamp(0, 1))
    for found in (attack("MART"), training_attack("TRADES", name="l2-pgd", **SIZES)):
        assert torch.equal(found.start(x, context()), x + 0.001 * context().normal(x))
    on_sphere = training_attack("AT", name="l2-pgd", eps=0.5, step_size=0.1, steps=10).start(x, context()) - x
    torch.testing.assert_close(on_sphere.flatten(1).norm(dim=1), torch.full((16,), 0.5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "name"), [("TRADES", "fgsm"), ("MART", "l2-pgd"), ("MART", "fgsm"),
                                              ("AT", "l2-apgd"), ("DyART", "linf-pgd")])
def test_attacks_that_a_method_does_not_have(method, name):
    with pytest.raises(ValueError, match=f"{method} has no training attack"):
        attack(method, name)


def test_training_with_each_raises_the_accuracy_that_it_trains(batch):
    for objective in (CleanTraining(), AT(attack("AT")), TRADES(attack("TRADES")), MART(attack("MART"))):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10))
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for step in range(40):
            ctx = StepContext(generator=torch.Generator().manual_seed(step), attacking=CPU.attacking)
            loss, logs = objective(network, batch, ctx)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert logs["clean_accuracy"] > 0.9 and logs.get("adversarial_accuracy", torch.ones(())) > 0.6, objective
