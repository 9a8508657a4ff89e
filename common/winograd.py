"""3x3 convolutions in float32 with a quarter of the products: Winograd's F(4x4, 3x3) (Lavin and Gray 2016).

    Y = A^T [(G g G^T) * (B^T d B)] A      d: 6x6 inputs of a tile, g: the 3x3 filter, Y: 4x4 outputs;  * elementwise

Summed over the input channels, the product in the middle is 36 matrix products (tiles x C) (C x O).  The transforms
are linear in the 36 numbers of a tile, so each is a matrix product too, with a Kronecker square.  The gradient in the
input is the transposed map, with the same transformed filters.

It rounds about eight times as coarsely as a direct convolution does: 1e-5 of the largest output.  For networks whose
weights are constants, on a CPU, where float32 has no faster multiplier to go to.
"""

from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

FEWEST_CHANNELS = 96          # with fewer the transforms cost what the products save
CHUNK = 2 ** 18

INPUT = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
         (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))                      # B^T
FILTER = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
          (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))                        # G
OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))  # A^T


@cache
def on_tiles(matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """The map X -> M X M^T as a matrix on X written row after row: the Kronecker square of M, float32."""
    one = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one, one).float()


def transformed(weight: Tensor) -> Tensor:
    """G g G^T of filters (O,C,3,3): (36,C,O)."""
    outputs, channels = weight.shape[:2]
    return (on_tiles(FILTER) @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, channels, outputs)


def chunks(images: int, tiles: int, filters: Tensor) -> Iterator[slice]:
    """Slices of the batch, `tiles` for each image, whose transforms stay in the cache; larger ones where the filters
    (36,C,O) do not, as every chunk reads them all.
    """
    size = max(1, max(CHUNK, filters.numel() // 4) // (36 * tiles * max(filters.shape[1:])))
    return (slice(first, min(first + size, images)) for first in range(0, images, size))


def channels_last(images: int, channels: int, height: int, width: int, like: Tensor) -> Tensor:
    """A tensor of that shape, to be filled."""
    return torch.empty((images, channels, height, width), dtype=like.dtype, device=like.device,
                       memory_format=torch.channels_last)


class Winograd(torch.autograd.Function):
    """x (B,C,H,W), H and W multiples of 4; filters (36,C,O) transformed; bias (O,) -> (B,O,H,W) in channels-last.

    Only x gets a gradient.
    """

    @staticmethod
    def forward(ctx, x: Tensor, filters: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(filters)
        (images, channels, height, width), outputs = x.shape, filters.shape[2]
        down, across = height // 4, width // 4
        out = channels_last(images, outputs, height, width, x)
        blocks = out.permute(0, 2, 3, 1).view(images, down, 4, across, 4, outputs)
        for part in chunks(images, down * across, filters):
            padded = F.pad(x[part].permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
            row, column = padded.stride(1), padded.stride(2)
            # Every tile's own 6x6 pixels, tiles 4 apart: (6,6,b,down,across,C), the numbers of a tile in front.
            tiles = padded.as_strided((6, 6, len(padded), down, across, channels),
                                      (row, column, padded.stride(0), 4 * row, 4 * column, 1))
            seen = on_tiles(INPUT) @ tiles.reshape(36, -1)
            product = torch.bmm(seen.view(36, -1, channels), filters)
            found = (on_tiles(OUTPUT) @ product.view(36, -1)).view(4, 4, -1, down, across, outputs)
            torch.add(found.permute(2, 3, 0, 4, 1, 5), bias, out=blocks[part])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        filters, = ctx.saved_tensors
        (images, outputs, height, width), channels = gradient.shape, filters.shape[1]
        down, across = height // 4, width // 4
        out = channels_last(images, channels, height, width, gradient)
        blocks = gradient.permute(0, 2, 3, 1).reshape(images, down, 4, across, 4, outputs)
        for part in chunks(images, down * across, filters):
            product = on_tiles(OUTPUT).T @ blocks[part].permute(2, 4, 0, 1, 3, 5).reshape(16, -1)
            seen = torch.bmm(product.view(36, -1, outputs), filters.transpose(1, 2))
            tiles = (on_tiles(INPUT).T @ seen.view(36, -1)).view(6, 6, -1, down, across, channels)
            padded = overlapped(tiles.permute(2, 3, 0, 4, 1, 5))
            out[part] = padded[:, 1:height + 1, 1:width + 1].permute(0, 3, 1, 2)
        return out, None, None


def overlapped(tiles: Tensor) -> Tensor:
    """The sum of tiles (b,D,6,A,6,C) laid 4 apart: (b,4D+4,4A+4,C), of which the last two rows and columns are 0."""
    images, down, _, across, _, channels = tiles.shape
    out = tiles.new_empty(images, down + 1, 4, across + 1, 4, channels)
    out[:, down], out[:, :, :, across] = 0, 0
    out[:, :down, :, :across] = tiles[:, :, :4, :, :4]
    out[:, 1:, :2, :across] += tiles[:, :, 4:, :, :4]
    out[:, :down, :, 1:, :2] += tiles[:, :, :4, :, 4:]
    out[:, 1:, :2, 1:, :2] += tiles[:, :, 4:, :, 4:]
    return out.view(images, 4 * (down + 1), 4 * (across + 1), channels)


def suits(convolution: nn.Module) -> bool:
    """Whether it is a 3x3 convolution of stride 1 and padding 1, with enough channels for Winograd's way to pay."""
    return (isinstance(convolution, nn.Conv2d) and convolution.kernel_size == (3, 3) and convolution.stride == (1, 1)
            and convolution.padding in ((1, 1), "same") and convolution.padding_mode == "zeros"
            and convolution.dilation == (1, 1) and convolution.groups == 1 and convolution.weight.device.type == "cpu"
            and min(convolution.in_channels, convolution.out_channels) >= FEWEST_CHANNELS)


class Convolution(nn.Module):
    """Stands in for a convolution that `suits`.  Its filters are transformed by `take` and held until `drop`."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.direct = convolution
        self.filters: Tensor | None = None

    @torch.no_grad()
    def take(self) -> None:
        self.filters = transformed(self.direct.weight)

    def drop(self) -> None:
        self.filters = None

    def forward(self, x: Tensor) -> Tensor:
        if self.filters is None or x.shape[2] % 4 or x.shape[3] % 4 or not len(x):
            return self.direct(x)
        bias = x.new_zeros(()) if self.direct.bias is None else self.direct.bias
        return Winograd.apply(x, self.filters, bias)


def replace(graph: fx.GraphModule) -> list[Convolution]:
    """Put a stand-in in the place of each convolution that `suits`; the stand-ins."""
    found = []
    for name, module in list(graph.named_modules()):
        if suits(module):
            parent, _, leaf = name.rpartition(".")
            found.append(Convolution(module))
            setattr(graph.get_submodule(parent), leaf, found[-1])
    return found
