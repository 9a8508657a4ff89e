"""Wide ResNets: three stages of pre-activation blocks, widths 16, 32, 64 times the widen factor.

Source: Zagoruyko and Komodakis 2016 (arXiv:1605.07146), in the form of the TRADES code, which AdaRAT, RPAT and
RobustBench share, and with its names.
"""

from math import sqrt

from torch import Tensor, nn

from common.models.layers import activation_layer, conv1x1, conv3x3, norm_layer


class WideBlock(nn.Module):
    """norm, activation, 3x3, norm, activation, dropout, 3x3; a 1x1 shortcut acts on the activated input.

    (B,C_in,H,W) -> (B,C_out,H/stride,W/stride).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, dropout: float, activation: str, norm: str):
        super().__init__()
        self.bn1 = norm_layer(norm, channels_in)
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.bn2 = norm_layer(norm, channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)
        reshapes = stride != 1 or channels_in != channels_out
        self.convShortcut = conv1x1(channels_in, channels_out, stride) if reshapes else None
        self.act = activation_layer(activation)
        # A module, not the function: a traced network must still follow train() and eval().
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act(self.bn1(x))
        out = self.dropout(self.act(self.bn2(self.conv1(activated))))
        return self.conv2(out) + (x if self.convShortcut is None else self.convShortcut(activated))


class WideStage(nn.Module):
    """A stage of blocks; the first one changes the shape."""

    def __init__(self, blocks: int, channels_in: int, channels_out: int, stride: int, dropout: float, activation: str,
                 norm: str):
        super().__init__()
        first = WideBlock(channels_in, channels_out, stride, dropout, activation, norm)
        rest = [WideBlock(channels_out, channels_out, 1, dropout, activation, norm) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-widen: (B,channels,H,W) in [0,1] -> logits (B,classes); any H, W >= 8.

    Initialisation: convolutions N(0, 2/(k*k*out)), normalisation layers 1 and 0, the last bias 0.
    `dropout`: probability after the second activation of each block; `stem_stride`: of the first convolution (RPAT has
    2 for 64x64 images); `normalise`: a module for the first step.
    """

    def __init__(self, depth: int, widen: int, *, classes: int, channels: int = 3, dropout: float = 0.0,
                 stem_stride: int = 1, activation: str = "relu", norm: str = "batch",
                 normalise: nn.Module | None = None):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"the depth of a wide ResNet is 6*n + 4, not {depth}")
        blocks = (depth - 4) // 6
        stem, one, two, three = 16, 16 * widen, 32 * widen, 64 * widen
        self.normalise = normalise or nn.Identity()
        self.conv1 = conv3x3(channels, stem, stem_stride)
        self.block1 = WideStage(blocks, stem, one, 1, dropout, activation, norm)
        self.block2 = WideStage(blocks, one, two, 2, dropout, activation, norm)
        self.block3 = WideStage(blocks, two, three, 2, dropout, activation, norm)
        self.bn1 = norm_layer(norm, three)
        self.fc = nn.Linear(three, classes)
        self.act = activation_layer(activation)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                side, _ = module.kernel_size
                nn.init.normal_(module.weight, 0.0, sqrt(2 / (side * side * module.out_channels)))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.normalise(x))
        out = self.block3(self.block2(self.block1(out)))
        return self.fc(self.act(self.bn1(out)).mean((2, 3)))
