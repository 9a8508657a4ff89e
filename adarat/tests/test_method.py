"""The loss of AdaRAT against the released code's values (tests/golden) and against its own limits."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adarat import attacks
from adarat.attacks import DynamicPGD, FriendlyPGD
from adarat.method import (
    GATE,
    AdversarialTraining,
    Distillation,
    Ratio,
    StandardTraining,
    divergence,
    trades_divergence,
)
from common.attacks import PGD, TradesPGD
from common.engine import Engine
from common.types import Batch, StepContext

CPU = Engine(torch.device("cpu"))


def context(epoch: int = 0) -> StepContext:
    return StepContext(generator=torch.Generator().manual_seed(5), epoch=epoch, attacking=CPU.attacking)


class Fixed(nn.Module):
    """A network that answers with given logits, in turn: what a loss makes of them is then known."""

    def __init__(self, *answers: torch.Tensor):
        super().__init__()
        self.answers, self.calls = answers, 0

    def forward(self, x):
        self.calls += 1
        return self.answers[(self.calls - 1) % len(self.answers)]


def no_attack(model, x, y, ctx):
    return x


@pytest.fixture
def logits(golden):
    return (golden["adarat/logits_clean"].requires_grad_(), golden["adarat/logits_adv"].requires_grad_(), golden["y"])


def losses(logits):
    clean, adv, y = logits
    return F.cross_entropy(clean, y), F.cross_entropy(adv, y)


def test_regulariser_and_its_gradients(golden, logits):
    value = Ratio("fixrat", beta=0.04, epsilon=8 / 255).regulariser(*losses(logits))
    gradients = torch.autograd.grad(value, logits[:2])
    torch.testing.assert_close(value.detach(), golden["adarat/fixrat_beta0.04_eps8"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients[0], golden["adarat/fixrat_grad_clean"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients[1], golden["adarat/fixrat_grad_adv"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("up", "down"), [(1.1, 0.4), (1.5, 0.7), (2.3, 1.2), (0.8, 0.2)])
def test_barrier_with_its_gate(golden, up, down):
    grid = golden["adarat/barrier_clean_loss"]
    expected = golden[f"adarat/barrier_up{up}_down{down}_tau0.01"]
    ratio = Ratio("adarat", up_lim=up, down_lim=down, tao=0.01)
    zero = torch.zeros(())
    # The regulariser vanishes where both losses are equal, so what is left is the clean loss's own term.
    ours = torch.stack([ratio.weigh(plain=zero, clean=c, adversarial=c) for c in grid])
    away_from_pole = (grid - (2 * down - up)).abs() > 1e-6
    torch.testing.assert_close(ours[away_from_pole], expected[away_from_pole], rtol=1e-4, atol=1e-6)
    assert away_from_pole.sum() >= len(grid) - 1 and (expected > 0).any()


def test_barrier_constants_of_the_paper_file():
    ratio = Ratio("adarat", up_lim=2.3, down_lim=1.2)
    c = torch.tensor([0.0, 0.025, 0.05, 0.075, 0.125, 1.2])
    expected = torch.tensor([7.091, 9.511, 14.36, 28.95, 0.0, 0.0])
    torch.testing.assert_close(ratio.barrier(c), expected, rtol=1e-3, atol=1e-5)
    assert math.isclose(Ratio(up_lim=1.4, down_lim=0.8).barrier(torch.tensor(0.0)).item(), 1.742, rel_tol=1e-3)


@pytest.mark.parametrize(("up", "down", "gate", "tangent"), [
    (1.1, 0.4, 0.77, 1.0940), (1.5, 0.7, 1.05, 0.8207), (2.3, 1.2, 1.61, 0.6630), (0.8, 0.2, 0.56, 1.3764),
    (1.4, 0.8, 0.98, 0.5095), (1.8, 0.4, 1.26, 1.4434), (1.3, 0.5, 0.91, 1.0401), (2.0, 0.8, 1.4, 1.0)])
def test_gate_stands_at_seven_tenths_of_the_ceiling(up, down, gate, tangent):
    ratio = Ratio("adarat", up_lim=up, down_lim=down, tao=0.0)
    assert math.isclose(GATE * up, gate, rel_tol=1e-9)
    assert math.isclose(ratio.barrier(torch.tensor(gate)).item(), tangent, rel_tol=1e-3)
    adversarial = torch.tensor(9.0)
    for c, is_gated in ((gate - 1e-3, False), (gate + 1e-3, True)):
        clean = torch.tensor(c)
        loss = ratio.weigh(plain=clean, clean=clean, adversarial=adversarial, divergence=3.0)
        whole = ratio.barrier(clean) + 3.0 + ratio.regulariser(clean, adversarial)
        assert torch.allclose(loss, clean if is_gated else whole)


def test_gradient_flows_through_the_barrier_and_is_zero_at_the_floor():
    ratio = Ratio("adarat")
    for c, slope in ((0.6, None), (0.4, 0.0), (0.3, 0.0)):
        clean = torch.tensor(c, dtype=torch.float64, requires_grad=True)
        gradient, = torch.autograd.grad(ratio.barrier(clean), clean)
        if slope is None:
            step = 1e-6
            slope = (ratio.barrier(clean + step) - ratio.barrier(clean - step)).item() / (2 * step)
        assert math.isclose(gradient.item(), slope, rel_tol=1e-5, abs_tol=1e-9)


def test_no_infinity_reaches_the_gradient_near_the_pole():
    ratio = Ratio("adarat")
    pole = torch.tensor(1.1)
    for c in (pole, torch.nextafter(pole, torch.zeros(())), torch.nextafter(pole, torch.tensor(2.0)), pole - 1e-4):
        clean = c.clone().requires_grad_()
        loss = ratio.weigh(plain=clean, clean=clean, adversarial=clean.detach() + 1)
        assert torch.autograd.grad(loss, clean)[0] == 1


def test_beta_zero_leaves_the_clean_loss_and_fixrat_the_sum(logits):
    clean, adversarial = losses(logits)
    nothing = Ratio("fixrat", beta=0.0).weigh(plain=adversarial, clean=clean, adversarial=adversarial)
    assert torch.equal(nothing, clean)
    # beta = epsilon: FixRAT is CE(x) + CE(x') - CE(x), plain adversarial training.
    same = Ratio("fixrat", beta=8 / 255).weigh(plain=clean, clean=clean, adversarial=adversarial)
    torch.testing.assert_close(same, adversarial)


@pytest.mark.parametrize(("beta", "epsilon", "ratio"), [(0.04, 8 / 255, 1.275), (0.05, 8 / 255, 1.59375),
                                                       (0.03, 8 / 255, 0.95625), (0.04, 0.031, 1.2903226)])
def test_ratio_constants(beta, epsilon, ratio):
    value = Ratio("fixrat", beta=beta, epsilon=epsilon).regulariser(torch.tensor(0.0), torch.tensor(1.0))
    assert math.isclose(value.item(), ratio, rel_tol=1e-6)


def distillation(golden, **more):
    """KD-AT or IAD on the golden logits: student and teachers answer with x's logits first, then with x''s."""
    robust = Fixed(golden["adarat/t_rob_clean"], golden["adarat/t_rob_adv"])
    standard = Fixed(golden["adarat/t_std_clean"], golden["adarat/t_std_adv"])
    return Distillation(no_attack, robust, standard, **more)


