"""Quirk bn-first-step: how fast the running statistics of batch norm follow a batch changes twice.

    epoch 0                  the momentum that the network was built with
    epoch 1, first batch     1: the statistics become those of the batch (in train mode, of its last pass)
    from then on             0.01
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.types import Batch, StepContext

FIRST, LATER = 1.0, 0.01


class FirstStep:
    """The quirk as `fit`'s before_step.  Group norm knows no momentum and stays as it is.

    It looks at the epoch and the step alone, and holds nothing: a resumed run, whose network is built anew, trains on
    as if it had never stopped.  What attacks see in train mode shares these modules; in eval mode it does not matter.
    """

    def __call__(self, model: nn.Module, batch: Batch, ctx: StepContext) -> None:
        """Set the momentum of every batch norm in `model`, which may be an engine's runner."""
        if ctx.epoch == 0:
            return
        momentum = FIRST if ctx.step == ctx.steps_per_epoch else LATER
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = momentum
