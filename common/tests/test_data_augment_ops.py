"""The operations of AutoAugment return, bit for bit, what Pillow returns; Pillow is called here as RPAT's paper notes
describe the released policies."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from common.data import transforms
from common.data.policies import ENHANCING, GRADED, OPERATIONS, PLAIN, SIGNED, magnitude

ENHANCERS = {"brightness": ImageEnhance.Brightness, "colour": ImageEnhance.Color, "contrast": ImageEnhance.Contrast,
             "sharpness": ImageEnhance.Sharpness}
POINTWISE = {"invert": lambda image, value: ImageOps.invert(image),
             "autocontrast": lambda image, value: ImageOps.autocontrast(image),
             "equalize": lambda image, value: ImageOps.equalize(image),
             "solarize": lambda image, value: ImageOps.solarize(image, value),
             "posterize": lambda image, value: ImageOps.posterize(image, int(value))}
AFFINE = {"translate_x": lambda value: (1, 0, value, 0, 1, 0), "translate_y": lambda value: (1, 0, 0, 0, 1, value),
          "shear_y": lambda value: (1, 0, 0, value, 1, 0)}


def pillow(name: str, image: Image.Image, value: float) -> Image.Image:
    """One image through Pillow's operation."""
    fill = (128,) * len(image.getbands()) if image.mode == "RGB" else 128
    if name in ENHANCERS:
        return ENHANCERS[name](image).enhance(value)
    if name in POINTWISE:
        return POINTWISE[name](image, value)
    if name == "rotate":
        return image.rotate(value, Image.Resampling.NEAREST, fillcolor=fill)
    how = Image.Resampling.BICUBIC if name == "shear_y" else Image.Resampling.NEAREST
    return image.transform(image.size, Image.Transform.AFFINE, AFFINE[name](value), how, fillcolor=fill)


def to_pillow(image: torch.Tensor) -> Image.Image:
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array if len(image) == 3 else array[:, :, 0])


def from_pillow(image: Image.Image) -> torch.Tensor:
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Noise, smooth slopes of little contrast, few values, and one value: in turn."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    slope = torch.linspace(0, 60, height * width).view(height, width)
    for k in range(count):
        start = torch.randint(0, 150, (channels, 1, 1), generator=generator)
        if k % 4 == 1:
            images[k] = (start + slope * (1 + k % 3) / 2).to(torch.uint8)
        elif k % 4 == 2:
            images[k] = (images[k] // 80) * 37 + 20
        elif k % 4 == 3 and k % 8 == 3:
            images[k] = start.to(torch.uint8)
    return images


def ours(name: str, images: torch.Tensor, values: list[float]) -> torch.Tensor:
    strengths = torch.tensor(values, dtype=torch.float64)
    return PLAIN[name](images) if name in PLAIN else GRADED[name](images, strengths)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (3, 64, 64), (1, 8, 8), (3, 15, 22)])
def test_every_operation_at_every_level_and_sign_equals_pillows(name, channels, height, width):
    levels = [(level, sign) for level in range(10) for sign in (-1, 1)] if name in GRADED else [(None, 1)] * 20
    images = pictures(len(levels), channels, height, width)
    values = [magnitude(name, level, sign, height, width) for level, sign in levels]
    untouched = images.clone()
    got = ours(name, images, values)
    assert got.dtype == torch.uint8 and torch.equal(images, untouched)
    for k, value in enumerate(values):
        want = from_pillow(pillow(name, to_pillow(images[k]), value))
        assert torch.equal(got[k], want), (name, levels[k], (got[k].int() - want.int()).abs().max())


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(OPERATIONS), seed=st.integers(0, 2**31), height=st.integers(3, 40),
       width=st.integers(3, 40), level=st.floats(0, 9), sign=st.sampled_from([-1, 1]))
def test_strengths_between_the_levels_and_odd_sizes_equal_pillows_too(name, seed, height, width, level, sign):
    images = pictures(4, 3, height, width, seed)
    value = magnitude(name, level if name in GRADED else None, sign, height, width)
    if name in ("translate_x", "translate_y"):
        value = round(value, 2) + 0.003        # Pillow adds up steps: a sum that ends at a half is rounded its own way
    got = ours(name, images, [value] * 4)
    for image, result in zip(images, got, strict=True):
        assert torch.equal(result, from_pillow(pillow(name, to_pillow(image), value)))


def test_the_strengths_of_the_paper_notes():
    """0.3, 150/331 of the side, 30 degrees, 1 +- 0.9, solarize from 256, posterize to 8..4 bits; who has a sign."""
    assert magnitude("shear_y", 9, -1, 32, 32) == -0.3
    assert magnitude("translate_x", 9, 1, 32, 64) == pytest.approx(150 / 331 * 64)
    assert magnitude("translate_y", 3, -1, 32, 64) == pytest.approx(-150 / 331 / 3 * 32)
    assert magnitude("rotate", 9, -1, 32, 32) == magnitude("rotate", 9, 1, 32, 32) == 30
    assert [magnitude("colour", 9, sign, 8, 8) for sign in (-1, 1)] == pytest.approx([0.1, 1.9])
    assert magnitude("solarize", 0, -1, 8, 8) == 256 and magnitude("solarize", 9, 1, 8, 8) == 0
    assert [magnitude("posterize", level, 1, 8, 8) for level in range(10)] == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]
    assert magnitude("equalize", None, -1, 8, 8) == 0
    assert set(SIGNED) | set(ENHANCING) < set(GRADED)


def test_autocontrast_rounds_as_pillow_for_every_range_of_values():
    """The brightest value of a channel becomes 254 or 255, as float64 has it: every darkest and brightest in turn."""
    low, high = torch.triu_indices(256, 256).to(torch.uint8)
    images = torch.stack((low, high, (low.int() + high.int()).div(2).to(torch.uint8)), 1).view(1, 1, -1, 3)
    images = images.permute(2, 1, 0, 3).contiguous()                                    # (32896,1,1,3)
    got = transforms.autocontrast(images)
    for lowest, highest, result in list(zip(low.tolist(), high.tolist(), got, strict=True))[::7]:
        row = np.array([[lowest, highest, (lowest + highest) // 2]], dtype=np.uint8)
        assert torch.equal(result, from_pillow(ImageOps.autocontrast(Image.fromarray(row))))


def test_rotation_is_counterclockwise_and_what_comes_in_is_grey():
    images = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    images[0, 0, 4, 7] = 200                                             # right of the middle
    out = transforms.rotate(images, torch.tensor([90.0 - 1e-6], dtype=torch.float64))
    assert out[0, 0, 1, 4] == 200                                        # above it
    corner = transforms.rotate(images, torch.tensor([45.0], dtype=torch.float64))[0, 0, 0, 0]
    assert corner == transforms.FILL == 128


def test_level_zero_changes_nothing():
    images = pictures(8, 3, 32, 32)
    for name in (*ENHANCING, *SIGNED, "rotate", "solarize", "posterize"):
        value = magnitude(name, 0, 1, 32, 32)
        assert torch.equal(ours(name, images, [value] * 8), images), name


def test_each_image_is_changed_by_its_own_strength():
    images = pictures(6, 3, 16, 16)
    values = [magnitude("brightness", level, sign, 16, 16) for level, sign in zip(range(6), (-1, 1) * 3, strict=True)]
    together = ours("brightness", images, values)
    for k, value in enumerate(values):
        assert torch.equal(together[k:k + 1], ours("brightness", images[k:k + 1], [value]))
