"""Batches: what they contain, that crop and flip are what they say, and that (seed, epoch, step) decides all."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import Batches, Split, augment
from common.data.batches import CROP_MODES, apply, draw
from common.errors import UserError
from common.types import share_of


def numbered(count: int, shape: tuple[int, int, int] = (3, 6, 5)) -> Split:
    """Random images whose label is their position."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count))


def reference(image: np.ndarray, top: int, left: int, flip: bool, crop: int, mode: str) -> np.ndarray:
    """One image, padded, cropped and mirrored by numpy, pixel by pixel as the words say."""
    padded = np.pad(image, ((0, 0), (crop, crop), (crop, crop)), "constant" if mode == "zero" else "reflect")
    height, width = image.shape[1:]
    out = np.empty_like(image)
    for row in range(height):
        for column in range(width):
            source = width - 1 - column if flip else column
            out[:, row, column] = padded[:, top + row, left + source]
    return out


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 6), channels=st.sampled_from([1, 3]), height=st.integers(4, 8), width=st.integers(4, 8),
       crop=st.integers(0, 3), mode=st.sampled_from(CROP_MODES), flip=st.booleans(), seed=st.integers(0, 2**32),
       channels_last=st.booleans())
def test_crop_and_flip_equal_the_brute_force_reference(count, channels, height, width, crop, mode, flip, seed,
                                                       channels_last):
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(seed))
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    drawn = draw(count, torch.Generator().manual_seed(seed), crop, flip)
    got = augment(images, torch.Generator().manual_seed(seed), crop, mode, flip)
    assert got.dtype == torch.uint8
    for position in range(count):
        top, left = (int(drawn.top[position]), int(drawn.left[position])) if crop else (0, 0)
        mirrored = bool(drawn.flip[position]) if flip else False
        want = reference(images[position].numpy(), top, left, mirrored, crop, mode)
        assert np.array_equal(got[position].numpy(), want)


def test_zero_padding_wider_than_the_image_can_show_nothing_but_black():
    images = torch.full((200, 1, 2, 2), 9, dtype=torch.uint8)
    seen = augment(images, torch.Generator().manual_seed(0), crop=5).flatten(1).sum(1)
    assert 0 in seen and int(seen.max()) == 36


@pytest.mark.parametrize("mode", CROP_MODES)
def test_every_offset_and_both_directions_are_drawn_equally_often_and_independently(mode):
    """The crop is read back from the pixels: each of the 9 x 2 outcomes has its share of 36,000 images."""
    image = torch.arange(1, 37, dtype=torch.uint8).view(1, 1, 6, 6)
    out = augment(image.expand(36_000, 1, 6, 6), torch.Generator().manual_seed(1), crop=1, crop_mode=mode, flip=True)
    distinct, counts = out.flatten(1).unique(dim=0, return_counts=True)
    assert len(distinct) == 18
    assert counts.min() > 2000 - 6 * 44 and counts.max() < 2000 + 6 * 44     # 6 standard deviations of a binomial


@pytest.mark.parametrize("mode", CROP_MODES)
def test_neighbours_in_the_batch_do_not_leak_into_a_crop(mode):
    images = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 5, 5) + 1
    out = augment(images, torch.Generator().manual_seed(3), crop=3, crop_mode=mode, flip=True)
    for position in range(8):
        allowed = {position + 1} | ({0} if mode == "zero" else set())
        assert set(out[position].unique().tolist()) <= allowed


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 12), drop_last=st.booleans(), epoch=st.integers(0, 5))
def test_an_epoch_shows_every_image_once(count, batch_size, drop_last, epoch):
    split = numbered(count, (1, 4, 4))
    if drop_last and batch_size > count:
        with pytest.raises(UserError, match="no batch of"):
            Batches(split, batch_size, seed=0, drop_last=drop_last)
        return
    batches = Batches(split, batch_size, seed=0, drop_last=drop_last)
    got = list(batches.epoch(epoch))
    seen = torch.cat([batch.y for batch in got])
    assert len(got) == len(batches) == (count // batch_size if drop_last else -(-count // batch_size))
    assert len(seen) == len(set(seen.tolist())) == batches.images_per_epoch
    assert batches.images_per_epoch == (count - count % batch_size if drop_last else count)
    assert [len(batch.y) for batch in got[:-1]] == [batch_size] * (len(got) - 1)
    for batch in got:                       # without augmentation the pixels are the image's own
        assert torch.equal(batch.x, split.images[batch.y].float() / 255)


def test_bytes_become_exactly_their_255th():
    split = Split(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16), torch.zeros(1, dtype=torch.int64))
    (batch,) = Batches(split, 1, seed=0).epoch(0)
    want = (np.arange(256, dtype=np.float64) / 255).astype(np.float32).reshape(1, 1, 16, 16)
    assert batch.x.dtype == torch.float32
    assert np.array_equal(batch.x.numpy(), want)
    assert torch.equal(split.float_images(), batch.x)


def same(first, second) -> bool:
    return all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(first, second, strict=True))


def test_seed_and_epoch_decide_the_batches():
    def epoch(number, start=0, **options):
        return list(Batches(numbered(20), 8, **{"seed": 1, "crop": 2, "flip": True, **options}).epoch(number, start))

    torch.manual_seed(0)
    first = epoch(0)
    torch.rand(7)                           # the global generator has no say
    assert same(first, epoch(0))
    assert same(first[1:], epoch(0, start=1))
    assert not torch.equal(first[0].y, epoch(1)[0].y)
    assert not torch.equal(first[0].y, epoch(0, seed=2)[0].y)
    batches = Batches(numbered(20), 8, seed=1, crop=2, flip=True)
    for number in range(3):                 # what ran before leaves no trace
        last = list(batches.epoch(number))
    assert same(last, epoch(2))


