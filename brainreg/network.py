"""The ResNet of arXiv 2410.03952, which classifies images and says how similar it finds pairs of them.

    g_l, l = 0..4   the outputs of the stem (after its ReLU) and of the four sections, (k,C_l,H_l,W_l)
    mu_l   <- 0.9*mu_l + 0.1*(mean of g_l per channel over both halves of the pairs and space)      train mode only
    c_l    = cos( flat(g_l(a) - mu_l), flat(g_l(b) - mu_l) ),   norms floored at 1e-8
    s      = sum_l softmax(w)_l * c_l,   w five learned scalars

mu_l are constants of the loss, 0 at the start and moved by pairs alone; gradients flow through both images of a pair.
The names of the state dict are those of the released code, so its files load: `layer_weight` is w, `running_mean` mu.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.attacks.mode import mode
from common.errors import UserError
from common.models.layers import conv1x1, conv3x3
from common.models.resnet import shortcut
from common.sync_norm import channel_means

STAGES = {"resnet18": ((2, 2, 2, 2), False), "resnet34": ((3, 4, 6, 3), False),      # blocks per section, bottlenecks
          "resnet50": ((3, 4, 6, 3), True), "resnet101": ((3, 4, 23, 3), True)}
STEM = 7                                     # side of the first kernel
EXPANSION = 4                                # a bottleneck's outputs, in its planes
KEPT = 0.9                                   # of mu_l, by each batch of pairs
FLOOR = 1e-8


class Pair(NamedTuple):
    """rows, columns (k,C,h,w) float32 as the network is fed, already scaled: k pairs, of the task's size or another."""

    rows: Tensor
    columns: Tensor


class Block(nn.Module):
    """(B,channels_in,H,W) -> (B,planes or 4*planes,H/stride,W/stride): 3x3, 3x3, or 1x1, 3x3, 1x1, the stride always
    on the first; ReLU after the addition, at the end."""

    def __init__(self, channels_in: int, planes: int, stride: int, bottleneck: bool):
        super().__init__()
        channels_out = planes * EXPANSION if bottleneck else planes
        relu = nn.ReLU(inplace=True)
        if bottleneck:
            self.layer0 = nn.Sequential(conv1x1(channels_in, planes, stride), nn.BatchNorm2d(planes))
            self.layer1 = nn.Sequential(relu, conv3x3(planes, planes), nn.BatchNorm2d(planes))
            self.layer2 = nn.Sequential(relu, conv1x1(planes, channels_out), nn.BatchNorm2d(channels_out))
        else:
            self.layer0 = nn.Sequential(conv3x3(channels_in, planes, stride), nn.BatchNorm2d(planes))
            self.layer1 = nn.Sequential(relu, conv3x3(planes, planes), nn.BatchNorm2d(planes))
            self.layer2 = nn.Identity()
        self.shortcut = shortcut(channels_in, channels_out, stride, "batch")

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer2(self.layer1(self.layer0(x))) + self.shortcut(x)).relu_()


