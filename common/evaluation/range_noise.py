"""Noise that keeps each image in its own range (arXiv 2410.03952, after Li et al. 2019).

    v' = clamp( v + (high - low)*n,  min v,  max v )

low, high: the least and the largest value of the whole test set; min v, max v: of the one image, over its channels; n,
per pixel and channel:

    gaussian-noise         eps*N(0,1)
    uniform-range-noise    U(-eps, eps)
    salt-pepper-noise      with probability eps 1 or -1, equally likely, else 0
"""

import torch
from torch import Tensor

from common.evaluation.plans import Evaluator
from common.seeds import fold


def noise(kind: str, shape: torch.Size, eps: float, generator: torch.Generator) -> Tensor:
    """n, float32 of `shape` on the CPU; kind: one of common.evaluation.kinds.RANGE_NOISE_KINDS."""
    if kind == "gaussian-noise":
        return eps * torch.randn(shape, generator=generator)
    drawn = torch.rand(shape, generator=generator)
    if kind == "uniform-range-noise":
        return eps * (2 * drawn - 1)
    # Of the interval [0,1) the first eps/2 are pepper, the next eps/2 salt.
    return (drawn < eps).float() - 2 * (drawn < eps / 2).float()


def in_own_range(x: Tensor, moved: Tensor) -> Tensor:
    """moved (B,C,H,W), each image clamped between the least and the largest value of its image in x (B,C,H,W)."""
    return torch.minimum(torch.maximum(moved, x.amin((1, 2, 3), keepdim=True)), x.amax((1, 2, 3), keepdim=True))


def noisy(evaluator: Evaluator, x: Tensor, seed: int) -> Tensor:
    """The images x (B,C,H,W) in [0,1] with the evaluator's noise.

    Drawn on the CPU for all of them, so that the numbers depend on no device; eps 0 gives x.
    """
    generator = torch.Generator().manual_seed(fold(seed, "range noise"))
    drawn = noise(evaluator.kind, x.shape, evaluator.eps, generator).to(x.device)
    return in_own_range(x, x + (evaluator.setting("high") - evaluator.setting("low")) * drawn)
