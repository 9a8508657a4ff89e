"""Epochs of a given length, rotation, and batches that mix a split with extra images."""

import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from common.data import Batches, Split, augment, mixed
from common.data.augmentation import Draws, apply, draw
from common.data.ddpm import ExtraImages
from common.data.mixed import MixedBatches, ahead, beginning_of_permutation
from common.errors import UserError
from common.seeds import fold

SHAPE = (3, 6, 5)


def numbered(count: int, first: int = 0) -> Split:
    """Random images whose label is their number."""
    images = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    return Split(images, torch.arange(first, first + count))


def blank(count: int) -> Split:
    """Many images that cost nothing."""
    return Split(torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(count, 1, 1, 1), torch.arange(count))


def mix(main: int = 10, extra: int = 7, batch_size: int = 6, **options) -> MixedBatches:
    """Labels: 0.. for the split, 1000.. for extra images."""
    others = ExtraImages.of_split(numbered(extra, 1000), "noise")
    return MixedBatches(numbered(main), others, batch_size, **{"seed": 1, "unsup_fraction": 0.5, "steps": 9, **options})


def same(first, second) -> bool:
    return all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(first, second, strict=True))


# --- epochs of a given length

@pytest.mark.parametrize(("count", "batch_size", "steps", "want"), [
    (48_976, 256, 196, [256] * 191 + [80] + [256] * 4), (48_976, 512, 98, [512] * 95 + [336] + [512] * 2),
    (10, 4, 7, [4, 4, 2, 4, 4, 2, 4]), (10, 4, 2, [4, 4]), (8, 4, 5, [4] * 5), (3, 4, 2, [3, 3])])
def test_an_epoch_walks_permutations_to_their_short_end(count, batch_size, steps, want):
    """CIFAR in DyART: ceil(50,000/B) batches although 48,976 images train."""
    batches = Batches(blank(count), batch_size, seed=0, steps=steps)
    seen = [batch.y for batch in batches.epoch(3)]
    assert [len(labels) for labels in seen] == want and len(batches) == steps
    assert batches.images_per_epoch == sum(want)
    flat = torch.cat(seen).tolist()
    for start in range(0, len(flat), count):                # each walk shows an image at most once
        assert max(Counter(flat[start:start + count]).values()) == 1
    if len(flat) >= 2 * count > 6:
        assert flat[:count] != flat[count:2 * count]


def test_steps_leave_the_first_walk_as_it_was_and_can_be_resumed():
    options = {"seed": 5, "crop": 1, "flip": True, "rotate": 10}
    plain = list(Batches(numbered(10), 4, **options).epoch(2))
    longer = Batches(numbered(10), 4, **options, steps=8)
    # as it was before epochs could have a given length, so that older runs can be made again
    generator = torch.Generator().manual_seed(fold(5, "order", 2))
    assert torch.equal(torch.cat([batch.y for batch in plain]), torch.randperm(10, generator=generator))
    assert same(plain, list(longer.epoch(2))[:3])
    assert same(list(longer.epoch(2))[4:], list(longer.epoch(2, start=4)))


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_the_batches_of_every_walk(ranks, drop_last):
    options = {"seed": 5, "crop": 1, "flip": True, "rotate": 40, "steps": 7, "drop_last": drop_last}
    alone = list(Batches(numbered(17), 6, **options).epoch(1))
    shares = [Batches(numbered(17), 6, **options, rank=rank, ranks=ranks) for rank in range(ranks)]
    parts = [list(share.epoch(1)) for share in shares]
    assert sum(len(batch.y) for batch in alone) == shares[0].images_per_epoch
    for whole, *mine in zip(alone, *parts, strict=True):
        assert torch.equal(whole.y, torch.cat([part.y for part in mine]))
        assert torch.equal(whole.x, torch.cat([part.x for part in mine]))


@pytest.mark.parametrize("steps", [0, -3])
def test_no_step_is_no_epoch(steps):
    with pytest.raises(UserError, match=f"{steps} batches an epoch"):
        Batches(numbered(5), 2, seed=0, steps=steps)
    with pytest.raises(UserError, match=f"{steps} batches an epoch"):
        mix(steps=steps)


