"""FGSM on one network, its images shown to another (Goodfellow et al. 2015), as arXiv 2410.03952 does it.

    v' = clamp( v + eps*(high - low)*sign(grad_v CE(source(v), y)),  low,  high )

low, high: the least and the largest value of the 64 test images, counted off in order, to which the image belongs; y
the true label.  The source is another network of the same task, in eval mode, in float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from common.attacks.balls import finite
from common.attacks.losses import cross_entropy
from common.attacks.pgd import input_gradient
from common.data.splits import Split
from common.errors import UserError
from common.evaluation.kinds import TRANSFERRED
from common.evaluation.plans import Plan

TOGETHER = 64                                # test images that share low and high: a batch of the released code


def check(plan: Plan, sources: Mapping[str, nn.Module]) -> None:
    """UserError if a plan needs the gradients of a network that was not handed over."""
    asked = [evaluator for evaluator in plan.evaluators if evaluator.kind == TRANSFERRED]
    for evaluator in asked:
        source = evaluator.setting("source")
        if source not in sources:
            raise UserError(f"evaluator {evaluator.name!r} takes the gradients of a network whose weights have the "
                            f"sha256 {source[:12]}..., and it is not here: train that run again, or leave the "
                            "evaluator out", code="E-SOURCE")
    if asked and plan.test_crop:
        raise UserError(f"plan {plan.name!r}: test_crop crops the test images, and {asked[0].name!r} moves them as "
                        "they are: give it a plan of its own", code="E-PLAN-DATA")


def limits(split: Split, where: slice) -> tuple[Tensor, Tensor]:
    """low and high (B,1,1,1) uint8 of the images at the positions `where`, a slice with both ends.

    They depend on the whole test set's order, not on how many of its images are judged, nor in which chunks.
    """
    first = where.start // TOGETHER
    batches = split.images[first * TOGETHER:-(-where.stop // TOGETHER) * TOGETHER].split(TOGETHER)
    least, most = (torch.stack([getattr(batch, what)() for batch in batches]) for what in ("amin", "amax"))
    mine = torch.arange(where.start, where.stop, device=split.device) // TOGETHER - first
    return least[mine].view(-1, 1, 1, 1), most[mine].view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Source:
    """A network whose gradients are taken: x (B,C,H,W) -> logits, in eval mode, float32.  Its signs are kept for the
    other strengths: a byte per value of the images that are judged.
    """

    network: nn.Module
    kept: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)

    def signs(self, x: Tensor, y: Tensor, where: slice, batch_size: int) -> Tensor:
        """int8 (B,C,H,W): of the gradient at the images x (B,C,H,W) with labels y (B,), which stand at the positions
        `where` of the test set.  An image's depends on no other, so that batch_size only splits the passes."""
        key = where.start, where.stop
        if key not in self.kept:
            self.kept[key] = torch.cat([
                finite(input_gradient(self.network, *part, cross_entropy)[0]).sign().to(torch.int8)
                for part in zip(x.split(batch_size), y.split(batch_size), strict=True)])
        return self.kept[key]


def moved(eps: float, x: Tensor, signs: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """v' (B,C,H,W) of the images x, given signs (B,C,H,W) and low, high (B,1,1,1) in [0,1]; eps 0 gives x."""
    return torch.minimum(torch.maximum(x + eps * (high - low) * signs, low), high)
