"""CutMix: label weights are the pixel shares, exactly; boxes and orders are drawn as the source says."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from common.data.cutmix import Mix, cutmix, draw_mix, mix_images, mix_labels
from common.errors import UserError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=80, deadline=None)
@given(rows=st.integers(1, 9), height=st.sampled_from([8, 32, 64]), width=st.sampled_from([8, 32]),
       seed=st.integers(0, 2**31), alpha=st.sampled_from([0.2, 1.0, 5.0]))
def test_label_weights_are_the_pixel_shares_exactly(rows, height, width, seed, alpha):
    """Each image is one colour, its label: counting colours gives the weights, to the last bit."""
    labels = torch.arange(rows)
    images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(rows, 3, height, width)
    mixed, weights = cutmix(images, labels, generator(seed), rows + 1, alpha=alpha)
    assert mixed.dtype == torch.uint8 and weights.dtype == torch.float32 and weights.shape == (rows, rows + 1)
    for k in range(rows):
        counts = torch.bincount(mixed[k, 0].flatten().long(), minlength=rows + 1)
        for count, weight in zip(counts.tolist(), weights[k].tolist(), strict=True):
            assert Fraction(weight) == Fraction(count, height * width)


def test_the_box_comes_from_the_partner_and_stays_where_it_is():
    images = torch.randint(0, 256, (6, 3, 8, 10), dtype=torch.uint8, generator=generator(1))
    untouched = images.clone()
    mix = Mix(2, 5, 0, 7, torch.tensor([3, 0, 5, 1, 2, 4]), 1 - 21 / 80)
    mixed = mix_images(images, mix)
    want = images.clone()
    for k, partner in enumerate(mix.partner.tolist()):
        want[k, :, 2:5, 0:7] = untouched[partner, :, 2:5, 0:7]
    assert torch.equal(mixed, want) and torch.equal(images, untouched)


def test_an_image_mixed_with_one_of_its_class_keeps_its_label():
    mix = Mix(0, 3, 0, 3, torch.tensor([1, 0]), 1 - 9 / 64)
    assert torch.equal(mix_labels(torch.tensor([2, 2]), mix, 4), torch.tensor([[0, 0, 1.0, 0]] * 2))


def test_cross_entropy_with_the_mixed_labels_is_the_weighted_sum_of_two():
    """lam*CE(y_a) + (1-lam)*CE(y_b), as RPAT writes it."""
    labels, logits = torch.arange(8) % 5, torch.randn(8, 5, generator=generator(2))
    mix = draw_mix(8, (32, 32), generator(3))
    assert 0 < mix.own < 1
    both = mix.own * F.cross_entropy(logits, labels) + (1 - mix.own) * F.cross_entropy(logits, labels[mix.partner])
    torch.testing.assert_close(F.cross_entropy(logits, mix_labels(labels, mix, 5)), both)


def test_boxes_are_drawn_as_the_source_says():
    """About a uniform centre, even-sided unless cut off; lam uniform for Beta(1,1), so E[(1-lam)] = 1/2 before the
    cut; sides are 2*(int(32*sqrt(1-lam))//2)."""
    mixes = [draw_mix(2, (32, 32), generator(seed)) for seed in range(3000)]
    whole = [mix for mix in mixes if mix.top > 0 and mix.bottom < 32 and mix.left > 0 and mix.right < 32]
    assert all(mix.bottom - mix.top == mix.right - mix.left for mix in whole)
    assert all((mix.bottom - mix.top) % 2 == 0 for mix in whole)
    centres = torch.tensor([(mix.top + mix.bottom) // 2 for mix in mixes if mix.bottom - mix.top == 2])
    assert len(centres) == 0 or (centres.min() >= 1 and centres.max() <= 31)
    # The probability of no box at all is P(32*sqrt(1-lam) < 2) = 1/256, that of the whole image (centre 16, side 32:
    # only at lam = 0) is nil, and a side is at most 31//2*2 = 30 before the cut.
    sides = torch.tensor([max(mix.bottom - mix.top, mix.right - mix.left) for mix in mixes])
    assert sides.max() == 30
    empty = sum(mix.own == 1 for mix in mixes) / 3000
    assert abs(empty - 1 / 256) < 6 * (1 / 256 / 3000) ** 0.5
    # A centre row is uniform: in the lower half in half of the cases.
    lower = sum(mix.top + mix.bottom > 32 for mix in mixes) - sum(mix.top + mix.bottom < 32 for mix in mixes)
    assert abs(lower) < 6 * 3000 ** 0.5
    partners = torch.stack([draw_mix(4, (8, 8), generator(seed)).partner for seed in range(200)])
    assert torch.equal(partners.sort(1).values, torch.arange(4).expand(200, 4)) and len(partners.unique(dim=0)) == 24


def test_alpha_and_beta_shape_the_boxes():
    """Beta(8,1) leaves nearly all to the image, Beta(1,8) little."""
    own = {pair: torch.tensor([draw_mix(2, (32, 32), generator(seed), *pair).own for seed in range(300)]).mean()
           for pair in ((8.0, 1.0), (1.0, 1.0), (1.0, 8.0))}
    assert own[8.0, 1.0] > 0.88 and own[1.0, 1.0] < own[8.0, 1.0] - 0.2 and own[1.0, 8.0] < own[1.0, 1.0] - 0.15


def test_the_generator_decides():
    first, again, other = (draw_mix(50, (32, 32), generator(seed)) for seed in (1, 1, 2))
    assert first[:4] == again[:4] and torch.equal(first.partner, again.partner)
    assert first[:4] != other[:4] and not torch.equal(first.partner, other.partner)


def test_nothing_waits_for_the_device():
    """On the meta device there are no values that the host could read."""
    images = torch.empty(6, 3, 32, 32, dtype=torch.uint8, device="meta")
    labels = torch.empty(6, dtype=torch.int64, device="meta")
    mixed, weights = cutmix(images, labels, generator(4), 10)
    assert mixed.shape == images.shape and weights.shape == (6, 10)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)])
def test_beta_needs_positive_numbers(alpha, beta):
    with pytest.raises(UserError, match="needs positive numbers, not"):
        draw_mix(4, (8, 8), generator(), alpha, beta)
