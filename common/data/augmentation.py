"""Random crops, flips and rotations of uint8 images, each image its own, in a few vectorised steps on any device."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError

CropMode = Literal["zero", "reflect"]
CROP_MODES = ("zero", "reflect")


class Draws(NamedTuple):
    """What was drawn for R images; None where it is not asked for."""

    top: Tensor | None         # int64 (R,), row of the padded image at which the crop starts, 0..2*crop
    left: Tensor | None        # int64 (R,), its column, 0..2*crop
    flip: Tensor | None        # bool (R,)
    angle: Tensor | None = None  # float32 (R,), degrees, counter-clockwise

    def take(self, start: int, stop: int, views: int) -> "Draws":
        """Rows start..stop-1 of each of the `views` equal parts."""
        return Draws(*(part if part is None else part.view(views, -1)[:, start:stop].reshape(-1) for part in self))


def draw(rows: int, generator: torch.Generator, crop: int, flip: bool, rotate: float = 0.0) -> Draws:
    """Independent draws per image, uniform over the (2*crop+1)^2 crops, the two directions, and the angles from
    -rotate to rotate degrees, on the generator's device.  Always drawn in this order: top and left (if crop > 0), flip
    (if asked for), angle (if rotate > 0)."""
    device = generator.device
    top = left = flips = angles = None
    if crop:
        top, left = torch.randint(0, 2 * crop + 1, (2, rows), generator=generator, device=device)
    if flip:
        flips = torch.randint(0, 2, (rows,), generator=generator, device=device).bool()
    if rotate:
        angles = (2 * torch.rand(rows, generator=generator, device=device) - 1) * rotate
    return Draws(top, left, flips, angles)


def augment(images: Tensor, generator: torch.Generator, crop: int = 0, crop_mode: CropMode = "zero",
            flip: bool = False, rotate: float = 0.0) -> Tensor:
    """uint8 (B,C,H,W) -> uint8 (B,C,H,W): each image padded by `crop` pixels on every side, cropped back to H x W at
    its own random place, then mirrored left-right with probability 1/2, then rotated about its centre by up to
    `rotate` degrees to either side (nearest pixel, black where there is none, as torchvision's RandomRotation).

    crop_mode: "zero" pads black; "reflect" mirrors at the border pixel without repeating it, as numpy's "reflect".
    `generator` lives on the device of `images`.  Raises UserError for a crop that the image size does not allow.
    """
    check_crop(crop, crop_mode, images.shape[-2:])
    check_rotation(rotate)
    return apply(images, draw(len(images), generator, crop, flip, rotate), crop, crop_mode)


def check_crop(crop: int, crop_mode: str, size: tuple[int, ...]) -> None:
    """UserError unless images of `size` (H,W) can be padded by `crop` in this mode."""
    if crop_mode not in CROP_MODES:
        raise UserError(f"unknown crop mode {crop_mode!r}: choose from {', '.join(CROP_MODES)}", code="E-AUGMENT")
    if crop < 0:
        raise UserError(f"crop {crop} is negative: give the padding in pixels, 0 for none", code="E-AUGMENT")
    if crop_mode == "reflect" and crop >= min(size):
        raise UserError(f"reflect padding by {crop} pixels needs images larger than {crop} pixels, "
                        f"these are {size[0]}x{size[1]}: use a smaller crop or zero padding", code="E-AUGMENT")


def check_rotation(rotate: float) -> None:
    """UserError unless `rotate` is a largest angle in degrees."""
    if not 0 <= rotate <= 180:
        raise UserError(f"rotation by up to {rotate} degrees: give 0 (none) to 180", code="E-AUGMENT")


def apply(images: Tensor, draws: Draws, crop: int, crop_mode: CropMode) -> Tensor:
    """Crop, flip, then rotate uint8 (B,C,H,W) as `draws` says."""
    if draws.top is not None:
        images = _cropped(images, draws.top, draws.left, crop, crop_mode)
    if draws.flip is not None:
        # Choosing whole images among both directions: 4 times as fast as torch.where on a CPU, for it copies memory.
        rows = torch.arange(len(images), device=images.device)
        images = torch.cat((images, images.flip(3))).index_select(0, rows + len(images) * draws.flip)
    return images if draws.angle is None else _rotated(images, draws.angle)


def _cropped(images: Tensor, top: Tensor, left: Tensor, crop: int, crop_mode: CropMode) -> Tensor:
    """Only the batch is padded.  Every row of a crop is a run of W bytes of the padded batch: one gather of runs."""
    count, channels, height, width = images.shape
    padded = _padded(images, crop, crop_mode).contiguous()
    tall, wide = padded.shape[2:]
    device = images.device
    planes = torch.arange(count * channels, device=device).view(count, channels, 1)
    rows = top.view(-1, 1, 1) + torch.arange(height, device=device)                      # (B,1,H)
    starts = (planes * tall + rows) * wide + left.view(-1, 1, 1)                         # (B,C,H)
    # All runs of W consecutive bytes, as a view without a copy.
    runs = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
    return runs.index_select(0, starts.view(-1)).view(count, channels, height, width)


def _padded(images: Tensor, crop: int, crop_mode: CropMode) -> Tensor:
    if crop_mode == "zero":
        return F.pad(images, (crop, crop, crop, crop))
    for dim in (3, 2):             # torch's own reflection padding does not take uint8 on every device
        size = images.shape[dim]
        before = images.narrow(dim, 1, crop).flip(dim)
        after = images.narrow(dim, size - 1 - crop, crop).flip(dim)
        images = torch.cat((before, images, after), dim)
    return images


def _rotated(images: Tensor, degrees: Tensor) -> Tensor:
    """Each pixel of the result takes the one in which its centre lies after the turn back; black outside."""
    height, width = images.shape[2:]
    angle = (degrees * (math.pi / 180)).view(-1, 1, 1)
    cos, sin = angle.cos(), angle.sin()
    down = torch.arange(height, device=images.device).view(1, -1, 1) + 0.5 - height / 2
    right = torch.arange(width, device=images.device).view(1, 1, -1) + 0.5 - width / 2
    column = (cos * right - sin * down + width / 2).floor().long()                       # (B,H,W)
    row = (sin * right + cos * down + height / 2).floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).flatten(1)
    turned = images.flatten(2).gather(2, source[:, None].expand(-1, images.shape[1], -1))
    return turned.view(images.shape) * inside[:, None]
