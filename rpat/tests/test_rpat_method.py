"""RPAT's part 1: the released code's values (tests/golden), the paper file's constants, limits and passes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.engine import Engine
from common.types import Batch
from rpat.method import (
    AdversarialTraining,
    Consistency,
    Mart,
    Perception,
    StandardTraining,
    Trades,
    boosted_cross_entropy,
    divergence,
    jensen_shannon,
    robust_perception,
    weighted_divergence,
)
from rpat.tests.rpat_references import Fixed, Norm, context, given, kl, pictures

CLOSE = {"rtol": 1e-4, "atol": 1e-6}
A, B = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.0, 1.0, 0.0]])
ROBUST = Perception()


def gradient_of(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


# --- the released code's values ---

LOSSES = [
    ("pgdat_rpat", False, lambda attack: AdversarialTraining(attack, ROBUST)),
    ("trades_rpat", False, lambda attack: Trades(attack, 6.0, ROBUST)),
    ("trades_rpat", False, lambda attack: Trades(attack, 6.0, ROBUST, third_pass=False)),
    ("consistency", True, lambda attack: AdversarialTraining(attack, None, Consistency())),
    ("consistency_rpat", True, lambda attack: AdversarialTraining(attack, ROBUST, Consistency()))]


@pytest.mark.parametrize("network", ["tiny", "tinybn"])
@pytest.mark.parametrize(("key", "pair", "objective"), LOSSES)
def test_losses_and_gradients_of_the_released_code(golden, request, network, key, pair, objective):
    model = request.getfixturevalue(network).train()
    x, x_adv = (golden["rpat/pair"], golden["rpat/pair_adv"]) if pair else (golden["x"], golden["rpat/x_adv"])
    out = objective(given(x_adv))(model, Batch(x, golden["y"]), context())
    torch.testing.assert_close(out.loss.detach(), golden[f"rpat/{network}/{key}"], **CLOSE)
    torch.testing.assert_close(gradient_of(out.loss, model), golden[f"rpat/{network}/{key}_grad"], **CLOSE)
    assert all(not value.requires_grad and value.dim() == 0 for value in out.logs.values())


@pytest.mark.parametrize("network", ["tiny", "tinybn"])
@pytest.mark.parametrize(("key", "pair", "objective"), LOSSES)
def test_losses_and_gradients_of_the_released_code_on_the_fast_path(golden, request, network, key, pair, objective):
    """The training passes in bf16 autocast, channels-last: within what bf16 rounds off."""
    engine = Engine(torch.device("cpu"), "bf16", channels_last=True, fast_attacks=True)
    model = engine.place(request.getfixturevalue(network).train())
    x, x_adv = (golden["rpat/pair"], golden["rpat/pair_adv"]) if pair else (golden["x"], golden["rpat/x_adv"])
    out = objective(given(x_adv))(engine.runner(model), Batch(x, golden["y"]), context())
    torch.testing.assert_close(out.loss.detach(), golden[f"rpat/{network}/{key}"], rtol=0.01, atol=1e-3)
    ours, theirs = gradient_of(out.loss, model), golden[f"rpat/{network}/{key}_grad"]
    assert F.cosine_similarity(ours, theirs, dim=0) > 0.99 and 0.9 < ours.norm() / theirs.norm() < 1.1


@pytest.mark.parametrize("key", ["pgdat_rpat", "trades_rpat"])
def test_the_golden_gradient_of_tinybn_shows_robust_perception(golden, tinybn, key):
    without = AdversarialTraining if key == "pgdat_rpat" else Trades
    out = without(given(golden["rpat/x_adv"]))(tinybn, Batch(golden["x"], golden["y"]), context())
    theirs = golden[f"rpat/tinybn/{key}_grad"]
    assert not torch.allclose(gradient_of(out.loss, tinybn), theirs, **CLOSE)


@pytest.mark.parametrize("robust", [False, True])
def test_mart_terms_of_the_released_code(golden, tiny, robust):
    objective = Mart(given(golden["rpat/mart_x_adv"]), perception=ROBUST if robust else None)
    out = objective(tiny.train(), Batch(golden["x"], golden["y"]), context())
    name = "mart_rpat_" if robust else "mart_"
    adversarial = out.logs["adversarial_loss"] + out.logs.get("perception_term", 0)
    torch.testing.assert_close(adversarial, golden[f"rpat/{name}adv_loss"], **CLOSE)
    torch.testing.assert_close(out.logs["divergence_term"], golden[f"rpat/{name}robust_loss"], **CLOSE)
    total = golden[f"rpat/{name}adv_loss"] + golden[f"rpat/{name}robust_loss"]
    torch.testing.assert_close(out.loss.detach(), total, **CLOSE)


def test_jensen_shannon_and_divergence_of_the_released_code(golden):
    clean, adversarial = golden["adarat/logits_clean"], golden["adarat/logits_adv"]
    torch.testing.assert_close(jensen_shannon(clean, adversarial, 0.5).mean(), golden["rpat/jsd_T0.5"], **CLOSE)
    ours = divergence(adversarial.log_softmax(1), clean.log_softmax(1)).mean()
    torch.testing.assert_close(ours, golden["rpat/kl"], **CLOSE)


# --- the paper file's constants ---

def test_constants():
    assert math.isclose(jensen_shannon(A, B, 0.5).item(), 0.470119, abs_tol=1e-6)
    assert math.isclose(jensen_shannon(A, B, 1.0).item(), 0.216673, abs_tol=1e-6)
    assert math.isclose(divergence(B.log_softmax(1), A.log_softmax(1)).item(), 0.982577, abs_tol=1e-6)
    ones = torch.ones(1, 3)
    assert math.isclose(robust_perception(ones, A, B, 0.5).item(), 0.833333, abs_tol=1e-6)
    assert math.isclose(robust_perception(ones, A, B, 0.25).item(), 0.625, abs_tol=1e-6)


def test_jensen_shannon_is_symmetric_and_zero_at_equality():
    draw = torch.Generator().manual_seed(1)
    first, second = (4 * torch.randn(32, 10, generator=draw, dtype=torch.float64) for _ in range(2))
    there, back = jensen_shannon(first, second), jensen_shannon(second, first)
    torch.testing.assert_close(there, back)
    assert (there > 0).all() and (there <= math.log(2) + 1e-9).all()
    # A constant added to the logits of an image changes no probability.
    torch.testing.assert_close(jensen_shannon(first, first + 3), torch.zeros(32, dtype=torch.float64))
    p, q = (first / 0.5).softmax(1), (second / 0.5).softmax(1)
    middle = ((p + q) / 2).clamp_min(1e-8)
    assert math.isclose(there.mean().item(), (kl(p, middle) + kl(q, middle)) / 2, rel_tol=1e-9)


def test_jensen_shannon_floors_the_middle():
    # p2 gives the last class 1e-10, p1 less: log m is log 1e-8 there, not log 5e-11.
    logs = torch.tensor([[0.0, -100.0]]), torch.tensor([[0.0, math.log(1e-10)]])
    first, second = (log.double().requires_grad_() for log in logs)
    value = jensen_shannon(first, second, 1.0)
    expected = 1e-10 * (math.log(1e-10) - math.log(1e-8)) / 2
    assert math.isclose(value.item(), expected, rel_tol=0.2)
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), (first, second)))


def test_mart_terms_by_hand():
    clean, adversarial = torch.cat([A, B]).double(), torch.cat([B, A]).double()
    y = torch.tensor([0, 2])
    p, q = clean.softmax(1), adversarial.softmax(1)
    boosted = [-math.log(q[0, 0]) - math.log(1.0001 - q[0, 1] + 1e-12),
               -math.log(q[1, 2]) - math.log(1.0001 - q[1, 0] + 1e-12)]
    torch.testing.assert_close(boosted_cross_entropy(adversarial, y), torch.tensor(boosted).double())
    weighted = [(1.0000001 - p[i, y[i]].item()) * kl(p[i:i + 1], q[i:i + 1], 1e-12) for i in range(2)]
    torch.testing.assert_close(weighted_divergence(clean, adversarial, y), torch.tensor(weighted).double())
    # Where an image is certainly right p(x') hits the margin's floor: log 0.0001 away.
    sure = torch.tensor([[0.0, 60.0, 0.0]])
    assert math.isclose(boosted_cross_entropy(sure, torch.tensor([0])).item(), 60 - math.log(1e-4), rel_tol=1e-3)
    assert math.isclose(boosted_cross_entropy(sure, torch.tensor([1])).item(), -math.log(1.0001), abs_tol=1e-6)


# --- limits ---

@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_a_linear_network_has_no_perception_loss(rate):
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).double()
    x, x_adv = pictures(6).double(), pictures(6, seed=9).double()
    out = AdversarialTraining(given(x_adv), Perception(rate=rate))(linear, Batch(x, torch.arange(6) % 5), context())
    assert out.logs["perception_term"] < 1e-28
    curved = nn.Sequential(linear, nn.Tanh())
    out = AdversarialTraining(given(x_adv), Perception(rate=rate))(curved, Batch(x, torch.arange(6) % 5), context())
    assert out.logs["perception_term"] > 1e-6


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_perception_is_zero_at_both_ends(tiny, golden, rate):
    perception = Perception(rate=rate)
    out = AdversarialTraining(given(golden["rpat/x_adv"]), perception)(tiny, Batch(golden["x"], golden["y"]), context())
    assert out.logs["perception_term"] < 1e-12
    ends = torch.zeros(1, 1), torch.ones(1, 1)
    assert perception.middle(*ends) == 1 - rate


def test_perception_starts_at_its_epoch_counted_from_one(tiny, golden):
    batch = Batch(golden["x"], golden["y"])
    for start, epoch, active in ((0, 0, True), (1, 0, True), (2, 0, False), (2, 1, True), (9, 7, False), (9, 8, True)):
        for make in (AdversarialTraining, Trades, Mart):
            out = make(given(golden["rpat/x_adv"]), perception=Perception(start=start))(tiny, batch,
                                                                                        context(epoch=epoch))
            assert ("perception_term" in out.logs) is active


def test_weights_of_the_terms(tiny, golden):
    batch, attack = Batch(golden["x"], golden["y"]), given(golden["rpat/x_adv"])
    plain, weighed = (Trades(attack, beta, Perception(lam))(tiny, batch, context()).logs
                      for beta, lam in ((1.0, 1.0), (3.0, 7.0)))
    torch.testing.assert_close(weighed["divergence_term"], 3 * plain["divergence_term"])
    torch.testing.assert_close(weighed["perception_term"], 7 * plain["perception_term"])
    mart = [Mart(attack, beta)(tiny, batch, context()).logs["divergence_term"] for beta in (1.0, 3.0)]
    torch.testing.assert_close(mart[1], 3 * mart[0])
    pair = AdversarialTraining(given(golden["rpat/pair_adv"]), None, Consistency(lam=5.0, temperature=2.0))(
        tiny, Batch(golden["rpat/pair"], golden["y"]), context())
    views = tiny(golden["rpat/pair_adv"]).detach().chunk(2)
    torch.testing.assert_close(pair.logs["consistency_term"], 5 * jensen_shannon(*views, 2.0).mean())


@pytest.mark.parametrize(("make", "order"), [
    (lambda a: Trades(a, 6.0, ROBUST, third_pass=False), "clean adversarial middle"),
    (lambda a: Mart(a, 6.0, ROBUST), "clean adversarial middle"),
    (lambda a: AdversarialTraining(a, ROBUST), "adversarial middle clean")])
def test_all_logits_have_their_whole_gradient(make, order):
    """Against differences of the loss: a detached factor, such as MART's weight, would show."""
    draw = torch.Generator().manual_seed(4)
    logits = {name: torch.randn(5, 4, generator=draw).double() for name in order.split()}
    x, y = torch.zeros(5, 1, 1, 1), torch.tensor([0, 1, 2, 3, 0])

    def loss(**moved):
        return make(given(x))(Fixed(*(logits | moved).values()), Batch(x, y), context()).loss

    for name, values in logits.items():
        leaf = values.clone().requires_grad_()
        gradient, = torch.autograd.grad(loss(**{name: leaf}), leaf)
        for _ in range(3):
            direction = torch.randn(5, 4, generator=draw).double()
            slope = (loss(**{name: values + 1e-6 * direction}) - loss(**{name: values - 1e-6 * direction})) / 2e-6
            torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-8)


