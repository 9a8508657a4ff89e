"""Balls, losses, attacks and modes: golden values of the AdaRAT repository, closed forms, invariants of every norm."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from common.attacks import (
    PGD,
    TradesPGD,
    ball,
    cross_entropy,
    cw,
    cw_loss,
    dlr,
    fgsm,
    frozen,
    input_gradient,
    kl_to,
    margin,
    mode,
)
from common.attacks.losses import predictions
from common.errors import UserError
from common.types import StepContext

EPS, STEP = 8 / 255, 2 / 255
NORMS = ("linf", "l2", "l1")
CASES = settings(max_examples=30, deadline=None, derandomize=True)


def context(seed: int = 0) -> StepContext:
    return StepContext(generator=torch.Generator().manual_seed(seed))


def images(seed: int, count: int = 4) -> torch.Tensor:
    """Images with many pixels at both bounds of the box."""
    draw = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (2 * draw - 0.5).clamp(0, 1)


def assert_inside(x: torch.Tensor, x_adv: torch.Tensor, norm: str, eps: float) -> None:
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    # x + d is rounded once per pixel; an L1 norm adds those roundings up.
    slack = 1e-6 if norm != "l1" else 1e-6 + 3e-8 * x[0].numel()
    assert ball(norm, eps).size(x_adv.double() - x.double()).max() <= eps + slack


class Linear(nn.Module):
    """Two classes, logits (0, <w, x>): the worst image in any ball has a closed form."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        score = (x * self.weight).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)


class Constant(nn.Module):
    """Logits with a given derivative everywhere, such as NaN or zero."""

    def __init__(self, slope: float):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        score = (x * self.slope).flatten(1).sum(1)
        return torch.stack([score, -score, 0 * score], 1)


# --- golden values: the original repository's end points from its own starts ---

@pytest.mark.parametrize(("key", "start", "attack"), [
    ("pgd1", "pgd_start", PGD(EPS, STEP, 1)),
    ("pgd10", "pgd_start", PGD(EPS, STEP, 10)),
    ("pgd50", "pgd_start", PGD(EPS, STEP, 50)),
    ("trades10", "trades_start", TradesPGD(EPS, STEP, 10)),
    ("cw20", "cw_start", cw(EPS, STEP)),
])
def test_golden_attacks(golden, tiny, key, start, attack):
    ours = attack.from_start(tiny, golden["x"], golden["y"], golden[f"adarat/{start}"])
    assert share_equal(ours, golden[f"adarat/{key}"]) >= 0.999
    assert share_equal(golden[f"adarat/{start}"], ours) < 0.9      # the steps did something


def test_golden_fgsm(golden, tiny):
    ours = fgsm(EPS)(tiny, golden["x"], golden["y"], context())
    assert share_equal(ours, golden["adarat/fgsm"]) >= 0.999


def share_equal(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs() <= 1e-6).float().mean().item()


# --- balls ---

@CASES
@given(seed=st.integers(0, 10**6), norm=st.sampled_from(NORMS), eps=st.floats(0, 3), scale=st.floats(0, 5))
def test_projection_lands_inside_and_is_idempotent(seed, norm, eps, scale):
    x, noise = images(seed), torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(seed + 1))
    once = ball(norm, eps).project(x, x + scale * noise)
    assert_inside(x, once, norm, eps)
    assert torch.allclose(ball(norm, eps).project(x, once), once, atol=2e-6)


@CASES
@given(seed=st.integers(0, 10**6), norm=st.sampled_from(NORMS), eps=st.floats(0.01, 3))
def test_projection_leaves_inner_points_alone(seed, norm, eps):
    threat, x = ball(norm, eps), images(seed) * 0.2 + 0.4
    inside = x + 0.1 * min(1, eps) * threat.start(x, context(seed)) / eps
    assert torch.allclose(threat.project(x, inside), inside, atol=1e-6)