@pytest.mark.parametrize(("key", "options", "epoch"), [
    ("kd_adv", {}, 99), ("iad_adv_after_begin", {"begin": 60, "b": 0.1}, 60), ("kd_adv", {"begin": 60}, 59)])
def test_distillation_losses(golden, logits, key, options, epoch):
    clean, adv, y = logits
    out = distillation(golden, **options)(Fixed(clean, adv), Batch(golden["x"], y), context(epoch))
    torch.testing.assert_close(out.loss.detach(), golden[f"adarat/{key}"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.logs["clean_loss"], golden["adarat/kd_clean"], rtol=1e-4, atol=1e-6)


def test_introspection_does_not_cut_the_gradient_of_the_clean_pass(golden, logits):
    clean, adv, y = logits
    for begin, reaches in ((60, True), (61, False)):
        out = distillation(golden, begin=begin)(Fixed(clean, adv), Batch(golden["x"], y), context(60))
        gradient = torch.autograd.grad(out.loss, [clean, adv], allow_unused=True)
        assert (gradient[0] is not None and bool(gradient[0].abs().sum() > 0)) is reaches
        assert gradient[1].abs().sum() > 0


def test_every_term_of_the_whole_loss_has_its_share(golden, logits):
    """PGD-AT and TRADES, three variants: the objective equals the formula written out on the same logits."""
    clean, adv, y = logits
    batch = Batch(golden["x"], y)
    c, a = losses(logits)
    ratio = {"beta": 0.04, "epsilon": 8 / 255, "up_lim": 4.0, "down_lim": 1.0, "tao": 0.01}
    assert c < 0.7 * ratio["up_lim"] and c > ratio["down_lim"], "the barrier is at work on these logits"
    r = 0.04 / (8 / 255) * (a - c)
    b = torch.tan(math.pi / 2 * (c - 1.0) / 3.0) ** 1.01
    q = clean.softmax(1).clamp_min(1e-8)
    k = 6 * (q * (q.log() - adv.log_softmax(1))).sum(1).mean()
    for lamda, extra in ((None, 0.0), (6, k)):
        expected = {"plain": a if lamda is None else c + k, "fixrat": c + extra + r, "adarat": b + extra + r}
        for variant, value in expected.items():
            objective = AdversarialTraining(no_attack, Ratio(variant, **ratio), lamda)
            out = objective(Fixed(clean, adv), batch, context())
            torch.testing.assert_close(out.loss, value, rtol=1e-5, atol=1e-6)
            ours = torch.autograd.grad(out.loss, [clean, adv], retain_graph=True, allow_unused=True)
            wanted = torch.autograd.grad(value, [clean, adv], retain_graph=True, allow_unused=True)
            for mine, theirs in zip(ours, wanted, strict=True):
                if mine is None or theirs is None:
                    assert mine is theirs is None
                else:
                    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_divergences(logits):
    clean, adv, _ = logits
    p, q = clean.softmax(1), adv.softmax(1)
    written_out = (p * (p / q).log()).sum(1)
    torch.testing.assert_close(divergence(clean, adv), written_out, rtol=1e-4, atol=1e-6)
    ours = torch.autograd.grad(divergence(clean, adv).sum(), [clean, adv])
    wanted = torch.autograd.grad(written_out.sum(), [clean, adv])
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(trades_divergence(clean, adv), divergence(clean, adv), rtol=1e-3, atol=1e-5)
    assert torch.allclose(divergence(clean, clean), torch.zeros(len(clean)), atol=1e-6)
    sure = torch.tensor([[100.0, 0.0, 0.0]])          # its 1e-44 is floored at 1e-8, not renormalised
    assert trades_divergence(sure, sure.clone()).item() == pytest.approx(2e-8 * (math.log(1e-8) + 100), rel=1e-3)


@pytest.mark.parametrize(("attack", "passes"), [(PGD(8 / 255, 2 / 255, 10), 12), (TradesPGD(8 / 255, 2 / 255, 10), 13),
                                               (FriendlyPGD(), 12), (DynamicPGD(), 13)])
def test_batch_norm_sees_as_many_passes_as_in_the_released_code(golden, tinybn, attack, passes):
    lamda = 6 if isinstance(attack, TradesPGD) else None
    batch = Batch(golden["x"], golden["y"])
    tinybn[1].num_batches_tracked.zero_()
    AdversarialTraining(attack, lamda=lamda)(tinybn, batch, context())
    assert tinybn[1].num_batches_tracked == passes
    tidy = AdversarialTraining(attack, lamda=lamda, attack_in_train_mode=False, clean_pass=False)
    tidy(tinybn, batch, context())
    assert tinybn[1].num_batches_tracked == passes + (1 if lamda is None else 2)
    StandardTraining()(tinybn, batch, context())
    assert tinybn[1].num_batches_tracked == passes + (2 if lamda is None else 3)


@pytest.mark.parametrize("tau", [0, 1, 3, 6, 9])
def test_friendly_attack(golden, tiny, tau):
    ours = FriendlyPGD().from_start(tiny, golden["x"], golden["y"], golden["adarat/fat_start"], tau=tau)
    assert ((ours - golden[f"adarat/fat_tau{tau}"]).abs() <= 1e-6).float().mean() >= 0.999


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 5.0])
def test_dynamic_attack(golden, tiny, threshold):
    ours = DynamicPGD().from_start(tiny, golden["x"], golden["y"], golden["adarat/dat_start"], threshold=threshold)
    assert ((ours - golden[f"adarat/dat_fosc{threshold}"]).abs() <= 1e-6).float().mean() >= 0.999


