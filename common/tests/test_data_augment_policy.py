"""AutoAugment's sub-policies and cutout per image, the schedule that switches them, and that nothing waits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from common.data import policies
from common.data.policies import OPERATIONS, SUB_POLICIES, Draws, apply_policy, autoaugment, cutout, uses_policy
from common.errors import UserError

NAMES = {"Invert": "invert", "Contrast": "contrast", "Rotate": "rotate", "TranslateX": "translate_x",
         "TranslateY": "translate_y", "ShearY": "shear_y", "Sharpness": "sharpness", "AutoContrast": "autocontrast",
         "Equalize": "equalize", "Posterize": "posterize", "Color": "colour", "Brightness": "brightness",
         "Solarize": "solarize"}
# torchvision shears and shifts the other way and by its own rounding, and solarizes from 255 instead of 256.
OTHERS = {"translate_x", "translate_y", "shear_y", "solarize"}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, channels: int = 3, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator(seed))


def sequence(draws: Draws, k: int) -> list[tuple[str, int | None, int]]:
    """The operations that image k goes through: name, level, sign."""
    return [(name, level, 2 * int(draws.sign[k, stage]) - 1)
            for stage, (name, share, level) in enumerate(SUB_POLICIES[int(draws.policy[k])])
            if float(draws.chance[k, stage]) < share]


def pillow(image: Image.Image, name: str, level: int | None, sign: int) -> Image.Image:
    """RPAT's operation on one image, in Pillow's words and with the paper notes' numbers."""
    side, fill = image.size[0], (128, 128, 128)
    share = 0 if level is None else level / 9
    enhancers = {"colour": ImageEnhance.Color, "contrast": ImageEnhance.Contrast,
                 "brightness": ImageEnhance.Brightness, "sharpness": ImageEnhance.Sharpness}
    if name in enhancers:
        return enhancers[name](image).enhance(1 + sign * 0.9 * share)
    if name == "rotate":
        turned = image.convert("RGBA").rotate(30 * share)
        return Image.composite(turned, Image.new("RGBA", image.size, (128,) * 4), turned).convert("RGB")
    if name in ("invert", "autocontrast", "equalize"):
        return getattr(ImageOps, name)(image)
    if name == "solarize":
        return ImageOps.solarize(image, 256 - 256 * share)
    if name == "posterize":
        return ImageOps.posterize(image, round(8 - 4 * share))
    shift = sign * 150 / 331 * share * side
    matrix = {"translate_x": (1, 0, shift, 0, 1, 0), "translate_y": (1, 0, 0, 0, 1, shift),
              "shear_y": (1, 0, 0, sign * 0.3 * share, 1, 0)}[name]
    how = Image.Resampling.BICUBIC if name == "shear_y" else Image.Resampling.NEAREST
    return image.transform(image.size, Image.Transform.AFFINE, matrix, how, fillcolor=fill)


