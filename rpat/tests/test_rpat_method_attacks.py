"""Part 1's training attacks: the released code's end points, attacks written down once more, starts and limits."""

import math

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from common.errors import UserError
from rpat.attacks import FlooredL2, FromEpoch, OffsetL2, OnePixelL1, fgsm, mart, no_attack, pgd, trades
from rpat.tests.rpat_references import context, length, mean_gradient, pictures, released_pgd

EIGHT, TWO = 8 / 255, 2 / 255
L2_SIZES = (128 / 255, 15 / 255, 10)
RELEASED = {"linf": (EIGHT, TWO, 10), "l2": L2_SIZES, "l1": (2000 / 255, 400 / 255, 10)}
CASES = settings(max_examples=25, deadline=None, derandomize=True)


def share_equal(ours, theirs):
    return ((ours - theirs).abs() <= 1e-6).float().mean().item()


@pytest.mark.parametrize(("name", "make", "norm"), [
    ("trades", trades, "linf"), ("trades", trades, "l2"), ("mart", mart, "linf"), ("mart", mart, "l2")])
def test_end_points_of_the_released_code(golden, tiny, name, make, norm):
    key = f"rpat/{name}_x_adv" + ("_l2" if norm == "l2" else "")
    start = golden[f"rpat/{name}_start"]
    ours = make(norm, *RELEASED[norm]).from_start(tiny, golden["x"], golden["y"], start, images=16)
    assert share_equal(ours, golden[key]) >= 0.999
    assert share_equal(start, ours) < 0.5


def test_pgd_in_linf_ends_where_the_other_repository_ends(golden, tiny):
    ours = pgd("linf", EIGHT, TWO, 10).from_start(tiny, golden["x"], golden["y"], golden["adarat/pgd_start"], images=16)
    assert share_equal(ours, golden["adarat/pgd10"]) >= 0.999
    once = fgsm("linf", EIGHT)(tiny, golden["x"], golden["y"], context())
    assert share_equal(once, golden["adarat/fgsm"]) >= 0.999


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_pgd_against_itself_written_down_once_more(golden, tiny, norm):
    x, y = golden["x"], golden["y"]
    eps, size, steps = RELEASED[norm]
    attack = pgd(norm, eps, size, steps)
    start = (x + attack.ball.start(x, context())).clamp(0, 1)
    ours = attack.from_start(tiny, x, y, start, images=16)
    assert share_equal(ours, released_pgd(tiny, x, y, start, norm, eps, size, steps)) >= 0.999
    assert torch.equal(ours, attack(tiny, x, y, context()))
    assert length(ours - x, norm).max() <= eps * (1 + 1e-5) and ours.min() >= 0 and ours.max() <= 1
    assert not ours.requires_grad


def test_attacks_raise_the_loss(golden, tiny):
    x, y = golden["x"], golden["y"]
    for norm, sizes in RELEASED.items():
        attacks = [pgd(norm, *sizes)] + ([] if norm == "l1" else [fgsm(norm, sizes[0]), mart(norm, *sizes)])
        for attack in attacks:
            x_adv = attack(tiny, x, y, context())
            assert nn.functional.cross_entropy(tiny(x_adv), y) > nn.functional.cross_entropy(tiny(x), y) + 1e-3


# --- starts ---

def test_a_start_in_l2_lies_on_the_sphere_towards_a_uniform_image():
    x = pictures(64, side=8)
    d = FlooredL2(0.5).start(x, context(3))
    torch.testing.assert_close(length(d, "l2"), torch.full((64,), 0.5))
    image = context(3).uniform(x)
    cosine = ((image - x) * d).flatten(1).sum(1) / (length(image - x, "l2") * 0.5)
    torch.testing.assert_close(cosine, torch.ones(64))
    # A ball that holds the uniform image is not filled: the start is that image.
    torch.testing.assert_close(x + FlooredL2(50.0).start(x, context(3)), image)