def test_an_image_that_has_stopped_never_resumes(monkeypatch):
    """DAT: FOSC below the threshold once, above it again later: the image stays where it was."""
    x = torch.full((2, 1, 1, 1), 0.5)
    sizes = iter([1.0, 1e-6, 1.0, 1.0])                     # gradient of image 0 at the start and after each step

    def gradients(model, x_adv, y, loss):
        return torch.tensor([next(sizes), 1.0]).view(2, 1, 1, 1), torch.zeros(2, 10)

    monkeypatch.setattr(attacks, "input_gradient", gradients)
    y = torch.zeros(2, dtype=torch.long)
    end = DynamicPGD(eps=0.4, step_size=0.1, steps=3).from_start(None, x, y, x, threshold=0.01)
    torch.testing.assert_close(end.flatten(), torch.tensor([0.6, 0.8]))


def test_dynamic_threshold_and_friendly_patience_by_epoch(tiny, golden):
    assert [round(DynamicPGD().threshold(epoch), 9) for epoch in (0, 30, 60, 119)] == [0.3, 0.15, 0.0, 0.0]
    for epoch, tau in ((0, 3), (49, 3), (50, 6), (89, 6), (90, 9)):
        start = (golden["x"] + 8 / 255 * (2 * context().uniform(golden["x"]) - 1)).clamp(0, 1)
        expected = FriendlyPGD().from_start(tiny, golden["x"], golden["y"], start, tau=tau)
        assert torch.equal(FriendlyPGD()(tiny, golden["x"], golden["y"], context(epoch)), expected)