# --- rotation

@pytest.mark.parametrize("size", [(32, 32), (8, 8), (7, 9)])
def test_rotation_equals_pillows(size):
    """To a pixel in a thousand: Pillow counts in 1/65536 of a pixel.  No angle (such as 30) at which many pixels lie
    halfway between two."""
    degrees = torch.cat((torch.arange(-178.3, 180, 3.7), torch.tensor([0.0, 90.0, -90.0, 180.0])))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (len(degrees), 3, *size), dtype=torch.uint8, generator=generator)
    got = apply(images, Draws(None, None, None, degrees), 0, "zero")
    want = torch.stack([torch.from_numpy(np.array(transforms.functional.rotate(
        Image.fromarray(image.permute(1, 2, 0).numpy()), float(angle)))).permute(2, 0, 1)
        for image, angle in zip(images, degrees, strict=True)])
    assert got.dtype == torch.uint8
    assert (got != want).float().mean() < 1e-3
    assert torch.equal(got[-4], images[-4])
    if size[0] == size[1]:
        assert torch.equal(got[-3:], want[-3:])


def test_angles_are_uniform_within_the_limit_and_drawn_last():
    drawn = draw(20_000, torch.Generator().manual_seed(0), 4, True, 15.0)
    before = draw(20_000, torch.Generator().manual_seed(0), 4, True)
    assert torch.equal(drawn.top, before.top) and torch.equal(drawn.flip, before.flip) and before.angle is None
    assert drawn.angle.abs().max() <= 15
    assert (torch.histc(drawn.angle, 10, -15, 15) - 2000).abs().max() < 6 * 44
    assert abs(np.corrcoef(drawn.angle.numpy(), drawn.flip.numpy())[0, 1]) < 0.04


def test_rotation_comes_after_crop_and_flip():
    images = numbered(50).images
    got = augment(images, torch.Generator().manual_seed(3), crop=1, flip=True, rotate=90)
    drawn = draw(50, torch.Generator().manual_seed(3), 1, True, 90)
    first = augment(images, torch.Generator().manual_seed(3), crop=1, flip=True)
    assert torch.equal(got, apply(first, Draws(None, None, None, drawn.angle), 0, "zero"))
    assert not torch.equal(got, first)


@pytest.mark.parametrize("rotate", [-1, 181, float("nan")])
def test_angles_that_cannot_be(rotate):
    for make in (lambda: Batches(numbered(5), 2, seed=0, rotate=rotate), lambda: mix(rotate=rotate),
                 lambda: augment(numbered(5).images, torch.Generator(), rotate=rotate)):
        with pytest.raises(UserError, match=r"degrees: give 0 \(none\) to 180"):
            make()


# --- mixed batches

