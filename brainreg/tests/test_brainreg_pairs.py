"""The stream of pairs: without replacement, a function of seed and epoch, with the right targets, and nothing waits."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from brainreg import pairs
from brainreg.pairs import PairBatches, distinct, pair_batches
from brainreg.settings import Settings
from brainreg.similarity import boosted, pairs_in_range, pixel_similarity
from common.data import Batches, load
from common.errors import UserError


def classes(count=100, batch=8):
    return Batches(load("digits").train.subset(count), batch, seed=5)


def stream(**changes):
    images = torch.rand(24, 1, 6, 7, generator=torch.Generator().manual_seed(1))
    told = Settings(task="mnist", reg_data="mnist", reg_alpha=1.0, reg_thresh=0.2, reg_batch_size=4, seed=5, **changes)
    return images, pair_batches(told, classes(), images)


def numbers(drawn):
    """The pairs drawn (steps,k,2) as tuples."""
    return [tuple(pair) for pair in drawn.flatten(0, 1).tolist()]


# --- drawing ---

@options(max_examples=60, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(0, 2 ** 40), st.sampled_from([1, 1 << 16]))
def test_distinct_numbers(first, second, seed, few):
    count, total = sorted((first, second))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pairs, "FEW", few)
        found = distinct(count, total, torch.Generator().manual_seed(seed))
    assert found.dtype == torch.int64 and len(found) == count == len(found.unique())
    assert count == 0 or (found.min() >= 0 and found.max() < total)


@pytest.mark.parametrize("few", [0, 1 << 16])
def test_every_ordered_choice_is_equally_likely(few, monkeypatch):
    monkeypatch.setattr(pairs, "FEW", few)
    generator = torch.Generator().manual_seed(0)
    counts = Counter(tuple(distinct(2, 5, generator).tolist()) for _ in range(4000))
    assert len(counts) == 20
    statistic = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert statistic < 43.8                                             # chi-squared, 19 degrees: 1 in 1,000


def test_a_few_of_all_pairs_of_5000_images_are_not_a_shuffle_of_them_all(monkeypatch):
    monkeypatch.setattr(torch, "randperm", None)
    found = distinct(774 * 16, 12_497_500, torch.Generator().manual_seed(0))
    assert len(found.unique()) == len(found) == 12_384
    assert abs(found.double().mean().item() / 12_497_500 - 0.5) < 0.02   # 8 standard errors
    with pytest.raises(ValueError, match="6 different numbers out of 5"):
        distinct(6, 5, torch.Generator())


# --- the stream ---

def test_an_epoch_has_a_batch_of_pairs_for_each_class_batch():
    images, found = stream()
    plain, batches = list(found.classes.epoch(2)), list(found.epoch(2))
    assert len(found) == len(batches) == len(plain) == 13 and found.images_per_epoch == 100
    similarity = pixel_similarity(images)
    drawn = found.drawn(2)
    for batch, one, chosen in zip(batches, plain, drawn, strict=True):
        assert torch.equal(batch.x, one.x) and torch.equal(batch.y, one.y)
        assert batch.extra.pair.rows.shape == (4, 1, 6, 7)
        assert torch.equal(batch.extra.pair.rows, images[chosen[:, 0]])
        assert torch.equal(batch.extra.pair.columns, images[chosen[:, 1]])
        assert torch.equal(batch.extra.target, boosted(similarity[chosen[:, 0], chosen[:, 1]], 0.2, 1.0))
    assert {float(value) for batch in batches for value in batch.extra.target} == {-1.0, 0.0, 1.0}


def test_targets_are_boosted_as_asked_or_s_itself():
    images, found = stream(reg_boost_val_1=0.25)
    assert {float(value) for value in found.targets(found.pairs)} == {-0.25, 0.0, 0.25}
    images, found = stream(reg_boosting=False)
    rows, columns = found.pairs.unbind(1)
    assert torch.equal(found.targets(found.pairs), pixel_similarity(images)[rows, columns])


def test_pairs_are_used_up_before_they_come_again():
    images, found = stream()
    small = PairBatches(found.classes, images, found.pairs[:23], found.similarity, 4, 5, 0.2, 1.0)
    drawn = numbers(small.drawn(0))
    assert len(drawn) == 13 * 4
    shuffles = [drawn[start:start + 20] for start in (0, 20, 40)]        # 5 batches of 4, the last 3 pairs are dropped
    assert all(len(set(part)) == len(part) for part in shuffles) and shuffles[0] != shuffles[1]
    everything = set(map(tuple, found.pairs[:23].tolist()))
    assert set(drawn) <= everything and {part for turn in range(20) for part in numbers(small.drawn(turn))
                                         } == everything
    whole = numbers(found.drawn(0))
    assert len(set(whole)) == len(whole)                                 # 276 pairs are enough for an epoch


def test_an_epochs_pairs_are_a_function_of_seed_and_epoch():
    images, found = stream()
    other = PairBatches(found.classes, images, found.pairs, found.similarity, 4, 6, 0.2, 1.0)
    assert torch.equal(found.drawn(3), stream()[1].drawn(3))
    assert not torch.equal(found.drawn(3), found.drawn(4)) and not torch.equal(found.drawn(3), other.drawn(3))


def test_the_pairs_are_those_of_the_range():
    images, found = stream(reg_range="high")
    similarity = pixel_similarity(images)
    assert torch.equal(found.pairs, pairs_in_range(similarity, "high", 0.2))
    assert 0 < len(found.pairs) < 276 and (found.targets(found.pairs) != 0).all()
    doubled = stream(reg_range="double", reg_thresh_2=0.3, reg_boosting=False)[1]
    assert len(doubled.pairs) > len(doubled.pairs.unique(dim=0))         # in both halves: twice


def test_too_few_pairs_are_refused():
    images = torch.rand(24, 1, 6, 7, generator=torch.Generator().manual_seed(1))
    told = {"task": "mnist", "reg_data": "mnist", "reg_alpha": 1.0}
    with pytest.raises(UserError, match="no pair of regularisation images is in --reg_range high") as caught:
        pair_batches(Settings(reg_thresh=0.99, reg_range="high", **told), classes(), images)
    largest = np.abs(pixel_similarity(images).triu(1).numpy()).max()
    assert f"the largest |S| is {largest:.3g}" in str(caught.value)
    with pytest.raises(UserError, match="takes 277"):
        pair_batches(Settings(reg_thresh=0.2, reg_batch_size=277, **told), classes(), images)
    with pytest.raises(ValueError, match="batches of 0"):
        PairBatches(classes(), images, torch.zeros(3, 2, dtype=torch.int64), torch.eye(24), 0, 5)


def test_no_step_waits_for_the_device(monkeypatch):
    _, found = stream()
    epoch = found.epoch(0)
    next(epoch)

    def waits(*_, **__):
        raise AssertionError("a step fetched something from the device")

    for name in ("item", "tolist", "cpu", "to", "nonzero", "__bool__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    assert sum(1 for _ in epoch) == 12
