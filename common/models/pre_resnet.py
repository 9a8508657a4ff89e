"""RPAT's `pre_resnet18` (its part 1): a pre-activation ResNet with normalisation and activation after the stem, too.

It differs from `preact_resnet` in three places: the stem is followed by norm and activation, nothing follows the last
block, and identity shortcuts carry the activated input instead of the raw one.  Names of the state dict as RPAT's.
"""

from torch import Tensor, nn

from common.models.layers import activation_layer, conv3x3, norm_layer
from common.models.preact_resnet import PreActBlock


class ActivatedShortcutBlock(PreActBlock):
    """norm, activation, 3x3, norm, activation, 3x3; every shortcut starts behind the first activation."""

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act(self.bn1(x))
        out = self.conv2(self.act(self.bn2(self.conv1(activated))))
        return out + (activated if self.shortcut is None else self.shortcut(activated))


class PreResNet(nn.Module):
    """(B,channels,H,W) in [0,1] -> logits (B,classes); any H, W >= 8.

    Torch's default initialisation.  `blocks`: blocks per stage; `width`: channels of the first stage; `stem_stride`: 1,
    or 2 as RPAT has it for 64x64 images; `normalise`: a module for the first step.
    """

    def __init__(self, blocks: tuple[int, int, int, int], *, classes: int, channels: int = 3, width: int = 64,
                 stem_stride: int = 1, activation: str = "relu", norm: str = "batch",
                 normalise: nn.Module | None = None):
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
                layers.append(ActivatedShortcutBlock(channels_in, planes, stride if i == 0 else 1, activation, norm))
                channels_in = planes
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(channels_in, classes)
        self.act = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(self.normalise(x))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(out.mean((2, 3)))
