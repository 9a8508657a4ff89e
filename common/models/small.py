"""A small CNN for the tests and for 8x8 digits: three convolutions with batch norm, 56,554 parameters for 1x8x8 and 10
classes, about a million multiplications per 8x8 image."""

from torch import Tensor, nn

from common.models.layers import activation_layer, conv3x3, norm_layer


class SmallCNN(nn.Module):
    """(B,channels,H,W) in [0,1] -> logits (B,classes); any H, W >= 8.

    `width`: channels of the first convolution; `normalise`: a module for the first step.
    """

    def __init__(self, *, classes: int, channels: int = 3, width: int = 32, activation: str = "relu",
                 norm: str = "batch", normalise: nn.Module | None = None):
        super().__init__()
        self.normalise = normalise or nn.Identity()
        self.conv1 = conv3x3(channels, width)
        self.bn1 = norm_layer(norm, width)
        self.conv2 = conv3x3(width, 2 * width, stride=2)
        self.bn2 = norm_layer(norm, 2 * width)
        self.conv3 = conv3x3(2 * width, 2 * width)
        self.bn3 = norm_layer(norm, 2 * width)
        self.linear = nn.Linear(2 * width, classes)
        self.act = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(self.normalise(x))))
        out = self.act(self.bn2(self.conv2(out)))
        out = self.act(self.bn3(self.conv3(out)))
        return self.linear(out.mean((2, 3)))
