"""The pieces that the networks share: convolutions, and the two choices, activation and normalisation layer."""

from math import gcd

from torch import nn

from common.errors import UserError

ACTIVATIONS = {"relu": lambda: nn.ReLU(inplace=True), "silu": nn.SiLU}
NORMS = {"batch": lambda channels, momentum: nn.BatchNorm2d(channels, momentum=momentum),
         "group": lambda channels, momentum: nn.GroupNorm(gcd(32, channels), channels)}


def activation_layer(name: str) -> nn.Module:
    """`relu` or `silu`.  ReLU works in place: the networks apply it to values that nothing else reads."""
    if name not in ACTIVATIONS:
        raise UserError(f"there is no activation {name!r}: choose one of {', '.join(ACTIVATIONS)}", code="E-MODEL")
    return ACTIVATIONS[name]()


def norm_layer(name: str, channels: int, momentum: float = 0.1) -> nn.Module:
    """`batch`: BatchNorm2d, whose running statistics take `momentum` of each batch; `group`: GroupNorm with
    gcd(32, channels) groups, which has no running statistics."""
    if name not in NORMS:
        raise UserError(f"there is no normalisation layer {name!r}: choose one of {', '.join(NORMS)}", code="E-MODEL")
    return NORMS[name](channels, momentum)


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps H and W at stride 1."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


def conv1x1(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
