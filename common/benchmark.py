"""What benchmarks measure with: seconds of blocks of work, their spread, and the useful operations of a network."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Timings:
    """Seconds of each block of `images` images; on CUDA the memory that blocks needed beyond what lay there."""

    images: int
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def rates(self) -> list[float]:
        """Images per second, block by block."""
        return [self.images / seconds for seconds in self.seconds]

    def time(self, device: torch.device, block: Callable[[], Any]) -> None:
        """Run the block and note how long the device took."""
        synchronise(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        started = time.perf_counter()
        block()
        synchronise(device)
        self.seconds.append(time.perf_counter() - started)
        if device.type == "cuda":
            self.peak_bytes = max(self.peak_bytes or 0, torch.cuda.max_memory_allocated(device) - before)

    def record(self) -> dict[str, Any]:
        return {"images_per_block": self.images, "seconds": self.seconds, "peak_bytes": self.peak_bytes,
                "images_per_second": spread(self.rates)}


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def forward_operations(network: nn.Module, size: int = 32) -> int:
    """Useful operations of one image's forward pass: 2 per multiply-add, products with zero padding not counted."""
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += 2 * module.weight.numel()
            return
        ones = torch.ones(1, 1, *inputs[0].shape[2:])
        taps = F.conv2d(ones, torch.ones(1, 1, *module.kernel_size), None, module.stride, module.padding)
        total += 2 * int(taps.sum()) * module.weight.shape[0] * module.weight.shape[1]

    twin = copy.deepcopy(network).cpu().float().eval()
    for module in twin.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(add)
    with torch.no_grad():
        twin(torch.zeros(1, 3, size, size))
    return total


def repeat(times: int, run: Callable[..., Any], *values: Any) -> None:
    for _ in range(times):
        run(*values)
