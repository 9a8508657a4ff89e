"""Regions: functions of tensors that a GPU runs as one recorded CUDA graph instead of kernel after kernel.

A small network's attack is hundreds of short kernels, and starting each from Python takes longer than running it.  A
region is run as it is at first (`WARM` times: kernels are chosen, memory is set apart), then recorded, and from then on
its inputs are copied into the recording's own and the recording is replayed.  What is drawn at random stays outside:
starts are drawn from (seed, step) before the region and handed in, so a replay is never a repetition.

The recording is tried on the inputs of the call that it is made in: where it finds something else than the function
itself did, or cannot be made, the function runs as it is from then on and a note says why.  Nothing here needs a GPU
but `CudaGraph`; the tests put another recorder in its place.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

WARM = 2                       # calls of a region before it is recorded
MOST = 12                      # regions held; of more the one that was used longest ago goes
APART = 1e-3                   # how far a recording may be off: mean |difference| over mean |value|
Result = Tensor | tuple[Tensor, ...]


class Recorder(Protocol):
    """Records what a function does on the device without doing it; `replay` does it."""

    def record(self, function: Callable[[], Result]) -> Result: ...
    def replay(self) -> None: ...


class CudaGraph:
    """A recording as a CUDA graph.  pool: the memory that it shares with others that never run at the same time."""

    def __init__(self, pool: Any):
        self.graph, self.pool = torch.cuda.CUDAGraph(), pool

    def record(self, function: Callable[[], Result]) -> Result:
        # "thread_local": threads that read the next images ahead may pin memory meanwhile.
        with torch.cuda.graph(self.graph, pool=self.pool, capture_error_mode="thread_local"):
            return function()

    def replay(self) -> None:
        self.graph.replay()


@dataclass(eq=False)
class Region:
    """One function for tensors of one kind: run as it is, then recorded, or given up for a reason."""

    calls: int = 0
    recorder: Recorder | None = None
    inputs: list[Tensor] = field(default_factory=list)
    outputs: Result | None = None
    plain: bool = False                            # for good: it could not be recorded, or did something else

    def __call__(self, tensors: Iterable[Tensor]) -> Result:
        for own, given in zip(self.inputs, tensors, strict=True):
            own.copy_(given)
        self.recorder.replay()
        return copied(self.outputs)


class Regions:
    """The regions of one network.

    recorder  makes a Recorder
    note      takes one line for each region that cannot be recorded
    norms     batch norms in train mode, whose statistics the functions move besides what they return
    """

    def __init__(self, recorder: Callable[[], Recorder], note: Callable[[str], None], norms: Iterable[nn.Module] = ()):
        self.recorder, self.note, self.norms = recorder, note, list(norms)
        self.state = statistics(self.norms)
        self.known: dict[Hashable, Region] = {}

    def run(self, key: Hashable, function: Callable[..., Result], *tensors: Tensor) -> Result:
        """function(*tensors), which must depend on nothing else that changes between calls of the same `key`.

        Tensors of other shapes, strides or types are another region.  What is returned is the caller's own.
        """
        key = (key, torch.is_grad_enabled(), manner(self.norms), *map(kind, tensors))
        region = self.known.pop(key, None) or Region()
        self.known[key] = region                                        # the most recent one stands last
        while len(self.known) > MOST:
            self.known.pop(next(iter(self.known)))
        if region.recorder is not None:
            return region(tensors)
        region.calls += 1
        if region.plain or region.calls <= WARM:
            return function(*tensors)
        return self._recorded(region, function, tensors)

    def _recorded(self, region: Region, function: Callable[..., Result], tensors: tuple[Tensor, ...]) -> Result:
        """The call in which a region is recorded and tried; what the function itself returned and did counts."""
        before = [tensor.clone() for tensor in self.state]
        expected = function(*tensors)
        after = [tensor.clone() for tensor in self.state]
        inputs = [tensor.detach().clone() for tensor in tensors]
        recorder = self.recorder()
        try:
            outputs = recorder.record(lambda: function(*inputs))
        except RuntimeError as error:                  # what CUDA and torch raise where something cannot be recorded
            region.plain = True
            self.note(f"not recorded as a CUDA graph: {' '.join(str(error).split())[:120]}")
            restore(self.state, after)
            return expected
        restore(self.state, before)
        made = Region(recorder=recorder, inputs=inputs, outputs=outputs)
        found = made(tensors)
        gap = max((distance(*pair) for pair in zip((*listed(found), *self.state), (*listed(expected), *after),
                                                   strict=True)), default=0.0)
        restore(self.state, after)
        if not gap <= APART:
            region.plain = True
            self.note(f"not run as a CUDA graph: the recording is off by {gap:.1%}")
        else:
            region.recorder, region.inputs, region.outputs = recorder, inputs, outputs
        return expected


def norms_of(module: nn.Module) -> list[nn.Module]:
    """Its batch norms."""
    return [one for one in module.modules() if isinstance(one, _NormBase)]


def statistics(norms: Iterable[nn.Module]) -> list[Tensor]:
    """The running statistics of batch norms."""
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def manner(norms: Iterable[nn.Module]) -> tuple[Any, ...]:
    """What a pass does with batch norms besides their tensors: mode, momentum, whether statistics move."""
    return tuple((one.training, one.momentum, one.track_running_stats) for one in norms)


def kind(tensor: Tensor) -> tuple[Any, ...]:
    """What a recording of it depends on."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


def listed(result: Result) -> tuple[Tensor, ...]:
    """The tensors of a result."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def copied(result: Result) -> Result:
    """A result of the caller's own, which the next replay leaves alone."""
    return result.clone() if isinstance(result, Tensor) else tuple(one.clone() for one in result)


def restore(tensors: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Give tensors their values back, in place, and past autograd's count of writes: a pass whose backward pass is
    still to come holds batch norm's statistics, though it does not read them."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.data.copy_(value.data)


@torch.no_grad()
def distance(found: Tensor, expected: Tensor) -> float:
    """mean |found - expected| over mean |expected|; NaN where one is not finite.  Waits for the device."""
    gap = (found.double() - expected.double()).abs().mean()
    scale = expected.double().abs().mean()
    return 0.0 if found.numel() == 0 else (gap / scale.clamp_min(1e-12)).item()