@CASES
@given(seed=st.integers(0, 10**6), norm=st.sampled_from(NORMS), eps=st.floats(0, 3))
def test_starts_are_in_the_ball_and_random(seed, norm, eps):
    threat, x = ball(norm, eps), images(seed)
    start = threat.start(x, context(seed))
    assert threat.size(start).max() <= eps * (1 + 1e-5)
    assert torch.equal(start, threat.start(x, context(seed)))
    if eps > 0.01:
        assert not torch.equal(start, threat.start(x, context(seed + 1)))
        assert not torch.equal(start[0], start[1])


def test_starts_fill_the_ball():
    x = torch.full((2000, 1, 2, 2), 0.5)
    for norm in NORMS:
        start = ball(norm, 0.3).start(x, context())
        sizes = ball(norm, 0.3).size(start)
        assert sizes.max() > 0.29
        assert start.mean().abs() < 0.01
        if norm != "linf":            # the norm is uniform in [0, eps]
            assert abs(sizes.mean().item() - 0.15) < 0.01 and sizes.min() < 0.01


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_projection_is_the_nearest_point(norm):
    # The box is far away, so the reference needs the ball alone.
    order = 2 if norm == "l2" else 1
    x = torch.full((1, 1, 2, 3), 0.5)
    for seed in range(5):
        point = 0.4 * torch.randn(6, generator=torch.Generator().manual_seed(seed)).double().numpy()
        assert np.linalg.norm(point, order) > 0.25
        # d = p - n with p, n >= 0 makes the L1 constraint smooth.
        constraint = {"l2": lambda v: 0.25**2 - ((v[:6] - v[6:])**2).sum(), "l1": lambda v: 0.25 - v.sum()}[norm]
        reference = minimize(lambda v, point=point: ((v[:6] - v[6:] - point)**2).sum(), np.full(12, 0.01),
                             bounds=[(0, None)] * 12, constraints={"type": "ineq", "fun": constraint},
                             method="SLSQP", options={"ftol": 1e-14, "maxiter": 500})
        nearest = reference.x[:6] - reference.x[6:]
        ours = ball(norm, 0.25).project(x, x + torch.tensor(point, dtype=torch.float32).view_as(x)) - x
        np.testing.assert_allclose(ours.flatten().numpy(), nearest, atol=2e-5)


def test_l1_projection_of_a_large_image_keeps_its_digits():
    x = torch.full((2, 3, 64, 64), 0.5)
    far = x + torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.1
    sizes = ball("l1", 12.0).size(ball("l1", 12.0).project(x, far).double() - x.double())
    assert (sizes - 12.0).abs().max() < 1e-4


def test_unknown_norm_and_negative_eps_are_refused():
    with pytest.raises(UserError, match="unknown norm 'l3': give one of linf, l2, l1"):
        ball("l3", 0.1)
    with pytest.raises(ValueError, match="eps"):
        ball("l2", -0.1)
    with pytest.raises(ValueError, match="steps"):
        PGD(EPS, STEP, -1)
    with pytest.raises(UserError, match="unknown norm"):
        PGD(EPS, STEP, 1, norm="Linf")


# --- attacks ---

@CASES
@given(seed=st.integers(0, 10**6), norm=st.sampled_from(NORMS), eps=st.floats(0, 2), step=st.floats(0, 2),
       steps=st.integers(0, 4), kind=st.sampled_from(["pgd", "trades", "cw", "fgsm"]))