class PairResNet(nn.Module):
    """x (B,C,H,W) in [0,1] -> logits (B,classes); a Pair of k -> similarities s (k,) in [-1,1], float32.

    blocks: per section; the sections are width*(1, 2, 4, 8) planes wide and halve the image from the second on.
    scale, shift: images are fed as scale*(x - shift), 5 and 0.5 for CIFAR; they are not in the state dict.
    stem: side of the first kernel, odd: 7 as released; with 3 the logits are those of the other papers' ResNets.
    The average before the last layer is over all that is left: the released 4x4 pool at sides of 28 and 32.
    synchronised: of several processes, mu_l moves by the pairs of all, instead of each process's own.
    """

    synchronised = False

    def __init__(self, blocks: tuple[int, int, int, int], *, classes: int, channels: int = 1, width: int = 64,
                 bottleneck: bool = False, scale: float = 1.0, shift: float = 0.0, stem: int = STEM):
        super().__init__()
        self.scale, self.shift = float(scale), float(shift)
        first = nn.Conv2d(channels, width, stem, padding=stem // 2, bias=False)
        sections = [nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(inplace=True))]
        wide = [width]                                   # channels of g_0, ..., g_4
        for section, count in enumerate(blocks):
            planes, stride = width * 2 ** section, 1 if section == 0 else 2
            channels_out = planes * EXPANSION if bottleneck else planes
            sections.append(nn.Sequential(Block(wide[-1], planes, stride, bottleneck),
                                          *(Block(channels_out, planes, 1, bottleneck) for _ in range(count - 1))))
            wide.append(channels_out)
        self.layer_weight = nn.Parameter(torch.zeros(len(sections)))
        self.core = nn.ModuleDict({"sections": nn.ModuleList(sections)})
        self.linear = nn.Linear(wide[-1], classes)
        self.running_mean = nn.ParameterList(nn.Parameter(torch.zeros(count), requires_grad=False) for count in wide)

    def forward(self, x: Tensor | Pair) -> Tensor:
        if isinstance(x, Pair):
            return self.similarities(x)
        return self.classify(self.scale * (x - self.shift))

    @property
    def beside_logits(self) -> int:
        """Numbers among the parameters that no logit depends on: w and mu_l, which similarities alone use."""
        return sum(parameter.numel() for parameter in (self.layer_weight, *self.running_mean))

    def statistics(self) -> list[Tensor]:
        """mu_l, which training moves without a gradient."""
        return list(self.running_mean)

    def classify(self, fed: Tensor) -> Tensor:
        """fed (B,C,H,W) as the network is fed, already scaled -> logits (B,classes)."""
        for section in self.core["sections"]:
            fed = section(fed)
        return self.linear(fed.mean((2, 3)))

    def features(self, fed: Tensor) -> list[Tensor]:
        """fed (B,C,H,W), already scaled -> g_0, ..., g_4."""
        found = [fed]
        for section in self.core["sections"]:
            found.append(section(found[-1]))
        return found[1:]

    def similarities(self, pair: Pair) -> Tensor:
        """s (k,) float32 in [-1,1] of k pairs; two passes, the row images first.  In train mode it moves mu_l."""
        halves = zip(self.features(pair.rows), self.features(pair.columns), self.running_mean, strict=True)
        cosines = torch.stack([self._cosine(a.float(), b.float(), mean) for a, b, mean in halves])
        # No matrix product, here or below: autocast would compute it in bf16.
        return (self.layer_weight.softmax(0)[:, None] * cosines).sum(0)

    def _cosine(self, a: Tensor, b: Tensor, mean: Tensor) -> Tensor:
        """c_l (k,) of the features (k,C,H,W) of both halves and mu_l (C,), which moves first, in place."""
        if self.training:
            with torch.no_grad():
                both = (channel_means(a, self.synchronised) + channel_means(b, self.synchronised)) / 2
                mean.lerp_(both, 1 - KEPT)
        a, b = a - mean[:, None, None], b - mean[:, None, None]
        axes = (1, 2, 3)
        norms = [torch.linalg.vector_norm(half, dim=axes).clamp_min(FLOOR) for half in (a, b)]
        return (a * b).sum(axes) / (norms[0] * norms[1])


def build(name: str, classes: int = 10, channels: int = 1, width: int = 64, scale: float = 1.0,
          shift: float = 0.0, stem: int = STEM) -> PairResNet:
    """The network resnet18, resnet34, resnet50 or resnet101, of torch's default initialisation.

    Images of `channels` channels are fed to it as scale*(x - shift).  UserError for another name or sizes below 1.
    """
    if name not in STAGES:
        raise UserError(f"there is no network {name!r} for pairs of images: choose one of {', '.join(STAGES)}",
                        code="E-MODEL")
    for what, value in (("classes", classes), ("channels", channels), ("width", width)):
        if value < 1:
            raise UserError(f"{name} needs at least 1 as {what}, not {value}", code="E-MODEL")
    blocks, bottleneck = STAGES[name]
    return PairResNet(blocks, classes=classes, channels=channels, width=width, bottleneck=bottleneck, scale=scale,
                      shift=shift, stem=stem)


@torch.no_grad()
def similarity_matrix(network: PairResNet, fed: Tensor, batch: int = 100) -> Tensor:
    """s of all pairs of the images fed (N,C,h,w), already scaled, in eval mode: (N,N) float32.

    It holds the features of all N at once: at 32 pixels and width 64, 0.75 MB for each.
    """
    with mode(network, training=False):
        passes = [network.features(part) for part in fed.split(batch)]
        matrix = torch.zeros(len(fed), len(fed), device=fed.device)
        weights = network.layer_weight.softmax(0)
        for weight, mean, parts in zip(weights, network.running_mean, zip(*passes, strict=True), strict=True):
            flat = (torch.cat(parts) - mean[:, None, None]).flatten(1)
            flat = flat / torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp_min(FLOOR)
            matrix += weight * (flat @ flat.T)
    return matrix
