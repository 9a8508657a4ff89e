"""Pre-activation ResNet for small images: normalisation and activation stand before each convolution and at the end.

Source: He et al. 2016 (arXiv:1603.05027).  The 1x1 shortcuts act on the activated input, identity shortcuts carry the
raw one.  This is RPAT's `PreActResNet18`, DyART's `preact-resnet*` and RobustBench's PreActResNet whose shortcut
follows the activation and which has a batch norm before the last layer.  Other members of the family differ in these
two places: `preactresnet18-raw`, which fast adversarial training made known (arXiv:2001.03994), has neither; for those
with SiLU see swish.py.
"""

from torch import Tensor, nn

from common.models.layers import activation_layer, conv1x1, conv3x3, norm_layer


class PreActBlock(nn.Module):
    """norm, activation, 3x3, norm, activation, 3x3; (B,C_in,H,W) -> (B,planes,H/stride,W/stride)."""

    expansion = 1

    def __init__(self, channels_in: int, planes: int, stride: int, activation: str, norm: str):
        super().__init__()
        self.bn1 = norm_layer(norm, channels_in)
        self.conv1 = conv3x3(channels_in, planes, stride)
        self.bn2 = norm_layer(norm, planes)
        self.conv2 = conv3x3(planes, planes)
        reshapes = stride != 1 or channels_in != planes
        self.shortcut = nn.Sequential(conv1x1(channels_in, planes, stride)) if reshapes else None
        self.act = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act(self.bn1(x))
        out = self.conv2(self.act(self.bn2(self.conv1(activated))))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class RawShortcutBlock(PreActBlock):
    """The same, but that every shortcut starts from the raw input."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.act(self.bn2(self.conv1(self.act(self.bn1(x))))))
        return out + (x if self.shortcut is None else self.shortcut(x))


class PreActBottleneck(nn.Module):
    """norm, activation, 1x1, norm, activation, 3x3 (which carries the stride), norm, activation, 1x1.

    (B,C_in,H,W) -> (B,4*planes,H/stride,W/stride).
    """

    expansion = 4

    def __init__(self, channels_in: int, planes: int, stride: int, activation: str, norm: str):
        super().__init__()
        channels_out = self.expansion * planes
        self.bn1 = norm_layer(norm, channels_in)
        self.conv1 = conv1x1(channels_in, planes)
        self.bn2 = norm_layer(norm, planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn3 = norm_layer(norm, planes)
        self.conv3 = conv1x1(planes, channels_out)
        reshapes = stride != 1 or channels_in != channels_out
        self.shortcut = nn.Sequential(conv1x1(channels_in, channels_out, stride)) if reshapes else None
        self.act = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act(self.bn1(x))
        out = self.conv2(self.act(self.bn2(self.conv1(activated))))
        out = self.conv3(self.act(self.bn3(out)))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class PreActResNet(nn.Module):
    """(B,channels,H,W) in [0,1] -> logits (B,classes); any H, W >= 8.  Torch's default initialisation.

    `blocks`: blocks per stage; `block`: of which kind; `width`: channels of the first stage (a quarter of its output
    with bottlenecks); `normalise`: a module for the first step; `last_norm`: normalisation and activation stand before
    the last layer.
    """

    def __init__(self, blocks: tuple[int, int, int, int], *, classes: int, channels: int = 3, width: int = 64,
                 activation: str = "relu", norm: str = "batch", normalise: nn.Module | None = None,
                 block: type[PreActBlock] | type[PreActBottleneck] = PreActBlock, last_norm: bool = True):
        super().__init__()
        self.normalise = normalise or nn.Identity()
        self.conv1 = conv3x3(channels, width)
        channels_in = width
        for stage, count in enumerate(blocks):
            planes = width * 2 ** stage
            stride = 1 if stage == 0 else 2
            layers = []
            for i in range(count):
                layers.append(block(channels_in, planes, stride if i == 0 else 1, activation, norm))
                channels_in = planes * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        if last_norm:
            self.bn = norm_layer(norm, channels_in)
        self.last_norm = last_norm
        self.linear = nn.Linear(channels_in, classes)
        self.act = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.normalise(x))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear((self.act(self.bn(out)) if self.last_norm else out).mean((2, 3)))