def test_every_attack_stays_in_ball_and_box(seed, norm, eps, step, steps, kind):
    attack = {"pgd": PGD(eps, step, steps, norm=norm), "trades": TradesPGD(eps, step, steps, norm=norm),
              "cw": cw(eps, step, steps + 1, norm=norm), "fgsm": fgsm(eps, norm=norm)}[kind]
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x, y = images(seed), torch.randint(0, 5, (4,), generator=generator)
    assert_inside(x, attack(network, x, y, context(seed)), norm, eps)


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_reaches_the_optimum_of_a_linear_model(norm):
    weight = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    x, y = images(5) * 0.9 + 0.05, torch.ones(4, dtype=torch.int64)
    # eps so large in L1 that single pixels hit the box; so small in L2 that none does.
    eps = {"linf": 0.1, "l2": 0.02, "l1": 1.5}[norm]
    if norm == "linf":
        best = (x - eps * weight.sign()).clamp(0, 1)
    elif norm == "l2":
        best = x - eps * weight / weight.norm()
    else:
        best = best_in_l1_and_box(x, weight.expand_as(x), eps)
    found = PGD(eps, eps, 1, norm=norm, random_start=False)(Linear(weight), x, y, context())
    assert torch.allclose(found, best, atol=1e-6)
    from_random = PGD(eps, eps / 4, 60, norm=norm)(Linear(weight), x, y, context())
    reached, clean, optimal = (Linear(weight)(z)[:, 1] for z in (from_random, x, best))
    assert ((clean - reached) / (clean - optimal)).min() > (0.9 if norm == "l1" else 0.999)