# --- noise, views, errors ---

def test_standard_training_with_and_without_noise(golden):
    x, y = golden["x"], golden["y"]
    model = Fixed(golden["adarat/logits_clean"])
    out = StandardTraining()(model, Batch(x, y), context())
    torch.testing.assert_close(out.loss, F.cross_entropy(golden["adarat/logits_clean"], y))
    assert torch.equal(model.asked[0], x)
    StandardTraining(8 / 255)(model, Batch(x, y), context())
    moved = model.asked[1] - x
    assert moved.abs().max() <= 8 / 255 + 1e-7 and model.asked[1].min() >= 0 and model.asked[1].max() <= 1
    inside = moved[(x > 0.1) & (x < 0.9)] * 255 / 8
    assert abs(inside.mean()) < 0.1 and abs(inside.std() - 3 ** -0.5) < 0.05


def test_both_views_are_attacked_under_the_labels_of_their_images(tiny, golden):
    seen = []

    def attack(model, x, y, ctx):
        seen.append((x, y))
        return x
    pair, y = golden["rpat/pair"], golden["y"]
    AdversarialTraining(attack, None, Consistency())(tiny, Batch(pair, y), context())
    assert torch.equal(seen[0][0], pair) and torch.equal(seen[0][1], torch.cat([y, y]))


