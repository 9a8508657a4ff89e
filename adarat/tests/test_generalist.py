"""Generalist's averages and schedules against the released code's values (tests/golden, papers' constants)."""

import math

import pytest
import torch

from adarat.generalist import DECAY, Plan, Quintet, fit_generalist, tensors
from adarat.method import AdversarialTraining, StandardTraining
from common.attack_view import AttackView
from common.attacks import PGD
from common.engine import Engine
from common.fit import SGD
from common.tests.fit_parts import CPU, Noise, network


def fill(network, flat):
    """Write a flattened state dict (counters included) back into a network."""
    position = 0
    for entry in network.state_dict().values():
        size = entry.numel()
        entry.copy_(flat[position:position + size].view_as(entry))
        position += size
    assert position == len(flat)


def flattened(network):
    return torch.cat([entry.float().flatten() for entry in network.state_dict().values()])


def test_averages_and_mix_follow_the_released_code(golden, tinybn):
    fill(tinybn, golden["adarat/gen_m1"])
    five = Quintet(tinybn)
    for step in range(3):
        fill(five.at, golden[f"adarat/gen_m1_{step}"])
        fill(five.st, golden[f"adarat/gen_m2_{step}"])
        five.update_average("at", step)
        torch.testing.assert_close(flattened(five.at_average), golden[f"adarat/gen_ema_{step}"], rtol=1e-4, atol=1e-6)
        # The golden mix was fed with the learners themselves, not with their averages.
        direct = Quintet(five.mixed)
        direct.mixed = five.mixed
        fill(direct.at_average, golden[f"adarat/gen_m1_{step}"])
        fill(direct.st_average, golden[f"adarat/gen_m2_{step}"])
        direct.update_mixed(0.95, step)
        torch.testing.assert_close(flattened(five.mixed), golden[f"adarat/gen_mix_{step}"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("epoch", "lr", "weight"), [
    (40, 0.1, 1), (41, 0.09775, 1), (60, 0.055, 1), (80, 0.01, 1), (81, 0.009775, 0.9975), (100, 0.0055, 0.95),
    (120, 0.001, 0.9)])
def test_schedule(epoch, lr, weight):
    plan = Plan(120, 0.1)
    assert math.isclose(plan.lr_at(epoch), lr, rel_tol=1e-9)
    assert math.isclose(plan.weight_at(epoch), weight, rel_tol=1e-9)


def test_reload_epochs_and_decay():
    plan = Plan(120)
    assert [epoch for epoch in range(1, 121) if plan.reloads(epoch)] == list(range(75, 121, 3))
    for t, decay in ((0, 0.1), (1, 0.1818182), (9, 0.5263158), (990, 0.991), (8990, 0.999), (10**6, 0.999)):
        assert math.isclose(DECAY(t), decay, rel_tol=1e-6)


def test_reload_gives_both_learners_the_mixed_weights_and_buffers(tinybn):
    five = Quintet(tinybn)
    with torch.no_grad():
        for tensor in tensors(five.mixed):
            tensor.add_(1)
    five.reload()
    for learner in (five.at, five.st):
        assert all(torch.equal(a, b) for a, b in zip(tensors(learner), tensors(five.mixed), strict=True))
    assert all(parameter.requires_grad for parameter in five.st.parameters())
    assert not any(parameter.requires_grad for parameter in five.mixed.parameters())


class Far(torch.nn.Module):
    """A network that float32 computes well and bf16 does not: its pixels pass through numbers near 1,000."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x + 1000) - 1000)


@pytest.mark.parametrize("spoilt", [False, True])
def test_the_attacks_on_the_at_learner_take_the_fast_path_only_if_it_can_be_trusted(spoilt, tmp_path):
    attacked = []

    def attack(model, x, y, ctx):
        attacked.append(type(model))
        return PGD(8 / 255, 2 / 255, 2)(model, x, y, ctx)
    engine = Engine(CPU, "bf16", channels_last=True, fast_attacks=True)
    record = fit_generalist(
        network=Far(network()) if spoilt else network(), at=AdversarialTraining(attack, attack_in_train_mode=False),
        st=StandardTraining(), batches=Noise(), plan=Plan(1), at_optim=SGD(), st_optim=SGD(), out=tmp_path / "results",
        weights=tmp_path / "weights", seed=1, engine=engine, identity="a", validate=lambda five: {})
    note, = record.notes
    assert len(attacked) == 4 and (AttackView in attacked) is not spoilt and len(set(attacked)) == 1
    path = "on the plain path, in float32" if spoilt else "in bf16"
    assert note.startswith(f"attacks on the AT learner in eval mode run {path} from step 0 on: ")
