"""The networks by name.  Each takes images in [0,1] of any size from 8x8 up and any number of channels, and pools
globally before its last layer, which equals the originals' fixed 4x4 or 8x8 pool at 32x32.

Their forward passes have no control flow that depends on data, so torch.fx can trace them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

from torch import nn

from common.errors import UserError
from common.models.normalise import Normalise
from common.models.preact_resnet import PreActResNet
from common.models.resnet import BasicBlock, Bottleneck, ResNet
from common.models.small import SmallCNN
from common.models.wide_resnet import WideResNet

__all__ = ["Normalise", "build", "count_parameters", "names"]


@dataclass(frozen=True)
class Entry:
    """How to make a network, and which of the options that not every network has it takes."""

    make: Callable[..., nn.Module]
    width: bool = False
    dropout: bool = False


REGISTRY = {
    "resnet18": Entry(partial(ResNet, BasicBlock, (2, 2, 2, 2)), width=True),
    "resnet34": Entry(partial(ResNet, BasicBlock, (3, 4, 6, 3)), width=True),
    "resnet50": Entry(partial(ResNet, Bottleneck, (3, 4, 6, 3)), width=True),
    "preactresnet18": Entry(partial(PreActResNet, (2, 2, 2, 2)), width=True),
    "wrn-28-10": Entry(partial(WideResNet, 28, 10), dropout=True),
    "wrn-34-10": Entry(partial(WideResNet, 34, 10), dropout=True),
    "small": Entry(SmallCNN, width=True),
}


def names() -> tuple[str, ...]:
    """The names that `build` knows."""
    return tuple(REGISTRY)


def build(name: str, *, classes: int, channels: int = 3, width: int | None = None, dropout: float | None = None,
          activation: str = "relu", norm: str = "batch",
          normalise: tuple[Sequence[float], Sequence[float]] | None = None) -> nn.Module:
    """A freshly initialised network, float32 on the CPU (or on the device of `with torch.device(...)`).

    It maps images (B,channels,H,W) in [0,1] to logits (B,classes).

    width:      channels of the first stage; by default 64 (ResNets) or 32 (small).  A wide ResNet's is in its name.
    dropout:    probability, wide ResNets only; by default 0 (AdaRAT uses 0.3).
    activation: relu or silu.
    norm:       batch, or group: GroupNorm with gcd(32, C) groups under the same names.
    normalise:  (mean, std) per channel on the [0,1] scale: the network's first step, part of its state dict.

    Anything that does not fit is a UserError.
    """
    if name not in REGISTRY:
        near = get_close_matches(name.lower(), REGISTRY, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"there is no model {name!r}{hint}: choose one of {', '.join(REGISTRY)}")
    entry = REGISTRY[name]
    _whole("classes", classes, least=2)
    _whole("channels", channels, least=1)
    options = {"classes": classes, "channels": channels, "activation": activation, "norm": norm}
    if width is not None:
        if not entry.width:
            raise UserError(f"{name} takes no width, it is in its name; models that take one: {_takers('width')}")
        _whole("width", width, least=1)
        options["width"] = width
    if dropout is not None:
        if not entry.dropout:
            raise UserError(f"{name} has no dropout; models that have it: {_takers('dropout')}")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout is a probability in [0, 1), not {dropout}")
        options["dropout"] = dropout
    if normalise is not None:
        options["normalise"] = _normalisation(normalise, channels)
    return entry.make(**options)


def count_parameters(model: nn.Module) -> int:
    """The number of elements in all parameters; buffers such as running statistics do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def _takers(option: str) -> str:
    return ", ".join(name for name, entry in REGISTRY.items() if getattr(entry, option))


def _whole(what: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{what} is a whole number of at least {least}, not {value!r}")


def _normalisation(pair: tuple[Sequence[float], Sequence[float]], channels: int) -> Normalise:
    try:
        mean, std = ([float(value) for value in part] for part in pair)
    except (TypeError, ValueError) as error:
        raise UserError(f"normalise is a pair (mean, std) with one number per channel, not {pair!r}") from error
    if len(mean) != channels or len(std) != channels:
        raise UserError(f"normalise has {len(mean)} means and {len(std)} standard deviations, the images {channels} "
                        "channels: give one of each per channel")
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value < math.inf for value in std):
        raise UserError(f"normalise takes means in [0, 1] and positive standard deviations, since images are in [0, 1] "
                        f"(divide numbers of the 0..255 scale by 255), not {mean} and {std}")
    return Normalise(mean, std)
