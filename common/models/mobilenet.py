"""MobileNetV2 for small images: stem and second stage keep the size, so a 32x32 image ends as 4x4.

Source: Sandler et al. 2018 (arXiv:1801.04381) in the form of RPAT's `MobileNet`: ReLU without a ceiling, and a shortcut
around every block of stride 1, through a 1x1 convolution where the widths differ.  The names of the state dict are
RPAT's.
"""

from torch import Tensor, nn

from common.models.layers import activation_layer, conv1x1, conv3x3, norm_layer

# Per stage: expansion, channels at a base width of 32, blocks, stride of the first block.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM, HEAD = 32, 1280


class InvertedResidual(nn.Module):
    """1x1 to more channels, depthwise 3x3 (which carries the stride), 1x1 back; nothing after the last norm.

    (B,C_in,H,W) -> (B,C_out,H/stride,W/stride).
    """

    def __init__(self, channels_in: int, channels_out: int, expansion: int, stride: int, activation: str, norm: str):
        super().__init__()
        inner = expansion * channels_in
        self.conv1 = conv1x1(channels_in, inner)
        self.bn1 = norm_layer(norm, inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False)
        self.bn2 = norm_layer(norm, inner)
        self.conv3 = conv1x1(inner, channels_out)
        self.bn3 = norm_layer(norm, channels_out)
        self.shortcut = None
        if stride == 1:
            same = channels_in == channels_out
            layers = () if same else (conv1x1(channels_in, channels_out), norm_layer(norm, channels_out))
            self.shortcut = nn.Sequential(*layers)
        self.act = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        out = self.act(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out if self.shortcut is None else out + self.shortcut(x)


class MobileNetV2(nn.Module):
    """(B,channels,H,W) in [0,1] -> logits (B,classes); any H, W >= 8.  Torch's default initialisation.

    `width`: channels of the stem; the other widths keep their ratio to it (rounded down, at least 1).
    `normalise`: a module for the first step.
    """

    def __init__(self, *, classes: int, channels: int = 3, width: int = STEM, activation: str = "relu",
                 norm: str = "batch", normalise: nn.Module | None = None):
        super().__init__()
        self.normalise = normalise or nn.Identity()
        self.conv1 = conv3x3(channels, width)
        self.bn1 = norm_layer(norm, width)
        blocks = []
        channels_in = width
        for expansion, planes, count, stride in STAGES:
            channels_out = scaled(planes, width)
            for i in range(count):
                first = stride if i == 0 else 1
                blocks.append(InvertedResidual(channels_in, channels_out, expansion, first, activation, norm))
                channels_in = channels_out
        self.layers = nn.Sequential(*blocks)
        head = scaled(HEAD, width)
        self.conv2 = conv1x1(channels_in, head)
        self.bn2 = norm_layer(norm, head)
        self.linear = nn.Linear(head, classes)
        self.act = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(self.normalise(x))))
        out = self.act(self.bn2(self.conv2(self.layers(out))))
        return self.linear(out.mean((2, 3)))


def scaled(planes: int, width: int) -> int:
    """`planes` of a network whose stem has STEM channels, for one whose stem has `width`."""
    return max(1, planes * width // STEM)
