"""ResNets for small images: 3x3 stem, no max-pool, four stages of widths 1, 2, 4, 8 times the base.

Source: He et al. 2016 (arXiv:1512.03385) in the form that the robustness literature uses on CIFAR.  The names of the
state dict are those of the AdaRAT code and of RobustBench.
"""

from torch import Tensor, nn

from common.models.layers import activation_layer, conv1x1, conv3x3, norm_layer


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; (B,C_in,H,W) -> (B,planes,H/stride,W/stride)."""

    expansion = 1

    def __init__(self, channels_in: int, planes: int, stride: int, activation: str, norm: str):
        super().__init__()
        self.conv1 = conv3x3(channels_in, planes, stride)
        self.bn1 = norm_layer(norm, planes)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = norm_layer(norm, planes)
        self.shortcut = shortcut(channels_in, planes, stride, norm)
        self.act = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.act(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride), 1x1; (B,C_in,H,W) -> (B,4*planes,H/stride,W/stride)."""

    expansion = 4

    def __init__(self, channels_in: int, planes: int, stride: int, activation: str, norm: str):
        super().__init__()
        channels_out = self.expansion * planes
        self.conv1 = conv1x1(channels_in, planes)
        self.bn1 = norm_layer(norm, planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = norm_layer(norm, planes)
        self.conv3 = conv1x1(planes, channels_out)
        self.bn3 = norm_layer(norm, channels_out)
        self.shortcut = shortcut(channels_in, channels_out, stride, norm)
        self.act = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        out = self.act(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.act(out + self.shortcut(x))


def shortcut(channels_in: int, channels_out: int, stride: int, norm: str) -> nn.Sequential:
    """The identity, or a normalised 1x1 convolution where the shape changes."""
    if stride == 1 and channels_in == channels_out:
        return nn.Sequential()
    return nn.Sequential(conv1x1(channels_in, channels_out, stride), norm_layer(norm, channels_out))


class ResNet(nn.Module):
    """(B,channels,H,W) in [0,1] -> logits (B,classes); any H, W >= 8.  Torch's default initialisation.

    `blocks`: blocks per stage; `width`: channels of the first stage; `stem_stride`: of the first convolution (RPAT has
    2 for 64x64 images); `normalise`: a module for the first step.
    """

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, int, int, int], *, classes: int,
                 channels: int = 3, width: int = 64, stem_stride: int = 1, activation: str = "relu",
                 norm: str = "batch", normalise: nn.Module | None = None):
        super().__init__()
        self.normalise = normalise or nn.Identity()
        self.conv1 = conv3x3(channels, width, stem_stride)
        self.bn1 = norm_layer(norm, width)
        channels_in = width
        for stage, count in enumerate(blocks):
            planes = width * 2 ** stage
            stride = 1 if stage == 0 else 2
            layers = []
            for i in range(count):
                layers.append(block(channels_in, planes, stride if i == 0 else 1, activation, norm))
                channels_in = planes * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(channels_in, classes)
        self.act = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(self.normalise(x))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(out.mean((2, 3)))
