"""Batches with AutoAugment and CutMix: after crop and flip, drawn for the whole batch, whatever the ranks."""

import pytest
import torch

from common.data import Batches, Split, policies, to_float
from common.data.augmentation import augment
from common.data.cutmix import draw_mix, mix_images, mix_labels
from common.data.policies import uses_policy
from common.errors import UserError
from common.seeds import fold

CROP = {"seed": 4, "crop": 2, "flip": True}


def numbered(count: int, side: int = 8) -> Split:
    """Random images whose label is their position."""
    generator = torch.Generator().manual_seed(count)
    return Split(torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator),
                 torch.arange(count))


def seeded(*keys: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(fold(4, *keys))


def cropped(split: Split, positions: torch.Tensor, epoch: int, step: int, views: int = 1) -> torch.Tensor:
    """What a batch is without policy and CutMix, uint8."""
    return augment(split.images[positions.repeat(views)], seeded("augment", epoch, step), 2, "zero", True)


def always(epoch: int) -> bool:
    return True


@pytest.mark.parametrize("views", [1, 2])
def test_without_them_nothing_has_changed(views):
    split = numbered(20)
    batches = Batches(split, 8, views=views, **CROP)
    for step, batch in enumerate(batches.epoch(2)):
        positions = torch.randperm(20, generator=seeded("order", 2))[8 * step:8 * step + 8]
        assert torch.equal(batch.x, to_float(cropped(split, positions, 2, step, views)))
        assert torch.equal(batch.y, positions) and batch.y.dtype == torch.int64 and batch.extra is None


@pytest.mark.parametrize("views", [1, 2])
def test_the_policy_comes_after_crop_and_flip_with_draws_of_its_own(views):
    split = numbered(20)
    for step, batch in enumerate(Batches(split, 8, views=views, policy=always, **CROP).epoch(1)):
        positions, rows = batch.y, views * len(batch.y)
        drawn = policies.draw(rows, (8, 8), seeded("policy", 1, step))
        want = policies.apply(cropped(split, positions, 1, step, views), drawn)
        assert batch.x.shape == (rows, 3, 8, 8) and torch.equal(batch.x, to_float(want))
        assert not torch.equal(batch.x, to_float(cropped(split, positions, 1, step, views)))


def test_the_policy_says_which_epochs():
    split, plain = numbered(12), Batches(numbered(12), 12, **CROP)
    batches = Batches(split, 12, policy=lambda epoch: uses_policy("autoaug_sche", epoch, 5), **CROP)
    same = [torch.equal(next(batches.epoch(epoch)).x, next(plain.epoch(epoch)).x) for epoch in range(5)]
    assert same == [True, True, False, False, False]


def test_cutmix_mixes_augmented_images_and_labels():
    split = numbered(20)
    moved = 0
    for step, batch in enumerate(Batches(split, 8, policy=always, cutmix=(1.0, 0.5), classes=20, **CROP).epoch(3)):
        own, rows = batch.extra, len(batch.extra)
        assert own.dtype == torch.int64 and batch.y.dtype == torch.float32 and batch.y.shape == (rows, 20)
        images = policies.apply(cropped(split, own, 3, step), policies.draw(rows, (8, 8), seeded("policy", 3, step)))
        mix = draw_mix(rows, (8, 8), seeded("cutmix", 3, step), 1.0, 0.5)
        assert torch.equal(batch.x, to_float(mix_images(images, mix)))
        assert torch.equal(batch.y, mix_labels(own, mix, 20))
        assert torch.equal(batch.y.gather(1, own[:, None]).squeeze(1) >= mix.own, torch.ones(rows, dtype=torch.bool))
        moved += int(mix.own < 1)
    assert moved > 0
    plain = Batches(split, 8, **CROP)
    assert torch.equal(batch.extra, list(plain.epoch(3))[-1].y)                     # mixing leaves the order alone


@pytest.mark.parametrize("options", [{"policy": always, "views": 2}, {"cutmix": (1.0, 1.0), "classes": 27},
                                     {"policy": always, "cutmix": (1.0, 1.0), "classes": 27}])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_shares_of_the_ranks_make_the_batch_of_one_process(options, ranks):
    split, views = numbered(27), options.get("views", 1)
    shares = [Batches(split, 12, rank=rank, ranks=ranks, **CROP, **options) for rank in range(ranks)]
    for step, parts in enumerate(zip(*(share.epoch(3) for share in shares), strict=True)):
        whole = list(Batches(split, 12, **CROP, **options).epoch(3))[step]
        x = torch.cat([part.x.view(views, len(part.y), 3, 8, 8) for part in parts], 1).flatten(0, 1)
        assert torch.equal(x, whole.x) and torch.equal(torch.cat([part.y for part in parts]), whole.y)
        if "cutmix" in options:
            assert torch.equal(torch.cat([part.extra for part in parts]), whole.extra)
    assert sum(len(part.y) for share in shares for part in share.epoch(3)) == 27


def test_resuming_within_an_epoch_and_the_layout_change_no_pixel():
    options = {**CROP, "policy": always, "cutmix": (1.0, 1.0), "classes": 20}
    batches = Batches(numbered(20), 8, **options)
    last = Batches(numbered(20), 8, channels_last=True, **options)
    for one, other in zip(list(batches.epoch(0))[1:], last.epoch(0, start=1), strict=True):
        assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y) and torch.equal(one.extra, other.extra)
        assert one.x.is_contiguous() and other.x.is_contiguous(memory_format=torch.channels_last)


def test_cutmix_needs_classes_one_view_and_positive_parameters():
    for options in ({"cutmix": (1.0, 1.0)}, {"cutmix": (1.0, 1.0), "classes": 20, "views": 2}):
        with pytest.raises(ValueError, match="number of classes and one view"):
            Batches(numbered(20), 8, seed=0, **options)
    for pair in ((0.0, 1.0), (1.0, -1.0)):
        with pytest.raises(UserError, match="positive numbers"):
            Batches(numbered(20), 8, seed=0, cutmix=pair, classes=20)
