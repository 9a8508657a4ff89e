"""The networks by name.  Each takes images in [0,1] of any size from 8x8 up and any number of channels, and pools
globally before its last layer, which equals the originals' fixed 4x4 or 8x8 pool at 32x32.

Their forward passes have no control flow that depends on data, so torch.fx can trace them.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import nn

from common.errors import UserError
from common.inputs import check_memory
from common.models.mobilenet import MobileNetV2
from common.models.normalise import Normalise
from common.models.pre_resnet import PreResNet
from common.models.preact_resnet import PreActBottleneck, PreActResNet, RawShortcutBlock
from common.models.resnet import BasicBlock, Bottleneck, ResNet
from common.models.small import SmallCNN
from common.models.swish import SwishPreActResNet, SwishWideResNet
from common.models.vgg import VGG
from common.models.wide_resnet import WideResNet

__all__ = ["Normalise", "build", "count_parameters", "names"]

USUAL = 4096                   # classes or width above which a network's size is looked at before it is made


@dataclass(frozen=True)
class Entry:
    """How to make a network, and which of the options that not every network has it takes."""

    make: Callable[..., nn.Module]
    width: bool = False
    dropout: bool = False
    activation: bool = True
    stem_stride: bool = False


REGISTRY = {
    "resnet18": Entry(partial(ResNet, BasicBlock, (2, 2, 2, 2)), width=True, stem_stride=True),
    "resnet18-bottleneck": Entry(partial(ResNet, Bottleneck, (2, 2, 2, 2)), width=True, stem_stride=True),
    "resnet34": Entry(partial(ResNet, BasicBlock, (3, 4, 6, 3)), width=True, stem_stride=True),
    "resnet50": Entry(partial(ResNet, Bottleneck, (3, 4, 6, 3)), width=True, stem_stride=True),
    "resnet101": Entry(partial(ResNet, Bottleneck, (3, 4, 23, 3)), width=True, stem_stride=True),
    "preactresnet18": Entry(partial(PreActResNet, (2, 2, 2, 2)), width=True),
    "preactresnet18-raw": Entry(partial(PreActResNet, (2, 2, 2, 2), block=RawShortcutBlock, last_norm=False),
                                width=True),
    "preactresnet34": Entry(partial(PreActResNet, (3, 4, 6, 3)), width=True),
    "preactresnet50": Entry(partial(PreActResNet, (3, 4, 6, 3), block=PreActBottleneck), width=True),
    "preactresnet101": Entry(partial(PreActResNet, (3, 4, 23, 3), block=PreActBottleneck), width=True),
    "preactresnet18-swish": Entry(partial(SwishPreActResNet, (2, 2, 2, 2)), width=True, activation=False),
    "preactresnet34-swish": Entry(partial(SwishPreActResNet, (3, 4, 6, 3)), width=True, activation=False),
    "preresnet18": Entry(partial(PreResNet, (2, 2, 2, 2)), width=True, stem_stride=True),
    "wrn-28-10": Entry(partial(WideResNet, 28, 10), dropout=True, stem_stride=True),
    "wrn-34-10": Entry(partial(WideResNet, 34, 10), dropout=True, stem_stride=True),
    "wrn-34-20": Entry(partial(WideResNet, 34, 20), dropout=True, stem_stride=True),
    # The first two are no published networks: small enough for a CPU.
    **{f"wrn-{depth}-{widen}-swish": Entry(partial(SwishWideResNet, depth, widen), activation=False)
       for depth, widen in ((10, 1), (16, 2), (28, 10), (34, 10), (34, 20), (70, 16))},
    "vgg16": Entry(VGG, width=True),
    "mobilenet": Entry(MobileNetV2, width=True),
    "small": Entry(SmallCNN, width=True),
}


def names() -> tuple[str, ...]:
    """The names that `build` knows."""
    return tuple(REGISTRY)


def build(name: str, *, classes: int, channels: int = 3, width: int | None = None, dropout: float | None = None,
          activation: str | None = None, norm: str = "batch", stem_stride: int | None = None,
          normalise: tuple[Sequence[float], Sequence[float]] | None = None) -> nn.Module:
    """A freshly initialised network, float32 on the CPU (or on the device of `with torch.device(...)`).

    It maps images (B,channels,H,W) in [0,1] to logits (B,classes).  Beside `names()` it knows every wide ResNet by its
    depth 6*n + 4 and its widening, as wrn-34-5 or wrn-94-16-swish.

    width:      channels of the first stage; by default 64 (ResNets, VGG) or 32 (MobileNet, small).  A wide ResNet's is
                in its name.
    dropout:    probability, wide ResNets only; by default 0 (AdaRAT uses 0.3).
    activation: relu (the default) or silu.  A swish network's is in its name.
    norm:       batch, or group: GroupNorm with gcd(32, C) groups under the same names.
    stem_stride: of the first convolution, ResNets and wide ResNets; by default 1 (RPAT has 2 for 64x64 images).
    normalise:  (mean, std) per channel on the [0,1] scale: the network's first step, part of its state dict.  The
                published swish networks always have one (CIFAR-10: .4914 .4822 .4465, .2471 .2435 .2616).

    Anything that does not fit is a UserError.
    """
    entry = REGISTRY.get(name) or _wide_resnet(name)
    if entry is None:
        near = get_close_matches(name.lower(), REGISTRY, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"there is no model {name!r}{hint}: choose one of {', '.join(REGISTRY)}", code="E-MODEL")
    _whole("classes", classes, least=2)
    _whole("channels", channels, least=1)
    options = {"classes": classes, "channels": channels, "norm": norm}
    if entry.activation:
        options["activation"] = "relu" if activation is None else activation
    elif activation is not None:
        raise UserError(f"{name} takes no activation, it is in its name; models that take one: "
                        f"{_takers('activation')}", code="E-MODEL")
    if width is not None:
        if not entry.width:
            raise UserError(f"{name} takes no width, it is in its name; models that take one: {_takers('width')}",
                            code="E-MODEL")
        _whole("width", width, least=1)
        options["width"] = width
    if dropout is not None:
        if not entry.dropout:
            raise UserError(f"{name} has no dropout; models that have it: {_takers('dropout')}", code="E-MODEL")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout is a probability in [0, 1), not {dropout}", code="E-MODEL")
        options["dropout"] = dropout
    if stem_stride is not None:
        if not entry.stem_stride:
            raise UserError(f"{name} takes no stem_stride; models that take one: {_takers('stem_stride')}",
                            code="E-MODEL")
        _whole("stem_stride", stem_stride, least=1)
        options["stem_stride"] = stem_stride
    if normalise is not None:
        options["normalise"] = _normalisation(normalise, channels)
    if name not in REGISTRY or max(classes, width or 0) > USUAL:
        _check_size(entry, name, options)
    return entry.make(**options)


def _check_size(entry: Entry, name: str, options: dict[str, Any]) -> None:
    """UserError for a network that is larger than the memory; it is made without its numbers first."""
    try:
        with torch.device("meta"):
            model = entry.make(**options)
    except (RuntimeError, TypeError, OverflowError) as error:       # more numbers than torch can count
        raise UserError(f"{name} with {_sizes(options)} takes more memory than any machine has: take a smaller one",
                        code="E-MEMORY") from error
    check_memory(sum(parameter.nbytes for parameter in model.parameters()), f"{name} with {_sizes(options)}",
                 "take a smaller network")


def _sizes(options: dict[str, Any]) -> str:
    return f"classes={options['classes']}" + (f", width={options['width']}" if "width" in options else "")


def count_parameters(model: nn.Module) -> int:
    """The number of elements in all parameters; buffers such as running statistics do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def _wide_resnet(name: str) -> Entry | None:
    """What stands behind wrn-DEPTH-WIDEN or wrn-DEPTH-WIDEN-swish, or None if that is no wide ResNet."""
    match = re.fullmatch(r"wrn-([1-9]\d*)-([1-9]\d*)(-swish)?", name)
    depth, widen = map(int, match.groups()[:2]) if match else (0, 0)
    if match is None or depth < 10 or (depth - 4) % 6:
        return None
    if match[3]:
        return Entry(partial(SwishWideResNet, depth, widen), activation=False)
    return Entry(partial(WideResNet, depth, widen), dropout=True, stem_stride=True)


def _takers(option: str) -> str:
    return ", ".join(name for name, entry in REGISTRY.items() if getattr(entry, option))


def _whole(what: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{what} is a whole number of at least {least}, not {value!r}", code="E-MODEL")


def _normalisation(pair: tuple[Sequence[float], Sequence[float]], channels: int) -> Normalise:
    try:
        mean, std = ([float(value) for value in part] for part in pair)
    except (TypeError, ValueError) as error:
        raise UserError(f"normalise is a pair (mean, std) with one number per channel, not {pair!r}",
                        code="E-NORMALISE") from error
    if len(mean) != channels or len(std) != channels:
        raise UserError(f"normalise has {len(mean)} means and {len(std)} standard deviations, the images {channels} "
                        "channels: give one of each per channel", code="E-NORMALISE")
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value < math.inf for value in std):
        raise UserError(f"normalise takes means in [0, 1] and positive standard deviations, since images are in [0, 1] "
                        f"(divide numbers of the 0..255 scale by 255), not {mean} and {std}", code="E-NORMALISE")
    return Normalise(mean, std)
