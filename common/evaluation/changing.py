"""Evaluators of other images than the test images: corrupted, with noise, or moved by another network's gradient.

The harness judges such images as they are: accuracy on them, in no ball, whatever the network says of the clean ones.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.data.splits import Split, to_float
from common.errors import UserError
from common.evaluation import corruptions, transferred
from common.evaluation.kinds import CORRUPTION_KINDS, RANGE_NOISE_KINDS, TRANSFERRED
from common.evaluation.plans import Evaluator, Plan
from common.evaluation.range_noise import noisy

if TYPE_CHECKING:
    from common.data.corruption_files import CorruptionFiles

# x (B,C,H,W) float32 in [0,1], labels (B,), their positions in the test set, the chunk's seed -> the images to judge
Change = Callable[[Tensor, Tensor, slice, int], Tensor]
ROUNDING = 1e-6                              # of low and high in a record


def check(plan: Plan, split: Split, files: "CorruptionFiles | None", sources: Mapping[str, nn.Module]) -> None:
    """UserError for whatever would stop an evaluator of changed images, or one that knows the images' range."""
    corruptions.check(plan, files, split.labels.cpu().numpy(), tuple(split.images.shape[1:]))
    transferred.check(plan, sources)
    ranged = [evaluator for evaluator in plan.evaluators if "low" in dict(evaluator.settings)]
    if not ranged:
        return
    least, most = (value.item() / 255 for value in split.images.aminmax())
    for evaluator in ranged:
        low, high = evaluator.setting("low"), evaluator.setting("high")
        if least < low - ROUNDING or most > high + ROUNDING:
            raise UserError(f"evaluator {evaluator.name!r} is for images in [{low:g},{high:g}], and these test images "
                            f"reach from {least:g} to {most:g}: they are of another data set", code="E-PLAN-DATA")


def change_of(evaluator: Evaluator, split: Split, files: "CorruptionFiles | None",
              sources: Mapping[str, transferred.Source], device: torch.device, batch_size: int) -> Change | None:
    """How an evaluator changes the test images of `split`; None if it leaves them as they are.

    sources: by the sha256 of their weights, on the device.
    """
    if evaluator.kind in CORRUPTION_KINDS:
        def corrupted(x: Tensor, y: Tensor, where: slice, seed: int) -> Tensor:
            images = corruptions.corrupted(evaluator, files, split.images[where].cpu().numpy(), where)
            return to_float(torch.from_numpy(images).to(device))
        return corrupted
    if evaluator.kind in RANGE_NOISE_KINDS:
        return lambda x, y, where, seed: noisy(evaluator, x, seed)
    if evaluator.kind == TRANSFERRED:
        source = sources[evaluator.setting("source")]

        def transfer(x: Tensor, y: Tensor, where: slice, seed: int) -> Tensor:
            low, high = (to_float(limit.to(device)) for limit in transferred.limits(split, where))
            return transferred.moved(evaluator.eps, x, source.signs(x, y, where, batch_size), low, high)
        return transfer
    return None