def test_batches_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    list(Batches(numbered(20), 8, seed=1, crop=2, flip=True, views=2).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


def test_steps_epochs_and_seeds_are_augmented_differently():
    """One image sixteen times over, so that the order has no part in it."""
    split = Split(numbered(1).images.repeat(16, 1, 1, 1), torch.zeros(16, dtype=torch.int64))
    batches = Batches(split, 8, seed=0, crop=2, flip=True)
    drawn = [*batches.epoch(0), *batches.epoch(1), *Batches(split, 8, seed=1, crop=2, flip=True).epoch(0)]
    assert len({batch.x.numpy().tobytes() for batch in drawn}) == 6


def test_augmentation_changes_neither_the_order_nor_the_split():
    split = numbered(20)
    before = split.images.clone()
    plain = [batch.y for batch in Batches(split, 8, seed=1).epoch(0)]
    assert torch.equal(torch.cat(plain), torch.cat([b.y for b in Batches(split, 8, seed=1, crop=2).epoch(0)]))
    assert torch.equal(before, split.images)


def test_views_are_drawn_independently_and_stacked_one_after_another():
    split = numbered(64)
    (batch,) = Batches(split, 64, seed=0, crop=2, flip=True, views=2).epoch(0)
    assert batch.x.shape == (128, 3, 6, 5) and batch.y.shape == (64,)
    first, second = batch.x.view(2, 64, 3, 6, 5)
    unequal = (first != second).flatten(1).any(1)
    assert unequal.sum() > 40               # 49 of 50 pairs differ in crop or flip
    (plain,) = Batches(split, 64, seed=0, views=2).epoch(0)
    assert torch.equal(plain.x[:64], plain.x[64:]) and torch.equal(plain.y, batch.y)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_shares_of_the_ranks_make_the_batch_of_one_process(views, ranks):
    options = {"seed": 4, "crop": 2, "crop_mode": "reflect", "flip": True, "views": views}
    split = numbered(27)                    # the last batch has 3 images: 1 and 2 for 2 ranks
    whole = list(Batches(split, 12, **options).epoch(3))
    shares = [Batches(split, 12, rank=rank, ranks=ranks, **options) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1 and len(shares[0]) == 3
    for step, parts in enumerate(zip(*(share.epoch(3) for share in shares), strict=True)):
        assert torch.equal(torch.cat([part.y for part in parts]), whole[step].y)
        x = torch.cat([part.x.view(views, len(part.y), 3, 6, 5) for part in parts], 1)
        assert torch.equal(x.flatten(0, 1), whole[step].x)
        places = [(part.share.start, part.share.stop, part.share.size, part.share.copies) for part in parts]
        size = len(whole[step].y)
        assert places == [(rank * size // ranks, (rank + 1) * size // ranks, size, 1) for rank in range(ranks)]
        assert whole[step].share is None
    assert shares[0].images_per_epoch == 27


def test_of_fewer_images_than_ranks_every_rank_has_all():
    split = numbered(26)
    shares = [Batches(split, 12, seed=4, crop=2, flip=True, rank=rank, ranks=3) for rank in range(3)]
    *_, whole = Batches(split, 12, seed=4, crop=2, flip=True).epoch(3)
    for share in shares:
        *_, last = share.epoch(3)
        assert torch.equal(last.x, whole.x) and torch.equal(last.y, whole.y) and last.share == (0, 2, 2, 3)
        assert last.share.weight(3) == 1


def test_the_shares_weigh_as_their_images():
    """The plain mean over the ranks of the weighted means of the shares is the mean over the batch."""
    values = torch.arange(11, dtype=torch.float64) ** 2
    for ranks in range(1, 12):
        shares = [share_of(11, rank, ranks) for rank in range(ranks)]
        means = [share.weight(ranks) * values[share.start:share.stop].mean() for share in shares]
        assert sum(means) / ranks == pytest.approx(values.mean().item(), rel=1e-12)
        assert max(len(range(*share[:2])) for share in shares) - min(len(range(*share[:2])) for share in shares) <= 1


def test_the_format_channels_last_changes_the_layout_alone():
    plain, last = (next(Batches(numbered(8), 8, seed=0, crop=1, flip=True, channels_last=choice).epoch(0)).x
                   for choice in (False, True))
    assert plain.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


@pytest.mark.parametrize(("options", "says"), [
    ({"batch_size": 0}, "batch size 0"),
    ({"batch_size": 2, "ranks": 3}, "a batch of 2 cannot be shared by 3 processes"),
    ({"views": 0}, "0 views"),
    ({"crop": -1}, "crop -1 is negative"),
    ({"crop": 5, "crop_mode": "reflect"}, "reflect padding by 5 pixels needs images larger than 5 pixels, .* 6x5"),
    ({"crop_mode": "edge"}, "unknown crop mode 'edge': choose from zero, reflect"),
    ({"batch_size": 30, "drop_last": True}, "no batch of 30 can be made of 20 images"),
])
def test_sizes_that_do_not_fit_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        Batches(numbered(20), **{"batch_size": 8, "seed": 0, **options})


def test_a_flip_without_a_crop_and_a_crop_without_a_flip():
    images = numbered(50).images
    flipped = augment(images, torch.Generator().manual_seed(0), flip=True)
    kept = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert (kept | mirrored).all() and 10 < int(mirrored.sum()) < 40
    drawn = draw(50, torch.Generator().manual_seed(0), 2, False)
    assert drawn.flip is None
    assert torch.equal(apply(images, drawn, 2, "zero"), augment(images, torch.Generator().manual_seed(0), crop=2))