@pytest.mark.parametrize(("objective", "images"), [(AdversarialTraining(given(None)), 8),
                                                   (AdversarialTraining(given(None), None, Consistency()), 4)])
def test_a_wrong_number_of_views_is_an_error(tiny, objective, images):
    with pytest.raises(ValueError, match="views"):
        objective(tiny, Batch(pictures(images, side=8), torch.zeros(4, dtype=torch.int64)), context())


def test_no_objective_owns_a_network():
    assert [make.modules() for make in (StandardTraining(), Trades(given(None)), Mart(given(None)),
                                        AdversarialTraining(given(None)))] == [{}] * 4


# --- passes: what batch norm sees, and in which order ---

CLEAN, ATTACKED = pictures(6), pictures(6, seed=8)
MIDDLE = (CLEAN + ATTACKED) / 2


def watched_attack(model, x, y, ctx):
    model(CLEAN * 0)                                    # in eval mode: it must leave no trace
    return ATTACKED


@pytest.mark.parametrize(("objective", "passes"), [
    (StandardTraining(), [CLEAN]),
    (AdversarialTraining(watched_attack), [ATTACKED]),
    (AdversarialTraining(watched_attack, ROBUST), [ATTACKED, MIDDLE, CLEAN]),
    (AdversarialTraining(watched_attack, None, Consistency()), [ATTACKED]),
    (AdversarialTraining(watched_attack, ROBUST, Consistency()), [ATTACKED, MIDDLE, CLEAN]),
    (AdversarialTraining(watched_attack, Perception(start=2)), [ATTACKED]),
    (Trades(watched_attack), [CLEAN, ATTACKED, CLEAN]),
    (Trades(watched_attack, perception=ROBUST), [CLEAN, ATTACKED, CLEAN, MIDDLE]),
    (Trades(watched_attack, perception=ROBUST, third_pass=False), [CLEAN, ATTACKED, MIDDLE]),
    (Mart(watched_attack), [CLEAN, ATTACKED]), (Mart(watched_attack, perception=ROBUST), [CLEAN, ATTACKED, MIDDLE])])
def test_passes_in_train_mode_and_their_order(objective, passes):
    model = Norm().train()
    y = torch.arange(3 if getattr(objective, "consistency", None) else 6) % 4
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    out = objective(model, Batch(CLEAN, y), context())
    trained = [x for training, x in model.passes if training]
    assert [x.shape for x in trained] == [x.shape for x in passes]
    for ours, expected in zip(trained, passes, strict=True):
        torch.testing.assert_close(ours, expected)
    assert model.norm.num_batches_tracked == len(passes) and model.training
    mean = before["norm.running_mean"]
    for x in passes:
        mean = 0.9 * mean + 0.1 * x.mean((0, 2, 3))
    torch.testing.assert_close(model.norm.running_mean, mean)
    attacks = [training for training, x in model.passes if x.abs().max() == 0]
    assert attacks == ([] if isinstance(objective, StandardTraining) else [False])
    out.loss.backward()
    assert model.linear.weight.grad.abs().sum() > 0
