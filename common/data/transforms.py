"""The image operations of AutoAugment on whole batches, with one strength per image.

On every image each one returns, bit for bit, what Pillow's operation of that name returns: the released policies run
on Pillow, and its rounding differs from that of torchvision's tensor operations.  Nothing waits for the device.

Shapes: images uint8 (R,C,H,W) with 1 or 3 channels, any R; strengths float64 (R,).  What a geometric operation moves
in from outside is FILL.  R images, C channels, H and W pixels.
"""

from math import pi

import torch
from torch import Tensor

FILL = 128                                   # grey, RPAT's choice
LUMA = (19595, 38470, 7471)                  # ITU-R 601 weights of red, green and blue, times 2^16


def per_image(values: Tensor) -> Tensor:
    """(R,) -> (R,1,1,1)."""
    return values.view(-1, 1, 1, 1)


def invert(images: Tensor) -> Tensor:
    """255 - v."""
    return 255 - images


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """255 - v where v >= threshold (0..256), v elsewhere."""
    return torch.where(images < per_image(threshold), images, 255 - images)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """The highest `bits` (1..8) bits of each value; the others become 0."""
    lost = 2 ** (8 - per_image(bits).to(torch.int32)) - 1
    return images & (255 - lost).to(torch.uint8)


def autocontrast(images: Tensor) -> Tensor:
    """Each channel stretched to 0..255; a channel of one value stays."""
    low, high = (extreme(images, dim=(2, 3), keepdim=True).double() for extreme in (torch.amin, torch.amax))
    # Scaled before it is shifted, and in float64, as Pillow has it: otherwise 254 comes out for 255 at times.
    # A numerator that is a tensor: torch divides a number by a tensor as number * (1/tensor), which rounds twice.
    scale = torch.full_like(high, 255.0) / (high - low)
    stretched = (images * scale + -low * scale).clamp(0, 255)
    # Where the channel has one value, the scale is infinite and the result no number; it is not taken.
    return torch.where(high > low, stretched.nan_to_num(), images.double()).to(torch.uint8)


def equalize(images: Tensor) -> Tensor:
    """The histogram of each channel made as flat as a table of values can; a channel of too few values stays."""
    count, channels, height, width = images.shape
    values = images.flatten(2).long()
    counts = torch.zeros(count, channels, 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    brightest = counts.gather(2, values.amax(2, keepdim=True))
    step = (height * width - brightest) // 255                                           # (R,C,1)
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    flat = table.gather(2, values).to(torch.uint8).view_as(images)
    return torch.where(step.unsqueeze(3) > 0, flat, images)


def grey(images: Tensor) -> Tensor:
    """Luma, int32 (R,1,H,W), 0..255; of one channel itself."""
    values = images.int()
    if images.shape[1] == 1:
        return values
    red, green, blue = values.split(1, dim=1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue + 2 ** 15) >> 16


def blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """base + factor*(image - base), cut off to 0..255, fractions dropped: 0 gives the base, 1 the image, 2 overdoes."""
    start = base.float()
    return (start + per_image(factor).float() * (images.float() - start)).clamp(0, 255).to(torch.uint8)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black."""
    return blend(torch.zeros((), device=images.device), images, factor)


def colour(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image."""
    return blend(grey(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the flat image of the mean luma, rounded."""
    pixels = images.shape[2] * images.shape[3]
    total = grey(images).sum((2, 3), keepdim=True)
    return blend((2 * total + pixels) // (2 * pixels), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image smoothed by (1 1 1; 1 5 1; 1 1 1)/13; its border pixels stay as they are."""
    values = images.int()
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = values.clone()
    smooth[:, :, 1:-1, 1:-1] = (2 * (around + 4 * values[:, :, 1:-1, 1:-1]) + 13) // 26   # rounded
    return blend(smooth, images, factor)


def pick(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels at int64 rows, columns (R,H,W), taken at the border where they lie outside."""
    height, width = images.shape[2:]
    place = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    place = place.flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, place).view_as(images)


def moved(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels at int64 rows, columns, both broadcastable to (R,H,W); FILL where these lie outside."""
    rows, columns = torch.broadcast_tensors(rows, columns)
    height, width = images.shape[2:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return pick(images, rows, columns).masked_fill(~inside.unsqueeze(1), FILL)


def grid(images: Tensor) -> tuple[Tensor, Tensor]:
    """int64 row (1,H,1) and column (1,1,W) numbers."""
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
    return rows.view(1, -1, 1), columns.view(1, 1, -1)


def translate_x(images: Tensor, pixels: Tensor) -> Tensor:
    """To the left by `pixels`, rounded half up (negative: to the right)."""
    rows, columns = grid(images)
    return moved(images, rows, columns + (pixels + 0.5).floor().long().view(-1, 1, 1))


def translate_y(images: Tensor, pixels: Tensor) -> Tensor:
    """Up by `pixels`, rounded half up (negative: down)."""
    rows, columns = grid(images)
    return moved(images, rows + (pixels + 0.5).floor().long().view(-1, 1, 1), columns)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Counterclockwise about the middle, nearest pixel, in Pillow's fixed point: coordinates in units of 2^-16."""
    rows, columns = grid(images)
    height, width = images.shape[2:]
    angle = -degrees.view(-1, 1, 1) * (pi / 180)
    cos, sin = angle.cos(), angle.sin()
    left = width / 2 - cos * (width / 2) - sin * (height / 2)
    top = height / 2 + sin * (width / 2) - cos * (height / 2)
    source_column = fixed(left + 0.5 * (cos + sin)) + fixed(cos) * columns + fixed(sin) * rows
    source_row = fixed(top + 0.5 * (cos - sin)) - fixed(sin) * columns + fixed(cos) * rows
    return moved(images, source_row >> 16, source_column >> 16)


def fixed(values: Tensor) -> Tensor:
    """Rounded to int64 multiples of 2^-16."""
    return (values * 65536 + 0.5).floor().long()


def shear_y(images: Tensor, slope: Tensor) -> Tensor:
    """Each column moved up by slope * its middle, from the top left corner on; bicubic with a = -1, in float64."""
    rows, columns = grid(images)
    source = slope.view(-1, 1, 1) * (columns + 0.5) + (rows + 0.5)                       # (R,H,W)
    inside = (source >= 0) & (source < images.shape[2])
    first = (source - 0.5).floor()
    part = (source - 0.5 - first).unsqueeze(1)
    columns = columns.expand_as(source)
    a, b, c, d = (pick(images, first.long() + tap, columns).double() for tap in (-1, 0, 1, 2))
    cubic = b + part * ((c - a) + part * (2 * (a - b) + c - d + part * (b - a + d - c)))
    return torch.where(inside.unsqueeze(1), cubic.clamp(0, 255), FILL).to(torch.uint8)