@pytest.mark.parametrize(("batch_size", "extra"), [(512, 358), (256, 179)])
def test_the_released_numbers(batch_size, extra):
    """Extra data: B 512: 358 + 154; B 256: 179 + 77; ceil(50,000/B) batches an epoch."""
    steps = -(-50_000 // batch_size)
    batches = MixedBatches(blank(48_976), ExtraImages.of_split(blank(100_000), ""), batch_size, seed=0, steps=steps)
    assert (batches.extra_images, len(batches), batches.images_per_epoch) == (extra, steps, steps * batch_size)
    members = list(batches.members(0))
    for row in members:
        assert len(row) == batch_size and (row >= 48_976).sum() == extra
    main = np.concatenate([row[row < 48_976] for row in members])
    assert len(set(main.tolist())) == len(main) == steps * (batch_size - extra)
    assert 0.4 < np.mean([row[0] >= 48_976 for row in members]) < 0.95               # shuffled together


@settings(max_examples=60, deadline=None)
@given(main=st.integers(1, 20), extra=st.integers(1, 9), batch_size=st.integers(2, 8), steps=st.integers(1, 12),
       fraction=st.sampled_from([-1.0, 0.0, 0.5, 0.7]), epoch=st.integers(0, 3))
def test_batches_are_made_of_what_they_say(main, extra, batch_size, steps, fraction, epoch):
    batches = mix(main, extra, batch_size, unsup_fraction=fraction, steps=steps)
    others = batches.extra.parts[0].transpose(0, 3, 1, 2)
    got = list(batches.epoch(epoch))
    assert len(got) == steps and sum(len(batch.y) for batch in got) == batches.images_per_epoch
    for batch, members in zip(got, batches.members(epoch), strict=True):
        for x, label, number in zip(batch.x, batch.y.tolist(), members, strict=True):
            image = batches.split.images[number] if number < main else torch.from_numpy(others[number - main].copy())
            assert label == (number if number < main else number - main + 1000)
            assert torch.equal(x, image.float() / 255)
    extras = [int((batch.y >= 1000).sum()) for batch in got]
    share = int(fraction * batch_size)
    if fraction > 0:                                   # a short end of the permutation is filled up with extra images
        walk = [min(batch_size - share, main - start) for start in range(0, main, batch_size - share)]
        assert extras == [batch_size - walk[step % len(walk)] for step in range(steps)]
        assert all(len(batch.y) == batch_size for batch in got)
    elif fraction == 0:
        assert sum(extras) == 0
    seen = torch.cat([batch.y for batch in got]).tolist()
    pool = main + extra if fraction < 0 else main
    walks = [label for label in seen if label < 1000 or fraction < 0]
    for start in range(0, len(walks), pool):
        assert len(set(walks[start:start + pool])) == len(walks[start:start + pool])


def test_one_permutation_of_both_shows_all_before_any_again():
    batches = mix(10, 7, 6, unsup_fraction=-1.0, steps=None)
    seen = sorted(torch.cat([batch.y for batch in batches.epoch(0)]).tolist())
    assert seen == [*range(10), *range(1000, 1007)] and [len(batch.y) for batch in batches.epoch(0)] == [6, 6, 5]


def test_extra_images_are_drawn_with_replacement_and_evenly():
    drawn = Counter(int(number) for epoch in range(20) for row in mix(100, 5, 100, steps=10).members(epoch)
                    for number in row if number >= 100)
    assert set(drawn) == set(range(100, 105)) and sum(drawn.values()) == 20 * 10 * 50
    assert max(abs(count - 2000) for count in drawn.values()) < 6 * 40


@pytest.mark.parametrize("fraction", [-1.0, 0.5])
def test_seed_epoch_and_step_decide_all(fraction):
    options = {"unsup_fraction": fraction, "crop": 1, "flip": True, "rotate": 20}
    first = list(mix(**options).epoch(2))
    torch.manual_seed(0)
    assert same(first, list(mix(**options).epoch(2)))
    assert same(first[4:], list(mix(**options).epoch(2, start=4)))
    assert not same(first, list(mix(**options).epoch(3))) and not same(first, list(mix(**options, seed=2).epoch(2)))
    plain = mix(**{**options, "crop": 0, "flip": False, "rotate": 0})
    for batch, other in zip(first, plain.epoch(2), strict=True):           # the same images, augmented
        assert torch.equal(batch.y, other.y) and not torch.equal(batch.x, other.x)


def test_every_step_has_its_own_augmentation_and_every_walk_its_own_order(monkeypatch):
    seen = []
    monkeypatch.setattr(mixed, "draw", lambda *given: seen.append(draw(*given)) or seen[-1])
    for epoch in range(3):
        assert len(list(mix(crop=4, steps=5).epoch(epoch))) == 5
    assert len({tuple(drawn.top.tolist() + drawn.left.tolist()) for drawn in seen}) == 15
    for fraction in (-1.0, 0.0):
        batches = mix(18, 6, 6, unsup_fraction=fraction, steps=8)
        walks = np.concatenate(list(batches.members(0)))[:48 if fraction < 0 else 36].reshape(2, -1)
        assert set(walks[0]) == set(walks[1]) and not np.array_equal(walks[0], walks[1])


@pytest.mark.parametrize("fraction", [-1.0, 0.0, 0.5])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_a_batch(ranks, fraction):
    options = {"unsup_fraction": fraction, "crop": 1, "flip": True, "rotate": 20, "steps": 8}
    alone = list(mix(17, 5, 6, **options).epoch(1))
    shares = [mix(17, 5, 6, **options, rank=rank, ranks=ranks) for rank in range(ranks)]
    parts = [list(share.epoch(1)) for share in shares]
    assert sum(len(batch.y) for part in parts for batch in part) == shares[0].images_per_epoch
    for whole, *mine in zip(alone, *parts, strict=True):
        if len(whole.y) < ranks:
            mine = mine[:1]
        assert torch.equal(whole.y, torch.cat([part.y for part in mine]))
        assert torch.equal(whole.x, torch.cat([part.x for part in mine]))
        assert mine[0].share.size == len(whole.y)


def test_memory_format():
    (batch, *_) = mix(channels_last=True, crop=1).epoch(0)
    assert batch.x.is_contiguous(memory_format=torch.channels_last) and not batch.x.is_contiguous()
    assert next(mix(crop=1).epoch(0)).x.is_contiguous()


@pytest.mark.parametrize(("options", "says"), [
    ({"unsup_fraction": 1.0}, r"fraction of 1.0 leaves no room .* --unsup-fraction below 1"),
    ({"unsup_fraction": 1.5}, "fraction of 1.5 leaves no room"), ({"unsup_fraction": float("nan")}, "leaves no room"),
    ({"unsup_fraction": 0.1}, "gives no extra image in a batch of 6"), ({"batch_size": 0}, "batch size 0"),
    ({"batch_size": 2, "ranks": 3}, "batch size 2: give at least 3"), ({"crop": -1}, "crop -1 is negative")])
def test_what_cannot_be_mixed(options, says):
    with pytest.raises(UserError, match=says):
        mix(**options)


def test_programmers_mistakes():
    for change in ({"rank": 3}, {"extra": ExtraImages.of_split(blank(3), "")}):
        with pytest.raises(ValueError, match=r"rank 3 of 1|extra images are \(1, 1, 1\)"):
            replace(mix(), **change)


# --- its parts

@pytest.mark.parametrize(("count", "wanted"), [(10, 10), (10, 3), (10, 2), (40, 10), (41, 10), (10**12, 1000)])
def test_the_beginning_of_a_permutation_has_distinct_numbers(count, wanted):
    got = beginning_of_permutation(count, wanted, torch.Generator().manual_seed(0))
    assert got.dtype == np.int64 and len(set(got.tolist())) == len(got) == wanted
    assert got.min() >= 0 and got.max() < count
    assert np.array_equal(got, beginning_of_permutation(count, wanted, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("count", [4, 12])
def test_every_beginning_is_as_likely(count):
    """Ordered pairs of 4 and of 12: both ways of drawing."""
    generator = torch.Generator().manual_seed(0)
    total = 12_000
    seen = Counter(tuple(beginning_of_permutation(count, 2, generator).tolist()) for _ in range(total))
    want = total / (count * (count - 1))
    assert len(seen) == count * (count - 1)
    assert max(abs(number - want) for number in seen.values()) < 6 * want ** 0.5


def test_a_thread_works_ahead_and_its_errors_arrive():
    made, caller = [], threading.get_ident()

    def source():
        for number in range(10):
            made.append((number, threading.get_ident()))
            yield number
        raise UserError("the file is gone")

    items = ahead(source(), 3)
    assert next(items) == 0
    items.close()                                       # a loop that ends early leaves no thread behind
    assert {number for number, _ in made} <= {0, 1, 2, 3} and caller not in {thread for _, thread in made}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
    items, got = ahead(source(), 3), []
    with pytest.raises(UserError, match="the file is gone"):
        got.extend(items)
    assert got == list(range(10))


def test_batches_are_gathered_before_they_are_asked_for(monkeypatch):
    gathered = []
    original = ExtraImages.gather
    monkeypatch.setattr(ExtraImages, "gather", lambda self, *given: gathered.append(1) or original(self, *given))
    batches = mix().epoch(0)
    next(batches)
    deadline = time.monotonic() + 30
    while len(gathered) < mixed.AHEAD + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(gathered) == mixed.AHEAD + 1            # the one that was handed out, and those ready
    batches.close()