def test_starts_in_l1_are_equally_long_within_a_batch():
    x, ratios = pictures(32, side=8), []
    for seed in range(40):
        ratio = length(OnePixelL1(3.0).start(x, context(seed)), "l1") / 3.0
        torch.testing.assert_close(ratio, ratio[:1].expand(32))
        ratios.append(ratio[0].item())
    assert 0 <= min(ratios) < 0.2 and 0.8 < max(ratios) <= 1 and abs(sum(ratios) / 40 - 0.5) < 0.15
    # Laplace: the mean square is twice the squared mean of the absolute values.
    d = OnePixelL1(3.0).start(pictures(400, side=8), context())
    assert math.isclose(d.square().mean() / d.abs().mean() ** 2, 2, rel_tol=0.03)


def test_ranks_share_one_start():
    x = pictures(8)
    for ball in (FlooredL2(0.5), OnePixelL1(2.0)):
        whole = ball.start(x, context())
        parts = [ball.start(x[4 * rank:4 * rank + 4], context(rank=rank, ranks=2)) for rank in range(2)]
        torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("make", [trades, mart])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_beside_the_images_is_not_clipped(make, norm):
    x = torch.zeros(16, 3, 8, 8)
    start = make(norm, 1e-4, 1e-5, 0)(nn.Flatten(), x, torch.zeros(16, dtype=torch.int64), context())
    assert start.min() < -0.002 and start.max() > 0.002 and abs(start.std() - 0.001) < 5e-5


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_pgd_clips_its_start(norm):
    x = torch.zeros(16, 3, 8, 8)
    start = pgd(norm, 2.0, 0.1, 0)(nn.Flatten(), x, torch.zeros(16, dtype=torch.int64), context())
    assert start.min() >= 0 and 0 < start.max() <= 1


# --- steps ---

