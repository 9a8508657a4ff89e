"""The training passes of a network as CUDA graphs: its forward and backward pass, for each call that a step makes.

`torch.cuda.make_graphed_callables` records them.  What the objective does with the logits, the mean over the ranks and
the optimiser stay as they are: a few short kernels.  A recording keeps the activations of one pass, so the first call
of a step, the second and so on have one each.  As in common.capture a call is made as it is at first, a recording is
tried before it is trusted, and what cannot be recorded runs as it is, with a note that says why.

Objectives ask for it by an attribute `recordable = True`: they pass the network in the same way in every step, and take
first derivatives with respect to its parameters only.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from common.capture import APART, WARM, distance, manner, norms_of, restore, statistics
from common.engine import Engine, Runner
from common.types import Objective

MOST = 8                       # calls of a step, in all the modes and shapes that are met
Record = Callable[[nn.Module, tuple[Tensor, ...]], Callable[[Tensor], Tensor]]


def training_runner(engine: Engine, network: nn.Module, objective: Objective) -> Runner:
    """The network as the objective calls it in training: with recorded passes where engine and objective allow them."""
    if not engine.graphs:
        return engine.runner(network)
    if not getattr(objective, "recordable", False):
        engine.notes.append("training passes are not recorded as CUDA graphs: the objective does not allow it")
        return engine.runner(network)
    return RecordedRunner(network, engine)


def cuda_graphs(module: nn.Module, sample: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    """Forward and backward pass of a module as CUDA graphs, for inputs like the sample."""
    return torch.cuda.make_graphed_callables(module, sample, allow_unused_input=True)


@dataclass(eq=False)
class Call:
    """The passes of one call of a step: how often made so far, recorded, or given up for good."""

    calls: int = 0
    run: Callable[[Tensor], Tensor] | None = None
    plain: bool = False


class RecordedRunner(Runner):
    """A runner that records the passes of its network.  record: what records, None: `cuda_graphs`; `begin` starts a
    step."""

    def __init__(self, network: nn.Module, engine: Engine, record: Record | None = None):
        super().__init__(network, engine)
        self.record = record or cuda_graphs
        self.norms = norms_of(network)
        self.known: dict[Hashable, Call] = {}
        self.turn = 0                              # calls that this step has made

    def begin(self) -> None:
        self.turn = 0

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        if not isinstance(x, Tensor) or not torch.is_grad_enabled():
            return super().forward(x)
        self.turn += 1
        key = (self.turn, x.shape, x.stride(), x.dtype, x.requires_grad, self.network.training, manner(self.norms))
        call = self.known.get(key)
        if call is None:
            if len(self.known) >= MOST:
                return super().forward(x)
            call = self.known[key] = Call()
        call.calls += 1
        if call.calls > WARM and not call.plain and call.run is None:
            self._record(call, x)
        return super().forward(x) if call.run is None else call.run(x)

    def _record(self, call: Call, x: Tensor) -> None:
        """Record the passes of a call and try them on x; batch norm's statistics stay as they are."""
        reason = self._cannot()
        if reason is None:
            moving = statistics(self.norms)
            before = [tensor.clone() for tensor in moving]
            try:
                # A runner of its own for each call: the recorder changes its forward pass.
                run = self.record(Runner(self.network, self.engine),
                                  (x.detach().clone().requires_grad_(x.requires_grad),))
                restore(moving, before)
                reason = self._difference(run, x, moving, before)
            except RuntimeError as error:          # what CUDA and torch raise where something cannot be recorded
                reason = " ".join(str(error).split())[:120]
            restore(moving, before)
        if reason is None:
            call.run = run
        else:
            call.plain = True
            self.engine.notes.append(f"training passes are not recorded as CUDA graphs: {reason}")

    def _cannot(self) -> str | None:
        """Why the passes cannot be recorded, or None."""
        if any(isinstance(one, _DropoutNd) and one.p > 0 and one.training for one in self.network.modules()):
            return "dropout draws random numbers within the pass"
        if self.engine.sync_bn:
            return "batch norms wait for other processes"
        return None

    def _difference(self, run: Callable[[Tensor], Tensor], x: Tensor, moving: list[Tensor], before: list[Tensor]
                    ) -> str | None:
        """Why the recorded passes are not to be trusted, or None: logits, gradients and statistics are compared."""
        wanted, found = [one for one in self.network.parameters() if one.requires_grad], []
        for passes in (super().forward, run):
            logits = passes(x)
            # Any direction will do, the same for both; uneven, so that it is not at right angles to every gradient.
            along = torch.linspace(-1, 2, logits.numel(), device=logits.device).view_as(logits)
            gradients = torch.autograd.grad(logits, wanted, along, allow_unused=True)
            tensors = [logits.detach(), *(one for one in gradients if one is not None), *moving]
            found.append(torch.cat([one.detach().reshape(-1).double() for one in tensors]))
            restore(moving, before)
        if len(found[0]) != len(found[1]):
            return "other parameters get a gradient"
        gap = distance(found[1], found[0])
        return None if gap <= APART else f"the recording is off by {gap:.1%}"