def best_in_l1_and_box(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Pixel by pixel, the largest weight first, until eps is spent: a fractional knapsack."""
    best = x.clone()
    for image, slope in zip(best.view(len(x), -1), weight.reshape(len(x), -1), strict=True):
        left = eps
        for pixel in slope.abs().argsort(descending=True).tolist():
            room = image[pixel].item() if slope[pixel] > 0 else 1 - image[pixel].item()
            image[pixel] -= slope[pixel].sign() * min(room, left)
            left -= min(room, left)
    return best


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("slope", [float("nan"), float("inf"), 0.0])
def test_bad_gradients_make_no_nan(norm, slope):
    x, y = images(1), torch.zeros(4, dtype=torch.int64)
    for attack in (PGD(0.1, 0.05, 3, norm=norm), TradesPGD(0.1, 0.05, 3, norm=norm), fgsm(0.1, norm=norm)):
        found = attack(Constant(slope), x, y, context())
        assert found.isfinite().all()
        assert_inside(x, found, norm, 0.1)


def test_a_tiny_gradient_still_moves_the_image():
    weight = torch.full((1, 3, 4, 4), 1e-24)
    found = PGD(0.1, 0.1, 1, norm="l2", random_start=False)(
        Linear(weight), torch.full((2, 3, 4, 4), 0.5), torch.ones(2, dtype=torch.int64), context())
    assert torch.allclose(ball("l2", 0.1).size(found - 0.5), torch.tensor(0.1), atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_an_image_does_not_depend_on_its_batch(golden, tiny, norm):
    x, y = golden["x"], golden["y"]
    attack = PGD(0.2, 0.05, 5, norm=norm)
    start = attack.start(x, context())
    together = attack.from_start(tiny, x, y, start)
    alone = torch.cat([attack.from_start(tiny, x[i:i + 1], y[i:i + 1], start[i:i + 1]) for i in range(len(x))])
    assert share_equal(together, alone) >= 0.999


def test_an_attack_leaves_mode_random_state_and_gradients_alone(golden, tinybn):
    tinybn[1].eval()
    flags = [module.training for module in tinybn.modules()]
    before, ctx, passes = torch.random.get_rng_state(), context(), tinybn[4].num_batches_tracked.clone()
    found = PGD(EPS, STEP, 2)(tinybn, golden["x"], golden["y"], ctx)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [module.training for module in tinybn.modules()] == flags
    assert all(parameter.grad is None and parameter.requires_grad for parameter in tinybn.parameters())
    assert not found.requires_grad
    assert tinybn[4].num_batches_tracked - passes == 2        # train mode: it moves, once per step
    assert not torch.equal(found, PGD(EPS, STEP, 2)(tinybn.eval(), golden["x"], golden["y"], ctx))


def test_trades_passes_x_once_before_the_steps(golden, tinybn):
    passes = tinybn[1].num_batches_tracked.clone()
    TradesPGD(EPS, STEP, 10)(tinybn, golden["x"], golden["y"], context())
    assert tinybn[1].num_batches_tracked - passes == 11


def test_attacks_work_where_gradients_are_off(golden, tiny):
    with torch.no_grad(), frozen(tiny):
        found = PGD(EPS, STEP, 2)(tiny, golden["x"], golden["y"], context())
    assert torch.equal(found, PGD(EPS, STEP, 2)(tiny, golden["x"], golden["y"], context()))


def test_start_clipping():
    x, y = torch.zeros(4, 3, 4, 4), torch.zeros(4, dtype=torch.int64)
    assert PGD(0.1, 0, 0)(Constant(1.0), x, y, context()).min() == 0
    assert cw(0.1, 0.01, 0)(Constant(1.0), x, y, context()).min() < -0.05
    assert torch.equal(PGD(0.1, 0.1, 0, random_start=False)(Constant(1.0), x, y, context()), x)


def test_input_gradient_is_of_the_sum(golden, tiny):
    x, y = golden["x"], golden["y"]
    gradient, logits = input_gradient(tiny, x, y, cross_entropy)
    first, _ = input_gradient(tiny, x[:1], y[:1], cross_entropy)
    assert torch.allclose(gradient[:1], first, rtol=1e-4, atol=1e-7)
    assert torch.equal(logits, tiny(x).detach())


# --- losses ---

def test_losses_by_hand():
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 5.0, 1.0]])
    y = torch.tensor([0, 1])
    assert torch.equal(margin(logits, y), torch.tensor([2.0, -3.0]))
    assert torch.equal(cw_loss(50.0)(logits, y), torch.tensor([-52.0, -47.0]))
    assert torch.equal(cw_loss(0.0)(logits, y), torch.tensor([-2.0, 0.0]))
    assert torch.allclose(dlr(logits, y), torch.tensor([-2 / 3, 3 / 4]))
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    by_hand = (p * (p.clamp_min(1e-30).log() - logits.log_softmax(1))).sum(1)
    assert torch.allclose(kl_to(p)(logits, y), by_hand)
    assert torch.allclose(cross_entropy(logits, y), -logits.log_softmax(1)[[0, 1], y])
    assert torch.allclose(cross_entropy(logits, p), -(p * logits.log_softmax(1)).sum(1))
    with pytest.raises(ValueError, match="3 classes"):
        dlr(logits[:, :2], y)


def test_a_nan_logit_is_no_prediction():
    logits = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    assert predictions(logits).tolist() == [-1, 1]


# --- modes ---

def test_mode_restores_each_flag(tinybn):
    tinybn[4].eval()
    flags = [module.training for module in tinybn.modules()]
    with mode(tinybn) as inside:
        assert inside is tinybn and not any(module.training for module in tinybn.modules())
        tinybn(torch.rand(2, 3, 8, 8))
    assert [module.training for module in tinybn.modules()] == flags
    with mode(tinybn, training=True):
        assert all(module.training for module in tinybn.modules())
        tinybn(torch.rand(2, 3, 8, 8))
    assert [module.training for module in tinybn.modules()] == flags


def test_mode_reports_statistics_that_move(tinybn):
    with pytest.raises(RuntimeError, match=r"1\.num_batches_tracked"), mode(tinybn):
        tinybn.train()
        tinybn(torch.rand(2, 3, 8, 8))
    assert tinybn.training


def test_mode_does_not_hide_the_error_of_its_block(tinybn):
    with pytest.raises(KeyError, match="inner"), mode(tinybn.eval()):
        tinybn.train()
        tinybn(torch.rand(2, 3, 8, 8))
        raise KeyError("inner")
    assert not tinybn.training


def test_frozen_restores_each_flag(tiny):
    tiny[0].weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in tiny.parameters()]
    with frozen(tiny):
        assert not any(parameter.requires_grad for parameter in tiny.parameters())
    assert [parameter.requires_grad for parameter in tiny.parameters()] == flags
