"""RPAT's part 2: the released code's values, limits of RPAT++, the weight of D, passes and quirks."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.ema import averaged_copy
from common.engine import Engine
from common.types import Batch
from rpat.attacks import no_attack
from rpat.rebat import Beta, ReBAT, RPATpp, clean_forward, own_labels, penalised, sane_divergence
from rpat.rebat_attack import RebatPGD
from rpat.tests.rpat_references import Fixed, Norm, context, given, kl, pictures

CLOSE = {"rtol": 1e-4, "atol": 1e-6}
NOW = Beta(warmup=0)
PLAIN = {"weight": NOW, "half_inputs": False, "wa_train_mode": False}


def loss_of(objective, model, average, batch, **more):
    return objective(model, batch, context(average=average, **more))


def wavy(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 4)).double()


@pytest.fixture
def pair():
    x = pictures(6).double()
    x_adv = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    return x, x_adv, torch.arange(6) % 4


def test_regularisers_of_the_released_code(golden):
    x, robust = golden["x"], golden["rpat/robust"]
    for objective, answers, key in (
            (RPATpp(given(x), **PLAIN), (golden["rpat/wa_benign"], golden["rpat/wa_interp"]), "rpatpp_reg"),
            (ReBAT(given(x), **PLAIN), (golden["rpat/wa_robust"],), "rebat_reg")):
        out = loss_of(objective, Fixed(robust), Fixed(*answers), Batch(x, golden["y"]))
        torch.testing.assert_close(out.logs["divergence_term"], golden[f"rpat/{key}"], **CLOSE)
        torch.testing.assert_close(out.loss, F.cross_entropy(robust, golden["y"]) + golden[f"rpat/{key}"], **CLOSE)


def test_constants_of_the_paper_file():
    middle, clean = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[3.0, 0.0, 0.0]])
    batch, adversarial = Batch(torch.zeros(1, 1, 1, 1), torch.tensor([0])), torch.tensor([[1.0, 2.0, 3.0]])
    out = loss_of(RPATpp(no_attack, **PLAIN), Fixed(adversarial), Fixed(clean, middle), batch)
    assert math.isclose(out.logs["divergence_term"], 0.220514, abs_tol=1e-6)
    out = loss_of(ReBAT(no_attack, **PLAIN), Fixed(adversarial), Fixed(middle), batch)
    assert math.isclose(out.logs["divergence_term"], 1.150421, abs_tol=1e-6)


# --- limits ---

def test_rpatpp_at_r_one_is_rebat_and_at_r_zero_nothing(pair):
    x, x_adv, y = pair
    model, average, attack = wavy(1), averaged_copy(wavy(2)), given(x_adv)
    rebat = loss_of(ReBAT(attack, **PLAIN), model, average, Batch(x, y))
    one = loss_of(RPATpp(attack, **PLAIN, rate=1.0), model, average, Batch(x, y))
    torch.testing.assert_close(one.loss, rebat.loss, rtol=1e-6, atol=0)
    assert rebat.logs["divergence_term"] > 1e-3
    zero = loss_of(RPATpp(attack, **PLAIN, rate=0.0), model, average, Batch(x, y))
    assert abs(zero.logs["divergence_term"]) < 1e-7
    torch.testing.assert_close(zero.loss.detach(), F.cross_entropy(model(x_adv), y).detach())


@pytest.mark.parametrize("rate", [0.5, 0.3])
def test_a_linear_network_equal_to_its_average_has_no_divergence(pair, rate):
    x, x_adv, y = pair
    torch.manual_seed(3)
    # Without bias: f_wa(mid) - (1-r)*f_wa(x) is then r*f_wa(x').
    linear = nn.Sequential(nn.Flatten(), nn.Linear(48, 4, bias=False)).double()
    out = loss_of(RPATpp(given(x_adv), **PLAIN, rate=rate), linear, averaged_copy(linear), Batch(x, y))
    assert abs(out.logs["divergence_term"]) < 1e-7
    other = averaged_copy(linear)
    with torch.no_grad():
        other[1].weight.mul_(2)
    assert loss_of(RPATpp(given(x_adv), **PLAIN, rate=rate), linear, other, Batch(x, y)).logs["divergence_term"] > 1e-4


@pytest.mark.parametrize("rate", [0.5, 0.3])
def test_rpatpp_written_down_once_more(pair, rate):
    x, x_adv, y = pair
    model, average = wavy(1), averaged_copy(wavy(2))
    weight = Beta(beta=0.7, warmup=0)
    out = loss_of(RPATpp(given(x_adv), **{**PLAIN, "weight": weight}, rate=rate), model, average, Batch(x, y))
    mid = (1 - rate) * x + rate * x_adv
    target = (average(mid) - (1 - rate) * average(x)).softmax(1)
    expected = F.cross_entropy(model(x_adv), y).item() + 0.7 * kl(target, (rate * model(x_adv)).softmax(1))
    assert math.isclose(out.loss.item(), expected, rel_tol=1e-6)
    # Only f(x') has a gradient: d(KL)/d(logits) is r*(q - p)/B, d(CE)/d(logits) is (softmax - one hot)/B.
    adversarial = model(x_adv)
    onehot = F.one_hot(y, 4)
    by_hand = (adversarial.softmax(1) - onehot + 0.7 * rate * ((rate * adversarial).softmax(1) - target)) / 6
    theirs = torch.autograd.grad((adversarial * by_hand.detach()).sum(), list(model.parameters()))
    for ours, reference in zip(torch.autograd.grad(out.loss, list(model.parameters())), theirs, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-8)
    assert all(parameter.grad is None for parameter in average.parameters())


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e12])
def test_a_divergence_out_of_hand_is_left_out_with_its_gradient(broken):
    student = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    good, bad = torch.randn(4, 3), torch.randn(4, 3)
    if math.isfinite(broken):
        far = torch.tensor([[0.0, 1e12, 0.0]]).repeat(4, 1)              # log softmax of it is -1e12 off the top
        value = sane_divergence(torch.zeros(4, 3), student * 0 + far, context())
    else:
        bad[2, 1] = broken
        value = sane_divergence(bad, student, context())
    assert value == 0
    gradient, = torch.autograd.grad(value, student)
    assert gradient.abs().max() == 0
    assert sane_divergence(good, student, context()) > 0
    just = torch.tensor([[0.0, 1e10, 0.0]])
    assert 6e9 < sane_divergence(torch.zeros(1, 3), just, context()) < 1e10


# --- the weight of D ---

def released_lr(t):
    return 0.1 if t < 100 else 0.1 / 1.5 if t < 150 else 0.1 / 1.5 ** 2


def test_weight_by_epoch():
    weight = Beta()
    assert [weight(epoch, index, 391) for epoch, index in ((0, 0), (104, 390), (105, 0), (199, 390))] == [0, 0, 1, 1]


def test_dependent_weight():
    weight = Beta(schedule="dependent", lr=released_lr)
    assert weight(104, 390, 391) == 0
    assert math.isclose(weight(105, 0, 391), 0.25) and math.isclose(weight(150, 0, 391), 0.625)
    assert math.isclose(weight(149, 389, 391), 0.25) and math.isclose(weight(149, 390, 391), 0.625)
    # Epoch 99 begins with weight 0, so D stays out, although the last step's rate has fallen.
    early = Beta(schedule="dependent", lr=released_lr, warmup=90)
    assert early.at(100.0) > 0 and [early(99, index, 391) for index in (0, 389, 390)] == [0, 0, 0]
    assert math.isclose(early(100, 0, 391), 0.25)
    assert Beta(beta=0.0, schedule="dependent", lr=released_lr)(150, 0, 391) == 0


def test_dependent_weight_where_the_cosine_ends():
    weight = Beta(schedule="dependent", lr=lambda t: max(0.05 * (1 + math.cos(math.pi * t / 200)), 0.0))
    assert weight(199, 389, 391) > 1000 and weight(199, 390, 391) == 0


def test_piecewise_weight():
    weight = Beta(beta=0.4, schedule="piecewise", factor=1.5)
    assert [weight(*at, 391) for at in ((104, 0), (105, 0), (149, 389))] == [0, 0.4, 0.4]
    assert math.isclose(weight(149, 390, 391), 0.6) and math.isclose(weight(180, 0, 391), 0.6)


def test_weights_that_make_no_sense():
    with pytest.raises(ValueError, match="schedule"):
        Beta(schedule="linear")
    with pytest.raises(ValueError, match="learning rate"):
        Beta(schedule="dependent")


def test_the_step_of_the_run_gives_the_step_of_the_epoch(pair):
    x, x_adv, y = pair
    weight = Beta(beta=0.4, warmup=2, schedule="piecewise", stage2=3)
    objective = RPATpp(given(x_adv), **{**PLAIN, "weight": weight})
    model, average = wavy(1), averaged_copy(wavy(2))
    for epoch, step, expected in ((1, 9, 0), (2, 10, 0.4), (2, 13, 0.4), (2, 14, 0.6), (3, 15, 0.6)):
        out = loss_of(objective, model, average, Batch(x, y), epoch=epoch, step=step, steps_per_epoch=5)
        assert math.isclose(out.logs["beta"], expected, abs_tol=1e-6)
        assert (out.logs["divergence_term"] > 0) == (expected > 0)


# --- passes, batch norm, quirks ---

def norms(seed=0):
    model = Norm().train()
    return model, averaged_copy(Norm())


@pytest.mark.parametrize(("make", "averaged_passes"), [(ReBAT, 1), (RPATpp, 2)])
@pytest.mark.parametrize(("mixed", "passes"), [(False, 13), (True, 23)])
def test_batch_norm_moves_as_often_as_in_the_released_code(make, averaged_passes, mixed, passes):
    model, average = norms()
    batch = Batch(pictures(6), torch.arange(6) % 4)
    if mixed:
        batch = Batch(batch.x, 0.3 * F.one_hot(batch.y, 4) + 0.7 * F.one_hot(batch.y.flip(0), 4), batch.y)
    ctx = context(average=average)
    objective = make(RebatPGD(), NOW)
    out = objective(model, batch, ctx)
    clean_forward()(model, batch, ctx)
    assert model.norm.num_batches_tracked == passes and out.loss.isfinite()
    assert average.norm.num_batches_tracked == averaged_passes and not average.training
    assert len(model.passes) == 13                                       # one pass may count for two
    assert make(RebatPGD(restarts=3), NOW)(model, batch, ctx).loss.isfinite()
    assert model.norm.num_batches_tracked == passes + 3 * (21 if mixed else 11) + 1


@pytest.mark.parametrize("mixed", [False, True])
def test_the_fast_path_of_the_engine_moves_batch_norm_alike(golden, tinybn, mixed):
    engine = Engine(torch.device("cpu"), "bf16", channels_last=True, fast_attacks=True)
    y = golden["y"]
    batch = Batch(golden["x"], 0.5 * F.one_hot(y, 10) + 0.5 * F.one_hot(y.flip(0), 10), y) if mixed \
        else Batch(golden["x"], y)
    average, plain = averaged_copy(tinybn), copy.deepcopy(tinybn)
    objective = RPATpp(RebatPGD(), NOW)
    fast = objective(engine.runner(tinybn), batch,
                     replace(context(average=average), attacking=engine.attacking))
    slow = objective(plain, batch, context(average=averaged_copy(plain)))
    assert engine.notes == [] and len(engine._views) == 2
    assert tinybn[1].num_batches_tracked == plain[1].num_batches_tracked == golden["tinybn/1.num_batches_tracked"] \
        + (22 if mixed else 12)
    torch.testing.assert_close(tinybn[1].running_mean, plain[1].running_mean, rtol=0.02, atol=2e-3)
    torch.testing.assert_close(fast.loss, slow.loss, rtol=0.01, atol=0)
    assert abs(fast.logs["divergence_term"] - slow.logs["divergence_term"]) < 0.05 * slow.logs["divergence_term"] + 1e-4


def test_order_of_passes():
    model, average = norms()
    batch = Batch(pictures(6), torch.arange(6) % 4)
    ctx = context(average=average, epoch=1, step=1)
    RPATpp(RebatPGD(steps=2), NOW)(model, batch, ctx)
    assert [training for training, _ in model.passes] == [True] * 4
    x, x_adv = batch.x.half().float(), model.passes[3][1]
    assert torch.equal(model.passes[2][1], x_adv) and not torch.equal(model.passes[1][1], x_adv)
    (first_mode, first), (second_mode, second) = average.passes
    assert torch.equal(first, x) and not first_mode and not second_mode
    torch.testing.assert_close(second, (x + x_adv) / 2, rtol=0, atol=5e-4)
    clean_forward()(model, batch, ctx)
    assert torch.equal(model.passes[4][1], x)
    clean_forward(half_inputs=False)(model, batch, ctx)
    assert torch.equal(model.passes[5][1], batch.x) and not torch.equal(batch.x, x)


def test_the_attack_in_eval_mode_leaves_no_trace():
    model, average = norms()
    batch = Batch(pictures(6), torch.arange(6) % 4)
    ReBAT(RebatPGD(), NOW, train_mode_attack=False)(model, batch, context(average=average))
    assert model.norm.num_batches_tracked == 1
    assert [training for training, _ in model.passes] == [False] * 10 + [True]


@pytest.mark.parametrize(("epoch", "quirk", "moves"), [(4, True, 0), (5, True, 2), (6, True, 0), (5, False, 0)])
def test_the_average_moves_its_statistics_in_its_first_epoch(epoch, quirk, moves):
    model, average = norms()
    objective = RPATpp(given(pictures(6)), Beta(warmup=5), wa_train_mode=quirk)
    before = {name: value.clone() for name, value in average.state_dict().items()}
    objective(model, Batch(pictures(6), torch.arange(6) % 4), context(average=average, epoch=epoch, step=epoch))
    assert len(average.passes) == (0 if epoch < 5 else 2) and average.norm.num_batches_tracked == moves
    changed = [name for name, value in average.state_dict().items() if not torch.equal(before[name], value)]
    assert (changed != []) is (moves > 0) and not any("linear" in name or "weight" in name for name in changed)
    assert not average.training


def test_no_average_is_an_error_only_when_it_is_needed(pair):
    x, x_adv, y = pair
    with pytest.raises(ValueError, match="average"):
        loss_of(ReBAT(given(x_adv), **PLAIN), wavy(1), None, Batch(x, y))
    out = loss_of(ReBAT(given(x_adv), half_inputs=False), wavy(1), None, Batch(x, y))
    assert out.logs["divergence_term"] == 0 and out.logs["beta"] == 0
    torch.testing.assert_close(out.loss, F.cross_entropy(wavy(1)(x_adv), y))


def test_mixed_labels(pair):
    x, x_adv, y = pair
    other, model = y.flip(0), wavy(1)
    mixed = 0.3 * F.one_hot(y, 4).double() + 0.7 * F.one_hot(other, 4)
    objective = ReBAT(given(x_adv), half_inputs=False)
    out = loss_of(objective, model, None, Batch(x, mixed, y))
    logits = model(x_adv)
    expected = 0.3 * F.cross_entropy(logits, y) + 0.7 * F.cross_entropy(logits, other)
    torch.testing.assert_close(out.loss, expected)
    assert math.isclose(out.logs["adversarial_accuracy"], (logits.argmax(1) == y).double().mean(), abs_tol=1e-6)
    with pytest.raises(ValueError, match=r"batch\.extra"):
        own_labels(Batch(x, mixed))


def test_l1_term_leaves_out_norms_and_biases():
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(3, 2, 3))
    model.add_module("bn", nn.BatchNorm2d(2))
    model.add_module("flat", nn.Flatten())
    model.add_module("linear", nn.Linear(8, 4))
    batch = Batch(pictures(6), torch.arange(6) % 4)
    plain, more = (loss_of(ReBAT(no_attack, l1=l1), model.eval(), None, batch) for l1 in (0.0, 0.01))
    expected = 0.01 * (model.conv.weight.abs().sum() + model.linear.weight.abs().sum())
    torch.testing.assert_close(more.loss - plain.loss, expected, rtol=1e-4, atol=1e-6)
    assert [penalised(name) for name in ("conv1.weight", "layer1.0.bn1.weight", "linear.bias", "shortcut.1.weight")] \
        == [True, False, False, True]