class Slope(nn.Module):
    """Logits (0, <w, x>): with equal logits the gradient of the cross-entropy of class 0 is w/2."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        score = ((x - 0.5) * self.weight).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.mark.parametrize(("attack", "expected"), [
    (pgd("l2", 9.0, 0.1, 1), lambda g: 0.1 * g / max(g, 1e-6)), (fgsm("l2", 0.1), lambda g: 0.1 * g / max(g, 1e-6)),
    (mart("l2", 9.0, 0.1, 1), lambda g: 0.1 * g / (g + 1e-8))])
@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-6, 1e-7])
def test_floors_count_against_the_gradient_of_the_batch_mean(attack, expected, scale):
    weight = torch.zeros(1, 3, 2, 2)
    weight[0, 1, 0, 1] = scale
    x, y = torch.full((8, 3, 2, 2), 0.5), torch.zeros(8, dtype=torch.int64)
    ours = length(attack.from_start(Slope(weight), x, y, x, images=8) - x, "l2")
    torch.testing.assert_close(ours, torch.full((8,), expected(scale / 2 / 8)), rtol=1e-3, atol=1e-8)
    # A rank that holds 8 of 32 images counts against the 32.
    shared = length(attack.from_start(Slope(weight), x, y, x, images=32) - x, "l2")
    torch.testing.assert_close(shared, torch.full((8,), expected(scale / 2 / 32)), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("attack", [pgd("l2", 9.0, 0.1, 2), mart("l2", 9.0, 0.1, 2)])
def test_ranks_together_find_what_one_process_finds(attack):
    model, x, y = Slope(torch.full((1, 3, 2, 2), 1e-7)), pictures(8, side=2), torch.zeros(8, dtype=torch.int64)
    whole = attack(model, x, y, context())
    shares = [slice(4 * rank, 4 * rank + 4) for rank in range(2)]
    parts = [attack(model, x[share], y[share], context(rank=rank, ranks=2)) for rank, share in enumerate(shares)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_trades_ascends_the_sum():
    weight = torch.full((1, 3, 2, 2), 1e-3)
    x, y = torch.full((8, 3, 2, 2), 0.5), torch.zeros(8, dtype=torch.int64)
    attack, start = trades("l2", 9.0, 0.1, 1), x + 1e-3
    first, second = (attack.from_start(Slope(weight), x, y, start, images=n) for n in (8, 800))
    assert torch.equal(first, second)
    # KL of p(x) = (1/2, 1/2) and logits (0, s), with s = 12e-6: its slope is (sigmoid(s) - 1/2)*w.
    norm = (torch.sigmoid(torch.tensor(12e-6, dtype=torch.float64)) - 0.5).item() * 1e-3 * 12 ** 0.5
    torch.testing.assert_close(length(first - start, "l2"), torch.full((8,), 0.1 * norm / (norm + 1e-8)),
                               rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("slope", [0.0, float("nan")])
def test_without_a_gradient_nothing_moves(norm, slope):
    x, y = pictures(4, side=2), torch.zeros(4, dtype=torch.int64)
    for make in (pgd, mart):
        if make is pgd or norm != "l1":
            ours = make(norm, 1.0, 0.1, 3).from_start(Slope(torch.full((1, 3, 2, 2), slope)), x, y, x, images=4)
            assert torch.equal(ours, x)


def test_a_step_in_l1_moves_one_value():
    x = pictures(16, side=8) * 0.2 + 0.4
    torch.manual_seed(1)
    model, y = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), torch.arange(16) % 5
    d = pgd("l1", 9.0, 0.3, 1).from_start(model, x, y, x, images=16) - x
    assert ((d != 0).flatten(1).sum(1) == 1).all()
    torch.testing.assert_close(d.flatten(1).abs().amax(1), torch.full((16,), 0.3))
    slopes = mean_gradient(model, x, y).flatten(1)
    steepest = slopes.abs().argmax(1, keepdim=True)
    assert torch.equal(d.flatten(1).abs().argmax(1, keepdim=True), steepest)
    assert torch.equal(d.flatten(1).sum(1, keepdim=True).sign(), slopes.gather(1, steepest).sign())


@CASES
@drawn(seed=st.integers(0, 10**6), eps=st.floats(0, 3), scale=st.floats(0, 4))
def test_projections_land_inside_ball_and_box(seed, eps, scale):
    x = pictures(4, seed)
    moved = x + scale * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1))
    for ball, norm in ((FlooredL2(eps), "l2"), (OffsetL2(eps), "l2"), (OnePixelL1(eps), "l1")):
        inside = ball.project(x, moved)
        assert inside.min() >= -1e-7 and inside.max() <= 1 + 1e-7
        assert length(inside - x, norm).max() <= eps * (1 + 1e-5) + 2e-6


def test_the_two_orders_of_box_and_ball_differ():
    x, moved = torch.zeros(1, 3, 1, 1), torch.tensor([-3.0, 0.4, 0.3]).view(1, 3, 1, 1)
    torch.testing.assert_close(FlooredL2(0.5).project(x, moved), moved.clamp_min(0))           # box: length 0.5, inside
    scaled = moved * (0.5 / moved.norm())
    torch.testing.assert_close(OffsetL2(0.5).project(x, moved), scaled.clamp_min(0))


# --- choosing ---

@pytest.mark.parametrize(("make", "name"), [
    (lambda: trades("l1", 1, 1, 1), "TRADES"), (lambda: mart("l1", 1, 1, 1), "MART"), (lambda: fgsm("l1", 1), "FGSM"),
    (lambda: pgd("linfty", 1, 1, 1), "PGD")])
def test_attacks_that_do_not_exist_are_refused(make, name):
    with pytest.raises(UserError, match=f"{name} has no attack in the norm"):
        make()


def test_a_stronger_attack_from_its_epoch_on():
    switch = FromEpoch(no_attack, lambda model, x, y, ctx: x + 1, epoch=100)
    x = torch.zeros(1)
    assert [switch(None, x, None, context(epoch=epoch)).item() for epoch in (0, 99, 100, 101)] == [0, 0, 1, 1]
