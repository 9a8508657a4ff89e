"""VGG16 with batch norm for small images, as the weight-averaging literature uses it on CIFAR: ten convolutions.

Source: Simonyan and Zisserman 2015 (arXiv:1409.1556), without its last three convolutions and with three linear layers
of one width, which is RPAT's `VGG16`; the names of the state dict are RPAT's.
"""

from torch import Tensor, nn

from common.models.layers import activation_layer, norm_layer

STAGES = (2, 2, 3, 3)                        # convolutions per stage; the stages are 1, 2, 4, 8 times the base wide


class VGG(nn.Module):
    """(B,channels,H,W) in [0,1] -> logits (B,classes); any H, W >= 8.  Torch's default initialisation.

    Five max-pools halve the image, one after each stage and one more; a side of one pixel stays one (at 32x32 nothing
    is rounded), and what is left is averaged.  In train mode with norm="batch" a batch needs two images.

    `width`: channels of the first stage; `normalise`: a module for the first step.
    """

    def __init__(self, *, classes: int, channels: int = 3, width: int = 64, activation: str = "relu",
                 norm: str = "batch", normalise: nn.Module | None = None):
        super().__init__()
        self.normalise = normalise or nn.Identity()
        self.stages: list[list[str]] = []
        channels_in = channels
        for stage, count in enumerate(STAGES, start=1):
            channels_out = width * 2 ** (stage - 1)
            names = [f"layer{stage}{i}" for i in range(1, count + 1)]
            for name in names:
                layer = nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, padding=1),
                                      norm_layer(norm, channels_out), activation_layer(activation))
                self.add_module(name, layer)
                channels_in = channels_out
            self.stages.append(names)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        for name in ("layer6", "layer7"):
            # GroupNorm takes (B,C) as it is; batch norm has a class of its own for it.
            over_vectors = nn.BatchNorm1d(channels_in) if norm == "batch" else norm_layer(norm, channels_in)
            self.add_module(name, nn.Sequential(nn.Linear(channels_in, channels_in), over_vectors,
                                                activation_layer(activation)))
        self.layer8 = nn.Linear(channels_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.normalise(x)
        for stage in self.stages:
            for name in stage:
                out = self.get_submodule(name)(out)
            out = self.pool(out)
        return self.layer8(self.layer7(self.layer6(self.pool(out).mean((2, 3)))))
