"""Part 2's training attack: written down once more, starts, half precision, restarts, what batch norm sees."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.errors import UserError
from rpat.rebat_attack import RebatPGD, counted_twice, moving_norms
from rpat.tests.rpat_references import Norm, context, length, pictures, released_rebat


@pytest.mark.parametrize(("norm", "eps", "size"), [("linf", 8 / 255, 2 / 255), ("l2", 128 / 255, 15 / 255)])
def test_attack_against_itself_written_down_once_more(golden, tiny, norm, eps, size):
    x, y = golden["x"], golden["y"]
    attack = RebatPGD(eps, size, 10, norm)
    start = attack.start(x, context())
    ours = attack.from_start(tiny, x, y, start, images=16)
    theirs = released_rebat(tiny, x, y, start, norm, eps, size, 10)
    assert ((ours - theirs).abs() <= 1e-6).float().mean() >= 0.999
    x_adv = attack(tiny, x, y, context())
    assert torch.equal(x_adv, x + ours)
    assert length(x_adv - x, norm).max() <= eps * (1 + 1e-5) and x_adv.min() >= 0 and x_adv.max() <= 1
    assert F.cross_entropy(tiny(x_adv), y) > F.cross_entropy(tiny(x), y) + 1e-3


def test_starts():
    x = torch.full((200, 3, 4, 4), 0.5)
    linf, l2 = (RebatPGD(0.1, 0.1, 1, norm).start(x, context()) for norm in ("linf", "l2"))
    assert linf.abs().max() <= 0.1 and abs(linf.std() - 0.1 / 3 ** 0.5) < 2e-3
    lengths = length(l2, "l2")
    assert lengths.max() <= 0.1 and abs(lengths.mean() - 0.05) < 8e-3 and lengths.min() < 0.01
    edge = RebatPGD(0.1, 0.1, 1).start(torch.zeros_like(x), context())
    assert edge.min() == 0 and edge.max() > 0.09


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_half_precision(golden, tiny, norm):
    eps, size = (8 / 255, 2 / 255) if norm == "linf" else (128 / 255, 15 / 255)
    x, y = golden["x"], golden["y"]
    attack = RebatPGD(eps, size, 10, norm)
    half = attack(tiny, x.half(), y, context())
    assert half.dtype == torch.float16 and half.min() >= 0 and half.max() <= 1
    full = attack(tiny, x, y, context())
    difference = (half.float() - full).abs()
    assert difference.max() > 1e-5 and (difference < 2e-3).float().mean() > 0.98
    assert length(half.float() - x, norm).max() <= eps * 1.02


class Slope(nn.Module):
    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        score = (x - 0.5)[:, 0, 0, 0] * self.slope
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("slope", "moves"), [
    (0.0, (False, False)), (4e-8 * 16, (True, True)), (2e-8 * 16, (True, False))])
def test_half_precision_loses_small_gradients_of_the_batch_mean(norm, slope, moves):
    # 8 images of class 0 at equal logits: the gradient of the mean is slope/16.  Where it is 0 nothing becomes NaN.
    x, y = torch.full((8, 3, 2, 2), 0.5), torch.zeros(8, dtype=torch.int64)
    for images, expected in zip((x, x.half()), moves, strict=True):
        end = RebatPGD(0.1, 0.01, 1, norm).from_start(Slope(slope), images, y, torch.zeros_like(images), images=8)
        assert end.isfinite().all() and (end[:, 0, 0, 0] > 0.009).all() == expected
        assert (end.abs().sum() > 0) == expected


def test_ranks_together_find_what_one_process_finds():
    # Halves: 2.5e-8 as the mean over 8 images, 5e-8 over 4, of which float16 keeps the second alone.
    model, x, y = Slope(2.5e-8 * 16), pictures(8, side=2).half(), torch.zeros(8, dtype=torch.int64)
    for rank, share in enumerate((slice(0, 4), slice(4, 8))):
        alone, attack = context(rank=rank, ranks=2), RebatPGD(0.1, 0.01, 1)
        start = attack.start(x[share], context(rank=rank, ranks=2))
        assert torch.equal(attack(model, x[share], y[share], alone), x[share] + start)
    assert not torch.equal(RebatPGD(0.1, 0.01, 1)(model, x[:4], y[:4], context()) - x[:4],
                           RebatPGD(0.1, 0.01, 1).start(x[:4], context()))


def test_restarts_keep_the_end_of_largest_loss_and_the_later_on_ties():
    x = torch.full((3, 3, 1, 1), 0.5)
    ends = iter([torch.full_like(x, value) for value in (0.1, 0.2, 0.3)])

    class Ends(RebatPGD):
        def from_start(self, model, x, y, displacement, *, images):
            return next(ends)

    class Losses(nn.Module):
        """Logits (0, s): the cross-entropy of class 0 rises with s; image 0 worst at the first end, 1 at the second
        and third alike, 2 at the third."""

        def forward(self, x):
            turn = round((x[0, 0, 0, 0].item() - 0.5) * 10) - 1
            score = torch.tensor([[3.0, 1, 2], [1, 5, 1], [2, 5, 4]])[turn]
            return torch.stack([torch.zeros(3), score], 1)

    found = Ends(restarts=3)(Losses(), x, torch.zeros(3, dtype=torch.int64), context())[:, 0, 0, 0]
    torch.testing.assert_close(found, torch.tensor([0.6, 0.8, 0.8]))


def test_one_pass_counted_twice_moves_as_two():
    once, twice = Norm().train(), Norm().train()
    x = pictures(6)
    with counted_twice(moving_norms(once)):
        once(x)
    twice(x), twice(x)
    assert once.norm.momentum == 0.1
    for (name, ours), theirs in zip(once.state_dict().items(), twice.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    assert moving_norms(once.eval()) == [] and moving_norms(nn.BatchNorm2d(3, track_running_stats=False)) == []
    with pytest.raises(ValueError, match="twice"), counted_twice([nn.BatchNorm2d(3, momentum=None)]):
        pass


def test_hard_labels_are_not_counted_twice():
    model, y = Norm().train(), torch.arange(6) % 4
    fresh = copy.deepcopy(model)
    x = pictures(6)
    RebatPGD(steps=2).from_start(model, x, y, torch.zeros_like(x), images=6)
    RebatPGD(steps=2).from_start(fresh, x, F.one_hot(y, 4).float(), torch.zeros_like(x), images=6)
    assert (model.norm.num_batches_tracked, fresh.norm.num_batches_tracked) == (2, 4)


def test_attacks_that_do_not_exist_are_refused():
    for wrong in ({"norm": "l1"}, {"restarts": 0}):
        with pytest.raises(UserError):
            RebatPGD(**wrong)