def to_pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pillow(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_the_sub_policies_are_those_of_torchvision():
    theirs = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    renamed = tuple(tuple((NAMES[name], share, level) for name, share, level in pair) for pair in theirs)
    assert renamed == SUB_POLICIES
    assert {name for pair in SUB_POLICIES for name, _, _ in pair} == set(OPERATIONS) == set(NAMES.values())


@pytest.fixture
def float64():
    """torchvision makes its strengths of the default type; in float32 1 - 0.6 falls below 0.4 and some 24 become 23."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_the_same_draws_give_torchvisions_images_where_the_operations_are_the_same(monkeypatch, float64):
    """Operation by operation, order included: every image none of whose operations is another one in RPAT."""
    images, draws = noise(600), policies.draw(600, (32, 32), generator(1))
    got = apply_policy(images, draws)
    theirs = AutoAugment(AutoAugmentPolicy.CIFAR10, fill=(128, 128, 128))
    seen, compared = set(), 0
    for k in range(600):
        steps = sequence(draws, k)
        if any(name in OTHERS or (name == "rotate" and sign < 0) for name, _, sign in steps):
            continue
        drawn = int(draws.policy[k]), draws.chance[k], draws.sign[k]
        monkeypatch.setattr(AutoAugment, "get_params", staticmethod(lambda number, drawn=drawn: drawn))
        assert torch.equal(got[k], from_pillow(theirs(to_pillow(images[k])))), steps
        seen |= {name for name, _, _ in steps}
        compared += 1
    assert seen == set(OPERATIONS) - OTHERS and compared > 200


@pytest.mark.parametrize("side", [32, 64])
def test_the_same_draws_give_pillows_images_with_rpats_operations(side):
    count = 400 if side == 32 else 100
    images, draws = noise(count, 3, side, side), policies.draw(count, (side, side), generator(2))
    untouched = images.clone()
    got = apply_policy(images, draws)
    seen = set()
    for k in range(count):
        want = to_pillow(images[k])
        for name, level, sign in sequence(draws, k):
            want = pillow(want, name, level, sign)
            seen.add(name)
        assert torch.equal(got[k], from_pillow(want)), sequence(draws, k)
    assert torch.equal(images, untouched)
    assert side == 64 or seen == set(OPERATIONS)


def test_every_sub_policy_sign_and_probability_has_its_share():
    draws = policies.draw(50_000, (32, 32), generator(3))
    assert torch.bincount(draws.policy, minlength=25).sub(2000).abs().max() < 6 * 44
    assert (draws.sign.float().mean(0) - 0.5).abs().max() < 6 * 0.5 / 50_000 ** 0.5
    assert set(draws.sign.unique().tolist()) == {0, 1}
    share = (draws.chance < 0.3).float().mean(0)
    assert (share - 0.3).abs().max() < 6 * 0.46 / 50_000 ** 0.5
    both = ((draws.chance < 0.3).all(1)).float().mean()                  # the two stages are independent
    assert abs(both - 0.09) < 6 * 0.29 / 50_000 ** 0.5
    for centre in (draws.row, draws.column):
        assert torch.bincount(centre, minlength=32).sub(50_000 / 32).abs().max() < 6 * 39.5


def test_an_image_depends_on_its_own_draws_alone():
    """Any part of the batch, in any order, gives the same images; so ranks and views may be cut out of the draws."""
    images, draws = noise(40), policies.draw(40, (32, 32), generator(4))
    whole = policies.apply(images, draws)
    order = torch.randperm(40, generator=generator(5))
    shuffled = policies.apply(images[order], Draws(*(part[order] for part in draws)))
    assert torch.equal(shuffled, whole[order])
    halves = [policies.apply(images.view(2, 20, 3, 32, 32)[:, part].flatten(0, 1),
                             draws.take(part.start, part.stop, views=2)) for part in (slice(0, 8), slice(8, 20))]
    together = torch.cat([half.unflatten(0, (2, -1)) for half in halves], dim=1).flatten(0, 1)
    assert torch.equal(together, whole)
    assert policies.apply(images[:0], draws.take(0, 0)).shape == (0, 3, 32, 32)


def test_the_generator_decides_and_two_views_differ():
    images = noise(64)
    first, again, other = (autoaugment(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    views = autoaugment(images.repeat(2, 1, 1, 1), generator(1)).view(2, 64, 3, 32, 32)
    changed = (views[0] != views[1]).flatten(1).any(1)
    assert changed.float().mean() > 0.95


def test_nothing_waits_for_the_device():
    """On the meta device there are no values: whatever needed one on the host, or a shape made of one, would raise."""
    images = torch.empty(400, 3, 32, 32, dtype=torch.uint8, device="meta")
    draws = policies.draw(400, (32, 32), generator(6))
    assert {name for k in range(400) for name, _, _ in sequence(draws, k)} == set(OPERATIONS)
    out = policies.apply(images, draws)
    assert out.shape == images.shape and out.dtype == torch.uint8 and out.device.type == "meta"


def test_grey_images_go_through_and_other_channel_counts_are_refused():
    assert autoaugment(noise(50, 1, 8, 8), generator()).shape == (50, 1, 8, 8)
    with pytest.raises(UserError, match="1 or 3 channels, these have 4"):
        autoaugment(noise(5, 4), generator())


@settings(max_examples=40, deadline=None)
@given(height=st.integers(4, 40), width=st.integers(4, 40), seed=st.integers(0, 2**31))
def test_cutout_equals_the_brute_force_reference(height, width, seed):
    """Half of the shorter side, half of it before the centre, cut off at the borders."""
    draws = policies.draw(5, (height, width), generator(seed))
    images = torch.full((5, 3, height, width), 7, dtype=torch.uint8)
    got = cutout(images, draws.row, draws.column)
    reach = min(height, width) // 2 // 2
    for k in range(5):
        row, column = int(draws.row[k]), int(draws.column[k])
        want = images[k].clone()
        want[:, max(0, row - reach):row + reach, max(0, column - reach):column + reach] = 0
        assert torch.equal(got[k], want)


def test_cutout_at_its_corners_on_32_pixels():
    images = torch.ones(3, 1, 32, 32, dtype=torch.uint8)
    got = cutout(images, torch.tensor([0, 16, 31]), torch.tensor([0, 16, 31]))
    assert (got == 0).flatten(1).sum(1).tolist() == [64, 256, 81]
    assert not got[1, 0, 8:24, 8:24].any() and got[0, 0, 8, 0] == 1


def test_cutout_comes_last():
    """Its zeros are never turned grey, moved or inverted by an operation."""
    images, draws = noise(200, seed=9), policies.draw(200, (32, 32), generator(9))
    out = policies.apply(images, draws)
    holes = cutout(torch.ones_like(images), draws.row, draws.column) == 0
    assert holes.flatten(1).any(1).all() and not out[holes].any()


@pytest.mark.parametrize(("kind", "epochs", "first"), [
    ("base", 200, None), ("autoaug", 200, 0), ("autoaug_sche", 200, 100), ("autoaug_sche", 5, 2),
    ("autoaug_sche", 1, 0), ("autoaug_sche", 2, 1)])
def test_the_schedule_of_the_augmentation(kind, epochs, first):
    """autoaug_sche: counted from 1, the epochs above half of all."""
    used = [uses_policy(kind, epoch, epochs) for epoch in range(epochs)]
    assert used == [first is not None and epoch >= first for epoch in range(epochs)]


def test_an_unknown_augmentation_is_one_line():
    with pytest.raises(UserError, match="unknown augmentation 'auto': choose one of base, autoaug, autoaug_sche"):
        uses_policy("auto", 0, 10)
