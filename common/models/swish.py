"""The swish networks of Gowal et al. 2020 (arXiv:2010.03593) and Rebuffi et al. 2021 (arXiv:2103.01946): SiLU, batch
norm of momentum 0.01, the padding of TensorFlow, and an input normalisation that belongs to the network.

DyART's `wrn-28-10-swish` and RobustBench's DMWideResNet and DMPreActResNet are these, with these names.  There the
normalisation is called `mean` and `std` (frozen parameters in DyART, buffers in RobustBench, absent from some files);
here it is a `Normalise`, so it stands in the state dict as `normalise.mean` and `normalise.std`.
"""

from math import sqrt

import torch.nn.functional as F
from torch import Tensor, nn

from common.models.layers import activation_layer, conv1x1, norm_layer

MOMENTUM = 0.01


class PadSame(nn.Module):
    """Zeros around an image for an unpadded 3x3 convolution of stride 2 that maps (H,W) to (ceil(H/2),ceil(W/2)).

    TensorFlow's `SAME`: right and bottom only where the side is even, as in all of the originals' sizes; where it is
    odd, all around.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (x.shape[-1] % 2, 1, x.shape[-2] % 2, 1))


def pad_same(stride: int) -> nn.Module:
    """What stands before `conv3x3_same`: nothing at stride 1, since that convolution pads by itself."""
    return nn.Identity() if stride == 1 else PadSame()


def conv3x3_same(channels_in: int, channels_out: int, stride: int) -> nn.Conv2d:
    """A 3x3 convolution without bias, of stride 1, or of stride 2 on what `PadSame` has padded."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1 if stride == 1 else 0, bias=False)


class SwishWideBlock(nn.Module):
    """norm, SiLU, 3x3, norm, SiLU, 3x3; a 1x1 shortcut, unpadded, acts on the activated input.

    (B,C_in,H,W) -> (B,C_out,ceil(H/stride),ceil(W/stride)).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: str):
        super().__init__()
        self.batchnorm_0 = norm_layer(norm, channels_in, momentum=MOMENTUM)
        self.conv_0 = conv3x3_same(channels_in, channels_out, stride)
        self.batchnorm_1 = norm_layer(norm, channels_out, momentum=MOMENTUM)
        self.conv_1 = conv3x3_same(channels_out, channels_out, 1)
        reshapes = stride != 1 or channels_in != channels_out
        self.shortcut = conv1x1(channels_in, channels_out, stride) if reshapes else None
        self.pad = pad_same(stride)
        self.act = activation_layer("silu")

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act(self.batchnorm_0(x))
        out = self.conv_1(self.act(self.batchnorm_1(self.conv_0(self.pad(activated)))))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class SwishStage(nn.Module):
    """A stage of wide blocks; the first one changes the shape."""

    def __init__(self, blocks: int, channels_in: int, channels_out: int, stride: int, norm: str):
        super().__init__()
        first = SwishWideBlock(channels_in, channels_out, stride, norm)
        self.block = nn.Sequential(first, *(SwishWideBlock(channels_out, channels_out, 1, norm)
                                            for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class SwishWideResNet(nn.Module):
    """WRN-depth-widen-swish: (B,channels,H,W) in [0,1] -> logits (B,classes); any H, W >= 8.

    Initialisation: convolutions N(0, 2/(k*k*out)), normalisation layers 1 and 0, the last bias 0.
    `normalise`: a module for the first step.
    """

    def __init__(self, depth: int, widen: int, *, classes: int, channels: int = 3, norm: str = "batch",
                 normalise: nn.Module | None = None):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"the depth of a wide ResNet is 6*n + 4, not {depth}")
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.normalise = normalise or nn.Identity()
        self.init_conv = conv3x3_same(channels, widths[0], 1)
        self.layer = nn.Sequential(*(SwishStage(blocks, widths[i], widths[i + 1], 1 if i == 0 else 2, norm)
                                     for i in range(3)))
        self.batchnorm = norm_layer(norm, widths[3], momentum=MOMENTUM)
        self.logits = nn.Linear(widths[3], classes)
        self.act = activation_layer("silu")
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                side, _ = module.kernel_size
                nn.init.normal_(module.weight, 0.0, sqrt(2 / (side * side * module.out_channels)))
        nn.init.zeros_(self.logits.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(self.init_conv(self.normalise(x)))
        return self.logits(self.act(self.batchnorm(out)).mean((2, 3)))


class SwishPreActBlock(nn.Module):
    """norm, SiLU, 3x3, norm, SiLU, 3x3; a 3x3 shortcut, padded alike, acts on the input before its activation.

    (B,C_in,H,W) -> (B,C_out,ceil(H/stride),ceil(W/stride)).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: str):
        super().__init__()
        self.batchnorm_0 = norm_layer(norm, channels_in, momentum=MOMENTUM)
        self.conv_2d_1 = conv3x3_same(channels_in, channels_out, stride)
        self.batchnorm_1 = norm_layer(norm, channels_out, momentum=MOMENTUM)
        self.conv_2d_2 = conv3x3_same(channels_out, channels_out, 1)
        reshapes = stride != 1 or channels_in != channels_out
        self.shortcut = conv3x3_same(channels_in, channels_out, stride) if reshapes else None
        self.pad = pad_same(stride)
        self.act = activation_layer("silu")

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act(self.batchnorm_0(x))
        out = self.conv_2d_2(self.act(self.batchnorm_1(self.conv_2d_1(self.pad(activated)))))
        return out + (x if self.shortcut is None else self.shortcut(self.pad(x)))


class SwishPreActResNet(nn.Module):
    """(B,channels,H,W) in [0,1] -> logits (B,classes); any H, W >= 8.  Torch's default initialisation.

    `blocks`: blocks per stage; `width`: channels of the first stage; `normalise`: a module for the first step.
    """

    def __init__(self, blocks: tuple[int, int, int, int], *, classes: int, channels: int = 3, width: int = 64,
                 norm: str = "batch", normalise: nn.Module | None = None):
        super().__init__()
        self.normalise = normalise or nn.Identity()
        self.conv_2d = conv3x3_same(channels, width, 1)
        channels_in = width
        for stage, count in enumerate(blocks):
            planes = width * 2 ** stage
            stride = 1 if stage == 0 else 2
            layers = []
            for i in range(count):
                layers.append(SwishPreActBlock(channels_in, planes, stride if i == 0 else 1, norm))
                channels_in = planes
            self.add_module(f"layer_{stage}", nn.Sequential(*layers))
        self.batchnorm = norm_layer(norm, channels_in, momentum=MOMENTUM)
        self.logits = nn.Linear(channels_in, classes)
        self.act = activation_layer("silu")

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv_2d(self.normalise(x))
        out = self.layer_3(self.layer_2(self.layer_1(self.layer_0(out))))
        return self.logits(self.act(self.batchnorm(out)).mean((2, 3)))
